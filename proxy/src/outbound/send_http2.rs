//! A request's head on its way to an upstream over HTTP/2.

use http::{HeaderMap, Method, Request, Uri, Version, header, uri};
use weft_config::filter::RequestParts;
use weft_config::snapshot::Scheme;

use crate::net::http::http2::Http2Stream;
use crate::net::http::message::BodyLength;
use crate::net::pool::SharedHttp2;

pub async fn send_http2(
    shared: SharedHttp2,
    length: BodyLength,
    parts: &RequestParts,
    ended: bool,
) -> Result<Http2Stream, h2::Error> {
    let mut request = Request::new(());
    *request.method_mut() = parts.method.clone();
    *request.version_mut() = Version::HTTP_2;
    *request.uri_mut() = http2_uri(parts);
    *request.headers_mut() = http2_headers(parts, length);
    let mut ready = match shared.send.ready().await {
        Ok(ready) => ready,
        Err(error) => {
            shared
                .leaving
                .store(true, std::sync::atomic::Ordering::Relaxed);
            return Err(error);
        }
    };
    let (response, send) = ready.send_request(request, ended)?;
    Ok(Http2Stream {
        response: Some(response),
        send: (!ended).then_some(send),
        head_only: parts.method == Method::HEAD,
        tunnel: parts.method == Method::CONNECT,
        ..Http2Stream::default()
    })
}

fn http2_uri(parts: &RequestParts) -> Uri {
    let mut uri = uri::Parts::default();
    uri.authority.clone_from(&parts.authority);
    if parts.method != Method::CONNECT {
        uri.scheme = Some(match parts.scheme {
            Scheme::Http => uri::Scheme::HTTP,
            Scheme::Https => uri::Scheme::HTTPS,
        });
        uri.path_and_query = Some(parts.path_and_query.clone());
    }
    if uri.authority.is_none() {
        uri.scheme = None;
    }
    Uri::from_parts(uri).unwrap_or_default()
}

fn http2_headers(parts: &RequestParts, length: BodyLength) -> HeaderMap {
    let mut headers = parts.headers.clone();
    if let BodyLength::Known(length) = length {
        headers.insert(header::CONTENT_LENGTH, length.into());
    }
    headers
}
