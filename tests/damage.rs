//! A flipped bit, in whatever file of the data folder, never gives other numbers without an error. The error names the file and
//! the way out, and the exit code is 65.

use std::path::{Path, PathBuf};

use crate::support::{Bench, Numbers, copy, files, ndjson, records};

/// A folder with rows in files of every kind, and a copy of it in which bytes may be changed.
struct Damaged {
    bench: Bench,
    numbers: Numbers,
}

impl Damaged {
    fn new() -> Self {
        let bench = Bench::new("");
        bench.write("in.ndjson", &ndjson(&records(400, 17)));
        bench.once();
        copy(&bench.path("data"), &bench.path("whole"));
        Self { bench, numbers: Numbers(5) }
    }

    /// Files of the whole folder whose path has this in it, without the folder.
    fn files(&self, part: &str) -> Vec<PathBuf> {
        let whole = self.bench.path("whole");
        let names = files(&whole).into_keys().filter_map(|path| path.strip_prefix(&whole).ok().map(Path::to_owned));
        names.filter(|path| path.to_string_lossy().contains(part)).collect()
    }

    /// Flips a bit of the file, chosen by the numbers; gives its place.
    fn flip(&mut self, file: &Path) -> u64 {
        let mut bytes = std::fs::read(self.bench.path("whole").join(file)).expect("the file");
        let at = self.numbers.below(bytes.len() as u64);
        bytes[at as usize] ^= 1 << self.numbers.below(8);
        self.put(file, &bytes);
        at
    }

    fn put(&self, file: &Path, bytes: &[u8]) {
        std::fs::write(self.bench.path("data").join(file), bytes).expect("written");
    }

    /// The answer, or the error of a refusal.
    fn ask(&self, arguments: &[&str]) -> Result<String, String> {
        let mut all = arguments.to_vec();
        all.extend(["--output", "ndjson"]);
        let output = self.bench.output(&all);
        if output.status.success() {
            return Ok(String::from_utf8_lossy(&output.stdout).into_owned());
        }
        let error = String::from_utf8_lossy(&output.stderr).into_owned();
        assert_eq!(output.status.code(), Some(65), "{arguments:?}: {error}");
        Err(error)
    }
}

/// Whether the error names the file and says what to do.
fn names(error: &str, file: &Path) -> bool {
    let ways = ["weir rebuild", "restore"];
    error.contains(&*file.to_string_lossy()) && ways.iter().any(|way| error.contains(way))
}

#[test]
fn a_flipped_bit_in_a_table_is_found_by_who_reads_it() {
    let mut damaged = Damaged::new();
    let queries = [
        ("lake/rsvps/", "select * from rsvps order by lsn", "weir rebuild rsvps"),
        ("lake/raw/", "select * from raw order by lsn", "restore it from a backup"),
    ];
    for (part, query, way_out) in queries {
        let want = damaged.ask(&["sql", query]).expect("an answer");
        let parquet: Vec<PathBuf> =
            damaged.files(part).into_iter().filter(|path| path.extension().is_some_and(|e| e == "parquet")).collect();
        for round in 0..4 {
            let file = &parquet[round % parquet.len()];
            let at = damaged.flip(file);
            let error = damaged.ask(&["sql", query]).expect_err("it is found");
            assert!(names(&error, file) && error.contains(way_out), "byte {at}: {error}");
            damaged.put(file, &std::fs::read(damaged.bench.path("whole").join(file)).expect("the file"));
        }
        assert_eq!(damaged.ask(&["sql", query]), Ok(want));
    }
}

#[test]
fn a_damaged_table_is_made_again_from_raw_and_a_file_that_is_gone_is_named() {
    let mut damaged = Damaged::new();
    let query = ["sql", "select * from rsvps order by lsn"];
    let want = damaged.ask(&query).expect("an answer");
    let is_parquet = |file: &PathBuf| file.extension().is_some_and(|e| e == "parquet");
    let file = damaged.files("lake/rsvps/").into_iter().find(is_parquet).expect("a file");
    damaged.flip(&file);
    damaged.ask(&query).expect_err("it is found");
    damaged.ask(&["rebuild", "rsvps"]).expect("it is made again");
    assert_eq!(damaged.ask(&query), Ok(want));
    let raw = damaged.files("lake/raw/").into_iter().find(is_parquet).expect("a file");
    std::fs::remove_file(damaged.bench.path("data").join(&raw)).expect("removed");
    let error = damaged.ask(&["sql", "select count(bytes) from raw"]).expect_err("it is gone");
    assert!(names(&error, &raw), "{error}");
}
