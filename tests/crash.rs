//! Killed at any moment, nothing that was accepted is lost or doubled.

use std::time::Duration;

use crate::support::{Bench, Numbers, OFTEN, holds_exactly, ndjson, records};

#[test]
fn fifty_kills_during_ingest_lose_and_double_nothing() {
    let bench = Bench::new(OFTEN);
    let all = records(30_000, 7);
    let mut numbers = Numbers(11);
    let mut written = 0;
    for kill in 0..50 {
        // The file grows before each run, so that every run has something to take in while it dies.
        written = (written + 600).min(all.len());
        bench.write("in.ndjson", &ndjson(&all[..written]));
        // Anywhere from before the log is opened to long after everything is committed.
        bench.killed_after(Duration::from_millis(30 + numbers.below(500)));
        if kill % 10 == 9 {
            bench.once();
            holds_exactly(&bench, &all[..written]);
        }
    }
    bench.once();
    holds_exactly(&bench, &all[..written]);
    // Windows and entities are those of one undisturbed run.
    let undisturbed = Bench::new("");
    undisturbed.write("in.ndjson", &ndjson(&all[..written]));
    undisturbed.once();
    assert_eq!(bench.all_answers(), undisturbed.all_answers());
}
