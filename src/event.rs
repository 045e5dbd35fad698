//! The vocabulary that all modules share: LSNs, times, coordinates, gaps, and the health of
//! sources. No I/O.

/// Number of a record in the log: `instance × 2^43 + sequence`, unique among logs and exact in JSON
/// (below 2^53).
pub type Lsn = u64;

/// Bits of an LSN that count records; the ten above them name the instance.
pub const LSN_SEQUENCE_BITS: u32 = 43;

/// The checkpoint "nothing yet" of an instance's log: the first record gets the next LSN.
pub fn lsn_zero(instance: u16) -> Lsn {
    u64::from(instance) << LSN_SEQUENCE_BITS
}

/// The position of an LSN in its instance's log.
pub fn lsn_sequence(lsn: Lsn) -> u64 {
    lsn & ((1 << LSN_SEQUENCE_BITS) - 1)
}

/// Microseconds since 1970-01-01T00:00:00Z.
pub type Micros = i64;

/// [`Micros`] per second.
pub const MICROS_PER_SECOND: i64 = 1_000_000;
/// [`Micros`] per hour; with [`bucket`], hours since the epoch.
pub const MICROS_PER_HOUR: i64 = 3_600 * MICROS_PER_SECOND;
/// [`Micros`] per day: 24 hours, since days are those of UTC and leap seconds are not counted.
pub const MICROS_PER_DAY: i64 = 24 * MICROS_PER_HOUR;

/// The bucket of `width` microseconds that a time falls into, counted from the epoch: with
/// [`MICROS_PER_DAY`], the day.
pub fn bucket(time: Micros, width: i64) -> i64 {
    time.div_euclid(width)
}

/// Formats a time as RFC 3339 in UTC with milliseconds, as all output of Weir does.
pub fn rfc3339(time: Micros) -> String {
    chrono::DateTime::from_timestamp_micros(time).map_or_else(
        || format!("{time} µs since 1970"),
        |t| t.to_rfc3339_opts(chrono::SecondsFormat::Millis, true),
    )
}

/// Columns that Weir puts before a stream's own; a `select` cannot use these names, except
/// `event_time`, which it must have.
pub const STAMP_COLUMNS: [&str; 9] = [
    "lsn",
    "event_time",
    "received_at",
    "source",
    "is_duplicate",
    "year",
    "month",
    "day",
    "hour",
];

/// Whether latitude and longitude, in degrees, are those of a place. Producers send 0, 0 for an
/// unknown one.
pub fn is_place((lat, lon): (f64, f64)) -> bool {
    (-90.0..=90.0).contains(&lat) && (-180.0..=180.0).contains(&lon) && (lat, lon) != (0.0, 0.0)
}

/// A time range from which a source may have missed records.
#[derive(Debug, Clone, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub struct Gap {
    /// Name of the source, as configured.
    pub source: String,
    /// Earliest arrival of a record that may be missing.
    pub from: Micros,
    /// Latest arrival of a record that may be missing.
    pub to: Micros,
    /// What happened, for people.
    pub reason: String,
}

/// Whether a source is reading records.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum SourceState {
    /// It reads, or will read at once what arrives.
    #[default]
    Running,
    /// It has nothing to read yet, or cannot reach it; no records are lost by waiting.
    Waiting,
    /// It cannot continue at present. It resumes automatically once the cause is gone, unless the
    /// reason says otherwise.
    Halted,
    /// It has read everything.
    Ended,
}

impl SourceState {
    /// For metrics, which have a series for each state.
    pub const ALL: [Self; 4] = [Self::Running, Self::Waiting, Self::Halted, Self::Ended];

    /// The name in the API and in metrics.
    pub fn name(self) -> &'static str {
        match self {
            Self::Running => "running",
            Self::Waiting => "waiting",
            Self::Halted => "halted",
            Self::Ended => "ended",
        }
    }
}

/// The health of a source.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct SourceHealth {
    /// What the source as a whole does.
    pub state: SourceState,
    /// For people: what it does, or why it is in this state and what to do.
    pub reason: Option<String>,
    /// Partitions of it that wait, each with its reason; at most a thousand.
    pub waiting: std::collections::BTreeMap<String, String>,
    /// Number of all partitions that wait.
    pub waiting_total: usize,
    /// Number of those among them that do not continue by themselves.
    pub halted_total: usize,
    /// Records that partitions have and the source has not taken, where it knows; at most a
    /// thousand partitions.
    pub lag: std::collections::BTreeMap<String, u64>,
}

/// A source's health: written by the source, read by the API.
pub type SharedHealth = std::sync::Arc<std::sync::Mutex<SourceHealth>>;

/// Whether a sink delivers rows.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum SinkState {
    /// It delivers rows, or will deliver at once what comes.
    #[default]
    Running,
    /// Its target cannot be reached, or refuses everything for now; it tries again.
    Retrying,
    /// It was paused, until it is resumed.
    Paused,
    /// It does not continue before somebody acts; the error says how.
    Halted,
}

impl SinkState {
    /// For metrics, which have a series for each state.
    pub const ALL: [Self; 4] = [Self::Running, Self::Retrying, Self::Paused, Self::Halted];

    /// The name in the API and in metrics.
    pub fn name(self) -> &'static str {
        match self {
            Self::Running => "running",
            Self::Retrying => "retrying",
            Self::Paused => "paused",
            Self::Halted => "halted",
        }
    }
}

/// A row that the target of a sink refuses for good.
#[derive(Debug, Clone, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub struct RefusedRow {
    /// Its table, as the sink names it.
    pub table: String,
    /// Its record.
    pub lsn: Lsn,
    /// What the target said.
    pub reason: String,
    /// The row as a JSON object, truncated if it is long.
    pub row: String,
    /// When the target refused it.
    pub refused_at: Micros,
}

/// How far a sink is, and what it does.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct SinkHealth {
    /// What the sink does.
    pub state: SinkState,
    /// Its type, such as `kafka`.
    pub kind: &'static str,
    /// Its tables.
    pub tables: Vec<String>,
    /// The rows of all records up to here have been delivered.
    pub lsn: Lsn,
    /// Rows that were delivered since the start.
    pub rows: u64,
    /// Attempts that failed since the start.
    pub retries: u64,
    /// Why the last attempt failed; none once the sink delivers again.
    pub last_error: Option<String>,
    /// Rows that the target refuses for good, oldest first.
    pub refused: Vec<RefusedRow>,
}

/// A sink's health: written by the sink, read by the API.
pub type SharedSinkHealth = std::sync::Arc<std::sync::Mutex<SinkHealth>>;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lsns_of_instances_do_not_overlap() {
        assert_eq!(lsn_zero(1), 1 << 43);
        assert_eq!(lsn_sequence(lsn_zero(7) + 5), 5);
        assert!(lsn_zero(1023) + ((1 << 43) - 1) < 1 << 53);
    }

    #[test]
    fn coordinates_out_of_range_and_zero_are_not_a_place() {
        for coordinates in [
            (f64::NAN, 1.0),
            (1.0, f64::INFINITY),
            (1.0, 180.1),
            (-90.1, 1.0),
            (0.0, -0.0),
        ] {
            assert!(!is_place(coordinates), "{coordinates:?}");
        }
        assert!(is_place((0.0, 1e-9)) && is_place((90.0, -180.0)));
    }

    #[test]
    fn times_are_formatted_in_utc_with_milliseconds() {
        assert_eq!(rfc3339(1_465_520_400_123_456), "2016-06-10T01:00:00.123Z");
        assert_eq!(bucket(-1, MICROS_PER_HOUR), -1);
    }
}
