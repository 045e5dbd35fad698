#![forbid(unsafe_code)]
pub mod cli;
pub mod clock;
pub mod config;
pub mod decode;
pub mod event;
pub mod ingest;
pub mod operators;
pub mod presets;
pub mod query;
pub mod runtime;
pub mod schema;
pub mod sources;
pub mod storage;
pub mod views;
pub mod wal;
