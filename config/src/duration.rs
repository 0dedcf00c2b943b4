//! Durations as Gateway API writes them (GEP-2257): one to four groups of one to
//! five digits and a unit, `h`, `m`, `s` or `ms`, in any order. Stricter than Go's
//! `ParseDuration`: no sign, no fraction, no bare number.

use std::fmt::Write as _;
use std::time::Duration;

/// Digits in one group.
const DIGITS_MAX: usize = 5;
/// Groups in one duration.
const GROUPS_MAX: usize = 4;
/// Largest number that one group can hold.
const GROUP_VALUE_MAX: u64 = 99_999;

const HOUR_MS: u64 = 3_600_000;
const MINUTE_MS: u64 = 60_000;
const SECOND_MS: u64 = 1_000;

/// Why a text is not a duration.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum DurationError {
    #[error("is empty; write a duration such as 10s, 500ms or 1h30m")]
    Empty,
    #[error(
        "must be whole numbers with a unit (h, m, s, ms) and nothing else, such as 10s or 1h30m"
    )]
    Syntax,
    #[error("has a number without a unit; add h, m, s or ms")]
    UnitMissing,
    #[error("has a number of more than {DIGITS_MAX} digits; use a larger unit")]
    TooManyDigits,
    #[error("has more than {GROUPS_MAX} parts")]
    TooManyGroups,
}

/// Reads a duration.
pub fn parse(text: &str) -> Result<Duration, DurationError> {
    if text.is_empty() {
        return Err(DurationError::Empty);
    }
    let mut rest = text;
    let mut total_ms: u64 = 0;
    let mut groups = 0;
    while !rest.is_empty() {
        groups += 1;
        if groups > GROUPS_MAX {
            return Err(DurationError::TooManyGroups);
        }
        let digits = rest.bytes().take_while(u8::is_ascii_digit).count();
        let (number, after) = rest.split_at(digits);
        let (unit_ms, after) = unit(after)?;
        if number.is_empty() {
            return Err(DurationError::Syntax);
        }
        if digits > DIGITS_MAX {
            return Err(DurationError::TooManyDigits);
        }
        let number: u64 = number.parse().map_err(|_| DurationError::Syntax)?;
        // At most 4 × 99999 h: far from overflowing.
        total_ms += number * unit_ms;
        rest = after;
    }
    Ok(Duration::from_millis(total_ms))
}

/// The unit at the start of `text` in milliseconds, and what follows it.
fn unit(text: &str) -> Result<(u64, &str), DurationError> {
    // `ms` before `m`: the longer unit wins, as in Go.
    for (name, ms) in [
        ("ms", 1),
        ("h", HOUR_MS),
        ("m", MINUTE_MS),
        ("s", SECOND_MS),
    ] {
        if let Some(rest) = text.strip_prefix(name) {
            return Ok((ms, rest));
        }
    }
    if text.is_empty() {
        Err(DurationError::UnitMissing)
    } else {
        Err(DurationError::Syntax)
    }
}

/// Writes a duration in the canonical form: largest unit first, zero units left
/// out. `None` if GEP-2257 cannot express it (part of a millisecond, or 100,000
/// hours and more).
pub fn format(duration: Duration) -> Option<String> {
    if !duration.subsec_nanos().is_multiple_of(1_000_000) {
        return None;
    }
    let mut rest_ms = u64::try_from(duration.as_millis()).ok()?;
    if rest_ms == 0 {
        return Some("0s".to_owned());
    }
    let mut text = String::new();
    for (name, ms) in [
        ("h", HOUR_MS),
        ("m", MINUTE_MS),
        ("s", SECOND_MS),
        ("ms", 1),
    ] {
        let count = rest_ms / ms;
        if count > GROUP_VALUE_MAX {
            return None;
        }
        if count > 0 {
            // Writing to a String cannot fail.
            let _ = write!(text, "{count}{name}");
        }
        rest_ms %= ms;
    }
    Some(text)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn valid() {
        // The first rows are GEP-2257's own.
        for (text, ms) in [
            ("0h", 0),
            ("0s", 0),
            ("0h0m0s", 0),
            ("1h", 3_600_000),
            ("30m", 1_800_000),
            ("10s", 10_000),
            ("500ms", 500),
            ("2h30m", 9_000_000),
            ("150m", 9_000_000),
            ("7230s", 7_230_000),
            ("1h30m10s", 5_410_000),
            ("10s30m1h", 5_410_000),
            ("100ms200ms300ms", 600),
            ("1h2m3s4ms", 3_723_004),
            ("99999h99999h99999h99999h", 4 * 99_999 * 3_600_000),
            ("00001s", 1_000),
        ] {
            assert_eq!(parse(text), Ok(Duration::from_millis(ms)), "{text}");
        }
    }

    #[test]
    fn invalid() {
        for (text, error) in [
            ("", DurationError::Empty),
            ("1", DurationError::UnitMissing),
            ("1m1", DurationError::UnitMissing),
            ("1h30m10s20ms50h", DurationError::TooManyGroups),
            ("999999h", DurationError::TooManyDigits),
            ("1.5h", DurationError::Syntax),
            ("-15m", DurationError::Syntax),
            ("+15m", DurationError::Syntax),
            ("s", DurationError::Syntax),
            ("1d", DurationError::Syntax),
            ("1 s", DurationError::Syntax),
            (" 1s", DurationError::Syntax),
            ("1s ", DurationError::Syntax),
            ("1H", DurationError::Syntax),
            ("1us", DurationError::Syntax),
            ("١s", DurationError::Syntax),
        ] {
            assert_eq!(parse(text), Err(error), "{text}");
        }
    }

    #[test]
    fn format_is_canonical() {
        for (ms, text) in [
            (0, Some("0s")),
            (1, Some("1ms")),
            (3_723_004, Some("1h2m3s4ms")),
            (5_400_000, Some("1h30m")),
            (60_000, Some("1m")),
            (99_999 * 3_600_000, Some("99999h")),
            (100_000 * 3_600_000, None),
        ] {
            assert_eq!(format(Duration::from_millis(ms)).as_deref(), text, "{ms}");
        }
        assert_eq!(format(Duration::from_micros(1)), None);
    }

    #[test]
    fn what_is_formatted_parses_back() {
        let mut state = 1u64;
        for _ in 0..10_000 {
            state = state
                .wrapping_mul(6_364_136_223_846_793_005)
                .wrapping_add(1_442_695_040_888_963_407);
            let duration = Duration::from_millis(state >> (20 + state % 40));
            if let Some(text) = format(duration) {
                assert_eq!(parse(&text), Ok(duration), "{text}");
            }
        }
    }
}
