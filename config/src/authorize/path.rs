//! The other way in which an application may read a path: escapes decoded,
//! `.` and `..` resolved, empty segments and `;parameters` dropped, `\` as `/`.
//! A policy that is evaded by writing a path differently is none.

/// `None`: there is only one reading.
pub fn other_reading(path: &str) -> Option<String> {
    let plain = !path.contains(['%', ';', '\\']) && !path.contains("//") && !path.contains("/.");
    if plain {
        return None;
    }
    let decoded = decode(path.as_bytes()).replace('\\', "/");
    let mut segments: Vec<&str> = Vec::new();
    let mut directory = decoded.ends_with('/');
    for segment in decoded.split('/') {
        let segment = segment.split(';').next().unwrap_or_default();
        directory = false;
        match segment {
            "" => directory = true,
            "." => directory = true,
            ".." => {
                segments.pop();
                directory = true;
            }
            segment => segments.push(segment),
        }
    }
    let mut reading = String::with_capacity(decoded.len() + 1);
    for segment in &segments {
        reading.push('/');
        reading.push_str(segment);
    }
    if directory || segments.is_empty() {
        reading.push('/');
    }
    (reading != path).then_some(reading)
}

fn decode(path: &[u8]) -> String {
    let mut bytes = Vec::with_capacity(path.len());
    let mut rest = path;
    while let [first, after @ ..] = rest {
        let escaped = match rest {
            [b'%', high, low, ..] => hex(*high).zip(hex(*low)),
            _ => None,
        };
        match escaped {
            Some((high, low)) => {
                bytes.push(high << 4 | low);
                rest = rest.get(3..).unwrap_or_default();
            }
            None => {
                bytes.push(*first);
                rest = after;
            }
        }
    }
    String::from_utf8_lossy(&bytes).into_owned()
}

fn hex(digit: u8) -> Option<u8> {
    char::from(digit)
        .to_digit(16)
        .and_then(|value| u8::try_from(value).ok())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_an_application_may_read() {
        for (path, want) in [
            ("/admin", None),
            ("/admin/", None),
            ("/a%64min", Some("/admin")),
            ("/%61dmin/x", Some("/admin/x")),
            ("//admin", Some("/admin")),
            ("/x/../admin", Some("/admin")),
            ("/x/%2e%2E/admin", Some("/admin")),
            ("/x%2f..%2Fadmin", Some("/admin")),
            ("/./admin/.", Some("/admin/")),
            ("/admin;a=b/x", Some("/admin/x")),
            ("/x\\..\\admin", Some("/admin")),
            ("/..", Some("/")),
            ("/100%", None),
            ("/%", None),
            ("/.well-known", None),
        ] {
            assert_eq!(other_reading(path).as_deref(), want, "{path}");
        }
    }
}
