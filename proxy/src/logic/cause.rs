//! What the proxy did with a request and why: the closed set behind the
//! access-log flag, the metric label and the status of an answer of our own.
//!
//! **Invariant:** one exhaustive match each; a new cause cannot be added
//! without saying all three.

use http::StatusCode;

/// How a request ended. `Answered` is the upstream's answer passed on whole;
/// everything else names who or what ended it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Cause {
    Answered,
    /// A filter answered: a redirect or a CORS preflight.
    FilterAnswered,
    /// Malformed or forbidden request (downstream's fault).
    Rejected,
    HeaderTooLarge,
    UriTooLong,
    BodyTooLarge,
    /// The head or body came too slowly.
    RequestSlow,
    NotImplemented,
    VersionUnsupported,
    /// The client went away, or reset the stream, before the answer was whole.
    DownstreamGone,
    /// The client stopped reading.
    DownstreamStalled,
    /// An AuthorizationPolicy, or the workload's default, denies it.
    Denied,
    NoRoute,
    /// The rule has no backend, or its weights are all zero.
    NoBackend,
    InvalidBackend,
    NoEndpoint,
    ConnectFailed,
    ConnectTimeout,
    UpstreamTls,
    /// The connection died before the answer.
    UpstreamReset,
    /// The upstream did not process the request (REFUSED_STREAM, GOAWAY).
    UpstreamRefused,
    /// What came is not a valid answer.
    UpstreamProtocol,
    /// The connection died within the answer.
    UpstreamTruncated,
    TryTimeout,
    RequestTimeout,
    ConnectionsFull,
    PendingFull,
    RequestsFull,
    BudgetSpent,
    Draining,
}

impl Cause {
    pub const ALL: [Self; 30] = [
        Self::Answered,
        Self::FilterAnswered,
        Self::Rejected,
        Self::HeaderTooLarge,
        Self::UriTooLong,
        Self::BodyTooLarge,
        Self::RequestSlow,
        Self::NotImplemented,
        Self::VersionUnsupported,
        Self::DownstreamGone,
        Self::DownstreamStalled,
        Self::Denied,
        Self::NoRoute,
        Self::NoBackend,
        Self::InvalidBackend,
        Self::NoEndpoint,
        Self::ConnectFailed,
        Self::ConnectTimeout,
        Self::UpstreamTls,
        Self::UpstreamReset,
        Self::UpstreamRefused,
        Self::UpstreamProtocol,
        Self::UpstreamTruncated,
        Self::TryTimeout,
        Self::RequestTimeout,
        Self::ConnectionsFull,
        Self::PendingFull,
        Self::RequestsFull,
        Self::BudgetSpent,
        Self::Draining,
    ];

    /// The `cause` label, the access-log flag and the reason in the
    /// `weft-reason` header of an answer of our own.
    pub const fn label(self) -> &'static str {
        match self {
            Self::Answered => "answered",
            Self::FilterAnswered => "filter_answered",
            Self::Rejected => "rejected",
            Self::HeaderTooLarge => "header_too_large",
            Self::UriTooLong => "uri_too_long",
            Self::BodyTooLarge => "body_too_large",
            Self::RequestSlow => "request_slow",
            Self::NotImplemented => "not_implemented",
            Self::VersionUnsupported => "version_unsupported",
            Self::DownstreamGone => "downstream_gone",
            Self::DownstreamStalled => "downstream_stalled",
            Self::Denied => "denied",
            Self::NoRoute => "no_route",
            Self::NoBackend => "no_backend",
            Self::InvalidBackend => "invalid_backend",
            Self::NoEndpoint => "no_endpoint",
            Self::ConnectFailed => "connect_failed",
            Self::ConnectTimeout => "connect_timeout",
            Self::UpstreamTls => "upstream_tls",
            Self::UpstreamReset => "upstream_reset",
            Self::UpstreamRefused => "upstream_refused",
            Self::UpstreamProtocol => "upstream_protocol",
            Self::UpstreamTruncated => "upstream_truncated",
            Self::TryTimeout => "try_timeout",
            Self::RequestTimeout => "request_timeout",
            Self::ConnectionsFull => "connections_full",
            Self::PendingFull => "pending_full",
            Self::RequestsFull => "requests_full",
            Self::BudgetSpent => "budget_spent",
            Self::Draining => "draining",
        }
    }

    /// The status of the answer that the proxy makes itself.
    pub const fn status(self) -> StatusCode {
        match self {
            Self::Answered | Self::FilterAnswered => StatusCode::OK,
            Self::Rejected | Self::DownstreamGone => StatusCode::BAD_REQUEST,
            Self::HeaderTooLarge => StatusCode::REQUEST_HEADER_FIELDS_TOO_LARGE,
            Self::UriTooLong => StatusCode::URI_TOO_LONG,
            Self::BodyTooLarge => StatusCode::PAYLOAD_TOO_LARGE,
            Self::RequestSlow | Self::DownstreamStalled => StatusCode::REQUEST_TIMEOUT,
            Self::NotImplemented => StatusCode::NOT_IMPLEMENTED,
            Self::VersionUnsupported => StatusCode::HTTP_VERSION_NOT_SUPPORTED,
            Self::Denied => StatusCode::FORBIDDEN,
            Self::NoRoute => StatusCode::NOT_FOUND,
            Self::NoBackend | Self::InvalidBackend => StatusCode::INTERNAL_SERVER_ERROR,
            Self::UpstreamReset
            | Self::UpstreamRefused
            | Self::UpstreamProtocol
            | Self::UpstreamTls
            | Self::UpstreamTruncated => StatusCode::BAD_GATEWAY,
            Self::TryTimeout | Self::RequestTimeout => StatusCode::GATEWAY_TIMEOUT,
            Self::NoEndpoint
            | Self::ConnectFailed
            | Self::ConnectTimeout
            | Self::ConnectionsFull
            | Self::PendingFull
            | Self::RequestsFull
            | Self::BudgetSpent
            | Self::Draining => StatusCode::SERVICE_UNAVAILABLE,
        }
    }

    /// The gRPC status of the same (gRPC's HTTP mapping, and Gateway API:
    /// no route is UNIMPLEMENTED, an invalid backend UNAVAILABLE).
    pub const fn grpc_status(self) -> u8 {
        match self {
            Self::Answered | Self::FilterAnswered => 0,
            Self::NoRoute => 12,
            Self::Denied => 7,
            Self::TryTimeout | Self::RequestTimeout => 4,
            Self::DownstreamGone => 1,
            Self::Rejected
            | Self::HeaderTooLarge
            | Self::UriTooLong
            | Self::NotImplemented
            | Self::VersionUnsupported => 13,
            Self::BodyTooLarge => 8,
            Self::RequestSlow | Self::DownstreamStalled => 1,
            Self::NoBackend
            | Self::InvalidBackend
            | Self::UpstreamReset
            | Self::UpstreamRefused
            | Self::UpstreamProtocol
            | Self::UpstreamTls
            | Self::UpstreamTruncated
            | Self::NoEndpoint
            | Self::ConnectFailed
            | Self::ConnectTimeout
            | Self::ConnectionsFull
            | Self::PendingFull
            | Self::RequestsFull
            | Self::BudgetSpent
            | Self::Draining => 14,
        }
    }

    /// Whether the upstream (not the client or the configuration) is to blame;
    /// what outlier detection counts.
    pub const fn is_upstream_failure(self) -> bool {
        matches!(
            self,
            Self::ConnectFailed
                | Self::ConnectTimeout
                | Self::UpstreamTls
                | Self::UpstreamReset
                | Self::UpstreamRefused
                | Self::UpstreamProtocol
                | Self::UpstreamTruncated
                | Self::TryTimeout
        )
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::HashSet;

    #[test]
    fn all_is_complete_and_labels_are_distinct() {
        let labels: HashSet<_> = Cause::ALL.iter().map(|cause| cause.label()).collect();
        assert_eq!(labels.len(), Cause::ALL.len());
        assert!(Cause::ALL.windows(2).all(|pair| pair[0] < pair[1]));
        assert_eq!(Cause::ALL.last(), Some(&Cause::Draining));
    }

    #[test]
    fn own_answers_are_errors() {
        for cause in Cause::ALL.into_iter().skip(2) {
            assert!(cause.status().as_u16() >= 400, "{cause:?}");
            assert_ne!(cause.grpc_status(), 0, "{cause:?}");
        }
    }
}
