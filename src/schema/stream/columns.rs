//! Checks of the columns that a declaration's keys name: each must exist and have a suitable type.

use arrow::array::RecordBatch;
use arrow::datatypes::DataType;

use super::Stream;
use crate::config::{PlacesDef, SearchDef};
use crate::event::Micros;
use crate::schema::select::{Rule, json_is_not_a_key};
use crate::schema::{DeclarationError, PlanError, names, types};

/// Follows the name of a map in `search.text`, to index all its values.
pub const MAP_SUFFIX: &str = ".*";

/// Where the sessions operator finds its columns in a decoded batch.
#[derive(Debug)]
pub struct SessionColumns {
    /// Position of `session.key`.
    pub key: usize,
    /// The column whose first and last value are recorded for a session.
    pub track: Option<usize>,
    /// Longest time between two events of a session.
    pub gap: Micros,
    /// Sessions open at once; beyond it the least recent one is closed.
    pub max_open: usize,
    opens: Option<Rule>,
}

impl SessionColumns {
    /// Which rows always begin a new session.
    pub fn opens(&self, rows: &RecordBatch) -> Vec<bool> {
        match &self.opens {
            None => vec![false; rows.num_rows()],
            Some(rule) => {
                let mut opens = vec![true; rows.num_rows()];
                rule.check(rows, &mut opens, &mut |_| true);
                opens
            }
        }
    }
}

/// Where the duplicates operator finds its columns in a decoded batch.
#[derive(Debug, Clone)]
pub struct DuplicateColumns {
    /// Position of the stream's `key`.
    pub key: usize,
    /// Positions of the columns that a duplicate has in common with the event before.
    pub same: Vec<usize>,
    /// Position of the version, by which `within` is measured.
    pub version: Option<usize>,
    /// Keys remembered; beyond it the least recent one is forgotten.
    pub max_keys: usize,
    /// In the version's unit: milliseconds for numbers, microseconds for times.
    pub within: i64,
}

/// What a key requires of a column: a test of its type, and how a message describes it.
#[derive(Clone, Copy)]
struct TypeRule {
    accepts: fn(&DataType) -> bool,
    described: &'static str,
}

const SCALAR: TypeRule = TypeRule {
    accepts: |ty| !ty.is_nested(),
    described: "a number, text or time",
};
const VARCHAR: TypeRule = TypeRule {
    accepts: |ty| *ty == DataType::Utf8,
    described: "varchar",
};
const DOUBLE: TypeRule = TypeRule {
    accepts: |ty| *ty == DataType::Float64,
    described: "double",
};
const ID: TypeRule = TypeRule {
    accepts: |ty| matches!(ty, DataType::Int64 | DataType::Utf8),
    described: "bigint or varchar",
};
const TIMESTAMP: TypeRule = TypeRule {
    accepts: |ty| *ty == types::timestamp(),
    described: "timestamp",
};
const TEXT_MAP: TypeRule = TypeRule {
    accepts: |ty| *ty == types::map(),
    described: "a map of varchar",
};
const SEARCHED_TEXT: TypeRule = TypeRule {
    accepts: |ty| match ty {
        DataType::Utf8 => true,
        DataType::List(item) => item.data_type() == &DataType::Utf8,
        _ => false,
    },
    described: "varchar or a list of varchar, or of a map NAME.*",
};

impl Stream {
    fn error(&self, key: &'static str, message: impl Into<PlanError>) -> DeclarationError {
        DeclarationError::new(&self.name, key, message)
    }

    fn index(&self, key: &'static str, column: &str) -> Result<usize, DeclarationError> {
        self.output
            .index_of(column)
            .map_err(|_| self.error(key, names::unknown_column(column, "`select`", &self.output)))
    }

    /// Position of a column that exists and has the type that its key requires.
    fn check_column(
        &self,
        key: &'static str,
        column: &str,
        rule: TypeRule,
    ) -> Result<usize, DeclarationError> {
        let at = self.index(key, column)?;
        if key != "search" && types::is_json(self.marked.field(at)) {
            return Err(self.error(key, json_is_not_a_key(column)));
        }
        let ty = self.output.field(at).data_type();
        if (rule.accepts)(ty) {
            return Ok(at);
        }
        let message = format!("`{column}` is {ty}; it must be {}", rule.described);
        Err(self.error(key, message))
    }

    /// Checks the columns of all keys but `duplicates` and `session`.
    pub(super) fn check_columns(&self) -> Result<(), DeclarationError> {
        let def = &self.def;
        for (key, column) in [("key", &def.key), ("version", &def.version)] {
            if let Some(column) = column {
                self.check_column(key, column, SCALAR)?;
            }
        }
        if let Some(count) = &def.count {
            for column in std::iter::once(&count.kind).chain(&count.by) {
                self.check_column("count", column, VARCHAR)?;
            }
        }
        if let Some(search) = &def.search {
            self.check_search(search)?;
        }
        if let Some(places) = &def.places {
            self.check_places(places)?;
        }
        Ok(())
    }

    fn check_search(&self, search: &SearchDef) -> Result<(), DeclarationError> {
        for column in &search.text {
            match column.strip_suffix(MAP_SUFFIX) {
                Some(map) => self.check_column("search", map, TEXT_MAP)?,
                None => self.check_column("search", column, SEARCHED_TEXT)?,
            };
        }
        for column in &search.exact {
            self.check_column("search", column, VARCHAR)?;
        }
        for column in &search.geo {
            self.check_column("search", column, DOUBLE)?;
        }
        if !matches!(search.geo.len(), 0 | 2) {
            return Err(self.error("search", "geo names two columns, latitude and longitude"));
        }
        Ok(())
    }

    fn check_places(&self, places: &PlacesDef) -> Result<(), DeclarationError> {
        for (column, rule) in [
            (&places.venue, ID),
            (&places.name, VARCHAR),
            (&places.lat, DOUBLE),
            (&places.lon, DOUBLE),
            (&places.event, ID),
            (&places.date, TIMESTAMP),
        ] {
            self.check_column("places", column, rule)?;
        }
        Ok(())
    }

    pub(super) fn duplicate_columns(&self) -> Result<Option<DuplicateColumns>, DeclarationError> {
        let Some(def) = &self.def.duplicates else {
            return Ok(None);
        };
        let Some(key) = &self.def.key else {
            let message = "duplicates are recognized by `key`, which is missing";
            return Err(self.error("duplicates", message));
        };
        let same = def
            .same
            .iter()
            .map(|column| self.check_column("duplicates", column, SCALAR))
            .collect::<Result<_, _>>()?;
        let version = self.def.version.as_deref().unwrap_or("event_time");
        let version = self.index("version", version)?;
        let is_time = self.output.field(version).data_type() == &types::timestamp();
        let within = if is_time {
            def.within.micros()
        } else {
            def.within.micros() / 1_000
        };
        Ok(Some(DuplicateColumns {
            key: self.index("key", key)?,
            same,
            version: Some(version),
            max_keys: def.max_keys,
            within,
        }))
    }

    pub(super) fn session_columns(&self) -> Result<Option<SessionColumns>, DeclarationError> {
        let Some(def) = &self.def.session else {
            return Ok(None);
        };
        let key = self.check_column("session", &def.key, SCALAR)?;
        let track = def
            .track
            .as_ref()
            .or(self.def.count.as_ref().map(|count| &count.kind))
            .map(|track| self.check_column("session", track, SCALAR))
            .transpose()?;
        if def.gap.micros() <= 0 || def.max_open == 0 {
            let message = "a session needs a `gap` and a `max_open` above 0, or it would never end";
            return Err(self.error("session", message));
        }
        let opens = def
            .opens
            .as_ref()
            .map(|rule| Rule::plan(&self.name, &self.output, rule, self.sql))
            .transpose();
        Ok(Some(SessionColumns {
            key,
            track,
            gap: def.gap.micros(),
            max_open: def.max_open,
            // The rule is only a part of the key's value, so its location is not one in the value.
            opens: opens.map_err(|e| self.error("session", e.message))?,
        }))
    }
}
