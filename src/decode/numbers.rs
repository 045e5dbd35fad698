//! Decimal numbers from their text: exact, unlike a 64-bit float.

/// A decimal number as an integer.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Integer {
    /// Without a fraction, however it is written.
    Exact(i64),
    /// It has digits after the point; rounded down.
    Fraction(i64),
    /// It does not fit 64 bits.
    OutOfRange,
}

/// Digits of the longest 64-bit integer.
const MAX_DIGITS: i64 = 19;
/// Larger than any exponent that matters; keeps sums of exponents from overflowing.
const MAX_EXPONENT: i64 = 1 << 40;

/// A JSON number times `10^power` as an integer. Example: `1.5e3` with power 0 is 1500, `1.25` with
/// power 1 is a fraction, rounded to 12.
pub fn parse_integer(text: &str, power: i64) -> Integer {
    let (is_negative, text) = text
        .strip_prefix('-')
        .map_or((false, text), |rest| (true, rest));
    let (mantissa, exponent) = match text.find(['e', 'E']) {
        Some(at) => (&text[..at], exponent(&text[at + 1..])),
        None => (text, 0),
    };
    let (before, after) = mantissa.split_once('.').unwrap_or((mantissa, ""));
    let digits = || {
        before
            .bytes()
            .chain(after.bytes())
            .skip_while(|digit| *digit == b'0')
    };
    let count = digits().count() as i64;
    if count == 0 {
        return Integer::Exact(0);
    }
    let shift = exponent + power - after.len() as i64;
    let integer_digits = count + shift.min(0);
    if integer_digits + shift.max(0) > MAX_DIGITS {
        return Integer::OutOfRange;
    }
    let (mut value, mut has_fraction) = (0_i128, false);
    for (at, digit) in digits().enumerate() {
        if (at as i64) < integer_digits {
            value = value * 10 + i128::from(digit - b'0');
        } else {
            has_fraction |= digit != b'0';
        }
    }
    value *= 10_i128.pow(shift.clamp(0, MAX_DIGITS) as u32);
    if is_negative {
        value = -value - i128::from(has_fraction);
    }
    match i64::try_from(value) {
        Ok(value) if has_fraction => Integer::Fraction(value),
        Ok(value) => Integer::Exact(value),
        Err(_) => Integer::OutOfRange,
    }
}

fn exponent(text: &str) -> i64 {
    let limit = if text.starts_with('-') {
        -MAX_EXPONENT
    } else {
        MAX_EXPONENT
    };
    text.parse::<i64>().map_or(limit, |exponent| {
        exponent.clamp(-MAX_EXPONENT, MAX_EXPONENT)
    })
}

/// The double nearest to a JSON number; `None` beyond the range of doubles.
pub fn double(text: &str) -> Option<f64> {
    text.parse().ok().filter(|value: &f64| value.is_finite())
}

/// Whether a text is a decimal number as JSON writes it.
pub fn is_number(text: &str) -> bool {
    text.starts_with(|c: char| c == '-' || c.is_ascii_digit())
        && serde_json::from_str::<&serde_json::value::RawValue>(text)
            .is_ok_and(|raw| raw.get() == text)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn integers_are_exact_however_they_are_written() {
        for (text, wanted) in [
            ("0", Integer::Exact(0)),
            ("-0", Integer::Exact(0)),
            ("-0.0e5", Integer::Exact(0)),
            ("1e3", Integer::Exact(1_000)),
            ("1000.0", Integer::Exact(1_000)),
            ("12300e-2", Integer::Exact(123)),
            ("0.5", Integer::Fraction(0)),
            ("-0.5", Integer::Fraction(-1)),
            ("9007199254740993.0", Integer::Exact(9_007_199_254_740_993)),
            ("9223372036854775807", Integer::Exact(i64::MAX)),
            ("-9223372036854775808.000", Integer::Exact(i64::MIN)),
            ("9223372036854775808", Integer::OutOfRange),
            ("1e400", Integer::OutOfRange),
            ("1e-400", Integer::Fraction(0)),
            ("1e99999999999999999999", Integer::OutOfRange),
            ("0e99999999999999999999", Integer::Exact(0)),
            ("1e-99999999999999999999", Integer::Fraction(0)),
        ] {
            assert_eq!(parse_integer(text, 0), wanted, "{text}");
        }
        assert_eq!(
            parse_integer("1714557600.123456", 6),
            Integer::Exact(1_714_557_600_123_456)
        );
        assert_eq!(
            parse_integer("-1.0000001", 6),
            Integer::Fraction(-1_000_001)
        );
    }

    #[test]
    fn only_json_numbers_are_numbers() {
        assert!(is_number("-1.5e3") && is_number("7"));
        for text in [
            "", "-", "+1", "01", "1.", ".5", "1 ", "0x1", "inf", "1a", "null",
        ] {
            assert!(!is_number(text), "{text}");
        }
    }

    proptest! {
        #[test]
        fn integers_survive_any_scale(value: i64, power in 0_i64..30) {
            let text = format!("{value}e-{power}");
            prop_assert_eq!(parse_integer(&text, power), Integer::Exact(value));
        }

        #[test]
        fn doubles_survive_their_shortest_and_their_17_digit_text(bits: u64) {
            let value = f64::from_bits(bits);
            prop_assume!(value.is_finite());
            for text in [format!("{value:?}"), format!("{value:.16e}")] {
                prop_assert_eq!(double(&text).map(f64::to_bits), Some(value.to_bits()), "{}", text);
                let parsed: f64 = serde_json::from_str(&text).expect("a number");
                prop_assert_eq!(parsed.to_bits(), value.to_bits(), "{}", text);
            }
        }
    }
}
