//! Kills at any moment lose or duplicate nothing that was accepted.

use std::time::Duration;

use crate::support::{FREQUENT_COMMITS, Lcg, TestFolder, assert_holds_exactly, ndjson, records};

#[test]
fn fifty_kills_during_ingest_lose_and_duplicate_nothing() {
    let folder = TestFolder::new(FREQUENT_COMMITS);
    let all = records(30_000, 7);
    let mut numbers = Lcg(11);
    let mut written = 0;
    for kill in 0..50 {
        // The file grows before each run, so that every run is killed while it takes records in.
        written = (written + 600).min(all.len());
        folder.write("in.ndjson", &ndjson(&all[..written]));
        // Anywhere from before the log is opened to long after everything is committed.
        folder.run_and_kill_after(Duration::from_millis(30 + numbers.below(500)));
        if kill % 10 == 9 {
            folder.run_once();
            assert_holds_exactly(&folder, &all[..written]);
        }
    }
    folder.run_once();
    assert_holds_exactly(&folder, &all[..written]);
    // Windows and entities are those of one run without kills.
    let reference = TestFolder::new("");
    reference.write("in.ndjson", &ndjson(&all[..written]));
    reference.run_once();
    assert_eq!(folder.all_answers(), reference.all_answers());
}
