//! Weir takes live JSON events from files, websockets and HTTP, and keeps a Parquet/Delta lake,
//! full-text search, counts, a map of venues and SQL over all of it up to date, without losing one.
//!
//! # The problem
//!
//! Events come faster than they can be looked at, late, twice, broken, and the process dies in
//! between. Every answer must still be exactly what was accepted, and say how true it is.
//!
//! # The one idea
//!
//! ```text
//! sources ─► ingest ─► log ─► operators ─► views ─► query ─► server, CLI
//!  bytes    decode,   synced   duplicates,    lake      SQL
//!           reject    order    sessions,   search    count, search, nearby
//!                              windows,    places
//!                              entities    counts
//! ```
//!
//! **The log is the truth. Everything after it is a deterministic function of a prefix of the
//! log.** Operators hold state in memory, saved together at one LSN. Views store data *and their
//! own checkpoint* in one atomic commit, and ignore what is at or below it. Recovery is one path: the
//! newest snapshot that no view is behind, then the log from there; each view skips what it has. A
//! view more than a snapshot interval behind takes that path by itself, from an older snapshot,
//! until it meets the others. Nothing else coordinates them. Data flows one way; only LSNs flow
//! back, to acknowledge a source and to trim the log.
//!
//! # Where things are, in the order in which data flows
//!
//! | path | what |
//! |---|---|
//! | `src/event.rs` | the words every module shares: LSN, times, gap |
//! | `src/clock.rs`, `src/storage.rs` | the seams to time and disk |
//! | `src/threads.rs` | panics of threads, and the pace at which long work yields the CPU |
//! | `src/bounds.rs` | texts of records within bounds, where they are remembered |
//! | `src/idempotency.rs` | answers remembered under idempotency keys: a bounded table that the log's writer and the operators fill alike |
//! | `src/config` | the file as typed, and what it means, checked once; `src/config/location.rs` points into its text |
//! | `src/presets` | ready-made stream declarations: the only domain words outside the generator |
//! | `src/schema` | a declaration → Arrow schema, `select` and `require` planned once; `src/schema/stream` compiles a stream, `src/schema/window` and `src/schema/entity.rs` plan windows and entity tables, `src/schema/window/assigner.rs` has all window arithmetic, `src/schema/plan_error.rs` locates errors in SQL; `src/schema/bounds` limits a statement; `src/schema/dialect.rs`, `src/schema/rules.rs` and `src/schema/functions` extend DataFusion's SQL |
//! | `src/sources` | where bytes enter: files, standard input, websockets; `src/sources/compression.rs` unpacks, `src/sources/lines.rs` finds records; HTTP comes in by `src/server/intake.rs` |
//! | `src/decode` | bytes → rows or rejection, straight into columns |
//! | `src/ingest.rs` | the only writer of the log: decode, number, sync, acknowledge, publish; `src/ingest/deferred.rs` holds frames that wait for space in the log |
//! | `src/wal` | the log: `src/wal/frame.rs` and `src/wal/segment.rs` are its format, `src/wal/recovery.rs` opens what a crash left |
//! | `src/operators` | deterministic state: `src/operators/watermark.rs`, `src/operators/arrivals.rs` (how far arrival time is believed), `src/operators/duplicates.rs`, `src/operators/sessions.rs`, `src/operators/windows`, `src/operators/snapshot.rs` |
//! | `src/views` | the trait, `src/views/ring.rs` (the live path), `src/views/driver.rs` (moves one view along it) |
//! | `src/views/lake` | one Delta table per stream, window, set of sessions or entities, `raw`, `dead_letters`; rows above the last commit in memory; `src/views/lake/compact.rs` merges files |
//! | `src/views/search` | full-text search in tantivy; `src/views/search/rows.rs` stores the rows that hits show |
//! | `src/views/places` | venues on the unit sphere, event–venue edges with their dates |
//! | `src/views/counts` | events per type, group and second |
//! | `src/query` | one snapshot of live and committed state: SQL, count, search, nearby, windows, each with `as_of`; `src/query/derived_tables.rs` adds open rows; a query is admitted by `src/query/admission.rs`, runs on threads of its own (`src/query/query_threads.rs`), under a plan that can be cancelled (`src/query/cancellation.rs`) and whose operators get bounded input (`src/query/bounded_input.rs`); `src/query/encode` writes answers into `src/query/spool.rs`; `src/query/live.rs` follows the ring |
//! | `src/server` | HTTP: intake, questions, live rows, the page; `src/server/connections.rs` and `src/server/receive.rs` limit what a client may hold; `src/server/upstream.rs` serves a stream for others |
//! | `src/runtime` | the composition root: `src/runtime/startup.rs` opens a folder, `src/runtime/recovery.rs` decides where recovery starts, `src/runtime/reconfigure.rs` switches to a changed configuration (tried first by `src/runtime/trial.rs`), `src/runtime/pipeline.rs` runs the threads; `src/runtime/maintenance.rs` (merges, retention, the disk's limit), `src/runtime/reserve.rs` (room for a full disk's way out), `src/runtime/backup.rs`, `src/runtime/idle_ticker.rs` (idleness ticks), `src/runtime/dead_letter_retry.rs` (resubmits dead letters), `src/runtime/rebuild` (past records processed again), `src/runtime/dry_run.rs` (records tried without a data folder), `src/runtime/notes.rs` and `src/runtime/disorder.rs` (when a change of the configuration would help) |
//! | `src/cli` | one file per verb |
//! | `src/generator` | faithful and hostile records, recordings, the demo's words |
//! | `src/testing` | a disk that fails on demand |
//! | `tests/main.rs` | all integration tests, one binary |
//!
//! # Invariants
//!
//! 1. Only ingest appends to the log. 2. A source is acknowledged, and a frame seen, only after its sync. 3. A view stores data
//!    and checkpoint in one atomic step. 4. Behind the log everything is deterministic, record by record: no clock, no randomness,
//!    no map order. 5. The log is trimmed only below a snapshot that no view is behind. 6. Queries never write. 7. No frame is
//!    applied under two configurations. 8. Every queue, batch, record, file, request, result and state has a maximum. 9. A broken
//!    invariant stops the process with a clear message; bad input never does: it becomes a dead letter with its reason.
//!    10. Views are individually, not mutually, consistent: each answer names its checkpoint.
//!
//! # What is deliberately absent
//!
//! No second recovery path; no coordination among views; no domain word outside presets and
//! generator; no clock or randomness behind the log; no unsafe code. A test (`tests/tidy.rs`) holds
//! imports and vendors to their rooms.

#![forbid(unsafe_code)]

pub mod bounds;
pub mod cli;
pub mod clock;
pub mod config;
pub mod decode;
pub mod event;
pub mod generator;
pub mod idempotency;
pub mod ingest;
pub mod operators;
pub mod presets;
pub mod query;
pub mod runtime;
pub mod schema;
pub mod server;
pub mod sources;
pub mod storage;
pub mod testing;
pub mod threads;
pub mod views;
pub mod wal;
