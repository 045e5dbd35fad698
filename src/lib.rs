//! Weir takes live JSON events from files, Kafka, websockets and HTTP, and keeps a Parquet/Delta
//! lake, full-text search, counts, a map of venues and SQL over all of it up to date, without losing
//! one.
//!
//! # The problem
//!
//! Events arrive late, twice or malformed, faster than anyone can inspect them, and the process may
//! crash at any time. Every answer must reflect exactly the accepted records, and state its
//! freshness (`as_of`).
//!
//! # The one idea
//!
//! ```text
//! sources ─► ingest ─► log ─► operators ─► views ─► query ─► server, CLI
//!  bytes    decode,   synced   duplicates,    lake  │   SQL, count, search, nearby
//!           reject    order    sessions,   search  │
//!                              windows,    places  └► sinks ─► Kafka, PostgreSQL,
//!                              entities    counts              HTTP, Elasticsearch
//! ```
//!
//! **The log is the truth. Everything after it is a deterministic function of a prefix of the
//! log.** Operators hold state in memory, saved together at one LSN. Views store data *and their
//! own checkpoint* in one atomic commit, and ignore what is at or below it.
//!
//! Recovery is one path: load the newest snapshot of which no view lacks a row, then replay the log
//! from there; each view ignores what it already has. No view lacks a row of it where every
//! checkpoint has reached the last row that was emitted to its view: a view whose last row is
//! record 120 may start from a snapshot at 200. A view more than a snapshot interval behind takes
//! that path by itself, from an older snapshot, until it meets the others. Nothing else coordinates
//! them. Data flows one way. What flows back is LSNs, to acknowledge a source and to trim the log;
//! the offsets and identities with which sources resume; back-pressure; and what enters the log as
//! a frame of its own: ticks, retention floors, and dead letters that are tried again.
//!
//! A record from a websocket, step by step:
//!
//! | step | where |
//! |---|---|
//! | received, put into a frame with others | `src/sources/websocket.rs`, `src/sources/push.rs` |
//! | decoded, or rejected with a reason; numbered | `Ingest::submit` in `src/ingest.rs`, `src/decode` |
//! | appended and synced, then visible to all that follows | `src/ingest/writer.rs`, `src/wal/writer.rs` |
//! | duplicates, sessions, windows, entities | `src/runtime/pipeline.rs`, `Operators::apply` in `src/operators/mod.rs` |
//! | taken from the ring by each view, in memory at first | `src/views/ring.rs`, `src/views/driver.rs`, `LakeTable::push` |
//! | committed with the view's checkpoint | `LakeView::commit` in `src/views/lake/view.rs` |
//! | read by a query, in memory or in files | `src/server/routes.rs`, `src/runtime/query_service.rs`, `src/query/sql` |
//!
//! # Glossary
//!
//! | term | meaning |
//! |---|---|
//! | LSN | log sequence number of a record: the order of everything; rows derived from a record have its LSN |
//! | frame | unit of the log: records of one source and stream, with attributes and a checksum |
//! | segment | file of frames; the log is trimmed by whole segments |
//! | control frame | frame without records: a configuration, a tick, the end of a partition |
//! | partition, offset | what a source reads in order (a file, a socket, a partition of Kafka), and the place in it |
//! | gap | time in which a source may have lost records, listed in `weir.gaps` |
//! | dead letter | rejected record, stored with its reason and its bytes |
//! | event time | the time that a record states; `received_at` is its arrival |
//! | disorder | how far event times may be out of order before an event is late |
//! | watermark | event time below which no more events are expected: the maximum less `disorder` |
//! | late | of an event: its time is below the watermark of its partition |
//! | lateness | how far an event's time is behind the watermark; a window has an `allowed_lateness` |
//! | too late | of an event: every window that it belongs to is closed; it is in `<stream>.late` |
//! | late class | rows of hours well before the watermark, which the lake commits less often |
//! | tick | control frame that moves time on while a source is idle |
//! | window, pane | interval of event time; a pane is the part of it that windows of a hop share |
//! | session | events of one key with at most `gap` between them |
//! | duplicate | event with the same values as an earlier one of its key, marked `is_duplicate` |
//! | snapshot | the operators' state at one LSN, or the state that one query reads |
//! | view | derived store that pulls operator output: lake, search, counts, places |
//! | checkpoint | LSN through which a view has committed; stored with its data |
//! | ring | recent output in memory, from which views and live streams read |
//! | memtable | a lake table's rows above its checkpoint, in memory |
//! | derived table | table computed by operators: windows, sessions, entity tables |
//! | entity table | latest version of each key |
//! | `as_of` | checkpoint and watermark of an answer, and how many records it lacks |
//! | retention floor | time below which a table's rows are hidden, then removed |
//! | drift | keys of received JSON that the schema does not have |
//!
//! # Where things are, in the order in which data flows
//!
//! | path | what |
//! |---|---|
//! | `src/event.rs` | types that every module shares: LSN, times, gap |
//! | `src/avro` | values in Avro → JSON, by a compiled schema |
//! | `src/message.rs` | what a Kafka message carries beside its value |
//! | `src/ids.rs` | identities of tables, views, checkpoints and partitions; their texts are written and read there only |
//! | `src/clock.rs`, `src/storage.rs` | interfaces to time and to the disk of log and snapshots; `src/testing` has a disk that fails, tests of the whole program preload libraries (`tests/clock.c`, `tests/disk.c`) |
//! | `src/threads.rs` | panics of threads; the pace at which long work yields the CPU |
//! | `src/bounds.rs` | bounds on remembered texts of records |
//! | `src/idempotency.rs` | answers under idempotency keys: a bounded table that the log's writer and the operators fill alike |
//! | `src/config` | the file as typed, checked once into what it means, shown by `src/config/shown.rs` without secrets; `src/config/raw.rs` is the file, `src/config/sources.rs`, `src/config/stream.rs` and `src/config/declarations.rs` check it, `src/config/limits.rs` has the table of limits, `src/config/units.rs` reads durations, sizes and times, `src/config/location.rs` points into the text, `src/config/machine.rs` asks the system for its memory |
//! | `src/presets` | ready-made stream declarations |
//! | `src/schema` | a declaration → Arrow schema, `select` and `require` planned once; `src/schema/stream` compiles a stream, `src/schema/window` and `src/schema/entity.rs` plan windows and entity tables, `src/schema/window/assigner.rs` has their arithmetic, `src/schema/plan_error.rs` locates errors in SQL, `src/schema/wording.rs` rewords those of the planner; Weir's own SQL is in `src/schema/bounds` (limits of statements), `src/schema/dialect.rs`, `src/schema/rules.rs` and `src/schema/functions` |
//! | `src/sources` | files, standard input, websockets, Kafka (`src/sources/kafka`), open and repeated requests (`src/sources/http`); `src/sources/compression.rs` decompresses, `src/sources/lines.rs` splits records (`src/sources/lines/chunks.rs` those of a stream), `src/sources/push.rs` has what sources share to which a server sends, `src/sources/batcher.rs` puts records into frames; HTTP intake is `src/server/intake.rs` |
//! | `src/decode` | bytes → rows or rejection, straight into columns; `src/decode/reason.rs` has the reasons |
//! | `src/ingest.rs` | the only writer of the log: decode, number, sync, acknowledge, pass to the operators; `src/ingest/gate.rs` admits or refuses, `src/ingest/deferred.rs` holds frames that wait for space, `src/ingest/maintenance.rs` trims |
//! | `src/wal` | the log: `src/wal/frame.rs` and `src/wal/segment.rs` are its format, `src/wal/recovery.rs` repairs it after a crash, `src/wal/space.rs` decides what still fits on the disk, `src/wal/retention.rs` what is trimmed |
//! | `src/operators` | deterministic state: `src/operators/watermark.rs`, `src/operators/arrivals.rs` (trust in arrival times), `src/operators/duplicates.rs`, `src/operators/identities.rs` (polled records), `src/operators/sessions.rs`, `src/operators/windows`, `src/operators/snapshot.rs` |
//! | `src/views` | the trait, `src/views/cursor.rs` (what views of a stream share), `src/views/ring.rs` (the live path), `src/views/driver.rs` (feeds one view from it); `src/views/state_store.rs` is the file of counts and of places, `src/views/overlay.rs` opens one after a crash without changing it |
//! | `src/views/lake` | one Delta table per stream, window, sessions, entity table, `raw`, `dead_letters`; uncommitted rows in memory; `src/views/lake/compact.rs` merges files |
//! | `src/views/search` | full-text search in tantivy; `src/views/search/rows` stores the rows of hits |
//! | `src/views/places` | venues on the unit sphere, event–venue edges with their dates |
//! | `src/views/counts` | events per type, group and second |
//! | `src/query` | one snapshot of live and committed state: SQL, count, search, nearby, windows, each with `as_of`; `src/query/handles.rs` holds the views that are read, `src/query/progress.rs` how far operators are, `src/query/system_tables.rs` is `weir.*`; `src/query/derived_tables.rs` adds open windows and sessions; a query is admitted by `src/query/admission.rs`, runs on threads of its own (`src/query/query_threads.rs`), under a plan that can be cancelled (`src/query/cancellation.rs`) and whose operators get bounded input (`src/query/bounded_input.rs`); `src/query/encode` serializes answers into `src/query/spool.rs`; `src/query/live.rs` follows the ring; `src/query/overview` derives the panels of the overview from a declaration and computes them |
//! | `src/sinks` | rows of tables to Kafka, PostgreSQL, webhooks and Elasticsearch: `src/sinks/reader.rs` reads them above a cursor (`src/sinks/cursor.rs`), `src/sinks/worker.rs` delivers them to a `Target` (`src/sinks/mod.rs`) |
//! | `src/server` | HTTP: `src/server/routes.rs`, intake, queries, live rows, the overview (`src/server/overview`: computed once for all its clients), notebooks, the page (`src/server/page.rs`, its scripts in `src/server/dashboard`); `src/server/guard.rs` authenticates, `src/server/connections.rs` and `src/server/receive.rs` limit what a client holds; `src/server/upstream.rs` serves a stream by websocket, NDJSON and server-sent events |
//! | `src/runtime` | the composition root: `src/runtime/startup.rs` opens a folder, `src/runtime/recovery.rs` decides where recovery starts, `src/runtime/startup/plan.rs` decides in which steps, `src/runtime/reconfigure.rs` which changes of the configuration are possible (tried first by `src/runtime/trial.rs`), `src/runtime/pipeline.rs` runs the operators, `src/runtime/source_threads.rs` and `src/runtime/sink_threads.rs` sources and sinks, `src/runtime/snapshots.rs` saves the operators, `src/runtime/views.rs` opens the views, `src/runtime/query_service.rs` answers, `src/runtime/shutdown.rs` stops them in order; `src/runtime/maintenance.rs` (merges, retention, disk limit), `src/runtime/reserve.rs` (space to recover from a full disk), `src/runtime/backup.rs`, `src/runtime/idle_ticker.rs`, `src/runtime/dead_letter_retry.rs`, `src/runtime/rebuild` (applies declarations to past records), `src/runtime/dry_run.rs` (records without a data folder), `src/runtime/notebooks.rs` (saved queries), `src/runtime/resources.rs` (what disk and memory go to), `src/runtime/notes.rs` and `src/runtime/disorder.rs` (advice on the configuration) |
//! | `src/infer` | observed records → a declaration to start from, for `weir try`: `src/infer/profile.rs` counts what is seen, `src/infer/columns.rs` types it, `src/infer/event_time.rs` and `src/infer/roles.rs` guess what columns are for, `src/infer/render.rs` writes the file; `src/sources/sample.rs` reads the sample |
//! | `src/cli` | the verbs, most in a file of their own (`src/cli/query.rs` has those that only ask, `src/cli/generate.rs` also `replay`); beside them `src/cli/destination` (where generated records go), `src/cli/client.rs` (the running server or the folder answers), `src/cli/output.rs`, `src/cli/serve.rs` and `src/cli/tls.rs`; `src/cli/prompt` is the prompt of `weir sql`, `src/cli/top` asks a server and draws (`src/cli/top/model.rs`, `src/cli/top/panels.rs` and `src/cli/top/view.rs` are pure), `src/cli/examples.rs` has the examples of `--help` and manual pages, `src/cli/progress.rs` the bars and spinners |
//! | `src/generator` | faithful and hostile records, recordings, the demo |
//! | `src/testing` | a disk that fails on demand |
//! | `src/reference` | renders `docs/reference` from the code; only tests build it |
//! | `tests/main.rs` | all integration tests, one binary |
//!
//! # Invariants
//!
//! 1. Only ingest appends to the log.
//! 2. A source is acknowledged, and a frame visible, only after its sync.
//! 3. A view stores data and checkpoint in one atomic step.
//! 4. After the log all content is deterministic, record by record: no clock, no randomness, no
//!    order of a hash map decides about a row. When a view commits, and what its files are called,
//!    may vary.
//! 5. The log is trimmed only below a snapshot of which no view lacks a row.
//! 6. Queries never write to views or the log.
//! 7. No frame is applied under two configurations, but by a rebuild, in copies that replace the
//!    originals at once.
//! 8. Every queue, batch, record, file, request, result and state has a maximum (exceptions: the
//!    README's limits of today).
//! 9. A broken invariant stops the process with a clear message (maintenance alone tries again);
//!    bad input never does: it becomes a dead letter with its reason.
//! 10. Views are individually, not mutually, consistent: each answer names its checkpoint.
//!
//! # What is deliberately absent
//!
//! A second recovery path; coordination among views; words of a domain outside presets, generator
//! and the routes of another program (`src/server/getsocial.rs`); a clock or randomness in what the log decides; unsafe code. `tests/tidy.rs` restricts
//! imports and vendors to their modules.

#![forbid(unsafe_code)]

pub(crate) mod avro;
pub(crate) mod bounds;
pub mod cli;
pub mod clock;
pub mod config;
pub(crate) mod decode;
pub mod event;
pub mod generator;
pub(crate) mod idempotency;
pub mod ids;
pub(crate) mod infer;
pub mod ingest;
pub mod message;
pub mod operators;
pub(crate) mod presets;
pub mod query;
#[cfg(test)]
mod reference;
pub mod runtime;
pub mod schema;
pub(crate) mod server;
pub(crate) mod sinks;
pub(crate) mod sources;
pub mod storage;
pub mod testing;
pub(crate) mod threads;
pub mod views;
pub mod wal;
