//! Files: NDJSON, a JSON array, either gzipped; a folder of them; standard input.
//!
//! A file is known by its beginning and its inode, else its path, so that it is read once also when it is renamed. Each record
//! is taken exactly once: the position that a frame carries is where reading goes on.

use std::collections::{BTreeMap, HashSet, VecDeque};
use std::fs::File;
use std::io::{self, BufRead, BufReader, Read, Seek, SeekFrom};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::time::Duration;

use flate2::bufread::MultiGzDecoder;

use super::lines::{Item, Layout, Reader};
use super::{Context, SourceError, message};
use crate::ingest::{Receipt, Submission};
use crate::operators::PartitionState;
use crate::wal::{About, FileIdentity, Kind, RecordsBuilder};

/// Bytes and records that make a frame.
const FRAME_BYTES: usize = 1 << 20;
const FRAME_RECORDS: usize = 1_024;
/// Frames on their way to the disk before the source waits for the first.
const IN_FLIGHT: usize = 8;
const HEAD_BYTES: u64 = 1 << 10;
const READ_BYTES: usize = 256 << 10;
/// How often a file that was read to its end is looked at again.
const POLL: Duration = Duration::from_millis(200);

/// Reads a file, the files of a folder, or `-`, until asked to stop; with `once`, to the end of what is there.
pub fn run(context: &Context, path: &Path) -> Result<(), SourceError> {
    if path == Path::new("-") {
        let input = BufReader::with_capacity(READ_BYTES, io::stdin());
        let mut file = OpenFile::stdin(input);
        return file.read_on(context).map(drop);
    }
    let mut open: Vec<OpenFile> = Vec::new();
    let mut known: HashSet<(PathBuf, u64)> = HashSet::new();
    let mut read: BTreeMap<String, PartitionState> = context.partitions.iter().cloned().collect();
    loop {
        let there = files_in(path)?;
        // A file that is gone, or replaced under its name, is not read through that name any more.
        open.retain(|file| file.path.as_ref().is_some_and(|p| there.contains(&(p.clone(), file.inode))));
        known.retain(|file| there.contains(file));
        for (path, inode) in there {
            if known.insert((path.clone(), inode)) {
                let file = OpenFile::open(&path, inode, &read)?;
                open.push(file);
            }
        }
        let mut is_busy = false;
        for file in &mut open {
            is_busy |= file.read_on(context)?;
            // What is known of it now decides whether a file that appears later is the same one.
            read.insert(file.partition.clone(), file.state());
        }
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

type Input = BufReader<Box<dyn Read + Send>>;

struct OpenFile {
    label: String,
    partition: String,
    /// None for standard input, which cannot be read again.
    path: Option<PathBuf>,
    inode: u64,
    head: Vec<u8>,
    reader: Option<Reader<Input>>,
    next_position: u64,
    cut_line: Option<(u64, u64)>,
    in_flight: VecDeque<Receipt>,
    /// Something was taken since the last end was noted.
    is_moved: bool,
}

impl OpenFile {
    fn stdin(input: BufReader<io::Stdin>) -> Self {
        let boxed: Box<dyn Read + Send> = Box::new(input);
        let mut input: Input = BufReader::with_capacity(READ_BYTES, boxed);
        let layout = input.fill_buf().map_or(Layout::Lines, layout_of);
        Self {
            label: "standard input".into(),
            partition: "stdin".into(),
            path: None,
            inode: 0,
            head: Vec::new(),
            reader: Some(Reader::new(input, layout, 0, usize::MAX)),
            next_position: 0,
            cut_line: None,
            in_flight: VecDeque::new(),
            is_moved: false,
        }
    }

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
            path: Some(path.to_owned()),
            inode,
            head,
            reader: None,
            next_position: state.next_position,
            cut_line: state.cut_line,
            in_flight: VecDeque::new(),
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
    fn read_on(&mut self, context: &Context) -> Result<bool, SourceError> {
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
                self.submit(context, full, self.next_position)?;
            }
        }
        if !frame.records.is_empty() {
            self.submit(context, frame, self.next_position)?;
        }
        if let Some(item) = cut {
            self.tell_cut_line(context, &item)?;
        }
        while self.in_flight.front().is_some() {
            self.wait_for_oldest()?;
        }
        if context.once && std::mem::take(&mut self.is_moved) {
            let mut end = FrameBuilder::new(self.next_position);
            end.records.push(b"");
            let receipt = context.ingest.submit(self.submission(context, Kind::End, end, self.next_position), true)?;
            receipt.wait()?;
        }
        Ok(is_busy)
    }

    /// An end without its newline waits for the rest. A run that ends tells it as a dead letter, once, and stays before it.
    fn tell_cut_line(&mut self, context: &Context, item: &Item) -> Result<(), SourceError> {
        // Only a fresh read sees the rest of it.
        self.reader = if self.path.is_some() { None } else { self.reader.take() };
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
        self.submit(context, frame, item.start)?;
        self.cut_line = told;
        Ok(())
    }

    fn next_item(&mut self, context: &Context) -> Result<Option<Item>, SourceError> {
        let wrong = |source| SourceError::Io { path: self.label.clone(), source };
        if self.reader.is_none() {
            let Some(path) = &self.path else { return Ok(None) };
            let input = open_at(path, self.next_position).map_err(wrong)?;
            let layout = layout_of(&self.head);
            self.reader = Some(Reader::new(input, layout, self.next_position, context.record_bytes + 1));
        }
        let item = match &mut self.reader {
            Some(reader) => reader.next_item().map_err(wrong)?,
            None => None,
        };
        if item.is_none() && self.path.is_some() {
            self.reader = None;
        }
        Ok(item)
    }

    fn check_size(&mut self) -> Result<(), SourceError> {
        let Some(path) = &self.path else { return Ok(()) };
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

    fn submit(&mut self, context: &Context, frame: FrameBuilder, next: u64) -> Result<(), SourceError> {
        // Whoever writes into a pipe can wait as a file can.
        while !(context.wait_for_room)(Duration::from_secs(1)) && !context.stop.is_asked() {}
        let submission = self.submission(context, Kind::Record, frame, next);
        self.in_flight.push_back(context.ingest.submit(submission, true)?);
        self.is_moved = true;
        if self.in_flight.len() >= IN_FLIGHT {
            self.wait_for_oldest()?;
        }
        Ok(())
    }

    fn wait_for_oldest(&mut self) -> Result<(), SourceError> {
        if let Some(receipt) = self.in_flight.pop_front() {
            receipt.wait()?;
        }
        Ok(())
    }

    fn submission(&self, context: &Context, kind: Kind, frame: FrameBuilder, next: u64) -> Submission {
        let file = self.path.is_some().then(|| self.identity(next));
        Submission {
            kind,
            source: context.name.clone(),
            partition: self.partition.clone(),
            stream: context.stream.clone(),
            first_position: frame.first_position,
            previous_position: frame.first_position,
            records: frame.records.finish(),
            about: About {
                positions: frame.positions,
                next_position: Some(next),
                file,
                cut: frame.cut,
                ..About::default()
            },
        }
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

fn is_gzip(path: &Path) -> bool {
    path.extension().is_some_and(|e| e == "gz")
}

/// The file's content, unpacked.
fn plain(path: &Path) -> io::Result<Box<dyn Read + Send>> {
    let file = File::open(path)?;
    Ok(if is_gzip(path) {
        Box::new(MultiGzDecoder::new(BufReader::with_capacity(READ_BYTES, file)))
    } else {
        Box::new(file)
    })
}

fn open_at(path: &Path, position: u64) -> io::Result<Input> {
    let input: Box<dyn Read + Send> = if is_gzip(path) {
        let mut input = plain(path)?;
        io::copy(&mut (&mut input).take(position), &mut io::sink())?;
        input
    } else {
        let mut file = File::open(path)?;
        file.seek(SeekFrom::Start(position))?;
        Box::new(file)
    };
    Ok(BufReader::with_capacity(READ_BYTES, input))
}

fn layout_of(head: &[u8]) -> Layout {
    match head.trim_ascii_start().first() {
        Some(b'[') => Layout::Array,
        _ => Layout::Lines,
    }
}

/// Records of the next frame.
struct FrameBuilder {
    records: RecordsBuilder,
    positions: Vec<u64>,
    cut: Vec<(u64, u64)>,
    first_position: u64,
}

impl FrameBuilder {
    fn new(first_position: u64) -> Self {
        Self { records: RecordsBuilder::default(), positions: Vec::new(), cut: Vec::new(), first_position }
    }

    /// For a frame that will probably be full.
    fn with_room(first_position: u64) -> Self {
        let records = RecordsBuilder::with_capacity(FRAME_BYTES + (64 << 10), FRAME_RECORDS);
        Self { records, positions: Vec::with_capacity(FRAME_RECORDS), cut: Vec::new(), first_position }
    }

    fn push(&mut self, item: &Item, context: &Context) {
        if item.length > context.record_bytes as u64 {
            self.cut.push((self.records.len() as u64, item.length));
            self.add(item.start, &item.bytes[..item.bytes.len().min(context.cut_bytes)]);
            return;
        }
        message::each(&item.bytes, &mut |record| self.add(item.start, record));
    }

    fn add(&mut self, position: u64, record: &[u8]) {
        self.positions.push(position);
        self.records.push(record);
    }

    fn is_full(&self) -> bool {
        self.records.len() >= FRAME_RECORDS || self.records.bytes() >= FRAME_BYTES
    }
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
