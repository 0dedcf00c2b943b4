//! One HTTP/2 stream as a source and a sink, on either side. Flow control is
//! the back-pressure: capacity is released as data is taken, and data is sent
//! only when the peer has room, so that at most one frame waits here.

use std::pin::Pin;
use std::task::{Context, Poll, ready};

use bytes::Bytes;
use h2::{RecvStream, SendStream, client, server};
use http::{HeaderMap, Response, StatusCode, header};

use super::message::{BodyLength, Frame, ResponseHead, StreamError};

#[derive(Debug, Default)]
pub struct Http2Stream {
    /// Downstream, until the final head is sent.
    pub respond: Option<server::SendResponse<Bytes>>,
    /// Upstream, until the final head has come.
    pub response: Option<client::ResponseFuture>,
    /// `None` once the body being sent has ended.
    pub send: Option<SendStream<Bytes>>,
    pub receive: Option<RecvStream>,
    /// The request was a HEAD or CONNECT: what its answer's length means.
    pub head_only: bool,
    pub tunnel: bool,
    /// A piece that exceeds the peer's window waits in h2.
    pub beyond: bool,
}

impl Http2Stream {
    pub fn poll_frame(&mut self, cx: &mut Context<'_>) -> Poll<Result<Option<Frame>, StreamError>> {
        let Some(receive) = &mut self.receive else {
            return Poll::Ready(Ok(None));
        };
        match ready!(receive.poll_data(cx)) {
            Some(Ok(data)) => {
                receive.flow_control().release_capacity(data.len())?;
                return Poll::Ready(Ok(Some(Frame::Data(data))));
            }
            Some(Err(error)) => return Poll::Ready(Err(error.into())),
            None => {}
        }
        let trailers = ready!(receive.poll_trailers(cx))?;
        self.receive = None;
        Poll::Ready(Ok(trailers.map(Frame::Trailers)))
    }

    pub fn is_ended(&self) -> bool {
        self.receive.as_ref().is_none_or(RecvStream::is_end_stream)
    }

    pub fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), StreamError>> {
        let Some(send) = &mut self.send else {
            return Poll::Ready(Ok(()));
        };
        // One piece may wait in h2 beyond the window, so that trailers and the
        // end of the stream, which need no window, do not wait for one.
        if send.capacity() > 0 || !self.beyond {
            return Poll::Ready(Ok(()));
        }
        send.reserve_capacity(1);
        loop {
            match ready!(send.poll_capacity(cx)) {
                Some(Ok(0)) => {}
                Some(Ok(_)) => {
                    self.beyond = false;
                    return Poll::Ready(Ok(()));
                }
                Some(Err(error)) => return Poll::Ready(Err(error.into())),
                None => return Poll::Ready(Err(StreamError::Truncated)),
            }
        }
    }

    pub fn send_data(&mut self, data: Bytes, last: bool) -> Result<(), StreamError> {
        if let Some(send) = &mut self.send {
            self.beyond = send.capacity() < data.len();
            send.send_data(data, last)?;
        }
        if last {
            self.send = None;
        }
        Ok(())
    }

    pub fn finish(&mut self, trailers: Option<HeaderMap>) -> Result<(), StreamError> {
        if let Some(mut send) = self.send.take() {
            match trailers {
                Some(trailers) => send.send_trailers(trailers)?,
                None => send.send_data(Bytes::new(), true)?,
            }
        }
        Ok(())
    }

    /// The connection's own task writes; nothing waits here.
    pub fn poll_flush(&mut self, _cx: &mut Context<'_>) -> Poll<Result<(), StreamError>> {
        Poll::Ready(Ok(()))
    }

    pub fn poll_response(
        &mut self,
        cx: &mut Context<'_>,
    ) -> Poll<Result<ResponseHead, StreamError>> {
        let Some(response) = &mut self.response else {
            return Poll::Ready(Err(StreamError::Truncated));
        };
        if let Poll::Ready(Some(interim)) = response.poll_informational(cx) {
            let (head, ()) = interim?.into_parts();
            if head.status == StatusCode::SWITCHING_PROTOCOLS {
                // There is none in HTTP/2 (RFC 9113 §8.6).
                return Poll::Ready(Err(StreamError::LengthMismatch));
            }
            return Poll::Ready(Ok(ResponseHead {
                status: head.status,
                headers: head.headers,
                length: BodyLength::None,
            }));
        }
        let (head, receive) = ready!(Pin::new(response).poll(cx))?.into_parts();
        self.response = None;
        let bodiless = matches!(
            head.status,
            StatusCode::NO_CONTENT | StatusCode::NOT_MODIFIED
        );
        let length = if self.tunnel && head.status.is_success() {
            BodyLength::Tunnel
        } else if self.head_only || bodiless {
            // Whatever it says, or sends (RFC 9110 §6.4.1).
            BodyLength::None
        } else if receive.is_end_stream() {
            BodyLength::Known(0)
        } else {
            body_length(&head.headers)
        };
        self.receive = Some(receive);
        Poll::Ready(Ok(ResponseHead {
            status: head.status,
            headers: head.headers,
            length,
        }))
    }

    pub fn send_interim(
        &mut self,
        status: StatusCode,
        headers: HeaderMap,
    ) -> Result<(), StreamError> {
        if let Some(respond) = &mut self.respond {
            let mut response = Response::new(());
            *response.status_mut() = status;
            *response.headers_mut() = headers;
            respond.send_informational(response)?;
        }
        Ok(())
    }

    /// Sends the final head; `ended` when no body follows.
    pub fn send_response(
        &mut self,
        status: StatusCode,
        headers: HeaderMap,
        ended: bool,
    ) -> Result<(), StreamError> {
        if let Some(mut respond) = self.respond.take() {
            let mut response = Response::new(());
            *response.status_mut() = status;
            *response.headers_mut() = headers;
            let send = respond.send_response(response, ended)?;
            self.send = (!ended).then_some(send);
        }
        Ok(())
    }

    pub fn poll_gone(&mut self, cx: &mut Context<'_>) -> Poll<()> {
        if let Some(respond) = &mut self.respond {
            return respond.poll_reset(cx).map(drop);
        }
        match &mut self.send {
            Some(send) => send.poll_reset(cx).map(drop),
            None => Poll::Pending,
        }
    }

    pub fn is_stalled(&self) -> bool {
        self.beyond && self.send.as_ref().is_some_and(|send| send.capacity() == 0)
    }

    /// Tells the peer that this stream ends here.
    pub fn reset(&mut self, reason: h2::Reason) {
        if let Some(respond) = &mut self.respond {
            respond.send_reset(reason);
        }
        if let Some(send) = &mut self.send {
            send.send_reset(reason);
        }
    }
}

/// The announced length of an HTTP/2 body; h2 has checked that the header is
/// valid and holds the peer to it.
pub fn body_length(headers: &HeaderMap) -> BodyLength {
    headers
        .get(header::CONTENT_LENGTH)
        .and_then(|value| value.to_str().ok())
        .and_then(|value| value.parse().ok())
        .map_or(BodyLength::Unknown, BodyLength::Known)
}
