//! The local file system as Delta's object store, with what `object_store` 0.13 leaves out: a put
//! returns when the file and its name are on the disk. Without it an acknowledged commit can come
//! back from a power cut empty, and its table opens without the rows, silently.

use std::fmt;
use std::ops::Range;
use std::path::{Path as FsPath, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};

use async_trait::async_trait;
use bytes::Bytes;
use futures::stream::BoxStream;
use object_store::local::LocalFileSystem;
use object_store::path::Path;
use object_store::{
    CopyOptions, GetOptions, GetResult, ListResult, MultipartUpload, ObjectMeta, ObjectStore,
    PutMode, PutMultipartOptions, PutOptions, PutPayload, PutResult, RenameOptions, Result,
    UploadPart,
};

use super::LakeError;
use crate::storage::{create_folders, sync_folder};

/// The beginning of a commit's `commitInfo` line, and its first member here: a checksum of the whole
/// file, computed with zeros in its place. Without it, a flipped bit in a checkpoint or a number of
/// rows would go unnoticed.
const COMMIT_INFO: &str = "{\"commitInfo\":{";
const SUM: &str = "\"weirCrc32c\":\"";
const NO_SUM: &str = "00000000";

/// Suffix of the file that holds a checkpoint's checksum; its name begins with a dot, so readers of
/// Delta ignore it.
pub const CHECKPOINT_SUM: &str = ".crc32c";

/// The local file system, whose puts are durable.
#[derive(Debug)]
pub struct SyncedFiles {
    inner: Arc<LocalFileSystem>,
    /// The checkpoint that was verified last; a table is read from one.
    verified: Mutex<Option<PathBuf>>,
}

/// The whole file system; paths are absolute without the leading slash.
impl Default for SyncedFiles {
    fn default() -> Self {
        Self {
            inner: Arc::new(LocalFileSystem::new()),
            verified: Mutex::default(),
        }
    }
}

impl fmt::Display for SyncedFiles {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "synced {}", self.inner)
    }
}

fn generic(source: std::io::Error) -> object_store::Error {
    object_store::Error::Generic {
        store: "synced files",
        source: Box::new(source),
    }
}

/// Whether this is a version's file in a Delta log.
fn is_commit(path: &FsPath) -> bool {
    let is_version = |name: &str| {
        name.len() == 25
            && name.ends_with(".json")
            && name[..20].bytes().all(|b| b.is_ascii_digit())
    };
    path.parent()
        .is_some_and(|folder| folder.ends_with("_delta_log"))
        && path
            .file_name()
            .and_then(|name| name.to_str())
            .is_some_and(is_version)
}

/// Where the checksum of a commit is, or would be.
fn sum_at(commit: &[u8]) -> Option<usize> {
    memchr::memmem::find(commit, COMMIT_INFO.as_bytes()).map(|at| at + COMMIT_INFO.len())
}

/// A commit with its checksum.
fn with_sum(payload: PutPayload) -> PutPayload {
    let mut commit: Vec<u8> = payload
        .iter()
        .flat_map(|part| part.iter().copied())
        .collect();
    let Some(at) = sum_at(&commit).filter(|at| commit.get(*at) == Some(&b'"')) else {
        return payload;
    };
    commit.splice(at..at, format!("{SUM}{NO_SUM}\",").into_bytes());
    let sum = format!("{:08x}", crc32c::crc32c(&commit));
    commit[at + SUM.len()..][..sum.len()].copy_from_slice(sum.as_bytes());
    commit.into()
}

/// What is wrong with a commit's bytes, if anything. One without a checksum is older than checksums.
fn wrong_sum(commit: &[u8]) -> Option<&'static str> {
    let Some(at) = sum_at(commit) else {
        return Some("it is not a commit, it was truncated or emptied");
    };
    let rest = commit[at..].strip_prefix(SUM.as_bytes())?;
    let mut zeroed = commit.to_vec();
    zeroed[at + SUM.len()..]
        .iter_mut()
        .take(NO_SUM.len())
        .for_each(|byte| *byte = b'0');
    let sum = format!("{:08x}", crc32c::crc32c(&zeroed));
    (!rest.starts_with(sum.as_bytes()))
        .then_some("its bytes are not those that were written (CRC-32C)")
}

fn damaged(path: &FsPath, problem: &str, remedy: String) -> object_store::Error {
    LakeError::Damaged {
        path: path.to_owned(),
        problem: problem.to_owned(),
        remedy: remedy.into(),
    }
    .into()
}

fn check_commit(path: &FsPath) -> Result<()> {
    // The store reports a missing file.
    let Ok(commit) = std::fs::read(path) else {
        return Ok(());
    };
    let Some(what) = wrong_sum(&commit) else {
        return Ok(());
    };
    let table = path
        .parent()
        .and_then(FsPath::parent)
        .unwrap_or(path)
        .display();
    let remedy = format!("restore the folder {table} from a backup of the whole data folder");
    Err(damaged(path, what, remedy))
}

/// Whether this is a checkpoint in a single file in a Delta log.
fn is_checkpoint(path: &FsPath) -> bool {
    let name = path.file_name().and_then(|name| name.to_str());
    path.parent()
        .is_some_and(|folder| folder.ends_with("_delta_log"))
        && name.is_some_and(|name| name.ends_with(".checkpoint.parquet"))
}

fn checkpoint_sum(checkpoint: &FsPath) -> PathBuf {
    let name = checkpoint.file_name().unwrap_or_default().to_string_lossy();
    checkpoint.with_file_name(format!(".{name}{CHECKPOINT_SUM}"))
}

fn sum_of(file: &FsPath) -> std::io::Result<String> {
    let mut file = std::fs::File::open(file)?;
    let (mut sum, mut piece) = (0, vec![0; 256 << 10]);
    loop {
        match std::io::Read::read(&mut file, &mut piece)? {
            0 => return Ok(format!("{sum:08x}")),
            read => sum = crc32c::crc32c_append(sum, &piece[..read]),
        }
    }
}

/// Writes the checksum of a checkpoint next to it, and removes those of removed checkpoints.
pub fn add_checkpoint_sum(checkpoint: &FsPath) -> std::io::Result<()> {
    put(
        &checkpoint_sum(checkpoint),
        &sum_of(checkpoint)?.into(),
        false,
    )?;
    let folder = checkpoint.parent().unwrap_or(FsPath::new("/"));
    for entry in std::fs::read_dir(folder)? {
        let entry = entry?;
        let name = entry.file_name();
        let summed = name
            .to_str()
            .and_then(|name| name.strip_prefix('.')?.strip_suffix(CHECKPOINT_SUM));
        if summed.is_some_and(|checkpoint| !folder.join(checkpoint).exists()) {
            std::fs::remove_file(entry.path())?;
        }
    }
    Ok(())
}

/// An error where a checkpoint is damaged. One without a checksum was written by another writer, or
/// just before a crash.
fn check_checkpoint(path: &FsPath) -> Result<()> {
    let (Ok(written), Ok(found)) = (std::fs::read_to_string(checkpoint_sum(path)), sum_of(path))
    else {
        return Ok(());
    };
    if written.trim() == found {
        return Ok(());
    }
    let what = "its bytes are not those that were written (CRC-32C)";
    let table = path
        .parent()
        .and_then(FsPath::parent)
        .unwrap_or(path)
        .display();
    // Without an older checkpoint or the first commit, the remaining commits would be read as if
    // they were all.
    let remedy = if has_predecessor(path) {
        "move it and _last_checkpoint away, then the table is read from older entries"
    } else {
        "restore it from a backup of the whole data folder"
    };
    let remedy = format!(
        "{remedy} (table {table}; if another program has written it, remove {})",
        checkpoint_sum(path).display()
    );
    Err(damaged(path, what, remedy))
}

/// Whether a table can be read without this checkpoint.
fn has_predecessor(checkpoint: &FsPath) -> bool {
    let Some(folder) = checkpoint.parent() else {
        return false;
    };
    let is_older = |entry: std::fs::DirEntry| {
        is_checkpoint(&entry.path())
            && entry.file_name() < *checkpoint.file_name().unwrap_or_default()
    };
    folder.join(format!("{:020}.json", 0)).exists()
        || std::fs::read_dir(folder)
            .is_ok_and(|mut entries| entries.any(|entry| entry.is_ok_and(is_older)))
}

fn put(target: &FsPath, payload: &PutPayload, create: bool) -> std::io::Result<()> {
    use std::io::Write;
    use std::os::unix::fs::OpenOptionsExt;
    let folder = target.parent().unwrap_or(FsPath::new("/"));
    create_folders(folder)?;
    let temporary = folder.join(format!(".{:016x}.tmp", rand::random::<u64>()));
    let written = (|| {
        let mut file = std::fs::OpenOptions::new()
            .write(true)
            .create_new(true)
            .mode(0o600)
            .open(&temporary)?;
        for part in payload {
            file.write_all(part)?;
        }
        file.sync_all()?;
        if create {
            std::fs::hard_link(&temporary, target)
        } else {
            std::fs::rename(&temporary, target)
        }
    })();
    if create || written.is_err() {
        let _ = std::fs::remove_file(&temporary);
    }
    written?;
    sync_folder(folder)?;
    folder.parent().map_or(Ok(()), sync_folder)
}

impl SyncedFiles {
    /// Verifies a checkpoint before it is first read.
    async fn verify_first(&self, path: PathBuf) -> Result<()> {
        let last_verified = || self.verified.lock().unwrap_or_else(PoisonError::into_inner);
        if !is_checkpoint(&path) || last_verified().as_ref() == Some(&path) {
            return Ok(());
        }
        let path =
            tokio::task::spawn_blocking(move || check_checkpoint(&path).map(|()| path)).await??;
        *last_verified() = Some(path);
        Ok(())
    }
}

#[async_trait]
impl ObjectStore for SyncedFiles {
    async fn put_opts(
        &self,
        location: &Path,
        payload: PutPayload,
        options: PutOptions,
    ) -> Result<PutResult> {
        let target = self.inner.path_to_filesystem(location)?;
        let create = match options.mode {
            PutMode::Create => true,
            PutMode::Overwrite => false,
            PutMode::Update(_) => return self.inner.put_opts(location, payload, options).await,
        };
        let path = location.to_string();
        let payload = if is_commit(&target) {
            with_sum(payload)
        } else {
            payload
        };
        let written = tokio::task::spawn_blocking(move || put(&target, &payload, create)).await?;
        match written {
            Ok(()) => Ok(PutResult {
                e_tag: None,
                version: None,
            }),
            Err(source) if source.kind() == std::io::ErrorKind::AlreadyExists => {
                Err(object_store::Error::AlreadyExists {
                    path,
                    source: Box::new(source),
                })
            }
            Err(source) => Err(generic(source)),
        }
    }

    async fn put_multipart_opts(
        &self,
        location: &Path,
        options: PutMultipartOptions,
    ) -> Result<Box<dyn MultipartUpload>> {
        let target = self.inner.path_to_filesystem(location)?;
        let inner = self.inner.put_multipart_opts(location, options).await?;
        Ok(Box::new(SyncedUpload { inner, target }))
    }

    async fn get_opts(&self, location: &Path, options: GetOptions) -> Result<GetResult> {
        let path = self.inner.path_to_filesystem(location)?;
        if is_commit(&path) && !options.head {
            tokio::task::spawn_blocking(move || check_commit(&path)).await??;
        } else if !options.head {
            self.verify_first(path).await?;
        }
        self.inner.get_opts(location, options).await
    }

    async fn get_ranges(&self, location: &Path, ranges: &[Range<u64>]) -> Result<Vec<Bytes>> {
        self.verify_first(self.inner.path_to_filesystem(location)?)
            .await?;
        self.inner.get_ranges(location, ranges).await
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

    fn list_with_offset(
        &self,
        prefix: Option<&Path>,
        offset: &Path,
    ) -> BoxStream<'static, Result<ObjectMeta>> {
        self.inner.list_with_offset(prefix, offset)
    }

    async fn list_with_delimiter(&self, prefix: Option<&Path>) -> Result<ListResult> {
        self.inner.list_with_delimiter(prefix).await
    }

    async fn copy_opts(&self, from: &Path, to: &Path, options: CopyOptions) -> Result<()> {
        self.inner.copy_opts(from, to, options).await
    }

    async fn rename_opts(&self, from: &Path, to: &Path, options: RenameOptions) -> Result<()> {
        self.inner.rename_opts(from, to, options).await
    }
}

#[derive(Debug)]
struct SyncedUpload {
    inner: Box<dyn MultipartUpload>,
    target: PathBuf,
}

#[async_trait]
impl MultipartUpload for SyncedUpload {
    fn put_part(&mut self, data: PutPayload) -> UploadPart {
        self.inner.put_part(data)
    }

    async fn complete(&mut self) -> Result<PutResult> {
        let done = self.inner.complete().await?;
        let target = self.target.clone();
        tokio::task::spawn_blocking(move || {
            std::fs::File::open(&target)?.sync_all()?;
            target.parent().map_or(Ok(()), sync_folder)
        })
        .await?
        .map_err(generic)?;
        Ok(done)
    }

    async fn abort(&mut self) -> Result<()> {
        self.inner.abort().await
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_commit_carries_a_checksum_and_any_flipped_bit_of_it_is_found() {
        let plain = "{\"add\":{\"path\":\"a\"}}\n{\"commitInfo\":{\"operation\":\"WRITE\"}}\n";
        assert_eq!(
            wrong_sum(plain.as_bytes()),
            None,
            "it is older than checksums"
        );
        let summed: Vec<u8> = with_sum(plain.into())
            .iter()
            .flat_map(|part| part.to_vec())
            .collect();
        let info: serde_json::Value =
            serde_json::from_slice(summed.split(|b| *b == b'\n').nth(1).expect("a line"))
                .expect("JSON");
        assert_eq!(info["commitInfo"]["operation"], "WRITE");
        assert_eq!(wrong_sum(&summed), None);
        let marker = sum_at(&summed).expect("a checksum");
        for at in 0..summed.len() {
            let mut flipped = summed.clone();
            flipped[at] ^= 1 << (at % 7);
            // A flipped bit in the member's name hides the checksum.
            let is_member = (marker..marker + SUM.len()).contains(&at);
            assert!(wrong_sum(&flipped).is_some() || is_member, "byte {at}");
        }
        assert!(wrong_sum(&summed[..summed.len() - 3]).is_some() && wrong_sum(b"").is_some());
        assert!(is_commit(FsPath::new(
            "/d/lake/raw/_delta_log/00000000000000000012.json"
        )));
        assert!(!is_commit(FsPath::new(
            "/d/lake/raw/_delta_log/_last_checkpoint"
        )));
    }
}
