//! The source over a real log, stopped anywhere, with little memory: the log has each of the file's
//! records once, in the order that an independent implementation computes.

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;
    use std::io::Write;
    use std::sync::atomic::{AtomicUsize, Ordering};

    use super::super::*;
    use crate::clock::SystemClock;
    use crate::config::{Declarations, ReadOrder};
    use crate::event::SharedHealth;
    use crate::ingest::{Ingest, LogMaintenance};
    use crate::operators::Operators;
    use crate::schema::Catalog;
    use crate::sources::{DiskAllowance, RecordLimits, SortSpace, Stop};
    use crate::storage::Disk;
    use crate::wal::Kind;
    use crate::wal::{LogReader, Wal, WalOptions};

    const SELECT: &str = "select to_timestamp_micros(t) as event_time, n from s";
    const MAX_BYTES: usize = 1_000;
    const TRUNCATED_BYTES: usize = 50;

    struct World {
        folder: tempfile::TempDir,
        select: String,
        memory_bytes: usize,
        disk_bytes: u64,
        health: SharedHealth,
    }

    /// A record of the log: its offset and its bytes.
    type Stored = (u64, String);
    type Frame = (Kind, Vec<Stored>);

    impl World {
        fn new() -> Self {
            let folder = tempfile::tempdir().expect("a folder");
            Self {
                folder,
                select: SELECT.into(),
                memory_bytes: 40_000,
                disk_bytes: u64::MAX,
                health: SharedHealth::default(),
            }
        }

        fn path(&self, name: &str) -> PathBuf {
            self.folder.path().join(name)
        }

        fn write(&self, name: &str, text: &[u8]) {
            std::fs::write(self.path(name), text).expect("written");
        }

        fn wal(&self) -> Wal {
            let options = WalOptions {
                folder: self.path("log"),
                instance: 0,
                start_lsn: 0,
                segment_bytes: 1 << 22,
                budget: None,
                reserved_disk_bytes: 0,
            };
            Wal::open(Arc::new(Disk), options, 1, 0).expect("a log").0
        }

        /// All frames, and the partitions at a start.
        fn log(&self, end: u64) -> (Vec<Frame>, Vec<(String, PartitionState)>) {
            let mut reader = LogReader::new(Arc::new(Disk), self.path("log"), 0);
            let mut operators = Operators::new(Arc::new(Catalog::default()), 0);
            let mut frames = Vec::new();
            while let Some(frame) = reader.next(end).expect("readable") {
                let records = frame.records().expect("whole");
                let text = |bytes: &[u8]| String::from_utf8(bytes.to_vec()).expect("text");
                let stored = frame
                    .attributes
                    .offsets
                    .iter()
                    .copied()
                    .zip(records.iter().map(text));
                frames.push((frame.header.kind, stored.collect()));
                operators.apply(&Arc::new(frame), None).expect("applied");
            }
            let partitions = operators
                .partitions()
                .iter()
                .filter(|(id, _)| &*id.source == "in");
            (
                frames,
                partitions
                    .map(|(id, state)| (id.partition.to_string(), state.clone()))
                    .collect(),
            )
        }

        /// Runs the source to its end, or stops it before it sends the frame of this number.
        fn run(&self, file: &str, order: ReadOrder, stop_at: usize) -> Result<(), String> {
            let wal = self.wal();
            let partitions = self.log(wal.synced_lsn()).1;
            let schema = "t bigint not null, n bigint";
            let declared =
                serde_json::json!({"streams": {"s": {"schema": schema, "select": self.select}}})
                    .to_string();
            let catalog =
                Catalog::compile(&Declarations::from_json(&declared).expect("declarations"))
                    .expect("a catalog");
            let clock = Arc::new(SystemClock::default());
            let (ingest, writer) = Ingest::start(
                wal,
                Arc::new(catalog),
                clock,
                64 << 20,
                LogMaintenance::default(),
                |_| {},
                |_| {},
            );
            let (stop, sent, bytes) = (Stop::default(), AtomicUsize::new(0), self.disk_bytes);
            let stop_request = stop.clone();
            let context = Context {
                name: "in".into(),
                stream: "s".into(),
                ingest,
                stop,
                once: true,
                record_limits: RecordLimits {
                    max_bytes: MAX_BYTES,
                    truncated_bytes: TRUNCATED_BYTES,
                },
                wait_for_room: Arc::new(move |_| {
                    if sent.fetch_add(1, Ordering::Relaxed) + 1 >= stop_at {
                        stop_request.request();
                    }
                    true
                }),
                body_bytes: 0,
                seen: Vec::new(),
                is_connected: Arc::default(),
                unwrap: None,
                health: self.health.clone(),
                sort_space: SortSpace {
                    folder: self.path("sort/0"),
                    memory_bytes: self.memory_bytes,
                    disk: Arc::new(move || DiskAllowance {
                        bytes,
                        limit: "`[limits] disk` (20GiB)".into(),
                    }),
                },
                partitions,
            };
            let def = FileDef {
                path: self.path(file),
                order,
                ..FileDef::default()
            };
            let result = super::super::super::run(&context, &def, &SystemClock::default())
                .map_err(|error| error.to_string());
            drop(context);
            writer.join().expect("no panic").expect("a log");
            assert!(!self.path("sort/0").exists(), "files of sorting are left");
            result
        }

        fn stored(&self) -> Vec<Stored> {
            let frames = self.log(self.wal().synced_lsn()).0;
            frames
                .into_iter()
                .filter(|(kind, _)| *kind == Kind::Record)
                .flat_map(|(_, records)| records)
                .collect()
        }

        fn ends(&self) -> usize {
            self.log(self.wal().synced_lsn())
                .0
                .iter()
                .filter(|(kind, _)| *kind == Kind::PartitionEnd)
                .count()
        }
    }

    /// Lines in no order, some of which are not events, some over the limit; and the records that are
    /// expected of them.
    fn lines(count: usize) -> (Vec<String>, Vec<String>) {
        let (mut lines, mut random) = (Vec::new(), 7u64);
        for n in 0..count {
            random = random
                .wrapping_mul(6_364_136_223_846_793_005)
                .wrapping_add(1_442_695_040_888_963_407);
            let time = (random >> 33) % 500;
            lines.push(match n % 17 {
                0 => format!("{{\"n\":{n}}}"),
                1 => format!("{{\"n\":{n},\"broken"),
                2 if n % 5 == 0 => {
                    format!(
                        "{{\"t\":{time},\"n\":{n},\"x\":\"{}\"}}",
                        "x".repeat(MAX_BYTES)
                    )
                }
                _ => format!("{{\"t\":{time},\"n\":{n}}}"),
            });
        }
        // By its own time if it is an event, else by that of the event before it.
        let mut by_time: BTreeMap<Option<u64>, Vec<String>> = BTreeMap::new();
        let mut at = None;
        for line in &lines {
            let is_over = line.len() > MAX_BYTES;
            if let Ok(value) = serde_json::from_str::<serde_json::Value>(line)
                && let Some(time) = value["t"].as_u64().filter(|_| !is_over)
            {
                at = Some(time);
            }
            by_time.entry(at).or_default().push(if is_over {
                line[..TRUNCATED_BYTES].to_owned()
            } else {
                line.clone()
            });
        }
        (lines, by_time.into_values().flatten().collect())
    }

    fn numbered(records: &[String]) -> Vec<Stored> {
        (0..).zip(records.iter().cloned()).collect()
    }

    fn gzip(bytes: &[u8]) -> Vec<u8> {
        let mut encoder = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
        encoder.write_all(bytes).expect("memory");
        encoder.finish().expect("memory")
    }

    #[test]
    fn stopped_anywhere_each_record_is_stored_once_and_in_order() {
        let (lines, expected) = lines(6_000);
        // Without a newline at its end.
        let text = lines.join("\n");
        for (memory_bytes, bytes) in [
            (40_000, text.clone().into_bytes()),
            (100 << 20, gzip(text.as_bytes())),
        ] {
            let world = World {
                memory_bytes,
                ..World::new()
            };
            world.write("in", &bytes);
            let mut runs = 0;
            while world.ends() == 0 {
                world
                    .run("in", ReadOrder::EventTime, 1)
                    .expect("nothing has changed");
                runs += 1;
                assert!(runs < 20, "it does not end");
            }
            assert!(runs >= 4, "{runs}");
            assert_eq!(world.stored(), numbered(&expected));
            world
                .run("in", ReadOrder::EventTime, usize::MAX)
                .expect("nothing is left");
            assert_eq!((world.stored().len(), world.ends()), (expected.len(), 1));
        }
    }

    #[test]
    fn a_changed_file_halts_the_source_and_a_moved_one_resumes() {
        let world = World::new();
        let (lines, expected) = lines(4_000);
        let text = lines.join("\n");
        world.write("in", text.as_bytes());
        world
            .run("in", ReadOrder::EventTime, 2)
            .expect("read in part");
        let taken = world.stored().len();
        assert!((1..expected.len()).contains(&taken), "{taken}");
        let grown = format!("{text}\n{{\"t\":1,\"n\":1}}\n");
        let other = text.replacen("\"n\":3", "\"n\":4", 1);
        for (name, changed) in [("in", &grown), ("in", &other), ("elsewhere", &other)] {
            world.write(name, changed.as_bytes());
            let error = world
                .run(name, ReadOrder::EventTime, usize::MAX)
                .expect_err("it has changed");
            assert!(
                error.contains(&format!("{taken} of {} records", expected.len())),
                "{error}"
            );
            assert!(
                error.contains("restore that file") && error.contains("another name"),
                "{error}"
            );
        }
        assert_eq!(world.stored().len(), taken);
        // The same content at another path.
        std::fs::remove_file(world.path("in")).expect("removed");
        world.write("moved", text.as_bytes());
        world
            .run("moved", ReadOrder::EventTime, usize::MAX)
            .expect("the same content");
        assert_eq!(world.stored(), numbered(&expected));
        // Once all of it was read, appended records are not read, but another file is.
        world.write("moved", grown.as_bytes());
        assert!(
            world
                .run("moved", ReadOrder::EventTime, usize::MAX)
                .is_err()
        );
        world.write("new", b"{\"t\":2,\"n\":2}\n{\"t\":1,\"n\":1}\n");
        world
            .run("new", ReadOrder::EventTime, usize::MAX)
            .expect("another file");
        let last = world.stored().split_off(expected.len());
        assert_eq!(
            last,
            numbered(&[
                "{\"t\":1,\"n\":1}".to_owned(),
                "{\"t\":2,\"n\":2}".to_owned()
            ])
        );
    }

    #[test]
    fn another_order_halts_the_source_and_the_same_one_resumes() {
        let mut world = World::new();
        let (lines, expected) = lines(4_000);
        world.write("in", lines.join("\n").as_bytes());
        world
            .run("in", ReadOrder::EventTime, 2)
            .expect("read in part");
        let taken = world.stored().len();
        world.select = "select to_timestamp_micros(1000 - t) as event_time, n from s".into();
        let error = world
            .run("in", ReadOrder::EventTime, usize::MAX)
            .expect_err("another order");
        assert!(
            error.contains(&format!("the first {taken} were read")) && error.contains("`select`"),
            "{error}"
        );
        // Changes that do not affect the order do not matter.
        world.select = "select to_timestamp_micros(t + 5) as event_time, n + 1 as n from s".into();
        world
            .run("in", ReadOrder::EventTime, usize::MAX)
            .expect("the same order");
        assert_eq!(world.stored(), numbered(&expected));
    }

    #[test]
    fn offsets_of_one_order_are_not_those_of_the_other() {
        for (first, second) in [
            (ReadOrder::File, ReadOrder::EventTime),
            (ReadOrder::EventTime, ReadOrder::File),
        ] {
            let world = World::new();
            world.write("in", b"{\"t\":2,\"n\":2}\n{\"t\":1,\"n\":1}\n");
            world.run("in", first, usize::MAX).expect("read");
            let error = world
                .run("in", second, usize::MAX)
                .expect_err("the other order");
            assert!(
                error.contains("does not read a record twice") && error.contains("another name"),
                "{error}"
            );
            world.run("in", first, usize::MAX).expect("nothing is left");
            assert_eq!(world.stored().len(), 2);
        }
    }

    #[test]
    fn a_file_that_cannot_be_sorted_leaves_nothing_behind() {
        let mut world = World {
            disk_bytes: 1_000,
            ..World::new()
        };
        let text = lines(4_000).0.join("\n");
        world.write("in", text.as_bytes());
        let error = world
            .run("in", ReadOrder::EventTime, usize::MAX)
            .expect_err("no disk space");
        assert!(error.contains("`[limits] disk` (20GiB)"), "{error}");
        let packed = gzip(text.as_bytes());
        world.write("in", &packed[..packed.len() - 100]);
        world.disk_bytes = u64::MAX;
        let error = world
            .run("in", ReadOrder::EventTime, usize::MAX)
            .expect_err("it is truncated");
        assert!(error.contains("ends too early"), "{error}");
        std::fs::create_dir(world.path("folder")).expect("a folder");
        let error = world
            .run("folder", ReadOrder::EventTime, usize::MAX)
            .expect_err("a folder");
        assert!(error.contains("it is a folder"), "{error}");
        let error = world
            .run("none", ReadOrder::EventTime, usize::MAX)
            .expect_err("nothing");
        assert!(error.contains("does not exist"), "{error}");
        world.write("empty", b"\n");
        world
            .run("empty", ReadOrder::EventTime, usize::MAX)
            .expect("nothing to read");
        assert_eq!((world.stored().len(), world.ends()), (0, 0));
    }
}
