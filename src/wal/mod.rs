//! The write-ahead log: frames of opaque records in segment files, numbered, checked, synced.
//! Everything else in Weir is a function of a prefix of it.
//!
//! `frame` defines a frame's bytes, `segment` a file's. `recovery` opens the log after a
//! crash, `writer` appends, `reader` reads what is synced, `backup` copies. `space`: how
//! large a new segment may be; `retention`: which segments may be deleted.

mod attributes;
pub(crate) mod backup;
mod error;
pub(crate) mod frame;
mod reader;
mod recovery;
pub(crate) mod retention;
pub mod segment;
mod space;
mod writer;

pub use attributes::{
    FileIdentity, FrameAttributes, LastRecord, RecordIdentities, RecordIdentity, Sorted,
};
pub use error::{DamagedFrame, WalError};
pub use frame::{Frame, Header, Kind, Records, RecordsBuilder};
pub use reader::LogReader;
pub use recovery::{LastFrame, Recovered, TornTail};
pub use writer::{Wal, WalOptions};
