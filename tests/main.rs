//! All integration tests, one binary. Each drives the built program or public modules and compares
//! with a recount of its own.

mod answers;
mod connections;
mod crash;
mod damage;
#[cfg(target_os = "linux")]
mod disk;
mod files;
mod formats;
mod full_disk;
mod http_sources;
mod intake;
mod kafka;
mod kafka_avro;
mod kafka_target;
mod live;
mod local_windows;
mod log;
mod names;
mod operations;
mod order;
mod panics;
mod partition;
mod pruning;
mod readers;
mod rebuild;
mod recording;
mod recovery;
mod server;
mod sessions;
mod sink_elasticsearch;
mod sink_http;
mod sink_kafka;
mod sink_postgres;
mod sql_bounds;
mod streams;
mod support;
mod tables;
mod tidy;
mod time;
mod values;
mod views;
mod web_server;
mod windows;
mod words;
