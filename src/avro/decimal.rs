//! Decimals: integers of any length with a scale, as text.

/// The longest decimal: 154 digits. Their number of operations grows with its square.
pub(super) const MAX_BYTES: usize = 64;
/// Digits after the point, or zeros before it, at most.
pub(super) const MAX_SCALE: usize = 1_000;

/// Digits of one division.
const CHUNK: u32 = 1_000_000_000;
const CHUNK_DIGITS: usize = 9;

/// The text of a big-endian integer in two's complement, divided by a power of ten; none if it has
/// more bytes or digits after the point than the limits.
pub(super) fn text(unscaled: &[u8], scale: i64) -> Option<String> {
    let is_negative = unscaled.first().is_some_and(|byte| byte & 0x80 != 0);
    let digits = digits(magnitude(unscaled, is_negative)?);
    let scale_digits = usize::try_from(scale.unsigned_abs()).ok()?;
    if scale_digits > MAX_SCALE {
        return None;
    }
    let mut out = String::with_capacity(digits.len() + scale_digits + 3);
    if is_negative {
        out.push('-');
    }
    if scale <= 0 {
        out.push_str(&digits);
        if digits != "0" {
            out.extend(std::iter::repeat_n('0', scale_digits));
        }
        return Some(out);
    }
    let padded = format!("{digits:0>width$}", width = scale_digits + 1);
    let (whole, fraction) = padded.split_at(padded.len() - scale_digits);
    out.push_str(whole);
    out.push('.');
    out.push_str(fraction);
    Some(out)
}

/// Its absolute value as big-endian limbs.
fn magnitude(bytes: &[u8], is_negative: bool) -> Option<Vec<u32>> {
    let sign = if is_negative { 0xff } else { 0 };
    // A fixed decimal is filled up with its sign.
    let significant = bytes.iter().position(|byte| *byte != sign);
    let bytes = &bytes[significant.unwrap_or(bytes.len())..];
    if bytes.len() > MAX_BYTES {
        return None;
    }
    let mut limbs: Vec<u32> = bytes
        .rchunks(4)
        .rev()
        .map(|chunk| {
            let filler = if is_negative { u32::MAX } else { 0 };
            let limb = chunk
                .iter()
                .fold(filler, |limb, b| limb << 8 | u32::from(*b));
            if is_negative { !limb } else { limb }
        })
        .collect();
    if is_negative {
        // The complement, plus one.
        let mut carry = true;
        for limb in limbs.iter_mut().rev() {
            (*limb, carry) = limb.overflowing_add(u32::from(carry));
        }
        if carry {
            limbs.insert(0, 1);
        }
    }
    Some(limbs)
}

fn digits(mut limbs: Vec<u32>) -> String {
    let mut chunks = Vec::new();
    while limbs.iter().any(|limb| *limb != 0) {
        let mut rest = 0u64;
        for limb in &mut limbs {
            let value = rest << 32 | u64::from(*limb);
            *limb = (value / u64::from(CHUNK)) as u32;
            rest = value % u64::from(CHUNK);
        }
        chunks.push(rest);
    }
    let Some(first) = chunks.pop() else {
        return "0".into();
    };
    let mut out = first.to_string();
    for chunk in chunks.iter().rev() {
        out.push_str(&format!("{chunk:0>CHUNK_DIGITS$}"));
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn a_decimal_has_all_its_digits() {
        for (bytes, scale, expected) in [
            (&[][..], 0, "0"),
            (&[0], 2, "0.00"),
            (&[5], 0, "5"),
            (&[5], 3, "0.005"),
            (&[0x30, 0x39], 2, "123.45"),
            (&[0xff], 2, "-0.01"),
            (&[0xff, 0xff, 0xff], 0, "-1"),
            (&[0x80], 1, "-12.8"),
            (&[0xff, 0, 0, 0, 0], 0, "-4294967296"),
            (&[5], -2, "500"),
            (&[0], -2, "0"),
        ] {
            assert_eq!(text(bytes, scale).as_deref(), Some(expected), "{bytes:x?}");
        }
        assert!(text(&[1; MAX_BYTES], 0).is_some());
        assert_eq!(text(&[1; MAX_BYTES + 1], 0), None);
        assert!(text(&[0; 1_000], 0).is_some());
        assert_eq!(text(&[1], MAX_SCALE as i64 + 1), None);
        assert_eq!(text(&[1], i64::MIN), None);
    }

    proptest! {
        #[test]
        fn integers_keep_their_value(number in any::<i128>(), padding in 0usize..4, scale in 0i64..40) {
            let sign = if number < 0 { 0xff } else { 0 };
            let bytes = [vec![sign; padding], number.to_be_bytes().to_vec()].concat();
            let shown = text(&bytes, scale).expect("within the limits");
            let (whole, fraction) = shown.split_once('.').unwrap_or((&shown, ""));
            prop_assert_eq!(fraction.len() as i64, scale);
            prop_assert_eq!(format!("{whole}{fraction}").parse::<i128>(), Ok(number));
        }
    }
}
