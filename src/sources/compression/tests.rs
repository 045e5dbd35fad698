use std::io::Write;

use proptest::prelude::*;

use super::*;

fn gzip(text: &[u8]) -> Vec<u8> {
    let mut encoder = flate2::GzBuilder::new()
        .filename("a.json")
        .comment("c")
        .extra(vec![7; 300])
        .write(Vec::new(), flate2::Compression::fast());
    encoder.write_all(text).expect("memory");
    encoder.finish().expect("memory")
}

fn zstd(text: &[u8]) -> Vec<u8> {
    let mut encoder = zstd::Encoder::new(Vec::new(), 1).expect("memory");
    encoder.include_checksum(true).expect("memory");
    encoder.write_all(text).expect("memory");
    encoder.finish().expect("memory")
}

fn bzip2(text: &[u8]) -> Vec<u8> {
    let mut encoder = bzip2::write::BzEncoder::new(Vec::new(), bzip2::Compression::fast());
    encoder.write_all(text).expect("memory");
    encoder.finish().expect("memory")
}

type Pack = fn(&[u8]) -> Vec<u8>;

const ALL: [(Compression, Pack); 3] = [
    (Compression::Gzip, gzip),
    (Compression::Zstd, zstd),
    (Compression::Bzip2, bzip2),
];

/// Reads at most `step` bytes at once.
struct Slow<'a>(&'a [u8], usize);

impl Read for Slow<'_> {
    fn read(&mut self, out: &mut [u8]) -> io::Result<usize> {
        let n = self.0.len().min(self.1).min(out.len());
        out[..n].copy_from_slice(&self.0[..n]);
        self.0 = &self.0[n..];
        Ok(n)
    }
}

/// The content, and the error that ended it.
fn read(stored: &[u8], step: usize) -> (Vec<u8>, Option<ContentError>) {
    let content_error = |error: &io::Error| {
        Some(
            ContentError::from_io(error)
                .expect("the content is at fault")
                .clone(),
        )
    };
    let mut reader = match PlainReader::new(Slow(stored, step)) {
        Ok(reader) => reader,
        Err(error) => return (Vec::new(), content_error(&error)),
    };
    let mut out = Vec::new();
    let error = reader.read_to_end(&mut out).err();
    (out, error.as_ref().and_then(content_error))
}

fn text(lines: usize) -> Vec<u8> {
    (0..lines)
        .flat_map(|n| format!("{{\"n\":{n},\"s\":\"{}\"}}\n", n * 7919 % 10_007).into_bytes())
        .collect()
}

#[test]
fn the_first_bytes_decide_the_format() {
    assert_eq!(detect_format(b""), Format::Plain);
    assert_eq!(detect_format(b"{\"a\":1}"), Format::Plain);
    assert_eq!(detect_format(b"\xef\xbb\xbf{}"), Format::Plain);
    assert_eq!(detect_format(b"\0\0\0{\"a\":1}"), Format::Plain);
    for (compression, pack) in ALL {
        let packed = pack(b"{}\n");
        assert_eq!(detect_format(&packed), Format::Compressed(compression));
        assert_eq!(detect_format(&pack(b"")), Format::Compressed(compression));
        assert_eq!(detect_format(&packed[..1]), Format::Undecided(compression));
    }
    assert_eq!(
        detect_format(b"\x53\x2a\x4d\x18\x01\0\0\0x"),
        Format::Compressed(Compression::Zstd)
    );
    let named = |head: &[u8]| match detect_format(head) {
        Format::Unsupported(format) => format.to_string(),
        other => panic!("{other:?}"),
    };
    assert!(
        named(b"PK\x03\x04....")
            .starts_with("this is a ZIP archive, which is not supported; unpack it")
    );
    assert!(named(b"\xfd7zXZ\0").contains("xz"));
    assert!(named(b"\xff\xfe{\0").contains("UTF-16 text"));
    assert!(named(b"{\0\"\0").contains("iconv -f UTF-16LE"));
    assert!(named(b"\0[\0{").contains("UTF-16BE"));
    assert!(named(b"\xff\xfe\0\0").contains("UTF-32"));
    let mut tar = vec![b'a'; 257];
    tar.extend_from_slice(b"ustar\0");
    assert!(named(&tar).contains("tar"));
}

#[test]
fn members_zeros_and_garbage_are_read_like_one_file() {
    let (first, second) = (text(3_000), text(10));
    for (compression, pack) in ALL {
        let mut stored = [pack(&first), pack(b""), pack(&second)].concat();
        let whole = [first.clone(), second.clone()].concat();
        for step in [1 << 20, 97] {
            assert!(
                read(&stored, step) == (whole.clone(), None),
                "{compression} {step}"
            );
        }
        stored.extend([0; 70_000]);
        assert!(
            read(&stored, 1 << 20) == (whole.clone(), None),
            "{compression}"
        );
        let members = [&stored[..], &pack(&second)].concat();
        assert!(
            read(&members, 999) == ([&whole[..], &second].concat(), None),
            "{compression}"
        );
        stored.extend(b"garbage");
        assert!(
            read(&stored, 1 << 20) == (whole.clone(), None),
            "{compression}"
        );
    }
}

#[test]
fn a_skippable_zstd_frame_has_no_content() {
    let mut stored = b"\x50\x2a\x4d\x18\x03\0\0\0abc".to_vec();
    stored.extend(zstd(b"{}\n"));
    assert_eq!(read(&stored, 5), (b"{}\n".to_vec(), None));
}

#[test]
fn truncated_data_continues_when_there_is_more() {
    /// A file that grows: each end of it is one part.
    struct Growing(std::collections::VecDeque<Vec<u8>>);
    impl Read for Growing {
        fn read(&mut self, out: &mut [u8]) -> io::Result<usize> {
            let Some(part) = self.0.front_mut() else {
                return Ok(0);
            };
            let n = part.len().min(out.len());
            out[..n].copy_from_slice(&part[..n]);
            part.drain(..n);
            if n == 0 {
                self.0.pop_front();
            }
            Ok(n)
        }
    }
    let content = text(5_000);
    for (compression, pack) in ALL {
        let stored = [pack(&content), pack(&content)].concat();
        let parts = stored
            .chunks(stored.len() / 7 + 1)
            .map(<[u8]>::to_vec)
            .collect();
        let mut reader = PlainReader::new(Growing(parts)).expect("enough to begin with");
        let (mut out, mut ends) = (Vec::new(), 0);
        while let Err(error) = reader.read_to_end(&mut out) {
            assert!(
                matches!(
                    ContentError::from_io(&error),
                    Some(ContentError::Truncated { .. })
                ),
                "{error}"
            );
            ends += 1;
        }
        assert!(out == [&content[..], &content].concat(), "{compression}");
        assert!(ends >= 4, "{compression}: {ends}");
    }
}

#[test]
fn everything_before_damage_is_delivered() {
    // Incompressible enough for several blocks in every format.
    let content: Vec<u8> = (0..20_000u64)
        .flat_map(|n| format!("{{\"n\":{}}}\n", n.wrapping_mul(0x9e37_79b9_7f4a_7c15)).into_bytes())
        .collect();
    for (compression, pack) in ALL {
        let mut stored = pack(&content);
        let at = stored.len() * 3 / 4;
        stored[at..at + 64].fill(0xff);
        let (out, error) = read(&stored, 1 << 20);
        assert!(
            matches!(error, Some(ContentError::Damaged { .. })),
            "{compression}: {error:?}"
        );
        assert!(
            out.len() > content.len() / 3,
            "{compression}: {} of {}",
            out.len(),
            content.len()
        );
        let same = out.iter().zip(&content).take_while(|(a, b)| a == b).count();
        assert!(same > content.len() / 3, "{compression}: {same}");
    }
}

#[test]
fn a_damaged_checksum_is_damage() {
    let mut stored = gzip(b"{}\n");
    let at = stored.len() - 5;
    stored[at] ^= 1;
    let (out, error) = read(&stored, 3);
    assert_eq!(out, b"{}\n");
    let error = error.expect("damaged").to_string();
    assert!(error.contains("checksum"), "{error}");
}

#[test]
fn an_unsupported_format_that_is_compressed_is_rejected_by_name() {
    let (out, error) = read(&gzip(b"PK\x03\x04 and more"), 1 << 20);
    assert!(out.is_empty());
    assert!(error.expect("unsupported").to_string().contains("ZIP"));
}

proptest! {
    /// Any prefix of the data decodes to a prefix of the content, and is never called damaged.
    #[test]
    fn any_prefix_is_truncated(lines in 0usize..30, share in 0.0f64..1.0, step in 1usize..5_000, which in 0usize..3) {
        let (content, (_, pack)) = (text(lines), ALL[which]);
        let stored = pack(&content);
        let length = (stored.len() as f64 * share) as usize;
        let (out, error) = read(&stored[..length], step);
        prop_assert!(content.starts_with(&out));
        prop_assert!(length == 0 || matches!(error, Some(ContentError::Truncated { .. })), "{:?}", error);
    }

    /// Of any bytes, reading ends.
    #[test]
    fn any_bytes_end(bytes in proptest::collection::vec(any::<u8>(), 0..300), which in 0usize..4, step in 1usize..50) {
        let head: &[u8] = [&b"\x1f\x8b\x08"[..], b"\x28\xb5\x2f\xfd", b"BZh91AY&SY", b""][which];
        let (out, error) = read(&[head, &bytes].concat(), step);
        prop_assert!(error.is_some() || out.len() < 1 << 20);
    }
}
