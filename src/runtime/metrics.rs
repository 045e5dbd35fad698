//! What `/metrics` shows, set once a second from the state that queries read.

use std::path::Path;

use super::maintenance::folder_bytes;
use crate::config::VENUE_BYTES;
use crate::event::{Lsn, SinkState, SourceState};
use crate::ids::ViewId;
use crate::query::Handles;

/// `parts`: bytes in use per share of the memory, in addition to unflushed rows, places and counts.
pub(super) fn publish(
    handles: &Handles,
    views: &[(ViewId, Lsn, Option<String>)],
    log: &Path,
    parts: &[(&'static str, usize)],
) {
    let progress = &handles.progress;
    let synced = progress.synced_lsn();
    metrics::gauge!("weir_log_synced_lsn").set(synced as f64);
    metrics::gauge!("weir_log_bytes").set(folder_bytes(log) as f64);
    for (view, applied, _) in views {
        let view = view.to_string();
        metrics::gauge!("weir_view_position", "view" => view.clone()).set(*applied as f64);
        metrics::gauge!("weir_view_lag_records", "view" => view)
            .set(synced.saturating_sub(*applied) as f64);
    }
    for (name, stream) in progress.streams() {
        let totals = stream.totals;
        metrics::counter!("weir_source_records_total", "stream" => name.clone())
            .absolute(totals.events + totals.dead_letters);
        for (reason, count) in stream.reasons {
            metrics::counter!("weir_rejected_total", "stream" => name.clone(), "reason" => reason)
                .absolute(count);
        }
        metrics::counter!("weir_late_total", "stream" => name.clone()).absolute(totals.late);
        metrics::gauge!("weir_open_sessions", "stream" => name.clone())
            .set(stream.open_sessions as f64);
        metrics::counter!("weir_abandoned_sessions_total", "stream" => name.clone())
            .absolute(totals.abandoned_sessions);
        metrics::counter!("weir_duplicates_total", "stream" => name).absolute(totals.duplicates);
    }
    for (name, health) in progress.sources() {
        for state in SourceState::ALL {
            metrics::gauge!("weir_source_state", "source" => name.clone(), "state" => state.name())
                .set(f64::from(u8::from(health.state == state)));
        }
        for (partition, lag) in &health.lag {
            let (source, partition) = (name.clone(), partition.clone());
            metrics::gauge!("weir_source_lag_records", "source" => source, "partition" => partition)
                .set(*lag as f64);
        }
        metrics::gauge!("weir_source_waiting", "source" => name).set(health.waiting_total as f64);
    }
    for (name, health) in progress.sinks() {
        for state in SinkState::ALL {
            metrics::gauge!("weir_sink_state", "sink" => name.clone(), "state" => state.name())
                .set(f64::from(u8::from(health.state == state)));
        }
        let lag = progress.synced_lsn().saturating_sub(health.lsn);
        metrics::gauge!("weir_sink_lag_records", "sink" => name.clone()).set(lag as f64);
        metrics::gauge!("weir_sink_lsn", "sink" => name.clone()).set(health.lsn as f64);
        metrics::counter!("weir_sink_rows_total", "sink" => name.clone()).absolute(health.rows);
        metrics::counter!("weir_sink_retries_total", "sink" => name.clone())
            .absolute(health.retries);
        metrics::gauge!("weir_sink_dead_letters", "sink" => name).set(health.refused.len() as f64);
    }
    for (name, window) in progress.windows() {
        metrics::gauge!("weir_window_groups", "window" => name.clone()).set(window.groups as f64);
        metrics::gauge!("weir_window_bytes", "window" => name.clone())
            .set(window.memory_bytes as f64);
        metrics::counter!("weir_window_late_total", "window" => name.clone())
            .absolute(window.too_late);
        metrics::counter!("weir_window_abandoned_total", "window" => name.clone())
            .absolute(window.abandoned);
        metrics::counter!("weir_window_failed_total", "window" => name).absolute(window.failed);
    }
    publish_memory(handles, parts);
}

/// Bytes in use: `parts`, then unflushed rows, places and counts.
fn publish_memory(handles: &Handles, parts: &[(&'static str, usize)]) {
    let unflushed = handles.tables.values().map(|table| {
        let state = table.snapshot();
        state
            .unflushed
            .iter()
            .flatten()
            .map(|h| h.memory_bytes())
            .sum::<usize>()
    });
    let places = handles
        .places
        .values()
        .map(|p| p.memory_bytes() + p.venues() * VENUE_BYTES)
        .sum();
    let counts = handles.counts.values().map(|c| c.memory_bytes()).sum();
    let views = [
        ("hot_rows", unflushed.sum()),
        ("places", places),
        ("counts", counts),
    ];
    for (part, bytes) in parts.iter().copied().chain(views) {
        metrics::gauge!("weir_memory_bytes", "part" => part).set(bytes as f64);
    }
}
