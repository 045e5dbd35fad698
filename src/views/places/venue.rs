//! How a venue and its edges lie in the file.

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

/// Bytes of a venue in memory beside its texts: two table entries.
const OVERHEAD: usize = 160;

#[derive(Debug, Clone, PartialEq)]
pub(super) struct Venue {
    /// The order in which venues came; its point carries it.
    pub number: u32,
    /// Day since 1970 on which an event last named it.
    pub seen: i64,
    pub lat: f64,
    pub lon: f64,
    pub version: i64,
    pub name: Box<str>,
}

impl Venue {
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

/// The venue's id and the byte behind it: what all keys of its edges begin with.
pub(super) fn edges_of(venue: &str) -> Vec<u8> {
    let mut prefix = venue.as_bytes().to_vec();
    prefix.push(0);
    prefix
}

/// The key behind all edges of the venue.
pub(super) fn edges_end(venue: &str) -> Vec<u8> {
    let mut end = venue.as_bytes().to_vec();
    end.push(1);
    end
}

/// What of an edge's key follows [`edges_of`] its venue; written over `out`.
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

/// Whether an edge's date lies before the floor; one without a date does not.
pub(super) fn is_before(date: Option<Micros>, floor: Option<Micros>) -> bool {
    date.zip(floor).is_some_and(|(date, floor)| date < floor)
}

/// What one transaction sees of the file.
pub(super) struct Stored {
    venues: Option<ReadOnlyTable<&'static str, &'static [u8]>>,
    numbers: Option<ReadOnlyTable<u32, &'static str>>,
    edges: Option<ReadOnlyTable<&'static [u8], ()>>,
}

impl Stored {
    pub fn open(transaction: &ReadTransaction) -> Result<Self, ViewError> {
        Ok(Self {
            venues: open_table(transaction, VENUES)?,
            numbers: open_table(transaction, NUMBERS)?,
            edges: open_table(transaction, EDGES)?,
        })
    }

    pub fn venue(&self, id: &str) -> Result<Option<Venue>, ViewError> {
        let Some(venues) = &self.venues else {
            return Ok(None);
        };
        Ok(venues
            .get(id)
            .map_err(failed)?
            .and_then(|v| Venue::decode(v.value())))
    }

    pub fn id(&self, number: u32) -> Result<Option<Arc<str>>, ViewError> {
        let Some(numbers) = &self.numbers else {
            return Ok(None);
        };
        Ok(numbers
            .get(number)
            .map_err(failed)?
            .map(|id| id.value().into()))
    }

    /// Every venue.
    pub fn each(&self, mut take: impl FnMut(Venue)) -> Result<(), ViewError> {
        let Some(venues) = &self.venues else {
            return Ok(());
        };
        for entry in venues.iter().map_err(failed)? {
            let (_, value) = entry.map_err(failed)?;
            if let Some(venue) = Venue::decode(value.value()) {
                take(venue);
            }
        }
        Ok(())
    }

    /// The first edges of a venue, at most `most`, without what names the venue: latest date first.
    pub fn edges(&self, venue: &str, most: usize) -> Result<Vec<Vec<u8>>, ViewError> {
        let Some(edges) = &self.edges else {
            return Ok(Vec::new());
        };
        let (low, high) = (edges_of(venue), edges_end(venue));
        let found = edges
            .range::<&[u8]>(low.as_slice()..high.as_slice())
            .map_err(failed)?;
        found
            .take(most)
            .map(|edge| Ok(edge.map_err(failed)?.0.value()[low.len()..].to_vec()))
            .collect()
    }
}
