//! Attributes of a frame beyond its header: a list of `(tag u8, length varint, content)`. Unknown
//! tags are skipped.
//!
//! | tag | content |
//! |---|---|
//! | 1 | per record its offset: varint difference to the previous one, starting from the frame's first offset |
//! | 2 | varint: the offset after the frame, where the source continues |
//! | 3 | idempotency key: 32 bytes SHA-256 of the body, then the key |
//! | 4 | of a retry, per record the dead letter that it resubmits: varint LSN |
//! | 5 | identity of the file read, see below |
//! | 6 | truncated records: per record varint index, varint original length |
//! | 7 | per record what a Kafka message carries beside its value, see below |
//! | 8 | UTF-8: the last event id of a stream of server-sent events, after which it continues |
//! | 9 | varint: how many records the source recognizes, then per record 16 bytes by which it does |
//! | 10 | the last record before the offset of tag 2: varint its offset, u64 fingerprint |
//!
//! A file's identity is: varint inode, varint length of its head, u32 CRC-32C of that head; then
//! optional fields, each with its own u8 tag:
//!
//! | tag | content |
//! |---|---|
//! | 1 | u32 CRC-32C of the file's plain bytes up to the offset after the frame |
//! | 2 | varint size, varint mtime (ns since 1970) of a file that ends at that offset |
//! | 3 | of a file read in order of event time: varint size, u32 CRC-32C of the file as stored, varint number of its records, u32 CRC-32C of the order up to the offset |
//! | 4 | of a source of one file: varint time (ns since 1970) since which files rotated away from its path belong to it |
//!
//! A message's metadata is a u8 of flags, then what they announce, in this order:
//!
//! | bits | content |
//! |---|---|
//! | 0x01 | key: varint length, bytes |
//! | 0x02 | varint zigzag: timestamp in ms since 1970, less that of the last message before it that has one |
//! | 0x04 | varint number of headers; of each varint length of the name, name, varint 0 for null or the value's length + 1, value |
//! | 0x18 | the value is null, and becomes: 1 a dead letter, 2 a row, 3 neither |
//! | 0x20 | why the source could not read the value: varint length, text |

use super::DamagedFrame;
use crate::message::{MessageMetadata, Messages, Tombstone};

/// A file that is read in order of event time. Its offsets are ordinals in that order, valid for
/// this content only.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub struct Sorted {
    /// Bytes of the file as stored, and their CRC-32C.
    pub size: u64,
    /// CRC-32C of the file as stored.
    pub crc: u32,
    /// How many records it has.
    pub records: u64,
    /// CRC-32C of the byte offsets and lengths of the records read so far, in their order.
    pub order: u32,
}

/// Identity of a file: its inode, and a checksum of its head.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub struct FileIdentity {
    /// The file's inode number. File systems reuse it, so it alone identifies nothing.
    pub inode: u64,
    /// Bytes of the file's start that `crc` covers, at most 1 KiB.
    pub head: u64,
    /// CRC-32C of the head.
    pub crc: u32,
    /// CRC-32C of all plain bytes up to the offset stored with it.
    #[serde(default)]
    pub content: Option<u32>,
    /// Size and modification time, in nanoseconds, of the file when it ended at that offset.
    #[serde(default)]
    pub complete: Option<(u64, u64)>,
    /// `None` if it is read in its own order.
    #[serde(default)]
    pub sorted: Option<Sorted>,
    /// Of a source of one file: time, in nanoseconds, since which files rotated away from its path
    /// are read too.
    #[serde(default)]
    pub since: Option<u64>,
}

impl FileIdentity {
    fn encode(&self) -> Vec<u8> {
        let mut part = Vec::new();
        put_varint(&mut part, self.inode);
        put_varint(&mut part, self.head);
        part.extend_from_slice(&self.crc.to_le_bytes());
        if let Some(content) = self.content {
            part.push(1);
            part.extend_from_slice(&content.to_le_bytes());
        }
        if let Some((size, mtime)) = self.complete {
            part.push(2);
            put_varint(&mut part, size);
            put_varint(&mut part, mtime);
        }
        if let Some(sorted) = self.sorted {
            part.push(3);
            put_varint(&mut part, sorted.size);
            part.extend_from_slice(&sorted.crc.to_le_bytes());
            put_varint(&mut part, sorted.records);
            part.extend_from_slice(&sorted.order.to_le_bytes());
        }
        if let Some(since) = self.since {
            part.push(4);
            put_varint(&mut part, since);
        }
        part
    }

    fn decode(mut part: &[u8]) -> Result<Self, DamagedFrame> {
        let (inode, head) = (take_varint(&mut part)?, take_varint(&mut part)?);
        let crc = take_u32(&mut part)?;
        let mut file = Self {
            inode,
            head,
            crc,
            ..Self::default()
        };
        while let Some((&field, rest)) = part.split_first() {
            part = rest;
            match field {
                1 => file.content = Some(take_u32(&mut part)?),
                2 => file.complete = Some((take_varint(&mut part)?, take_varint(&mut part)?)),
                3 => {
                    let (size, crc) = (take_varint(&mut part)?, take_u32(&mut part)?);
                    let (records, order) = (take_varint(&mut part)?, take_u32(&mut part)?);
                    file.sorted = Some(Sorted {
                        size,
                        crc,
                        records,
                        order,
                    });
                }
                4 => file.since = Some(take_varint(&mut part)?),
                // A newer version appends its fields after those known here.
                _ => break,
            }
        }
        Ok(file)
    }
}

/// What a record is recognized by when it is received again: a hash of its key and version.
pub type RecordIdentity = u128;

/// Bytes of a [`RecordIdentity`] in the log.
const IDENTITY_BYTES: usize = size_of::<RecordIdentity>();

/// The identities of a frame's records.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct RecordIdentities {
    /// How many of the newest ones the source remembers.
    pub remembered: u64,
    /// One per record.
    pub of_records: Vec<RecordIdentity>,
}

impl RecordIdentities {
    fn encode(&self) -> Vec<u8> {
        let mut part = Vec::with_capacity(10 + self.of_records.len() * IDENTITY_BYTES);
        put_varint(&mut part, self.remembered);
        for identity in &self.of_records {
            part.extend_from_slice(&identity.to_le_bytes());
        }
        part
    }

    fn decode(mut part: &[u8]) -> Result<Self, DamagedFrame> {
        let remembered = take_varint(&mut part)?;
        let (identities, rest) = part.as_chunks::<IDENTITY_BYTES>();
        if !rest.is_empty() {
            return Err(DamagedFrame);
        }
        Ok(Self {
            remembered,
            of_records: identities
                .iter()
                .map(|bytes| RecordIdentity::from_le_bytes(*bytes))
                .collect(),
        })
    }
}

/// The last record that was taken from a partition, by which its log is recognized at the next
/// start: what has this offset there never changes, but may be removed.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub struct LastRecord {
    /// Its offset, which is before the one where the partition continues.
    pub offset: u64,
    /// A hash of its content, which the source computes.
    pub fingerprint: u64,
}

impl LastRecord {
    fn encode(self) -> Vec<u8> {
        let mut part = Vec::new();
        put_varint(&mut part, self.offset);
        part.extend_from_slice(&self.fingerprint.to_le_bytes());
        part
    }

    fn decode(mut part: &[u8]) -> Result<Self, DamagedFrame> {
        let offset = take_varint(&mut part)?;
        // A newer version appends its fields.
        let fingerprint = part.first_chunk::<8>().ok_or(DamagedFrame)?;
        Ok(Self {
            offset,
            fingerprint: u64::from_le_bytes(*fingerprint),
        })
    }
}

/// Attributes of a frame, decoded.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct FrameAttributes {
    /// One offset per record, ascending; empty if the source has none.
    pub offsets: Vec<u64>,
    /// The offset after the frame; set by pull sources only.
    pub next_offset: Option<u64>,
    /// SHA-256 of the request's body, and its idempotency key.
    pub idempotency: Option<([u8; 32], String)>,
    /// Of a retry: per record, the LSN of the dead letter that it resubmits.
    pub retry_of: Vec<u64>,
    /// Identity of the file that the records were read from; set by file sources only.
    pub file: Option<FileIdentity>,
    /// Records that exceeded the size limit: (index in the frame, original length in bytes).
    pub truncated_records: Vec<(u64, u64)>,
    /// One per record of a Kafka source; empty for other sources.
    pub messages: Vec<MessageMetadata>,
    /// The last event id of a stream whose server continues after it.
    pub last_event_id: Option<String>,
    /// What records that are polled again are recognized by.
    pub identities: Option<RecordIdentities>,
    /// The last record before `next_offset`; none if the source does not compare it, or not yet.
    pub last_record: Option<LastRecord>,
}

impl FrameAttributes {
    /// Bytes in memory beside the struct itself.
    pub(crate) fn heap_bytes(&self) -> usize {
        let messages = self.messages.iter().map(MessageMetadata::heap_bytes);
        let identities = self.identities.as_ref();
        self.offsets.len() * size_of::<u64>()
            + identities.map_or(0, |i| i.of_records.len() * IDENTITY_BYTES)
            + self.last_event_id.as_ref().map_or(0, String::len)
            + self.messages.len() * size_of::<MessageMetadata>()
            + messages.sum::<usize>()
    }

    /// The messages of a frame of this partition.
    pub fn messages_of<'a>(&'a self, partition: &'a str) -> Messages<'a> {
        Messages {
            metadata: &self.messages,
            partition,
            offsets: &self.offsets,
        }
    }

    /// Those of the frame's records without the first `skipped`.
    pub(crate) fn skip(&self, skipped: usize) -> Self {
        let rest = |numbers: &[u64]| numbers.get(skipped..).unwrap_or_default().to_vec();
        let first = skipped as u64;
        Self {
            offsets: rest(&self.offsets),
            retry_of: rest(&self.retry_of),
            truncated_records: self
                .truncated_records
                .iter()
                .filter(|(index, _)| *index >= first)
                .map(|(index, bytes)| (index - first, *bytes))
                .collect(),
            messages: self.messages.get(skipped..).unwrap_or_default().to_vec(),
            identities: self.identities.as_ref().map(|all| RecordIdentities {
                remembered: all.remembered,
                of_records: all.of_records.get(skipped..).unwrap_or_default().to_vec(),
            }),
            ..self.clone()
        }
    }

    pub(super) fn encode(&self, first_offset: u64) -> Vec<u8> {
        let mut out = Vec::new();
        if !self.offsets.is_empty() {
            let mut part = Vec::with_capacity(self.offsets.len() * 2);
            let mut previous = first_offset;
            for offset in &self.offsets {
                put_varint(&mut part, offset.saturating_sub(previous));
                previous = *offset;
            }
            put_part(&mut out, 1, &part);
        }
        if let Some(next) = self.next_offset {
            put_numbers(&mut out, 2, &[next]);
        }
        if let Some((hash, key)) = &self.idempotency {
            put_part(&mut out, 3, &[&hash[..], key.as_bytes()].concat());
        }
        if !self.retry_of.is_empty() {
            put_numbers(&mut out, 4, &self.retry_of);
        }
        if let Some(file) = self.file {
            put_part(&mut out, 5, &file.encode());
        }
        if !self.truncated_records.is_empty() {
            let numbers: Vec<u64> = self
                .truncated_records
                .iter()
                .flat_map(|(i, n)| [*i, *n])
                .collect();
            put_numbers(&mut out, 6, &numbers);
        }
        if !self.messages.is_empty() {
            put_part(&mut out, 7, &encode_messages(&self.messages));
        }
        if let Some(id) = &self.last_event_id {
            put_part(&mut out, 8, id.as_bytes());
        }
        if let Some(identities) = &self.identities {
            put_part(&mut out, 9, &identities.encode());
        }
        if let Some(record) = self.last_record {
            put_part(&mut out, 10, &record.encode());
        }
        out
    }

    pub(super) fn decode(mut bytes: &[u8], first_offset: u64) -> Result<Self, DamagedFrame> {
        let mut attributes = Self::default();
        while let Some((&tag, rest)) = bytes.split_first() {
            bytes = rest;
            let length = usize::try_from(take_varint(&mut bytes)?).map_err(|_| DamagedFrame)?;
            let (mut part, rest) = bytes.split_at_checked(length).ok_or(DamagedFrame)?;
            bytes = rest;
            match tag {
                1 => {
                    let mut offset = first_offset;
                    while !part.is_empty() {
                        offset = offset.wrapping_add(take_varint(&mut part)?);
                        attributes.offsets.push(offset);
                    }
                }
                2 => attributes.next_offset = Some(take_varint(&mut part)?),
                3 => {
                    let (hash, key) = part.split_first_chunk::<32>().ok_or(DamagedFrame)?;
                    let key = std::str::from_utf8(key).map_err(|_| DamagedFrame)?;
                    attributes.idempotency = Some((*hash, key.to_owned()));
                }
                4 => {
                    while !part.is_empty() {
                        attributes.retry_of.push(take_varint(&mut part)?);
                    }
                }
                5 => attributes.file = Some(FileIdentity::decode(part)?),
                6 => {
                    while !part.is_empty() {
                        attributes
                            .truncated_records
                            .push((take_varint(&mut part)?, take_varint(&mut part)?));
                    }
                }
                7 => attributes.messages = decode_messages(part)?,
                8 => {
                    let id = std::str::from_utf8(part).map_err(|_| DamagedFrame)?;
                    attributes.last_event_id = Some(id.to_owned());
                }
                9 => attributes.identities = Some(RecordIdentities::decode(part)?),
                10 => attributes.last_record = Some(LastRecord::decode(part)?),
                _ => {}
            }
        }
        Ok(attributes)
    }
}

const KEY: u8 = 0x01;
const TIMESTAMP: u8 = 0x02;
const HEADERS: u8 = 0x04;
const TOMBSTONE_SHIFT: u32 = 3;
const TOMBSTONE_MASK: u8 = 0x03;
const REJECTED: u8 = 0x20;

fn encode_messages(messages: &[MessageMetadata]) -> Vec<u8> {
    let mut out = Vec::with_capacity(messages.len() * 8);
    let mut previous = 0i64;
    for message in messages {
        let tombstone = match message.tombstone {
            None => 0,
            Some(Tombstone::DeadLetter) => 1,
            Some(Tombstone::Row) => 2,
            Some(Tombstone::Skip) => 3,
        };
        let mut flags = tombstone << TOMBSTONE_SHIFT;
        let mut flag = |is_set: bool, bit: u8| flags |= if is_set { bit } else { 0 };
        flag(message.key.is_some(), KEY);
        flag(message.timestamp_ms.is_some(), TIMESTAMP);
        flag(!message.headers.is_empty(), HEADERS);
        flag(message.rejected.is_some(), REJECTED);
        out.push(flags);
        if let Some(key) = &message.key {
            put_bytes(&mut out, key);
        }
        if let Some(time) = message.timestamp_ms {
            put_varint(&mut out, zigzag(time.wrapping_sub(previous)));
            previous = time;
        }
        if !message.headers.is_empty() {
            put_varint(&mut out, message.headers.len() as u64);
            for (name, value) in &message.headers {
                put_bytes(&mut out, name.as_bytes());
                match value {
                    None => put_varint(&mut out, 0),
                    Some(value) => {
                        put_varint(&mut out, value.len() as u64 + 1);
                        out.extend_from_slice(value);
                    }
                }
            }
        }
        if let Some(reason) = &message.rejected {
            put_bytes(&mut out, reason.as_bytes());
        }
    }
    out
}

fn decode_messages(mut part: &[u8]) -> Result<Vec<MessageMetadata>, DamagedFrame> {
    let mut messages = Vec::new();
    let mut previous = 0i64;
    while let Some((&flags, rest)) = part.split_first() {
        part = rest;
        let mut message = MessageMetadata {
            tombstone: match (flags >> TOMBSTONE_SHIFT) & TOMBSTONE_MASK {
                0 => None,
                1 => Some(Tombstone::DeadLetter),
                2 => Some(Tombstone::Row),
                _ => Some(Tombstone::Skip),
            },
            ..MessageMetadata::default()
        };
        if flags & KEY != 0 {
            let length = take_varint(&mut part)?;
            message.key = Some(take_bytes(&mut part, length)?.to_vec());
        }
        if flags & TIMESTAMP != 0 {
            previous = previous.wrapping_add(unzigzag(take_varint(&mut part)?));
            message.timestamp_ms = Some(previous);
        }
        if flags & HEADERS != 0 {
            for _ in 0..take_varint(&mut part)? {
                let name = take_text(&mut part)?.to_owned();
                let value = match take_varint(&mut part)?.checked_sub(1) {
                    None => None,
                    Some(length) => Some(take_bytes(&mut part, length)?.to_vec()),
                };
                message.headers.push((name, value));
            }
        }
        if flags & REJECTED != 0 {
            message.rejected = Some(take_text(&mut part)?.to_owned());
        }
        messages.push(message);
    }
    Ok(messages)
}

/// Maps numbers near zero, of either sign, to small ones.
fn zigzag(number: i64) -> u64 {
    ((number << 1) ^ (number >> 63)) as u64
}

fn unzigzag(number: u64) -> i64 {
    (number >> 1) as i64 ^ -((number & 1) as i64)
}

fn put_bytes(out: &mut Vec<u8>, bytes: &[u8]) {
    put_varint(out, bytes.len() as u64);
    out.extend_from_slice(bytes);
}

fn take_bytes<'a>(bytes: &mut &'a [u8], length: u64) -> Result<&'a [u8], DamagedFrame> {
    let length = usize::try_from(length).map_err(|_| DamagedFrame)?;
    let (taken, rest) = bytes.split_at_checked(length).ok_or(DamagedFrame)?;
    *bytes = rest;
    Ok(taken)
}

/// Text that is preceded by its length.
fn take_text<'a>(bytes: &mut &'a [u8]) -> Result<&'a str, DamagedFrame> {
    let length = take_varint(bytes)?;
    std::str::from_utf8(take_bytes(bytes, length)?).map_err(|_| DamagedFrame)
}

fn put_part(out: &mut Vec<u8>, tag: u8, part: &[u8]) {
    out.push(tag);
    put_varint(out, part.len() as u64);
    out.extend_from_slice(part);
}

fn put_numbers(out: &mut Vec<u8>, tag: u8, numbers: &[u64]) {
    let mut part = Vec::new();
    for number in numbers {
        put_varint(&mut part, *number);
    }
    put_part(out, tag, &part);
}

/// LEB128, least significant seven bits first.
fn put_varint(out: &mut Vec<u8>, mut value: u64) {
    while value >= 0x80 {
        out.push((value & 0x7f) as u8 | 0x80);
        value >>= 7;
    }
    out.push(value as u8);
}

fn take_u32(bytes: &mut &[u8]) -> Result<u32, DamagedFrame> {
    let (number, rest) = bytes.split_first_chunk::<4>().ok_or(DamagedFrame)?;
    *bytes = rest;
    Ok(u32::from_le_bytes(*number))
}

fn take_varint(bytes: &mut &[u8]) -> Result<u64, DamagedFrame> {
    let mut value = 0u64;
    for shift in (0..64).step_by(7) {
        let (&byte, rest) = bytes.split_first().ok_or(DamagedFrame)?;
        *bytes = rest;
        value |= u64::from(byte & 0x7f) << shift;
        if byte & 0x80 == 0 {
            return Ok(value);
        }
    }
    Err(DamagedFrame)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::collection::vec;
    use proptest::prelude::*;

    fn message() -> impl Strategy<Value = MessageMetadata> {
        let bytes = || proptest::option::of(vec(any::<u8>(), 0..9));
        (
            bytes(),
            vec((".{0,5}", bytes()), 0..3),
            proptest::option::of(any::<i64>()),
            proptest::option::of(proptest::sample::select(&Tombstone::ALL[..])),
            proptest::option::of(".{0,5}"),
        )
            .prop_map(|(key, headers, timestamp_ms, tombstone, rejected)| {
                MessageMetadata {
                    key,
                    headers,
                    timestamp_ms,
                    tombstone,
                    rejected,
                }
            })
    }

    proptest! {
        #[test]
        fn encoded_attributes_decode_to_the_same(
            first in 0u64..1 << 40,
            steps in vec(0u64..100_000, 0..50),
            next in proptest::option::of(any::<u64>()),
            key in proptest::option::of("[a-z0-9]{0,128}"),
            file in proptest::option::of((any::<u64>(), 0u64..1024, any::<u32>())),
            content in proptest::option::of(any::<u32>()),
            complete in proptest::option::of(any::<(u64, u64)>()),
            sorted in proptest::option::of(any::<(u64, u32, u64, u32)>()),
            since in proptest::option::of(any::<u64>()),
            truncated_records in vec((0u64..512, any::<u64>()), 0..3),
            messages in vec(message(), 0..9),
            last_event_id in proptest::option::of(".{0,20}"),
            identities in proptest::option::of((any::<u64>(), vec(any::<u128>(), 0..9))),
            last_record in proptest::option::of(any::<(u64, u64)>()),
        ) {
            let offsets = steps.iter().scan(first, |p, s| { *p += s; Some(*p) }).collect();
            let attributes = FrameAttributes {
                offsets,
                next_offset: next,
                idempotency: key.map(|k| ([7; 32], k)),
                retry_of: next.map(|n| n / 2).into_iter().collect(),
                file: file.map(|(inode, head, crc)| {
                    let sorted = sorted.map(|(size, crc, records, order)| Sorted { size, crc, records, order });
                    FileIdentity { inode, head, crc, content, complete, sorted, since }
                }),
                truncated_records,
                messages,
                last_event_id,
                identities: identities.map(|(remembered, of_records)| RecordIdentities { remembered, of_records }),
                last_record: last_record.map(|(offset, fingerprint)| LastRecord { offset, fingerprint }),
            };
            prop_assert_eq!(FrameAttributes::decode(&attributes.encode(first), first), Ok(attributes));
        }

        #[test]
        fn skipped_records_leave_the_attributes_of_the_others(
            messages in vec(message(), 1..9),
            skipped in 0usize..9,
        ) {
            let skipped = skipped.min(messages.len());
            let count = messages.len() as u64;
            let attributes = FrameAttributes {
                offsets: (10..10 + count).collect(),
                retry_of: (20..20 + count).collect(),
                truncated_records: (0..count).map(|index| (index, 100 + index)).collect(),
                messages,
                identities: Some(RecordIdentities { remembered: 5, of_records: (0..u128::from(count)).collect() }),
                ..FrameAttributes::default()
            };
            let rest = attributes.skip(skipped);
            let first = skipped as u64;
            prop_assert_eq!(rest.offsets, (10 + first..10 + count).collect::<Vec<_>>());
            prop_assert_eq!(rest.retry_of, (20 + first..20 + count).collect::<Vec<_>>());
            let truncated: Vec<_> = (first..count).map(|n| (n - first, 100 + n)).collect();
            prop_assert_eq!(rest.truncated_records, truncated);
            prop_assert_eq!(&rest.messages[..], &attributes.messages[skipped..]);
            let identities = rest.identities.expect("as many as records");
            prop_assert_eq!(identities.of_records, (u128::from(first)..u128::from(count)).collect::<Vec<_>>());
        }

        #[test]
        fn any_bytes_decode_or_are_damaged(bytes in vec(any::<u8>(), 0..200)) {
            let _ = FrameAttributes::decode(&bytes, 0);
        }
    }

    #[test]
    fn tags_of_http_sources_are_the_formats() {
        let attributes = FrameAttributes {
            last_event_id: Some("a7".into()),
            identities: Some(RecordIdentities {
                remembered: 300,
                of_records: vec![1],
            }),
            ..FrameAttributes::default()
        };
        let identity = [1].into_iter().chain([0; 15]);
        let expected: Vec<u8> = [8, 2, b'a', b'7', 9, 18, 0xac, 0x02]
            .into_iter()
            .chain(identity)
            .collect();
        assert_eq!(attributes.encode(0), expected);
        assert_eq!(FrameAttributes::decode(&expected, 0), Ok(attributes));
        // Half an identity, and an id that is not UTF-8.
        for damaged in [&[9, 3, 1, 2, 3][..], &[8, 1, 0xff]] {
            assert_eq!(FrameAttributes::decode(damaged, 0), Err(DamagedFrame));
        }
    }

    #[test]
    fn the_tag_of_a_last_record_is_the_formats() {
        let attributes = FrameAttributes {
            next_offset: Some(301),
            last_record: Some(LastRecord {
                offset: 300,
                fingerprint: 0x0807_0605_0403_0201,
            }),
            ..FrameAttributes::default()
        };
        let expected = [2, 2, 0xad, 2, 10, 10, 0xac, 2, 1, 2, 3, 4, 5, 6, 7, 8];
        assert_eq!(attributes.encode(0), expected);
        assert_eq!(FrameAttributes::decode(&expected, 0), Ok(attributes));
        // A fingerprint that is cut off.
        assert_eq!(
            FrameAttributes::decode(&[10, 3, 0, 1, 2], 0),
            Err(DamagedFrame)
        );
    }
}
