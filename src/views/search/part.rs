//! One tantivy index of a stream, and searchers over it.

use std::collections::HashMap;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use tantivy::directory::MmapDirectory;
use tantivy::directory::error::OpenReadError;
use tantivy::error::DataCorruption;
use tantivy::index::SegmentId;
use tantivy::schema::Schema;
use tantivy::{
    Index, IndexReader, IndexSettings, ReloadPolicy, Searcher, SegmentReader, TantivyError,
};

use super::errors::stream_name;
use super::rows::RowStore;
use super::spans::SegmentSummary;
use super::text;
use super::unlocked_directory::UnlockedDirectory;
use crate::event::Micros;
use crate::storage::{create_folders, damage};
use crate::views::{VERIFIED_BYTES, rebuild_hint};

/// Merges that may remove files between a reload and their opening.
const MAX_RETRIES: usize = 50;

/// One of a stream's indexes, with its reader.
pub struct Part {
    /// The name of its folder.
    pub number: usize,
    pub index: Index,
    pub reader: IndexReader,
    /// What was loaded last.
    pub searcher: PartSearcher,
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
        let segments = searcher
            .segment_readers()
            .iter()
            .map(|segment| SegmentSummary::read(segment).map(Arc::new))
            .collect::<tantivy::Result<_>>()?;
        Ok(Self {
            folder: folder.to_owned(),
            segments,
            searcher,
        })
    }

    /// Loads what is committed now. Summaries of known segments are reused.
    pub fn reload(&self, reader: &IndexReader) -> tantivy::Result<Self> {
        let known = self
            .searcher
            .segment_readers()
            .iter()
            .map(SegmentReader::segment_id)
            .zip(&self.segments);
        let known: HashMap<SegmentId, &Arc<SegmentSummary>> = known.collect();
        let mut retries = MAX_RETRIES;
        loop {
            reader.reload()?;
            let searcher = reader.searcher();
            let summary = |segment: &SegmentReader| match known.get(&segment.segment_id()) {
                Some(known) => Ok(Arc::clone(known)),
                None => SegmentSummary::read(segment).map(Arc::new),
            };
            let segments = searcher
                .segment_readers()
                .iter()
                .map(summary)
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
                    if retries > 0 =>
                {
                    retries -= 1;
                }
                Err(error) => return Err(error),
            }
        }
    }

    /// The message for a query that finds a file of the index not as it was written.
    pub fn damage_message(&self, what: &str) -> String {
        damage(
            &self.folder,
            what,
            &rebuild_hint("search", &stream_name(&self.folder)),
        )
    }
}

/// The folder of the index with this number.
pub fn part_folder(folder: &Path, number: usize) -> PathBuf {
    folder.join(format!("{number:06}"))
}

/// Opens an index, and creates it if needed.
pub fn open_part(
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
        builder.open_or_create(UnlockedDirectory(directory))
    };
    let index = index?;
    // Before a column is read: tantivy may panic on bytes that it did not write.
    verify(folder, &index)?;
    index
        .tokenizers()
        .register(text::TOKENIZER_NAME, text::TextTokenizer::default());
    let reader = index
        .reader_builder()
        .reload_policy(ReloadPolicy::Manual)
        .doc_store_cache_num_blocks(0)
        .try_into()?;
    let searcher = PartSearcher::load(folder, &reader)?;
    Ok(Part {
        number,
        index,
        reader,
        searcher,
    })
}

/// Verifies tantivy's checksums of an index's files, unless they have more than `VERIFIED_BYTES`.
/// Blocks of rows have checksums of their own, verified when they are read.
fn verify(part: &Path, index: &Index) -> Result<(), TantivyError> {
    let listed = index.load_metas()?.list_segment_files();
    let present = index.directory().list_managed_files();
    let mut files: Vec<&PathBuf> = listed
        .intersection(&present)
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

/// The greatest event time among the documents.
pub fn latest(searcher: &Searcher) -> Result<Option<Micros>, TantivyError> {
    let max_time = |reader: &SegmentReader| {
        let times = reader.fast_fields().i64("event_time")?;
        Ok((reader.num_docs() > 0).then(|| times.max_value()))
    };
    let latest = searcher
        .segment_readers()
        .iter()
        .map(max_time)
        .collect::<Result<Vec<_>, TantivyError>>()?;
    Ok(latest.into_iter().flatten().max())
}
