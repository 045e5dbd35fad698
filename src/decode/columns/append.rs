//! Appends values to columns, each as the column's type requires, or returns why it does not fit.

use super::{Column, Data, TextInput};
use crate::decode::json;
use crate::decode::numbers::{self, Integer};
use crate::decode::time::{self, TimeError};

/// Characters of a value that a reason repeats.
const QUOTED_CHARS: usize = 60;

impl Column {
    pub fn put_boolean(&mut self, value: bool) -> Result<(), String> {
        match &mut self.data {
            Data::Boolean(values) => {
                values.push(value);
                self.valid.push(true);
            }
            Data::Text {
                accepts: TextInput::MapValue,
                ..
            } => self.push_text(if value { "true" } else { "false" }),
            _ => return Err(self.mismatch("a boolean")),
        }
        Ok(())
    }

    pub fn put_integer(&mut self, value: i64) -> Result<(), String> {
        match &mut self.data {
            Data::BigInt(v) => v.push(value),
            Data::Int(v) => match i32::try_from(value) {
                Ok(value) => v.push(value),
                Err(_) => return Err(self.mismatch("a number beyond 32 bits")),
            },
            Data::Double(v) => v.push(value as f64),
            Data::Text { .. } => {
                self.push_text(&value.to_string());
                return Ok(());
            }
            Data::Timestamp { ticks, .. } => {
                let Some(power) = ticks.power() else {
                    return Err(self.mismatch("an integer"));
                };
                let text = || value.to_string();
                let micros = value
                    .checked_mul(10_i64.pow(power as u32))
                    .ok_or_else(|| self.outside_years(&text()))?;
                return self.put_time(micros, text);
            }
            _ => return Err(self.mismatch("an integer")),
        }
        self.valid.push(true);
        Ok(())
    }

    /// Appends a number from its text, exactly or not at all; doubles get the nearest value.
    pub fn put_number(&mut self, text: &str) -> Result<(), String> {
        let (power, bits) = match &self.data {
            Data::Text { .. } => {
                self.push_text(text);
                return Ok(());
            }
            Data::Double(_) => {
                let Some(value) = numbers::double(text) else {
                    return Err(self.mismatch("a number out of range"));
                };
                if let Data::Double(values) = &mut self.data {
                    values.push(value);
                }
                self.valid.push(true);
                return Ok(());
            }
            Data::BigInt(_) => (0, 64),
            Data::Int(_) => (0, 32),
            Data::Timestamp { ticks, .. } => match ticks.power() {
                Some(power) => return self.put_ticks(text, power),
                None => (0, 64),
            },
            _ => (0, 64),
        };
        match numbers::parse_integer(text, power) {
            Integer::Exact(value) => self.put_integer(value),
            Integer::Fraction(_) => Err(self.mismatch("a decimal number")),
            Integer::OutOfRange => Err(self.mismatch(&format!("a number beyond {bits} bits"))),
        }
    }

    /// Appends a time given as a number of ticks, truncated to microseconds.
    fn put_ticks(&mut self, text: &str, power: i64) -> Result<(), String> {
        match numbers::parse_integer(text, power) {
            Integer::Exact(micros) | Integer::Fraction(micros) => {
                self.put_time(micros, || text.to_owned())
            }
            Integer::OutOfRange => Err(self.outside_years(text)),
        }
    }

    fn put_time(&mut self, micros: i64, text: impl FnOnce() -> String) -> Result<(), String> {
        if !time::YEARS.contains(&micros) {
            return Err(self.outside_years(&text()));
        }
        if let Data::Timestamp { values, .. } = &mut self.data {
            values.push(micros);
            self.valid.push(true);
        }
        Ok(())
    }

    fn outside_years(&self, text: &str) -> String {
        format!(
            "{}: {} is outside the years 1 to 9999",
            self.path,
            quoted(text)
        )
    }

    pub fn put_string(&mut self, text: &str) -> Result<(), String> {
        match &self.data {
            Data::Text { .. } => {
                self.push_text(text);
                Ok(())
            }
            Data::Timestamp { ticks, zone, .. } => {
                match (time::parse(text, *zone), ticks.power()) {
                    (Ok(micros), _) => self.put_time(micros, || text.to_owned()),
                    (Err(_), Some(power)) if numbers::is_number(text) => {
                        self.put_ticks(text, power)
                    }
                    (Err(error), _) => Err(self.time_reason(text, &error)),
                }
            }
            _ => Err(self.mismatch("a string")),
        }
    }

    fn time_reason(&self, text: &str, error: &TimeError) -> String {
        let (path, text) = (&self.path, quoted(text));
        match (error, &self.data) {
            (
                TimeError::Skipped,
                Data::Timestamp {
                    zone: Some(zone), ..
                },
            ) => {
                format!(
                    "{path}: the local time {text} does not exist in {zone}, clocks were put forward over it; write it with its offset, such as +01:00"
                )
            }
            _ => format!(
                "{path}: {text} is not a text that the type timestamp reads; write a time such as 2024-05-01T12:00:00Z or 2024-05-01 12:00:00+02:00, declare timestamp(s), timestamp(ms) or timestamp(us) for a number, or varchar to convert it in `select`"
            ),
        }
    }

    /// Appends any value as JSON text, if the column accepts it.
    pub fn put_json(&mut self, json: &str, kind: &str) -> Result<(), String> {
        let Data::Text {
            accepts: TextInput::MapValue | TextInput::Json,
            ..
        } = &self.data
        else {
            return Err(self.mismatch(kind));
        };
        let mut result = Ok(());
        self.push_bytes(|bytes| result = json::compact(json, bytes));
        result.map_err(|json::TooDeep| {
            format!(
                "{}: objects and arrays are nested deeper than {} levels",
                self.path,
                json::MAX_DEPTH
            )
        })
    }

    /// The reason for rejecting a value of another type.
    pub fn mismatch(&self, found: &str) -> String {
        let wanted = match &self.data {
            Data::BigInt(_) => "bigint",
            Data::Int(_) => "int",
            Data::Double(_) => "double",
            Data::Boolean(_) => "boolean",
            Data::Timestamp { ticks, .. } => ticks.type_name(),
            Data::Text {
                accepts: TextInput::Varchar | TextInput::MapValue,
                ..
            } => "varchar",
            Data::Text {
                accepts: TextInput::Json,
                ..
            } => "json",
            Data::Struct { .. } => "struct",
            Data::Array { .. } => "array",
            Data::Map { .. } => "map",
        };
        let hint = match (&self.data, found) {
            (Data::Text { .. }, _) => "; the type json takes any value",
            (Data::Timestamp { .. }, "an integer" | "a decimal number") => {
                "; declare timestamp(s), timestamp(ms) or timestamp(us)"
            }
            (Data::BigInt(_), "a number beyond 64 bits") => {
                "; varchar keeps its digits, double the nearest value"
            }
            (Data::Double(_), "a number out of range") => "; varchar keeps its digits",
            _ => "",
        };
        format!("{}: {found} where the schema has {wanted}{hint}", self.path)
    }
}

/// The start of a value, for a reason.
fn quoted(text: &str) -> String {
    match text.char_indices().nth(QUOTED_CHARS) {
        Some((end, _)) => format!("`{}…`", &text[..end]),
        None => format!("`{text}`"),
    }
}
