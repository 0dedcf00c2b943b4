//! The kinds of request that the load is made of, and what answer each must
//! get. A closed set: one enum.

use std::net::SocketAddr;

use bytes::{BufMut, Bytes, BytesMut};
use http::{Request, StatusCode, Version};
use http_body_util::Full;

use super::http1::Http1;
use super::http2::Http2;
use super::{Answer, Loss};

/// Bytes before a gRPC message: one flag, four of length.
const GRPC_PREFIX: usize = 5;

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
    Pay(Http1),
    /// A unary gRPC call.
    Authenticate(Http2),
}

impl Lane {
    /// The lanes to the proxy at `target`, for the programs that there are.
    pub fn all(target: SocketAddr, payment: bool, authentication: bool) -> Vec<Self> {
        let mut lanes = vec![
            Self::Browse(Http1::new(target, true)),
            Self::Visit(Http1::new(target, false)),
            Self::Stream(Http2::new(target)),
        ];
        if payment {
            lanes.push(Self::Pay(Http1::new(target, true)));
        }
        if authentication {
            lanes.push(Self::Authenticate(Http2::new(target)));
        }
        lanes
    }

    pub fn name(&self) -> &'static str {
        match self {
            Self::Browse(_) => "GET   HTTP/1.1 keep-alive",
            Self::Visit(_) => "GET   HTTP/1.1 connection each",
            Self::Stream(_) => "GET   HTTP/2",
            Self::Pay(_) => "POST  HTTP/1.1 keep-alive",
            Self::Authenticate(_) => "gRPC  HTTP/2",
        }
    }

    /// For a script.
    pub fn key(&self) -> &'static str {
        match self {
            Self::Browse(_) => "h1-get",
            Self::Visit(_) => "h1-connect",
            Self::Stream(_) => "h2-get",
            Self::Pay(_) => "h1-post",
            Self::Authenticate(_) => "grpc",
        }
    }

    /// Its part of the load, beside the other lanes'.
    pub fn share(&self) -> f64 {
        match self {
            Self::Browse(_) => 35.0,
            Self::Visit(_) => 15.0,
            Self::Stream(_) => 20.0,
            Self::Pay(_) | Self::Authenticate(_) => 15.0,
        }
    }

    /// Sends request `number` and checks its answer.
    pub async fn request(&self, number: u64) -> Result<(), Loss> {
        match self {
            Self::Browse(client) | Self::Visit(client) => {
                let request = Request::get(format!("/catalogue?item={number}"));
                let request = request.body(Full::default()).map_err(unmade)?;
                check_item(&client.call(request).await?, number)
            }
            Self::Stream(client) => {
                let uri = format!("http://shop.example/catalogue?item={number}");
                let request = Request::get(uri).version(Version::HTTP_2);
                let request = request.body(()).map_err(unmade)?;
                check_item(&client.call(&request, &Bytes::new()).await?, number)
            }
            Self::Pay(client) => {
                let body = format!("{{\"order\":{number},\"cents\":1999}}");
                let request = Request::post("/payment").header("content-type", "application/json");
                let request = request.body(Full::from(body)).map_err(unmade)?;
                let answer = client.call(request).await?;
                let expected = format!("{{\"order\":{number},\"paid\":true}}\n");
                check(&answer, StatusCode::CREATED, expected.as_bytes())
            }
            Self::Authenticate(client) => {
                let request = Request::post("http://shop.example/shop.Authentication/Check")
                    .version(Version::HTTP_2)
                    .header("content-type", "application/grpc")
                    .header("te", "trailers");
                let request = request.body(()).map_err(unmade)?;
                let message = grpc_message(&format!("user-{number}"));
                let answer = client.call(&request, &message).await?;
                check_grpc(&answer, &grpc_message(&format!("user-{number} is known")))
            }
        }
    }
}

fn unmade(error: http::Error) -> Loss {
    Loss::broken("making the request", &error)
}

fn check_item(answer: &Answer, number: u64) -> Result<(), Loss> {
    let expected = format!("{{\"item\":{number},\"in_stock\":true}}\n");
    check(answer, StatusCode::OK, expected.as_bytes())
}

fn check(answer: &Answer, status: StatusCode, body: &[u8]) -> Result<(), Loss> {
    if answer.status != status {
        let reason = text_of(answer, "weft-reason");
        return Err(Loss::new(format!(
            "status {} {reason}",
            answer.status.as_u16()
        )));
    }
    if answer.body != body {
        return Err(Loss::new(format!(
            "an answer to another request, or half of one ({} bytes)",
            answer.body.len()
        )));
    }
    Ok(())
}

fn check_grpc(answer: &Answer, message: &[u8]) -> Result<(), Loss> {
    let status = text_of(answer, "grpc-status");
    if answer.status == StatusCode::OK && status != "0" {
        let message = text_of(answer, "grpc-message");
        return Err(Loss::new(format!("gRPC status {status} {message}")));
    }
    check(answer, StatusCode::OK, message)
}

fn text_of<'a>(answer: &'a Answer, header: &str) -> &'a str {
    let value = answer.headers.get(header);
    value
        .and_then(|value| value.to_str().ok())
        .unwrap_or_default()
}

fn grpc_message(text: &str) -> Bytes {
    let mut message = BytesMut::with_capacity(GRPC_PREFIX + text.len());
    message.put_u8(0);
    message.put_u32(u32::try_from(text.len()).expect("a user's name is short"));
    message.put_slice(text.as_bytes());
    message.freeze()
}

#[cfg(test)]
mod tests {
    use super::*;
    use http::HeaderMap;

    fn answer(status: u16, headers: &[(&'static str, &'static str)], body: &[u8]) -> Answer {
        let headers = headers.iter().map(|(name, value)| {
            let value = http::HeaderValue::from_static(value);
            (http::HeaderName::from_static(name), value)
        });
        Answer {
            status: StatusCode::from_u16(status).unwrap(),
            headers: headers.collect::<HeaderMap>(),
            body: Bytes::copy_from_slice(body),
        }
    }

    #[test]
    fn only_the_answer_to_this_very_request_counts() {
        let body = b"{\"item\":7,\"in_stock\":true}\n";
        assert_eq!(check_item(&answer(200, &[], body), 7), Ok(()));
        for lost in [
            answer(200, &[], b"{\"item\":8,\"in_stock\":true}\n"),
            answer(200, &[], b"{\"item\":7,"),
            answer(404, &[], body),
        ] {
            assert!(check_item(&lost, 7).is_err(), "{lost:?}");
        }
        let shed = answer(503, &[("weft-reason", "no_endpoint")], b"");
        assert_eq!(
            check_item(&shed, 7),
            Err(Loss::new("status 503 no_endpoint"))
        );
    }

    #[test]
    fn a_grpc_answer_needs_its_status() {
        let message = grpc_message("user-1 is known");
        assert_eq!(&message[..6], b"\0\0\0\0\x0fu");
        let ok = answer(200, &[("grpc-status", "0")], &message);
        assert_eq!(check_grpc(&ok, &message), Ok(()));
        for lost in [
            answer(200, &[], &message),
            answer(200, &[("grpc-status", "14")], &message),
            answer(502, &[("grpc-status", "0")], &message),
            answer(200, &[("grpc-status", "0")], b""),
        ] {
            assert!(check_grpc(&lost, &message).is_err(), "{lost:?}");
        }
    }
}
