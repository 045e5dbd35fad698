//! Which partition a file continues, and what follows from it.

use std::fs::File;
use std::io;
use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant, SystemTime};

use super::compare::{Compared, Sample, compare, cut_off};
use super::content::{Content, HEAD_BYTES, Trail};
use super::discover::{Role, Stamp};
use super::follow::{Follower, note_end};
use super::identity::{Action, decide};
use super::known::Id;
use super::{MAX_OPEN, Retry, Source, Tracked, Tracking};
use crate::sources::SourceError;
use crate::wal::FileIdentity;

/// A file whose content is at fault is read again at most so often, as a multiple of what reading
/// it takes.
const RETRY_SHARE: u32 = 20;

impl Source<'_> {
    /// Looks at every file that has changed; whether there was something to read.
    pub(super) fn examine_all(&mut self) -> Result<bool, SourceError> {
        self.read_leaving()?;
        let due = |file: &Tracked| self.is_due(file);
        // Of files beside the source's, those that were rotated away first.
        let order = |file: &Tracked| (file.role != Role::Member).then_some(file.stamp.modified);
        let due: Vec<_> = self
            .files
            .iter()
            .filter(|(_, file)| due(file))
            .map(|(path, file)| {
                (
                    order(file),
                    path.clone(),
                    self.known.has_inode(file.stamp.inode),
                )
            })
            .collect();
        let mut is_busy = false;
        // Files that were renamed are found before those that took their names, and these before
        // copies. The inode of a file that was removed may hold anything.
        let (own, mut other): (Vec<_>, Vec<_>) =
            due.into_iter().partition(|(_, _, is_known)| *is_known);
        for (order, path, _) in own {
            match self.examine_one(&path, false)? {
                Outcome::Read(was_busy) => is_busy |= was_busy,
                Outcome::Later => other.push((order, path, true)),
                Outcome::Full => return Ok(true),
            }
        }
        other.sort();
        for (_, path, _) in other {
            match self.examine_one(&path, true)? {
                Outcome::Read(was_busy) => is_busy |= was_busy,
                Outcome::Later => {}
                Outcome::Full => return Ok(true),
            }
        }
        Ok(is_busy)
    }

    /// Looks at a file and reads a part of it. Without `may_begin` it is left for later if it is
    /// none that was begun.
    fn examine_one(&mut self, path: &Path, may_begin: bool) -> Result<Outcome, SourceError> {
        if self.context.stop.is_asked() {
            return Ok(Outcome::Read(false));
        }
        if self.followers.len() >= MAX_OPEN {
            self.let_go();
            if self.followers.len() > MAX_OPEN {
                // They are read first; this one has its turn then.
                return Ok(Outcome::Full);
            }
        }
        let started = Instant::now();
        match self.examine(path, may_begin) {
            Ok(Examined::Bound(id)) => Ok(Outcome::Read(self.read(id)?)),
            Ok(Examined::Nothing) => Ok(Outcome::Read(false)),
            Ok(Examined::Later) => Ok(Outcome::Later),
            Err(Failure::Source(error)) => Err(error),
            Err(Failure::File(error)) => {
                self.fail_after(path, &error, started.elapsed());
                Ok(Outcome::Read(false))
            }
        }
    }

    fn is_due(&self, file: &Tracked) -> bool {
        let is_time = file.retry.at.is_none_or(|at| Instant::now() >= at);
        match file.state {
            Tracking::New => true,
            Tracking::Undecided => is_time,
            Tracking::Failed => {
                is_time && (file.is_changed || !file.retry.on_change) && !self.context.once
            }
            Tracking::Bound | Tracking::Passed if self.context.once => {
                file.state == Tracking::Bound
                    && file.is_changed
                    && !self.extent.is_finished(file.bound)
            }
            Tracking::Bound | Tracking::Passed => file.is_changed,
        }
    }

    /// Decides what a file is; the partition to read where there may be something.
    fn examine(&mut self, path: &Path, may_begin: bool) -> Result<Examined, Failure> {
        let Some(file) = self.files.get_mut(path) else {
            return Ok(Examined::Nothing);
        };
        file.is_changed = false;
        let (stamp, bound, role) = (file.stamp, file.bound, file.role);
        if let Some(id) = self.is_read(stamp) {
            self.bind(path, id);
            return Ok(Examined::Nothing);
        }
        let Some((opened, seen)) = self.open(path, bound, stamp)? else {
            return Ok(Examined::Nothing);
        };
        let content = Content::new(opened)?;
        let (head, is_cut_off) = content.head()?;
        if is_cut_off && head.len() < HEAD_BYTES {
            // With so little of it, it could be any of those that begin so.
            return Err(cut_off().into());
        }
        let sample = Sample {
            path,
            stamp: seen,
            content: &content,
            head: &head,
            bound,
        };
        let (action, compared) = self.decide(&sample, is_cut_off)?;
        let begins = matches!(action, Action::Fresh | Action::Branch(_));
        if begins && !may_begin {
            if let Some(file) = self.files.get_mut(path) {
                file.is_changed = true;
            }
            return Ok(Examined::Later);
        }
        if action == Action::Fresh
            && role == Role::Member
            && !self.known.of_path(&path.display().to_string()).is_empty()
        {
            self.note_rotated();
        }
        let is_missed = begins && role == Role::Rotated && self.generations.is_missed(&seen, &head);
        if is_missed && action == Action::Fresh {
            self.generations.note_found();
            tracing::info!(source = self.context.name, path = %path.display(), "a file that was rotated before it was read");
        }
        let is_wanted = role == Role::Member || is_missed;
        if action == Action::Wait {
            self.wait(path);
            return Ok(Examined::Nothing);
        }
        if action == Action::Fresh && head.is_empty() || begins && !is_wanted {
            if !is_wanted {
                self.generations.note_passed(&seen, &head);
            }
            self.end_content(path, &compared);
            self.pass(path);
            return Ok(Examined::Nothing);
        }
        let (id, trail) = self.partition(path, role, &sample, action, compared)?;
        Ok(Examined::Bound(self.follow(path, id, content, head, trail)))
    }

    /// Which partition a file continues, as far as that can be decided.
    fn decide(&self, sample: &Sample<'_>, is_cut_off: bool) -> io::Result<(Action, Vec<Compared>)> {
        let Sample {
            path, head, bound, ..
        } = *sample;
        let is_quiet = self.is_quiet(path, sample.stamp);
        let followers = &self.followers;
        let begins = |id: Id| followers.get(&id).map(Follower::head);
        let is_at_end = |id: Id| {
            followers
                .get(&id)
                .map_or_else(|| self.is_read_whole(id), Follower::is_at_end)
        };
        let compared = compare(sample, &self.known, begins, is_at_end, |id| {
            self.has_path(id)
        })?;
        let candidates: Vec<_> = compared.iter().map(|c| c.candidate).collect();
        let action = decide(&candidates, is_quiet);
        let is_bound = matches!(action, Action::Continue(at) if bound == Some(compared[at].id));
        let may_be_copy = || is_cut_off || self.may_be_copy(path, head);
        let waits = !is_bound && (self.begins_unread(path, head) || !is_quiet && may_be_copy());
        let action = if waits { Action::Wait } else { action };
        tracing::debug!(path = %path.display(), ?action, is_quiet, ?candidates, "compared");
        Ok((action, compared))
    }

    /// The partition that a file is from now on, and up to where it was read.
    fn partition(
        &mut self,
        path: &Path,
        role: Role,
        sample: &Sample<'_>,
        action: Action,
        mut compared: Vec<Compared>,
    ) -> Result<(Id, Trail), SourceError> {
        match action {
            Action::Continue(at) => {
                let Compared { id, trail, .. } = compared.swap_remove(at);
                Ok((id, trail))
            }
            Action::Branch(at) => {
                let trail = compared.swap_remove(at).trail;
                Ok((
                    self.branch(path, role, sample.stamp, sample.head, &trail)?,
                    trail,
                ))
            }
            Action::Fresh | Action::Wait => {
                self.end_content(path, &compared);
                let label = self.label(path, role);
                let file = FileIdentity {
                    inode: sample.stamp.inode,
                    content: Some(0),
                    ..FileIdentity::default()
                };
                Ok((self.known.begin(&label, file, 0), Trail::new()))
            }
        }
    }

    /// Opens a file; none where it was replaced meanwhile.
    fn open(
        &mut self,
        path: &Path,
        bound: Option<Id>,
        stamp: Stamp,
    ) -> io::Result<Option<(Arc<File>, Stamp)>> {
        let followed = bound.and_then(|id| self.followers.get(&id));
        let opened = match followed.map(|follower| follower.file().clone()) {
            Some(file) => file,
            None => Arc::new(File::open(path)?),
        };
        let seen = Stamp::of(&opened.metadata()?);
        if seen.is_same_file(&stamp) {
            return Ok(Some((opened, seen)));
        }
        if let Some(file) = self.files.get_mut(path) {
            file.is_changed = true;
        }
        self.walked = None;
        Ok(None)
    }

    /// The partition of which a file with this stamp was read to its end.
    fn is_read(&self, stamp: Stamp) -> Option<Id> {
        let is_it = |id: &&Id| {
            let partition = self.known.get(**id);
            let is_being_read = self.followers.get(*id).is_some_and(Follower::is_begun);
            partition.file().complete == Some((stamp.size, stamp.modified))
                && !partition.is_over
                && !is_being_read
        };
        self.known.of_inode(stamp.inode).iter().find(is_it).copied()
    }

    /// Whether a path is known to lead to this content, and not only to the file that held it.
    fn has_path(&self, id: Id) -> bool {
        let is_it = |file: &Tracked| {
            file.bound == Some(id) && file.state == Tracking::Bound && !file.is_changed
        };
        match self.followers.get(&id) {
            Some(follower) => follower
                .path
                .as_ref()
                .and_then(|path| self.files.get(path))
                .is_some_and(is_it),
            None => self.files.values().any(is_it),
        }
    }

    /// It has not changed for a while, as seen from here or by its own time of change.
    fn is_quiet(&self, path: &Path, seen: Stamp) -> bool {
        let modified = SystemTime::UNIX_EPOCH + Duration::from_nanos(seen.modified);
        let is_old = SystemTime::now()
            .duration_since(modified)
            .is_ok_and(|age| age >= self.timing.settle);
        let is_seen =
            |file: &Tracked| file.stamp == seen && file.since.elapsed() >= self.timing.settle;
        self.files
            .get(path)
            .is_some_and(|file| is_seen(file) || is_old && file.stamp == seen)
    }

    /// Whether a file with so few bytes may become a copy of one that is being read.
    fn may_be_copy(&self, path: &Path, head: &[u8]) -> bool {
        let begins = |follower: &Follower| {
            follower.head().len() > head.len() && follower.head().starts_with(head)
        };
        let mut others = self
            .followers
            .values()
            .filter(|follower| follower.path.as_deref() != Some(path));
        !head.is_empty() && head.len() < HEAD_BYTES && others.any(begins)
    }

    /// Whether another file that is open begins alike and nothing of it was read yet: until then no
    /// checksum tells whether they have the same content.
    fn begins_unread(&self, path: &Path, head: &[u8]) -> bool {
        let is_unread = |follower: &&Follower| {
            follower.path.as_deref() != Some(path)
                && self.known.get(follower.id).state.next_offset == 0
                && !follower.is_at_end()
        };
        let begins_alike = |follower: &Follower| {
            let begins = follower
                .content()
                .head()
                .map(|(begins, _)| begins)
                .unwrap_or_default();
            let length = begins.len().min(head.len());
            length > 0 && begins[..length] == head[..length]
        };
        self.followers.values().filter(is_unread).any(begins_alike)
    }

    /// Whether a file that is not followed holds nothing that was not read.
    fn is_read_whole(&self, id: Id) -> bool {
        let file = self
            .files
            .iter()
            .find(|(_, file)| file.bound == Some(id) && file.state == Tracking::Bound);
        file.is_some_and(|(path, file)| {
            let is_same = |metadata: std::fs::Metadata| Stamp::of(&metadata) == file.stamp;
            !file.is_changed && std::fs::metadata(path).is_ok_and(is_same)
        })
    }

    /// The file holds another content than the partitions of its inode, which end there.
    fn end_content(&mut self, path: &Path, compared: &[Compared]) {
        let Some(file) = self.files.get_mut(path) else {
            return;
        };
        let inode = file.stamp.inode;
        if let Some(id) = file.bound.take() {
            self.followers.remove(&id);
            self.release_partition(id);
        }
        for ended in compared {
            if self.known.get(ended.id).file().inode == inode {
                self.known.get_mut(ended.id).is_over = true;
            }
        }
    }

    /// A partition of its own for a copy, which is read from where it differs.
    fn branch(
        &mut self,
        path: &Path,
        role: Role,
        seen: Stamp,
        head: &[u8],
        trail: &Trail,
    ) -> Result<Id, SourceError> {
        let length = head
            .len()
            .min(usize::try_from(trail.end).unwrap_or(HEAD_BYTES))
            .min(HEAD_BYTES);
        let file = FileIdentity {
            inode: seen.inode,
            head: length as u64,
            crc: crc32c::crc32c(&head[..length]),
            content: trail.crc,
            ..FileIdentity::default()
        };
        let id = self.known.begin(&self.label(path, role), file, trail.end);
        tracing::info!(source = self.context.name, path = %path.display(), read = trail.end, "a copy of what was read already");
        // Told to the log: the original may be gone when this is asked again.
        note_end(self.context, &self.known, id, &mut self.in_flight)?;
        Ok(id)
    }

    /// The path that a partition is named by: of what was missed at the source's path, that.
    fn label(&self, path: &Path, role: Role) -> String {
        let at = self
            .generations
            .path()
            .filter(|_| role != Role::Member)
            .unwrap_or(path);
        at.display().to_string()
    }

    /// Reads a file on as this partition.
    fn follow(&mut self, path: &Path, id: Id, content: Content, head: Vec<u8>, trail: Trail) -> Id {
        self.bind(path, id);
        if self.known.get(id).state.next_offset == trail.end {
            self.known.set_trail(id, trail);
        }
        match self.followers.get_mut(&id) {
            Some(follower) if is_same(follower, &content) => {
                follower.path = Some(path.to_owned());
                follower.look_again();
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
        id
    }

    /// This path leads to the content of this partition.
    fn bind(&mut self, path: &Path, id: Id) {
        let before = self
            .files
            .get_mut(path)
            .and_then(|file| file.bound.replace(id))
            .filter(|before| *before != id);
        if let Some(before) = before {
            self.followers.remove(&before);
            self.release_partition(before);
        }
        self.known.get_mut(id).is_live = true;
        if let Some(follower) = self.followers.get_mut(&id) {
            follower.path = Some(path.to_owned());
        }
        if let Some(file) = self.files.get_mut(path) {
            (file.state, file.retry, file.reason) = (Tracking::Bound, Retry::default(), None);
        }
    }

    fn pass(&mut self, path: &Path) {
        if let Some(file) = self.files.get_mut(path) {
            (file.state, file.retry, file.reason) = (Tracking::Passed, Retry::default(), None);
        }
    }

    fn wait(&mut self, path: &Path) {
        let settle = self.timing.settle;
        if let Some(file) = self.files.get_mut(path) {
            let at = Some((file.since + settle).max(Instant::now() + settle / 4));
            (file.state, file.retry, file.reason) = (
                Tracking::Undecided,
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

    /// A file that cannot be read waits: for a change where its content is at fault, else for some
    /// time.
    fn fail_after(&mut self, path: &Path, error: &io::Error, took: Duration) {
        if error.kind() == io::ErrorKind::NotFound {
            // Renamed or removed meanwhile: the next walk finds what became of it.
            self.walked = None;
            return;
        }
        let timing = self.timing;
        let Some(file) = self.files.get_mut(path) else {
            return;
        };
        let tries = file.retry.tries + 1;
        let on_change = matches!(
            error.kind(),
            io::ErrorKind::UnexpectedEof | io::ErrorKind::InvalidData | io::ErrorKind::Unsupported
        );
        let wait = if on_change {
            (took * RETRY_SHARE).clamp(timing.first_retry, timing.last_retry)
        } else {
            (timing.first_retry * 2u32.saturating_pow(tries.min(10))).min(timing.last_retry)
        };
        file.retry = Retry {
            tries,
            at: Some(Instant::now() + wait),
            on_change,
        };
        file.state = Tracking::Failed;
        file.bound = None;
        file.reason = Some(error.to_string());
    }

    /// The path does not lead to its file any more. A descriptor that is open is read to its end.
    pub(super) fn release(&mut self, path: &Path) {
        let Some(file) = self.files.remove(path) else {
            return;
        };
        let Some(id) = file.bound else { return };
        match self.followers.get_mut(&id) {
            Some(follower) if follower.path.as_deref() == Some(path) => {
                (follower.path, follower.active) = (None, Instant::now());
            }
            // It is followed under another path already.
            Some(_) => {}
            None => self.release_partition(id),
        }
    }

    /// No file holds this partition's content any more: what could not be told apart from it is
    /// looked at again.
    pub(super) fn release_partition(&mut self, id: Id) {
        self.known.get_mut(id).is_live = false;
        for file in self.files.values_mut() {
            if matches!(file.state, Tracking::Undecided | Tracking::Passed) {
                file.state = Tracking::New;
            }
        }
    }
}

fn is_same(follower: &Follower, content: &Content) -> bool {
    let of = |file: &File| file.metadata().map(|metadata| Stamp::of(&metadata));
    match (follower.stamp(), of(content.file())) {
        (Ok(a), Ok(b)) => {
            a.is_same_file(&b) && follower.content().is_compressed() == content.is_compressed()
        }
        _ => false,
    }
}

/// What came of looking at a file.
enum Examined {
    /// It may have something to read.
    Bound(Id),
    Nothing,
    /// It is none that was begun; others are looked at first.
    Later,
}

/// What came of looking at a file and reading it.
enum Outcome {
    /// Whether there was something.
    Read(bool),
    Later,
    /// Too many files are open.
    Full,
}

/// Why a file could not be looked at.
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
