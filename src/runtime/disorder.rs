//! Detects input whose order does not fit the stream's `watermark.disorder`: newest first, or
//! shuffled. Nothing is lost, but windows that have closed leave such events out, so results look
//! almost empty.

use std::sync::Arc;
use std::time::Duration;

use crate::clock::Clock;
use crate::config::units::Span;
use crate::config::{Config, ReadOrder, SourceKind};
use crate::operators::Totals;
use crate::schema::{Catalog, Stream};

use super::{RuntimeError, dry_run};

/// Where one event in so many is late, a notice is due. Live streams have one in a hundred.
const NOTICE_ONE_IN: u64 = 10;
/// Bytes of a file that are read before anything is taken in.
const SAMPLE_BYTES: usize = 8 << 20;

/// A notice for the user of a stream of whose events many were late. Pure.
pub fn notice(stream: &Stream, counted: &Totals) -> Option<String> {
    let Totals {
        events,
        late,
        max_lateness,
        ..
    } = *counted;
    if late == 0 || late * NOTICE_ONE_IN < events {
        return None;
    }
    let disorder = stream.def.watermark.disorder;
    let needed = round_up(disorder.micros().saturating_add(max_lateness));
    Some(format!(
        "{late} of {events} events of `{name}` came later than `watermark.disorder` ({disorder}) allows, by up to {by}: windows \
         that had closed leave them out; set `watermark = {{ disorder = \"{needed}\" }}` under [streams.{name}], sort the input \
         by time, or, where it is one file that is complete, write `order = \"event_time\"` in its source",
        name = stream.name,
        by = round_up(max_lateness),
    ))
}

/// The duration in the largest unit of which it has at least two, rounded up.
fn round_up(micros: i64) -> Span {
    const SECOND: u64 = 1_000_000;
    let micros = micros.max(0).unsigned_abs();
    let units = [86_400 * SECOND, 3_600 * SECOND, 60 * SECOND, SECOND, 1_000];
    let unit = units
        .into_iter()
        .find(|unit| micros >= 2 * unit)
        .unwrap_or(1_000);
    Span(Duration::from_micros(
        micros.div_ceil(unit).saturating_mul(unit),
    ))
}

/// Notices on the beginning of each single file that a source reads in the file's order. Does not
/// touch the data folder.
pub fn of_files(
    config: &Config,
    catalog: &Arc<Catalog>,
    clock: &dyn Clock,
) -> Result<Vec<String>, RuntimeError> {
    let mut notices = Vec::new();
    for source in &config.sources {
        let SourceKind::File(def) = &source.kind else {
            continue;
        };
        if def.order == ReadOrder::EventTime {
            continue;
        }
        let Some(path) = Some(&def.path).filter(|path| path.is_file()) else {
            continue;
        };
        let Some(stream) = catalog.streams.get(&source.stream) else {
            continue;
        };
        let Ok(file) = std::fs::File::open(path) else {
            continue;
        };
        // What cannot be read is reported when it is taken in, record by record.
        let Ok(records) = dry_run::read(
            file,
            source.unwrap.as_deref(),
            config.limits.record,
            Some(SAMPLE_BYTES),
        ) else {
            continue;
        };
        let counted = dry_run::count(catalog, &source.stream, &records, clock.now())?;
        notices.extend(notice(stream, &counted).map(|text| format!("{}: {text}", path.display())));
    }
    Ok(notices)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn durations_are_rounded_up_to_a_whole_unit() {
        let second = 1_000_000;
        for (micros, shown) in [
            (1, "1ms"),
            (1_500 * 1_000, "1500ms"),
            (61 * second, "61s"),
            (121 * second, "3m"),
        ] {
            assert_eq!(round_up(micros).to_string(), shown);
        }
        assert_eq!(round_up(30 * 86_400 * second + 1).to_string(), "31d");
    }

    #[test]
    fn a_notice_names_a_sufficient_disorder() {
        let text = "data = \"d\"\n[streams.a]\nschema = \"t bigint not null\"\nselect = \"select to_timestamp_millis(t) as event_time from a\"\n";
        let config = crate::config::parse(None, text.into(), None, &|_| None).expect("parses");
        let catalog = Catalog::from_config(&config).expect("plans");
        let stream = &catalog.streams["a"];
        let counted = Totals {
            events: 100,
            late: 9,
            max_lateness: 50_000_000,
            ..Totals::default()
        };
        assert_eq!(notice(stream, &counted), None);
        let text = notice(
            stream,
            &Totals {
                late: 10,
                ..counted
            },
        )
        .expect("a tenth is late");
        assert!(
            text.contains("10 of 100 events of `a`") && text.contains("disorder = \"1m\""),
            "{text}"
        );
    }
}
