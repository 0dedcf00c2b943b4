//! A byte stream to a peer: plain TCP, or TLS over it, with bytes that were
//! read ahead (protocol detection, PROXY protocol) given back first.
//!
//! Owns nothing of HTTP. **Invariant:** `prefix` is drained before the socket
//! is read, so nothing that was peeked is lost or reordered.

use std::io;
use std::pin::Pin;
use std::task::{Context, Poll, ready};

use bytes::{Buf, BytesMut};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::TcpStream;
use tokio_rustls::{client, server};

/// A TCP connection with its read-ahead.
#[derive(Debug)]
pub struct Plain {
    pub tcp: TcpStream,
    pub prefix: BytesMut,
}

impl Plain {
    pub fn new(tcp: TcpStream) -> Self {
        Self {
            tcp,
            prefix: BytesMut::new(),
        }
    }

    /// Reads more bytes behind those already read ahead, up to `max` in all.
    /// Returns how many came; 0 is the end of the stream.
    pub async fn read_ahead(&mut self, max: usize) -> io::Result<usize> {
        loop {
            self.tcp.readable().await?;
            let room = max.saturating_sub(self.prefix.len()).min(READ_AHEAD_STEP);
            if room == 0 {
                return Err(io::Error::new(
                    io::ErrorKind::InvalidData,
                    "read-ahead is full",
                ));
            }
            let start = self.prefix.len();
            self.prefix.resize(start + room, 0);
            let read = match self.prefix.get_mut(start..) {
                Some(slot) => self.tcp.try_read(slot),
                None => Ok(0),
            };
            self.prefix.truncate(start + *read.as_ref().unwrap_or(&0));
            match read {
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
                read => return read,
            }
        }
    }
}

/// One read of the read-ahead.
const READ_AHEAD_STEP: usize = 4096;

impl AsyncRead for Plain {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        out: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        if !self.prefix.is_empty() {
            let count = self.prefix.len().min(out.remaining());
            out.put_slice(&self.prefix.split_to(count));
            if self.prefix.is_empty() {
                self.prefix = BytesMut::new();
            }
            return Poll::Ready(Ok(()));
        }
        Pin::new(&mut self.tcp).poll_read(cx, out)
    }
}

impl AsyncWrite for Plain {
    fn poll_write(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        data: &[u8],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.tcp).poll_write(cx, data)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        data: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.tcp).poll_write_vectored(cx, data)
    }

    fn is_write_vectored(&self) -> bool {
        true
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.tcp).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.tcp).poll_shutdown(cx)
    }
}

/// Any stream the proxy reads and writes.
#[derive(Debug)]
pub enum Stream {
    Plain(Plain),
    ServerTls(Box<server::TlsStream<Plain>>),
    ClientTls(Box<client::TlsStream<Plain>>),
}

impl Stream {
    fn tcp(&self) -> &TcpStream {
        match self {
            Self::Plain(plain) => &plain.tcp,
            Self::ServerTls(tls) => &tls.get_ref().0.tcp,
            Self::ClientTls(tls) => &tls.get_ref().0.tcp,
        }
    }

    /// Lets the kernel end the connection when the peer takes nothing for
    /// this long: it vanished, or it reads no more. For HTTP only:
    /// an opaque peer may rest as long as it likes.
    pub fn bound_unacknowledged(&self, timeout: std::time::Duration) {
        let _ = socket2::SockRef::from(self.tcp()).set_tcp_user_timeout(Some(timeout));
    }

    /// Acknowledges what has come at once: a peer with Nagle's algorithm (RFC 896)
    /// holds back the rest until then, and a delayed acknowledgement takes 40 ms.
    pub fn acknowledge(&self) {
        let _ = socket2::SockRef::from(self.tcp()).set_tcp_quickack(true);
    }

    /// Makes the coming close a reset (RST).
    pub fn abort(&self) {
        let _ = socket2::SockRef::from(self.tcp()).set_linger(Some(std::time::Duration::ZERO));
    }

    pub fn is_tls(&self) -> bool {
        !matches!(self, Self::Plain(_))
    }

    /// The version that TLS agreed on; empty without TLS.
    pub fn tls_version(&self) -> &'static str {
        let version = match self {
            Self::Plain(_) => None,
            Self::ServerTls(tls) => tls.get_ref().1.protocol_version(),
            Self::ClientTls(tls) => tls.get_ref().1.protocol_version(),
        };
        match version {
            Some(rustls::ProtocolVersion::TLSv1_2) => "TLSv1.2",
            Some(rustls::ProtocolVersion::TLSv1_3) => "TLSv1.3",
            _ => "",
        }
    }

    /// The application protocol that TLS agreed on.
    /// ALPN chose HTTP/2, the mesh's or the application's.
    pub fn is_http2(&self) -> bool {
        self.alpn()
            .is_some_and(|alpn| alpn == b"h2" || alpn == b"weft-h2")
    }

    pub fn alpn(&self) -> Option<&[u8]> {
        match self {
            Self::Plain(_) => None,
            Self::ServerTls(tls) => tls.get_ref().1.alpn_protocol(),
            Self::ClientTls(tls) => tls.get_ref().1.alpn_protocol(),
        }
    }

    /// Waits for bytes without holding a buffer for them. TLS streams are
    /// always "ready": only reading tells.
    pub fn poll_read_ready(&self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        match self {
            Self::Plain(plain) if plain.prefix.is_empty() => plain.tcp.poll_read_ready(cx),
            _ => Poll::Ready(Ok(())),
        }
    }

    /// Whether an idle stream can still be used: no end, error or stray bytes
    /// have come. Costs no system call when the socket has been silent.
    pub fn is_quiet(&mut self) -> bool {
        let mut byte = [0u8; 1];
        match self {
            Self::Plain(plain) => would_block(plain.tcp.try_read(&mut byte)),
            Self::ServerTls(tls) => is_quiet_tls(tls.as_mut()),
            Self::ClientTls(tls) => is_quiet_tls(tls.as_mut()),
        }
    }

    /// Reads into the spare capacity of `buffer`; 0 is the end of the stream.
    pub fn poll_read_buf(
        &mut self,
        cx: &mut Context<'_>,
        buffer: &mut BytesMut,
    ) -> Poll<io::Result<usize>> {
        tokio_util::io::poll_read_buf(Pin::new(self), cx, buffer)
    }

    /// Writes `first` then `second`, as much as goes, advancing both.
    pub fn poll_write_two<B: Buf>(
        &mut self,
        cx: &mut Context<'_>,
        first: &mut BytesMut,
        second: &mut B,
    ) -> Poll<io::Result<()>> {
        while first.has_remaining() || second.has_remaining() {
            let written = if first.has_remaining() && second.has_remaining() {
                let slices = [io::IoSlice::new(first), io::IoSlice::new(second.chunk())];
                ready!(Pin::new(&mut *self).poll_write_vectored(cx, &slices))?
            } else if first.has_remaining() {
                ready!(Pin::new(&mut *self).poll_write(cx, first))?
            } else {
                ready!(Pin::new(&mut *self).poll_write(cx, second.chunk()))?
            };
            if written == 0 {
                return Poll::Ready(Err(io::ErrorKind::WriteZero.into()));
            }
            let head = written.min(first.len());
            first.advance(head);
            second.advance(written - head);
        }
        if self.is_tls() {
            ready!(Pin::new(self).poll_flush(cx))?;
        }
        Poll::Ready(Ok(()))
    }
}

fn would_block(read: io::Result<usize>) -> bool {
    matches!(read, Err(error) if error.kind() == io::ErrorKind::WouldBlock)
}

fn is_quiet_tls<S: AsyncRead + Unpin>(stream: &mut S) -> bool {
    let mut byte = [0u8; 1];
    let mut out = ReadBuf::new(&mut byte);
    let mut cx = Context::from_waker(std::task::Waker::noop());
    Pin::new(stream).poll_read(&mut cx, &mut out).is_pending()
}

macro_rules! delegate {
    ($self:ident, $method:ident $(, $argument:expr)*) => {
        match $self.get_mut() {
            Stream::Plain(stream) => Pin::new(stream).$method($($argument),*),
            Stream::ServerTls(stream) => Pin::new(stream.as_mut()).$method($($argument),*),
            Stream::ClientTls(stream) => Pin::new(stream.as_mut()).$method($($argument),*),
        }
    };
}

impl AsyncRead for Stream {
    fn poll_read(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        out: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        delegate!(self, poll_read, cx, out)
    }
}

impl AsyncWrite for Stream {
    fn poll_write(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        data: &[u8],
    ) -> Poll<io::Result<usize>> {
        delegate!(self, poll_write, cx, data)
    }

    fn poll_write_vectored(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        data: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        delegate!(self, poll_write_vectored, cx, data)
    }

    fn is_write_vectored(&self) -> bool {
        true
    }

    fn poll_flush(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        delegate!(self, poll_flush, cx)
    }

    fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        delegate!(self, poll_shutdown, cx)
    }
}
