//! Test support: a disk that fails on demand and loses unsynced writes.

mod faulty_disk;

pub use faulty_disk::FaultyDisk;
