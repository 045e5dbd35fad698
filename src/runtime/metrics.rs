//! What `/metrics` shows, set once a second from the state that queries read.

use std::path::Path;

use super::maintenance::folder_bytes;
use super::resources::Usage;
use crate::config::VENUE_BYTES;
use crate::event::{Lsn, SinkState, SourceState};
use crate::ids::ViewId;
use crate::query::Handles;

/// What a metric counts.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum MetricKind {
    Counter,
    Gauge,
    Histogram,
}

use MetricKind::{Counter, Gauge, Histogram};

/// Every metric, with what it is: the `# HELP` lines of `/metrics`, and the reference in `docs`.
pub(crate) const METRICS: [(&str, MetricKind, &str); 34] = [
    (
        "weir_log_synced_lsn",
        Gauge,
        "LSN of the last record that is synced.",
    ),
    ("weir_log_bytes", Gauge, "Bytes of the log's segments."),
    (
        "weir_sync_seconds",
        Histogram,
        "Time of a write to the log with its sync.",
    ),
    (
        "weir_query_seconds",
        Histogram,
        "Time of a client's query, by its kind, waiting included.",
    ),
    (
        "weir_view_position",
        Gauge,
        "LSN up to which a view has applied the log.",
    ),
    (
        "weir_view_lag_records",
        Gauge,
        "Synced records that a view has not applied.",
    ),
    (
        "weir_source_records_total",
        Counter,
        "Records of a stream, rejected ones included.",
    ),
    (
        "weir_rejected_total",
        Counter,
        "Records of a stream that became dead letters, by reason.",
    ),
    (
        "weir_late_total",
        Counter,
        "Events of a stream below their partition's watermark.",
    ),
    (
        "weir_duplicates_total",
        Counter,
        "Events of a stream that are marked as duplicates.",
    ),
    (
        "weir_open_sessions",
        Gauge,
        "Sessions of a stream that are open.",
    ),
    (
        "weir_abandoned_sessions_total",
        Counter,
        "Sessions that were closed early, for lack of room.",
    ),
    (
        "weir_source_received_total",
        Counter,
        "Records that a source has added to the log since the start; POSTs are the source `http`.",
    ),
    (
        "weir_source_rejected_total",
        Counter,
        "Those among them that became dead letters.",
    ),
    (
        "weir_source_state",
        Gauge,
        "1 for the state in which a source is.",
    ),
    (
        "weir_source_lag_records",
        Gauge,
        "Records of a partition that its source has not taken.",
    ),
    (
        "weir_source_waiting",
        Gauge,
        "Partitions of a source that wait.",
    ),
    (
        "weir_source_halted",
        Gauge,
        "Partitions of a source that wait for `--accept-reset`.",
    ),
    (
        "weir_sink_state",
        Gauge,
        "1 for the state in which a sink is.",
    ),
    (
        "weir_sink_lag_records",
        Gauge,
        "Synced records above those that a sink has delivered.",
    ),
    (
        "weir_sink_lsn",
        Gauge,
        "LSN up to which a sink has delivered all rows.",
    ),
    (
        "weir_sink_rows_total",
        Counter,
        "Rows that a sink has delivered since the start.",
    ),
    (
        "weir_sink_retries_total",
        Counter,
        "Attempts of a sink that failed since the start.",
    ),
    (
        "weir_sink_dead_letters",
        Gauge,
        "Rows that the target of a sink refuses for good.",
    ),
    (
        "weir_window_groups",
        Gauge,
        "Groups of a window's open panes in memory.",
    ),
    (
        "weir_window_bytes",
        Gauge,
        "Bytes of a window's panes and retained results.",
    ),
    (
        "weir_window_late_total",
        Counter,
        "Rows that came when each of their windows was closed.",
    ),
    (
        "weir_window_abandoned_total",
        Counter,
        "Windows that were closed early, for lack of room.",
    ),
    (
        "weir_window_failed_total",
        Counter,
        "Rows and windows left out because an expression failed.",
    ),
    (
        "weir_memory_bytes",
        Gauge,
        "Bytes in use of a share of the memory.",
    ),
    (
        "weir_memory_resident_bytes",
        Gauge,
        "Bytes of the process that are in memory.",
    ),
    (
        "weir_memory_limit_bytes",
        Gauge,
        "Bytes that the process may take: `[limits] memory`.",
    ),
    (
        "weir_disk_bytes",
        Gauge,
        "Bytes of a part of the data folder.",
    ),
    (
        "weir_disk_limit_bytes",
        Gauge,
        "Bytes that the data folder may take: `[limits] disk`.",
    ),
];

/// Describes every metric to the recorder, once it is installed.
pub(crate) fn describe() {
    for (name, kind, help) in METRICS {
        match kind {
            Counter => metrics::describe_counter!(name, help),
            Gauge => metrics::describe_gauge!(name, help),
            Histogram => metrics::describe_histogram!(name, help),
        }
    }
}

/// Sets the gauges of disk and memory.
pub(super) fn publish_usage(usage: &Usage) {
    for (part, bytes) in &usage.disk {
        metrics::gauge!("weir_disk_bytes", "part" => *part).set(*bytes as f64);
    }
    if let Some(limit) = usage.disk_limit {
        metrics::gauge!("weir_disk_limit_bytes").set(limit as f64);
    }
    metrics::gauge!("weir_memory_resident_bytes").set(usage.memory as f64);
    metrics::gauge!("weir_memory_limit_bytes").set(usage.memory_limit as f64);
}

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
        metrics::gauge!("weir_source_halted", "source" => name.clone())
            .set(health.halted_total as f64);
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

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;

    /// The names of metrics that the program sets.
    fn names_in_sources() -> BTreeSet<String> {
        let sources = Path::new(env!("CARGO_MANIFEST_DIR")).join("src");
        let files = walkdir::WalkDir::new(sources).into_iter().flatten();
        let files = files.filter(|file| file.path().extension().is_some_and(|e| e == "rs"));
        let mut names = BTreeSet::new();
        for file in files {
            let text = std::fs::read_to_string(file.path()).expect("readable");
            for set in ["gauge!(", "counter!(", "histogram!("] {
                let calls = text.split(set).skip(1).map(str::trim_start);
                let names_set = calls.filter_map(|call| call.strip_prefix('"')?.split('"').next());
                names.extend(names_set.map(str::to_owned));
            }
        }
        names.retain(|name| name.starts_with("weir_"));
        names
    }

    #[test]
    fn every_metric_is_described_once() {
        let described: BTreeSet<String> = METRICS
            .iter()
            .map(|(name, ..)| (*name).to_owned())
            .collect();
        assert_eq!(described.len(), METRICS.len());
        assert_eq!(described, names_in_sources());
    }
}
