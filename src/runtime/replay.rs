//! Everything that was ever taken in, in its order: what is left of it where `raw` has lost its
//! beginning, then `raw` as far as it is committed there, then the log.

use std::path::PathBuf;
use std::sync::Arc;

use super::RuntimeError;
use super::retained_rows::RetainedRows;
use crate::config::PartitionBy;
use crate::decode::Decoded;
use crate::event::Lsn;
use crate::schema::Layout;
use crate::storage::Disk;
use crate::views::lake::replay::RawFrames;
use crate::views::lake::{LakeTable, LogName, TableSpec};
use crate::wal::{Frame, FrameAttributes, LogReader, RecordsBuilder, WalError};

/// Where history lies.
#[derive(Clone)]
pub struct ReplaySources {
    pub lake: PathBuf,
    pub log_folder: PathBuf,
    pub log: LogName,
    pub partition: PartitionBy,
    pub runtime: tokio::runtime::Handle,
}

/// A cursor over it.
pub struct ReplayReader {
    archive: ReplaySources,
    after: Lsn,
    from: ReplaySource,
    /// The first record that is whole.
    first: Lsn,
}

/// A frame; with its rows, where they are all that is left of it.
pub struct ReplayFrame {
    pub frame: Frame,
    pub decoded: Option<Decoded>,
}

enum ReplaySource {
    RetainedRows(Box<RetainedRows>),
    Raw(Box<RawFrames>),
    Log(LogReader),
}

impl ReplayReader {
    /// Everything above `after`.
    pub fn new(archive: ReplaySources, after: Lsn) -> Result<Self, RuntimeError> {
        let raw = archive.raw(after)?;
        Ok(Self {
            archive,
            after,
            from: ReplaySource::Raw(Box::new(raw)),
            first: 0,
        })
    }

    /// As [`Self::new`]; what came before the record `first` is what is kept of it.
    pub fn kept(archive: ReplaySources, after: Lsn, kept: RetainedRows, first: Lsn) -> Self {
        Self {
            archive,
            after,
            from: ReplaySource::RetainedRows(Box::new(kept)),
            first,
        }
    }

    /// The next frame, up to `limit`; none when that is reached. Its records are all above the one
    /// before.
    pub fn next(&mut self, limit: Lsn) -> Result<Option<ReplayFrame>, RuntimeError> {
        let mut was_missing = false;
        while self.after < limit {
            let next = match &mut self.from {
                ReplaySource::RetainedRows(kept) => {
                    match kept.next_piece().map_err(RuntimeError::Failed)? {
                        Some(piece) => {
                            self.after = piece.frame.header.last_lsn();
                            return Ok(Some(piece));
                        }
                        None => {
                            self.after = self.after.max(self.first - 1);
                            self.from = ReplaySource::Raw(Box::new(self.archive.raw(self.after)?));
                            None
                        }
                    }
                }
                ReplaySource::Raw(raw) => match raw.next_frame() {
                    Ok(Some(frame)) => Some(frame),
                    Ok(None) => {
                        self.from = ReplaySource::Log(self.archive.log(self.after));
                        None
                    }
                    Err(reason) if was_missing => return Err(RuntimeError::Failed(reason)),
                    // A merge may have replaced a file while it was read.
                    Err(reason) => {
                        tracing::debug!(reason, "`raw` is read again");
                        was_missing = true;
                        self.from = ReplaySource::Raw(Box::new(self.archive.raw(self.after)?));
                        None
                    }
                },
                ReplaySource::Log(log) => match log.next(limit) {
                    Ok(frame) => frame,
                    // It was trimmed meanwhile, perhaps while a segment was read: what left it is
                    // in `raw`.
                    Err(
                        WalError::Missing { .. } | WalError::Io { .. } | WalError::Damaged { .. },
                    ) if !was_missing => {
                        was_missing = true;
                        self.from = ReplaySource::Raw(Box::new(self.archive.raw(self.after)?));
                        None
                    }
                    Err(error) => return Err(error.into()),
                },
            };
            if let Some(frame) = next {
                let frame = behind(frame, self.after)?;
                self.after = frame.header.last_lsn();
                return Ok(Some(ReplayFrame {
                    frame,
                    decoded: None,
                }));
            }
        }
        Ok(None)
    }
}

impl ReplaySources {
    fn raw(&self, after: Lsn) -> Result<RawFrames, RuntimeError> {
        let layout = if self.partition == PartitionBy::Hour {
            Layout::Hours
        } else {
            Layout::Days
        };
        let spec = TableSpec::raw(&self.lake, layout);
        let table = LakeTable::open(spec.clone(), self.log, self.runtime.clone(), false)?;
        let files = table.map(|table| table.files()).unwrap_or_default();
        Ok(RawFrames::new(spec, &files, after))
    }

    fn log(&self, after: Lsn) -> LogReader {
        LogReader::new(Arc::new(Disk), self.log_folder.clone(), after)
    }

    /// The first record that is still there, in `raw` or in the log.
    pub fn first(&self) -> Result<Lsn, RuntimeError> {
        let zero = self.log.zero;
        let mut first = self.log(zero);
        let in_log = match first.next(zero + 1) {
            Err(WalError::Missing { to, .. }) => to + 1,
            Ok(_) => zero + 1,
            Err(error) => return Err(error.into()),
        };
        let in_raw = self.raw(zero)?.first();
        Ok(in_raw.map_or(in_log, |lsn| lsn.min(in_log)))
    }
}

/// A frame without the records up to `after`.
fn behind(frame: Frame, after: Lsn) -> Result<Frame, RuntimeError> {
    let skipped = (after + 1).saturating_sub(frame.header.first_lsn);
    if skipped == 0 {
        return Ok(frame);
    }
    let failed = |e: &dyn std::fmt::Display| {
        RuntimeError::Failed(format!("record {}: {e}", frame.header.first_lsn))
    };
    let all = frame.records().map_err(|e| failed(&e))?;
    let mut records = RecordsBuilder::default();
    all.iter()
        .skip(skipped as usize)
        .for_each(|record| records.push(record));
    let records = records.finish();
    let attributes = FrameAttributes {
        offsets: frame
            .attributes
            .offsets
            .iter()
            .skip(skipped as usize)
            .copied()
            .collect(),
        retry_of: frame
            .attributes
            .retry_of
            .iter()
            .skip(skipped as usize)
            .copied()
            .collect(),
        truncated_records: frame
            .attributes
            .truncated_records
            .iter()
            .filter(|(i, _)| *i >= skipped)
            .map(|(i, n)| (i - skipped, *n))
            .collect(),
        ..frame.attributes.clone()
    };
    let mut header = frame.header.clone();
    header.first_lsn = after + 1;
    Frame::data(header, &records, attributes).map_err(|e| failed(&e))
}
