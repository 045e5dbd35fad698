//! `weir try`: looks at real records, writes a configuration for them with the reason of each
//! guess, and shows the first answers.

mod answers;
mod input;

use std::collections::BTreeMap;
use std::fs::{File, OpenOptions};
use std::io::{self, Write};
use std::os::unix::fs::{MetadataExt, OpenOptionsExt, fchown};
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use clap::Args;
use serde_json::json;

use super::output::Format;
use super::{Global, output};
use crate::clock::{Clock, SystemClock};
use crate::config::units::{Span, parse_duration, parse_size};
use crate::config::{self, Config};
use crate::event::Micros;
use crate::infer::{Profile, Proposal, stream_name};
use crate::runtime::{RuntimeError, dry_run, views};
use crate::schema::Catalog;
use crate::sources::sample::SampleLimits;
use crate::storage;
use input::Input;

/// Bytes of a record, as `[limits] record` has by default.
const RECORD_BYTES: usize = 1 << 20;
const MAX_RECORDS: usize = 100_000;
const MAX_BYTES: u64 = 256 << 20;
/// Reasons of rejections that are shown.
const MAX_REASONS: usize = 5;

/// Looks at records of a file, folder or URL, and writes a configuration for them to start from.
///
/// A sample is read, with a limit of records, bytes and time. Types, event time, key, text, counts,
/// coordinates and a window are guessed; the file says why beside each guess. Then the sample runs
/// through the configuration, in memory and in a temporary folder: no data folder is touched.
#[derive(Debug, Args)]
pub struct Try {
    /// A file, a folder, http://…, https://…, ws://…, wss://…
    from: String,
    /// The name of the stream [default: from the name of what is read].
    #[arg(long)]
    stream: Option<String>,
    /// The member of an object whose array holds the records, or "" to read objects whole
    /// [default: found].
    #[arg(long, value_name = "MEMBER")]
    unwrap: Option<String>,
    /// Only print the configuration.
    #[arg(long)]
    print: bool,
    /// Overwrite an existing configuration.
    #[arg(long, conflicts_with = "print")]
    force: bool,
    /// Records to look at, at most.
    #[arg(long, value_name = "NUMBER", default_value_t = 1_000)]
    records: usize,
    /// Bytes to read, decompressed, at most.
    #[arg(long, value_name = "SIZE", default_value = "8MiB", value_parser = parse_size)]
    bytes: u64,
    /// How long to read from a URL, at most.
    #[arg(long = "for", value_name = "DURATION", default_value = "10s", value_parser = parse_duration)]
    for_time: Duration,
}

impl Try {
    pub fn run(&self, global: &Global) -> Result<(), RuntimeError> {
        let path = global.config.clone().unwrap_or_else(|| "weir.toml".into());
        if !self.print {
            self.refuse_to_overwrite(&path)?;
        }
        if self.from.contains("://") {
            let url = config::public_address(&self.from);
            eprintln!("weir: reading {url}, for {} at most", Span(self.for_time));
        }
        let limits = self.limits()?;
        let input = Input::read(&self.from, self.unwrap.as_deref(), &path, &limits)?;
        let mut profile = Profile::default();
        for file in &input.files {
            profile.begin_file();
            file.iter().for_each(|record| profile.observe(record));
        }
        input.check(&profile, &limits)?;
        let now = SystemClock::default().now();
        let stream = self.stream.clone();
        let stream = stream.unwrap_or_else(|| stream_name(&input.name));
        let records: Vec<&[u8]> = input.files.iter().flatten().map(Vec::as_slice).collect();
        let proposal = Proposal::new(&profile, &records, &stream, now);
        let text = proposal.to_toml(&input.shown, "./weir-data", &input.source);
        let (config, catalog) = checked(&path, &text, global)?;
        let trial = Trial::new(&catalog, &stream, &input, now)?;
        if !proposal.has_event_time() {
            eprintln!("weir: no time was found in the records; see the comment at event_time");
        }
        if self.print {
            eprintln!("weir: {}", trial.summary(&input.shown));
            trial.report_reasons();
            return output::write(text.as_bytes());
        }
        self.write(&path, &text)?;
        eprintln!("weir: wrote {}", config.file_name().display());
        let answers = answers::of(&proposal, &input)?;
        if global.output == Some(Format::Json) {
            let report = json!({
                "config": path.display().to_string(),
                "stream": stream,
                "records": trial.records,
                "accepted": trial.accepted,
                "rejected": trial.reasons,
                "answers": answers,
            });
            return output::write(format!("{report}\n").as_bytes());
        }
        output::write(format!("{}\n", trial.summary(&input.shown)).as_bytes())?;
        trial.report_reasons();
        output::write(answers::as_text(&answers).as_bytes())?;
        self.show_next_steps(&proposal, global, &path)
    }

    fn limits(&self) -> Result<SampleLimits, RuntimeError> {
        if self.records == 0 || self.records > MAX_RECORDS {
            return Err(RuntimeError::Config(format!(
                "--records {}: write a number from 1 to {MAX_RECORDS}",
                self.records
            )));
        }
        if self.bytes == 0 || self.bytes > MAX_BYTES {
            return Err(RuntimeError::Config(
                "--bytes: write a size from 1B to 256MiB".into(),
            ));
        }
        Ok(SampleLimits {
            records: self.records,
            bytes: self.bytes as usize,
            time: self.for_time,
            record_bytes: RECORD_BYTES,
        })
    }

    fn refuse_to_overwrite(&self, path: &Path) -> Result<(), RuntimeError> {
        if self.force || !path.exists() {
            return Ok(());
        }
        Err(RuntimeError::Config(format!(
            "{} exists already; overwrite it with --force, name another file with -c, or use --print",
            path.display()
        )))
    }

    fn write(&self, path: &Path, text: &str) -> Result<(), RuntimeError> {
        let written = if self.force {
            replace(path, text)
        } else {
            create(path, text)
        };
        written.map_err(|e| RuntimeError::Failed(format!("{}: {e}", path.display())))
    }

    fn show_next_steps(
        &self,
        proposal: &Proposal<'_>,
        global: &Global,
        path: &Path,
    ) -> Result<(), RuntimeError> {
        let config = match &global.config {
            Some(path) => format!(" -c {}", path.display()),
            None => String::new(),
        };
        let mut out = format!(
            "\nNext: read {}, correct what was guessed wrongly, then\n  weir check{config}\n  weir run{config}\n",
            path.display()
        );
        out += &format!(
            "  weir sql{config} \"select * from {} order by event_time desc limit 5\"\n",
            proposal.stream()
        );
        if let Some(kind) = proposal.count_type() {
            out += &format!("  weir count{config} --by {kind}\n");
        }
        if let Some(word) = proposal.search_word() {
            out += &format!("  weir search{config} \"{word}\" --limit 3\n");
        }
        if let Some(window) = proposal.window() {
            out += &format!("  weir windows{config} {window} --limit 10\n");
        }
        output::write(out.as_bytes())
    }
}

/// Writes a new file, which only its owner can read: a URL may have a secret.
fn create(path: &Path, text: &str) -> io::Result<()> {
    let mut options = OpenOptions::new();
    let mut file = options
        .write(true)
        .create_new(true)
        .mode(0o600)
        .open(path)?;
    let written = file
        .write_all(text.as_bytes())
        .and_then(|()| file.sync_all())
        .and_then(|()| storage::sync_folder(storage::parent(path)));
    if written.is_err() {
        // The error that is reported is the first one.
        let _ = std::fs::remove_file(path);
    }
    written
}

/// Replaces a file by a new one, which only its owner can read. The old one stays until the new one
/// is complete: what was written beside it is removed if that fails.
fn replace(path: &Path, text: &str) -> io::Result<()> {
    // What a link leads to is replaced, not the link.
    let path = path.canonicalize().unwrap_or_else(|_| path.to_owned());
    if path.exists() && !path.is_file() {
        return Err(io::Error::other("not a file; name another one with -c"));
    }
    let written = storage::write_and_rename(&path, |file| write_owned(file, &path, text));
    written.map(drop).map_err(|e| match e.kind() {
        io::ErrorKind::ResourceBusy => {
            io::Error::other("a mount point cannot be replaced; name another file with -c")
        }
        _ => e,
    })
}

/// Gives a new file, which only its owner can read, to the owner of `old`, then writes it.
fn write_owned(mut file: &File, old: &Path, text: &str) -> io::Result<()> {
    if let Ok(old) = old.metadata() {
        // A service whose user owned the old one reads the new one, too.
        let new = file.metadata()?;
        if (old.uid(), old.gid()) != (new.uid(), new.gid()) {
            fchown(file, Some(old.uid()), Some(old.gid()))?;
        }
    }
    file.write_all(text.as_bytes())
}

/// Checks a proposed text as `weir check` does.
fn checked(
    path: &Path,
    text: &str,
    global: &Global,
) -> Result<(Config, Arc<Catalog>), RuntimeError> {
    let env = |name: &str| std::env::var(name).ok();
    let config = config::parse(Some(path), text.to_owned(), global.memory.as_deref(), &env)?;
    let catalog = views::compile(&config)?;
    Ok((config, catalog))
}

/// What the records of the sample became.
struct Trial {
    records: usize,
    accepted: usize,
    /// With the number of records.
    reasons: BTreeMap<String, u64>,
}

impl Trial {
    fn new(
        catalog: &Arc<Catalog>,
        stream: &str,
        input: &Input,
        now: Micros,
    ) -> Result<Self, RuntimeError> {
        let records: Vec<Vec<u8>> = input.files.iter().flatten().cloned().collect();
        let (answer, _) = dry_run::run(catalog, stream, &records, now, false)?;
        let shown = answer["records"].as_array().cloned().unwrap_or_default();
        let mut reasons: BTreeMap<String, u64> = BTreeMap::new();
        for reason in shown.iter().filter_map(|r| r["rejected"].as_str()) {
            *reasons.entry(reason.to_owned()).or_default() += 1;
        }
        let rejected: u64 = reasons.values().sum();
        Ok(Self {
            records: records.len(),
            accepted: records.len() - rejected as usize,
            reasons,
        })
    }

    fn summary(&self, shown: &str) -> String {
        format!(
            "{} of {} records of {shown} are accepted",
            self.accepted, self.records
        )
    }

    fn report_reasons(&self) {
        let mut reasons: Vec<(&String, &u64)> = self.reasons.iter().collect();
        reasons.sort_by(|a, b| b.1.cmp(a.1).then(a.0.cmp(b.0)));
        for (reason, count) in reasons.iter().take(MAX_REASONS) {
            eprintln!(
                "weir: rejected, {count} times: {}",
                output::printable(reason)
            );
        }
        if reasons.len() > MAX_REASONS {
            let more = reasons.len() - MAX_REASONS;
            eprintln!("weir: {more} other reasons; `weir test FILE` shows each record");
        }
    }
}

#[cfg(test)]
mod tests {
    use std::fs::Permissions;
    use std::os::unix::fs::PermissionsExt;

    use proptest::prelude::*;
    use serde_json::Value;

    use super::*;
    use crate::infer::{SourceKind, SourceText};

    /// Common and hostile names.
    const NAMES: [&str; 34] = [
        "id",
        "at",
        "time",
        "created_at",
        "lat",
        "lon",
        "name",
        "type",
        "status",
        "a",
        "A",
        "a b",
        "a.b",
        "\"",
        "\"\"\"",
        "'",
        "\\",
        "select",
        "order",
        "group",
        "key",
        "",
        "--",
        "{}",
        "<a>",
        "événement",
        "kafka_key",
        "source",
        "lsn",
        "event_time",
        "n",
        "window_start",
        "t\n",
        "😀",
    ];

    const TEXTS: [&str; 15] = [
        "",
        "x",
        "2024-05-01",
        "2024-05-01T10:00:00Z",
        "2024-05-01 10:00",
        "1714557600000",
        "several words of a text",
        "01/May/2024:12:00:00 +0200",
        "https://example.com/",
        "\u{0}",
        "\u{fffd}é😀",
        "null",
        "0000-01-01T00:00:00Z",
        "\"\"\"",
        "\\",
    ];

    fn scalar() -> impl Strategy<Value = Value> {
        prop_oneof![
            Just(Value::Null),
            any::<bool>().prop_map(Value::from),
            any::<i64>().prop_map(Value::from),
            any::<u64>().prop_map(Value::from),
            (1_714_557_600_i64..1_714_657_600).prop_map(Value::from),
            (1_714_557_600_000_i64..1_714_657_600_000).prop_map(Value::from),
            any::<f64>().prop_map(Value::from),
            (-90.0..90.0_f64).prop_map(Value::from),
            prop::sample::select(&TEXTS[..]).prop_map(Value::from),
            ".{0,12}".prop_map(Value::from),
        ]
    }

    fn object(value: impl Strategy<Value = Value>) -> impl Strategy<Value = Value> {
        let name = prop_oneof![
            9 => prop::sample::select(&NAMES[..]).prop_map(str::to_owned),
            1 => ".{0,6}",
        ];
        prop::collection::vec((name, value), 0..6)
            .prop_map(|members| Value::Object(members.into_iter().collect()))
    }

    fn record() -> impl Strategy<Value = Value> {
        let value = scalar().prop_recursive(3, 20, 5, |inner| {
            prop_oneof![
                prop::collection::vec(inner.clone(), 0..4).prop_map(Value::from),
                object(inner),
            ]
        });
        object(value)
    }

    fn source() -> SourceText {
        SourceText {
            kind: SourceKind::File {
                path: "in \"x\"".into(),
                is_single: true,
                recursive: false,
                include: Vec::new(),
            },
            unwrap: None,
            dropped: Vec::new(),
            notes: Vec::new(),
        }
    }

    /// The reasons for which records are rejected under what is inferred from them.
    fn rejections(records: &[Vec<u8>]) -> Vec<String> {
        let mut profile = Profile::default();
        records.iter().for_each(|record| profile.observe(record));
        let now = SystemClock::default().now();
        let sample: Vec<&[u8]> = records.iter().map(Vec::as_slice).collect();
        let proposal = Proposal::new(&profile, &sample, "things", now);
        let text = proposal.to_toml("a\nb", "data", &source());
        let config = config::parse(None, text.clone(), None, &|_| None);
        let config = config.unwrap_or_else(|e| panic!("{e}\n{text}"));
        let catalog = views::compile(&config).unwrap_or_else(|e| panic!("{e}\n{text}"));
        let (answer, _) = dry_run::run(&catalog, "things", records, now, false)
            .unwrap_or_else(|e| panic!("{e}\n{text}"));
        let shown = answer["records"].as_array().cloned().unwrap_or_default();
        let reasons = shown.iter().filter_map(|r| r["rejected"].as_str());
        reasons.map(|reason| format!("{reason}\n{text}")).collect()
    }

    proptest! {
        #![proptest_config(ProptestConfig { cases: 150, failure_persistence: None, ..ProptestConfig::default() })]

        #[test]
        fn any_records_have_a_declaration_that_accepts_them(records in prop::collection::vec(record(), 1..12)) {
            let records: Vec<Vec<u8>> = records.iter().map(|r| r.to_string().into_bytes()).collect();
            let reasons = rejections(&records);
            let is_of_time = |reason: &String| reason.starts_with("event_time");
            prop_assert!(reasons.iter().all(is_of_time), "{:?}", reasons.iter().find(|r| !is_of_time(r)));
        }
    }

    #[test]
    fn numbers_beyond_64_bits_and_half_surrogates_are_accepted() {
        let records = [
            r#"{"at":"2024-05-01T10:00:00Z","n":1e999,"m":123456789012345678901234567890}"#,
            r#"{"at":"2024-05-01T10:00:01Z","n":1.10,"t":"\ud83d","\ud83d":1,"s":{"\ud83d":2,"x":1}}"#,
            r#"{"at":"2024-05-01T10:00:02Z","at":"2024-05-01T10:00:03Z","s":{"x":"y"}}"#,
        ];
        let records: Vec<Vec<u8>> = records.iter().map(|r| r.as_bytes().to_vec()).collect();
        assert_eq!(rejections(&records), Vec::<String>::new());
    }

    #[test]
    fn times_in_the_formats_of_logs_and_mails_are_read() {
        for time in [
            "01/May/2024:12:00:00 +0200",
            "Wed, 01 May 2024 10:00:00 +0000",
            "Wed May 01 10:00:00 +0000 2024",
        ] {
            let record = format!("{{\"time\":\"{time}\",\"n\":1}}").into_bytes();
            assert_eq!(rejections(&[record]), Vec::<String>::new(), "{time}");
        }
    }

    #[test]
    fn columns_with_the_name_of_a_windows_own_are_counted() {
        for name in ["status", "version"] {
            let record = |n: u32| {
                let value = if n.is_multiple_of(2) { "on" } else { "off" };
                format!("{{\"at\":\"2024-05-01T10:00:{n:02}Z\",\"{name}\":\"{value}\"}}")
            };
            let records: Vec<Vec<u8>> = (0..40).map(|n| record(n).into_bytes()).collect();
            assert_eq!(rejections(&records), Vec::<String>::new(), "{name}");
        }
    }

    #[test]
    fn an_overwritten_configuration_is_its_owners() {
        let folder = tempfile::tempdir().expect("a folder");
        let path = folder.path().join("weir.toml");
        // The second one is what a kill may leave.
        for path in [&path, &folder.path().join("weir.toml.tmp")] {
            std::fs::write(path, "old").expect("a file");
            std::fs::set_permissions(path, Permissions::from_mode(0o644)).expect("a mode");
        }
        assert!(create(&path, "new").is_err());
        replace(&path, "new").expect("it is replaced");
        assert_eq!(std::fs::read_to_string(&path).expect("text"), "new");
        let mode = std::fs::metadata(&path).expect("metadata").permissions();
        assert_eq!(mode.mode() & 0o777, 0o600);
        let entries = std::fs::read_dir(folder.path()).expect("a folder");
        assert_eq!(entries.count(), 1);
    }

    #[test]
    fn many_and_long_names_stay_within_the_limits_of_a_schema() {
        let long = "x".repeat(90);
        let members: Vec<String> = (0..400)
            .map(|n| format!("\"{long}{n}\":[{{\"{long}\":[[{{\"b\":{n}}}]]}}]"))
            .collect();
        let record = format!("{{\"at\":\"2024-05-01T10:00:00Z\",{}}}", members.join(","));
        assert_eq!(rejections(&[record.into_bytes()]), Vec::<String>::new());
    }
}
