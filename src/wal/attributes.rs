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

use super::DamagedFrame;

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
}

impl FrameAttributes {
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
                _ => {}
            }
        }
        Ok(attributes)
    }
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
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn encoded_attributes_decode_to_the_same(
            first in 0u64..1 << 40,
            steps in proptest::collection::vec(0u64..100_000, 0..50),
            next in proptest::option::of(any::<u64>()),
            key in proptest::option::of("[a-z0-9]{0,128}"),
            file in proptest::option::of((any::<u64>(), 0u64..1024, any::<u32>())),
            content in proptest::option::of(any::<u32>()),
            complete in proptest::option::of(any::<(u64, u64)>()),
            sorted in proptest::option::of(any::<(u64, u32, u64, u32)>()),
            since in proptest::option::of(any::<u64>()),
            truncated_records in proptest::collection::vec((0u64..512, any::<u64>()), 0..3),
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
            };
            prop_assert_eq!(FrameAttributes::decode(&attributes.encode(first), first), Ok(attributes));
        }

        #[test]
        fn any_bytes_decode_or_are_damaged(bytes in proptest::collection::vec(any::<u8>(), 0..200)) {
            let _ = FrameAttributes::decode(&bytes, 0);
        }
    }
}
