//! A frame, the log's atomic unit, byte by byte (all numbers little-endian):
//!
//! | offset | bytes | field |
//! |---|---|---|
//! | 0 | 4 | magic `WFR1` |
//! | 4 | 4 | length of the frame from the magic to the CRC, both included |
//! | 8 | 1 | kind, see [`Kind`] |
//! | 9 | 3 | zero |
//! | 12 | 4 | records in the block (1 for a control frame) |
//! | 16 | 8 | LSN of the first record |
//! | 24 | 8 | source position of the first record |
//! | 32 | 8 | source position behind the partition's frame before this one |
//! | 40 | 8 | received at, µs since 1970 |
//! | 48 | 8 | configuration id |
//! | 56 | 8 | highest LSN known synced when this was written |
//! | 64 | 4 | length of the block, compressed |
//! | 68 | 4 | length of the block, plain |
//! | 72 | 4 | length of `about` |
//! | 76 | 2+2+2+2 | lengths of the names source, partition, stream; zero |
//! | 84 | 4 | zero |
//! | 88 | … | names, block, about |
//! | end−4 | 4 | CRC-32C of all bytes before it |
//!
//! The block is zstd level 1 over a PLAIN BYTE_ARRAY page as Parquet lays it out: per record its
//! length (u32), then its bytes. A frame starts at a multiple of 8 in its segment; the bytes up to
//! the next multiple are zero.

use std::cell::RefCell;

use bytes::Bytes;

use super::attributes::FrameAttributes;

pub const MAGIC: [u8; 4] = *b"WFR1";
pub const HEADER_BYTES: usize = 88;
const CRC_BYTES: usize = 4;
/// The largest frame that is written or accepted.
pub const MAX_FRAME_BYTES: usize = 64 << 20;
/// The largest plain block that is unpacked.
pub const MAX_BLOCK_BYTES: usize = 256 << 20;

/// What a frame carries.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[repr(u8)]
pub enum Kind {
    Record = 1,
    Tick = 2,
    PartitionEnd = 3,
    Gap = 4,
    Retry = 5,
    CloseAll = 6,
    RetentionFloor = 7,
    Configuration = 8,
    /// A request that duplicates an earlier one under its idempotency key: its records are not
    /// processed.
    DuplicateRequest = 10,
}

impl Kind {
    const ALL: [Self; 9] = {
        use Kind::*;
        [
            Record,
            Tick,
            PartitionEnd,
            Gap,
            Retry,
            CloseAll,
            RetentionFloor,
            Configuration,
            DuplicateRequest,
        ]
    };

    fn from_byte(byte: u8) -> Option<Self> {
        Self::ALL.into_iter().find(|k| *k as u8 == byte)
    }

    /// Whether its frames hold records of a source; the others are control frames.
    pub fn holds_records(self) -> bool {
        matches!(self, Self::Record | Self::Retry | Self::DuplicateRequest)
    }

    /// The kind that the table `raw` shows under this name.
    pub fn from_name(name: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|k| k.name() == name)
    }

    /// The name that the table `raw` shows.
    pub fn name(self) -> &'static str {
        match self {
            Self::Record => "record",
            Self::Tick => "tick",
            Self::PartitionEnd => "partition_end",
            Self::Gap => "gap",
            Self::Retry => "retry",
            Self::CloseAll => "close_all",
            Self::RetentionFloor => "retention_floor",
            Self::Configuration => "configuration",
            Self::DuplicateRequest => "duplicate_request",
        }
    }
}

/// Bytes that are no valid frame.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("the bytes are no valid frame")]
pub struct DamagedFrame;

/// A frame's header fields and names.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Header {
    pub kind: Kind,
    pub count: u32,
    /// LSN of the first record; set by the writer.
    pub first_lsn: u64,
    pub first_offset: u64,
    pub previous_offset: u64,
    pub received_at: i64,
    pub configuration: u64,
    /// Highest LSN known synced; set by the writer.
    pub synced_lsn: u64,
    pub source: String,
    pub partition: String,
    pub stream: String,
}

impl Header {
    /// LSN of the last record.
    pub fn last_lsn(&self) -> u64 {
        self.first_lsn + u64::from(self.count.max(1)) - 1
    }
}

/// A frame in memory: the block stays compressed and is unpacked when its bytes are wanted.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Frame {
    pub header: Header,
    /// zstd-compressed block.
    pub block: Bytes,
    /// Length of the block when unpacked.
    pub block_bytes: u32,
    pub attributes: FrameAttributes,
}

impl Frame {
    /// Bytes it takes in memory, about.
    pub fn memory_bytes(&self) -> usize {
        self.block.len() + self.attributes.offsets.len() * 8 + 256
    }

    /// The records' bytes, in order.
    pub fn records(&self) -> Result<Records, DamagedFrame> {
        let plain = zstd::bulk::decompress(&self.block, self.block_bytes as usize)
            .map_err(|_| DamagedFrame)?;
        Records::parse(plain.into(), self.header.count)
    }
}

/// Records laid out as a PLAIN BYTE_ARRAY page, with where each begins and ends.
#[derive(Debug, Clone, Default)]
pub struct Records {
    page: Bytes,
    ranges: Vec<(u32, u32)>,
}

impl Records {
    fn parse(page: Bytes, count: u32) -> Result<Self, DamagedFrame> {
        let mut ranges = Vec::with_capacity(count as usize);
        let mut at = 0usize;
        for _ in 0..count {
            let length = page
                .get(at..at + 4)
                .and_then(|b| b.first_chunk::<4>())
                .ok_or(DamagedFrame)?;
            let start = at + 4;
            at = start + u32::from_le_bytes(*length) as usize;
            if at > page.len() {
                return Err(DamagedFrame);
            }
            ranges.push((start as u32, at as u32));
        }
        if at == page.len() {
            Ok(Self { page, ranges })
        } else {
            Err(DamagedFrame)
        }
    }

    pub fn len(&self) -> usize {
        self.ranges.len()
    }

    pub fn is_empty(&self) -> bool {
        self.ranges.is_empty()
    }

    pub fn get(&self, index: usize) -> &[u8] {
        let (start, end) = self.ranges[index];
        &self.page[start as usize..end as usize]
    }

    pub fn iter(&self) -> impl Iterator<Item = &[u8]> {
        (0..self.len()).map(|i| self.get(i))
    }

    /// The page's bytes from a record on.
    pub fn page_from(&self, index: usize) -> &[u8] {
        let start = self
            .ranges
            .get(index)
            .map_or(self.page.len(), |(start, _)| *start as usize - 4);
        &self.page[start..]
    }

    /// The page as stored, uncompressed.
    pub fn page(&self) -> &Bytes {
        &self.page
    }
}

/// Collects records into a page.
#[derive(Debug, Default)]
pub struct RecordsBuilder {
    page: Vec<u8>,
    ranges: Vec<(u32, u32)>,
}

impl RecordsBuilder {
    /// With room for so many bytes and records.
    pub fn with_capacity(bytes: usize, records: usize) -> Self {
        Self {
            page: Vec::with_capacity(bytes),
            ranges: Vec::with_capacity(records),
        }
    }

    pub fn push(&mut self, record: &[u8]) {
        let length =
            u32::try_from(record.len()).expect("a record is bounded by its limit, far below 4 GiB");
        self.page.extend_from_slice(&length.to_le_bytes());
        let start = self.page.len() as u32;
        self.page.extend_from_slice(record);
        self.ranges.push((start, self.page.len() as u32));
    }

    pub fn len(&self) -> usize {
        self.ranges.len()
    }

    pub fn is_empty(&self) -> bool {
        self.ranges.is_empty()
    }

    /// Bytes of the page so far.
    pub fn bytes(&self) -> usize {
        self.page.len()
    }

    pub fn finish(self) -> Records {
        Records {
            page: self.page.into(),
            ranges: self.ranges,
        }
    }
}

/// Largest buffer that a thread keeps for its next block.
const KEPT_BUFFER_BYTES: usize = 4 << 20;

thread_local! {
    /// A context and a buffer that are made once: new ones for each block cost as much as its
    /// compression.
    static COMPRESSOR: RefCell<Option<(zstd::bulk::Compressor<'static>, Vec<u8>)>> = const { RefCell::new(None) };
}

/// Compresses a page as the log stores it.
pub fn compress(page: &[u8]) -> std::io::Result<Bytes> {
    COMPRESSOR.with_borrow_mut(|kept| {
        let (mut compressor, mut buffer) = match kept.take() {
            Some(kept) => kept,
            None => (zstd::bulk::Compressor::new(1)?, Vec::new()),
        };
        buffer.clear();
        buffer.reserve(zstd::zstd_safe::compress_bound(page.len()));
        compressor.compress_to_buffer(page, &mut buffer)?;
        let block = Bytes::copy_from_slice(&buffer);
        if buffer.capacity() > KEPT_BUFFER_BYTES {
            buffer = Vec::new();
        }
        *kept = Some((compressor, buffer));
        Ok(block)
    })
}

/// Appends the frame's bytes, CRC included, padded with zeros to a multiple of 8.
pub fn encode(frame: &Frame, out: &mut Vec<u8>) {
    let start = out.len();
    let h = &frame.header;
    let attributes = frame.attributes.encode(h.first_offset);
    let names = [&h.source, &h.partition, &h.stream];
    let length = HEADER_BYTES
        + names.iter().map(|n| n.len()).sum::<usize>()
        + frame.block.len()
        + attributes.len()
        + CRC_BYTES;
    out.reserve(length + 8);
    out.extend_from_slice(&MAGIC);
    out.extend_from_slice(&(length as u32).to_le_bytes());
    out.extend_from_slice(&[h.kind as u8, 0, 0, 0]);
    out.extend_from_slice(&h.count.to_le_bytes());
    for number in [h.first_lsn, h.first_offset, h.previous_offset] {
        out.extend_from_slice(&number.to_le_bytes());
    }
    out.extend_from_slice(&h.received_at.to_le_bytes());
    for number in [h.configuration, h.synced_lsn] {
        out.extend_from_slice(&number.to_le_bytes());
    }
    for number in [
        frame.block.len() as u32,
        frame.block_bytes,
        attributes.len() as u32,
    ] {
        out.extend_from_slice(&number.to_le_bytes());
    }
    for name in names {
        out.extend_from_slice(&(name.len() as u16).to_le_bytes());
    }
    out.extend_from_slice(&[0; 6]);
    debug_assert_eq!(out.len() - start, HEADER_BYTES);
    for name in names {
        out.extend_from_slice(name.as_bytes());
    }
    out.extend_from_slice(&frame.block);
    out.extend_from_slice(&attributes);
    let crc = crc32c::crc32c(&out[start..]);
    out.extend_from_slice(&crc.to_le_bytes());
    out.resize(start + padded(length), 0);
}

/// A length rounded up to the next multiple of 8.
pub fn padded(length: usize) -> usize {
    length.next_multiple_of(8)
}

/// The length that a frame's first bytes claim, if they can begin a frame.
pub fn claimed_length(head: &[u8; HEADER_BYTES]) -> Option<usize> {
    let length = u32_at(head, 4) as usize;
    (head[..4] == MAGIC && (HEADER_BYTES + CRC_BYTES..=MAX_FRAME_BYTES).contains(&length))
        .then_some(length)
}

fn u32_at(bytes: &[u8], at: usize) -> u32 {
    u32::from_le_bytes(*bytes[at..].first_chunk().expect("inside the header"))
}

fn u64_at(bytes: &[u8], at: usize) -> u64 {
    u64::from_le_bytes(*bytes[at..].first_chunk().expect("inside the header"))
}

/// Reads a frame from exactly its bytes (without padding).
pub fn decode(bytes: &Bytes) -> Result<Frame, DamagedFrame> {
    let head = bytes.first_chunk::<HEADER_BYTES>().ok_or(DamagedFrame)?;
    if claimed_length(head) != Some(bytes.len()) {
        return Err(DamagedFrame);
    }
    let body_end = bytes.len() - CRC_BYTES;
    if crc32c::crc32c(&bytes[..body_end]) != u32_at(bytes, body_end) {
        return Err(DamagedFrame);
    }
    let mut at = HEADER_BYTES;
    let mut take = |length: usize| {
        let range = at..at
            .checked_add(length)
            .filter(|end| *end <= body_end)
            .ok_or(DamagedFrame)?;
        at = range.end;
        Ok::<_, DamagedFrame>(range)
    };
    let mut name = |offset: usize| {
        let range = take(usize::from(u16::from_le_bytes([
            head[offset],
            head[offset + 1],
        ])))?;
        std::str::from_utf8(&bytes[range])
            .map(str::to_owned)
            .map_err(|_| DamagedFrame)
    };
    let (source, partition, stream) = (name(76)?, name(78)?, name(80)?);
    let block = bytes.slice(take(u32_at(head, 64) as usize)?);
    let attributes = take(u32_at(head, 72) as usize)?;
    let block_bytes = u32_at(head, 68);
    if at != body_end || block_bytes as usize > MAX_BLOCK_BYTES {
        return Err(DamagedFrame);
    }
    let first_offset = u64_at(head, 24);
    Ok(Frame {
        header: Header {
            kind: Kind::from_byte(head[8]).ok_or(DamagedFrame)?,
            count: u32_at(head, 12),
            first_lsn: u64_at(head, 16),
            first_offset,
            previous_offset: u64_at(head, 32),
            received_at: u64_at(head, 40) as i64,
            configuration: u64_at(head, 48),
            synced_lsn: u64_at(head, 56),
            source,
            partition,
            stream,
        },
        block,
        block_bytes,
        attributes: FrameAttributes::decode(&bytes[attributes], first_offset)?,
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn frame(records: &[&[u8]]) -> Frame {
        let mut builder = RecordsBuilder::default();
        records.iter().for_each(|r| builder.push(r));
        let records = builder.finish();
        Frame {
            header: Header {
                kind: Kind::Record,
                count: records.len() as u32,
                first_lsn: 42,
                first_offset: 7,
                previous_offset: 3,
                received_at: 1_465_520_400_000_000,
                configuration: 9,
                synced_lsn: 41,
                source: "s".into(),
                partition: "p".into(),
                stream: "t".into(),
            },
            block_bytes: records.page().len() as u32,
            block: compress(records.page()).expect("memory"),
            attributes: FrameAttributes {
                offsets: vec![7, 12],
                next_offset: Some(20),
                ..FrameAttributes::default()
            },
        }
    }

    #[test]
    fn the_layout_does_not_change() {
        let mut bytes = Vec::new();
        let mut golden = frame(&[b"{}", b"{\"a\":1}"]);
        // The compressed bytes belong to the zstd library; the layout around them is ours.
        golden.block = Bytes::from_static(b"BLOCK");
        encode(&golden, &mut bytes);
        let hex: String = bytes.iter().map(|b| format!("{b:02x}")).collect();
        insta::assert_snapshot!(hex);
    }

    #[test]
    fn every_flipped_bit_is_noticed() {
        let mut bytes = Vec::new();
        encode(&frame(&[b"{}", b"[]"]), &mut bytes);
        let length = claimed_length(bytes.first_chunk().expect("long enough")).expect("valid");
        let good = Bytes::copy_from_slice(&bytes[..length]);
        assert!(decode(&good).is_ok());
        for bit in 0..length * 8 {
            let mut bad = good.to_vec();
            bad[bit / 8] ^= 1 << (bit % 8);
            assert_eq!(decode(&bad.into()), Err(DamagedFrame), "bit {bit}");
        }
    }

    proptest! {
        #[test]
        fn decodes_what_it_encodes(records in proptest::collection::vec(proptest::collection::vec(any::<u8>(), 0..300), 1..20)) {
            let mut frame = frame(&records.iter().map(Vec::as_slice).collect::<Vec<_>>());
            frame.attributes.offsets.clear();
            let mut bytes = Vec::new();
            encode(&frame, &mut bytes);
            let length = claimed_length(bytes.first_chunk().expect("long enough")).expect("valid");
            prop_assert_eq!(padded(length), bytes.len());
            let decoded = decode(&Bytes::from(bytes).slice(..length)).expect("valid");
            prop_assert_eq!(&decoded, &frame);
            let read = decoded.records().expect("valid");
            prop_assert_eq!(read.iter().map(<[u8]>::to_vec).collect::<Vec<_>>(), records);
        }
    }
}
