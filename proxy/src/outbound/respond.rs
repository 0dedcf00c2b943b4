//! Answers that the proxy makes itself: rejections, redirects, failures. Each
//! says why in the `weft-reason` header; gRPC clients get a gRPC status.

use std::borrow::Cow;

use bytes::Bytes;
use http::header::{self, HeaderName};
use http::{HeaderMap, HeaderValue, Method, StatusCode};

use crate::logic::cause::Cause;
use crate::net::http::message::{BodyLength, Side, StreamError};

/// Names the reason of an answer of our own.
pub const REASON: HeaderName = HeaderName::from_static("weft-reason");
/// Names the policy and rule that denied a request.
pub const POLICY: HeaderName = HeaderName::from_static("weft-policy");
const GRPC_STATUS: HeaderName = HeaderName::from_static("grpc-status");
const GRPC_MESSAGE: HeaderName = HeaderName::from_static("grpc-message");
const GRPC: HeaderValue = HeaderValue::from_static("application/grpc");
const TEXT: HeaderValue = HeaderValue::from_static("text/plain; charset=utf-8");

/// An answer of our own, not yet in any protocol.
#[derive(Debug)]
pub struct Answer {
    pub cause: Cause,
    pub status: StatusCode,
    pub headers: HeaderMap,
    /// Detail for the log and, with the cause, the body.
    pub detail: &'static str,
}

impl Answer {
    pub fn of(cause: Cause, detail: &'static str) -> Self {
        Self {
            cause,
            status: cause.status(),
            headers: HeaderMap::new(),
            detail,
        }
    }

    /// What a filter answers: complete as it is.
    pub fn of_filter(status: StatusCode, headers: HeaderMap) -> Self {
        Self {
            cause: Cause::FilterAnswered,
            status,
            headers,
            detail: "",
        }
    }

    /// Puts the answer on its way; the caller flushes. Returns whether the
    /// connection is kept.
    pub fn send(
        mut self,
        side: &mut Side,
        method: &Method,
        grpc: bool,
        keep: bool,
    ) -> Result<bool, StreamError> {
        let body = self.complete(grpc);
        let length = match body.len() as u64 {
            0 if self.status == StatusCode::NO_CONTENT => BodyLength::None,
            length => BodyLength::Known(length),
        };
        let head_only = method == Method::HEAD;
        match side {
            Side::Http1(http1) => {
                if head_only && let BodyLength::Known(length) = length {
                    self.headers.insert(header::CONTENT_LENGTH, length.into());
                }
                let length = if head_only { BodyLength::None } else { length };
                let keep = http1.send_response(self.status, &self.headers, length, keep);
                if length != BodyLength::None {
                    http1.send_data(body, true)?;
                }
                Ok(keep)
            }
            Side::Http2(stream) => {
                if !grpc && let BodyLength::Known(length) = length {
                    self.headers.insert(header::CONTENT_LENGTH, length.into());
                }
                let ended = head_only || body.is_empty();
                stream.send_response(self.status, self.headers, ended)?;
                if !ended {
                    stream.send_data(body, true)?;
                }
                Ok(keep)
            }
        }
    }

    /// The detail, or the policy that denied.
    pub fn said(&self) -> Cow<'static, str> {
        match self.headers.get(POLICY).map(HeaderValue::to_str) {
            Some(Ok(policy)) => Cow::Owned(policy.to_owned()),
            _ => Cow::Borrowed(self.detail),
        }
    }

    /// Fills in headers and makes the body.
    fn complete(&mut self, grpc: bool) -> Bytes {
        if self.cause == Cause::FilterAnswered {
            return Bytes::new();
        }
        let label = self.cause.label();
        self.headers.insert(REASON, HeaderValue::from_static(label));
        let said = self.said();
        let text = if said.is_empty() {
            format!("weft: {label}\n")
        } else {
            format!("weft: {label}: {said}\n")
        };
        if grpc {
            // Trailers-Only (gRPC over HTTP/2): always 200, the status in gRPC's own field.
            self.status = StatusCode::OK;
            self.headers.insert(header::CONTENT_TYPE, GRPC);
            self.headers
                .insert(GRPC_STATUS, u16::from(self.cause.grpc_status()).into());
            if let Ok(message) = HeaderValue::from_str(text.trim_end()) {
                self.headers.insert(GRPC_MESSAGE, message);
            }
            return Bytes::new();
        }
        self.headers.insert(header::CONTENT_TYPE, TEXT);
        Bytes::from(text)
    }
}
