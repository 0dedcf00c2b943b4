//! RFC 3339 instants, only to tell which of two objects is older.

/// Seconds since 1970 and nanoseconds, in UTC.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Timestamp {
    seconds: i64,
    nanoseconds: u32,
}

/// Reads `2026-07-01T12:00:00Z`, with an optional fraction and offset.
pub fn parse(text: &str) -> Option<Timestamp> {
    if !text.is_ascii() {
        return None;
    }
    let (date_time, rest) = text.split_at_checked(19)?;
    let bytes = date_time.as_bytes();
    for (position, wanted) in [(4, b"-"), (7, b"-"), (10, b"T"), (13, b":"), (16, b":")] {
        if !bytes.get(position)?.eq_ignore_ascii_case(&wanted[0]) {
            return None;
        }
    }
    let year = number(date_time.get(0..4)?)?;
    let month = number(date_time.get(5..7)?)?;
    let day = number(date_time.get(8..10)?)?;
    let hour = number(date_time.get(11..13)?)?;
    let minute = number(date_time.get(14..16)?)?;
    let second = number(date_time.get(17..19)?)?;
    // 60: a leap second.
    if !(1..=12).contains(&month)
        || !(1..=days_in(year, month)).contains(&day)
        || hour > 23
        || minute > 59
        || second > 60
    {
        return None;
    }
    let (nanoseconds, rest) = fraction(rest)?;
    let offset = offset_seconds(rest)?;
    let seconds = days_from_civil(year, month, day) * 86_400 + hour * 3600 + minute * 60 + second;
    Some(Timestamp {
        seconds: seconds - offset,
        nanoseconds,
    })
}

fn number(text: &str) -> Option<i64> {
    if !text.bytes().all(|byte| byte.is_ascii_digit()) {
        return None;
    }
    text.parse().ok()
}

fn fraction(text: &str) -> Option<(u32, &str)> {
    let Some(rest) = text.strip_prefix('.') else {
        return Some((0, text));
    };
    let digits = rest.bytes().take_while(u8::is_ascii_digit).count();
    if digits == 0 {
        return None;
    }
    let (fraction, rest) = rest.split_at(digits);
    let nanoseconds = format!("{:0<9.9}", fraction).parse().ok()?;
    Some((nanoseconds, rest))
}

fn offset_seconds(text: &str) -> Option<i64> {
    if text.eq_ignore_ascii_case("z") {
        return Some(0);
    }
    let sign = match text.get(0..1)? {
        "+" => 1,
        "-" => -1,
        _ => return None,
    };
    if text.len() != 6 || text.get(3..4)? != ":" {
        return None;
    }
    let (hours, minutes) = (number(text.get(1..3)?)?, number(text.get(4..6)?)?);
    (hours <= 23 && minutes <= 59).then_some(sign * (hours * 3600 + minutes * 60))
}

fn days_in(year: i64, month: i64) -> i64 {
    match month {
        2 if year % 4 == 0 && (year % 100 != 0 || year % 400 == 0) => 29,
        2 => 28,
        4 | 6 | 9 | 11 => 30,
        _ => 31,
    }
}

/// Days since 1970-01-01 (H. Hinnant, "chrono-Compatible Low-Level Date Algorithms").
fn days_from_civil(year: i64, month: i64, day: i64) -> i64 {
    let year = if month <= 2 { year - 1 } else { year };
    let era = year.div_euclid(400);
    let year_of_era = year.rem_euclid(400);
    let day_of_year = (153 * ((month + 9) % 12) + 2) / 5 + day - 1;
    let day_of_era = year_of_era * 365 + year_of_era / 4 - year_of_era / 100 + day_of_year;
    era * 146_097 + day_of_era - 719_468
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn known_instants() {
        for (text, seconds, nanoseconds) in [
            ("1970-01-01T00:00:00Z", 0, 0),
            ("2000-03-01T00:00:00Z", 951_868_800, 0),
            ("2024-02-29T23:59:59Z", 1_709_251_199, 0),
            ("2020-09-08T01:02:03+02:00", 1_599_519_723, 0),
            ("2020-09-08t01:02:03.5z", 1_599_526_923, 500_000_000),
            (
                "2020-09-08T01:02:03.1234567891-00:30",
                1_599_528_723,
                123_456_789,
            ),
            ("1969-12-31T23:59:59Z", -1, 0),
        ] {
            assert_eq!(
                parse(text),
                Some(Timestamp {
                    seconds,
                    nanoseconds
                }),
                "{text}"
            );
        }
    }

    #[test]
    fn what_is_no_instant() {
        for text in [
            "",
            "2020-09-08",
            "2020-09-08 01:02:03Z",
            "2020-09-08T01:02:03",
            "2020-13-08T01:02:03Z",
            "2021-02-29T01:02:03Z",
            "2020-09-08T24:02:03Z",
            "2020-09-08T01:02:03.Z",
            "2020-09-08T01:02:03+2:00",
            "2020-09-08T01:02:03+02:00x",
            "+020-09-08T01:02:03Z",
            "2020-09-08T01:02:0éZ",
        ] {
            assert_eq!(parse(text), None, "{text}");
        }
    }
}
