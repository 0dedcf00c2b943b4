//! Why a message was refused: one small `Copy` enum, its status and its stable label.
//!
//! The same reasons serve both directions: [`Reject`] blames the downstream and is
//! answered with a 4xx or 5xx; [`UpstreamFault`] wraps it to blame the upstream (502).

use http::StatusCode;

/// A message that must not be forwarded. Labels ([`Reject::reason`]) are stable: they
/// are metric and access-log values.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, thiserror::Error)]
pub enum Reject {
    #[error("the start line is malformed (RFC 9112 §3, §4)")]
    StartLine,
    #[error("the method is not a token (RFC 9110 §9.1)")]
    Method,
    #[error("the status code is not three digits, 100 or more (RFC 9112 §4)")]
    Status,
    #[error("the protocol version is neither HTTP/1.0 nor HTTP/1.1 (RFC 9110 §2.5)")]
    Version,
    #[error("the request target is malformed or not of a form its method allows (RFC 9112 §3.2)")]
    Target,
    #[error("the request target has a fragment (RFC 9112 §3.2)")]
    TargetFragment,
    #[error("the request target has bytes that a URI must percent-encode (RFC 3986 §2)")]
    TargetByte,
    #[error("the authority has userinfo (RFC 9110 §4.2.4)")]
    Userinfo,
    #[error("the request target is longer than the limit (RFC 9110 §15.5.15)")]
    TargetTooLong,
    #[error("the head is larger than the limit (RFC 6585 §5)")]
    HeadTooLarge,
    #[error("the head has more fields than the limit (RFC 6585 §5)")]
    TooManyHeaders,
    #[error("a line ends in LF without CR (RFC 9112 §2.2)")]
    BareLf,
    #[error("a CR is not followed by LF (RFC 9112 §2.2)")]
    BareCr,
    #[error("the head has a NUL or another control byte (RFC 9110 §5.5)")]
    ControlByte,
    #[error("a field line is folded over several lines (RFC 9112 §5.2)")]
    ObsFold,
    #[error("whitespace stands between a field name and its colon (RFC 9112 §5.1)")]
    SpaceBeforeColon,
    #[error("a field name is not a token (RFC 9110 §5.1)")]
    HeaderName,
    #[error("a field value has bytes that are not allowed (RFC 9110 §5.5)")]
    HeaderValue,
    #[error("an HTTP/1.1 request has no Host field (RFC 9112 §3.2)")]
    HostMissing,
    #[error("the request has several Host fields (RFC 9112 §3.2)")]
    HostRepeated,
    #[error("the host or port is not valid (RFC 9110 §4.2, §7.2)")]
    Host,
    #[error("Content-Length is not one decimal number within 64 bits (RFC 9110 §8.6)")]
    ContentLength,
    #[error("Content-Length is given more than once (RFC 9112 §6.3)")]
    ContentLengthRepeated,
    #[error("both Transfer-Encoding and Content-Length are given (RFC 9112 §6.3)")]
    LengthAndChunked,
    #[error("Transfer-Encoding is not exactly `chunked` (RFC 9112 §6.1)")]
    TransferEncoding,
    #[error("Transfer-Encoding in an HTTP/1.0 message (RFC 9112 §6.1)")]
    TransferEncodingInHttp10,
    #[error("a CONNECT request announces a body (RFC 9110 §9.3.6)")]
    ConnectBody,
    #[error("a chunk size is not hexadecimal or exceeds 64 bits (RFC 9112 §7.1)")]
    ChunkSize,
    #[error("a chunk extension is malformed or longer than the limit (RFC 9112 §7.1.1)")]
    ChunkExtension,
    #[error("chunk data is not followed by CRLF (RFC 9112 §7.1)")]
    ChunkEnd,
    #[error("the trailer section is larger than the limit (RFC 9112 §7.1.2)")]
    TrailersTooLarge,
    #[error("a trailer field may not stand in a trailer section (RFC 9110 §6.5.1)")]
    TrailerForbidden,
    #[error("the connection ended within the message (RFC 9112 §8)")]
    Truncated,
}

impl Reject {
    /// A stable `snake_case` label for metrics, logs and the reason header.
    pub const fn reason(self) -> &'static str {
        match self {
            Self::StartLine => "start_line",
            Self::Method => "method",
            Self::Status => "status",
            Self::Version => "version",
            Self::Target => "target",
            Self::TargetFragment => "target_fragment",
            Self::TargetByte => "target_byte",
            Self::Userinfo => "userinfo",
            Self::TargetTooLong => "target_too_long",
            Self::HeadTooLarge => "head_too_large",
            Self::TooManyHeaders => "too_many_headers",
            Self::BareLf => "bare_lf",
            Self::BareCr => "bare_cr",
            Self::ControlByte => "control_byte",
            Self::ObsFold => "obs_fold",
            Self::SpaceBeforeColon => "space_before_colon",
            Self::HeaderName => "header_name",
            Self::HeaderValue => "header_value",
            Self::HostMissing => "host_missing",
            Self::HostRepeated => "host_repeated",
            Self::Host => "host",
            Self::ContentLength => "content_length",
            Self::ContentLengthRepeated => "content_length_repeated",
            Self::LengthAndChunked => "length_and_chunked",
            Self::TransferEncoding => "transfer_encoding",
            Self::TransferEncodingInHttp10 => "transfer_encoding_in_http10",
            Self::ConnectBody => "connect_body",
            Self::ChunkSize => "chunk_size",
            Self::ChunkExtension => "chunk_extension",
            Self::ChunkEnd => "chunk_end",
            Self::TrailersTooLarge => "trailers_too_large",
            Self::TrailerForbidden => "trailer_forbidden",
            Self::Truncated => "truncated",
        }
    }

    /// What the downstream is answered with. The connection closes afterwards: its
    /// framing can no longer be trusted.
    pub const fn status(self) -> StatusCode {
        match self {
            Self::Version => StatusCode::HTTP_VERSION_NOT_SUPPORTED,
            Self::TargetTooLong => StatusCode::URI_TOO_LONG,
            Self::HeadTooLarge | Self::TooManyHeaders | Self::TrailersTooLarge => {
                StatusCode::REQUEST_HEADER_FIELDS_TOO_LARGE
            }
            Self::TransferEncoding => StatusCode::NOT_IMPLEMENTED,
            _ => StatusCode::BAD_REQUEST,
        }
    }
}

/// The upstream sent something that must not be forwarded: answered with 502, and the
/// upstream connection is closed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, thiserror::Error)]
#[error("the upstream sent a malformed response")]
pub struct UpstreamFault(#[from] pub Reject);

impl UpstreamFault {
    pub const fn reason(self) -> &'static str {
        self.0.reason()
    }

    pub const fn status(self) -> StatusCode {
        StatusCode::BAD_GATEWAY
    }
}
