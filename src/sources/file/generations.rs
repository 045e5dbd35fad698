//! What came between two files that were seen at the path of a source of one file: written and rotated away before anyone looked.
//! It lies beside the path as long as nobody removes it. Older files lie there too, of a time before the source; these were
//! changed last before the one that was read last was.

use std::collections::{BTreeMap, BTreeSet, HashSet};
use std::fs::{File, Metadata};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Instant, SystemTime};

use super::content::Content;
use super::discover::{Role, Stamp, is_rotation};
use super::known::{Id, Known, Partition};
use super::{Source, Tracked, Tracking};
use crate::event::{Gap, Micros};
use crate::sources::SourceError;

/// Beginnings of older files that are remembered.
const MAX_OLDER: usize = 10_000;

/// The files that were at the path of a source of one file.
#[derive(Default)]
pub struct Generations {
    /// Where the source reads a folder or a glob, every file is found anyway.
    path: Option<PathBuf>,
    /// The file that was read last is not at the path any more: when it was changed last. Until another one is read there.
    since: Option<u64>,
    /// Files that appeared meanwhile, by device and inode.
    between: BTreeSet<(u64, u64)>,
    /// Lengths and checksums of the beginnings of files that are older, for the time when they are compressed.
    older: HashSet<(usize, u32)>,
    /// The content that a start looks for.
    last: Option<Id>,
    has_walked: bool,
    /// Files that began to be read beside the path since what is noted here was compared last.
    found: u64,
    /// Times that the path appeared, by the system's notifications, and files seen there.
    appeared: u64,
    seen: u64,
    at_path: Option<(u64, Option<SystemTime>)>,
    appeared_at: Option<Instant>,
    /// When nothing was missing.
    compared: Micros,
}

impl Generations {
    /// `path` is the one file's, `partitions` what was read of it in earlier runs.
    pub fn new(path: Option<PathBuf>, known: &Known, now: Micros) -> Self {
        let mut new = Self { compared: now, ..Self::default() };
        let Some(path) = path else { return new };
        let ids = known.of_path(&path.display().to_string()).iter().copied();
        new.last = ids.max_by_key(|id| (known.get(*id).state.received_at, *id));
        if let Some(last) = new.last {
            new.compared = known.get(last).state.received_at;
        }
        new.at_path = std::fs::symlink_metadata(&path).ok().map(|metadata| of_link(&metadata));
        new.path = Some(path);
        new
    }

    pub fn path(&self) -> Option<&Path> {
        self.path.as_deref()
    }

    /// Notes the files that a walk found, beside what the one before did.
    pub fn note(
        &mut self,
        known: &Known,
        before: &BTreeMap<PathBuf, Tracked>,
        after: &BTreeMap<PathBuf, (Stamp, Role)>,
    ) {
        let Some(path) = &self.path else { return };
        let (was, now) = (before.get(path), after.get(path).map(|(stamp, _)| stamp));
        if !std::mem::replace(&mut self.has_walked, true) {
            self.since = self.last.and_then(|last| left_at(path, known.get(last), now));
        }
        let is_same = was.zip(now).is_some_and(|(was, now)| was.stamp.is_same_file(now));
        if let Some(was) = was.filter(|_| !is_same) {
            self.since = Some(self.since.map_or(was.stamp.modified, |since| since.min(was.stamp.modified)));
        }
        let Some(since) = self.since else { return };
        let beside = |(path, file): (&PathBuf, &Tracked)| (Some(path) != self.path.as_ref()).then(|| key(&file.stamp));
        let earlier: BTreeSet<(u64, u64)> = before.iter().filter_map(beside).collect();
        for (other, (stamp, _)) in after.iter().filter(|(other, _)| *other != path && is_rotation(other, path)) {
            if stamp.modified >= since && !earlier.contains(&key(stamp)) {
                tracing::debug!(path = %other.display(), "appeared while the path led to other files");
                self.between.insert(key(stamp));
            }
        }
        if is_same && was.is_some_and(|was| was.state == Tracking::Bound) {
            self.since = None;
        }
    }

    /// Whether a file of which nothing is known was at the path and was missed there.
    pub fn is_missed(&self, stamp: &Stamp, head: &[u8]) -> bool {
        self.between.contains(&key(stamp)) && !self.older.contains(&beginning(head))
    }

    pub fn note_found(&mut self, stamp: &Stamp) {
        self.found += u64::from(self.between.remove(&key(stamp)));
    }

    /// A file beside the path that is none of the source's.
    pub fn note_older(&mut self, head: &[u8]) {
        if self.path.is_some() && !head.is_empty() && self.older.len() < MAX_OLDER {
            self.older.insert(beginning(head));
        }
    }

    /// Notes how often the path appeared, and whether it leads to another file than before.
    fn note_appeared(&mut self, times: u64) {
        let Some(path) = &self.path else { return };
        if times > 0 {
            (self.appeared, self.appeared_at) = (self.appeared + times, Some(Instant::now()));
        }
        let now = std::fs::symlink_metadata(path).ok().map(|metadata| of_link(&metadata));
        if now.is_some() && now != self.at_path {
            (self.at_path, self.seen) = (now, self.seen + 1);
        }
    }
}

impl Source<'_> {
    /// Reports files that were at the path of a source of one file, and are nowhere to be found.
    pub(super) fn report_missed(&mut self, appeared: u64) -> Result<(), SourceError> {
        self.generations.note_appeared(appeared);
        let waits = |file: &Tracked| file.state == Tracking::New || file.state == Tracking::Undecided;
        let settle = self.timing.settle;
        let generations = &self.generations;
        let is_settled = generations.appeared_at.is_none_or(|at| at.elapsed() >= settle);
        let is_settled = is_settled && generations.has_walked;
        let Some(path) = generations.path.as_ref().filter(|_| is_settled && !self.files.values().any(waits)) else {
            return Ok(());
        };
        let path = path.display();
        let missing = generations.appeared.saturating_sub(generations.seen + generations.found);
        let is_last_gone = generations.last.is_some_and(|id| !self.known.get(id).is_live);
        let reason = if missing > 0 {
            Some(format!("{path} was replaced before it was looked at: {missing} of its files are not beside it"))
        } else if generations.found > 0 && is_last_gone {
            Some(format!("{path} was rotated more than once, and the file that was read last is not beside it"))
        } else {
            None
        };
        let (now, from) = (self.clock.now(), generations.compared);
        let generations = &mut self.generations;
        (generations.appeared, generations.seen, generations.found) = (0, 0, 0);
        (generations.appeared_at, generations.last, generations.compared) = (None, None, now);
        let Some(reason) = reason else { return Ok(()) };
        tracing::warn!(source = self.context.name, reason, "records may be missing; weir.gaps has it");
        let gap = Gap { source: self.context.name.clone(), from, to: now, reason };
        self.in_flight.submit(self.context, gap.submission("", &self.context.stream))
    }
}

/// When a file was changed last that an earlier run read, where it is not at the path any more.
fn left_at(path: &Path, last: &Partition, now: Option<&Stamp>) -> Option<u64> {
    let file = last.file();
    // The inode of a removed file is used again.
    let begins_alike = || {
        let head = File::open(path).and_then(|opened| Content::new(Arc::new(opened))?.head()).unwrap_or_default().0;
        head.get(..file.head as usize).is_some_and(|head| crc32c::crc32c(head) == file.crc)
    };
    let is_there = now.is_some_and(|now| now.inode == file.inode) && begins_alike();
    let received = u64::try_from(last.state.received_at).unwrap_or(0).saturating_mul(1_000);
    (!is_there).then(|| file.complete.map_or(received, |(_, modified)| modified))
}

fn key(stamp: &Stamp) -> (u64, u64) {
    (stamp.device, stamp.inode)
}

fn beginning(head: &[u8]) -> (usize, u32) {
    (head.len(), crc32c::crc32c(head))
}

fn of_link(metadata: &Metadata) -> (u64, Option<SystemTime>) {
    (metadata.ino(), metadata.created().ok())
}
