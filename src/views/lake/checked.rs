//! Checksums of a table's files. Parquet as it is written here has none of its own, and a flipped
//! bit in a page mostly gives another number, not an error. So each file's Delta entry has the
//! CRC-32C of every block of its bytes, and a block is verified when it is first read after the
//! table was opened, by a query, a merge or a rebuild.
//!
//! Checksums are computed while a file is written, so that a block that reached the disk damaged is
//! found too.

use std::fmt;
use std::fs;
use std::io::{self, ErrorKind, Write};
use std::ops::Range;
use std::os::unix::fs::FileExt;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use async_trait::async_trait;
use bytes::Bytes;
use datafusion::datasource::listing::PartitionedFile;
use datafusion::datasource::physical_plan::ParquetFileReaderFactory;
use datafusion::datasource::physical_plan::parquet::DefaultParquetFileReaderFactory;
use datafusion::physical_plan::metrics::ExecutionPlanMetricsSet;
use futures::stream::BoxStream;
use object_store::path::Path;
use object_store::{
    CopyOptions, GetOptions, GetRange, GetResult, ListResult, MultipartUpload, ObjectMeta,
    ObjectStore, PutMultipartOptions, PutOptions, PutPayload, PutResult, Result,
};
use parquet::arrow::async_reader::AsyncFileReader;

use super::files::FileEntry;
use super::{LakeError, TableSpec};
use crate::ids::TableId;

/// Bytes under one checksum: a reader of a few rows reads the whole block once.
const BLOCK_BYTES: usize = 1 << 20;
/// The checksums of a file, and which of its blocks are verified; empty for a file that was written
/// without.
#[derive(Debug, Clone, Default)]
pub struct BlockChecksums(Option<Arc<Sums>>);

#[derive(Debug)]
struct Sums {
    crcs: Vec<u32>,
    is_verified: Vec<AtomicBool>,
}

impl PartialEq for BlockChecksums {
    fn eq(&self, other: &Self) -> bool {
        let crcs = |checks: &Self| checks.0.as_ref().map(|sums| sums.crcs.clone());
        crcs(self) == crcs(other)
    }
}

impl Eq for BlockChecksums {}

impl BlockChecksums {
    fn new(crcs: Vec<u32>) -> Self {
        let is_verified = crcs.iter().map(|_| AtomicBool::new(false)).collect();
        Self(Some(Arc::new(Sums { crcs, is_verified })))
    }

    /// As the file's Delta entry has them; `None` where it has none.
    pub fn to_text(&self) -> Option<String> {
        let sums = self.0.as_ref()?;
        Some(sums.crcs.iter().map(|crc| format!("{crc:08x}")).collect())
    }

    /// From the entry's text. An invalid text gives too few checksums, which match no file.
    pub fn from_text(text: &str) -> Self {
        let crc = |part: &[u8]| u32::from_str_radix(std::str::from_utf8(part).ok()?, 16).ok();
        Self::new(
            text.as_bytes()
                .chunks(8)
                .filter(|part| part.len() == 8)
                .map_while(crc)
                .collect(),
        )
    }
}

/// Computes the checksums of what is written through it.
pub struct ChecksumWriter<W> {
    inner: W,
    crcs: Vec<u32>,
    /// Checksum and bytes so far of the block that is not full.
    open: (u32, usize),
}

impl<W> ChecksumWriter<W> {
    /// Begins with no bytes.
    pub fn new(inner: W) -> Self {
        Self {
            inner,
            crcs: Vec::new(),
            open: (0, 0),
        }
    }

    /// What is written to.
    pub fn get_ref(&self) -> &W {
        &self.inner
    }

    /// The checksums of everything so far.
    pub fn checks(&self) -> BlockChecksums {
        let open = (self.open.1 > 0).then_some(self.open.0);
        BlockChecksums::new(self.crcs.iter().copied().chain(open).collect())
    }

    fn add(&mut self, mut bytes: &[u8]) {
        while !bytes.is_empty() {
            let (part, rest) = bytes.split_at(bytes.len().min(BLOCK_BYTES - self.open.1));
            self.open = (
                crc32c::crc32c_append(self.open.0, part),
                self.open.1 + part.len(),
            );
            if self.open.1 == BLOCK_BYTES {
                self.crcs.push(self.open.0);
                self.open = (0, 0);
            }
            bytes = rest;
        }
    }
}

impl<W: Write> Write for ChecksumWriter<W> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let written = self.inner.write(bytes)?;
        self.add(&bytes[..written]);
        Ok(written)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.inner.flush()
    }
}

/// A file of a table that is about to be read.
#[derive(Debug, Clone)]
pub struct CheckedFile {
    path: PathBuf,
    bytes: u64,
    checks: BlockChecksums,
    remedy: Arc<str>,
}

impl CheckedFile {
    /// A file of the table, not opened yet.
    pub fn new(spec: &TableSpec, file: &FileEntry) -> Self {
        let remedy = remedy(spec, file).into();
        Self {
            path: spec.root.join(&file.path),
            bytes: file.bytes,
            checks: file.checks.clone(),
            remedy,
        }
    }

    /// Opens the file after verifying all of it.
    pub fn open(&self) -> std::result::Result<fs::File, LakeError> {
        self.check(0..self.bytes)?;
        self.open_in_parts()
    }

    /// Opens the file for readers that [`Self::check`] what they read.
    pub fn open_in_parts(&self) -> std::result::Result<fs::File, LakeError> {
        fs::File::open(&self.path).map_err(|e| self.explain(e))
    }

    /// Its whole path.
    pub fn path(&self) -> &std::path::Path {
        &self.path
    }

    /// Its size, as the Delta log has it.
    pub fn bytes(&self) -> u64 {
        self.bytes
    }

    /// The blocks of a range, unless all of them are verified.
    fn unverified(&self, range: &Range<u64>) -> Option<Range<usize>> {
        let sums = self.checks.0.as_ref()?;
        let blocks =
            range.start as usize / BLOCK_BYTES..(range.end as usize).div_ceil(BLOCK_BYTES).max(1);
        let is_whole = sums.crcs.len() == (self.bytes as usize).div_ceil(BLOCK_BYTES);
        let is_done = |n: usize| {
            sums.is_verified
                .get(n)
                .is_some_and(|checked| checked.load(Ordering::Acquire))
        };
        (!is_whole || !blocks.clone().all(is_done)).then_some(blocks)
    }

    /// Verifies the blocks of a range that are not yet.
    pub fn check(&self, range: Range<u64>) -> std::result::Result<(), LakeError> {
        let (Some(blocks), Some(sums)) = (self.unverified(&range), &self.checks.0) else {
            return Ok(());
        };
        if sums.crcs.len() != (self.bytes as usize).div_ceil(BLOCK_BYTES) {
            return Err(self.damaged("its checksums in the Delta log cannot be read".into()));
        }
        let file = fs::File::open(&self.path).map_err(|e| self.explain(e))?;
        let size = file.metadata().map_err(|e| self.explain(e))?.len();
        if size != self.bytes {
            return Err(self.damaged(format!("it has {size} bytes instead of {}", self.bytes)));
        }
        let mut buffer = vec![0; BLOCK_BYTES.min(self.bytes as usize)];
        for n in blocks {
            let Some((crc, is_verified)) = sums.crcs.get(n).zip(sums.is_verified.get(n)) else {
                break;
            };
            if is_verified.load(Ordering::Acquire) {
                continue;
            }
            let at = n * BLOCK_BYTES;
            let part = &mut buffer[..BLOCK_BYTES.min(self.bytes as usize - at)];
            file.read_exact_at(part, at as u64)
                .map_err(|e| self.explain(e))?;
            if crc32c::crc32c(part) != *crc {
                let to = at + part.len();
                return Err(self.damaged(format!(
                    "bytes {at} to {to} are not those that were written (CRC-32C)"
                )));
            }
            is_verified.store(true, Ordering::Release);
        }
        Ok(())
    }

    fn damaged(&self, problem: String) -> LakeError {
        LakeError::Damaged {
            path: self.path.clone(),
            problem,
            remedy: self.remedy.clone(),
        }
    }

    /// The error for a file that cannot be read: damage where it is missing in part.
    pub fn explain(&self, error: io::Error) -> LakeError {
        match error.kind() {
            ErrorKind::NotFound => self.damaged("it does not exist any more".into()),
            ErrorKind::UnexpectedEof => self.damaged("it is truncated".into()),
            _ if error.raw_os_error() == Some(rustix::io::Errno::IO.raw_os_error()) => {
                self.damaged(format!("it cannot be read ({error}), check the device"))
            }
            _ => LakeError::at_file(&self.path, error),
        }
    }
}

/// How to repair a damaged file of the table.
fn remedy(spec: &TableSpec, file: &FileEntry) -> String {
    match &spec.id {
        TableId::Raw => format!(
            "only it has the records {} to {}: restore it from a backup",
            file.min_lsn, file.max_lsn
        ),
        id => format!(
            "`weir rebuild {}` rebuilds the table from `raw` and the log",
            id.rebuild_name()
        ),
    }
}

/// Readers of a scan's files, which carry a [`CheckedFile`] each.
#[derive(Debug)]
pub struct CheckedReaders(pub Arc<dyn ObjectStore>);

impl ParquetFileReaderFactory for CheckedReaders {
    fn create_reader(
        &self,
        partition: usize,
        file: PartitionedFile,
        hint: Option<usize>,
        metrics: &ExecutionPlanMetricsSet,
    ) -> datafusion::error::Result<Box<dyn AsyncFileReader + Send>> {
        let store: Arc<dyn ObjectStore> = match file.extension::<CheckedFile>() {
            Some(checked) => Arc::new(CheckedStore {
                inner: self.0.clone(),
                file: checked.clone(),
            }),
            None => self.0.clone(),
        };
        DefaultParquetFileReaderFactory::new(store).create_reader(partition, file, hint, metrics)
    }
}

/// A store of which one file is read, verified first.
#[derive(Debug)]
struct CheckedStore {
    inner: Arc<dyn ObjectStore>,
    file: CheckedFile,
}

impl CheckedStore {
    async fn check(&self, range: Range<u64>) -> Result<()> {
        if self.file.unverified(&range).is_none() {
            return Ok(());
        }
        let file = self.file.clone();
        let checked = tokio::task::spawn_blocking(move || file.check(range)).await?;
        Ok(checked?)
    }
}

impl fmt::Display for CheckedStore {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "checked {}", self.inner)
    }
}

#[async_trait]
impl ObjectStore for CheckedStore {
    async fn get_opts(&self, location: &Path, options: GetOptions) -> Result<GetResult> {
        let bytes = self.file.bytes;
        let range = match &options.range {
            Some(GetRange::Bounded(range)) => range.start.min(bytes)..range.end.min(bytes),
            Some(GetRange::Offset(from)) => (*from).min(bytes)..bytes,
            Some(GetRange::Suffix(length)) => bytes.saturating_sub(*length)..bytes,
            None => 0..bytes,
        };
        if !options.head {
            self.check(range).await?;
        }
        self.inner.get_opts(location, options).await
    }

    async fn get_ranges(&self, location: &Path, ranges: &[Range<u64>]) -> Result<Vec<Bytes>> {
        for range in ranges {
            self.check(range.clone()).await?;
        }
        self.inner.get_ranges(location, ranges).await
    }

    async fn put_opts(
        &self,
        location: &Path,
        payload: PutPayload,
        options: PutOptions,
    ) -> Result<PutResult> {
        self.inner.put_opts(location, payload, options).await
    }

    async fn put_multipart_opts(
        &self,
        location: &Path,
        options: PutMultipartOptions,
    ) -> Result<Box<dyn MultipartUpload>> {
        self.inner.put_multipart_opts(location, options).await
    }

    fn delete_stream(
        &self,
        locations: BoxStream<'static, Result<Path>>,
    ) -> BoxStream<'static, Result<Path>> {
        self.inner.delete_stream(locations)
    }

    fn list(&self, prefix: Option<&Path>) -> BoxStream<'static, Result<ObjectMeta>> {
        self.inner.list(prefix)
    }

    async fn list_with_delimiter(&self, prefix: Option<&Path>) -> Result<ListResult> {
        self.inner.list_with_delimiter(prefix).await
    }

    async fn copy_opts(&self, from: &Path, to: &Path, options: CopyOptions) -> Result<()> {
        self.inner.copy_opts(from, to, options).await
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::storage::damage_in;

    #[test]
    fn a_block_is_verified_once_and_a_changed_one_is_found() {
        let folder = tempfile::tempdir().expect("a folder");
        let path = folder.path().join("f");
        let bytes: Vec<u8> = (0..2 * BLOCK_BYTES + 100)
            .map(|n| (n % 251) as u8)
            .collect();
        let mut writer = ChecksumWriter::new(fs::File::create(&path).expect("made"));
        bytes
            .chunks(70_001)
            .for_each(|part| writer.write_all(part).expect("written"));
        let text = writer.checks().to_text().expect("checksums");
        let file = |text: &str| CheckedFile {
            path: path.clone(),
            bytes: bytes.len() as u64,
            checks: BlockChecksums::from_text(text),
            remedy: "remedy".into(),
        };
        let whole = file(&text);
        whole.check(0..bytes.len() as u64).expect("as written");
        assert_eq!(whole.checks, writer.checks());
        // In the second block: found by a read of it, or of all, and not by others.
        let mut changed = bytes.clone();
        changed[BLOCK_BYTES + 5] ^= 4;
        fs::write(&path, &changed).expect("written");
        whole
            .check(0..bytes.len() as u64)
            .expect("a verified block is not read again");
        let reopened = file(&text);
        reopened.check(0..BLOCK_BYTES as u64).expect("as written");
        let found = reopened
            .check(BLOCK_BYTES as u64 - 1..BLOCK_BYTES as u64 + 1)
            .expect_err("it is found")
            .to_string();
        assert!(
            damage_in(&format!("scan: {found}\n")) == Some(&found) && found.ends_with("; remedy"),
            "{found}"
        );
        reopened
            .check(2 * BLOCK_BYTES as u64..bytes.len() as u64)
            .expect("as written");
        for (write, what) in [(Some(&bytes[..9]), "bytes"), (None, "does not exist")] {
            write
                .map_or_else(|| fs::remove_file(&path), |part| fs::write(&path, part))
                .expect("changed");
            let found = file(&text).open().expect_err("it is found").to_string();
            assert!(found.contains(what), "{found}");
        }
        assert!(file("0011223").check(0..1).is_err() && file("").check(0..1).is_err());
    }
}
