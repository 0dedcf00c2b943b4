//! The cases of the benchmark: their names (a contract with whoever reads
//! hop.json), what each one speaks, and what one "request" of it is.

use std::fmt;
use std::str::FromStr;

/// One row of the benchmark.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Case {
    /// HTTP/1.1 keep-alive, 64-byte answers, closed loop.
    H1Small,
    /// The same with 10 KiB answers.
    H1Large,
    /// The same with 10 KiB request bodies and 64-byte answers.
    H1Post,
    /// A new downstream connection for each request (`Connection: close`).
    H1Connect,
    /// HTTP/2 by prior knowledge, 64-byte answers, ten streams a connection.
    H2Small,
    /// The same with one stream a connection.
    H2SmallSingle,
    /// gRPC unary echo of 64 bytes, ten streams a connection.
    GrpcUnary,
    /// 1 GiB through one TCP connection; one request is 1 MiB.
    TcpStream,
    /// TLS 1.3 terminated at the subject, HTTP/1.1 keep-alive inside, 64-byte answers.
    TlsSmall,
    /// 10,000 connections that made one request each and then stay idle.
    Idle,
    /// HTTP/1.1 keep-alive at a fixed arrival rate; latency from the intended send time.
    H1OpenLoop,
    /// `h1-64` through two proxies with mutual TLS 1.3 between them.
    PairH1Small,
    PairH1Large,
    PairH2Small,
    PairGrpc,
    PairTcp,
}

/// What a subject must be configured to speak for a case.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Mode {
    Http1,
    Http2,
    Grpc,
    Tcp,
    Tls,
}

/// Bytes of the small answer, and of a gRPC message.
pub const SMALL_BYTES: usize = 64;
/// Bytes of the large answer and of the posted body.
pub const LARGE_BYTES: usize = 10 * 1024;
/// Streams a connection of the multiplexed cases.
pub const STREAMS: usize = 10;
/// Bytes of one transfer of `tcp-1g`: half of it up, then half of it down.
pub const TRANSFER_BYTES: u64 = 1 << 30;
/// What counts as one request of `tcp-1g`.
pub const TRANSFER_UNIT_BYTES: u64 = 1 << 20;

impl Case {
    pub const ALL: [Self; 16] = [
        Self::H1Small,
        Self::H1Large,
        Self::H1Post,
        Self::H1Connect,
        Self::H2Small,
        Self::H2SmallSingle,
        Self::GrpcUnary,
        Self::TcpStream,
        Self::TlsSmall,
        Self::Idle,
        Self::H1OpenLoop,
        Self::PairH1Small,
        Self::PairH1Large,
        Self::PairH2Small,
        Self::PairGrpc,
        Self::PairTcp,
    ];

    pub fn name(self) -> &'static str {
        match self {
            Self::H1Small => "h1-64",
            Self::H1Large => "h1-10k",
            Self::H1Post => "h1-post-10k",
            Self::H1Connect => "h1-connect",
            Self::H2Small => "h2-64",
            Self::H2SmallSingle => "h2-64-m1",
            Self::GrpcUnary => "grpc-unary",
            Self::TcpStream => "tcp-1g",
            Self::TlsSmall => "tls-64",
            Self::Idle => "idle-10k",
            Self::H1OpenLoop => "h1-open-loop",
            Self::PairH1Small => "pair-h1-64",
            Self::PairH1Large => "pair-h1-10k",
            Self::PairH2Small => "pair-h2-64",
            Self::PairGrpc => "pair-grpc-unary",
            Self::PairTcp => "pair-tcp-1g",
        }
    }

    /// The case of one plain hop with the same load: for a case of a pair, the one that
    /// it is compared with; else itself.
    pub fn load(self) -> Self {
        match self {
            Self::PairH1Small => Self::H1Small,
            Self::PairH1Large => Self::H1Large,
            Self::PairH2Small => Self::H2Small,
            Self::PairGrpc => Self::GrpcUnary,
            Self::PairTcp => Self::TcpStream,
            own => own,
        }
    }

    /// Whether it is through two proxies.
    pub fn is_pair(self) -> bool {
        self.load() != self
    }

    pub fn mode(self) -> Mode {
        match self.load() {
            Self::H2Small | Self::H2SmallSingle => Mode::Http2,
            Self::GrpcUnary => Mode::Grpc,
            Self::TcpStream => Mode::Tcp,
            Self::TlsSmall => Mode::Tls,
            _ => Mode::Http1,
        }
    }
}

impl Mode {
    pub fn name(self) -> &'static str {
        match self {
            Self::Http1 => "http1",
            Self::Http2 => "http2",
            Self::Grpc => "grpc",
            Self::Tcp => "tcp",
            Self::Tls => "tls",
        }
    }
}

impl fmt::Display for Case {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.pad(self.name())
    }
}

impl FromStr for Case {
    type Err = String;

    fn from_str(name: &str) -> Result<Self, Self::Err> {
        Self::ALL
            .into_iter()
            .find(|case| case.name() == name)
            .ok_or_else(|| {
                format!(
                    "unknown case; one of {}",
                    Self::ALL.map(Self::name).join(",")
                )
            })
    }
}
