//! The file's format of a venue and its edges.

use std::sync::Arc;

use redb::{ReadOnlyTable, ReadTransaction, ReadableTable, TableDefinition};

use super::failed;
use crate::event::Micros;
use crate::views::ViewError;
use crate::views::state_store::open_table;

/// Venue id → see [`Venue::encode`].
pub(super) const VENUES: TableDefinition<&str, &[u8]> = TableDefinition::new("venues");
/// Venue number → id.
pub(super) const NUMBERS: TableDefinition<u32, &str> = TableDefinition::new("numbers");
/// Venue id, zero byte, date i64 (big-endian, sign and order flipped: latest first), event id →
/// nothing.
pub(super) const EDGES: TableDefinition<&[u8], ()> = TableDefinition::new("edges");

/// Bytes of a venue in memory in addition to its texts: two table entries.
const OVERHEAD: usize = 160;

#[derive(Debug, Clone, PartialEq)]
pub(super) struct Venue {
    /// Ascending in the order of creation; the venue's point carries it.
    pub number: u32,
    /// Day since 1970 of its last event.
    pub seen: i64,
    /// In degrees.
    pub lat: f64,
    pub lon: f64,
    /// That of the row from which position and name are.
    pub version: i64,
    pub name: Box<str>,
}

impl Venue {
    /// Bytes in the cache, approximately.
    pub fn memory_bytes(&self, id: &str) -> usize {
        OVERHEAD + 2 * id.len() + self.name.len()
    }

    /// u32 number, i64 seen, f64 lat, f64 lon, i64 version, little-endian, then the name.
    pub fn encode(&self) -> Vec<u8> {
        let mut out = self.number.to_le_bytes().to_vec();
        out.extend_from_slice(&self.seen.to_le_bytes());
        out.extend_from_slice(&self.lat.to_le_bytes());
        out.extend_from_slice(&self.lon.to_le_bytes());
        out.extend_from_slice(&self.version.to_le_bytes());
        out.extend_from_slice(self.name.as_bytes());
        out
    }

    /// `None` for bytes that are not a venue.
    pub fn decode(bytes: &[u8]) -> Option<Self> {
        let (number, rest) = bytes.split_first_chunk::<4>()?;
        let (seen, rest) = rest.split_first_chunk::<8>()?;
        let (lat, rest) = rest.split_first_chunk::<8>()?;
        let (lon, rest) = rest.split_first_chunk::<8>()?;
        let (version, name) = rest.split_first_chunk::<8>()?;
        Some(Self {
            number: u32::from_le_bytes(*number),
            seen: i64::from_le_bytes(*seen),
            lat: f64::from_le_bytes(*lat),
            lon: f64::from_le_bytes(*lon),
            version: i64::from_le_bytes(*version),
            name: String::from_utf8_lossy(name).into(),
        })
    }
}

/// The prefix of the keys of a venue's edges: its id and a zero byte.
pub(super) fn edges_prefix(venue: &str) -> Vec<u8> {
    let mut prefix = venue.as_bytes().to_vec();
    prefix.push(0);
    prefix
}

/// The first key after all edges of the venue.
pub(super) fn edges_end(venue: &str) -> Vec<u8> {
    let mut end = venue.as_bytes().to_vec();
    end.push(1);
    end
}

/// An edge's key after [`edges_prefix`]; written over `out`.
pub(super) fn write_edge(date: Option<Micros>, event: &str, out: &mut Vec<u8>) {
    // An edge without a date comes last.
    let order = !(date.unwrap_or(Micros::MIN) as u64 ^ (1 << 63));
    out.clear();
    out.extend_from_slice(&order.to_be_bytes());
    out.extend_from_slice(event.as_bytes());
}

/// Event and date of an edge, as [`write_edge`] wrote them.
pub(super) fn split_edge(edge: &[u8]) -> Option<(String, Option<Micros>)> {
    let (order, event) = edge.split_first_chunk::<8>()?;
    let date = (!u64::from_be_bytes(*order) ^ (1 << 63)) as i64;
    Some((
        String::from_utf8_lossy(event).into_owned(),
        (date != Micros::MIN).then_some(date),
    ))
}

/// Whether an edge's date is before the floor; false for one without a date.
pub(super) fn is_before(date: Option<Micros>, floor: Option<Micros>) -> bool {
    date.zip(floor).is_some_and(|(date, floor)| date < floor)
}

/// The file as one transaction sees it; empty without a file.
#[derive(Default)]
pub(super) struct StoredVenues {
    venues: Option<ReadOnlyTable<&'static str, &'static [u8]>>,
    numbers: Option<ReadOnlyTable<u32, &'static str>>,
    edges: Option<ReadOnlyTable<&'static [u8], ()>>,
}

impl StoredVenues {
    /// The tables that a transaction sees.
    pub fn open(transaction: &ReadTransaction) -> Result<Self, ViewError> {
        Ok(Self {
            venues: open_table(transaction, VENUES)?,
            numbers: open_table(transaction, NUMBERS)?,
            edges: open_table(transaction, EDGES)?,
        })
    }

    /// A venue by its id.
    pub fn venue(&self, id: &str) -> Result<Option<Venue>, ViewError> {
        let Some(venues) = &self.venues else {
            return Ok(None);
        };
        Ok(venues
            .get(id)
            .map_err(failed)?
            .and_then(|v| Venue::decode(v.value())))
    }

    /// The id of a venue, by its number.
    pub fn id(&self, number: u32) -> Result<Option<Arc<str>>, ViewError> {
        let Some(numbers) = &self.numbers else {
            return Ok(None);
        };
        Ok(numbers
            .get(number)
            .map_err(failed)?
            .map(|id| id.value().into()))
    }

    /// Visits every venue.
    pub fn for_each(&self, mut visit: impl FnMut(Venue)) -> Result<(), ViewError> {
        let Some(venues) = &self.venues else {
            return Ok(());
        };
        for entry in venues.iter().map_err(failed)? {
            let (_, value) = entry.map_err(failed)?;
            if let Some(venue) = Venue::decode(value.value()) {
                visit(venue);
            }
        }
        Ok(())
    }

    /// The first edges of a venue, at most `limit`, without the prefix: latest date first.
    pub fn edges(&self, venue: &str, limit: usize) -> Result<Vec<Vec<u8>>, ViewError> {
        let Some(edges) = &self.edges else {
            return Ok(Vec::new());
        };
        let (low, high) = (edges_prefix(venue), edges_end(venue));
        let found = edges
            .range::<&[u8]>(low.as_slice()..high.as_slice())
            .map_err(failed)?;
        found
            .take(limit)
            .map(|edge| Ok(edge.map_err(failed)?.0.value()[low.len()..].to_vec()))
            .collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_venue_reads_back() {
        let venue = Venue {
            number: 7,
            seen: -3,
            lat: 47.5,
            lon: -8.25,
            version: i64::MIN,
            name: "Café".into(),
        };
        assert_eq!(Venue::decode(&venue.encode()), Some(venue.clone()));
        assert_eq!(Venue::decode(&venue.encode()[..35]), None);
    }

    #[test]
    fn edges_are_in_the_order_of_dates_latest_first() {
        let dates = [Some(5), Some(0), Some(-5), None];
        let edges = dates.map(|date| {
            let mut edge = Vec::new();
            write_edge(date, "e", &mut edge);
            assert_eq!(split_edge(&edge), Some(("e".into(), date)));
            edge
        });
        assert!(edges.is_sorted());
        assert!(is_before(Some(4), Some(5)) && !is_before(None, Some(5)));
        assert!(edges_prefix("v") < edges_end("v"));
    }
}
