//! A request as somebody types it: `GET http://host:port/path` and `name: value`s.

use std::fmt;

use http::uri::{Authority, Scheme as UriScheme};
use http::{HeaderMap, HeaderName, HeaderValue, Method, Uri, header};

use super::path_or_root;
use crate::filter::RequestParts;
use crate::snapshot::Scheme;

/// The request to explain.
#[derive(Clone, Debug)]
pub struct ExplainRequest {
    pub parts: RequestParts,
    port: u16,
}

/// What is wrong with a typed request.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum RequestError {
    #[error("\"{0}\" is not an HTTP method")]
    Method(String),
    #[error("\"{0}\" is not a URL; write one such as http://shop.example.com/cart")]
    Url(String),
    #[error("\"{0}\" is not a header; write name: value")]
    Header(String),
}

impl ExplainRequest {
    /// `line` is `[METHOD] URL` (GET by default); each of `headers` is `name: value`.
    pub fn parse<'h>(
        line: &str,
        headers: impl IntoIterator<Item = &'h str>,
    ) -> Result<Self, RequestError> {
        let (method, url) = match line.trim().split_once(char::is_whitespace) {
            Some((method, url)) => (method, url.trim()),
            None => ("GET", line.trim()),
        };
        let method = Method::from_bytes(method.as_bytes())
            .map_err(|_| RequestError::Method(method.to_owned()))?;
        let uri: Uri = url.parse().map_err(|_| RequestError::Url(url.to_owned()))?;
        let scheme = match uri.scheme() {
            Some(scheme) if *scheme == UriScheme::HTTP => Scheme::Http,
            Some(scheme) if *scheme == UriScheme::HTTPS => Scheme::Https,
            _ => return Err(RequestError::Url(url.to_owned())),
        };
        let mut parts = RequestParts {
            method,
            scheme,
            authority: uri.authority().cloned(),
            path_and_query: uri
                .path_and_query()
                .cloned()
                .unwrap_or_else(|| path_or_root("/")),
            headers: parse_headers(headers)?,
        };
        // As with curl: -H 'Host: …' chooses another host than the URL's.
        if let Some(host) = parts.headers.remove(header::HOST) {
            let authority = Authority::try_from(host.as_bytes())
                .map_err(|_| RequestError::Header(format!("host: {host:?}")))?;
            parts.authority = Some(authority);
        }
        let port = uri.port_u16().unwrap_or(scheme.well_known_port());
        Ok(Self { parts, port })
    }

    /// The URL's port, or its scheme's.
    pub fn port(&self) -> u16 {
        self.port
    }
}

fn parse_headers<'h>(
    headers: impl IntoIterator<Item = &'h str>,
) -> Result<HeaderMap, RequestError> {
    let mut map = HeaderMap::new();
    for line in headers {
        let error = || RequestError::Header(line.to_owned());
        let (name, value) = line.split_once(':').ok_or_else(error)?;
        let name = HeaderName::from_bytes(name.trim().as_bytes()).map_err(|_| error())?;
        let value = HeaderValue::from_str(value.trim()).map_err(|_| error())?;
        map.try_append(name, value).map_err(|_| error())?;
    }
    Ok(map)
}

impl fmt::Display for ExplainRequest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "{} {}://{}{}",
            self.parts.method,
            self.parts.scheme.as_str(),
            self.parts.authority_str(),
            self.parts.path_and_query
        )
    }
}
