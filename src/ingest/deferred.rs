//! Frames of pull sources that wait for space in the log, while everything else passes them.
//!
//! A pull source's offset says that everything before it is stored, so a frame of its partition may
//! neither be skipped nor overtaken by a later one. The queue's limit bounds what waits here.
//!
//! Example: the log is full, and a frame of records of pull source `a` is deferred. A later frame
//! of the same partition waits after it, even a control frame. Records of pull source `b` wait too;
//! records that came over HTTP are rejected; a tick is appended.

use std::collections::{BTreeSet, VecDeque};

/// The facts about a frame that its admission depends on.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct FrameInfo<'a> {
    pub source: &'a str,
    pub partition: &'a str,
    /// It carries an offset, so its source can wait.
    pub is_pull: bool,
    /// It holds records; control frames have a part of the log reserved.
    pub holds_records: bool,
}

/// What to do with an incoming frame.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Admission {
    /// Append it to the log.
    Append,
    /// Let it wait after others.
    Defer,
    /// Reject it: there is no space, and it cannot wait.
    Reject,
    /// Reject it because an earlier frame of its source was rejected, which it would skip.
    RejectPermanently,
}

/// What waits here: the writer's frames, and a model of them in tests.
pub trait Deferrable {
    fn info(&self) -> FrameInfo<'_>;
}

/// The frames that wait, oldest first.
#[derive(Debug)]
pub struct DeferredFrames<T> {
    waiting: VecDeque<T>,
    /// Pull sources of which a frame was rejected.
    rejected_sources: BTreeSet<String>,
}

impl<T> Default for DeferredFrames<T> {
    fn default() -> Self {
        Self {
            waiting: VecDeque::new(),
            rejected_sources: BTreeSet::new(),
        }
    }
}

impl<T: Deferrable> DeferredFrames<T> {
    pub fn is_empty(&self) -> bool {
        self.waiting.is_empty()
    }

    /// Decides about an incoming frame: those that wait come first.
    pub fn admission(&self, info: FrameInfo<'_>) -> Admission {
        if self.is_source_rejected(info) {
            return Admission::RejectPermanently;
        }
        let is_same_partition = |other: FrameInfo<'_>| {
            (other.source, other.partition) == (info.source, info.partition) && info.is_pull
        };
        let would_overtake = info.holds_records
            || self
                .waiting
                .iter()
                .any(|frame| is_same_partition(frame.info()));
        match (self.is_empty() || !would_overtake, info.is_pull) {
            (true, _) => Admission::Append,
            (false, true) => Admission::Defer,
            (false, false) => Admission::Reject,
        }
    }

    /// Adds a frame after all others.
    pub fn push(&mut self, frame: T) {
        self.waiting.push_back(frame);
    }

    /// Takes the frame that has waited longest.
    pub fn pop(&mut self) -> Option<T> {
        self.waiting.pop_front()
    }

    /// Puts back the frame that was popped last: there is still no space.
    pub fn put_back(&mut self, frame: T) {
        self.waiting.push_front(frame);
    }

    /// A frame of this pull source was rejected: every later one must be too.
    pub fn reject_source(&mut self, source: &str) {
        if !self.rejected_sources.contains(source) {
            self.rejected_sources.insert(source.to_owned());
        }
    }

    /// Whether it belongs to a pull source of which a frame was rejected.
    pub fn is_source_rejected(&self, info: FrameInfo<'_>) -> bool {
        info.is_pull && self.rejected_sources.contains(info.source)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[derive(Debug, Clone, PartialEq, Eq)]
    struct Frame {
        source: String,
        partition: String,
        is_pull: bool,
        holds_records: bool,
        offset: u64,
        size: u64,
    }

    impl Deferrable for Frame {
        fn info(&self) -> FrameInfo<'_> {
            let Self {
                source,
                partition,
                is_pull,
                holds_records,
                ..
            } = self;
            FrameInfo {
                source,
                partition,
                is_pull: *is_pull,
                holds_records: *holds_records,
            }
        }
    }

    /// The log's writer, with a log that is a number of bytes.
    #[derive(Default)]
    struct Model {
        deferred: DeferredFrames<Frame>,
        space: u64,
        control_space: u64,
        is_closed: bool,
        stored: Vec<Frame>,
        rejected: Vec<Frame>,
    }

    impl Model {
        fn fits(&mut self, frame: &Frame) -> bool {
            let space = if frame.holds_records {
                &mut self.space
            } else {
                &mut self.control_space
            };
            let fits = frame.size <= *space;
            *space -= if fits { frame.size } else { 0 };
            fits
        }

        fn receive(&mut self, frame: Frame) {
            match self.deferred.admission(frame.info()) {
                Admission::Append if self.fits(&frame) => self.stored.push(frame),
                Admission::Append if frame.is_pull && !self.is_closed => self.deferred.push(frame),
                Admission::Defer => self.deferred.push(frame),
                _ => self.reject(frame),
            }
        }

        fn reject(&mut self, frame: Frame) {
            if frame.is_pull {
                self.deferred.reject_source(&frame.source);
            }
            self.rejected.push(frame);
        }

        fn retry(&mut self) {
            while let Some(frame) = self.deferred.pop() {
                if self.deferred.is_source_rejected(frame.info()) {
                    self.reject(frame);
                } else if self.fits(&frame) {
                    self.stored.push(frame);
                } else if self.is_closed {
                    self.reject(frame);
                } else {
                    return self.deferred.put_back(frame);
                }
            }
        }
    }

    #[derive(Debug, Clone)]
    enum Event {
        Arrival {
            source: usize,
            partition: usize,
            is_pull: bool,
            holds_records: bool,
            size: u64,
        },
        Space(u64),
        Close,
    }

    fn event() -> impl Strategy<Value = Event> {
        prop_oneof![
            8 => (0..3usize, 0..2usize, any::<bool>(), prop::bool::weighted(0.8), 1..10u64).prop_map(
                |(source, partition, is_pull, holds_records, size)| Event::Arrival {
                    source,
                    partition,
                    is_pull,
                    holds_records,
                    size
                }
            ),
            3 => (0..20u64).prop_map(Event::Space),
            1 => Just(Event::Close),
        ]
    }

    proptest! {
        #[test]
        fn no_frame_of_a_partition_is_skipped_or_overtaken(events in prop::collection::vec(event(), 0..80)) {
            let mut model = Model { control_space: u64::MAX, ..Model::default() };
            let mut sent: Vec<Frame> = Vec::new();
            for event in events {
                match event {
                    Event::Arrival { source, partition, is_pull, holds_records, size } => {
                        let kind = if is_pull { "pull" } else { "push" };
                        let frame = Frame {
                            source: format!("{kind}{source}"),
                            partition: partition.to_string(),
                            is_pull,
                            holds_records,
                            offset: sent.len() as u64,
                            size,
                        };
                        sent.push(frame.clone());
                        let (waiting, is_blocked) = (model.deferred.waiting.len(), !model.deferred.is_empty());
                        model.receive(frame);
                        if !is_pull {
                            prop_assert_eq!(model.deferred.waiting.len(), waiting, "a frame that cannot wait never does");
                        }
                        if !is_pull && !holds_records {
                            prop_assert_eq!(model.stored.last().map(|f| f.offset), Some(sent.len() as u64 - 1));
                        }
                        if !is_pull && holds_records && is_blocked {
                            prop_assert_eq!(model.rejected.last().map(|f| f.offset), Some(sent.len() as u64 - 1));
                        }
                    }
                    Event::Space(bytes) => {
                        model.space += bytes;
                        model.retry();
                    }
                    Event::Close => {
                        model.is_closed = true;
                        model.retry();
                        prop_assert!(model.deferred.is_empty(), "no frame waits after the stop");
                    }
                }
            }
            model.space = u64::MAX;
            model.retry();
            prop_assert!(model.deferred.is_empty());
            prop_assert_eq!(model.stored.len() + model.rejected.len(), sent.len());
            for source in ["pull0", "pull1", "pull2"] {
                for partition in ["0", "1"] {
                    let offsets = |frames: &[Frame]| -> Vec<u64> {
                        let own = frames.iter().filter(|f| f.source == source && f.partition == partition);
                        own.map(|f| f.offset).collect()
                    };
                    let stored = offsets(&model.stored);
                    prop_assert_eq!(&stored[..], &offsets(&sent)[..stored.len()], "the stored frames came first");
                }
            }
        }
    }
}
