//! An explanation for people to read.

use std::fmt;

use super::{BackendShare, Decision, Effect, Explanation, HeaderChange, RuleDecision};

impl fmt::Display for Explanation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(f, "{}", self.request)?;
        writeln!(
            f,
            "listener {} (configuration {})",
            self.listener, self.revision
        )?;
        writeln!(f, "candidates, in order of precedence:")?;
        writeln!(f, "{}", self.trace)?;
        match &self.decision {
            Decision::NotFound => write!(f, "answered 404 (gRPC: UNIMPLEMENTED)"),
            Decision::Service { service } => write!(f, "goes to service {service}"),
            Decision::Rule(rule) => write!(f, "{rule}"),
        }
    }
}

impl fmt::Display for RuleDecision {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "taken by route {}, rule {}", self.route, self.rule)?;
        write!(f, "{}", self.effect)?;
        if !matches!(self.effect, Effect::Forward { .. } | Effect::Tunnel) {
            return Ok(());
        }
        for mirror in &self.mirrors {
            let name = name(mirror.service.as_ref(), mirror.invalid.as_ref());
            write!(f, "\n  mirrored to {name} ({:.4} %)", mirror.percent)?;
        }
        if self.backends.iter().all(|backend| backend.weight == 0) {
            return write!(f, "\n  answered 500: the rule has no backend with a weight");
        }
        for backend in &self.backends {
            write!(f, "{backend}")?;
        }
        let limit = |limit: &Option<String>| limit.clone().unwrap_or_else(|| "none".to_owned());
        write!(
            f,
            "\n  timeout {}, for one try {}",
            limit(&self.timeouts.request),
            limit(&self.timeouts.backend_request)
        )?;
        if let Some(retry) = &self.retry {
            write!(
                f,
                "\n  retried up to {} times, at least {} apart, on failed connections, timeouts, codes {:?}, gRPC codes {:?}",
                retry.attempts, retry.backoff, retry.codes, retry.grpc_codes
            )?;
        }
        match &self.session {
            Some(session) => write!(f, "\n  stays with one endpoint by {session}"),
            None => Ok(()),
        }
    }
}

fn name(service: Option<&String>, invalid: Option<&String>) -> String {
    match (service, invalid) {
        (Some(service), _) => format!("service {service}"),
        (None, Some(reason)) => format!("nothing, answered 500 ({reason})"),
        (None, None) => "nothing".to_owned(),
    }
}

impl fmt::Display for BackendShare {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let name = name(self.service.as_ref(), self.invalid.as_ref());
        write!(
            f,
            "\n  to {name}: {:.2} % (weight {})",
            self.percent, self.weight
        )?;
        match &self.effect {
            Some(effect) => write!(f, "{effect}"),
            None => Ok(()),
        }
    }
}

impl fmt::Display for Effect {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Forward {
                host,
                path,
                headers,
                response_headers,
            } => {
                write!(f, "\n  forwarded as {path} with host {host}")?;
                show(f, "request header", headers)?;
                show(f, "response header", response_headers)
            }
            Self::Respond { status, headers } => {
                write!(f, "\n  answered {status} by a filter")?;
                show(f, "header", headers)
            }
            Self::Tunnel => f.write_str("\n  passed through"),
            Self::Failed { reason } => write!(f, "\n  answered 500: {reason}"),
        }
    }
}

fn show(f: &mut fmt::Formatter<'_>, what: &str, changes: &[HeaderChange]) -> fmt::Result {
    for change in changes {
        match &change.value {
            Some(value) => write!(f, "\n    {what} {}: {value}", change.name)?,
            None => write!(f, "\n    {what} {} removed", change.name)?,
        }
    }
    Ok(())
}
