//! Reading one head off a buffer: httparse for the grammar, then what it leaves open.
//!
//! httparse takes a bare LF for CRLF, skips blank lines, and does not say where an error
//! lies. This file closes these gaps: line ends are counted, a rejected head is gone
//! through once more for a reason that helps, and a head that trickles in is only looked
//! at where it grew.

use std::mem::MaybeUninit;

use bytes::{Buf, Bytes, BytesMut};
use http::{HeaderMap, Method, StatusCode, header};

use super::fields::{FieldSpan, FieldSpans, Fields};
use super::message::{
    Framing, HEAD_BYTES_MAX, HEADERS_MAX, HeadLimits, NotKept, RequestHead, ResponseHead, Version,
};
use super::reject::{Reject, UpstreamFault};
use super::target::parse_target;

/// Reads the heads of one connection's direction, one after the other.
///
/// Keeps only how far an incomplete head was searched for its end, and a header map to
/// reuse. After an error the connection must be closed: the rest of the buffer means
/// nothing any more.
#[derive(Debug)]
pub struct HeadReader {
    limits: HeadLimits,
    /// So many bytes at the buffer's start hold no end of the head; 0: not looked yet.
    scanned: usize,
    recycled: HeaderMap,
}

/// What a start line gave, as offsets and plain values, so that nothing borrows the
/// buffer any more.
struct RawHead<L> {
    line: L,
    version: Version,
    bytes: usize,
}

struct RawRequestLine {
    method: Method,
    target: (usize, usize),
}

/// What the lines of an incomplete head say.
#[derive(PartialEq)]
enum HeadEnd {
    /// The blank line is there, or an error that the grammar will name.
    Reached,
    Missing,
}

impl HeadReader {
    pub fn new(limits: HeadLimits) -> Self {
        let bytes_max = limits.bytes_max.min(HEAD_BYTES_MAX);
        Self {
            limits: HeadLimits {
                bytes_max,
                ..limits
            },
            scanned: 0,
            recycled: HeaderMap::new(),
        }
    }

    /// Gives back a header map that is done with; the next head fills it anew, so that
    /// a keep-alive connection allocates none.
    pub fn recycle(&mut self, mut headers: HeaderMap) {
        headers.clear();
        self.recycled = headers;
    }

    /// Parses a request head off the front of `buffer`.
    ///
    /// `None`: more bytes are needed, and nothing but blank lines before the request
    /// line was taken (RFC 9112 §2.2). The head's values are slices of the buffer's
    /// allocation: while one lives, the buffer cannot reuse it.
    pub fn parse_request(&mut self, buffer: &mut BytesMut) -> Result<Option<RequestHead>, Reject> {
        while let [b'\r', b'\n', ..] = buffer[..] {
            buffer.advance(2);
        }
        // httparse would skip it like CRLF, and the count of line ends would not show it.
        if buffer.first() == Some(&b'\n') {
            return Err(Reject::BareLf);
        }
        if buffer.is_empty() || !self.may_have_ended(buffer) {
            return self.need_more(buffer, true);
        }
        // Filled in place: it is too large to be handed from function to function.
        let mut spans = FieldSpans::new();
        let Some(raw) = self.parse_raw_request(buffer, &mut spans)? else {
            return self.need_more(buffer, true);
        };
        let head = self.take_head(buffer, raw.bytes);
        self.build_request(&head, raw, &spans)
    }

    /// Parses a response head off the front of `buffer`; `request_method` decides
    /// whether a body follows. Informational (1xx) heads are returned like others.
    pub fn parse_response(
        &mut self,
        buffer: &mut BytesMut,
        request_method: &Method,
    ) -> Result<Option<ResponseHead>, UpstreamFault> {
        if buffer.is_empty() || !self.may_have_ended(buffer) {
            return Ok(self.need_more(buffer, false)?);
        }
        let mut spans = FieldSpans::new();
        let Some(raw) = self.parse_raw_response(buffer, &mut spans)? else {
            return Ok(self.need_more(buffer, false)?);
        };
        let head = self.take_head(buffer, raw.bytes);
        Ok(self.build_response(&head, raw, &spans, request_method)?)
    }

    /// Whether parsing is worth its while. The first look always is: most heads arrive
    /// whole. Later ones search only the new bytes, so that a head sent byte by byte
    /// costs no more than its length.
    fn may_have_ended(&mut self, buffer: &[u8]) -> bool {
        self.scanned == 0 || self.scan(buffer) == HeadEnd::Reached
    }

    fn scan(&mut self, buffer: &[u8]) -> HeadEnd {
        let fresh = buffer.get(self.scanned..).unwrap_or_default();
        for found in memchr::memchr_iter(b'\n', fresh) {
            let line_end = self.scanned + found;
            let before = line_end.checked_sub(1).and_then(|i| buffer.get(i));
            if before != Some(&b'\r') {
                return HeadEnd::Reached;
            }
            match buffer.get(line_end + 1..) {
                Some([b'\r', b'\n', ..] | [b'\n', ..]) => return HeadEnd::Reached,
                // Undecided: look at this line's end again.
                Some([] | [b'\r']) => {
                    self.scanned = line_end;
                    return HeadEnd::Missing;
                }
                _ => {}
            }
        }
        self.scanned = buffer.len();
        HeadEnd::Missing
    }

    /// `Ok(None)` unless the limit is reached or the lines so far are already wrong.
    fn need_more<T>(&mut self, buffer: &[u8], request: bool) -> Result<Option<T>, Reject> {
        // A lone CR may be half of a blank line to be skipped.
        if buffer.is_empty() || buffer == b"\r" {
            self.scanned = 0;
            return Ok(None);
        }
        if buffer.len() >= self.limits.bytes_max {
            let in_start_line = memchr::memchr(b'\n', buffer).is_none();
            return Err(if request && in_start_line {
                Reject::TargetTooLong
            } else {
                Reject::HeadTooLarge
            });
        }
        if self.scanned == 0 && self.scan(buffer) == HeadEnd::Reached {
            // httparse sees no end where the lines show one: only a bare LF does that.
            return Err(explain(buffer, Reject::BareLf));
        }
        Ok(None)
    }

    fn parse_raw_request(
        &self,
        buffer: &[u8],
        spans: &mut FieldSpans,
    ) -> Result<Option<RawHead<RawRequestLine>>, Reject> {
        let mut slots = [const { MaybeUninit::uninit() }; HEADERS_MAX];
        let slots = self.allowed(&mut slots);
        let mut request = httparse::Request::new(&mut []);
        let bytes = match request.parse_with_uninit_headers(buffer, slots) {
            Ok(httparse::Status::Complete(bytes)) => bytes,
            Ok(httparse::Status::Partial) => return Ok(None),
            Err(error) => return Err(explain_request(buffer, error)),
        };
        self.check_head(buffer, bytes, request.headers.len())?;
        let (Some(method), Some(target), Some(minor)) =
            (request.method, request.path, request.version)
        else {
            return Err(Reject::StartLine);
        };
        if target.len() > self.limits.target_bytes_max {
            return Err(Reject::TargetTooLong);
        }
        collect_spans(buffer, request.headers, spans);
        Ok(Some(RawHead {
            line: RawRequestLine {
                method: Method::from_bytes(method.as_bytes()).map_err(|_| Reject::Method)?,
                target: offsets(buffer, target.as_bytes()),
            },
            version: version(minor),
            bytes,
        }))
    }

    fn parse_raw_response(
        &self,
        buffer: &[u8],
        spans: &mut FieldSpans,
    ) -> Result<Option<RawHead<StatusCode>>, Reject> {
        // httparse skips blank lines here too; bytes ahead of a response are a fault.
        if buffer.first() != Some(&b'H') {
            return Err(Reject::StartLine);
        }
        let mut slots = [const { MaybeUninit::uninit() }; HEADERS_MAX];
        let slots = self.allowed(&mut slots);
        let mut response = httparse::Response::new(&mut []);
        let config = httparse::ParserConfig::default();
        let parsed = config.parse_response_with_uninit_headers(&mut response, buffer, slots);
        let bytes = match parsed {
            Ok(httparse::Status::Complete(bytes)) => bytes,
            Ok(httparse::Status::Partial) => return Ok(None),
            Err(error) => return Err(explain(buffer, from_httparse(error))),
        };
        self.check_head(buffer, bytes, response.headers.len())?;
        let (Some(code), Some(minor)) = (response.code, response.version) else {
            return Err(Reject::StartLine);
        };
        collect_spans(buffer, response.headers, spans);
        Ok(Some(RawHead {
            line: StatusCode::from_u16(code).map_err(|_| Reject::Status)?,
            version: version(minor),
            bytes,
        }))
    }

    fn allowed<'s, T>(&self, slots: &'s mut [T; HEADERS_MAX]) -> &'s mut [T] {
        let allowed = self.limits.headers_max.min(HEADERS_MAX);
        slots.split_at_mut(allowed).0
    }

    /// What httparse does not check: the size, and that every line ends in CRLF. CR can
    /// stand only before LF (httparse), so as many CRs as lines means CRLF throughout.
    fn check_head(&self, buffer: &[u8], bytes: usize, headers: usize) -> Result<(), Reject> {
        if bytes > self.limits.bytes_max {
            return Err(Reject::HeadTooLarge);
        }
        let head = buffer.get(..bytes).unwrap_or_default();
        let lines = headers + 2;
        if memchr::memchr_iter(b'\r', head).count() != lines {
            return Err(Reject::BareLf);
        }
        Ok(())
    }

    fn take_head(&mut self, buffer: &mut BytesMut, bytes: usize) -> Bytes {
        self.scanned = 0;
        buffer.split_to(bytes).freeze()
    }

    fn build_request(
        &mut self,
        head: &Bytes,
        raw: RawHead<RawRequestLine>,
        spans: &[FieldSpan],
    ) -> Result<Option<RequestHead>, Reject> {
        let mut headers = std::mem::take(&mut self.recycled);
        let fields = Fields::collect(head, spans, &mut headers)?;
        let RawRequestLine { method, target } = raw.line;
        if fields.host.is_none() && raw.version == Version::Http11 {
            return Err(Reject::HostMissing);
        }
        let target = parse_target(&method, head.slice(target.0..target.1), fields.host)?;
        let body = match (fields.chunked, fields.content_length) {
            (true, _) if raw.version == Version::Http10 => {
                return Err(Reject::TransferEncodingInHttp10);
            }
            (true, _) => Framing::Chunked,
            (false, Some(length)) => Framing::Length(length),
            (false, None) => Framing::None,
        };
        if method == Method::CONNECT && !body.is_empty() {
            return Err(Reject::ConnectBody);
        }
        let http11 = raw.version == Version::Http11;
        Ok(Some(RequestHead {
            method,
            target,
            version: raw.version,
            headers,
            body,
            keep_alive: !fields.close && (http11 || fields.keep_alive),
            upgrade: fields.upgrade.filter(|_| http11),
            expect_continue: fields.expect_continue && http11,
        }))
    }

    fn build_response(
        &mut self,
        head: &Bytes,
        raw: RawHead<StatusCode>,
        spans: &[FieldSpan],
        request_method: &Method,
    ) -> Result<Option<ResponseHead>, Reject> {
        let mut headers = std::mem::take(&mut self.recycled);
        let mut fields = Fields::collect(head, spans, &mut headers)?;
        let status = raw.line;
        if fields.chunked && raw.version == Version::Http10 {
            return Err(Reject::TransferEncodingInHttp10);
        }
        let tunnel = status == StatusCode::SWITCHING_PROTOCOLS
            || (*request_method == Method::CONNECT && status.is_success());
        // RFC 9112 §6.3, in its order.
        let never_a_body = status.is_informational() || status == StatusCode::NO_CONTENT;
        let only_a_head = *request_method == Method::HEAD || status == StatusCode::NOT_MODIFIED;
        let mut body_on_bodiless = false;
        let body = if tunnel || never_a_body {
            body_on_bodiless = fields.chunked || fields.content_length.is_some_and(|n| n > 0);
            Framing::None
        } else if only_a_head {
            // Content-Length then tells what GET would get (RFC 9110 §8.6).
            if let Some(value) = fields.content_length_value.take() {
                let value = http::HeaderValue::from_maybe_shared(value)
                    .map_err(|_| Reject::ContentLength)?;
                headers.insert(header::CONTENT_LENGTH, value);
            }
            Framing::None
        } else if fields.chunked {
            Framing::Chunked
        } else {
            fields
                .content_length
                .map_or(Framing::UntilClose, Framing::Length)
        };
        let http11 = raw.version == Version::Http11;
        let not_kept = if tunnel {
            Some(NotKept::Tunnel)
        } else if fields.close {
            Some(NotKept::Close)
        } else if body == Framing::UntilClose {
            Some(NotKept::UntilClose)
        } else if body_on_bodiless {
            Some(NotKept::BodyOnBodiless)
        } else {
            (!http11 && !fields.keep_alive).then_some(NotKept::Http10)
        };
        Ok(Some(ResponseHead {
            status,
            version: raw.version,
            headers,
            body,
            not_kept,
            upgrade: fields.upgrade,
        }))
    }
}

const fn version(minor: u8) -> Version {
    match minor {
        0 => Version::Http10,
        _ => Version::Http11,
    }
}

/// Where `part`, a slice of `whole`, lies in it.
fn offsets(whole: &[u8], part: &[u8]) -> (usize, usize) {
    let start = part.as_ptr().addr().wrapping_sub(whole.as_ptr().addr());
    (start, start + part.len())
}

fn collect_spans(buffer: &[u8], headers: &[httparse::Header<'_>], spans: &mut FieldSpans) {
    let span = |part: &[u8]| {
        let (start, end) = offsets(buffer, part);
        (start as u32, end as u32)
    };
    spans.extend(headers.iter().map(|header| FieldSpan {
        name: span(header.name.as_bytes()),
        value: span(header.value),
    }));
}

const fn from_httparse(error: httparse::Error) -> Reject {
    match error {
        httparse::Error::HeaderName => Reject::HeaderName,
        httparse::Error::HeaderValue => Reject::HeaderValue,
        httparse::Error::Status => Reject::Status,
        // A bare CR has been explained by now.
        httparse::Error::Token | httparse::Error::NewLine => Reject::StartLine,
        httparse::Error::TooManyHeaders => Reject::TooManyHeaders,
        httparse::Error::Version => Reject::Version,
    }
}

/// Names what is wrong with a head that httparse refused: the first line that breaks a
/// rule decides. `otherwise` is what httparse said.
fn explain(buffer: &[u8], otherwise: Reject) -> Reject {
    let mut rest = buffer;
    let mut start_line = true;
    while let Some(end) = memchr::memchr(b'\n', rest) {
        let (with_cr, after) = rest.split_at(end);
        rest = after.get(1..).unwrap_or_default();
        let (line, bare_lf) = match with_cr {
            [line @ .., b'\r'] => (line, false),
            line => (line, true),
        };
        if !start_line && line.is_empty() && !bare_lf {
            // The head ends here; what follows is no part of it.
            return otherwise;
        }
        if let Some(reject) = explain_line(line, start_line) {
            return reject;
        }
        if bare_lf {
            return Reject::BareLf;
        }
        start_line = false;
    }
    explain_line(rest.strip_suffix(b"\r").unwrap_or(rest), start_line)
        .filter(|reject| matches!(reject, Reject::BareCr | Reject::ControlByte))
        .unwrap_or(otherwise)
}

fn explain_line(line: &[u8], start_line: bool) -> Option<Reject> {
    if memchr::memchr(b'\r', line).is_some() {
        return Some(Reject::BareCr);
    }
    if line.iter().any(|b| b.is_ascii_control() && *b != b'\t') {
        return Some(Reject::ControlByte);
    }
    if start_line {
        return None;
    }
    if matches!(line.first(), Some(b' ' | b'\t')) {
        return Some(Reject::ObsFold);
    }
    let name = line.split(|b| *b == b':').next().unwrap_or_default();
    if name.len() < line.len() && matches!(name.last(), Some(b' ' | b'\t')) {
        return Some(Reject::SpaceBeforeColon);
    }
    None
}

/// [`explain`], and what a request line alone can get wrong.
fn explain_request(buffer: &[u8], error: httparse::Error) -> Reject {
    let line_end = memchr::memchr(b'\n', buffer).unwrap_or(buffer.len());
    let line = buffer.get(..line_end).unwrap_or_default().trim_ascii_end();
    let explained = explain(buffer, from_httparse(error));
    if explained != Reject::StartLine {
        return explained;
    }
    let mut words = line.split(|b| *b == b' ');
    let method = words.next().unwrap_or_default();
    if Method::from_bytes(method).is_err() {
        return Reject::Method;
    }
    match (words.next(), words.next(), words.next()) {
        (Some(target), _, _) if !target.is_ascii() => Reject::TargetByte,
        // HTTP/0.9: no version at all.
        (Some(target), None, None) if !target.is_empty() => Reject::Version,
        _ => Reject::StartLine,
    }
}
