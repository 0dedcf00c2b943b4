//! Passing an answer on: its head with what filters change, then its body,
//! while what is left of the request's still goes the other way.
//!
//! **Invariant:** an answer that cannot be finished never looks whole: chunks
//! and lengths stay short, a stream is reset, a connection that only its end
//! would delimit is reset too.

use std::task::{Context, Poll};

use http::HeaderValue;
use http::header;
use tokio::time::Instant;
use weft_config::filter::apply_response_filters;

use super::attempt::Answered;
use super::forward::{Forward, earliest};
use super::mesh;
use crate::logic::balance::Outcome;
use crate::logic::cause::Cause;
use crate::net::http::exchange::{Transfer, TransferError};
use crate::net::http::message::{BodyLength, ResponseHead, Side, StreamError};

/// How the body of an answer ended.
enum Passed {
    Whole,
    Failed(Cause),
}

impl Forward<'_> {
    /// Sends the answer downstream. From here on nothing is tried again.
    pub(super) async fn pass_on(&mut self, mut answered: Answered, keep: bool) -> bool {
        let length = self.send_head(&mut answered, keep);
        let keep = match length {
            Ok((kept, _)) => kept,
            Err(_) => {
                self.record.cause = Cause::DownstreamGone;
                return false;
            }
        };
        self.replay.discard();
        let length = length.map_or(BodyLength::None, |(_, length)| length);
        let mut download = match length {
            BodyLength::None | BodyLength::Known(0) => Transfer::flushing(),
            _ => Transfer::new(0),
        };
        let passed = std::future::poll_fn(|cx| {
            self.poll_pass(cx, &mut answered.side, &mut download, length)
        })
        .await;
        self.record.bytes_in = self.upload.bytes;
        self.record.bytes_out = download.bytes;
        let whole = self.end(passed, &answered, &download);
        let kept = self.upload.is_done() && !self.upload_failed;
        if whole && kept && !self.incoming.wants_tunnel() {
            answered.keep(self.connection, &self.target.service, self.record.end());
        }
        whole && keep && self.side.is_ended() && length != BodyLength::Tunnel
    }

    /// Books how the answer ended; returns whether it is whole.
    fn end(&mut self, passed: Passed, answered: &Answered, download: &Transfer) -> bool {
        let outcome = match (&passed, download.grpc_status()) {
            (Passed::Failed(cause), _) if cause.is_upstream_failure() => Some(Outcome::Failure),
            (Passed::Failed(_), _) => None,
            (Passed::Whole, Some(status)) => Some(Outcome::of_grpc_status(status)),
            (Passed::Whole, None) => Some(answered.outcome),
        };
        if let Some(outcome) = outcome {
            self.judge(answered.in_flight.endpoint(), outcome);
        }
        let Passed::Failed(cause) = passed else {
            return true;
        };
        self.record.cause = cause;
        match &mut *self.side {
            Side::Http1(http1) => http1.fail(),
            Side::Http2(stream) => stream.reset(match cause {
                Cause::DownstreamGone | Cause::DownstreamStalled => h2::Reason::CANCEL,
                _ => h2::Reason::INTERNAL_ERROR,
            }),
        }
        false
    }

    /// Writes the head; `(kept, length)`.
    fn send_head(
        &mut self,
        answered: &mut Answered,
        keep: bool,
    ) -> Result<(bool, BodyLength), StreamError> {
        let ResponseHead {
            status,
            mut headers,
            length,
        } = answered.take_head();
        self.record.status = status.as_u16();
        self.length_known = matches!(length, BodyLength::Known(_));
        let target = self.target;
        if let Some(rule) = &target.rule {
            apply_response_filters(target.backend_filters(), target.cors.as_ref(), &mut headers);
            apply_response_filters(&rule.filters, target.cors.as_ref(), &mut headers);
        }
        if self.connection.peer.is_some() {
            mesh::strip_markers(&mut headers);
            self.mark_leaving(&mut headers);
        }
        if let Some(session) = &target.session {
            session.mark(answered.in_flight.endpoint(), &mut headers);
        }
        // A body that the client is still sending, and nobody takes in, ends the connection.
        let taken_in = self.replay.is_complete() || length == BodyLength::Tunnel;
        let keep = keep && taken_in && !self.connection.is_leaving();
        match &mut *self.side {
            Side::Http1(http1) => {
                let keep = http1.send_response(status, &headers, length, keep);
                answered.recycle(headers);
                if length == BodyLength::Tunnel {
                    http1.become_tunnel();
                    answered.become_tunnel();
                    self.upload = Transfer::new(0);
                }
                Ok((keep, length))
            }
            Side::Http2(stream) => {
                headers.remove(header::UPGRADE);
                if let BodyLength::Known(length) = length
                    && (length > 0 || !answered.is_http2())
                {
                    headers.insert(header::CONTENT_LENGTH, HeaderValue::from(length));
                }
                let ended = matches!(length, BodyLength::None | BodyLength::Known(0));
                stream.send_response(status, headers, ended)?;
                if length == BodyLength::Tunnel {
                    answered.become_tunnel();
                    self.upload = Transfer::new(0);
                }
                Ok((keep, length))
            }
        }
    }

    /// Moves the answer, and what is left of the request, until the answer ends.
    fn poll_pass(
        &mut self,
        cx: &mut Context<'_>,
        upstream: &mut Side,
        download: &mut Transfer,
        length: BodyLength,
    ) -> Poll<Passed> {
        let tunnel = length == BodyLength::Tunnel;
        let before = self.upload.bytes + download.bytes;
        let uploading = !self.upload.is_done() && !self.upload_failed;
        if uploading {
            let polled = if tunnel {
                self.upload.poll(cx, self.side, upstream)
            } else {
                self.upload
                    .poll_replayable(cx, self.side, upstream, &mut self.replay)
            };
            match polled {
                Poll::Ready(Err(TransferError::Source(_))) => {
                    return Poll::Ready(Passed::Failed(Cause::DownstreamGone));
                }
                Poll::Ready(Err(_)) if tunnel => {
                    return Poll::Ready(Passed::Failed(Cause::UpstreamTruncated));
                }
                // The upstream takes no more; what it answers still counts.
                Poll::Ready(Err(_)) => self.upload_failed = true,
                _ => {}
            }
        }
        if !download.is_done() {
            match download.poll(cx, upstream, self.side) {
                Poll::Ready(Err(TransferError::Sink(_))) => {
                    return Poll::Ready(Passed::Failed(Cause::DownstreamGone));
                }
                Poll::Ready(Err(_)) => {
                    return Poll::Ready(Passed::Failed(Cause::UpstreamTruncated));
                }
                _ => {}
            }
        }
        let upload_over = self.upload.is_done() || self.upload_failed;
        if download.is_done() && (!tunnel || upload_over) {
            return Poll::Ready(Passed::Whole);
        }
        if self.upload.bytes + download.bytes != before {
            self.progress = Instant::now();
        }
        // Nobody waits for the rest any more: a stream of events, a long poll.
        if !tunnel && self.upload.is_done() && self.side.poll_gone(cx).is_ready() {
            return Poll::Ready(Passed::Failed(Cause::DownstreamGone));
        }
        self.poll_pass_deadline(cx, tunnel).map(Passed::Failed)
    }

    fn poll_pass_deadline(&mut self, cx: &mut Context<'_>, tunnel: bool) -> Poll<Cause> {
        let config = &self.current.listener.config;
        let idle = if tunnel {
            config
                .tcp_idle_timeout
                .map(|timeout| self.progress + timeout)
        } else if self.side.is_stalled() || (self.length_known && !self.upload.awaits_source()) {
            Some(self.progress + config.http.body_idle_timeout)
        } else {
            None
        };
        let deadline = self.deadline.filter(|_| !tunnel);
        self.timer.set(earliest(idle, deadline));
        if self.timer.poll_expired(cx).is_pending() {
            return Poll::Pending;
        }
        Poll::Ready(match deadline {
            Some(deadline) if deadline <= Instant::now() => Cause::RequestTimeout,
            _ if self.side.is_stalled() || tunnel => Cause::DownstreamStalled,
            _ => Cause::UpstreamTruncated,
        })
    }
}
