//! Kills at any moment lose or duplicate nothing that was accepted.

use std::time::Duration;

use crate::support::{Bench, Numbers, OFTEN, holds_exactly, ndjson, records};

#[test]
fn fifty_kills_during_ingest_lose_and_duplicate_nothing() {
    let bench = Bench::new(OFTEN);
    let all = records(30_000, 7);
    let mut numbers = Numbers(11);
    let mut written = 0;
    for kill in 0..50 {
        // The file grows before each run, so that every run is killed while it takes records in.
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
    // Windows and entities are those of one run without kills.
    let reference = Bench::new("");
    reference.write("in.ndjson", &ndjson(&all[..written]));
    reference.once();
    assert_eq!(bench.all_answers(), reference.all_answers());
}
