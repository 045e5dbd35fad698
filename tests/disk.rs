//! If the disk fails at any operation, temporarily or permanently, no accepted record is lost or
//! duplicated.

use std::process::Stdio;
use std::time::{Duration, Instant};

use crate::support::{FREQUENT_COMMITS, Lcg, TestFolder, assert_holds_exactly, ndjson, records};

const EIO: u32 = 5;
const ENOSPC: u32 = 28;
const PERMANENTLY: u64 = u64::MAX / 2;

/// Any file below the data folder: log, snapshots, tables, indexes, state.
#[test]
fn a_disk_failure_at_any_operation_loses_and_duplicates_nothing() {
    let folder = TestFolder::new(FREQUENT_COMMITS);
    let library = folder.build_library("disk.c");
    let all = records(7_200, 17);
    let mut numbers = Lcg(5);
    let root = folder.path("").canonicalize().expect("a folder");
    let (mut written, mut survived, mut failed) = (0, 0, 0);
    let runs = 24;
    for run in 0..runs {
        written += 300;
        folder.write("in.ndjson", &ndjson(&all[..written]));
        // The first run creates the folder; later ones have about a thousand operations.
        let after = numbers.below(if run == 0 { 300 } else { 900 });
        let error = if numbers.below(2) == 0 { EIO } else { ENOSPC };
        // Mostly the disk recovers; a permanent failure ends the run.
        let length = [1, 1, 2, 20, PERMANENTLY][numbers.below(5) as usize];
        let mut child = folder
            .command(&["run", "--once"])
            .env("LD_PRELOAD", &library)
            .env("FAIL_UNDER", root.join("data"))
            .env("FAIL_COUNT", folder.path("count"))
            .env("FAIL_AFTER", after.to_string())
            .env("FAIL_FOR", length.to_string())
            .env("FAIL_WITH", error.to_string())
            .stderr(Stdio::null())
            .spawn()
            .expect("the binary runs");
        let begun = Instant::now();
        let status = loop {
            match child.try_wait().expect("it can be waited for") {
                Some(status) => break status,
                None => std::thread::sleep(Duration::from_millis(20)),
            }
            if begun.elapsed() > Duration::from_secs(120) {
                let _ = child.kill();
                panic!("run {run}, {error} after {after} for {length}: it does not end");
            }
        };
        let count = std::fs::read_to_string(folder.path("count")).expect("a count");
        let is_met = count.parse::<u64>().expect("a number") > after;
        match status.code() {
            Some(0) => survived += usize::from(is_met),
            Some(1) => failed += usize::from(is_met),
            other => panic!("run {run}, {error} after {after} for {length}: {other:?}"),
        }
        // A successful run has stored everything; the run after a failed one continues from there.
        if !status.success() && run % 3 == 2 || run + 1 == runs {
            folder.run_once();
        } else if !status.success() {
            continue;
        }
        if run % 3 == 2 {
            assert_holds_exactly(&folder, &all[..written]);
        }
    }
    assert!(
        survived >= 4 && failed >= 2,
        "{survived} runs survived a fault, {failed} ended with one, of {runs}"
    );
    assert_holds_exactly(&folder, &all[..written]);
    let undisturbed = TestFolder::new("");
    undisturbed.write("in.ndjson", &ndjson(&all[..written]));
    undisturbed.run_once();
    assert_eq!(folder.all_answers(), undisturbed.all_answers());
}
