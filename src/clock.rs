//! The seam to time. What reads a clock for what it decides gets a [`Clock`]; the machine's is made
//! where a folder is opened. Tests of the whole program preload a library that moves its clock.

use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

/// A wall clock and a monotonic one.
pub trait Clock: Send + Sync + 'static {
    /// Microseconds since 1970 in UTC.
    fn now(&self) -> i64;
    /// Time since a fixed moment in this process; never decreases.
    fn monotonic(&self) -> Duration;
}

/// The machine's wall clock: for the ages and the entries of files. Nothing that follows from the
/// log reads it, and the times at which records arrive are those of a [`Clock`].
pub fn wall_clock() -> SystemTime {
    SystemTime::now()
}

/// The same in milliseconds since 1970, as Delta writes times.
pub fn wall_clock_ms() -> i64 {
    SystemClock::default().now() / 1_000
}

/// How long ago a file was changed; nothing for a time that is yet to come.
pub fn age(modified: SystemTime) -> Duration {
    wall_clock().duration_since(modified).unwrap_or_default()
}

/// The machine's clocks.
pub struct SystemClock(Instant);

impl Default for SystemClock {
    fn default() -> Self {
        Self(Instant::now())
    }
}

impl Clock for SystemClock {
    fn now(&self) -> i64 {
        wall_clock()
            .duration_since(UNIX_EPOCH)
            .map_or(0, |d| i64::try_from(d.as_micros()).unwrap_or(i64::MAX))
    }

    fn monotonic(&self) -> Duration {
        self.0.elapsed()
    }
}
