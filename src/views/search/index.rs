//! A stream's search index: a sequence of tantivy indexes, rolled by number of documents or bytes.
//! The checkpoint is in the payload of the last commit.

use std::fs::File;
use std::io::ErrorKind;
use std::path::{Path, PathBuf};
use std::sync::{PoisonError, RwLock};

use tantivy::schema::Schema;
use tantivy::{Index, TantivyError};

use super::errors::{damaged_index, index_error};
use super::format::{self, Fields, FormatCheck, META, Payload, VERSION, check_format};
use super::part::{Part, PartSearcher, latest, open_part, part_folder};
use crate::event::{Lsn, Micros};
use crate::schema::SearchDef;
use crate::storage::{create_folders, sync_folder};
use crate::views::{InView, LogIdentity, ViewError};

/// Tantivy's list of the files that it may remove.
const MANAGED: &str = ".managed.json";
/// Prefix of the name of an index that is being removed.
const REMOVED_PREFIX: &str = "gone-";
/// Commits that may come while the files of an index are opened.
const MAX_RETRIES: usize = 50;

/// All indexes of a stream, oldest first.
pub struct SearchIndex {
    /// The folder of all of them; its name is the stream's.
    pub folder: PathBuf,
    /// What the configuration declares.
    pub def: SearchDef,
    /// The same for tantivy.
    pub schema: Schema,
    pub fields: Fields,
    parts: RwLock<Vec<Part>>,
    /// Everything up to here can be found.
    visible: RwLock<Lsn>,
}

impl SearchIndex {
    /// Opens the indexes of a stream. `None` if there are none and `writable` is false.
    pub fn open(folder: &Path, def: &SearchDef, writable: bool) -> Result<Option<Self>, ViewError> {
        let (schema, fields) = format::schema(def);
        let failed = |error: std::io::Error| index_error(folder)(error.into());
        if !writable && !folder.is_dir() {
            return Ok(None);
        }
        if writable {
            create_folders(folder).map_err(failed)?;
            remove_leftovers(folder).map_err(failed)?;
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
        let open = |n| {
            open_part(folder, n, &schema, writable).map_err(index_error(&part_folder(folder, n)))
        };
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

    /// The committed files, opened so that a merge cannot take them away: path below the stream's
    /// folder, and file.
    pub fn committed_files(&self) -> Result<Vec<(PathBuf, File)>, ViewError> {
        let mut files = Vec::new();
        for part in self.parts().iter() {
            files.extend(self.open_files(part)?);
        }
        Ok(files)
    }

    fn open_files(&self, part: &Part) -> Result<Vec<(PathBuf, File)>, ViewError> {
        let view = &self.folder.display().to_string();
        let folder = part_folder(&self.folder, part.number);
        let read_meta = || std::fs::read(folder.join(META)).in_view(view);
        for _ in 0..MAX_RETRIES {
            let before = read_meta()?;
            let metas = part.index.load_metas().in_view(view)?;
            let segments: Vec<String> = metas
                .segments
                .iter()
                .map(|segment| segment.id().uuid_string())
                .collect();
            let mut files = Vec::new();
            for entry in std::fs::read_dir(&folder).in_view(view)? {
                let name = entry.in_view(view)?.file_name();
                let name = name.to_string_lossy().into_owned();
                let is_listed = segments
                    .iter()
                    .any(|s| name.starts_with(s.as_str()) && !name.ends_with(".temp"));
                if !(is_listed || name == META || name == MANAGED) {
                    continue;
                }
                match File::open(folder.join(&name)) {
                    Ok(file) => files.push((
                        Path::new(folder.file_name().unwrap_or_default()).join(name),
                        file,
                    )),
                    // A merge has removed it, and changed `meta.json` before.
                    Err(error) if error.kind() == ErrorKind::NotFound => {}
                    Err(error) => return Err(error).in_view(view),
                }
            }
            // No file is removed while `meta.json` lists it.
            if read_meta()? == before {
                return Ok(files);
            }
        }
        let reason =
            format!("commits came faster than its files could be opened, {MAX_RETRIES} times");
        Err(reason).in_view(view)
    }

    /// The committed checkpoint in this log; an error where it belongs to another one.
    pub fn checkpoint(&self, log: LogIdentity) -> Result<Lsn, ViewError> {
        for part in self.parts().iter().rev() {
            let folder = part_folder(&self.folder, part.number);
            let metas = part.index.load_metas().map_err(index_error(&folder))?;
            let Some(text) = metas.payload else { continue };
            let damaged = |what: &str| damaged_index(&folder, &folder.join(META), what);
            let payload: Payload =
                serde_json::from_str(&text).map_err(|e| damaged(&e.to_string()))?;
            if !payload.is_intact() {
                return Err(damaged("its checkpoint is not the one that was written"));
            }
            if payload.version > VERSION {
                let what = format!("search format {}", payload.version);
                return Err(ViewError::Newer {
                    path: self.folder.clone(),
                    what,
                });
            }
            if payload.log != log.id {
                let reason = format!(
                    "belongs to log {:x}, this one is {:x}; restore log and views from one backup",
                    payload.log, log.id
                );
                return Err(ViewError::Damaged {
                    path: self.folder.clone(),
                    reason,
                });
            }
            return Ok(payload.checkpoint);
        }
        Ok(log.start_lsn)
    }

    /// The newest index, the one that is written to, and its number.
    pub fn last(&self) -> (Index, usize) {
        let parts = self.parts();
        let last = parts.last().expect("a writable index has a part");
        (last.index.clone(), last.number)
    }

    /// Makes the renames of earlier commits durable: their sync may have failed.
    pub(super) fn sync_folders(&self) -> Result<(), ViewError> {
        for part in self.parts().iter() {
            sync_folder(&part_folder(&self.folder, part.number))
                .map_err(|e| index_error(&self.folder)(e.into()))?;
        }
        Ok(())
    }

    /// Bytes of the files of an index.
    pub(super) fn part_bytes(&self, number: usize) -> u64 {
        let entries = std::fs::read_dir(part_folder(&self.folder, number))
            .into_iter()
            .flatten();
        entries
            .filter_map(|entry| Some(entry.ok()?.metadata().ok()?.len()))
            .sum()
    }

    /// Starts another index after the others.
    pub(super) fn roll(&self) -> Result<(), TantivyError> {
        let mut parts = self.parts.write().unwrap_or_else(PoisonError::into_inner);
        let number = parts.last().map_or(0, |last| last.number + 1);
        parts.push(open_part(&self.folder, number, &self.schema, true)?);
        Ok(())
    }

    /// Removes the indexes whose events are all before `floor`, except those from the one that has
    /// the checkpoint on. Returns how many.
    pub fn drop_below(&self, floor: Micros) -> Result<usize, ViewError> {
        let view = &self.folder.display().to_string();
        let mut dropped = Vec::new();
        {
            let mut parts = self.parts.write().unwrap_or_else(PoisonError::into_inner);
            let with_checkpoint = parts
                .iter()
                .rposition(|p| p.index.load_metas().is_ok_and(|m| m.payload.is_some()));
            let end = with_checkpoint.unwrap_or(0);
            for at in (0..end).rev() {
                if latest(&parts[at].searcher.searcher)
                    .in_view(view)?
                    .is_none_or(|t| t < floor)
                {
                    dropped.push(parts.remove(at));
                }
            }
        }
        let removed = dropped.iter().try_for_each(|part| {
            // Renamed first: half removed, it must not be opened as an index.
            let (folder, renamed) = (
                part_folder(&self.folder, part.number),
                self.folder.join(format!("{REMOVED_PREFIX}{}", part.number)),
            );
            std::fs::rename(&folder, &renamed)?;
            sync_folder(&self.folder)?;
            std::fs::remove_dir_all(renamed)
        });
        removed.in_view(view)?;
        Ok(dropped.len())
    }

    /// Makes what is committed visible, up to `checkpoint`.
    pub(super) fn reload(&self, checkpoint: Lsn) -> Result<(), TantivyError> {
        let last = self
            .parts()
            .last()
            .map(|part| (part.number, part.reader.clone(), part.searcher.clone()));
        // Before anything is locked: a large new segment takes a moment.
        let reloaded = match last {
            Some((number, reader, searcher)) => Some((number, searcher.reload(&reader)?)),
            None => None,
        };
        let mut visible = self.visible.write().unwrap_or_else(PoisonError::into_inner);
        let mut parts = self.parts.write().unwrap_or_else(PoisonError::into_inner);
        if let Some((number, searcher)) = reloaded
            && let Some(part) = parts.iter_mut().find(|part| part.number == number)
        {
            part.searcher = searcher;
        }
        *visible = checkpoint;
        Ok(())
    }

    /// Publishes that everything up to here can be found: no document below it is uncommitted.
    pub fn set_visible(&self, checkpoint: Lsn) {
        *self.visible.write().unwrap_or_else(PoisonError::into_inner) = checkpoint;
    }

    /// Everything up to here can be found.
    pub fn visible(&self) -> Lsn {
        *self.visible.read().unwrap_or_else(PoisonError::into_inner)
    }

    /// Searchers over all indexes, and the checkpoint that they reach.
    pub fn searchers(&self) -> (Vec<PartSearcher>, Lsn) {
        let visible = self.visible.read().unwrap_or_else(PoisonError::into_inner);
        (
            self.parts()
                .iter()
                .map(|part| part.searcher.clone())
                .collect(),
            *visible,
        )
    }
}

/// Removes what a crash left of indexes that were being removed.
fn remove_leftovers(folder: &Path) -> std::io::Result<()> {
    for entry in std::fs::read_dir(folder)? {
        let entry = entry?;
        if entry
            .file_name()
            .to_string_lossy()
            .starts_with(REMOVED_PREFIX)
        {
            std::fs::remove_dir_all(entry.path())?;
        }
    }
    Ok(())
}
