//! What `/metrics` shows, set once a second from the state that queries read.

use std::path::Path;

use super::maintenance::folder_bytes;
use crate::event::Lsn;
use crate::query::Handles;

pub(super) fn publish(handles: &Handles, views: &[(String, Lsn, Option<String>)], log: &Path) {
    let progress = &handles.progress;
    let synced = progress.synced_lsn();
    metrics::gauge!("weir_log_synced_lsn").set(synced as f64);
    metrics::gauge!("weir_log_bytes").set(folder_bytes(log) as f64);
    for (name, applied, _) in views {
        metrics::gauge!("weir_view_position", "view" => name.clone()).set(*applied as f64);
        metrics::gauge!("weir_view_lag_records", "view" => name.clone()).set(synced.saturating_sub(*applied) as f64);
    }
    for (name, stream) in progress.streams() {
        let totals = stream.totals;
        metrics::counter!("weir_source_records_total", "stream" => name.clone())
            .absolute(totals.events + totals.dead_letters);
        metrics::counter!("weir_rejected_total", "stream" => name.clone()).absolute(totals.dead_letters);
        metrics::counter!("weir_late_total", "stream" => name.clone()).absolute(totals.late);
        metrics::counter!("weir_repeats_total", "stream" => name).absolute(totals.repeats);
    }
    for (table, lake) in &handles.tables {
        let state = lake.snapshot();
        let hot: usize = state.recent.iter().chain(&state.old).map(|h| h.memory_bytes()).sum();
        metrics::gauge!("weir_memory_bytes", "part" => format!("hot_rows/{table}")).set(hot as f64);
    }
}
