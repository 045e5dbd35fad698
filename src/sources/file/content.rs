//! A file's plain bytes, unpacked where it is compressed, and how its records are laid out.

use std::fs::File;
use std::io::{self, BufReader, Read, Seek, SeekFrom};
use std::path::Path;

use flate2::bufread::MultiGzDecoder;

pub const READ_BYTES: usize = 256 << 10;

pub type Input = BufReader<Box<dyn Read + Send>>;

pub fn is_gzip(path: &Path) -> bool {
    path.extension().is_some_and(|e| e == "gz")
}

/// The file's content, unpacked.
pub fn plain(path: &Path) -> io::Result<Box<dyn Read + Send>> {
    let file = File::open(path)?;
    Ok(if is_gzip(path) {
        Box::new(MultiGzDecoder::new(BufReader::with_capacity(READ_BYTES, file)))
    } else {
        Box::new(file)
    })
}

/// The file's content from a position of its plain bytes on.
pub fn open_at(path: &Path, position: u64) -> io::Result<Input> {
    let input: Box<dyn Read + Send> = if is_gzip(path) {
        let mut input = plain(path)?;
        io::copy(&mut (&mut input).take(position), &mut io::sink())?;
        input
    } else {
        let mut file = File::open(path)?;
        file.seek(SeekFrom::Start(position))?;
        Box::new(file)
    };
    Ok(BufReader::with_capacity(READ_BYTES, input))
}
