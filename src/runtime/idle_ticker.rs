//! Idleness ticks: while a connected source is silent, its partitions' watermarks advance with the
//! clock, so that windows and sessions close. Once a second a tick with the elapsed time goes
//! through the log, because the operators have no clock.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use crate::ids::{Name, PartitionId};
use crate::ingest::{Ingest, Submission};
use crate::operators::Tick;
use crate::query::PipelineProgress;
use crate::sources::Stop;
use crate::threads::panic_if_asked;
use crate::wal::Kind;

const INTERVAL: Duration = Duration::from_secs(1);

/// Whether a push source is connected, by its name.
pub type Connected = BTreeMap<String, Arc<AtomicBool>>;

pub struct Ticker {
    pub ingest: Ingest,
    pub progress: Arc<PipelineProgress>,
    pub connected: Connected,
    pub stop: Stop,
}

impl Ticker {
    /// Works in a thread of its own, which holds `watch`.
    pub fn start(self, watch: impl Send + 'static) -> JoinHandle<()> {
        std::thread::Builder::new()
            .name("ticks".into())
            .spawn(move || {
                let _watch = watch;
                self.run();
            })
            .expect("the system can start a thread")
    }

    fn run(self) {
        // By stream and partition, its records so far.
        let mut before: BTreeMap<(Name, PartitionId), u64> = BTreeMap::new();
        let mut at = Instant::now();
        while !self.stop.wait(INTERVAL) {
            panic_if_asked("ticks");
            let now = Instant::now();
            let elapsed =
                i64::try_from((now - std::mem::replace(&mut at, now)).as_micros()).unwrap_or(0);
            // While the log takes nothing in, silence says nothing.
            let is_heard = |source: &str| {
                self.connected
                    .get(source)
                    .is_some_and(|c| c.load(Ordering::Acquire))
                    && self.ingest.intake().full().is_none()
            };
            let waiting = self.progress.waiting_partitions().into_iter();
            let seen: BTreeMap<(Name, PartitionId), u64> = waiting
                .filter(|partition| is_heard(&partition.id.source))
                .map(|partition| ((partition.stream, partition.id), partition.seen))
                .collect();
            let mut ticks: BTreeMap<&str, Vec<Tick>> = BTreeMap::new();
            for (key, seen) in &seen {
                if before.get(key) == Some(seen) {
                    let (stream, PartitionId { source, partition }) = key;
                    ticks.entry(stream).or_default().push(Tick {
                        source: source.to_string(),
                        partition: partition.to_string(),
                        elapsed,
                    });
                }
            }
            for (stream, ticks) in ticks {
                let payload = serde_json::to_vec(&ticks).unwrap_or_default();
                // What is refused is lost time, by which windows close a little later.
                let _ = self
                    .ingest
                    .submit(Submission::control(Kind::Tick, stream, &payload), false);
            }
            before = seen;
        }
    }
}
