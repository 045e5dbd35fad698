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
//! | 24 | 8 | source offset of the first record |
//! | 32 | 8 | source offset after the partition's previous frame |
//! | 40 | 8 | received at, µs since 1970 |
//! | 48 | 8 | configuration id |
//! | 56 | 8 | highest LSN known synced when this was written |
//! | 64 | 4 | length of the block, compressed |
//! | 68 | 4 | length of the block, plain |
//! | 72 | 4 | length of the attributes |
//! | 76 | 2+2+2+2 | lengths of the names source, partition, stream; zero |
//! | 84 | 4 | zero |
//! | 88 | … | names, block, attributes |
//! | end−4 | 4 | CRC-32C of all bytes before it |
//!
//! The block is zstd level 1 over a PLAIN BYTE_ARRAY page as Parquet lays it out: per record its
//! length (u32), then its bytes. A frame starts at a multiple of 8 in its segment; the bytes up to
//! the next multiple are zero.

use std::cell::RefCell;

use bytes::Bytes;

use super::DamagedFrame;
use super::attributes::FrameAttributes;

pub(super) const MAGIC: [u8; 4] = *b"WFR1";
pub(super) const HEADER_BYTES: usize = 88;
const CRC_BYTES: usize = 4;
/// The largest frame that is written or accepted.
pub(super) const MAX_FRAME_BYTES: usize = 64 << 20;
/// The largest block, uncompressed, that is read.
const MAX_BLOCK_BYTES: usize = 256 << 20;

/// What a frame carries.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[repr(u8)]
pub enum Kind {
    /// Records of a source.
    Record = 1,
    /// Moves the watermark of an idle source on.
    Tick = 2,
    /// The partition has no more records: it no longer holds back the watermark.
    PartitionEnd = 3,
    /// A source may have lost records; the payload is a [`Gap`](crate::event::Gap) as JSON.
    Gap = 4,
    /// Dead letters that are decoded again.
    Retry = 5,
    /// The end of a bounded run: closes all windows and sessions.
    CloseAll = 6,
    /// A table's rows below a time are hidden from here on.
    RetentionFloor = 7,
    /// The declarations under which all later frames are processed, as JSON.
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

    /// Whether frames of this kind hold records of a source; all others are control frames.
    pub fn holds_records(self) -> bool {
        matches!(self, Self::Record | Self::Retry | Self::DuplicateRequest)
    }

    /// The kind with this name in the table `raw`.
    pub fn from_name(name: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|k| k.name() == name)
    }

    /// Its name in the table `raw`.
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

/// A frame's header fields and names. Offsets count in a unit of the source, times are in
/// microseconds since 1970.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Header {
    /// What the frame carries.
    pub kind: Kind,
    /// Records in the frame; 1 for a control frame.
    pub count: u32,
    /// LSN of the first record; set by the writer.
    pub first_lsn: u64,
    /// Offset of the first record.
    pub first_offset: u64,
    /// The offset after the partition's previous frame.
    pub previous_offset: u64,
    /// When the records arrived.
    pub received_at: i64,
    /// Id of the configuration under which it was received.
    pub configuration: u64,
    /// Highest LSN known synced; set by the writer.
    pub synced_lsn: u64,
    /// Name of the source; empty if the frame has none.
    pub source: String,
    /// Name of the partition; empty if the source has only one.
    pub partition: String,
    /// The stream that decodes the records; empty if the frame concerns all.
    pub stream: String,
}

impl Header {
    /// A header whose other fields are zero or empty; set those that apply with `..`.
    pub fn new(kind: Kind, stream: impl Into<String>) -> Self {
        Self {
            kind,
            count: 0,
            first_lsn: 0,
            first_offset: 0,
            previous_offset: 0,
            received_at: 0,
            configuration: 0,
            synced_lsn: 0,
            source: String::new(),
            partition: String::new(),
            stream: stream.into(),
        }
    }

    /// LSN of the last record.
    pub fn last_lsn(&self) -> u64 {
        self.first_lsn + u64::from(self.count.max(1)) - 1
    }
}

/// A frame in memory. Its block stays compressed until [`Frame::records`] is called.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Frame {
    /// Fields of fixed length, and names.
    pub header: Header,
    /// zstd-compressed block.
    pub block: Bytes,
    /// Length of the block when uncompressed.
    pub block_bytes: u32,
    /// What only some frames have.
    pub attributes: FrameAttributes,
}

impl Frame {
    /// A frame of these records: compresses them and sets the header's count.
    ///
    /// # Errors
    ///
    /// The compressor's, for lack of memory.
    pub fn data(
        header: Header,
        records: &Records,
        attributes: FrameAttributes,
    ) -> std::io::Result<Self> {
        Ok(Self {
            header: Header {
                count: records.len() as u32,
                ..header
            },
            block: compress(records.page())?,
            block_bytes: records.page().len() as u32,
            attributes,
        })
    }

    /// A control frame: one payload, no attributes.
    ///
    /// # Errors
    ///
    /// As [`Frame::data`].
    pub fn control(header: Header, payload: &[u8]) -> std::io::Result<Self> {
        Self::data(
            header,
            &Records::single(payload),
            FrameAttributes::default(),
        )
    }

    /// Bytes it takes in memory, approximately.
    pub(crate) fn memory_bytes(&self) -> usize {
        self.block.len() + self.attributes.heap_bytes() + 256
    }

    /// The records' bytes, in order.
    ///
    /// # Errors
    ///
    /// The block does not decompress to as many records as the header counts.
    pub fn records(&self) -> Result<Records, DamagedFrame> {
        let plain = zstd::bulk::decompress(&self.block, self.block_bytes as usize)
            .map_err(|_| DamagedFrame)?;
        Records::parse(plain.into(), self.header.count)
    }
}

/// Records laid out as a PLAIN BYTE_ARRAY page, with the byte range of each.
#[derive(Debug, Clone, Default)]
pub struct Records {
    page: Bytes,
    ranges: Vec<(u32, u32)>,
}

impl Records {
    /// A page of one record.
    pub fn single(record: &[u8]) -> Self {
        let mut builder = RecordsBuilder::with_capacity(record.len() + 4, 1);
        builder.push(record);
        builder.finish()
    }

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

    /// Number of records.
    pub fn len(&self) -> usize {
        self.ranges.len()
    }

    /// Whether it has no records.
    pub fn is_empty(&self) -> bool {
        self.ranges.is_empty()
    }

    /// The bytes of a record.
    ///
    /// # Panics
    ///
    /// If `index` is not below [`Self::len`].
    pub fn get(&self, index: usize) -> &[u8] {
        let (start, end) = self.ranges[index];
        &self.page[start as usize..end as usize]
    }

    /// The bytes of each record, in order.
    pub fn iter(&self) -> impl Iterator<Item = &[u8]> {
        (0..self.len()).map(|i| self.get(i))
    }

    /// The page's bytes from this record on.
    pub(crate) fn page_from(&self, index: usize) -> &[u8] {
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
    /// With capacity for so many bytes and records.
    pub fn with_capacity(bytes: usize, records: usize) -> Self {
        Self {
            page: Vec::with_capacity(bytes),
            ranges: Vec::with_capacity(records),
        }
    }

    /// Appends a record.
    ///
    /// # Panics
    ///
    /// If the record has 4 GiB or more: sources reject far smaller ones.
    pub fn push(&mut self, record: &[u8]) {
        let length =
            u32::try_from(record.len()).expect("a record is bounded by its limit, far below 4 GiB");
        self.page.extend_from_slice(&length.to_le_bytes());
        let start = self.page.len() as u32;
        self.page.extend_from_slice(record);
        self.ranges.push((start, self.page.len() as u32));
    }

    /// Number of records so far.
    pub fn len(&self) -> usize {
        self.ranges.len()
    }

    /// Whether nothing has been appended.
    pub fn is_empty(&self) -> bool {
        self.ranges.is_empty()
    }

    /// Length of the page so far.
    pub fn bytes(&self) -> usize {
        self.page.len()
    }

    /// The page, complete.
    pub fn finish(self) -> Records {
        Records {
            page: self.page.into(),
            ranges: self.ranges,
        }
    }
}

/// Largest buffer that a thread reuses for its next block.
const MAX_REUSED_BUFFER_BYTES: usize = 4 << 20;

thread_local! {
    /// A context and a buffer, created once: new ones for each block cost as much as compressing
    /// it.
    static COMPRESSOR: RefCell<Option<(zstd::bulk::Compressor<'static>, Vec<u8>)>> = const { RefCell::new(None) };
}

/// Compresses a page as the log stores it.
pub(crate) fn compress(page: &[u8]) -> std::io::Result<Bytes> {
    COMPRESSOR.with_borrow_mut(|reused| {
        let (mut compressor, mut buffer) = match reused.take() {
            Some(reused) => reused,
            None => (zstd::bulk::Compressor::new(1)?, Vec::new()),
        };
        buffer.clear();
        buffer.reserve(zstd::zstd_safe::compress_bound(page.len()));
        compressor.compress_to_buffer(page, &mut buffer)?;
        let block = Bytes::copy_from_slice(&buffer);
        if buffer.capacity() > MAX_REUSED_BUFFER_BYTES {
            buffer = Vec::new();
        }
        *reused = Some((compressor, buffer));
        Ok(block)
    })
}

/// Appends the frame's bytes, CRC included, padded with zeros to a multiple of 8.
pub(super) fn encode(frame: &Frame, out: &mut Vec<u8>) {
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

/// A length rounded up to a multiple of 8.
pub(super) fn padded(length: usize) -> usize {
    length.next_multiple_of(8)
}

/// The length that a frame's first bytes claim, if they can be the start of a frame.
pub(super) fn claimed_length(head: &[u8; HEADER_BYTES]) -> Option<usize> {
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

/// Decodes a frame from exactly its bytes, without padding.
pub(super) fn decode(bytes: &Bytes) -> Result<Frame, DamagedFrame> {
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
        let header = Header {
            first_lsn: 42,
            first_offset: 7,
            previous_offset: 3,
            received_at: 1_465_520_400_000_000,
            configuration: 9,
            synced_lsn: 41,
            source: "s".into(),
            partition: "p".into(),
            ..Header::new(Kind::Record, "t")
        };
        let attributes = FrameAttributes {
            offsets: vec![7, 12],
            next_offset: Some(20),
            ..FrameAttributes::default()
        };
        Frame::data(header, &builder.finish(), attributes).expect("memory")
    }

    #[test]
    fn the_layout_does_not_change() {
        let mut bytes = Vec::new();
        let mut golden = frame(&[b"{}", b"{\"a\":1}"]);
        // How zstd compresses is not part of the layout.
        golden.block = Bytes::from_static(b"BLOCK");
        encode(&golden, &mut bytes);
        let hex: String = bytes.iter().map(|b| format!("{b:02x}")).collect();
        insta::assert_snapshot!(hex);
    }

    #[test]
    fn every_flipped_bit_is_detected() {
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
        fn encoded_frames_decode_to_the_same(records in proptest::collection::vec(proptest::collection::vec(any::<u8>(), 0..300), 1..20)) {
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
