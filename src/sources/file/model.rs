//! A model of what people and programs do to files, against the source: every line that was written
//! is in the log exactly once, after any sequence of renames, copies, compressions, truncations,
//! replacements and removals, and wherever the process was stopped or killed.

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;
    use std::fs::{File, OpenOptions};
    use std::io::Write;
    use std::path::{Path, PathBuf};
    use std::sync::Arc;
    use std::time::{Duration, Instant};

    use proptest::prelude::*;
    use proptest::test_runner::RngSeed;

    use super::super::{Source, Timing};
    use crate::clock::SystemClock;
    use crate::config::FileDef;
    use crate::ingest::{Ingest, LogMaintenance};
    use crate::operators::{Operators, PartitionState};
    use crate::schema::Catalog;
    use crate::sources::{Context, DiskAllowance, RecordLimits, SortSpace, Stop};
    use crate::storage::Disk;
    use crate::wal::{Kind, LogReader, Wal, WalOptions};

    const SOURCE: &str = "files";

    #[derive(Debug, Clone, Copy)]
    enum Act {
        Append(u8),
        /// A line in two writes, with a scan between.
        AppendTorn,
        Rename,
        Compress,
        /// The compressed file appears in two writes, with scans between until it seems to be at
        /// rest.
        CompressSlowly,
        /// Compressed under a name that is unrelated to the original one.
        CompressElsewhere,
        CopyTruncate,
        CompressTruncate,
        Overwrite(u8),
        Truncate,
        Remove,
        ReplaceByRename,
        Scan,
        Settle,
        Restart,
        Kill,
    }

    fn act() -> impl Strategy<Value = Act> {
        prop_oneof![
            6 => (1u8..40).prop_map(Act::Append),
            1 => Just(Act::AppendTorn),
            2 => Just(Act::Rename),
            2 => Just(Act::Compress),
            1 => Just(Act::CompressSlowly),
            1 => Just(Act::CompressElsewhere),
            2 => Just(Act::CopyTruncate),
            1 => Just(Act::CompressTruncate),
            1 => (1u8..40).prop_map(Act::Overwrite),
            1 => Just(Act::Truncate),
            1 => Just(Act::Remove),
            1 => Just(Act::ReplaceByRename),
            4 => Just(Act::Scan),
            1 => Just(Act::Settle),
            2 => Just(Act::Restart),
            2 => Just(Act::Kill),
        ]
    }

    fn timing() -> Timing {
        Timing {
            poll: Duration::from_millis(1),
            settle: Duration::from_millis(30),
            linger: Duration::from_millis(60),
            min_retry_delay: Duration::from_millis(1),
            max_retry_delay: Duration::from_millis(5),
        }
    }

    /// The log, across restarts.
    struct Log {
        folder: PathBuf,
        wal: Option<Wal>,
    }

    impl Log {
        fn options(&self) -> WalOptions {
            WalOptions {
                folder: self.folder.clone(),
                instance: 0,
                start_lsn: 0,
                segment_bytes: 1 << 22,
                budget: None,
                reserved_disk_bytes: 0,
            }
        }

        fn open(folder: PathBuf) -> Self {
            let mut log = Self { folder, wal: None };
            let (wal, _) = Wal::open(Arc::new(Disk), log.options(), 1, 0).expect("a log");
            log.wal = Some(wal);
            log
        }

        /// Every record with its count, and the partitions at a start.
        fn read(&self, end: u64) -> (BTreeMap<String, usize>, Vec<(String, PartitionState)>) {
            let mut reader = LogReader::new(Arc::new(Disk), self.folder.clone(), 0);
            let mut operators = Operators::new(Arc::new(Catalog::default()), 0);
            let mut lines = BTreeMap::new();
            while let Some(frame) = reader.next(end).expect("readable") {
                if frame.header.kind == Kind::Record {
                    for record in frame.records().expect("whole").iter() {
                        *lines
                            .entry(String::from_utf8(record.to_vec()).expect("text"))
                            .or_default() += 1;
                    }
                }
                operators.apply(&Arc::new(frame), None).expect("applied");
            }
            let own = operators
                .partitions()
                .iter()
                .filter(|(id, _)| &*id.source == SOURCE);
            (
                lines,
                own.map(|(id, state)| (id.partition.to_string(), state.clone()))
                    .collect(),
            )
        }
    }

    /// The files, and the lines that were written.
    struct World {
        folder: PathBuf,
        written: Vec<String>,
        rotated: usize,
        /// Something was read at the live file's path.
        is_begun: bool,
        is_single: bool,
    }

    impl World {
        fn live(&self) -> PathBuf {
            self.folder.join("app.log")
        }

        fn next_rotated(&mut self) -> PathBuf {
            self.rotated += 1;
            self.folder.join(format!("app.log.{}", self.rotated))
        }

        fn line(&mut self) -> String {
            let line = format!(
                "{{\"n\":{},\"text\":\"{}\"}}",
                self.written.len(),
                "x".repeat(self.written.len() * 7 % 90)
            );
            self.written.push(line.clone());
            line
        }

        fn append(&mut self, count: u8) {
            let mut file = OpenOptions::new()
                .create(true)
                .append(true)
                .open(self.live())
                .expect("a file");
            let text: String = (0..count).map(|_| self.line() + "\n").collect();
            file.write_all(text.as_bytes()).expect("written");
        }

        /// Rotated files that are not compressed.
        fn plain(&self) -> Option<PathBuf> {
            (1..=self.rotated)
                .rev()
                .map(|n| self.folder.join(format!("app.log.{n}")))
                .find(|path| path.exists())
        }
    }

    fn gzip(bytes: &[u8]) -> Vec<u8> {
        let mut encoder = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
        encoder.write_all(bytes).expect("memory");
        encoder.finish().expect("memory")
    }

    fn scan(source: &mut Source<'_>) {
        source.walked_at = None;
        source.scan().expect("a log");
        source.identify_all().expect("a log");
        source.read_all().expect("a log");
        source.in_flight.wait_all().expect("a log");
    }

    /// Scans until nothing is left to be read or decided.
    fn settle(source: &mut Source<'_>) {
        let started = Instant::now();
        loop {
            scan(source);
            scan(source);
            if source.is_done() {
                return;
            }
            assert!(
                started.elapsed() < Duration::from_secs(20),
                "the source does not settle"
            );
            std::thread::sleep(Duration::from_millis(2));
        }
    }

    fn perform(world: &mut World, source: &mut Source<'_>, act: Act) {
        match act {
            Act::Append(count) => world.append(count),
            Act::AppendTorn => {
                let line = world.line() + "\n";
                let mut file = OpenOptions::new()
                    .create(true)
                    .append(true)
                    .open(world.live())
                    .expect("a file");
                let (one, two) = line.split_at(line.len() / 2);
                file.write_all(one.as_bytes()).expect("written");
                scan(source);
                file.write_all(two.as_bytes()).expect("written");
            }
            Act::Rename | Act::CopyTruncate | Act::CompressTruncate => {
                if !world.live().exists() {
                    return;
                }
                // A source of one file must see its first file at the path.
                if world.is_single && !world.is_begun {
                    settle(source);
                    world.is_begun |= world.live().metadata().is_ok_and(|live| live.len() > 0);
                }
                rotate(world, source, act);
            }
            Act::Compress | Act::CompressSlowly | Act::CompressElsewhere => {
                compress(world, source, act);
            }
            Act::Overwrite(count) => {
                settle(source);
                let text: String = (0..count).map(|_| world.line() + "\n").collect();
                std::fs::write(world.live(), text).expect("written");
            }
            Act::Truncate => {
                settle(source);
                if world.live().exists() {
                    File::create(world.live()).expect("truncated");
                    settle(source);
                }
            }
            Act::ReplaceByRename => {
                settle(source);
                let mut text = std::fs::read_to_string(world.live()).unwrap_or_default();
                text += &(world.line() + "\n");
                let new = world.folder.join(".app.log.new");
                std::fs::write(&new, text).expect("written");
                std::fs::rename(new, world.live()).expect("renamed");
            }
            Act::Remove => {
                settle(source);
                if let Some(plain) = world.plain() {
                    std::fs::remove_file(plain).expect("removed");
                }
            }
            Act::Scan => scan(source),
            Act::Settle => {
                settle(source);
                world.is_begun |= world.live().metadata().is_ok_and(|live| live.len() > 0);
            }
            Act::Restart | Act::Kill => {}
        }
    }

    fn compress(world: &mut World, source: &mut Source<'_>, act: Act) {
        let Some(plain) = world.plain() else { return };
        let packed = gzip(&std::fs::read(&plain).expect("readable"));
        let name = plain
            .file_name()
            .expect("a name")
            .to_string_lossy()
            .into_owned();
        // A source of one file finds rotated files only by names that extend its own.
        let is_elsewhere = matches!(act, Act::CompressElsewhere) && !world.is_single;
        let name = if is_elsewhere {
            format!("old-{name}.gz")
        } else {
            format!("{name}.gz")
        };
        let mut file = File::create(plain.with_file_name(name)).expect("a file");
        let half = packed.len() / 2;
        file.write_all(&packed[..half]).expect("written");
        if matches!(act, Act::CompressSlowly) {
            scan(source);
            std::thread::sleep(timing().settle);
            scan(source);
        }
        file.write_all(&packed[half..]).expect("written");
        if matches!(act, Act::CompressSlowly) {
            scan(source);
        }
        std::fs::remove_file(plain).expect("removed");
    }

    fn rotate(world: &mut World, source: &mut Source<'_>, act: Act) {
        let (live, rotated) = (world.live(), world.next_rotated());
        match act {
            Act::Rename => std::fs::rename(live, rotated).expect("renamed"),
            Act::CopyTruncate => {
                std::fs::copy(&live, rotated).expect("copied");
                if world.rotated.is_multiple_of(2) {
                    scan(source);
                }
                File::create(live).expect("truncated");
            }
            _ => {
                let packed = gzip(&std::fs::read(&live).expect("readable"));
                std::fs::write(
                    rotated.with_file_name(format!("app.log.{}.gz", world.rotated)),
                    packed,
                )
                .expect("written");
                File::create(live).expect("truncated");
            }
        }
    }

    fn context(ingest: &Ingest, partitions: Vec<(String, PartitionState)>) -> Context {
        Context {
            name: SOURCE.into(),
            stream: "none".into(),
            ingest: ingest.clone(),
            stop: Stop::default(),
            once: false,
            record_limits: RecordLimits {
                max_bytes: 1 << 20,
                truncated_bytes: 1 << 10,
            },
            body_bytes: 0,
            seen: Vec::new(),
            wait_for_room: Arc::new(|_| true),
            is_connected: Arc::default(),
            health: Arc::default(),
            unwrap: None,
            sort_space: SortSpace {
                folder: PathBuf::new(),
                memory_bytes: 0,
                disk: Arc::new(|| DiskAllowance {
                    bytes: 0,
                    limit: String::new(),
                }),
            },
            partitions,
        }
    }

    /// Runs the acts, restarting the process between them; every line of the log with its count.
    fn live(world: &mut World, def: &FileDef, log: &Path, acts: &[Act]) -> BTreeMap<String, usize> {
        let mut log = Log::open(log.to_owned());
        let lives = acts.split_inclusive(|act| matches!(act, Act::Restart | Act::Kill));
        let lives: Vec<&[Act]> = lives.chain(std::iter::once(&[Act::Settle][..])).collect();
        let mut lines = BTreeMap::new();
        for acts in lives {
            let wal = log.wal.take().expect("open");
            let (_, partitions) = log.read(wal.synced_lsn());
            let clock = Arc::new(SystemClock::default());
            let (ingest, writer) = Ingest::start(
                wal,
                Arc::default(),
                clock,
                64 << 20,
                LogMaintenance::default(),
                |_| {},
                |_| {},
            );
            let context = context(&ingest, partitions);
            let clock = SystemClock::default();
            let mut source = Source::new(&context, def, timing(), &clock).expect("globs");
            for act in acts {
                perform(world, &mut source, *act);
                // Changes within one tick of the file system's clock are indistinguishable.
                std::thread::sleep(Duration::from_millis(5));
            }
            drop(source);
            drop((context, ingest));
            let wal = writer.join().expect("no panic").expect("a log");
            lines = log.read(wal.synced_lsn()).0;
            log.wal = Some(wal);
        }
        lines
    }

    fn check(is_single: bool, acts: &[Act]) {
        let folder = tempfile::tempdir().expect("a folder");
        let logs = folder.path().join("logs");
        std::fs::create_dir(&logs).expect("a folder");
        let mut world = World {
            folder: logs.clone(),
            written: Vec::new(),
            rotated: 0,
            is_begun: false,
            is_single,
        };
        let path = if is_single {
            logs.join("app.log")
        } else {
            logs
        };
        let def = FileDef {
            path,
            ..FileDef::default()
        };
        let read = live(&mut world, &def, &folder.path().join("log"), acts);
        let count = |line: &String| read.get(line).copied().unwrap_or(0);
        let wrong: Vec<(usize, usize)> = world
            .written
            .iter()
            .enumerate()
            .map(|(n, line)| (n, count(line)))
            .filter(|(_, n)| *n != 1)
            .collect();
        assert!(
            wrong.is_empty(),
            "(line, times read): {wrong:?} of {}",
            world.written.len()
        );
        let unexpected: Vec<&String> = read
            .keys()
            .filter(|line| !world.written.contains(line))
            .collect();
        assert!(
            unexpected.is_empty(),
            "lines that were not written: {unexpected:?}"
        );
    }

    /// The file was renamed and compressed before any of it was read, so that its descriptor and the
    /// compressed file have the same content; and a copy so short that it begins like all of them.
    #[test]
    fn files_that_no_checksum_distinguishes_yet_wait() {
        use Act::*;
        check(
            false,
            &[AppendTorn, Rename, Compress, Append(1), Overwrite(1)],
        );
        check(
            false,
            &[
                AppendTorn,
                Rename,
                CompressElsewhere,
                Append(1),
                Overwrite(1),
            ],
        );
        check(
            false,
            &[
                ReplaceByRename,
                ReplaceByRename,
                Append(14),
                Scan,
                Rename,
                CompressSlowly,
                Append(2),
                Scan,
            ],
        );
        check(
            false,
            &[
                Append(27),
                Scan,
                Rename,
                Append(10),
                CopyTruncate,
                CompressElsewhere,
                Settle,
                Append(3),
            ],
        );
        check(
            false,
            &[
                Overwrite(14),
                Kill,
                CopyTruncate,
                Restart,
                CompressSlowly,
                ReplaceByRename,
                Kill,
            ],
        );
        // A copy may have the inode of a file that was read and removed.
        check(
            false,
            &[
                Append(10),
                CopyTruncate,
                Settle,
                Compress,
                Scan,
                Append(8),
                CopyTruncate,
                CopyTruncate,
                Scan,
            ],
        );
    }

    /// Rotated away before a scan, while the source runs and while it does not.
    #[test]
    fn files_rotated_unread_are_found_next_to_a_single_file() {
        use Act::*;
        check(
            true,
            &[
                Append(3),
                Settle,
                Rename,
                Append(2),
                Rename,
                Compress,
                Append(2),
                Rename,
                Append(1),
            ],
        );
        check(
            true,
            &[
                Append(3),
                Settle,
                Kill,
                Append(1),
                Rename,
                Append(2),
                Rename,
                Compress,
                Append(1),
                Rename,
            ],
        );
        check(
            true,
            &[
                Append(1),
                Settle,
                Overwrite(1),
                Restart,
                Append(1),
                Rename,
                Append(1),
                CopyTruncate,
            ],
        );
        check(
            true,
            &[
                Append(5),
                Settle,
                ReplaceByRename,
                Rename,
                ReplaceByRename,
                Rename,
                Append(1),
                Scan,
            ],
        );
    }

    /// A bounded run, with an action after its first scan.
    fn once(log: &mut Log, def: &FileDef, after_scan: impl FnOnce()) -> BTreeMap<String, usize> {
        let wal = log.wal.take().expect("open");
        let (_, partitions) = log.read(wal.synced_lsn());
        let clock = Arc::new(SystemClock::default());
        let (ingest, writer) = Ingest::start(
            wal,
            Arc::default(),
            clock,
            64 << 20,
            LogMaintenance::default(),
            |_| {},
            |_| {},
        );
        let context = Context {
            once: true,
            ..context(&ingest, partitions)
        };
        let clock = SystemClock::default();
        let mut source = Source::new(&context, def, timing(), &clock).expect("globs");
        source.scan().expect("a log");
        after_scan();
        source.run().expect("a log");
        drop(source);
        drop((context, ingest));
        let wal = writer.join().expect("no panic").expect("a log");
        let lines = log.read(wal.synced_lsn()).0;
        log.wal = Some(wal);
        lines
    }

    #[test]
    fn a_bounded_run_reads_what_existed_when_it_began() {
        let folder = tempfile::tempdir().expect("a folder");
        let logs = folder.path().join("logs");
        std::fs::create_dir(&logs).expect("a folder");
        let write = |name: &str, lines: std::ops::Range<u32>| {
            let mut file = OpenOptions::new()
                .create(true)
                .append(true)
                .open(logs.join(name))
                .expect("a file");
            let text: String = lines.map(|n| format!("{{\"{name}\":{n}}}\n")).collect();
            file.write_all(text.as_bytes()).expect("written");
        };
        let def = FileDef {
            path: logs.clone(),
            ..FileDef::default()
        };
        let mut log = Log::open(folder.path().join("log"));
        write("a", 0..5);
        write("b", 0..5);
        let lines = once(&mut log, &def, || {
            write("a", 5..9);
            std::fs::rename(logs.join("b"), logs.join("b.1")).expect("renamed");
            write("b", 5..9);
            write("c", 0..9);
        });
        assert_eq!(
            (lines.len(), lines.values().sum::<usize>()),
            (10, 10),
            "{lines:?}"
        );
        let lines = once(&mut log, &def, || {});
        assert_eq!(
            (lines.len(), lines.values().sum::<usize>()),
            (27, 27),
            "{lines:?}"
        );
    }

    /// The same cases in every run; `PROPTEST_RNG_SEED=N` selects others, `PROPTEST_CASES=N` their
    /// number.
    fn config() -> ProptestConfig {
        let default = ProptestConfig::default();
        let rng_seed = if default.rng_seed == RngSeed::Random {
            RngSeed::Fixed(1)
        } else {
            default.rng_seed
        };
        let cases = if std::env::var_os("PROPTEST_CASES").is_some() {
            default.cases
        } else {
            24
        };
        ProptestConfig {
            cases,
            max_shrink_iters: 120,
            failure_persistence: None,
            rng_seed,
            ..default
        }
    }

    proptest! {
        #![proptest_config(config())]

        #[test]
        fn every_line_of_a_folder_is_read_once(acts in proptest::collection::vec(act(), 5..30)) {
            check(false, &acts);
        }

        #[test]
        fn every_line_of_a_single_file_is_read_once(acts in proptest::collection::vec(act(), 5..30)) {
            check(true, &acts);
        }
    }
}
