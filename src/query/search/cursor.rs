//! Cursors of result pages.

use std::fmt;

use super::Sort;
use crate::event::{Lsn, Micros};
use crate::query::QueryError;

/// A cursor by rank expires after this time, and after this many hits.
const RANK_CURSOR_MICROS: Micros = 300 * 1_000_000;
const RANK_CURSOR_HITS: usize = 1_000;

/// The end of a page. `max_lsn`, the first page's LSN, keeps newer records out of all later pages.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Cursor {
    Time {
        time: Micros,
        lsn: Lsn,
        max_lsn: Lsn,
    },
    Rank {
        offset: usize,
        created_at: Micros,
        max_lsn: Lsn,
    },
}

impl Cursor {
    /// Reads a client's `after`.
    pub fn parse(text: &str) -> Result<Self, QueryError> {
        Self::from_text(text).ok_or_else(|| {
            QueryError::Invalid(format!(
                "after = `{text}` is not a cursor: use the `next` of the previous page"
            ))
        })
    }

    fn from_text(text: &str) -> Option<Self> {
        let mut parts = text.split('.');
        let (kind, a, b, c) = (parts.next()?, parts.next()?, parts.next()?, parts.next()?);
        match kind {
            "t" => Some(Self::Time {
                time: a.parse().ok()?,
                lsn: b.parse().ok()?,
                max_lsn: c.parse().ok()?,
            }),
            "r" => Some(Self::Rank {
                offset: a.parse().ok()?,
                created_at: b.parse().ok()?,
                max_lsn: c.parse().ok()?,
            }),
            _ => None,
        }
    }

    /// The last record that the first page could show; later pages show none after it.
    pub fn max_lsn(&self) -> Lsn {
        match self {
            Self::Time { max_lsn, .. } | Self::Rank { max_lsn, .. } => *max_lsn,
        }
    }

    /// The cursor after a page by rank of `hits` hits, whose own cursor was `previous`.
    pub fn after_rank(previous: Option<Self>, hits: usize, max_lsn: Lsn, now: Micros) -> Self {
        let (offset, created_at) = match previous {
            Some(Self::Rank {
                offset, created_at, ..
            }) => (offset, created_at),
            _ => (0, now),
        };
        Self::Rank {
            offset: offset + hits,
            created_at,
            max_lsn,
        }
    }
}

impl fmt::Display for Cursor {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Time { time, lsn, max_lsn } => write!(f, "t.{time}.{lsn}.{max_lsn}"),
            Self::Rank {
                offset,
                created_at,
                max_lsn,
            } => write!(f, "r.{offset}.{created_at}.{max_lsn}"),
        }
    }
}

/// The number of hits by rank on the previous pages. Rejects a cursor of the other order, and one
/// that has expired.
pub(super) fn rank_offset(
    sort: Sort,
    cursor: Option<Cursor>,
    now: Micros,
) -> Result<usize, QueryError> {
    match (sort, cursor) {
        (Sort::Time, Some(Cursor::Rank { .. })) | (Sort::Rank, Some(Cursor::Time { .. })) => Err(
            QueryError::Invalid("this cursor belongs to the other --sort".into()),
        ),
        (
            Sort::Rank,
            Some(Cursor::Rank {
                offset, created_at, ..
            }),
        ) => {
            if now - created_at > RANK_CURSOR_MICROS || offset >= RANK_CURSOR_HITS {
                let message = format!(
                    "a cursor by rank expires after 5 minutes and after {RANK_CURSOR_HITS} hits; search again, or use --sort time"
                );
                return Err(QueryError::Invalid(message));
            }
            Ok(offset)
        }
        _ => Ok(0),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const TIME: Cursor = Cursor::Time {
        time: -5,
        lsn: 7,
        max_lsn: 9,
    };

    fn rank(offset: usize, created_at: Micros) -> Cursor {
        Cursor::Rank {
            offset,
            created_at,
            max_lsn: 9,
        }
    }

    #[test]
    fn cursors_round_trip() {
        assert_eq!(TIME.to_string(), "t.-5.7.9");
        assert_eq!(rank(20, 1).to_string(), "r.20.1.9");
        for cursor in [TIME, rank(20, 1)] {
            assert_eq!(Cursor::parse(&cursor.to_string()).ok(), Some(cursor));
        }
        for text in ["", "x.1.2.3", "t.1.2", "r.-1.2.3"] {
            assert!(Cursor::parse(text).is_err(), "{text}");
        }
    }

    #[test]
    fn a_cursor_by_rank_has_an_offset_and_expires() {
        let (now, hits) = (RANK_CURSOR_MICROS, RANK_CURSOR_HITS);
        for (sort, cursor, expected) in [
            (Sort::Time, None, Some(0)),
            (Sort::Time, Some(TIME), Some(0)),
            (Sort::Time, Some(rank(20, now)), None),
            (Sort::Rank, None, Some(0)),
            (Sort::Rank, Some(TIME), None),
            (Sort::Rank, Some(rank(20, 0)), Some(20)),
            (Sort::Rank, Some(rank(20, -1)), None),
            (Sort::Rank, Some(rank(hits - 1, 0)), Some(hits - 1)),
            (Sort::Rank, Some(rank(hits, 0)), None),
        ] {
            assert_eq!(rank_offset(sort, cursor, now).ok(), expected, "{cursor:?}");
        }
        assert_eq!(Cursor::after_rank(None, 20, 9, 3), rank(20, 3));
        assert_eq!(Cursor::after_rank(Some(rank(20, 1)), 20, 9, 3), rank(40, 1));
    }
}
