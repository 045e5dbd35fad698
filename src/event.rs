//! The vocabulary that every module shares: numbers of records, times, places, and the names a
//! record carries. No I/O.

/// Number of a record in the log: `instance × 2^43 + sequence`, unique among logs and exact in JSON
/// (below 2^53).
pub type Lsn = u64;

/// Bits of an LSN that count records; the ten above them name the instance.
pub const LSN_SEQUENCE_BITS: u32 = 43;

/// The checkpoint "nothing yet" of an instance's log: the first record gets the number after it.
pub fn lsn_zero(instance: u16) -> Lsn {
    u64::from(instance) << LSN_SEQUENCE_BITS
}

/// How many records of its log an LSN counts.
pub fn lsn_sequence(lsn: Lsn) -> u64 {
    lsn & ((1 << LSN_SEQUENCE_BITS) - 1)
}

/// Microseconds since 1970-01-01T00:00:00Z.
pub type Micros = i64;

pub const MICROS_PER_SECOND: i64 = 1_000_000;
pub const MICROS_PER_HOUR: i64 = 3_600 * MICROS_PER_SECOND;
pub const MICROS_PER_DAY: i64 = 24 * MICROS_PER_HOUR;

/// The hour (or, with `MICROS_PER_DAY`, the day) that a time falls into, as a count since the
/// epoch.
pub fn bucket(time: Micros, width: i64) -> i64 {
    time.div_euclid(width)
}

/// Renders a time as RFC 3339 in UTC with milliseconds, as every output of Weir does.
pub fn rfc3339(time: Micros) -> String {
    chrono::DateTime::from_timestamp_micros(time).map_or_else(
        || format!("{time} µs since 1970"),
        |t| t.to_rfc3339_opts(chrono::SecondsFormat::Millis, true),
    )
}

/// Columns that Weir puts before a stream's own; a `select` cannot use these names, except
/// `event_time`, which it must give.
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

/// Whether latitude and longitude, in degrees, are those of a place. Both 0 is what is sent where
/// the place is not known.
pub fn is_place((lat, lon): (f64, f64)) -> bool {
    (-90.0..=90.0).contains(&lat) && (-180.0..=180.0).contains(&lon) && (lat, lon) != (0.0, 0.0)
}

/// A range of records that a source knows it may have missed.
#[derive(Debug, Clone, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub struct Gap {
    pub source: String,
    pub from: Micros,
    pub to: Micros,
    pub reason: String,
}

/// Whether a source takes records in.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum SourceState {
    #[default]
    Running,
    /// It has nothing to read yet, or cannot reach what it reads; nothing is lost by waiting.
    Waiting,
    /// It cannot go on as a whole. It continues by itself once the cause has gone, unless the
    /// reason says otherwise.
    Halted,
    /// It has read all there was.
    Ended,
}

impl SourceState {
    pub const ALL: [Self; 4] = [Self::Running, Self::Waiting, Self::Halted, Self::Ended];

    pub fn name(self) -> &'static str {
        match self {
            Self::Running => "running",
            Self::Waiting => "waiting",
            Self::Halted => "halted",
            Self::Ended => "ended",
        }
    }
}

/// How a source is, as the process knows it.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct SourceHealth {
    pub state: SourceState,
    pub reason: Option<String>,
    /// Parts of it that wait, each with its reason; the first thousand.
    pub waiting: std::collections::BTreeMap<String, String>,
    /// How many parts wait.
    pub waiting_total: usize,
}

/// A source's health, set by the source and shown to whoever asks.
pub type SharedHealth = std::sync::Arc<std::sync::Mutex<SourceHealth>>;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lsns_of_instances_do_not_meet() {
        assert_eq!(lsn_zero(1), 1 << 43);
        assert_eq!(lsn_sequence(lsn_zero(7) + 5), 5);
        assert!(lsn_zero(1023) + ((1 << 43) - 1) < 1 << 53);
    }

    #[test]
    fn places_lie_on_the_earth() {
        for no_place in [
            (f64::NAN, 1.0),
            (1.0, f64::INFINITY),
            (1.0, 180.1),
            (-90.1, 1.0),
            (0.0, -0.0),
        ] {
            assert!(!is_place(no_place), "{no_place:?}");
        }
        assert!(is_place((0.0, 1e-9)) && is_place((90.0, -180.0)));
    }

    #[test]
    fn times_render_in_utc_with_milliseconds() {
        assert_eq!(rfc3339(1_465_520_400_123_456), "2016-06-10T01:00:00.123Z");
        assert_eq!(bucket(-1, MICROS_PER_HOUR), -1);
    }
}
