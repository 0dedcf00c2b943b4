//! A certificate's end of validity, read from its DER.
//!
//! Only the path to `tbsCertificate.validity.notAfter` (RFC 5280 §4.1) is
//! walked; rustls verifies the rest. **Invariant:** any input gives an answer
//! or `None`, never a panic.

const SEQUENCE: u8 = 0x30;
const EXPLICIT_VERSION: u8 = 0xa0;
const UTC_TIME: u8 = 0x17;
const GENERALIZED_TIME: u8 = 0x18;

/// Seconds since the Unix epoch at which `certificate` (DER) ends.
pub fn not_after(certificate: &[u8]) -> Option<i64> {
    let (_, certificate, _) = element(certificate)?;
    let (SEQUENCE, mut tbs, _) = element(certificate)? else {
        return None;
    };
    if *tbs.first()? == EXPLICIT_VERSION {
        tbs = element(tbs)?.2;
    }
    // serialNumber, signature, issuer
    for _ in 0..3 {
        tbs = element(tbs)?.2;
    }
    let (SEQUENCE, validity, _) = element(tbs)? else {
        return None;
    };
    let (_, _, rest) = element(validity)?;
    let (tag, value, _) = element(rest)?;
    parse_time(tag, value)
}

/// Splits off one DER element: its tag, its contents and what follows.
fn element(data: &[u8]) -> Option<(u8, &[u8], &[u8])> {
    let (&tag, data) = data.split_first()?;
    let (&first, data) = data.split_first()?;
    let (length, data) = if first < 0x80 {
        (usize::from(first), data)
    } else {
        let (bytes, data) = data.split_at_checked(usize::from(first & 0x7f))?;
        if bytes.is_empty() || bytes.len() > 4 {
            return None;
        }
        let length = bytes
            .iter()
            .fold(0usize, |length, byte| length << 8 | usize::from(*byte));
        (length, data)
    };
    let (value, rest) = data.split_at_checked(length)?;
    Some((tag, value, rest))
}

/// `YYMMDDHHMMSSZ` or `YYYYMMDDHHMMSSZ`, always UTC (RFC 5280 §4.1.2.5).
fn parse_time(tag: u8, value: &[u8]) -> Option<i64> {
    let digits = value.strip_suffix(b"Z")?;
    if !digits.iter().all(u8::is_ascii_digit) {
        return None;
    }
    let two = |at: usize| -> Option<i64> {
        let pair = digits.get(at..at + 2)?;
        Some(pair.iter().fold(0, |n, d| n * 10 + i64::from(d - b'0')))
    };
    let (year, at) = match (tag, digits.len()) {
        (UTC_TIME, 12) => (two(0)? + if two(0)? >= 50 { 1900 } else { 2000 }, 2),
        (GENERALIZED_TIME, 14) => (two(0)? * 100 + two(2)?, 4),
        _ => return None,
    };
    let days = days_from_civil(year, two(at)?, two(at + 2)?);
    Some(((days * 24 + two(at + 4)?) * 60 + two(at + 6)?) * 60 + two(at + 8)?)
}

/// Days since 1970-01-01 of a Gregorian date (Howard Hinnant's algorithm).
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
    fn times() {
        for (tag, text, want) in [
            (UTC_TIME, "700101000000Z", Some(0)),
            (UTC_TIME, "491231235959Z", Some(2_524_607_999)),
            (GENERALIZED_TIME, "20500101000000Z", Some(2_524_608_000)),
            (GENERALIZED_TIME, "20240229120000Z", Some(1_709_208_000)),
            (UTC_TIME, "20240229120000Z", None),
            (UTC_TIME, "7001010000Z", None),
            (UTC_TIME, "7001x1000000Z", None),
        ] {
            assert_eq!(parse_time(tag, text.as_bytes()), want, "{text}");
        }
    }

    #[test]
    fn damaged_input_is_none() {
        let key = rcgen::KeyPair::generate().expect("a key");
        let mut params = rcgen::CertificateParams::new(vec!["a".into()]).expect("params");
        params.not_after = rcgen::date_time_ymd(2030, 1, 2);
        let der = params.self_signed(&key).expect("a certificate");
        let der = der.der();
        assert_eq!(not_after(der), Some(1_893_542_400));
        for end in 0..der.len() {
            let _ = not_after(&der[..end]);
            let mut damaged = der.to_vec();
            damaged[end] ^= 0xff;
            let _ = not_after(&damaged);
        }
        assert_eq!(not_after(&[]), None);
    }
}
