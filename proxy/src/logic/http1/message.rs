//! The parsed form of an HTTP/1 head, and the limits on it.

use http::uri::{Authority, PathAndQuery};
use http::{HeaderMap, HeaderValue, Method, StatusCode};

/// The most header fields that any configuration can allow: the parser's slots live on
/// the stack.
pub const HEADERS_MAX: usize = 256;

/// The largest head that any configuration can allow: offsets into it are 32 bits wide.
pub const HEAD_BYTES_MAX: usize = 16 * 1024 * 1024;

/// Limits on one head. What exceeds them is rejected with 431, or 414 for the target.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct HeadLimits {
    /// Start line and fields, up to and with the blank line. Up to [`HEAD_BYTES_MAX`];
    /// more is taken as that.
    pub bytes_max: usize,
    /// Up to [`HEADERS_MAX`]; more is taken as that.
    pub headers_max: usize,
    /// The request target; `http` itself takes no more than 65,534 bytes.
    pub target_bytes_max: usize,
}

impl Default for HeadLimits {
    /// 64 KiB and 128 fields, wide enough for large cookies and tokens (nginx takes
    /// 4 × 8 KiB, Envoy 60 KiB and 100 fields), and a target of 16 KiB.
    fn default() -> Self {
        Self {
            bytes_max: 64 * 1024,
            headers_max: 128,
            target_bytes_max: 16 * 1024,
        }
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Version {
    Http10,
    Http11,
}

/// How the body that follows a head is delimited (RFC 9112 §6.3).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Framing {
    /// No body follows, and none was announced.
    None,
    /// Exactly so many bytes; `Length(0)` was announced as such.
    Length(u64),
    Chunked,
    /// Responses only: the body ends with the connection.
    UntilClose,
}

impl Framing {
    /// Whether no body byte follows.
    pub const fn is_empty(self) -> bool {
        matches!(self, Self::None | Self::Length(0))
    }

    /// The framing in which a recipient of `version` can take this response body: there
    /// are no chunks in HTTP/1.0, so there the end of the connection delimits it.
    pub const fn for_version(self, version: Version) -> Self {
        match (self, version) {
            (Self::Chunked, Version::Http10) => Self::UntilClose,
            _ => self,
        }
    }
}

/// The four forms of a request target (RFC 9112 §3.2).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum TargetForm {
    Origin,
    Absolute,
    /// CONNECT only.
    Authority,
    /// OPTIONS only.
    Asterisk,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Target {
    pub form: TargetForm,
    /// From the target where it names one (it then replaces Host, RFC 9112 §3.2.2),
    /// else from Host. Absent only in HTTP/1.0.
    pub authority: Option<Authority>,
    /// Byte for byte as received. `*` in asterisk-form; `/` for CONNECT, which has none.
    pub path_and_query: PathAndQuery,
}

#[derive(Clone, Debug)]
pub struct RequestHead {
    pub method: Method,
    pub target: Target,
    pub version: Version,
    /// End-to-end fields only; see the module's documentation for what is kept aside.
    pub headers: HeaderMap,
    pub body: Framing,
    /// The downstream lets the connection serve another request.
    pub keep_alive: bool,
    /// The Upgrade field where the Connection field names it (HTTP/1.1 only). Never
    /// `h2c`: forwarded, it would tunnel requests past every rule.
    pub upgrade: Option<HeaderValue>,
    /// `Expect: 100-continue` (HTTP/1.1 only); the field itself stays in `headers`.
    pub expect_continue: bool,
}

/// Why an upstream connection cannot serve another request after this response.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum NotKept {
    /// `Connection: close`.
    Close,
    /// HTTP/1.0 without `Connection: keep-alive`.
    Http10,
    /// The body ends with the connection.
    UntilClose,
    /// A status that has no body announced one (RFC 9110 §8.6, RFC 9112 §6.1): what
    /// follows on the connection may be that body.
    BodyOnBodiless,
    /// 101, or 2xx to CONNECT: the connection is now a tunnel.
    Tunnel,
}

impl NotKept {
    /// A stable `snake_case` label.
    pub const fn reason(self) -> &'static str {
        match self {
            Self::Close => "close",
            Self::Http10 => "http10",
            Self::UntilClose => "until_close",
            Self::BodyOnBodiless => "body_on_bodiless",
            Self::Tunnel => "tunnel",
        }
    }
}

#[derive(Clone, Debug)]
pub struct ResponseHead {
    pub status: StatusCode,
    pub version: Version,
    /// End-to-end fields only; see the module's documentation for what is kept aside.
    pub headers: HeaderMap,
    pub body: Framing,
    /// `None`: the upstream connection can be used again once the body has ended.
    pub not_kept: Option<NotKept>,
    /// The Upgrade field of a 101 response, or of one that advertises it (426).
    pub upgrade: Option<HeaderValue>,
}

impl ResponseHead {
    pub const fn keep_alive(&self) -> bool {
        self.not_kept.is_none()
    }
}
