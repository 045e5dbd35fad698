//! `[limits]` and `[log]`: how much the process may take, and how the memory is shared out.

use std::time::Duration;

use serde::Deserialize;

use super::error::ConfigError;
use super::location::SourceText;
use super::machine::{group_memory, machine_memory};
use super::raw;
use super::stream::{
    DUPLICATE_KEY_BYTES, Declarations, SESSION_BYTES, VENUE_BYTES, WINDOW_GROUP_BYTES,
};
use super::units::{ParseUnitError, Size, Span};

/// Memory with which every preset works.
const MIN_MEMORY: u64 = 512 << 20;
/// Memory that the process takes before any share.
const BASE_MEMORY: u64 = 96 << 20;

/// Why limits are refused, or declarations that do not fit in them.
#[derive(Debug, thiserror::Error)]
pub(super) enum InvalidLimit {
    #[error("--memory: {0}")]
    MemoryFlag(ParseUnitError),
    #[error("{key} = {value}: the minimum is {minimum}")]
    BelowMinimum {
        key: &'static str,
        value: String,
        minimum: String,
    },
    #[error(
        "memory = {memory}: {keys} keys of `duplicates`, {open} open sessions and {groups} groups of windows need {needed} (`[limits] memory`, or --memory), or a smaller `max_keys`, `max_open` or `max_groups`"
    )]
    State {
        memory: Size,
        keys: usize,
        open: usize,
        groups: usize,
        needed: Size,
    },
    #[error(
        "memory = {memory}: {venues} venues on the map need {needed} (`[limits] memory`, or --memory), or a smaller `max_venues` of `places`"
    )]
    Venues {
        memory: Size,
        venues: usize,
        needed: Size,
    },
}

/// The unit of a limit's number.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Unit {
    Bytes,
    Micros,
    Count,
}

/// What becomes of a value below the minimum.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Minimum {
    RaisedTo(u64),
    RefusedBelow(u64),
}

use Minimum::{RaisedTo, RefusedBelow};

/// One key of `[limits]`, its numbers in its unit.
pub(super) struct Limit {
    pub key: &'static str,
    /// What it limits, as its documentation says; for the reference in `docs`.
    #[cfg(test)]
    about: &'static str,
    unit: Unit,
    /// `None`: computed where it is used, or not limited.
    default: Option<u64>,
    minimum: Minimum,
    maximum: u64,
}

impl Limit {
    /// The number in force, of the one that was set.
    fn resolve(&self, set: Option<u64>) -> Result<Option<u64>, InvalidLimit> {
        let Some(number) = set.or(self.default) else {
            return Ok(None);
        };
        let raised = match self.minimum {
            RaisedTo(minimum) => number.max(minimum),
            RefusedBelow(minimum) if number < minimum => {
                return Err(InvalidLimit::BelowMinimum {
                    key: self.key,
                    value: self.display(Some(number)),
                    minimum: self.display(Some(minimum)),
                });
            }
            RefusedBelow(_) => number,
        };
        Ok(Some(raised.min(self.maximum)))
    }

    fn display(&self, number: Option<u64>) -> String {
        match (number, self.unit) {
            (None, _) => "none".into(),
            (Some(bytes), Unit::Bytes) => Size(bytes).to_string(),
            (Some(micros), Unit::Micros) => Span(Duration::from_micros(micros)).to_string(),
            (Some(count), Unit::Count) => count.to_string(),
        }
    }
}

/// A value, as typed or in force, as a number in its limit's unit.
trait ToNumber {
    fn to_number(&self) -> Option<u64>;
}

macro_rules! to_number {
    ($($type:ty: $number:expr;)*) => {
        $(impl ToNumber for $type {
            fn to_number(&self) -> Option<u64> {
                let number: fn(&$type) -> Option<u64> = $number;
                number(self)
            }
        })*
    };
}

to_number! {
    u64: |number| Some(*number);
    Option<u64>: |number| *number;
    usize: |number| Some(*number as u64);
    Duration: |time| Some(u64::try_from(time.as_micros()).unwrap_or(u64::MAX));
    Size: |size| Some(size.0);
    Span: |span| span.0.to_number();
}

/// The value in force of a number.
trait FromNumber {
    fn from_number(number: Option<u64>) -> Self;
}

impl FromNumber for Option<u64> {
    fn from_number(number: Option<u64>) -> Self {
        number
    }
}

impl FromNumber for u64 {
    fn from_number(number: Option<u64>) -> Self {
        number.unwrap_or(Self::MAX)
    }
}

impl FromNumber for usize {
    fn from_number(number: Option<u64>) -> Self {
        u64::from_number(number) as Self
    }
}

impl FromNumber for Duration {
    fn from_number(number: Option<u64>) -> Self {
        Self::from_micros(u64::from_number(number))
    }
}

const NONE: Option<u64> = None;
const ANY: u64 = u64::MAX;

const fn bytes(number: u64) -> Option<u64> {
    Some(number)
}

const fn count(number: u64) -> Option<u64> {
    Some(number)
}

const fn seconds(number: u64) -> Option<u64> {
    Some(number * 1_000_000)
}

/// Declares a limit once: the key as typed, its type in the program, its row of [`LIMITS`].
macro_rules! limits {
    ($($(#[doc = $doc:literal])* $key:ident: $typed:ty => $used:ty, $unit:ident, $default:expr, $minimum:expr, $maximum:expr;)*) => {
        /// The limits in force.
        #[derive(Debug, Clone)]
        pub struct Limits { $($(#[doc = $doc])* pub $key: $used,)* }

        /// `[limits]` as typed.
        #[derive(Debug, Clone, Default, Deserialize)]
        #[serde(deny_unknown_fields, default)]
        pub struct TypedLimits { $($key: Option<$typed>,)* }

        /// Every key of `[limits]`, in the order in which `weir check --show` lists them.
        pub(super) const LIMITS: &[Limit] = &[$(Limit {
            key: stringify!($key),
            #[cfg(test)]
            about: concat!($($doc),*),
            unit: Unit::$unit,
            default: $default,
            minimum: $minimum,
            maximum: $maximum,
        },)*];

        impl TypedLimits {
            /// What was set, in the order of [`LIMITS`].
            fn numbers(&self) -> Vec<Option<u64>> {
                vec![$(self.$key.as_ref().and_then(ToNumber::to_number),)*]
            }
        }

        impl Limits {
            fn numbers(&self) -> Vec<Option<u64>> {
                vec![$(self.$key.to_number(),)*]
            }

            fn of_numbers(numbers: Vec<Option<u64>>) -> Self {
                let mut numbers = numbers.into_iter();
                let mut next = || numbers.next().flatten();
                Self { $($key: FromNumber::from_number(next()),)* }
            }
        }
    };
}

limits! {
    //               typed    used           unit    default            minimum                    maximum
    /// Bytes of the process; by default a quarter of the machine's, at most 2 GiB.
    memory:          Size  => u64,           Bytes,  NONE,              RefusedBelow(MIN_MEMORY),  ANY;
    /// Bytes of the data folder; not limited by default.
    disk:            Size  => Option<u64>,   Bytes,  NONE,              RaisedTo(0),               ANY;
    /// Bytes of a record; a longer one becomes a dead letter.
    record:          Size  => usize,         Bytes,  bytes(1 << 20),    RaisedTo(1 << 10),         16 << 20;
    /// Bytes of the body of a request, also when it is decompressed.
    body:            Size  => usize,         Bytes,  bytes(16 << 20),   RaisedTo(1 << 10),         32 << 20;
    /// Open connections of the server.
    connections:     usize => usize,         Count,  count(512),        RaisedTo(1),               ANY;
    /// Time of a query, waiting included.
    sql_time:        Span  => Duration,      Micros, seconds(30),       RaisedTo(0),               ANY;
    /// Rows of a result.
    sql_rows:        usize => usize,         Count,  count(100_000),    RaisedTo(0),               ANY;
    /// Bytes of a result, in memory and as it is written out.
    sql_result:      Size  => usize,         Bytes,  bytes(64 << 20),   RaisedTo(0),               ANY;
    /// Queries of clients that run at once.
    sql_concurrent:  usize => usize,         Count,  count(8),          RaisedTo(1),               ANY;
    /// Hits of a page of a search.
    search_limit:    usize => usize,         Count,  count(1_000),      RaisedTo(0),               ANY;
    /// Bytes of an oversized record that its dead letter keeps.
    dead_letter:     Size  => usize,         Bytes,  bytes(64 << 10),   RaisedTo(0),               ANY;
    /// Rows after which a lake table is committed.
    lake_rows:       usize => usize,         Count,  count(256 << 10),  RaisedTo(1),               ANY;
    /// Time after which recent rows are committed.
    lake_recent:     Span  => Duration,      Micros, seconds(60),       RaisedTo(0),               ANY;
    /// Time after which late rows are committed.
    lake_old:        Span  => Duration,      Micros, seconds(300),      RaisedTo(0),               ANY;
    /// Time between snapshots of the operators.
    snapshot:        Span  => Duration,      Micros, seconds(300),      RaisedTo(0),               ANY;
}

impl Limits {
    /// The limits of a file; `memory` is the command line's.
    pub(super) fn resolve(typed: &TypedLimits, memory: Option<&str>) -> Result<Self, InvalidLimit> {
        let mut typed = typed.clone();
        if let Some(text) = memory {
            typed.memory = Some(text.parse().map_err(InvalidLimit::MemoryFlag)?);
        }
        typed
            .memory
            .get_or_insert_with(|| default_memory(machine_memory(), group_memory()));
        let numbers = LIMITS
            .iter()
            .zip(typed.numbers())
            .map(|(limit, set)| limit.resolve(set));
        Ok(Self::of_numbers(numbers.collect::<Result<_, _>>()?))
    }

    /// Every limit in force: its key and its value, as text.
    pub(super) fn in_force(&self) -> impl Iterator<Item = (&'static str, String)> {
        let shown = |(limit, number): (&Limit, Option<u64>)| (limit.key, limit.display(number));
        LIMITS.iter().zip(self.numbers()).map(shown)
    }

    /// The memory that is left after the process's own, in sixteenths.
    pub fn shares(&self) -> Shares {
        let sixteenth = (self.memory.saturating_sub(BASE_MEMORY) / 16) as usize;
        Shares {
            queues: sixteenth,
            ring: sixteenth,
            hot_rows: 2 * sixteenth,
            operators: 4 * sixteenth,
            search: 2 * sixteenth,
            lake: 2 * sixteenth,
            sql: 3 * sixteenth,
            counts_and_places: sixteenth,
        }
    }
}

/// A quarter of the machine's memory, or two thirds of what its control groups leave to the process
/// if that is less: the rest is for what the shares do not count. At least 512 MiB, at most 2 GiB.
fn default_memory(machine: Option<u64>, group: Option<u64>) -> Size {
    let quarter = machine.map_or(MIN_MEMORY, |bytes| bytes / 4);
    let of_group = group.map_or(u64::MAX, |bytes| bytes / 3 * 2);
    Size(quarter.min(of_group).clamp(MIN_MEMORY, 2 << 30))
}

/// Fixed shares of the memory limit, in bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Shares {
    /// Records that were received and are not synced yet.
    pub queues: usize,
    /// Recent output of the operators, from which views and live streams read.
    pub ring: usize,
    /// Rows that the lake has not committed yet.
    pub hot_rows: usize,
    /// State of the operators; declarations that may need more are refused.
    pub operators: usize,
    /// Indexing of full-text search.
    pub search: usize,
    /// The lake's [`Self::footers`] and [`Self::merges`].
    pub lake: usize,
    /// All queries together.
    pub sql: usize,
    /// [`Self::counts`], [`Self::points`] and [`Self::places`].
    pub counts_and_places: usize,
}

impl Shares {
    /// Footers of the files that queries read: a part of the lake's share.
    pub fn footers(&self) -> usize {
        self.lake / 4
    }

    /// Merges of files: the rest of the lake's share.
    pub fn merges(&self) -> usize {
        self.lake - self.footers()
    }

    /// Counts: a part of the share of counts and places.
    pub fn counts(&self) -> usize {
        self.counts_and_places / 4
    }

    /// The points of places.
    pub fn points(&self) -> usize {
        self.counts_and_places / 16 * 9
    }

    /// Everything of places but their points.
    pub fn places(&self) -> usize {
        self.counts_and_places - self.counts() - self.points()
    }
}

/// Refuses declarations whose state does not fit in the shares of operators and places. Keys of
/// duplicates are by far the most of it, and are counted twice: with the copy that catches up.
pub(super) fn check_memory(limits: &Limits, declared: &Declarations) -> Result<(), InvalidLimit> {
    let streams = || declared.streams.values();
    let keys: usize = streams()
        .filter_map(|s| Some(s.duplicates.as_ref()?.max_keys))
        .sum();
    let open: usize = streams()
        .filter_map(|s| Some(s.session.as_ref()?.max_open))
        .sum();
    let groups: usize = declared.windows.values().map(|w| w.max_groups).sum();
    let needed = (2 * keys.saturating_mul(DUPLICATE_KEY_BYTES))
        .saturating_add(open.saturating_mul(SESSION_BYTES))
        .saturating_add(groups.saturating_mul(WINDOW_GROUP_BYTES));
    if needed <= limits.shares().operators {
        return check_venues(limits, declared);
    }
    let minimum = BASE_MEMORY.saturating_add(4 * needed as u64);
    Err(InvalidLimit::State {
        memory: Size(limits.memory),
        keys,
        open,
        groups,
        needed: Size(minimum.next_multiple_of(1 << 20)),
    })
}

/// The points of venues are held in memory, within [`Shares::points`].
fn check_venues(limits: &Limits, declared: &Declarations) -> Result<(), InvalidLimit> {
    let venues: usize = declared
        .streams
        .values()
        .filter_map(|s| Some(s.places.as_ref()?.max_venues))
        .sum();
    let needed = venues.saturating_mul(VENUE_BYTES);
    if needed <= limits.shares().points() {
        return Ok(());
    }
    // The share is a sixteenth, and points are nine sixteenths of that.
    let minimum = BASE_MEMORY.saturating_add((needed as u64).saturating_mul(256) / 9 + 256);
    Err(InvalidLimit::Venues {
        memory: Size(limits.memory),
        venues,
        needed: Size(minimum.next_multiple_of(1 << 20)),
    })
}

/// `[log]` in force.
#[derive(Debug, Clone, Copy)]
pub struct Log {
    /// Bytes of a segment.
    pub segment: u64,
    /// How long a segment stays although every view has committed it.
    pub keep: Duration,
    /// Bytes that the log may take.
    pub budget: u64,
}

/// Segments that the log needs: one being written, one for control frames, one that views still
/// read.
const MIN_SEGMENTS: u64 = 4;

/// Where the disk is limited, the log takes a quarter of it at most, and shorter segments if need
/// be.
pub(super) fn log(
    typed: &raw::Log,
    disk: Option<u64>,
    at: &SourceText<'_>,
) -> Result<Log, ConfigError> {
    let share = disk.map_or(u64::MAX, |disk| disk / 4);
    let budget = typed.budget.map_or(10 << 30, |s| s.0).min(share);
    let segment = typed
        .segment
        .map_or((64 << 20).min(budget / MIN_SEGMENTS), |s| s.0)
        .clamp(1 << 20, 1 << 30);
    if budget < MIN_SEGMENTS * segment {
        let message = format!(
            "the log may take {} and a segment is {}; it needs {MIN_SEGMENTS} of them: raise `[log] budget` (or `[limits] disk`, of which the log takes a quarter), or lower `[log] segment`",
            Size(budget),
            Size(segment)
        );
        return Err(at.error(at.line_of("[log]").or_else(|| at.line_of("disk")), message));
    }
    Ok(Log {
        segment,
        keep: typed.keep.map_or(Duration::from_secs(24 * 3_600), |s| s.0),
        budget,
    })
}

/// Rows of the reference: key, default, minimum, maximum, meaning.
#[cfg(test)]
pub(crate) fn reference() -> Vec<[String; 5]> {
    let row = |limit: &Limit| {
        let shown = |number: u64| limit.display(Some(number));
        let minimum = match limit.minimum {
            RaisedTo(0) => String::new(),
            RaisedTo(minimum) | RefusedBelow(minimum) => shown(minimum),
        };
        let maximum = if limit.maximum == ANY {
            String::new()
        } else {
            shown(limit.maximum)
        };
        let (key, default) = (format!("`{}`", limit.key), limit.default.map(shown));
        [
            key,
            default.unwrap_or_default(),
            minimum,
            maximum,
            limit.about.trim().to_owned(),
        ]
    };
    LIMITS.iter().map(row).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn resolved(text: &str) -> Result<Limits, InvalidLimit> {
        let typed = toml::from_str(text).expect("keys of [limits]");
        Limits::resolve(&typed, None)
    }

    #[test]
    fn shares_fit_in_the_memory() {
        let limits = resolved("").expect("defaults");
        assert!((MIN_MEMORY..=2 << 30).contains(&limits.memory));
        let shares = limits.shares();
        let sum = shares.queues + shares.ring + shares.hot_rows + shares.operators + shares.search;
        let sum = sum + shares.lake + shares.sql + shares.counts_and_places;
        assert!(sum as u64 <= limits.memory - BASE_MEMORY);
    }

    #[test]
    fn the_default_memory_follows_the_machine_and_its_control_groups() {
        const GIB: u64 = 1 << 30;
        for (machine, group, expected) in [
            (Some(4 * GIB), None, GIB),
            (Some(64 * GIB), None, 2 * GIB),
            (Some(GIB), None, GIB / 2),
            (None, None, GIB / 2),
            // As under `MemoryMax=1536M`, and in a container of 3 GiB.
            (Some(64 * GIB), Some(3 * GIB / 2), GIB),
            (Some(64 * GIB), Some(3 * GIB), 2 * GIB),
            // Version 1 writes no limit as a number beyond every machine.
            (Some(4 * GIB), Some(9_223_372_036_854_771_712), GIB),
            (Some(4 * GIB), Some(GIB / 4), GIB / 2),
        ] {
            assert_eq!(default_memory(machine, group).0, expected, "{group:?}");
        }
    }

    #[test]
    fn values_are_kept_within_their_bounds() {
        let low = resolved("memory = \"512MiB\"\nrecord = \"1B\"\nconnections = 0\nlake_rows = 0")
            .expect("raised");
        assert_eq!(
            (low.record, low.connections, low.lake_rows),
            (1 << 10, 1, 1)
        );
        let high = resolved("record = \"1GiB\"\nbody = \"1GiB\"").expect("lowered");
        assert_eq!((high.record, high.body), (16 << 20, 32 << 20));
        assert_eq!(
            resolved("memory = \"511MiB\"")
                .expect_err("too little")
                .to_string(),
            "memory = 511MiB: the minimum is 512MiB"
        );
    }

    #[test]
    fn every_limit_is_shown_with_its_origin() {
        let limits = resolved("memory = \"1GiB\"\nsql_rows = 7").expect("valid");
        let origin = |key: &str| match key {
            "memory" => "--memory",
            "sql_rows" => "weir.toml",
            "body" => "WEIR_LIMITS_BODY",
            _ => "default",
        };
        let shown: String = limits
            .in_force()
            .map(|(key, value)| format!("limits.{key} = {value}  # {}\n", origin(key)))
            .collect();
        insta::assert_snapshot!(shown);
    }
}
