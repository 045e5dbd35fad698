//! What tests use: a disk that fails on demand and forgets what was not synced.

mod faulty;

pub use faulty::FaultyDisk;
