//! The local file system as Delta's object store, with what `object_store` 0.13 leaves out: a put returns when the file and its
//! name are on the disk. Without it an acknowledged commit can come back from a power cut empty, and its table opens without
//! the rows, silently.

use std::fmt;
use std::ops::Range;
use std::path::{Path as FsPath, PathBuf};
use std::sync::Arc;

use async_trait::async_trait;
use bytes::Bytes;
use futures::stream::BoxStream;
use object_store::local::LocalFileSystem;
use object_store::path::Path;
use object_store::{
    CopyOptions, GetOptions, GetResult, ListResult, MultipartUpload, ObjectMeta, ObjectStore, PutMode,
    PutMultipartOptions, PutOptions, PutPayload, PutResult, RenameOptions, Result, UploadPart,
};

use crate::storage::{create_folders, sync_folder};

#[derive(Debug)]
pub struct SyncedFiles {
    inner: Arc<LocalFileSystem>,
}

/// The whole file system; paths are absolute without the leading slash.
impl Default for SyncedFiles {
    fn default() -> Self {
        Self { inner: Arc::new(LocalFileSystem::new()) }
    }
}

impl fmt::Display for SyncedFiles {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "synced {}", self.inner)
    }
}

fn generic(source: std::io::Error) -> object_store::Error {
    object_store::Error::Generic { store: "synced files", source: Box::new(source) }
}

/// Makes a file's name durable, and those of its folders: any of them may be new.
pub fn sync_names(file: &FsPath, up_to: &FsPath) -> std::io::Result<()> {
    for folder in file.ancestors().skip(1) {
        sync_folder(folder)?;
        if folder == up_to {
            break;
        }
    }
    Ok(())
}

fn put(target: &FsPath, payload: &PutPayload, create: bool) -> std::io::Result<()> {
    use std::io::Write;
    use std::os::unix::fs::OpenOptionsExt;
    let folder = target.parent().unwrap_or(FsPath::new("/"));
    create_folders(folder)?;
    let temporary = folder.join(format!(".{:016x}.tmp", rand::random::<u64>()));
    let written = (|| {
        let mut file = std::fs::OpenOptions::new().write(true).create_new(true).mode(0o600).open(&temporary)?;
        for part in payload {
            file.write_all(part)?;
        }
        file.sync_all()?;
        if create { std::fs::hard_link(&temporary, target) } else { std::fs::rename(&temporary, target) }
    })();
    if create || written.is_err() {
        let _ = std::fs::remove_file(&temporary);
    }
    written?;
    sync_folder(folder)?;
    folder.parent().map_or(Ok(()), sync_folder)
}

#[async_trait]
impl ObjectStore for SyncedFiles {
    async fn put_opts(&self, location: &Path, payload: PutPayload, options: PutOptions) -> Result<PutResult> {
        let target = self.inner.path_to_filesystem(location)?;
        let create = match options.mode {
            PutMode::Create => true,
            PutMode::Overwrite => false,
            PutMode::Update(_) => return self.inner.put_opts(location, payload, options).await,
        };
        let path = location.to_string();
        let written = tokio::task::spawn_blocking(move || put(&target, &payload, create)).await?;
        match written {
            Ok(()) => Ok(PutResult { e_tag: None, version: None }),
            Err(source) if source.kind() == std::io::ErrorKind::AlreadyExists => {
                Err(object_store::Error::AlreadyExists { path, source: Box::new(source) })
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
        self.inner.get_opts(location, options).await
    }

    async fn get_ranges(&self, location: &Path, ranges: &[Range<u64>]) -> Result<Vec<Bytes>> {
        self.inner.get_ranges(location, ranges).await
    }

    fn delete_stream(&self, locations: BoxStream<'static, Result<Path>>) -> BoxStream<'static, Result<Path>> {
        self.inner.delete_stream(locations)
    }

    fn list(&self, prefix: Option<&Path>) -> BoxStream<'static, Result<ObjectMeta>> {
        self.inner.list(prefix)
    }

    fn list_with_offset(&self, prefix: Option<&Path>, offset: &Path) -> BoxStream<'static, Result<ObjectMeta>> {
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
