//! Venues near a place, in exact great-circle order.

use serde_json::json;

use super::encode::write_object;
use super::spool::{SpooledAnswer, Spools};
use super::{Handles, QueryError};
use crate::event::{Micros, is_place, rfc3339};
use crate::ids::ViewId;

/// A query for venues near a place.
#[derive(Debug, Clone, Default)]
pub struct NearbyQuery {
    /// The first stream by default.
    pub stream: Option<String>,
    /// Degrees, north of the equator.
    pub lat: f64,
    /// Degrees, east of Greenwich.
    pub lon: f64,
    /// From 1 to [`MAX_VENUES`].
    pub limit: usize,
    /// The greatest distance, in metres.
    pub within_m: Option<f64>,
}

/// Maximum venues of an answer.
const MAX_VENUES: usize = 1_000;

/// `{"venues": [{"venue_id", "venue_name", "lat", "lon", "distance_m", "events": […]}], "as_of":
/// …}`.
pub fn nearby(
    query: &NearbyQuery,
    handles: &Handles,
    spools: &Spools,
    now: Micros,
) -> Result<SpooledAnswer, QueryError> {
    let stream = handles.stream(query.stream.as_deref())?;
    let name = &stream.name;
    let (Some(def), Some(places)) = (&stream.def.places, handles.places.get(name)) else {
        return Err(QueryError::NotFound(format!(
            "stream `{name}` declares no `places`"
        )));
    };
    if !is_place((query.lat, query.lon)) {
        let message =
            "lat must be between -90 and 90, lon between -180 and 180; 0,0 means an unknown place";
        return Err(QueryError::Invalid(message.into()));
    }
    if query.limit == 0 || query.limit > MAX_VENUES {
        return Err(QueryError::Limit(format!(
            "limit = {}: from 1 to {MAX_VENUES}",
            query.limit
        )));
    }
    let (found, lsn) = places
        .nearby(query.lat, query.lon, query.limit, query.within_m)
        .map_err(|e| QueryError::Failed(e.to_string()))?;
    let is_number = |column: &str| {
        stream
            .output
            .field_with_name(column)
            .is_ok_and(|f| *f.data_type() == arrow::datatypes::DataType::Int64)
    };
    let (venue_is_number, event_is_number) = (is_number(&def.venue), is_number(&def.event));
    let id = |text: &str, is_number: bool| match text.parse::<i64>() {
        Ok(number) if is_number => json!(number),
        _ => json!(text),
    };
    let venues = found.iter().map(|v| {
        let events = v
            .events
            .iter()
            .map(|(event, date)| json!({"event_id": id(event, event_is_number), "date": date.map(rfc3339)}));
        Ok(json!({
            "venue_id": id(&v.id, venue_is_number),
            "venue_name": v.name,
            "lat": v.lat,
            "lon": v.lon,
            "distance_m": v.distance_m,
            "events": events.collect::<Vec<_>>(),
        }))
    });
    let as_of = handles.progress.as_of(
        lsn,
        std::slice::from_ref(name),
        &[ViewId::places(name)],
        now,
    );
    let mut out = spools.begin();
    write_object(&mut out, &[], "venues", |out| out.list(venues), &as_of)?;
    out.finish()
}
