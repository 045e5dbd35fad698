//! Identifies files: binds each to the partition that it continues, and starts reading it.

use std::fs::File;
use std::io;
use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant, SystemTime};

use super::content::{Content, HEAD_BYTES, Trail};
use super::decision::{Action, decide};
use super::discover::{Role, Stamp};
use super::follow::{Follower, record_end};
use super::matching::{Match, Sample, match_partitions, truncated_error};
use super::registry::PartitionId;
use super::{FileState, MAX_OPEN, Retry, Source, TrackedFile};
use crate::sources::SourceError;
use crate::wal::FileIdentity;

/// A file whose content is at fault is read again after this multiple of the time that reading it
/// took.
const RETRY_FACTOR: u32 = 20;

impl Source<'_> {
    /// Identifies every file that has changed, and reads a part of it; whether any had records.
    pub(super) fn identify_all(&mut self) -> Result<bool, SourceError> {
        self.read_detached()?;
        // Of files next to the source's, the oldest first, which was rotated away first.
        let order = |file: &TrackedFile| (file.role != Role::Member).then_some(file.stamp.modified);
        let due: Vec<_> = self
            .files
            .iter()
            .filter(|(_, file)| self.is_due(file))
            .map(|(path, file)| {
                (
                    order(file),
                    path.clone(),
                    self.registry.has_inode(file.stamp.inode),
                )
            })
            .collect();
        let mut is_busy = false;
        // Files that were renamed come before those that took their names, and these before copies.
        // The inode of a removed file may be reused by any other.
        let (own, mut other): (Vec<_>, Vec<_>) =
            due.into_iter().partition(|(_, _, is_known)| *is_known);
        for (order, path, _) in own {
            match self.identify_and_read(&path, false)? {
                Outcome::Read(was_busy) => is_busy |= was_busy,
                Outcome::Deferred => other.push((order, path, true)),
                Outcome::TooManyOpen => return Ok(true),
            }
        }
        other.sort();
        for (_, path, _) in other {
            match self.identify_and_read(&path, true)? {
                Outcome::Read(was_busy) => is_busy |= was_busy,
                Outcome::Deferred => {}
                Outcome::TooManyOpen => return Ok(true),
            }
        }
        Ok(is_busy)
    }

    /// Identifies a file and reads a part of it. Without `may_create` it is deferred if it would be
    /// a new partition.
    fn identify_and_read(&mut self, path: &Path, may_create: bool) -> Result<Outcome, SourceError> {
        if self.context.stop.is_requested() {
            return Ok(Outcome::Read(false));
        }
        if self.followers.len() >= MAX_OPEN {
            self.close_idle();
            if self.followers.len() > MAX_OPEN {
                // The open files are read first.
                return Ok(Outcome::TooManyOpen);
            }
        }
        let started = Instant::now();
        match self.identify(path, may_create) {
            Ok(Identification::Bound(id)) => Ok(Outcome::Read(self.read(id)?)),
            Ok(Identification::NothingToRead) => Ok(Outcome::Read(false)),
            Ok(Identification::Deferred) => Ok(Outcome::Deferred),
            Err(Failure::Source(error)) => Err(error),
            Err(Failure::File(error)) => {
                self.fail_after(path, &error, started.elapsed());
                Ok(Outcome::Read(false))
            }
        }
    }

    fn is_due(&self, file: &TrackedFile) -> bool {
        let is_time = file.retry.at.is_none_or(|at| Instant::now() >= at);
        match file.state {
            FileState::New => true,
            FileState::Undecided => is_time,
            FileState::Failed => {
                is_time && (file.is_changed || !file.retry.on_change) && !self.context.once
            }
            FileState::Bound | FileState::Skipped if self.context.once => {
                file.state == FileState::Bound
                    && file.is_changed
                    && !self.extent.is_finished(file.bound)
            }
            FileState::Bound | FileState::Skipped => file.is_changed,
        }
    }

    fn identify(&mut self, path: &Path, may_create: bool) -> Result<Identification, Failure> {
        let Some(file) = self.files.get_mut(path) else {
            return Ok(Identification::NothingToRead);
        };
        file.is_changed = false;
        let (stamp, bound, role) = (file.stamp, file.bound, file.role);
        if let Some(id) = self.partition_read_completely(stamp) {
            self.bind(path, id);
            return Ok(Identification::NothingToRead);
        }
        let Some((opened, stamp)) = self.open(path, bound, stamp)? else {
            return Ok(Identification::NothingToRead);
        };
        let content = Content::new(opened)?;
        let (head, is_truncated) = content.head()?;
        if is_truncated && head.len() < HEAD_BYTES {
            // Several contents may begin with so few bytes.
            return Err(truncated_error().into());
        }
        let sample = Sample {
            path,
            stamp,
            content: &content,
            head: &head,
            bound,
        };
        let (action, matches) = self.decide(&sample, is_truncated)?;
        let is_new = matches!(action, Action::Create | Action::Branch(_));
        if is_new && !may_create {
            if let Some(file) = self.files.get_mut(path) {
                file.is_changed = true;
            }
            return Ok(Identification::Deferred);
        }
        if action == Action::Create
            && role == Role::Member
            && !self
                .registry
                .by_path(&path.display().to_string())
                .is_empty()
        {
            self.set_rotated();
        }
        let is_missed = is_new && role == Role::Rotated && self.rotations.is_missed(&stamp, &head);
        if is_missed && action == Action::Create {
            self.rotations.count_found();
            tracing::info!(source = self.context.name, path = %path.display(), "reading a file that was rotated before it was read");
        }
        let is_read_by_source = role == Role::Member || is_missed;
        if action == Action::Wait {
            self.wait(path);
            return Ok(Identification::NothingToRead);
        }
        if action == Action::Create && head.is_empty() || is_new && !is_read_by_source {
            if !is_read_by_source {
                self.rotations.add_skipped(&stamp, &head);
            }
            self.end_content(path, &matches);
            self.skip(path);
            return Ok(Identification::NothingToRead);
        }
        let (id, trail) = self.partition(path, role, &sample, action, matches)?;
        self.follow(path, id, content, head, trail);
        Ok(Identification::Bound(id))
    }

    /// Which partition a file continues, as far as that can be decided now.
    fn decide(&self, sample: &Sample<'_>, is_truncated: bool) -> io::Result<(Action, Vec<Match>)> {
        let Sample {
            path, head, bound, ..
        } = *sample;
        let is_quiet = self.is_quiet(path, sample.stamp);
        let followers = &self.followers;
        let follower_head = |id: PartitionId| followers.get(&id).map(Follower::head);
        let is_at_end = |id: PartitionId| {
            followers
                .get(&id)
                .map_or_else(|| self.is_read_to_end(id), Follower::is_at_end)
        };
        let matches = match_partitions(sample, &self.registry, follower_head, is_at_end, |id| {
            self.has_path(id)
        })?;
        let candidates: Vec<_> = matches.iter().map(|m| m.candidate).collect();
        let action = decide(&candidates, is_quiet);
        let is_bound = matches!(action, Action::Continue(at) if bound == Some(matches[at].id));
        let may_be_copy = || is_truncated || self.may_be_copy(path, head);
        let is_ambiguous =
            !is_bound && (self.resembles_unread(path, head) || !is_quiet && may_be_copy());
        let action = if is_ambiguous { Action::Wait } else { action };
        tracing::debug!(path = %path.display(), ?action, is_quiet, ?candidates, "compared");
        Ok((action, matches))
    }

    /// The partition of a file, created if necessary, and the content that was read of it.
    fn partition(
        &mut self,
        path: &Path,
        role: Role,
        sample: &Sample<'_>,
        action: Action,
        mut matches: Vec<Match>,
    ) -> Result<(PartitionId, Trail), SourceError> {
        match action {
            Action::Continue(at) => {
                let Match { id, trail, .. } = matches.swap_remove(at);
                Ok((id, trail))
            }
            Action::Branch(at) => {
                let trail = matches.swap_remove(at).trail;
                Ok((
                    self.branch(path, role, sample.stamp, sample.head, &trail)?,
                    trail,
                ))
            }
            Action::Create | Action::Wait => {
                self.end_content(path, &matches);
                let label = self.label(path, role);
                let file = FileIdentity {
                    inode: sample.stamp.inode,
                    content: Some(0),
                    ..FileIdentity::default()
                };
                Ok((self.registry.create(&label, file, 0), Trail::new()))
            }
        }
    }

    /// Opens a file; none where it was replaced since the scan.
    fn open(
        &mut self,
        path: &Path,
        bound: Option<PartitionId>,
        stamp: Stamp,
    ) -> io::Result<Option<(Arc<File>, Stamp)>> {
        let followed = bound.and_then(|id| self.followers.get(&id));
        let opened = match followed.map(|follower| follower.file().clone()) {
            Some(file) => file,
            None => Arc::new(File::open(path)?),
        };
        let opened_stamp = Stamp::from(&opened.metadata()?);
        if opened_stamp.is_same_file(&stamp) {
            return Ok(Some((opened, opened_stamp)));
        }
        if let Some(file) = self.files.get_mut(path) {
            file.is_changed = true;
        }
        self.walked_at = None;
        Ok(None)
    }

    /// The partition whose file had this stamp when it was read to its end.
    fn partition_read_completely(&self, stamp: Stamp) -> Option<PartitionId> {
        let is_complete = |id: &&PartitionId| {
            let partition = self.registry.get(**id);
            let is_being_read = self
                .followers
                .get(*id)
                .is_some_and(Follower::has_unread_content);
            partition.file().complete == Some((stamp.size, stamp.modified))
                && !partition.is_replaced
                && !is_being_read
        };
        self.registry
            .by_inode(stamp.inode)
            .iter()
            .find(is_complete)
            .copied()
    }

    /// Whether this content, and not only the file that held it, is known to be at a path.
    fn has_path(&self, id: PartitionId) -> bool {
        let is_bound = |file: &TrackedFile| {
            file.bound == Some(id) && file.state == FileState::Bound && !file.is_changed
        };
        match self.followers.get(&id) {
            Some(follower) => follower
                .path
                .as_ref()
                .and_then(|path| self.files.get(path))
                .is_some_and(is_bound),
            None => self.files.values().any(is_bound),
        }
    }

    /// Whether a file has not changed for a while, as observed or by its modification time.
    fn is_quiet(&self, path: &Path, stamp: Stamp) -> bool {
        let modified = SystemTime::UNIX_EPOCH + Duration::from_nanos(stamp.modified);
        let is_old = crate::clock::wall_clock()
            .duration_since(modified)
            .is_ok_and(|age| age >= self.timing.settle);
        self.files.get(path).is_some_and(|file| {
            file.stamp == stamp && (is_old || file.unchanged_since.elapsed() >= self.timing.settle)
        })
    }

    /// Whether a short file may become a copy of one that is being read.
    fn may_be_copy(&self, path: &Path, head: &[u8]) -> bool {
        let is_longer = |follower: &Follower| {
            follower.head().len() > head.len() && follower.head().starts_with(head)
        };
        let mut others = self
            .followers
            .values()
            .filter(|follower| follower.path.as_deref() != Some(path));
        !head.is_empty() && head.len() < HEAD_BYTES && others.any(is_longer)
    }

    /// Whether another open file begins alike and nothing of it was read yet: until then there is
    /// no checksum to compare their contents by.
    fn resembles_unread(&self, path: &Path, head: &[u8]) -> bool {
        let is_unread = |follower: &&Follower| {
            follower.path.as_deref() != Some(path)
                && self.registry.get(follower.id).state.next_offset == 0
                && !follower.is_at_end()
        };
        let begins_alike = |follower: &Follower| {
            let other = follower
                .content()
                .head()
                .map(|(head, _)| head)
                .unwrap_or_default();
            let length = other.len().min(head.len());
            length > 0 && other[..length] == head[..length]
        };
        self.followers.values().filter(is_unread).any(begins_alike)
    }

    /// Whether a file that is not open has been read to its end.
    fn is_read_to_end(&self, id: PartitionId) -> bool {
        let file = self
            .files
            .iter()
            .find(|(_, file)| file.bound == Some(id) && file.state == FileState::Bound);
        file.is_some_and(|(path, file)| {
            let is_same = |metadata: std::fs::Metadata| Stamp::from(&metadata) == file.stamp;
            !file.is_changed && std::fs::metadata(path).is_ok_and(is_same)
        })
    }

    /// Marks the partitions of a file's inode as replaced, since it has another content.
    fn end_content(&mut self, path: &Path, matches: &[Match]) {
        let Some(file) = self.files.get_mut(path) else {
            return;
        };
        let inode = file.stamp.inode;
        if let Some(id) = file.bound.take() {
            self.followers.remove(&id);
            self.release_partition(id);
        }
        for Match { id, .. } in matches {
            if self.registry.get(*id).file().inode == inode {
                self.registry.get_mut(*id).is_replaced = true;
            }
        }
    }

    /// Creates a partition for a copy, which is read from where it differs.
    fn branch(
        &mut self,
        path: &Path,
        role: Role,
        stamp: Stamp,
        head: &[u8],
        trail: &Trail,
    ) -> Result<PartitionId, SourceError> {
        let length = head
            .len()
            .min(usize::try_from(trail.end).unwrap_or(HEAD_BYTES))
            .min(HEAD_BYTES);
        let file = FileIdentity {
            inode: stamp.inode,
            head: length as u64,
            crc: crc32c::crc32c(&head[..length]),
            content: trail.crc,
            ..FileIdentity::default()
        };
        let label = self.label(path, role);
        let id = self.registry.create(&label, file, trail.end);
        tracing::info!(source = self.context.name, path = %path.display(), read = trail.end, "the file is a copy; its common part is not read again");
        // Recorded in the log, because the original may be gone at the next start.
        record_end(self.context, &self.registry, id, &mut self.in_flight)?;
        Ok(id)
    }

    /// The path in a new partition's name: for a file next to the source's single file, the path of
    /// that.
    fn label(&self, path: &Path, role: Role) -> String {
        let path = self
            .rotations
            .path()
            .filter(|_| role != Role::Member)
            .unwrap_or(path);
        path.display().to_string()
    }

    /// Continues a partition in a file.
    fn follow(
        &mut self,
        path: &Path,
        id: PartitionId,
        content: Content,
        head: Vec<u8>,
        trail: Trail,
    ) {
        self.bind(path, id);
        if self.registry.get(id).state.next_offset == trail.end {
            self.registry.set_trail(id, trail);
        }
        match self.followers.get_mut(&id) {
            Some(follower) if is_same(follower, &content) => {
                follower.path = Some(path.to_owned());
                follower.recheck();
            }
            _ => {
                let stamp = self.files.get(path).map(|file| file.stamp);
                let end = stamp
                    .filter(|_| !content.is_compressed())
                    .and_then(|stamp| self.extent.end(&stamp));
                self.followers
                    .insert(id, Follower::new(id, path.to_owned(), content, head, end));
            }
        }
    }

    /// Binds the file at a path to a partition.
    fn bind(&mut self, path: &Path, id: PartitionId) {
        let before = self
            .files
            .get_mut(path)
            .and_then(|file| file.bound.replace(id))
            .filter(|before| *before != id);
        if let Some(before) = before {
            self.followers.remove(&before);
            self.release_partition(before);
        }
        self.registry.get_mut(id).is_live = true;
        if let Some(follower) = self.followers.get_mut(&id) {
            follower.path = Some(path.to_owned());
        }
        if let Some(file) = self.files.get_mut(path) {
            (file.state, file.retry, file.reason) = (FileState::Bound, Retry::default(), None);
        }
    }

    fn skip(&mut self, path: &Path) {
        if let Some(file) = self.files.get_mut(path) {
            (file.state, file.retry, file.reason) = (FileState::Skipped, Retry::default(), None);
        }
    }

    fn wait(&mut self, path: &Path) {
        let settle = self.timing.settle;
        if let Some(file) = self.files.get_mut(path) {
            let at = Some((file.unchanged_since + settle).max(Instant::now() + settle / 4));
            (file.state, file.retry, file.reason) = (
                FileState::Undecided,
                Retry {
                    at,
                    ..Retry::default()
                },
                None,
            );
        }
    }

    pub(super) fn fail(&mut self, path: &Path, error: &io::Error) {
        self.fail_after(path, error, Duration::ZERO);
    }

    /// Schedules the next attempt at a file that cannot be read: if its content is at fault, once it
    /// has changed; otherwise after some time.
    fn fail_after(&mut self, path: &Path, error: &io::Error, took: Duration) {
        if error.kind() == io::ErrorKind::NotFound {
            // Renamed or removed since the scan: the next walk finds it.
            self.walked_at = None;
            return;
        }
        let timing = self.timing;
        let Some(file) = self.files.get_mut(path) else {
            return;
        };
        let attempts = file.retry.attempts + 1;
        let on_change = matches!(
            error.kind(),
            io::ErrorKind::UnexpectedEof | io::ErrorKind::InvalidData | io::ErrorKind::Unsupported
        );
        let wait = if on_change {
            (took * RETRY_FACTOR).clamp(timing.min_retry_delay, timing.max_retry_delay)
        } else {
            (timing.min_retry_delay * 2u32.saturating_pow(attempts.min(10)))
                .min(timing.max_retry_delay)
        };
        file.retry = Retry {
            attempts,
            at: Some(Instant::now() + wait),
            on_change,
        };
        file.state = FileState::Failed;
        file.bound = None;
        file.reason = Some(error.to_string());
    }

    /// Forgets the file at a path. An open descriptor of it is read to its end.
    pub(super) fn release(&mut self, path: &Path) {
        let Some(file) = self.files.remove(path) else {
            return;
        };
        let Some(id) = file.bound else { return };
        match self.followers.get_mut(&id) {
            Some(follower) if follower.path.as_deref() == Some(path) => {
                (follower.path, follower.last_active) = (None, Instant::now());
            }
            // It is followed at another path already.
            Some(_) => {}
            None => self.release_partition(id),
        }
    }

    /// Marks a partition's content as gone. Files that could not be distinguished from it are
    /// identified again.
    pub(super) fn release_partition(&mut self, id: PartitionId) {
        self.registry.get_mut(id).is_live = false;
        for file in self.files.values_mut() {
            if matches!(file.state, FileState::Undecided | FileState::Skipped) {
                file.state = FileState::New;
            }
        }
    }
}

fn is_same(follower: &Follower, content: &Content) -> bool {
    let stamp = |file: &File| file.metadata().map(|metadata| Stamp::from(&metadata));
    match (follower.stamp(), stamp(content.file())) {
        (Ok(a), Ok(b)) => {
            a.is_same_file(&b) && follower.content().is_compressed() == content.is_compressed()
        }
        _ => false,
    }
}

/// The result of identifying a file.
enum Identification {
    /// It is to be read as this partition.
    Bound(PartitionId),
    NothingToRead,
    /// It would be a new partition; other files are identified first.
    Deferred,
}

/// The result of identifying and reading a file.
enum Outcome {
    /// Whether it had records.
    Read(bool),
    Deferred,
    TooManyOpen,
}

/// Why a file could not be identified.
enum Failure {
    File(io::Error),
    Source(SourceError),
}

impl From<io::Error> for Failure {
    fn from(error: io::Error) -> Self {
        Self::File(error)
    }
}

impl From<SourceError> for Failure {
    fn from(error: SourceError) -> Self {
        Self::Source(error)
    }
}
