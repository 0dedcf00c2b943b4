//! What travels through the mesh while things go wrong: one load for each protocol, against a
//! service of its own, so that the caller's sidecar counts its retries apart.

use std::net::SocketAddr;
use std::time::Duration;

use crate::load::{Load, Mode, Plan};

/// Short enough to be caught in every fault, long enough to leave two shared cores some time.
const PAUSE: Duration = Duration::from_millis(8);
/// Requests at once on one HTTP/2 connection.
const STREAMS: usize = 4;
const CLIENTS: usize = 4;

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Protocol {
    Http1Get,
    Http1Post,
    Http1Connect,
    Http2,
    GrpcUnary,
    GrpcStream,
    WebSocket,
    OpaqueShort,
    OpaqueLong,
}

impl Protocol {
    pub const ALL: [Self; 9] = [
        Self::Http1Get,
        Self::Http1Post,
        Self::Http1Connect,
        Self::Http2,
        Self::GrpcUnary,
        Self::GrpcStream,
        Self::WebSocket,
        Self::OpaqueShort,
        Self::OpaqueLong,
    ];

    /// Its name, which is its service's too.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Http1Get => "h1-get",
            Self::Http1Post => "h1-post",
            Self::Http1Connect => "h1-connect",
            Self::Http2 => "h2-get",
            Self::GrpcUnary => "grpc-unary",
            Self::GrpcStream => "grpc-stream",
            Self::WebSocket => "websocket",
            Self::OpaqueShort => "tcp-short",
            Self::OpaqueLong => "tcp-long",
        }
    }

    fn mode(self) -> Mode {
        match self {
            Self::Http1Get => Mode::KeepAlive,
            Self::Http1Post => Mode::Post,
            Self::Http1Connect => Mode::ConnectEach,
            Self::Http2 => Mode::Http2(STREAMS),
            Self::GrpcUnary => Mode::Grpc(STREAMS),
            Self::GrpcStream => Mode::GrpcStream,
            Self::WebSocket => Mode::WebSocket,
            Self::OpaqueShort => Mode::Opaque,
            Self::OpaqueLong => Mode::OpaqueLong,
        }
    }

    #[must_use]
    pub fn is_opaque(self) -> bool {
        matches!(self, Self::OpaqueShort | Self::OpaqueLong)
    }

    /// Lives through the fault on a replica that nobody touches, rather than on any.
    #[must_use]
    pub fn is_long(self) -> bool {
        matches!(self, Self::GrpcStream | Self::WebSocket | Self::OpaqueLong)
    }

    /// As many as can be under way at one moment, and so be lost with what dies in it.
    #[must_use]
    pub fn at_once(self) -> u64 {
        let each = match self {
            Self::Http2 | Self::GrpcUnary => CLIENTS * STREAMS,
            _ => CLIENTS,
        };
        u64::try_from(each).unwrap_or(u64::MAX)
    }

    #[must_use]
    pub fn load(self, address: SocketAddr) -> Load {
        Load::planned(&Plan {
            address,
            mode: self.mode(),
            clients: CLIENTS,
            pause: PAUSE,
            owner: Some("web-"),
        })
    }
}
