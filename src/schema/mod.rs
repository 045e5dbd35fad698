//! From a stream's declaration to what runs: the JSON's columns, `select` and `require` planned
//! once into physical expressions, the table's Arrow schema. Whatever is wrong with a declaration
//! is found here, by `weir check` and at the start alike.

pub mod bounds;
pub mod dialect;
pub mod entity;
pub mod functions;
mod hints;
pub mod names;
mod plan_error;
mod rules;
pub mod select;
mod strict;
pub mod types;
pub mod window;

use std::collections::BTreeMap;
use std::sync::Arc;

use arrow::array::{Array, BooleanArray, RecordBatch, TimestampMicrosecondArray};
use arrow::compute::filter_record_batch;
use arrow::datatypes::{DataType, Field, Schema, SchemaRef};

pub use crate::config::time_range::TimeRange;
pub use crate::config::zone;
use crate::config::{
    Config, ConfigError, Declarations, IdempotencyLimits, SqlBounds, ValueLocation, WindowDef,
};
pub use crate::config::{
    DUPLICATE_KEY_BYTES, Late, SearchDef, StreamDef, WINDOW_GROUP_BYTES, versions_of,
};
use crate::event::{MICROS_PER_DAY, MICROS_PER_HOUR, Micros, STAMP_COLUMNS, bucket};
pub use entity::Entity;
pub use plan_error::PlanError;
use select::{Planned, Rule};
pub use window::Window;

/// What is wrong with a declaration: the key it stands in, and what to do.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct DeclarationError {
    /// The stream's name; of a window's SQL, the window's.
    pub stream: String,
    pub key: &'static str,
    /// Which item of the key's list.
    pub item: Option<usize>,
    pub refusal: Box<PlanError>,
}

impl DeclarationError {
    pub fn new(of: &str, key: &'static str, refusal: impl Into<PlanError>) -> Self {
        Self {
            stream: of.to_owned(),
            key,
            item: None,
            refusal: Box::new(refusal.into()),
        }
    }

    /// The same as an error that points into the configuration's file.
    pub fn in_file(self, config: &Config) -> ConfigError {
        let (name, place) = (
            self.stream.clone(),
            ValueLocation {
                item: self.item,
                text: self.refusal.at,
            },
        );
        let path = match self.key {
            WINDOW_KEY => ["windows", &name, "sql"],
            TABLE_KEY => ["tables", &name, "select"],
            key => ["streams", &name, key],
        };
        // What a preset says stands in no file.
        let error = if config.has(path) {
            self.unplaced()
        } else {
            self
        };
        config.error_in(path, place, error.to_string())
    }

    /// Without where it stands, which a message that points into the file says better.
    fn unplaced(self) -> Self {
        Self {
            refusal: Box::new(self.refusal.message.into()),
            ..self
        }
    }
}

/// The keys of declaration errors that speak of a window, and of an entity table.
pub const WINDOW_KEY: &str = "sql";
pub const TABLE_KEY: &str = "table";

impl std::fmt::Display for DeclarationError {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let Self {
            stream,
            key,
            refusal,
            ..
        } = self;
        match *key {
            WINDOW_KEY => write!(f, "window `{stream}`: {key}: {refusal}"),
            TABLE_KEY => write!(f, "table `{stream}`: {refusal}"),
            _ => write!(f, "stream `{stream}`: {key}: {refusal}"),
        }
    }
}

/// Behind the name of a map in `search.text`: all its values.
pub const MAP_SUFFIX: &str = ".*";

/// A stream, ready to decode records.
#[derive(Debug)]
pub struct Stream {
    pub name: String,
    pub def: StreamDef,
    /// Fields of the JSON that are read.
    pub input: Vec<types::Column>,
    pub input_schema: SchemaRef,
    pub rooms: types::CapacityHints,
    /// `event_time`, then the stream's own columns.
    pub output: SchemaRef,
    /// `output`, with marks on what holds JSON text.
    pub marked: SchemaRef,
    /// `output` behind the stamp: lsn, event_time, received_at, source, is_duplicate (where declared).
    pub table_schema: SchemaRef,
    /// What functions may make of a row.
    sql: SqlBounds,
    columns: Planned,
    rules: Vec<Rule>,
    duplicates: Option<DuplicateColumns>,
    session: Option<SessionColumns>,
}

/// Where the sessions operator finds its columns in a decoded batch.
#[derive(Debug)]
pub struct SessionColumns {
    pub key: usize,
    /// The column of which a session tells the first and the last value.
    pub track: Option<usize>,
    pub gap: Micros,
    pub max_open: usize,
    opens: Option<Rule>,
}

impl SessionColumns {
    /// Which rows begin a new session in any case.
    pub fn opens(&self, rows: &RecordBatch) -> Vec<bool> {
        match &self.opens {
            None => vec![false; rows.num_rows()],
            Some(rule) => {
                let mut opens = vec![true; rows.num_rows()];
                rule.judge(rows, &mut opens, &mut |_| true);
                opens
            }
        }
    }
}

/// Where the duplicates operator finds its columns in a decoded batch.
#[derive(Debug, Clone)]
pub struct DuplicateColumns {
    pub key: usize,
    pub same: Vec<usize>,
    pub version: Option<usize>,
    pub max_keys: usize,
    /// In the version's unit: milliseconds for numbers, microseconds for times.
    pub within: i64,
}

/// Rows that `select` and `require` let through.
pub struct Selected {
    pub rows: RecordBatch,
    /// Rows of the input they come from, ascending.
    pub kept: Vec<u32>,
}

/// The streams and windows of a configuration, compiled.
#[derive(Debug, Default)]
pub struct Catalog {
    pub id: u64,
    pub streams: BTreeMap<String, Arc<Stream>>,
    /// A window comes behind every one that it reads.
    pub windows: Vec<Arc<Window>>,
    pub entities: Vec<Arc<Entity>>,
    /// Version of the zone data that the configuration was stored with.
    pub zone_data: String,
    pub idempotency: IdempotencyLimits,
    pub sql: SqlBounds,
}

impl Catalog {
    pub fn compile(declared: &Declarations) -> Result<Self, DeclarationError> {
        let compiled = bounds::on_large_stack(|| Self::compile_here(declared));
        compiled.unwrap_or_else(|e| {
            Err(DeclarationError::new(
                "",
                WINDOW_KEY,
                format!("no thread can be started: {e}"),
            ))
        })
    }

    fn compile_here(declared: &Declarations) -> Result<Self, DeclarationError> {
        let streams: BTreeMap<String, Arc<Stream>> = declared
            .streams
            .iter()
            .map(|(name, def)| {
                Ok((
                    name.clone(),
                    Arc::new(Stream::compile_within(name, def, declared.sql)?),
                ))
            })
            .collect::<Result<_, DeclarationError>>()?;
        let windows = compile_windows(&declared.windows, &streams, declared.sql)?;
        let entities = declared
            .tables
            .iter()
            .map(|(name, def)| {
                let none = || {
                    DeclarationError::new(
                        name,
                        TABLE_KEY,
                        format!("there is no stream `{}`", def.stream),
                    )
                };
                let stream = streams.get(&def.stream).ok_or_else(none)?;
                let planned = Entity::plan(name, def, stream).map_err(|e| e.within(&def.select));
                planned
                    .map(Arc::new)
                    .map_err(|e| DeclarationError::new(name, TABLE_KEY, e))
            })
            .collect::<Result<_, _>>()?;
        Ok(Self {
            id: declared.id(),
            streams,
            windows,
            entities,
            zone_data: declared.zone_data.clone(),
            idempotency: declared.idempotency,
            sql: declared.sql,
        })
    }

    /// Compiles a configuration's declarations; errors point into its file.
    pub fn of(config: &Config) -> Result<Self, ConfigError> {
        Self::compile(&config.declared).map_err(|e| e.in_file(config))
    }

    /// The declarations, as the log stores them.
    pub fn to_json(&self) -> String {
        self.declarations().to_json()
    }

    pub fn declarations(&self) -> Declarations {
        Declarations {
            streams: self
                .streams
                .iter()
                .map(|(name, stream)| (name.clone(), stream.def.clone()))
                .collect(),
            windows: self
                .windows
                .iter()
                .map(|w| (w.name.clone(), w.def.clone()))
                .collect(),
            tables: self
                .entities
                .iter()
                .map(|e| (e.name.clone(), e.def.clone()))
                .collect(),
            zone_data: self.zone_data.clone(),
            idempotency: self.idempotency,
            sql: self.sql,
        }
    }

    pub fn from_json(text: &str) -> Result<Self, String> {
        let declared = Declarations::from_json(text).map_err(|e| e.to_string())?;
        Self::compile(&declared).map_err(|e| e.to_string())
    }

    pub fn window(&self, name: &str) -> Option<&Arc<Window>> {
        self.windows.iter().find(|w| w.name == name)
    }
}

/// Plans windows in the order in which they read each other.
fn compile_windows(
    declared: &BTreeMap<String, WindowDef>,
    streams: &BTreeMap<String, Arc<Stream>>,
    sql: SqlBounds,
) -> Result<Vec<Arc<Window>>, DeclarationError> {
    let wrong = |window: &str, sql: &str, refusal: PlanError| {
        DeclarationError::new(window, WINDOW_KEY, refusal.within(sql))
    };
    let mut waiting: Vec<(&String, &WindowDef, String)> = declared
        .iter()
        .map(|(name, def)| {
            Ok((
                name,
                def,
                window::reads(&def.sql, sql).map_err(|m| wrong(name, &def.sql, m))?,
            ))
        })
        .collect::<Result<_, _>>()?;
    let mut done: Vec<Arc<Window>> = Vec::new();
    while !waiting.is_empty() {
        let before = waiting.len();
        let mut rest = Vec::new();
        for (name, def, over) in waiting {
            let inner = done.iter().find(|w| w.name == over).cloned();
            let input = match (&inner, streams.get(&over)) {
                (Some(inner), _) => window::Input {
                    name: &over,
                    stream: &inner.stream,
                    schema: &inner.schema,
                    marked: &inner.schema,
                },
                (None, Some(stream)) => window::Input {
                    name: &over,
                    stream: &over,
                    schema: &stream.table_schema,
                    marked: &stream.marked,
                },
                (None, None) if declared.contains_key(&over) => {
                    rest.push((name, def, over));
                    continue;
                }
                (None, None) => {
                    let known = streams
                        .keys()
                        .chain(declared.keys())
                        .cloned()
                        .collect::<Vec<_>>()
                        .join(", ");
                    let message =
                        format!("there is no stream or window `{over}`; there are {known}");
                    return Err(wrong(name, &def.sql, PlanError::about(&[&over], message)));
                }
            };
            done.push(Arc::new(
                Window::plan(name, def, &input, sql).map_err(|m| wrong(name, &def.sql, m))?,
            ));
        }
        if let Some((name, def, over)) = rest.first().filter(|_| rest.len() == before) {
            let cycle = rest
                .iter()
                .map(|(n, ..)| n.as_str())
                .collect::<Vec<_>>()
                .join(", ");
            let message = format!(
                "the windows {cycle} read each other in a circle; let one of them read a stream"
            );
            return Err(wrong(name, &def.sql, PlanError::about(&[over], message)));
        }
        waiting = rest;
    }
    Ok(done)
}

impl Stream {
    /// Within the bounds that a new configuration is stored with.
    pub fn compile(name: &str, def: &StreamDef) -> Result<Self, DeclarationError> {
        Self::compile_within(name, def, SqlBounds::default())
    }

    fn compile_within(
        name: &str,
        def: &StreamDef,
        sql: SqlBounds,
    ) -> Result<Self, DeclarationError> {
        let in_select =
            |refusal: PlanError| DeclarationError::new(name, "select", refusal.within(&def.select));
        let input =
            types::parse(&def.schema).map_err(|e| DeclarationError::new(name, "schema", e))?;
        let input_schema: SchemaRef = Arc::new(Schema::new(
            input.iter().map(types::Column::arrow).collect::<Vec<_>>(),
        ));
        let marked = Schema::new(input.iter().map(types::Column::marked).collect::<Vec<_>>());
        let columns =
            select::plan(name, &input_schema, &marked, &def.select, sql).map_err(in_select)?;
        let columns = columns.with_event_time_first().map_err(in_select)?;
        for column in columns.names().filter(|c| *c != "event_time") {
            names::refuse_own(STAMP_COLUMNS.iter().chain(&["session_id"]), column)
                .map_err(in_select)?;
        }
        let output = columns.schema();
        let rules = def
            .require
            .iter()
            .enumerate()
            .map(|(item, rule)| {
                Rule::plan(name, &output, rule, sql).map_err(|e| DeclarationError {
                    item: Some(item),
                    ..DeclarationError::new(name, "require", e)
                })
            })
            .collect::<Result<Vec<_>, _>>()?;
        let mut stream = Self {
            name: name.to_owned(),
            def: def.clone(),
            rooms: types::CapacityHints::of(&input),
            input,
            input_schema,
            table_schema: table_schema(&output, def.duplicates.is_some(), def.session.is_some()),
            output,
            marked: columns.marked(),
            sql,
            columns,
            rules,
            duplicates: None,
            session: None,
        };
        stream.check_columns()?;
        stream.duplicates = stream.duplicate_columns()?;
        stream.session = stream.session_columns()?;
        Ok(stream)
    }

    pub fn duplicates(&self) -> Option<&DuplicateColumns> {
        self.duplicates.as_ref()
    }

    /// Columns of `<stream>.late`: the table's own, and the names of the windows that a row came
    /// too late for.
    pub fn late_schema(&self) -> SchemaRef {
        let mut fields: Vec<_> = self.table_schema.fields().iter().cloned().collect();
        let item = Field::new("item", DataType::Utf8, true);
        fields.push(Arc::new(Field::new(
            "windows",
            DataType::List(Arc::new(item)),
            true,
        )));
        Arc::new(Schema::new(fields))
    }

    pub fn session(&self) -> Option<&SessionColumns> {
        self.session.as_ref()
    }

    fn session_columns(&self) -> Result<Option<SessionColumns>, DeclarationError> {
        let Some(def) = &self.def.session else {
            return Ok(None);
        };
        self.typed(
            "session",
            &def.key,
            |ty| !ty.is_nested(),
            "a number, text or time",
        )?;
        let track = def
            .track
            .as_ref()
            .or(self.def.count.as_ref().map(|count| &count.kind));
        if let Some(track) = track {
            self.typed(
                "session",
                track,
                |ty| !ty.is_nested(),
                "a number, text or time",
            )?;
        }
        if def.gap.micros() <= 0 || def.max_open == 0 {
            let message = "a session needs a `gap` and a `max_open` above 0, or it would never end"
                .to_owned();
            return Err(DeclarationError::new(&self.name, "session", message));
        }
        let opens = def
            .opens
            .as_ref()
            .map(|rule| Rule::plan(&self.name, &self.output, rule, self.sql))
            .transpose();
        // The rule is not all of the key's value.
        let wrong =
            |refusal: PlanError| DeclarationError::new(&self.name, "session", refusal.message);
        Ok(Some(SessionColumns {
            key: self.index("session", &def.key)?,
            track: track
                .map(|column| self.index("session", column))
                .transpose()?,
            gap: def.gap.micros(),
            max_open: def.max_open,
            opens: opens.map_err(wrong)?,
        }))
    }

    /// Start of the hour that a time lies in.
    pub fn partition_start(&self, time: Micros) -> Micros {
        bucket(time, MICROS_PER_HOUR) * MICROS_PER_HOUR
    }

    fn index(&self, key: &'static str, column: &str) -> Result<usize, DeclarationError> {
        self.output.index_of(column).map_err(|_| {
            let known = self
                .output
                .fields()
                .iter()
                .map(|f| f.name().as_str())
                .collect::<Vec<_>>()
                .join(", ");
            let message = format!("`{column}` is no column of `select`; there are {known}");
            DeclarationError::new(&self.name, key, message)
        })
    }

    fn typed(
        &self,
        key: &'static str,
        column: &str,
        fits: fn(&DataType) -> bool,
        what: &str,
    ) -> Result<(), DeclarationError> {
        let at = self.index(key, column)?;
        if key != "search" && types::is_json(self.marked.field(at)) {
            return Err(DeclarationError::new(
                &self.name,
                key,
                select::json_is_no_key(column),
            ));
        }
        let ty = self.output.field(at).data_type();
        if fits(ty) {
            return Ok(());
        }
        let message = format!("`{column}` is {ty}; it must be {what}");
        Err(DeclarationError::new(&self.name, key, message))
    }

    /// Every column that a key names exists and has a type that fits.
    fn check_columns(&self) -> Result<(), DeclarationError> {
        let scalar = |ty: &DataType| !ty.is_nested();
        let text = |ty: &DataType| match ty {
            DataType::Utf8 => true,
            DataType::List(item) => item.data_type() == &DataType::Utf8,
            _ => false,
        };
        let number = |ty: &DataType| matches!(ty, DataType::Float64);
        let def = &self.def;
        for (key, column) in [("key", &def.key), ("version", &def.version)] {
            if let Some(column) = column {
                self.typed(key, column, scalar, "a number, text or time")?;
            }
        }
        if let Some(count) = &def.count {
            for column in std::iter::once(&count.kind).chain(&count.by) {
                self.typed("count", column, |ty| *ty == DataType::Utf8, "varchar")?;
            }
        }
        if let Some(search) = &def.search {
            for column in &search.text {
                match column.strip_suffix(MAP_SUFFIX) {
                    Some(map) => {
                        self.typed("search", map, |ty| *ty == types::map(), "a map of varchar")?;
                    }
                    None => self.typed(
                        "search",
                        column,
                        text,
                        "varchar or a list of varchar, or of a map NAME.*",
                    )?,
                }
            }
            for column in &search.exact {
                self.typed("search", column, |ty| *ty == DataType::Utf8, "varchar")?;
            }
            for column in &search.geo {
                self.typed("search", column, number, "double")?;
            }
            if !matches!(search.geo.len(), 0 | 2) {
                let message = "geo names two columns, latitude and longitude".to_owned();
                return Err(DeclarationError::new(&self.name, "search", message));
            }
        }
        if let Some(places) = &def.places {
            self.typed(
                "places",
                &places.venue,
                |ty| matches!(ty, DataType::Int64 | DataType::Utf8),
                "bigint or varchar",
            )?;
            self.typed(
                "places",
                &places.name,
                |ty| *ty == DataType::Utf8,
                "varchar",
            )?;
            self.typed("places", &places.lat, number, "double")?;
            self.typed("places", &places.lon, number, "double")?;
            self.typed(
                "places",
                &places.event,
                |ty| matches!(ty, DataType::Int64 | DataType::Utf8),
                "bigint or varchar",
            )?;
            self.typed(
                "places",
                &places.date,
                |ty| *ty == types::timestamp(),
                "timestamp",
            )?;
        }
        Ok(())
    }

    fn duplicate_columns(&self) -> Result<Option<DuplicateColumns>, DeclarationError> {
        let Some(repeat) = &self.def.duplicates else {
            return Ok(None);
        };
        let Some(key) = &self.def.key else {
            let message = "duplicates are told by `key`, which is missing".to_owned();
            return Err(DeclarationError::new(&self.name, "duplicates", message));
        };
        let same = repeat
            .same
            .iter()
            .map(|column| {
                self.typed(
                    "duplicates",
                    column,
                    |ty| !ty.is_nested(),
                    "a number, text or time",
                )?;
                self.index("duplicates", column)
            })
            .collect::<Result<_, _>>()?;
        let version = self.def.version.as_deref().unwrap_or("event_time");
        let version = self.index("version", version)?;
        let is_time = self.output.field(version).data_type() == &types::timestamp();
        let within = if is_time {
            repeat.within.micros()
        } else {
            repeat.within.micros() / 1_000
        };
        Ok(Some(DuplicateColumns {
            key: self.index("key", key)?,
            same,
            version: Some(version),
            max_keys: repeat.max_keys,
            within,
        }))
    }

    /// Applies `select` and `require`, and refuses rows whose time is missing, outside
    /// `time_range`, or too far ahead.
    pub fn select(
        &self,
        input: &RecordBatch,
        received_at: Micros,
        refuse: Refuse<'_>,
    ) -> Option<Selected> {
        let all = (0..input.num_rows() as u32).collect::<Vec<_>>();
        if let Ok(batch) = self.columns.evaluate(input) {
            return self.require(batch, all, received_at, refuse);
        }
        // Some record's value made an expression fail: find each, so that only those are refused.
        let mut fails = vec![false; all.len()];
        if !self.find_failing(input, &mut fails, 0, refuse) {
            return None;
        }
        let kept: Vec<u32> = all
            .into_iter()
            .filter(|row| !fails[*row as usize])
            .collect();
        let good = BooleanArray::from(fails.iter().map(|fails| !fails).collect::<Vec<_>>());
        let input = filter_record_batch(input, &good).expect("the mask has one value per row");
        match self.columns.evaluate(&input) {
            Ok(batch) => self.require(batch, kept, received_at, refuse),
            // One by one they have values, together they have none: there are too many bytes of
            // them, say.
            Err(reason) => {
                let is_taken = kept
                    .iter()
                    .all(|row| refuse(*row, &format!("select: {reason}")));
                is_taken.then(|| Selected {
                    rows: RecordBatch::new_empty(self.output.clone()),
                    kept: Vec::new(),
                })
            }
        }
    }

    /// Marks the rows of which an expression has no value; `first` is the number of the first one.
    /// Nothing is made of the others, so that each failing row costs no more than to be found.
    fn find_failing(
        &self,
        input: &RecordBatch,
        fails: &mut [bool],
        first: u32,
        refuse: Refuse<'_>,
    ) -> bool {
        let rows = input.num_rows();
        if rows == 1 {
            return match self.columns.evaluate(input) {
                Ok(_) => true,
                Err(reason) => {
                    fails[0] = true;
                    refuse(first, &format!("select: {reason}"))
                }
            };
        }
        if rows == 0 || self.columns.has_values(input) {
            return true;
        }
        let half = rows / 2;
        let (before, after) = fails.split_at_mut(half);
        self.find_failing(&input.slice(0, half), before, first, refuse)
            && self.find_failing(
                &input.slice(half, rows - half),
                after,
                first + half as u32,
                refuse,
            )
    }

    fn require(
        &self,
        batch: Filtered,
        all: Vec<u32>,
        received_at: Micros,
        refuse: Refuse<'_>,
    ) -> Option<Selected> {
        let Filtered {
            rows: batch,
            passed,
        } = batch;
        let from: Vec<u32> = match &passed {
            None => all,
            Some(passed) => {
                if !all
                    .iter()
                    .zip(passed)
                    .all(|(row, passed)| *passed || refuse(*row, "where: not true"))
                {
                    return None;
                }
                all.into_iter()
                    .zip(passed)
                    .filter_map(|(row, passed)| passed.then_some(row))
                    .collect()
            }
        };
        let time = batch
            .column(0)
            .as_any()
            .downcast_ref::<TimestampMicrosecondArray>()
            .expect("event_time comes first");
        let limit = received_at.saturating_add(self.def.watermark.max_ahead.micros());
        let mut keep = vec![true; batch.num_rows()];
        let refusals = (0..batch.num_rows()).filter_map(|row| {
            let reason = if time.is_null(row) {
                "event_time is null".to_owned()
            } else if !self.def.time_range.contains(time.value(row)) {
                crate::decode::outside_range(time.value(row), &self.def.time_range)
            } else if time.value(row) > limit {
                crate::decode::too_far_ahead(time.value(row), received_at)
            } else {
                return None;
            };
            Some((row, reason))
        });
        for (row, reason) in refusals {
            keep[row] = false;
            if !refuse(from[row], &reason) {
                return None;
            }
        }
        for rule in &self.rules {
            if !rule.judge(&batch, &mut keep, &mut |row| refuse(from[row], rule.text())) {
                return None;
            }
        }
        if keep.iter().all(|keep| *keep) {
            return Some(Selected {
                rows: batch,
                kept: from,
            });
        }
        let kept = from
            .into_iter()
            .zip(&keep)
            .filter_map(|(row, keep)| keep.then_some(row))
            .collect();
        let rows = filter_record_batch(&batch, &BooleanArray::from(keep))
            .expect("the mask has one value per row");
        Some(Selected { rows, kept })
    }
}

/// Takes a row of the input that is refused, with the reason; false where there are too many of
/// them.
pub type Refuse<'a> = &'a mut dyn FnMut(u32, &str) -> bool;

/// A batch behind `select`; `passed` says which rows of the input its `where` let through.
pub struct Filtered {
    pub rows: RecordBatch,
    pub passed: Option<Vec<bool>>,
}

fn table_schema(output: &Schema, repeat: bool, session: bool) -> SchemaRef {
    let mut fields = vec![
        Field::new("lsn", DataType::Int64, true),
        output.field(0).clone(),
        Field::new("received_at", types::timestamp(), true),
        Field::new("source", DataType::Utf8, true),
    ];
    if repeat {
        fields.push(Field::new("is_duplicate", DataType::Boolean, true));
    }
    if session {
        fields.push(Field::new("session_id", DataType::Utf8, true));
    }
    fields.extend(output.fields().iter().skip(1).map(|f| f.as_ref().clone()));
    Arc::new(Schema::new(fields))
}

/// How a table is split into folders.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Layout {
    Hours,
    Days,
    /// By a hash of the columns that a row is known by.
    Buckets,
}

/// Folders of a table that is split by hash.
pub const BUCKETS: i64 = 16;

impl Layout {
    /// Columns that name a row's folder, behind the table's own ones.
    pub fn fields(self) -> Vec<Field> {
        let names: &[&str] = match self {
            Self::Hours => &["year", "month", "day", "hour"],
            Self::Days => &["year", "month", "day"],
            Self::Buckets => &["bucket"],
        };
        names
            .iter()
            .map(|n| Field::new(*n, DataType::Int32, true))
            .collect()
    }

    /// Width of a folder in microseconds; none where time decides nothing.
    pub fn width(self) -> Option<i64> {
        match self {
            Self::Hours => Some(MICROS_PER_HOUR),
            Self::Days => Some(MICROS_PER_DAY),
            Self::Buckets => None,
        }
    }
}
