//! Every accepted record, in order: the rows that are left of it where `raw` has lost its
//! beginning, then `raw` as far as it is committed, then the log.

use std::path::PathBuf;
use std::sync::Arc;

use super::super::RuntimeError;
use super::retained_rows::RetainedRows;
use crate::config::PartitionBy;
use crate::decode::Decoded;
use crate::event::Lsn;
use crate::schema::Layout;
use crate::storage::Disk;
use crate::views::LogIdentity;
use crate::views::lake::replay::RawFrames;
use crate::views::lake::{LakeTable, TableSpec};
use crate::wal::{Frame, LogReader, RecordsBuilder, WalError};

/// Where past records are.
#[derive(Clone)]
pub(super) struct ReplaySources {
    pub lake: PathBuf,
    pub log_folder: PathBuf,
    pub log: LogIdentity,
    pub partition: PartitionBy,
    pub runtime: tokio::runtime::Handle,
}

/// A cursor over past records.
pub(super) struct ReplayReader {
    sources: ReplaySources,
    /// Everything up to here was returned.
    after: Lsn,
    current: ReplaySource,
    /// The first intact record: those before it are retained rows.
    first_intact: Lsn,
}

/// A frame; with its rows, where they are all that is left of it.
pub(super) struct ReplayFrame {
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
    pub fn new(sources: ReplaySources, after: Lsn) -> Result<Self, RuntimeError> {
        let raw = sources.raw(after)?;
        Ok(Self {
            sources,
            after,
            current: ReplaySource::Raw(Box::new(raw)),
            first_intact: 0,
        })
    }

    /// As [`Self::new`]; records before the first intact one are replaced by retained rows.
    pub fn with_retained(
        sources: ReplaySources,
        after: Lsn,
        retained: RetainedRows,
        first_intact: Lsn,
    ) -> Self {
        Self {
            sources,
            after,
            current: ReplaySource::RetainedRows(Box::new(retained)),
            first_intact,
        }
    }

    /// The next frame, up to `limit`; none when that is reached. Its records are all above those of
    /// the frame before.
    ///
    /// While it reads, `raw` and the log change: a merge replaces files of `raw`, and what is
    /// trimmed from the log is in `raw` by then. So either is reopened once where reading fails.
    pub fn next(&mut self, limit: Lsn) -> Result<Option<ReplayFrame>, RuntimeError> {
        let mut is_retry = false;
        while self.after < limit {
            let next = match &mut self.current {
                ReplaySource::RetainedRows(retained) => {
                    match retained.next_frame().map_err(RuntimeError::Failed)? {
                        Some(frame) => {
                            self.after = frame.frame.header.last_lsn();
                            return Ok(Some(frame));
                        }
                        None => {
                            self.after = self.after.max(self.first_intact - 1);
                            self.reopen_raw()?;
                            None
                        }
                    }
                }
                ReplaySource::Raw(raw) => match raw.next_frame() {
                    Ok(Some(frame)) => Some(frame),
                    Ok(None) => {
                        self.current = ReplaySource::Log(self.sources.log(self.after));
                        None
                    }
                    Err(error) if is_retry => return Err(error.into()),
                    Err(error) => {
                        tracing::debug!(reason = error.to_string(), "reopening `raw`");
                        is_retry = true;
                        self.reopen_raw()?;
                        None
                    }
                },
                ReplaySource::Log(log) => match log.next(limit) {
                    Ok(frame) => frame,
                    Err(
                        WalError::Missing { .. } | WalError::Io { .. } | WalError::Damaged { .. },
                    ) if !is_retry => {
                        is_retry = true;
                        self.reopen_raw()?;
                        None
                    }
                    Err(error) => return Err(error.into()),
                },
            };
            if let Some(frame) = next {
                let frame = skip_records(frame, self.after)?;
                self.after = frame.header.last_lsn();
                return Ok(Some(ReplayFrame {
                    frame,
                    decoded: None,
                }));
            }
        }
        Ok(None)
    }

    fn reopen_raw(&mut self) -> Result<(), RuntimeError> {
        self.current = ReplaySource::Raw(Box::new(self.sources.raw(self.after)?));
        Ok(())
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

    /// The first record that still exists, in `raw` or in the log.
    pub fn first(&self) -> Result<Lsn, RuntimeError> {
        let start_lsn = self.log.start_lsn;
        let in_log = match self.log(start_lsn).next(start_lsn + 1) {
            Err(WalError::Missing { to, .. }) => to + 1,
            Ok(_) => start_lsn + 1,
            Err(error) => return Err(error.into()),
        };
        let in_raw = self.raw(start_lsn)?.first();
        Ok(in_raw.map_or(in_log, |lsn| lsn.min(in_log)))
    }
}

/// A frame without the records up to `after`.
fn skip_records(frame: Frame, after: Lsn) -> Result<Frame, RuntimeError> {
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
    let attributes = frame.attributes.skip(skipped as usize);
    let mut header = frame.header.clone();
    header.first_lsn = after + 1;
    Frame::data(header, &records, attributes).map_err(|e| failed(&e))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::wal::{FrameAttributes, Header, Kind};

    #[test]
    fn a_frame_is_read_from_the_middle_with_the_attributes_of_its_records() {
        let mut records = RecordsBuilder::default();
        for record in [b"a", b"b", b"c"] {
            records.push(record);
        }
        let records = records.finish();
        let header = Header {
            first_lsn: 10,
            source: "s".into(),
            partition: "p".into(),
            ..Header::new(Kind::Record, "t")
        };
        let attributes = FrameAttributes {
            offsets: vec![100, 200, 300],
            truncated_records: vec![(0, 7), (2, 9)],
            ..FrameAttributes::default()
        };
        let frame = Frame::data(header, &records, attributes).expect("memory");
        let rest = skip_records(frame.clone(), 10).expect("readable");
        assert_eq!((rest.header.first_lsn, rest.header.count), (11, 2));
        assert_eq!(rest.attributes.offsets, [200, 300]);
        assert_eq!(rest.attributes.truncated_records, [(1, 9)]);
        let records = rest.records().expect("readable");
        assert_eq!(records.iter().collect::<Vec<_>>(), [b"b", b"c"]);
        let all = skip_records(frame, 9).expect("readable");
        assert_eq!(all.header.count, 3);
    }
}
