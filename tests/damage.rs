//! A flipped bit in any file of the data folder never changes an answer without an error. The error
//! names the file and the remedy, and the exit code is 65.

use std::path::{Path, PathBuf};

use crate::support::{Lcg, TestFolder, copy, files, ndjson, records};

/// A data folder with files of every kind, of which tests damage a copy.
struct Damaged {
    folder: TestFolder,
    numbers: Lcg,
}

impl Damaged {
    fn new() -> Self {
        let folder = TestFolder::new("");
        folder.write("in.ndjson", &ndjson(&records(400, 17)));
        folder.run_once();
        copy(&folder.path("data"), &folder.path("intact"));
        Self {
            folder,
            numbers: Lcg(5),
        }
    }

    /// Files of the intact folder whose path contains `part`, relative to the folder.
    fn files(&self, part: &str) -> Vec<PathBuf> {
        let intact = self.folder.path("intact");
        // Empty files are locks.
        let with_bytes = files(&intact)
            .into_iter()
            .filter(|(_, bytes)| !bytes.is_empty())
            .map(|(path, _)| path);
        let names =
            with_bytes.filter_map(|path| path.strip_prefix(&intact).ok().map(Path::to_owned));
        names
            .filter(|path| path.to_string_lossy().contains(part))
            .collect()
    }

    /// Flips a random bit of the file; returns its byte offset.
    fn flip(&mut self, file: &Path) -> u64 {
        let mut bytes = std::fs::read(self.folder.path("intact").join(file)).expect("the file");
        let at = self.numbers.below(bytes.len() as u64);
        bytes[at as usize] ^= 1 << self.numbers.below(8);
        self.put(file, &bytes);
        at
    }

    fn put(&self, file: &Path, bytes: &[u8]) {
        std::fs::write(self.folder.path("data").join(file), bytes).expect("written");
    }

    /// The output, or the error.
    fn ask(&self, arguments: &[&str]) -> Result<String, String> {
        let mut all = arguments.to_vec();
        all.extend(["--output", "ndjson"]);
        let output = self.folder.output(&all);
        if output.status.success() {
            return Ok(String::from_utf8_lossy(&output.stdout).into_owned());
        }
        let error = String::from_utf8_lossy(&output.stderr).into_owned();
        assert_eq!(output.status.code(), Some(65), "{arguments:?}: {error}");
        Err(error)
    }
}

/// Whether the error names the file and a remedy.
fn names(error: &str, file: &Path) -> bool {
    let remedies = ["weir rebuild", "restore"];
    error.contains(&*file.to_string_lossy()) && remedies.iter().any(|remedy| error.contains(remedy))
}

#[test]
fn a_flipped_bit_in_a_table_is_found_by_its_readers() {
    let mut damaged = Damaged::new();
    let queries = [
        (
            "lake/rsvps/",
            "select * from rsvps order by lsn",
            "weir rebuild rsvps",
        ),
        (
            "lake/raw/",
            "select * from raw order by lsn",
            "restore it from a backup",
        ),
    ];
    for (part, query, remedy) in queries {
        let want = damaged.ask(&["sql", query]).expect("an answer");
        let parquet: Vec<PathBuf> = damaged
            .files(part)
            .into_iter()
            .filter(|path| path.extension().is_some_and(|e| e == "parquet"))
            .collect();
        for round in 0..4 {
            let file = &parquet[round % parquet.len()];
            let at = damaged.flip(file);
            let error = damaged.ask(&["sql", query]).expect_err("it is detected");
            assert!(
                names(&error, file) && error.contains(remedy),
                "byte {at}: {error}"
            );
            damaged.put(
                file,
                &std::fs::read(damaged.folder.path("intact").join(file)).expect("the file"),
            );
        }
        assert_eq!(damaged.ask(&["sql", query]), Ok(want));
    }
}

#[test]
fn a_flipped_bit_in_any_other_file_does_not_change_the_answer_or_is_reported() {
    let mut damaged = Damaged::new();
    let rows = ["sql", "select * from rsvps order by lsn"];
    let kinds: [(&str, &[&str], &str); 6] = [
        ("lake/rsvps/_delta_log/", &rows, "restore"),
        (
            "search/rsvps/",
            &["search", "open", "--limit", "50"],
            "weir rebuild search",
        ),
        (
            "state/rsvps.counts",
            &["count", "--by", "country"],
            "weir rebuild counts",
        ),
        (
            "state/rsvps.places",
            &["nearby", "--lat", "40.7", "--lon=-74"],
            "weir rebuild places",
        ),
        ("operators/", &rows, "restore"),
        ("log/", &rows, "restore"),
    ];
    let mut found = 0;
    for (part, query, remedy) in kinds {
        let want = damaged.ask(query).expect("an answer");
        let files = damaged.files(part);
        // Several files, because libraries report errors in different forms.
        for round in 0..files.len().clamp(4, 12) {
            let file = &files[round % files.len()];
            let at = damaged.flip(file);
            match damaged.ask(query) {
                Ok(answer) => assert_eq!(answer, want, "{} at byte {at}", file.display()),
                Err(error) => {
                    found += 1;
                    let folder = file.parent().expect("a folder").to_string_lossy();
                    assert!(
                        error.contains(&*folder) && error.contains(remedy),
                        "{} at {at}: {error}",
                        file.display()
                    );
                }
            }
            damaged.put(
                file,
                &std::fs::read(damaged.folder.path("intact").join(file)).expect("the file"),
            );
        }
    }
    assert!(found >= 6, "only {found} flips were found");
}

#[test]
fn views_that_cannot_be_opened_are_rebuilt() {
    let damaged = Damaged::new();
    let queries: [&[&str]; 2] = [
        &["count", "--by", "country"],
        &["search", "open", "--limit", "50"],
    ];
    let want = queries.map(|query| damaged.ask(query).expect("an answer"));
    damaged.put(Path::new("state/rsvps.counts.redb"), b"no file of redb's");
    let files = damaged.files("search/rsvps/");
    let meta = files
        .iter()
        .find(|file| file.ends_with("meta.json"))
        .expect("a file");
    damaged.put(meta, b"{}");
    let error = damaged
        .ask(&["run", "--once"])
        .expect_err("it does not start");
    assert!(error.contains("weir rebuild"), "{error}");
    damaged
        .ask(&["rebuild", "counts", "search"])
        .expect("they are rebuilt");
    assert_eq!(
        queries.map(|query| damaged.ask(query).expect("an answer")),
        want
    );
    damaged.folder.run_once();
}

#[test]
fn without_the_log_nothing_starts_and_nothing_is_written() {
    let damaged = Damaged::new();
    let log = damaged.folder.path("data/log");
    std::fs::remove_dir_all(&log).expect("removed");
    let error = damaged
        .ask(&["run", "--once"])
        .expect_err("it does not start");
    assert!(error.contains("restore"), "{error}");
    let error = damaged
        .ask(&["sql", "select 1"])
        .expect_err("it is not answered");
    assert!(error.contains("restore the log"), "{error}");
    assert_eq!(files(&log).len(), 0);
}

#[test]
fn a_damaged_table_is_rebuilt_from_raw_and_a_missing_file_is_named() {
    let mut damaged = Damaged::new();
    let query = ["sql", "select * from rsvps order by lsn"];
    let want = damaged.ask(&query).expect("an answer");
    let is_parquet = |file: &PathBuf| file.extension().is_some_and(|e| e == "parquet");
    let file = damaged
        .files("lake/rsvps/")
        .into_iter()
        .find(is_parquet)
        .expect("a file");
    damaged.flip(&file);
    damaged.ask(&query).expect_err("it is detected");
    damaged.ask(&["rebuild", "rsvps"]).expect("it is rebuilt");
    assert_eq!(damaged.ask(&query), Ok(want));
    let raw = damaged
        .files("lake/raw/")
        .into_iter()
        .find(is_parquet)
        .expect("a file");
    std::fs::remove_file(damaged.folder.path("data").join(&raw)).expect("removed");
    let error = damaged
        .ask(&["sql", "select count(bytes) from raw"])
        .expect_err("it is missing");
    assert!(names(&error, &raw), "{error}");
}
