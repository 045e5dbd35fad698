//! What tests use: a disk that fails on demand and forgets what was not synced.

mod faulty_disk;

pub use faulty_disk::FaultyDisk;
