//! Which venues are near: exact great-circle order.

use serde_json::json;

use super::encode::write_object;
use super::spool::{Spools, Whole};
use super::{Handles, QueryError};
use crate::event::{Micros, is_place, rfc3339};
use crate::operators::checkpoints;

/// What is asked.
#[derive(Debug, Clone, Default)]
pub struct NearbyQuery {
    pub stream: Option<String>,
    pub lat: f64,
    pub lon: f64,
    pub limit: usize,
    pub within_m: Option<f64>,
}

/// Most venues that one answer names.
const MAX_VENUES: usize = 1_000;

/// `{"venues": [{"venue_id", "venue_name", "lat", "lon", "distance_m", "events": […]}], "as_of":
/// …}`.
pub fn nearby(
    question: &NearbyQuery,
    handles: &Handles,
    spools: &Spools,
    now: Micros,
) -> Result<Whole, QueryError> {
    let stream = handles.stream(question.stream.as_deref())?;
    let name = &stream.name;
    let (Some(def), Some(places)) = (&stream.def.places, handles.places.get(name)) else {
        return Err(QueryError::NotFound(format!(
            "stream `{name}` declares no `places`"
        )));
    };
    if !is_place((question.lat, question.lon)) {
        let message = "lat lies between -90 and 90, lon between -180 and 180, and 0,0 stands for an unknown place";
        return Err(QueryError::Invalid(message.into()));
    }
    if question.limit == 0 || question.limit > MAX_VENUES {
        return Err(QueryError::Limit(format!(
            "limit = {}: from 1 to {MAX_VENUES}",
            question.limit
        )));
    }
    let (found, lsn) = places
        .nearby(
            question.lat,
            question.lon,
            question.limit,
            question.within_m,
        )
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
        &[checkpoints::places(name)],
        now,
    );
    let mut out = spools.begin();
    write_object(&mut out, &[], "venues", |out| out.list(venues), &as_of)?;
    out.finish()
}
