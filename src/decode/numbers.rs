//! Decimal numbers by their text: exact where a 64-bit float would not be.

/// A decimal number as a whole one.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Whole {
    Exact(i64),
    /// There are digits behind the point; rounded towards the smaller number.
    Fraction(i64),
    /// It does not fit 64 bits.
    OutOfRange,
}

/// Digits that every 64-bit integer fits into.
const MAX_DIGITS: i64 = 19;
/// Beyond any exponent whose value matters; keeps sums of exponents from overflowing.
const MAX_EXPONENT: i64 = 1 << 40;

/// A JSON number, multiplied by a power of ten, as a whole number.
pub fn whole(text: &str, power: i64) -> Whole {
    let (is_negative, text) = text
        .strip_prefix('-')
        .map_or((false, text), |rest| (true, rest));
    let (mantissa, exponent) = match text.find(['e', 'E']) {
        Some(at) => (&text[..at], exponent(&text[at + 1..])),
        None => (text, 0),
    };
    let (before, behind) = mantissa.split_once('.').unwrap_or((mantissa, ""));
    let digits = || {
        before
            .bytes()
            .chain(behind.bytes())
            .skip_while(|digit| *digit == b'0')
    };
    let count = digits().count() as i64;
    if count == 0 {
        return Whole::Exact(0);
    }
    let shift = exponent + power - behind.len() as i64;
    let integer_digits = count + shift.min(0);
    if integer_digits + shift.max(0) > MAX_DIGITS {
        return Whole::OutOfRange;
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
        Ok(value) if has_fraction => Whole::Fraction(value),
        Ok(value) => Whole::Exact(value),
        Err(_) => Whole::OutOfRange,
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

/// The double nearest to a JSON number; none beyond the range of doubles.
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
    fn whole_numbers_are_exact_however_they_are_written() {
        for (text, wanted) in [
            ("0", Whole::Exact(0)),
            ("-0", Whole::Exact(0)),
            ("-0.0e5", Whole::Exact(0)),
            ("1e3", Whole::Exact(1_000)),
            ("1000.0", Whole::Exact(1_000)),
            ("12300e-2", Whole::Exact(123)),
            ("0.5", Whole::Fraction(0)),
            ("-0.5", Whole::Fraction(-1)),
            ("9007199254740993.0", Whole::Exact(9_007_199_254_740_993)),
            ("9223372036854775807", Whole::Exact(i64::MAX)),
            ("-9223372036854775808.000", Whole::Exact(i64::MIN)),
            ("9223372036854775808", Whole::OutOfRange),
            ("1e400", Whole::OutOfRange),
            ("1e-400", Whole::Fraction(0)),
            ("1e99999999999999999999", Whole::OutOfRange),
            ("0e99999999999999999999", Whole::Exact(0)),
            ("1e-99999999999999999999", Whole::Fraction(0)),
        ] {
            assert_eq!(whole(text, 0), wanted, "{text}");
        }
        assert_eq!(
            whole("1714557600.123456", 6),
            Whole::Exact(1_714_557_600_123_456)
        );
        assert_eq!(whole("-1.0000001", 6), Whole::Fraction(-1_000_001));
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
            prop_assert_eq!(whole(&text, power), Whole::Exact(value));
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
