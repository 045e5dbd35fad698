//! A redb file after a crash, opened read-only: what its repair writes stays in memory, so that the
//! file is not changed and no disk space is needed.

use std::collections::BTreeMap;
use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::sync::{Mutex, MutexGuard, PoisonError};

use redb::StorageBackend;

/// Bytes of a page in memory.
const PAGE_BYTES: u64 = 4096;
/// Memory limit of a repair. With redb's quick repair it is a few pages.
const MAX_BYTES: u64 = 64 << 20;

/// A file with the pages that were written over it.
#[derive(Debug)]
pub struct Overlay {
    file: File,
    state: Mutex<State>,
}

#[derive(Debug)]
struct State {
    len: u64,
    /// Bytes of the file that are visible: what was truncated stays hidden after growing again.
    visible: u64,
    /// Written pages by their number.
    pages: BTreeMap<u64, Vec<u8>>,
}

impl Overlay {
    /// Opens a file with nothing written over it.
    pub fn open(path: &Path) -> io::Result<Self> {
        let file = File::open(path)?;
        let len = file.metadata()?.len();
        Ok(Self {
            file,
            state: Mutex::new(State {
                len,
                visible: len,
                pages: BTreeMap::new(),
            }),
        })
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The file's own bytes; zeros after its visible part.
    fn read_file(&self, state: &State, offset: u64, out: &mut [u8]) -> io::Result<()> {
        let visible = state.visible.saturating_sub(offset).min(out.len() as u64) as usize;
        let (own, rest) = out.split_at_mut(visible);
        rest.fill(0);
        self.file.read_exact_at(own, offset)
    }
}

/// Splits a range at pages: page, offset in it, length.
fn parts(offset: u64, len: usize) -> impl Iterator<Item = (u64, usize, usize)> {
    let end = offset + len as u64;
    let mut at = offset;
    std::iter::from_fn(move || {
        (at < end).then(|| {
            let (page, from) = (at / PAGE_BYTES, (at % PAGE_BYTES) as usize);
            let len = (PAGE_BYTES - at % PAGE_BYTES).min(end - at) as usize;
            at += len as u64;
            (page, from, len)
        })
    })
}

impl StorageBackend for Overlay {
    fn len(&self) -> io::Result<u64> {
        Ok(self.lock().len)
    }

    fn read(&self, offset: u64, out: &mut [u8]) -> io::Result<()> {
        let state = self.lock();
        if offset + out.len() as u64 > state.len {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        self.read_file(&state, offset, out)?;
        let mut done = 0;
        for (page, from, len) in parts(offset, out.len()) {
            if let Some(written) = state.pages.get(&page) {
                out[done..done + len].copy_from_slice(&written[from..from + len]);
            }
            done += len;
        }
        Ok(())
    }

    fn set_len(&self, len: u64) -> io::Result<()> {
        let mut state = self.lock();
        if len < state.len {
            state.visible = state.visible.min(len);
            drop(state.pages.split_off(&len.div_ceil(PAGE_BYTES)));
            if let Some(last) = state.pages.get_mut(&(len / PAGE_BYTES)) {
                last[(len % PAGE_BYTES) as usize..].fill(0);
            }
        }
        state.len = len;
        Ok(())
    }

    fn sync_data(&self) -> io::Result<()> {
        Ok(())
    }

    fn write(&self, offset: u64, data: &[u8]) -> io::Result<()> {
        let mut state = self.lock();
        let mut done = 0;
        for (page, from, len) in parts(offset, data.len()) {
            if !state.pages.contains_key(&page) {
                if (state.pages.len() as u64 + 1) * PAGE_BYTES > MAX_BYTES {
                    let reason = format!(
                        "its repair needs more than {MAX_BYTES} bytes of memory; start `weir run` once"
                    );
                    return Err(io::Error::other(reason));
                }
                let mut whole = vec![0; PAGE_BYTES as usize];
                self.read_file(&state, page * PAGE_BYTES, &mut whole)?;
                state.pages.insert(page, whole);
            }
            if let Some(written) = state.pages.get_mut(&page) {
                written[from..from + len].copy_from_slice(&data[done..done + len]);
            }
            done += len;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The same writes to a file and to an overlay read the same.
    #[test]
    fn an_overlay_reads_as_a_file_that_was_written_to() {
        let folder = tempfile::tempdir().expect("a folder");
        let (below, model) = (folder.path().join("below"), folder.path().join("model"));
        let first: Vec<u8> = (0..10_000_u32).map(|n| n as u8).collect();
        std::fs::write(&below, &first).expect("written");
        std::fs::write(&model, &first).expect("written");
        let overlay = Overlay::open(&below).expect("there");
        let file = File::options()
            .read(true)
            .write(true)
            .open(&model)
            .expect("there");
        for (n, len) in [(0, 9_000), (1, 12_345), (2, 4_096), (3, 20_000), (4, 7)] {
            overlay.set_len(len).expect("set");
            file.set_len(len).expect("set");
            for (offset, size) in [(len / 3, 5_000), (len / 2, 100), (0, 3)] {
                let data = vec![n + 1; size.min((len - offset) as usize)];
                overlay.write(offset, &data).expect("written");
                file.write_all_at(&data, offset).expect("written");
            }
            let mut read = vec![0; len as usize];
            overlay.read(0, &mut read).expect("read");
            assert_eq!(read, std::fs::read(&model).expect("read"), "step {n}");
        }
        assert!(overlay.read(5, &mut [0; 10]).is_err());
        assert_eq!(std::fs::read(&below).expect("read"), first);
    }
}
