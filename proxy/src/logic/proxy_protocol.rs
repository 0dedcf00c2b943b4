//! The PROXY protocol, versions 1 and 2, in and out: the addresses of a connection as
//! the balancer in front of us saw it, and as we tell the upstream.
//!
//! `ppp` reads the headers; around it stands what it leaves open. Its version 1 parser
//! calls a line that is cut off in some places invalid, so it only gets whole lines.
//! TLVs are skipped.
//!
//! Specification: <https://www.haproxy.org/download/3.0/doc/proxy-protocol.txt>

use std::net::{IpAddr, SocketAddr};

use bytes::{BufMut, BytesMut};

/// A version 1 line, CRLF included (specification §2.1).
const V1_BYTES_MAX: usize = 107;
/// The fixed part of a version 2 header.
const V2_FIXED_BYTES: usize = 16;
/// The largest header taken: version 2 could announce 64 KiB of TLVs, and no sender
/// needs more than addresses, an ALPN, a few ids and a certificate's name.
pub const HEADER_BYTES_MAX: usize = 4096;

const V1_PREFIX: &[u8] = b"PROXY ";
const V2_PREFIX: &[u8; 12] = b"\r\n\r\n\0\r\nQUIT\n";

/// The two ends of the connection that the sender stands for.
///
/// Both absent where the sender speaks for itself (LOCAL, a health check) or knows none
/// (UNKNOWN, UNSPEC, a Unix socket): the connection's own addresses then count.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Header {
    pub source: Option<SocketAddr>,
    pub destination: Option<SocketAddr>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, thiserror::Error)]
pub enum Error {
    #[error(
        "the connection does not start with a PROXY protocol header; is the sender set up to send one?"
    )]
    Missing,
    #[error("the PROXY protocol header is malformed")]
    Invalid,
    #[error("the PROXY protocol header is larger than {HEADER_BYTES_MAX} bytes")]
    TooLarge,
}

impl Error {
    /// A stable `snake_case` label.
    pub const fn reason(self) -> &'static str {
        match self {
            Self::Missing => "proxy_header_missing",
            Self::Invalid => "proxy_header_invalid",
            Self::TooLarge => "proxy_header_too_large",
        }
    }
}

/// Parses the header at the front of `buffer`, and says how many bytes it took.
/// `None`: more bytes are needed, at most [`HEADER_BYTES_MAX`] in all.
pub fn parse(buffer: &[u8]) -> Result<Option<(Header, usize)>, Error> {
    if starts_alike(buffer, V2_PREFIX) {
        return parse_v2(buffer);
    }
    if starts_alike(buffer, V1_PREFIX) {
        return parse_v1(buffer);
    }
    Err(Error::Missing)
}

fn starts_alike(bytes: &[u8], prefix: &[u8]) -> bool {
    bytes
        .iter()
        .zip(prefix)
        .all(|(sent, expected)| sent == expected)
}

fn parse_v1(buffer: &[u8]) -> Result<Option<(Header, usize)>, Error> {
    let window = buffer.get(..V1_BYTES_MAX).unwrap_or(buffer);
    let line = match memchr::memchr(b'\n', window) {
        Some(line_feed) => window.get(..=line_feed).unwrap_or_default(),
        None if window.len() < V1_BYTES_MAX => return Ok(None),
        None => return Err(Error::Invalid),
    };
    if !line.ends_with(b"\r\n") {
        return Err(Error::Invalid);
    }
    let header = ppp::v1::Header::try_from(line).map_err(|_| Error::Invalid)?;
    let (source, destination) = match header.addresses {
        ppp::v1::Addresses::Tcp4(ends) => (
            Some((ends.source_address, ends.source_port).into()),
            Some((ends.destination_address, ends.destination_port).into()),
        ),
        ppp::v1::Addresses::Tcp6(ends) => (
            Some((ends.source_address, ends.source_port).into()),
            Some((ends.destination_address, ends.destination_port).into()),
        ),
        ppp::v1::Addresses::Unknown => (None, None),
    };
    Ok(Some((
        Header {
            source,
            destination,
        },
        line.len(),
    )))
}

fn parse_v2(buffer: &[u8]) -> Result<Option<(Header, usize)>, Error> {
    let Some(fixed) = buffer.get(..V2_FIXED_BYTES) else {
        return Ok(None);
    };
    let [.., high, low] = fixed else {
        return Err(Error::Invalid);
    };
    let length = V2_FIXED_BYTES + usize::from(u16::from_be_bytes([*high, *low]));
    if length > HEADER_BYTES_MAX {
        return Err(Error::TooLarge);
    }
    let Some(bytes) = buffer.get(..length) else {
        return Ok(None);
    };
    let header = ppp::v2::Header::try_from(bytes).map_err(|_| Error::Invalid)?;
    // LOCAL: whatever addresses follow are to be skipped (specification §2.2).
    let local = header.command == ppp::v2::Command::Local;
    let (source, destination) = match header.addresses {
        _ if local => (None, None),
        ppp::v2::Addresses::IPv4(ends) => (
            Some((ends.source_address, ends.source_port).into()),
            Some((ends.destination_address, ends.destination_port).into()),
        ),
        ppp::v2::Addresses::IPv6(ends) => (
            Some((ends.source_address, ends.source_port).into()),
            Some((ends.destination_address, ends.destination_port).into()),
        ),
        ppp::v2::Addresses::Unspecified | ppp::v2::Addresses::Unix(_) => (None, None),
    };
    Ok(Some((
        Header {
            source,
            destination,
        },
        length,
    )))
}

/// The two addresses in one family: an IPv4 one is mapped into IPv6 where the other is
/// IPv6, a mapped one is unmapped where both can be IPv4.
fn in_one_family(source: SocketAddr, destination: SocketAddr) -> (SocketAddr, SocketAddr) {
    let (source_ip, destination_ip) = (source.ip().to_canonical(), destination.ip().to_canonical());
    let mapped = |ip: IpAddr| match ip {
        IpAddr::V4(v4) => IpAddr::V6(v4.to_ipv6_mapped()),
        v6 => v6,
    };
    let (source_ip, destination_ip) = if source_ip.is_ipv4() == destination_ip.is_ipv4() {
        (source_ip, destination_ip)
    } else {
        (mapped(source_ip), mapped(destination_ip))
    };
    (
        SocketAddr::new(source_ip, source.port()),
        SocketAddr::new(destination_ip, destination.port()),
    )
}

/// Writes a version 1 header.
pub fn encode_v1(source: SocketAddr, destination: SocketAddr, out: &mut BytesMut) {
    let (source, destination) = in_one_family(source, destination);
    let family = if source.is_ipv4() { "TCP4" } else { "TCP6" };
    // Once a connection: formatting is cheap enough here.
    let line = format!(
        "PROXY {family} {} {} {} {}\r\n",
        source.ip(),
        destination.ip(),
        source.port(),
        destination.port()
    );
    out.put_slice(line.as_bytes());
}

/// Writes a version 2 header without TLVs.
pub fn encode_v2(source: SocketAddr, destination: SocketAddr, out: &mut BytesMut) {
    /// Version 2, command PROXY.
    const PROXY: u8 = 0x21;
    const TCP_OVER_IPV4: u8 = 0x11;
    const TCP_OVER_IPV6: u8 = 0x21;
    let (source, destination) = in_one_family(source, destination);
    out.put_slice(V2_PREFIX);
    out.put_u8(PROXY);
    match (source.ip(), destination.ip()) {
        (IpAddr::V4(source), IpAddr::V4(destination)) => {
            out.put_u8(TCP_OVER_IPV4);
            out.put_u16(12);
            out.put_slice(&source.octets());
            out.put_slice(&destination.octets());
        }
        (source, destination) => {
            out.put_u8(TCP_OVER_IPV6);
            out.put_u16(36);
            for ip in [source, destination] {
                match ip {
                    IpAddr::V4(v4) => out.put_slice(&v4.to_ipv6_mapped().octets()),
                    IpAddr::V6(v6) => out.put_slice(&v6.octets()),
                }
            }
        }
    }
    out.put_u16(source.port());
    out.put_u16(destination.port());
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ends(source: &str, destination: &str) -> Header {
        Header {
            source: source.parse().ok(),
            destination: destination.parse().ok(),
        }
    }

    const NONE: Header = Header {
        source: None,
        destination: None,
    };

    #[test]
    fn version_1() {
        let v4 = ends("1.2.3.4:5", "6.7.8.9:10");
        let v6 = ends("[::1]:5", "[2001:db8::1]:10");
        let table: &[(&[u8], Result<Header, Error>)] = &[
            (b"PROXY TCP4 1.2.3.4 6.7.8.9 5 10\r\n", Ok(v4)),
            (b"PROXY TCP6 ::1 2001:db8::1 5 10\r\n", Ok(v6)),
            (b"PROXY UNKNOWN\r\n", Ok(NONE)),
            (b"PROXY UNKNOWN ffff::1 ffff::2 1 2\r\n", Ok(NONE)),
            (b"PROXY TCP4 1.2.3.4 6.7.8.9 5 10\n", Err(Error::Invalid)),
            (
                b"PROXY TCP4 1.2.3.4 6.7.8.9 5 70000\r\n",
                Err(Error::Invalid),
            ),
            (b"PROXY TCP4 1.2.3.4 6.7.8.9 5 010\r\n", Err(Error::Invalid)),
            (b"PROXY TCP4 ::1 ::2 5 10\r\n", Err(Error::Invalid)),
            (b"PROXY TCP4 1.2.3.4  6.7.8.9 5 10\r\n", Err(Error::Invalid)),
            (b"PROXY UDP4 1.2.3.4 6.7.8.9 5 10\r\n", Err(Error::Invalid)),
            (b"PROXY \r\n", Err(Error::Invalid)),
            (b"GET / HTTP/1.1\r\n", Err(Error::Missing)),
        ];
        for (bytes, expected) in table {
            let parsed = parse(bytes).map(|found| found.map(|(header, _)| header));
            assert_eq!(parsed, expected.map(Some), "{}", bytes.escape_ascii());
        }
        assert_eq!(
            parse(&[b"PROXY UNKNOWN ".as_slice(), &[b'x'; 100]].concat()),
            Err(Error::Invalid)
        );
    }

    #[test]
    fn version_2() {
        let header = |command: u8, family: u8, rest: &[u8]| {
            let length = (rest.len() as u16).to_be_bytes();
            [V2_PREFIX.as_slice(), &[command, family], &length, rest].concat()
        };
        let v4 = [1, 2, 3, 4, 6, 7, 8, 9, 0, 5, 0, 10];
        let with_tlv = [v4.as_slice(), &[4, 0, 1, 0]].concat();
        let expected = ends("1.2.3.4:5", "6.7.8.9:10");
        let table = [
            (header(0x21, 0x11, &v4), Ok(expected)),
            (header(0x21, 0x11, &with_tlv), Ok(expected)),
            (header(0x20, 0x00, &[]), Ok(NONE)),
            (header(0x20, 0x11, &v4), Ok(NONE)),
            (header(0x21, 0x00, &[1, 2, 3]), Ok(NONE)),
            (header(0x21, 0x31, &[0; 216]), Ok(NONE)),
            (header(0x11, 0x11, &v4), Err(Error::Invalid)),
            (header(0x22, 0x11, &v4), Err(Error::Invalid)),
            (header(0x21, 0x41, &v4), Err(Error::Invalid)),
            (header(0x21, 0x11, &v4[..11]), Err(Error::Invalid)),
            (header(0x21, 0x11, &[0; 5000]), Err(Error::TooLarge)),
        ];
        for (bytes, expected) in table {
            let parsed = parse(&bytes).map(|found| found.map(|(header, _)| header));
            assert_eq!(parsed, expected.map(Some), "{}", bytes.escape_ascii());
        }
    }

    #[test]
    fn round_trip_from_any_split() {
        let addrs = ["1.2.3.4:5", "[2001:db8::1]:65535", "[::ffff:9.9.9.9]:1"];
        for encode in [encode_v1, encode_v2] {
            for source in addrs {
                for destination in addrs {
                    let (source, destination) =
                        (source.parse().unwrap(), destination.parse().unwrap());
                    let mut out = BytesMut::new();
                    encode(source, destination, &mut out);
                    let length = out.len();
                    out.put_slice(b"\xff\r\npayload");
                    for cut in 0..length {
                        assert_eq!(parse(&out[..cut]), Ok(None), "cut at {cut}");
                    }
                    let (header, consumed) = parse(&out).unwrap().unwrap();
                    assert_eq!(consumed, length);
                    let canonical = |addr: SocketAddr| (addr.ip().to_canonical(), addr.port());
                    assert_eq!(header.source.map(canonical), Some(canonical(source)));
                    assert_eq!(
                        header.destination.map(canonical),
                        Some(canonical(destination))
                    );
                }
            }
        }
    }
}
