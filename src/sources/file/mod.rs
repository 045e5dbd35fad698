//! Files: NDJSON, a JSON array, either gzipped; a folder of them.
//!
//! A file is known by its beginning and its inode, else its path, so that it is read once also when it is renamed. Each record
//! is taken exactly once: the position that a frame carries is where reading goes on.

mod content;
pub(super) mod frame;

use std::collections::{BTreeMap, HashSet};
use std::fs::File;
use std::io::{self, Read};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::time::Duration;

use super::lines::{Item, Reader};
use super::{Context, SourceError, message};
use crate::operators::PartitionState;
use crate::wal::{FileIdentity, Kind};
use content::{Input, is_gzip, open_at, plain};
use frame::{FrameBuilder, InFlight};

const HEAD_BYTES: u64 = 1 << 10;
/// How often a file that was read to its end is looked at again.
const POLL: Duration = Duration::from_millis(200);

/// Reads a file, the files of a folder, until asked to stop; with `once`, to the end of what is there.
pub fn run(context: &Context, path: &Path) -> Result<(), SourceError> {
    let mut open: Vec<OpenFile> = Vec::new();
    let mut known: HashSet<(PathBuf, u64)> = HashSet::new();
    let mut read: BTreeMap<String, PartitionState> = context.partitions.iter().cloned().collect();
    let mut in_flight = InFlight::default();
    loop {
        let there = files_in(path)?;
        // A file that is gone, or replaced under its name, is not read through that name any more.
        open.retain(|file| there.contains(&(file.path.clone(), file.inode)));
        known.retain(|file| there.contains(file));
        for (path, inode) in there {
            if known.insert((path.clone(), inode)) {
                let file = OpenFile::open(&path, inode, &read)?;
                open.push(file);
            }
        }
        let mut is_busy = false;
        for file in &mut open {
            is_busy |= file.read_on(context, &mut in_flight)?;
            // What is known of it now decides whether a file that appears later is the same one.
            read.insert(file.partition.clone(), file.state());
        }
        in_flight.settle()?;
        if context.stop.is_asked() || context.once && !is_busy {
            return Ok(());
        }
        if !is_busy && context.stop.wait(POLL) {
            return Ok(());
        }
    }
}

/// The path itself, or the files of the folder it names, by name; hidden ones are passed over.
fn files_in(path: &Path) -> Result<Vec<(PathBuf, u64)>, SourceError> {
    let wrong = |source| SourceError::Io { path: path.display().to_string(), source };
    let metadata = match std::fs::metadata(path) {
        // Being replaced: it is looked for again.
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
        metadata => metadata.map_err(wrong)?,
    };
    if !metadata.is_dir() {
        return Ok(vec![(path.to_owned(), metadata.ino())]);
    }
    let mut files = Vec::new();
    for entry in std::fs::read_dir(path).map_err(wrong)? {
        let entry = entry.map_err(wrong)?;
        let metadata = entry.metadata().map_err(wrong)?;
        if metadata.is_file() && !entry.file_name().to_string_lossy().starts_with('.') {
            files.push((entry.path(), metadata.ino()));
        }
    }
    files.sort();
    Ok(files)
}

struct OpenFile {
    label: String,
    partition: String,
    path: PathBuf,
    inode: u64,
    head: Vec<u8>,
    reader: Option<Reader<Input>>,
    next_position: u64,
    cut_line: Option<(u64, u64)>,
    /// Something was taken since the last end was noted.
    is_moved: bool,
}

impl OpenFile {
    fn open(path: &Path, inode: u64, read: &BTreeMap<String, PartitionState>) -> Result<Self, SourceError> {
        let label = path.display().to_string();
        let wrong = |source| SourceError::Io { path: label.clone(), source };
        let mut head = Vec::new();
        plain(path).map_err(wrong)?.take(HEAD_BYTES).read_to_end(&mut head).map_err(wrong)?;
        let known: Vec<(String, PartitionState)> = read.iter().map(|(p, s)| (p.clone(), s.clone())).collect();
        let found = recognise(&known, &label, inode, &head);

        let (partition, state) = match found {
            Some((partition, state)) => (partition.clone(), state.clone()),
            None => (format!("{label}@{inode}"), PartitionState::default()),
        };
        Ok(Self {
            label,
            partition,
            path: path.to_owned(),
            inode,
            head,
            reader: None,
            next_position: state.next_position,
            cut_line: state.cut_line,
            is_moved: false,
        })
    }

    /// What is known of it, as the log knows it after the frames sent so far.
    fn state(&self) -> PartitionState {
        PartitionState {
            next_position: self.next_position,
            file: Some(self.identity(self.next_position)),
            received_at: 0,
            cut_line: self.cut_line,
            cut_lsns: Vec::new(),
        }
    }

    fn identity(&self, read: u64) -> FileIdentity {
        let head = (self.head.len() as u64).min(read).min(HEAD_BYTES);
        FileIdentity { inode: self.inode, head, crc: crc32c::crc32c(&self.head[..head as usize]) }
    }

    /// Takes what is there; true if that was something.
    fn read_on(&mut self, context: &Context, in_flight: &mut InFlight) -> Result<bool, SourceError> {
        self.check_size()?;
        let mut frame = FrameBuilder::new(self.next_position);
        let mut is_busy = false;
        let mut cut = None;
        while !context.stop.is_asked() {
            let Some(item) = self.next_item(context)? else { break };
            if !item.is_terminated && !message::is_whole(&item.bytes) {
                cut = Some(item);
                break;
            }
            is_busy = true;
            frame.push(&item, context);
            self.next_position = item.end;
            if frame.is_full() {
                let full = std::mem::replace(&mut frame, FrameBuilder::with_room(self.next_position));
                self.submit(context, in_flight, full, self.next_position)?;
            }
        }
        if !frame.is_empty() {
            self.submit(context, in_flight, frame, self.next_position)?;
        }
        if let Some(item) = cut {
            self.tell_cut_line(context, in_flight, &item)?;
        }
        if context.once && std::mem::take(&mut self.is_moved) {
            let mut end = FrameBuilder::new(self.next_position);
            end.add_payload();
            let file = Some(self.identity(self.next_position));
            let end = end.submission(context, Kind::End, &self.partition, self.next_position, file);
            in_flight.submit(context, end)?;
        }
        Ok(is_busy)
    }

    /// An end without its newline waits for the rest. A run that ends tells it as a dead letter, once, and stays before it.
    fn tell_cut_line(&mut self, context: &Context, in_flight: &mut InFlight, item: &Item) -> Result<(), SourceError> {
        // Only a fresh read sees the rest of it.
        self.reader = None;
        let told = Some((item.start, item.length));
        if !context.once || self.cut_line == told {
            return Ok(());
        }
        let mut frame = FrameBuilder::new(item.start);
        if item.length > context.record_bytes as u64 {
            frame.push(item, context);
        } else {
            frame.add(item.start, &item.bytes);
        }
        self.submit(context, in_flight, frame, item.start)?;
        self.cut_line = told;
        Ok(())
    }

    fn next_item(&mut self, context: &Context) -> Result<Option<Item>, SourceError> {
        let wrong = |source| SourceError::Io { path: self.label.clone(), source };
        if self.reader.is_none() {
            let input = open_at(&self.path, self.next_position).map_err(wrong)?;
            let (head, unwrap) = (&self.head[..], context.unwrap.as_deref());
            self.reader = Some(Reader::new(input, self.next_position, head, unwrap, context.record_bytes + 1));
        }
        let item = match &mut self.reader {
            Some(reader) => reader.next_item().map_err(wrong)?,
            None => None,
        };
        if item.is_none() {
            self.reader = None;
        }
        Ok(item)
    }

    fn check_size(&mut self) -> Result<(), SourceError> {
        let path = &self.path;
        let wrong = |source| SourceError::Io { path: self.label.clone(), source };
        let size = std::fs::metadata(path).map_err(wrong)?.len();
        if is_gzip(path) {
            return Ok(());
        }
        if size < self.next_position {
            return Err(SourceError::Shrunk { path: self.label.clone(), size, read: self.next_position });
        }
        if (self.head.len() as u64) < HEAD_BYTES.min(size) {
            self.head.clear();
            let mut file = File::open(path).map_err(wrong)?.take(HEAD_BYTES);
            file.read_to_end(&mut self.head).map_err(wrong)?;
        }
        Ok(())
    }

    fn submit(
        &mut self,
        context: &Context,
        in_flight: &mut InFlight,
        frame: FrameBuilder,
        next: u64,
    ) -> Result<(), SourceError> {
        let file = Some(self.identity(next));
        self.is_moved = true;
        in_flight.submit(context, frame.submission(context, Kind::Record, &self.partition, next, file))
    }
}

/// The partition that was read from this file before: same beginning and inode, else same beginning and path.
fn recognise<'a>(
    known: &'a [(String, PartitionState)],
    label: &str,
    inode: u64,
    head: &[u8],
) -> Option<&'a (String, PartitionState)> {
    let begins_alike = |state: &PartitionState| {
        state.file.is_some_and(|f| head.get(..f.head as usize).is_some_and(|start| crc32c::crc32c(start) == f.crc))
    };
    let of_path = |partition: &str| partition.rsplit_once('@').is_some_and(|(path, _)| path == label);
    known
        .iter()
        .find(|(_, s)| s.file.is_some_and(|f| f.inode == inode) && begins_alike(s))
        .or_else(|| known.iter().find(|(p, s)| of_path(p) && begins_alike(s)))
        // A file that lost its beginning under the same name and inode: its position tells that it became shorter.
        .or_else(|| {
            known
                .iter()
                .find(|(p, s)| of_path(p) && s.file.is_some_and(|f| f.inode == inode && f.head > head.len() as u64))
        })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_file_is_recognised_by_its_beginning_and_inode_or_path() {
        let state = |inode, head: &[u8]| PartitionState {
            next_position: head.len() as u64,
            file: Some(FileIdentity { inode, head: head.len() as u64, crc: crc32c::crc32c(head) }),
            ..PartitionState::default()
        };
        let known = [("a@1".to_owned(), state(1, b"one")), ("b@2".to_owned(), state(2, b"two"))];
        let found = |label, inode, head: &[u8]| recognise(&known, label, inode, head).map(|(p, _)| p.as_str());
        assert_eq!(found("renamed", 1, b"one and more"), Some("a@1"));
        assert_eq!(found("b", 9, b"two and more"), Some("b@2"));
        assert_eq!(found("a", 1, b"another beginning"), None);
        assert_eq!(found("a", 1, b"on"), Some("a@1"));
        assert_eq!(found("c", 9, b"one"), None);
    }
}
