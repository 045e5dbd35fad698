//! A stream's indexes: a row of tantivy indexes, rolled by number of documents; the checkpoint lies
//! in the commit's payload.

use std::collections::HashMap;
use std::fs::File;
use std::io::ErrorKind;
use std::path::{Path, PathBuf};
use std::sync::{Arc, PoisonError, RwLock};

use serde::{Deserialize, Serialize};
use tantivy::directory::MmapDirectory;
use tantivy::directory::error::OpenReadError;
use tantivy::error::DataCorruption;
use tantivy::index::SegmentId;
use tantivy::schema::{
    FAST, Field, IndexRecordOption, NumericOptions, Schema, TextFieldIndexing, TextOptions,
};
use tantivy::{
    Index, IndexReader, IndexSettings, ReloadPolicy, Searcher, SegmentReader, TantivyError,
};

use super::held::HeldDirectory;
use super::rows::RowStore;
use super::spans::SegmentSummary;
use super::text;
use crate::event::{Lsn, Micros};
use crate::schema::{MAP_SUFFIX, SearchDef};
use crate::storage::{create_folders, damage, sync_folder};
use crate::views::{VERIFIED_BYTES, ViewError, derived_damage, rebuild_hint};

/// Version of the payload and of the fields' layout.
pub const VERSION: u32 = 4;

/// Files of an index that name its others.
const META: &str = "meta.json";
const MANAGED: &str = ".managed.json";
/// Begins the name of an index that is being removed.
const GONE: &str = "gone-";
/// Commits that may come between looking and opening.
const TRIES: usize = 50;

/// What a commit says beside its documents.
#[derive(Debug, Clone, Copy, Serialize, Deserialize)]
pub struct Payload {
    pub version: u32,
    pub log: u64,
    pub checkpoint: Lsn,
    /// CRC-32C of the others: tantivy sums its files, but not this one. None of before there was
    /// one.
    #[serde(default)]
    sum: Option<u32>,
}

impl Payload {
    pub fn new(log: u64, checkpoint: Lsn) -> Self {
        let payload = Self {
            version: VERSION,
            log,
            checkpoint,
            sum: None,
        };
        Self {
            sum: Some(payload.own_sum()),
            ..payload
        }
    }

    fn own_sum(&self) -> u32 {
        crc32c::crc32c(format!("{} {} {}", self.version, self.log, self.checkpoint).as_bytes())
    }
}

/// Fields of an index, in the order of the declaration.
#[derive(Debug, Clone)]
pub struct Fields {
    pub lsn: Field,
    pub event_time: Field,
    pub text: Vec<Field>,
    pub exact: Vec<Field>,
    /// Of each map in `text`: its column, and the field of its entries.
    pub pairs: Vec<(String, Field)>,
    /// Latitude, longitude; or empty.
    pub geo: Vec<Field>,
}

/// The schema that a declaration gives.
pub fn schema(def: &SearchDef) -> (Schema, Fields) {
    let mut builder = Schema::builder();
    let words = TextFieldIndexing::default()
        .set_tokenizer(text::NAME)
        .set_index_option(IndexRecordOption::WithFreqsAndPositions)
        .set_fieldnorms(true);
    let whole = TextFieldIndexing::default()
        .set_tokenizer("raw")
        .set_index_option(IndexRecordOption::Basic)
        .set_fieldnorms(false);
    let options = |indexing: &TextFieldIndexing| {
        TextOptions::default().set_indexing_options(indexing.clone())
    };
    let fields = Fields {
        lsn: builder.add_i64_field("lsn", FAST),
        event_time: builder.add_i64_field("event_time", FAST),
        text: def
            .text
            .iter()
            .map(|n| builder.add_text_field(&format!("text/{n}"), options(&words)))
            .collect(),
        exact: def
            .exact
            .iter()
            .map(|n| builder.add_text_field(&format!("exact/{n}"), options(&whole)))
            .collect(),
        geo: def
            .geo
            .iter()
            .map(|n| {
                builder.add_f64_field(&format!("geo/{n}"), NumericOptions::default().set_fast())
            })
            .collect(),
        pairs: def
            .text
            .iter()
            .filter_map(|n| n.strip_suffix(MAP_SUFFIX))
            .map(|n| {
                (
                    n.to_owned(),
                    builder.add_text_field(&format!("pairs/{n}"), options(&whole)),
                )
            })
            .collect(),
    };
    (builder.build(), fields)
}

/// One index with its reader.
pub struct Part {
    /// Its folder's name.
    number: usize,
    pub index: Index,
    reader: IndexReader,
    /// What was loaded last.
    shown: PartSearcher,
}

/// All indexes of a stream, oldest first.
pub struct SearchIndex {
    pub folder: PathBuf,
    pub def: SearchDef,
    pub schema: Schema,
    pub fields: Fields,
    parts: RwLock<Vec<Part>>,
    /// Everything up to here is found.
    visible: RwLock<Lsn>,
}

impl SearchIndex {
    /// Opens the indexes of a stream; none where there are none and `writable` is false.
    pub fn open(folder: &Path, def: &SearchDef, writable: bool) -> Result<Option<Self>, ViewError> {
        let (schema, fields) = schema(def);
        let failed = |error: std::io::Error| wrong(folder)(error.into());
        if !writable && !folder.is_dir() {
            return Ok(None);
        }
        if writable {
            create_folders(folder).map_err(failed)?;
            remove_gone(folder).map_err(failed)?;
        }
        let mut names: Vec<String> = std::fs::read_dir(folder)
            .map_err(failed)?
            .filter_map(|e| e.ok().map(|e| e.file_name().to_string_lossy().into_owned()))
            .filter(|n| n.len() == 6 && n.bytes().all(|b| b.is_ascii_digit()))
            .collect();
        names.sort();
        if names.is_empty() && writable {
            names.push("000000".into());
        }
        let numbers: Vec<usize> = names.iter().filter_map(|n| n.parse().ok()).collect();
        for number in &numbers {
            let part = part_folder(folder, *number);
            if check_format(&part)? == FormatCheck::OlderWithoutCommit && writable {
                std::fs::remove_dir_all(&part).map_err(failed)?;
            }
        }
        let open =
            |n| open_part(folder, n, &schema, writable).map_err(wrong(&part_folder(folder, n)));
        let parts = numbers
            .into_iter()
            .map(open)
            .collect::<Result<Vec<_>, _>>()?;
        let parts = RwLock::new(parts);
        Ok(Some(Self {
            folder: folder.to_owned(),
            def: def.clone(),
            schema,
            fields,
            parts,
            visible: RwLock::new(0),
        }))
    }

    fn parts(&self) -> std::sync::RwLockReadGuard<'_, Vec<Part>> {
        self.parts.read().unwrap_or_else(PoisonError::into_inner)
    }

    /// The files that hold what is committed, opened, so that a merge which replaces them takes
    /// nothing away: path below the stream's folder, and the file.
    pub fn committed_files(&self) -> Result<Vec<(PathBuf, File)>, ViewError> {
        let mut files = Vec::new();
        for part in self.parts().iter() {
            files.extend(self.files_of(part)?);
        }
        Ok(files)
    }

    fn files_of(&self, part: &Part) -> Result<Vec<(PathBuf, File)>, ViewError> {
        let failed = |reason: String| ViewError::Failed {
            view: self.folder.display().to_string(),
            reason,
        };
        let folder = part_folder(&self.folder, part.number);
        let read_meta = || std::fs::read(folder.join(META)).map_err(|e| failed(e.to_string()));
        for _ in 0..TRIES {
            let before = read_meta()?;
            let metas = part.index.load_metas().map_err(|e| failed(e.to_string()))?;
            let segments: Vec<String> = metas
                .segments
                .iter()
                .map(|segment| segment.id().uuid_string())
                .collect();
            let mut files = Vec::new();
            for entry in std::fs::read_dir(&folder).map_err(|e| failed(e.to_string()))? {
                let name = entry
                    .map_err(|e| failed(e.to_string()))?
                    .file_name()
                    .to_string_lossy()
                    .into_owned();
                let is_named = segments
                    .iter()
                    .any(|s| name.starts_with(s.as_str()) && !name.ends_with(".temp"));
                if !(is_named || name == META || name == MANAGED) {
                    continue;
                }
                match File::open(folder.join(&name)) {
                    Ok(file) => files.push((
                        Path::new(folder.file_name().unwrap_or_default()).join(name),
                        file,
                    )),
                    // One that is gone meanwhile is no longer named either, which the second look
                    // shows.
                    Err(error) if error.kind() == ErrorKind::NotFound => {}
                    Err(error) => return Err(failed(error.to_string())),
                }
            }
            // No file is removed while the index names it: unchanged, it named these all the time.
            if read_meta()? == before {
                return Ok(files);
            }
        }
        Err(failed(format!(
            "commits came faster than its files could be opened, {TRIES} times"
        )))
    }

    /// Documents of all indexes.
    pub fn documents(&self) -> u64 {
        self.parts()
            .iter()
            .map(|p| p.shown.searcher.num_docs())
            .sum()
    }

    /// The committed checkpoint of this log.
    pub fn checkpoint(&self, log: u64, zero: Lsn) -> Result<Lsn, ViewError> {
        for part in self.parts().iter().rev() {
            let folder = part_folder(&self.folder, part.number);
            let metas = part.index.load_metas().map_err(wrong(&folder))?;
            let Some(text) = metas.payload else { continue };
            let wrong_bytes = |what: &str| damaged(&folder, &folder.join(META), what);
            let payload: Payload =
                serde_json::from_str(&text).map_err(|e| wrong_bytes(&e.to_string()))?;
            if payload.sum.is_some_and(|sum| sum != payload.own_sum()) {
                return Err(wrong_bytes(
                    "its checkpoint is not the one that was written",
                ));
            }
            if payload.version > VERSION {
                let what = format!("search format {}", payload.version);
                return Err(ViewError::Newer {
                    path: self.folder.clone(),
                    what,
                });
            }
            if payload.log != log {
                let reason = format!(
                    "belongs to log {:x}, this one is {log:x}; restore log and views from one backup",
                    payload.log
                );
                return Err(ViewError::Damaged {
                    path: self.folder.clone(),
                    reason,
                });
            }
            return Ok(payload.checkpoint);
        }
        Ok(zero)
    }

    /// The newest index, which is written to, and its number.
    pub fn last(&self) -> (Index, usize) {
        let parts = self.parts();
        let last = parts
            .last()
            .expect("an index that is written to has a part");
        (last.index.clone(), last.number)
    }

    /// Makes the names of what is committed durable: the sync of an earlier attempt may have
    /// failed.
    pub fn sync_names(&self) -> Result<(), ViewError> {
        for part in self.parts().iter() {
            sync_folder(&part_folder(&self.folder, part.number))
                .map_err(|e| wrong(&self.folder)(e.into()))?;
        }
        Ok(())
    }

    /// Bytes of the files of an index.
    pub fn bytes_of(&self, number: usize) -> u64 {
        let entries = std::fs::read_dir(part_folder(&self.folder, number))
            .into_iter()
            .flatten();
        entries
            .filter_map(|entry| Some(entry.ok()?.metadata().ok()?.len()))
            .sum()
    }

    /// Begins another index behind the others.
    pub fn roll(&self) -> Result<(), TantivyError> {
        let mut parts = self.parts.write().unwrap_or_else(PoisonError::into_inner);
        let number = parts.last().map_or(0, |last| last.number + 1);
        parts.push(open_part(&self.folder, number, &self.schema, true)?);
        Ok(())
    }

    /// Removes indexes of which every event lies before `floor`, but never the one that carries the
    /// checkpoint; gives their number.
    pub fn drop_below(&self, floor: Micros) -> Result<usize, ViewError> {
        let failed = |reason: String| ViewError::Failed {
            view: self.folder.display().to_string(),
            reason,
        };
        let mut gone = Vec::new();
        {
            let mut parts = self.parts.write().unwrap_or_else(PoisonError::into_inner);
            let positioned = parts
                .iter()
                .rposition(|p| p.index.load_metas().is_ok_and(|m| m.payload.is_some()));
            let keep = positioned.unwrap_or(0);
            for at in (0..keep).rev() {
                if latest(&parts[at].shown.searcher)
                    .map_err(|e| failed(e.to_string()))?
                    .is_none_or(|t| t < floor)
                {
                    gone.push(parts.remove(at));
                }
            }
        }
        let removed = gone.iter().try_for_each(|part| {
            // Under a name that is no index's: half removed, it must not be opened.
            let (folder, away) = (
                part_folder(&self.folder, part.number),
                self.folder.join(format!("{GONE}{}", part.number)),
            );
            std::fs::rename(&folder, &away)?;
            sync_folder(&self.folder)?;
            std::fs::remove_dir_all(away)
        });
        removed.map_err(|e| failed(e.to_string()))?;
        Ok(gone.len())
    }

    /// Makes what is committed visible, up to `checkpoint`.
    pub fn reload(&self, checkpoint: Lsn) -> Result<(), TantivyError> {
        let last = self
            .parts()
            .last()
            .map(|part| (part.number, part.reader.clone(), part.shown.clone()));
        // Before anything is locked: of a large segment that is new it takes a moment.
        let shown = match last {
            Some((number, reader, shown)) => Some((number, shown.load_again(&reader)?)),
            None => None,
        };
        let mut visible = self.visible.write().unwrap_or_else(PoisonError::into_inner);
        let mut parts = self.parts.write().unwrap_or_else(PoisonError::into_inner);
        if let Some((number, shown)) = shown
            && let Some(part) = parts.iter_mut().find(|part| part.number == number)
        {
            part.shown = shown;
        }
        *visible = checkpoint;
        Ok(())
    }

    pub fn set_visible(&self, checkpoint: Lsn) {
        *self.visible.write().unwrap_or_else(PoisonError::into_inner) = checkpoint;
    }

    pub fn visible(&self) -> Lsn {
        *self.visible.read().unwrap_or_else(PoisonError::into_inner)
    }

    /// Searchers over all indexes, with the checkpoint that they reach.
    pub fn searchers(&self) -> (Vec<PartSearcher>, Lsn) {
        let visible = self.visible.read().unwrap_or_else(PoisonError::into_inner);
        (
            self.parts().iter().map(|part| part.shown.clone()).collect(),
            *visible,
        )
    }
}

/// A searcher over one index. All its files are open: merges may replace them.
#[derive(Clone)]
pub struct PartSearcher {
    folder: PathBuf,
    pub searcher: Searcher,
    /// In the order of the searcher's segments.
    pub segments: Vec<Arc<SegmentSummary>>,
}

impl PartSearcher {
    fn load(folder: &Path, reader: &IndexReader) -> tantivy::Result<Self> {
        let searcher = reader.searcher();
        let known = searcher
            .segment_readers()
            .iter()
            .map(|segment| SegmentSummary::read(segment).map(Arc::new));
        let segments = known.collect::<tantivy::Result<_>>()?;
        Ok(Self {
            folder: folder.to_owned(),
            segments,
            searcher,
        })
    }

    /// What is committed by now. What is known of a segment stays.
    fn load_again(&self, reader: &IndexReader) -> tantivy::Result<Self> {
        let known = self
            .searcher
            .segment_readers()
            .iter()
            .map(SegmentReader::segment_id)
            .zip(&self.segments);
        let known: HashMap<SegmentId, &Arc<SegmentSummary>> = known.collect();
        let mut left = TRIES;
        loop {
            reader.reload()?;
            let searcher = reader.searcher();
            let of = |segment: &SegmentReader| match known.get(&segment.segment_id()) {
                Some(known) => Ok(Arc::clone(known)),
                None => SegmentSummary::read(segment).map(Arc::new),
            };
            let segments = searcher
                .segment_readers()
                .iter()
                .map(of)
                .collect::<tantivy::Result<_>>();
            match segments {
                Ok(segments) => {
                    return Ok(Self {
                        folder: self.folder.clone(),
                        segments,
                        searcher,
                    });
                }
                // A merge replaced the segment and removed its files: the next reload no longer
                // lists it.
                Err(TantivyError::OpenReadError(OpenReadError::FileDoesNotExist(_)))
                    if left > 0 =>
                {
                    left -= 1;
                }
                Err(error) => return Err(error),
            }
        }
    }

    /// The error about a file of the index that is not as it was written, for who asks.
    pub fn damaged(&self, what: &str) -> String {
        damage(
            &self.folder,
            what,
            &rebuild_hint("search", &stream_name(&self.folder)),
        )
    }
}

/// The stream of an index: the folder of all its indexes has its name.
fn stream_name(folder: &Path) -> String {
    let is_part = |name: &str| name.len() == 6 && name.bytes().all(|b| b.is_ascii_digit());
    let name = |path: &Path| {
        path.file_name()
            .unwrap_or_default()
            .to_string_lossy()
            .into_owned()
    };
    if is_part(&name(folder)) {
        name(folder.parent().unwrap_or(folder))
    } else {
        name(folder)
    }
}

/// The error about a file of an index that is not as it was written.
fn damaged(folder: &Path, file: &Path, what: &str) -> ViewError {
    derived_damage(file, what, "search", &stream_name(folder))
}

/// Compares the files of an index, where they are not too many bytes, with tantivy's checksums.
/// Each block of rows has its own, which is compared when it is read.
fn verify(part: &Path, index: &Index) -> Result<(), TantivyError> {
    let named = index.load_metas()?.list_segment_files();
    let there = index.directory().list_managed_files();
    let mut files: Vec<&PathBuf> = named
        .intersection(&there)
        .filter(|file| !RowStore::is_file(file))
        .collect();
    let bytes: u64 = files
        .iter()
        .filter_map(|file| Some(std::fs::metadata(part.join(file)).ok()?.len()))
        .sum();
    if bytes > VERIFIED_BYTES {
        return Ok(());
    }
    files.sort();
    for file in files {
        if !index.directory().validate_checksum(file)? {
            let what = "its bytes are not those that were written".to_owned();
            return Err(TantivyError::DataCorruption(DataCorruption::new(
                file.clone(),
                what,
            )));
        }
    }
    Ok(())
}

/// What an error of an index means: a disk that fails is worth another try.
fn wrong(folder: &Path) -> impl Fn(TantivyError) -> ViewError {
    let path = folder.to_owned();
    move |error| {
        let reason = error.to_string();
        match error {
            // Undecodable bytes are damage: another try would not help.
            TantivyError::IoError(error)
            | TantivyError::OpenReadError(OpenReadError::IoError {
                io_error: error, ..
            }) if matches!(
                error.kind(),
                ErrorKind::InvalidData | ErrorKind::UnexpectedEof
            ) =>
            {
                damaged(&path, &path, &reason)
            }
            TantivyError::IoError(_)
            | TantivyError::LockFailure(..)
            | TantivyError::OpenDirectoryError(_)
            | TantivyError::OpenReadError(OpenReadError::IoError { .. })
            | TantivyError::OpenWriteError(_)
            | TantivyError::SystemError(_)
            | TantivyError::ErrorInThread(_) => ViewError::Failed {
                view: path.display().to_string(),
                reason,
            },
            _ => damaged(&path, &path, &reason),
        }
    }
}

#[derive(Debug, PartialEq, Eq)]
enum FormatCheck {
    Current,
    /// Of an older format, without a commit: it can be made again, but not be written to.
    OlderWithoutCommit,
}

/// Refuses an index of an older format, and one whose words were split by other rules: what is
/// asked would not be found in it.
fn check_format(folder: &Path) -> Result<FormatCheck, ViewError> {
    let text = match std::fs::read_to_string(folder.join(META)) {
        Ok(text) => text,
        // It has no commit yet.
        Err(error) if error.kind() == ErrorKind::NotFound => return Ok(FormatCheck::Current),
        Err(error) => return Err(wrong(folder)(error.into())),
    };
    let meta: serde_json::Value = serde_json::from_str(&text).unwrap_or_default();
    if let Some(found) = parse_payload(&meta).filter(|payload| payload.version < VERSION) {
        let what = format!(
            "it has the older search format {}, this version of weir writes {VERSION}",
            found.version
        );
        return Err(damaged(folder, folder, &what));
    }
    let fields = meta["schema"].as_array().into_iter().flatten();
    let mut rules = fields.filter_map(|field| field["options"]["indexing"]["tokenizer"].as_str());
    match rules.find(|rules| *rules != text::NAME && rules.starts_with(text::FAMILY)) {
        None if parse_payload(&meta).is_none() && is_empty(&meta) && !RowStore::is_named(&meta) => {
            Ok(FormatCheck::OlderWithoutCommit)
        }
        None => Ok(FormatCheck::Current),
        Some(found) => {
            let what = format!(
                "its words were split by the rules {found}, this version of weir splits by {}",
                text::NAME
            );
            Err(damaged(folder, folder, &what))
        }
    }
}

fn parse_payload(meta: &serde_json::Value) -> Option<Payload> {
    meta["payload"]
        .as_str()
        .and_then(|payload| serde_json::from_str(payload).ok())
}

fn is_empty(meta: &serde_json::Value) -> bool {
    meta["segments"].as_array().is_some_and(Vec::is_empty)
}

/// Folder of the index with this number.
pub fn part_folder(folder: &Path, number: usize) -> PathBuf {
    folder.join(format!("{number:06}"))
}

/// Removes what a crash left of indexes that were being removed.
fn remove_gone(folder: &Path) -> std::io::Result<()> {
    for entry in std::fs::read_dir(folder)? {
        let entry = entry?;
        if entry.file_name().to_string_lossy().starts_with(GONE) {
            std::fs::remove_dir_all(entry.path())?;
        }
    }
    Ok(())
}

/// The greatest event time among the documents.
fn latest(searcher: &Searcher) -> Result<Option<Micros>, TantivyError> {
    let of = |reader: &SegmentReader| {
        let times = reader.fast_fields().i64("event_time")?;
        Ok((reader.num_docs() > 0).then(|| times.max_value()))
    };
    let latest = searcher
        .segment_readers()
        .iter()
        .map(of)
        .collect::<Result<Vec<_>, TantivyError>>()?;
    Ok(latest.into_iter().flatten().max())
}

fn open_part(
    folder: &Path,
    number: usize,
    schema: &Schema,
    writable: bool,
) -> Result<Part, TantivyError> {
    let folder = &part_folder(folder, number);
    create_folders(folder)?;
    let settings = IndexSettings {
        docstore_compress_dedicated_thread: false,
        ..IndexSettings::default()
    };
    let directory = MmapDirectory::open(folder)?;
    let builder = Index::builder()
        .schema(schema.clone())
        .settings(settings)
        .register_plugin(Arc::new(RowStore));
    let index = if writable {
        builder.open_or_create(directory)
    } else {
        builder.open_or_create(HeldDirectory(directory))
    };
    let index = index?;
    // Before a column is read: tantivy may panic at bytes that it did not write.
    verify(folder, &index)?;
    index
        .tokenizers()
        .register(text::NAME, text::Words::default());
    let reader = index
        .reader_builder()
        .reload_policy(ReloadPolicy::Manual)
        .doc_store_cache_num_blocks(0)
        .try_into()?;
    let shown = PartSearcher::load(folder, &reader)?;
    Ok(Part {
        number,
        index,
        reader,
        shown,
    })
}
