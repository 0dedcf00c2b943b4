//! The kinds of request that the load is made of, and what answer each must
//! get. A closed set: one enum.

use std::net::SocketAddr;

use bytes::Bytes;
use http::{Request, StatusCode, Version as HttpVersion};
use http_body_util::Full;

use super::super::programs::Service;
use super::http1::Http1;
use super::http2::Http2;
use super::{Answer, Loss, Version};

/// Bytes of an answer that is not the right one which are shown.
const SHOWN_MAX: usize = 300;
/// For HTTP/2, which wants one.
const AUTHORITY: &str = "store.example";

/// One kind of traffic and its client.
#[derive(Debug)]
pub enum Lane {
    /// GET over kept connections.
    Browse(Http1),
    /// GET with a connection for each request.
    Visit(Http1),
    /// GET as streams of one HTTP/2 connection.
    Stream(Http2),
    /// POST over kept connections.
    Order(Http1),
    /// POST as streams of one HTTP/2 connection.
    OrderStream(Http2),
}

impl Lane {
    /// All lanes, to the store at `target`.
    pub fn all(target: SocketAddr) -> Vec<Self> {
        vec![
            Self::Browse(Http1::new(target, true)),
            Self::Visit(Http1::new(target, false)),
            Self::Stream(Http2::new(target)),
            Self::Order(Http1::new(target, true)),
            Self::OrderStream(Http2::new(target)),
        ]
    }

    pub fn name(&self) -> &'static str {
        match self {
            Self::Browse(_) => "GET   HTTP/1.1 keep-alive",
            Self::Visit(_) => "GET   HTTP/1.1 connection each",
            Self::Stream(_) => "GET   HTTP/2",
            Self::Order(_) => "POST  HTTP/1.1 keep-alive",
            Self::OrderStream(_) => "POST  HTTP/2",
        }
    }

    /// For a script.
    pub fn key(&self) -> &'static str {
        match self {
            Self::Browse(_) => "h1-get",
            Self::Visit(_) => "h1-connect",
            Self::Stream(_) => "h2-get",
            Self::Order(_) => "h1-post",
            Self::OrderStream(_) => "h2-post",
        }
    }

    /// Its part of the load, beside the other lanes'.
    pub fn share(&self) -> f64 {
        match self {
            Self::Browse(_) => 30.0,
            Self::Stream(_) | Self::Order(_) => 20.0,
            Self::Visit(_) | Self::OrderStream(_) => 15.0,
        }
    }

    /// Sends request `number` and checks its answer; who answered it.
    pub async fn request(&self, number: u64) -> Result<Vec<Version>, Loss> {
        let answer = match self {
            Self::Browse(client) | Self::Visit(client) => {
                let request = Request::get(item_path(number)).body(Full::default());
                client.call(request.map_err(unmade)?).await?
            }
            Self::Stream(client) => {
                let uri = format!("http://{AUTHORITY}{}", item_path(number));
                let request = Request::get(uri).version(HttpVersion::HTTP_2).body(());
                client
                    .call(&request.map_err(unmade)?, &Bytes::new())
                    .await?
            }
            Self::Order(client) => {
                let request = Request::post(order_path(number))
                    .header("content-type", "application/json")
                    .body(Full::from(order(number)));
                client.call(request.map_err(unmade)?).await?
            }
            Self::OrderStream(client) => {
                let uri = format!("http://{AUTHORITY}{}", order_path(number));
                let body = Bytes::from(order(number));
                let request = Request::post(uri)
                    .version(HttpVersion::HTTP_2)
                    .header("content-type", "application/json")
                    .header("content-length", body.len())
                    .body(());
                client.call(&request.map_err(unmade)?, &body).await?
            }
        };
        match self {
            Self::Browse(_) | Self::Visit(_) | Self::Stream(_) => check_item(&answer, number),
            Self::Order(_) | Self::OrderStream(_) => check_order(&answer, number),
        }
    }
}

fn item_path(number: u64) -> String {
    format!("/item?id={number}&user=user-{number}")
}

fn order_path(number: u64) -> String {
    format!("/order?user=user-{number}")
}

fn order(number: u64) -> String {
    format!("{{\"order\":{number},\"cents\":1999}}")
}

fn unmade(error: http::Error) -> Loss {
    Loss::broken("making the request", &error)
}

fn check_item(answer: &Answer, number: u64) -> Result<Vec<Version>, Loss> {
    let expected =
        format!("{{\"user\": \"user-{number}\", \"item\": {number}, \"in_stock\": true}}\n");
    check(
        answer,
        &expected,
        &[Service::Authentication, Service::Catalogue],
    )
}

fn check_order(answer: &Answer, number: u64) -> Result<Vec<Version>, Loss> {
    let expected =
        format!("{{\"user\": \"user-{number}\", \"order\": {number}, \"paid\": true}}\n");
    check(
        answer,
        &expected,
        &[Service::Authentication, Service::Payment],
    )
}

/// Whether it is the answer to this very request, to the byte, and names the frontend and those `behind` it.
fn check(answer: &Answer, body: &str, behind: &[Service]) -> Result<Vec<Version>, Loss> {
    if answer.status != StatusCode::OK {
        let (status, reason) = (answer.status.as_u16(), text_of(answer, "weft-reason"));
        return Err(Loss::new(format!(
            "status {status} {reason} {}",
            shown(answer)
        )));
    }
    if answer.body != body {
        let text = shown(answer);
        return Err(Loss::new(format!("another answer, or half of one: {text}")));
    }
    let versions: Vec<Version> = text_of(answer, "shop-version")
        .split(", ")
        .filter_map(version)
        .collect();
    let named = versions.iter().map(|(service, _)| service);
    if !named.eq([Service::Frontend].iter().chain(behind)) {
        return Err(Loss::new(format!("answered by {versions:?}")));
    }
    Ok(versions)
}

/// `catalogue=v2`
fn version(text: &str) -> Option<Version> {
    let (name, version) = text.split_once("=v")?;
    Some((Service::named(name)?, version.parse().ok()?))
}

fn shown(answer: &Answer) -> String {
    let body = answer.body.get(..SHOWN_MAX).unwrap_or(&answer.body);
    String::from_utf8_lossy(body).trim_end().to_owned()
}

fn text_of<'a>(answer: &'a Answer, header: &str) -> &'a str {
    let value = answer.headers.get(header);
    value
        .and_then(|value| value.to_str().ok())
        .unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;
    use http::{HeaderMap, HeaderName, HeaderValue};

    const VERSIONS: &str = "frontend=v1, authentication=v12, catalogue=v2";

    fn answer(status: u16, headers: &[(&'static str, &'static str)], body: &str) -> Answer {
        let headers = headers.iter().map(|(name, value)| {
            let value = HeaderValue::from_static(value);
            (HeaderName::from_static(name), value)
        });
        Answer {
            status: StatusCode::from_u16(status).unwrap(),
            headers: headers.collect::<HeaderMap>(),
            body: Bytes::copy_from_slice(body.as_bytes()),
        }
    }

    #[test]
    fn only_the_answer_to_this_very_request_counts() {
        let body = "{\"user\": \"user-7\", \"item\": 7, \"in_stock\": true}\n";
        let by = [("shop-version", VERSIONS)];
        assert_eq!(
            check_item(&answer(200, &by, body), 7).unwrap(),
            [
                (Service::Frontend, 1),
                (Service::Authentication, 12),
                (Service::Catalogue, 2)
            ]
        );
        for lost in [
            answer(200, &by, &body.replace("7,", "8,")),
            answer(200, &by, &body[..20]),
            answer(200, &[("shop-version", "frontend=v1")], body),
            answer(200, &[], body),
            answer(404, &by, body),
        ] {
            assert!(check_item(&lost, 7).is_err(), "{lost:?}");
            assert!(check_order(&lost, 7).is_err(), "{lost:?}");
        }
        let shed = answer(
            503,
            &[("weft-reason", "no_endpoint")],
            "weft: no_endpoint\n",
        );
        assert_eq!(
            check_item(&shed, 7),
            Err(Loss::new("status 503 no_endpoint weft: no_endpoint"))
        );
    }
}
