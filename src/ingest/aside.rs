//! Frames of pull sources that wait for room in the log, while everything else passes them.
//!
//! A pull source's position says that everything before it is stored, so a frame of its partition
//! may neither be passed over nor overtaken by a later one. What waits here is bounded by the bytes
//! that the queue admits.

use std::collections::{BTreeSet, VecDeque};

/// What decides about a frame.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Claim<'a> {
    pub source: &'a str,
    pub partition: &'a str,
    /// It carries a position, so its source can wait.
    pub is_pull: bool,
    /// It holds records; a control frame has a part of the log for itself.
    pub holds_records: bool,
}

/// What is done with a frame that has come.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Turn {
    /// It is given to the log.
    Try,
    /// It waits behind others.
    Wait,
    /// It finds no room, and cannot wait.
    Refuse,
    /// An earlier frame of its source was refused for good: a later one would pass over it.
    RefuseForGood,
}

/// A frame with what decides about it.
pub trait Claims {
    fn claim(&self) -> Claim<'_>;
}

/// The frames that wait, in the order in which they go on.
#[derive(Debug)]
pub struct Aside<T> {
    waiting: VecDeque<T>,
    /// Pull sources of which a frame was refused.
    refused: BTreeSet<String>,
}

impl<T> Default for Aside<T> {
    fn default() -> Self {
        Self {
            waiting: VecDeque::new(),
            refused: BTreeSet::new(),
        }
    }
}

impl<T: Claims> Aside<T> {
    pub fn is_empty(&self) -> bool {
        self.waiting.is_empty()
    }

    /// Whose turn it is: who waits goes first.
    pub fn turn(&self, claim: Claim<'_>) -> Turn {
        if claim.is_pull && self.refused.contains(claim.source) {
            return Turn::RefuseForGood;
        }
        let is_same = |other: Claim<'_>| {
            (other.source, other.partition) == (claim.source, claim.partition) && claim.is_pull
        };
        let overtakes =
            claim.holds_records || self.waiting.iter().any(|frame| is_same(frame.claim()));
        match (self.is_empty() || !overtakes, claim.is_pull) {
            (true, _) => Turn::Try,
            (false, true) => Turn::Wait,
            (false, false) => Turn::Refuse,
        }
    }

    /// Queues a frame after all others.
    pub fn put(&mut self, frame: T) {
        self.waiting.push_back(frame);
    }

    /// The frame that has waited longest.
    pub fn take(&mut self) -> Option<T> {
        self.waiting.pop_front()
    }

    /// It found no room again, and stays the first.
    pub fn put_back(&mut self, frame: T) {
        self.waiting.push_front(frame);
    }

    /// A pull source's frame was refused: every later one of that source is.
    pub fn refuse_source(&mut self, source: &str) {
        if !self.refused.contains(source) {
            self.refused.insert(source.to_owned());
        }
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

    impl Claims for Frame {
        fn claim(&self) -> Claim<'_> {
            let Self {
                source,
                partition,
                is_pull,
                holds_records,
                ..
            } = self;
            Claim {
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
        aside: Aside<Frame>,
        room: u64,
        control_room: u64,
        is_closed: bool,
        stored: Vec<Frame>,
        refused: Vec<Frame>,
    }

    impl Model {
        fn fits(&mut self, frame: &Frame) -> bool {
            let room = if frame.holds_records {
                &mut self.room
            } else {
                &mut self.control_room
            };
            let fits = frame.size <= *room;
            *room -= if fits { frame.size } else { 0 };
            fits
        }

        fn come(&mut self, frame: Frame) {
            match self.aside.turn(frame.claim()) {
                Turn::Try if self.fits(&frame) => self.stored.push(frame),
                Turn::Try if frame.is_pull && !self.is_closed => self.aside.put(frame),
                Turn::Wait => self.aside.put(frame),
                _ => self.refuse(frame),
            }
        }

        fn refuse(&mut self, frame: Frame) {
            if frame.is_pull {
                self.aside.refuse_source(&frame.source);
            }
            self.refused.push(frame);
        }

        fn go_on(&mut self) {
            while let Some(frame) = self.aside.take() {
                if self.aside.turn(frame.claim()) == Turn::RefuseForGood {
                    self.refuse(frame);
                } else if self.fits(&frame) {
                    self.stored.push(frame);
                } else if self.is_closed {
                    self.refuse(frame);
                } else {
                    return self.aside.put_back(frame);
                }
            }
        }
    }

    #[derive(Debug, Clone)]
    enum Event {
        Come {
            source: usize,
            partition: usize,
            is_pull: bool,
            holds_records: bool,
            size: u64,
        },
        Room(u64),
        Close,
    }

    fn event() -> impl Strategy<Value = Event> {
        prop_oneof![
            8 => (0..3usize, 0..2usize, any::<bool>(), prop::bool::weighted(0.8), 1..10u64).prop_map(
                |(source, partition, is_pull, holds_records, size)| Event::Come {
                    source,
                    partition,
                    is_pull,
                    holds_records,
                    size
                }
            ),
            3 => (0..20u64).prop_map(Event::Room),
            1 => Just(Event::Close),
        ]
    }

    proptest! {
        #[test]
        fn no_frame_of_a_partition_is_passed_over_or_overtaken(events in prop::collection::vec(event(), 0..80)) {
            let mut model = Model { control_room: u64::MAX, ..Model::default() };
            let mut sent: Vec<Frame> = Vec::new();
            for event in events {
                match event {
                    Event::Come { source, partition, is_pull, holds_records, size } => {
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
                        let (waiting, is_blocked) = (model.aside.waiting.len(), !model.aside.is_empty());
                        model.come(frame);
                        if !is_pull {
                            prop_assert_eq!(model.aside.waiting.len(), waiting, "who cannot wait never does");
                        }
                        if !is_pull && !holds_records {
                            prop_assert_eq!(model.stored.last().map(|f| f.offset), Some(sent.len() as u64 - 1));
                        }
                        if !is_pull && holds_records && is_blocked {
                            prop_assert_eq!(model.refused.last().map(|f| f.offset), Some(sent.len() as u64 - 1));
                        }
                    }
                    Event::Room(bytes) => {
                        model.room += bytes;
                        model.go_on();
                    }
                    Event::Close => {
                        model.is_closed = true;
                        model.go_on();
                        prop_assert!(model.aside.is_empty(), "nobody waits once everything stops");
                    }
                }
            }
            model.room = u64::MAX;
            model.go_on();
            prop_assert!(model.aside.is_empty());
            prop_assert_eq!(model.stored.len() + model.refused.len(), sent.len());
            for source in ["pull0", "pull1", "pull2"] {
                for partition in ["0", "1"] {
                    let of = |frames: &[Frame]| -> Vec<u64> {
                        let own = frames.iter().filter(|f| f.source == source && f.partition == partition);
                        own.map(|f| f.offset).collect()
                    };
                    let stored = of(&model.stored);
                    prop_assert_eq!(&stored[..], &of(&sent)[..stored.len()], "what is stored is what came first");
                }
            }
        }
    }
}
