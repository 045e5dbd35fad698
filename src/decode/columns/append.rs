//! Appends values to columns, each as the column's type requires, or returns why it does not fit.

use super::{ColumnBuilder, Data, TextInput};
use crate::decode::json;
use crate::decode::numbers::{self, Integer};
use crate::decode::reason::{Found, RecordError, ValueError};
use crate::decode::time::{self, TimeError};

impl ColumnBuilder {
    /// Appends `true` or `false`; maps store them as text.
    pub fn put_boolean(&mut self, value: bool) -> Result<(), RecordError> {
        match &mut self.data {
            Data::Boolean(values) => {
                values.push(value);
                self.valid.push(true);
            }
            Data::Text {
                accepts: TextInput::MapValue,
                ..
            } => self.push_text(if value { "true" } else { "false" }),
            _ => return Err(self.mismatch(Found::Boolean)),
        }
        Ok(())
    }

    /// Appends an integer: as a number, its digits, or a time in the column's ticks.
    pub fn put_integer(&mut self, value: i64) -> Result<(), RecordError> {
        match &mut self.data {
            Data::BigInt(v) => v.push(value),
            Data::Int(v) => match i32::try_from(value) {
                Ok(value) => v.push(value),
                Err(_) => return Err(self.mismatch(Found::Beyond { bits: 32 })),
            },
            Data::Double(v) => v.push(value as f64),
            Data::Text { .. } => {
                self.push_text(&value.to_string());
                return Ok(());
            }
            Data::Timestamp { ticks, .. } => {
                let Some(power) = ticks.power() else {
                    return Err(self.mismatch(Found::Integer));
                };
                let text = || value.to_string();
                let micros = value
                    .checked_mul(10_i64.pow(power as u32))
                    .ok_or_else(|| self.outside_years(text()))?;
                return self.put_time(micros, text);
            }
            _ => return Err(self.mismatch(Found::Integer)),
        }
        self.valid.push(true);
        Ok(())
    }

    /// Appends a number from its text, exactly or not at all; doubles get the nearest value.
    pub fn put_number(&mut self, text: &str) -> Result<(), RecordError> {
        let (power, bits) = match &self.data {
            Data::Text { .. } => {
                self.push_text(text);
                return Ok(());
            }
            Data::Double(_) => {
                let Some(value) = numbers::double(text) else {
                    return Err(self.mismatch(Found::OutOfRange));
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
            Integer::Fraction(_) => Err(self.mismatch(Found::Decimal)),
            Integer::OutOfRange => Err(self.mismatch(Found::Beyond { bits })),
        }
    }

    /// Appends a time given as a number of ticks, truncated to microseconds.
    fn put_ticks(&mut self, text: &str, power: i64) -> Result<(), RecordError> {
        match numbers::parse_integer(text, power) {
            Integer::Exact(micros) | Integer::Fraction(micros) => {
                self.put_time(micros, || text.to_owned())
            }
            Integer::OutOfRange => Err(self.outside_years(text.to_owned())),
        }
    }

    fn put_time(&mut self, micros: i64, text: impl FnOnce() -> String) -> Result<(), RecordError> {
        if !time::YEARS.contains(&micros) {
            return Err(self.outside_years(text()));
        }
        if let Data::Timestamp { values, .. } = &mut self.data {
            values.push(micros);
            self.valid.push(true);
        }
        Ok(())
    }

    /// An error in a value of this column.
    pub fn error(&self, error: ValueError) -> RecordError {
        RecordError::Value {
            path: self.path.clone(),
            error,
        }
    }

    fn outside_years(&self, text: String) -> RecordError {
        self.error(ValueError::OutsideYears { text })
    }

    /// Appends a string: as text, or the time that it denotes.
    pub fn put_string(&mut self, text: &str) -> Result<(), RecordError> {
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
                    (Err(error), _) => Err(self.time_error(text, &error)),
                }
            }
            _ => Err(self.mismatch(Found::String)),
        }
    }

    fn time_error(&self, text: &str, error: &TimeError) -> RecordError {
        let text = text.to_owned();
        self.error(match (error, &self.data) {
            (
                TimeError::Skipped,
                Data::Timestamp {
                    zone: Some(zone), ..
                },
            ) => ValueError::SkippedTime { text, zone: *zone },
            _ => ValueError::NotATime { text },
        })
    }

    /// Appends any value as JSON text, if the column accepts it.
    pub fn put_json(&mut self, json: &str, found: Found) -> Result<(), RecordError> {
        let Data::Text {
            accepts: TextInput::MapValue | TextInput::Json,
            ..
        } = &self.data
        else {
            return Err(self.mismatch(found));
        };
        let mut result = Ok(());
        self.push_bytes(|bytes| result = json::compact(json, bytes));
        result.map_err(|json::TooDeep| self.error(ValueError::TooDeep))
    }

    /// The error for a value of another type.
    pub fn mismatch(&self, found: Found) -> RecordError {
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
            (Data::Timestamp { .. }, Found::Integer | Found::Decimal) => {
                "; declare timestamp(s), timestamp(ms) or timestamp(us)"
            }
            (Data::BigInt(_), Found::Beyond { bits: 64 }) => {
                "; varchar keeps its digits, double the nearest value"
            }
            (Data::Double(_), Found::OutOfRange) => "; varchar keeps its digits",
            _ => "",
        };
        self.error(ValueError::Mismatch {
            found,
            wanted,
            hint,
        })
    }
}
