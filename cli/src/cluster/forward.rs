//! One request to a port of a pod, as `kubectl port-forward` reaches it: it comes to the pod from
//! loopback, so private pages answer.

use std::time::Duration;

use anyhow::{Context as _, Error, Result, bail};
use http::{Method, StatusCode};
use k8s_openapi::api::core::v1::Pod;
use kube::api::{Api, Portforwarder};
use kube::client::UpgradeConnectionError;
use tokio::time::timeout;

use super::{Cluster, PodName, said};
use crate::admin::{self, Page};

/// Ends its task when it is dropped, also when time is up.
struct Forwarder(Portforwarder);

impl Drop for Forwarder {
    fn drop(&mut self) {
        self.0.abort();
    }
}

impl Cluster {
    /// Asks for `path` and returns its page if the status is a good one.
    pub async fn get(&self, pod: &PodName, port: u16, path: &str, limit: Duration) -> Result<Page> {
        let page = self.ask(&Method::GET, pod, (port, path), limit).await?;
        admin::good(page, || format!("{pod}:{port}{path}"))
    }

    /// Asks, and returns whatever is answered.
    pub async fn ask(
        &self,
        method: &Method,
        pod: &PodName,
        (port, path): (u16, &str),
        limit: Duration,
    ) -> Result<Page> {
        match timeout(limit, self.exchange(method, pod, (port, path))).await {
            Ok(answer) => answer.with_context(|| format!("asking {pod}:{port}{path}")),
            Err(_) => bail!("{pod}:{port}{path} does not answer within {limit:?}"),
        }
    }

    async fn exchange(
        &self,
        method: &Method,
        pod: &PodName,
        (port, path): (u16, &str),
    ) -> Result<Page> {
        let pods = Api::<Pod>::namespaced(self.client.clone(), &pod.namespace);
        let opened = pods.portforward(&pod.name, &[port]).await;
        let mut forwarder = Forwarder(opened.map_err(|error| refused(error, pod))?);
        let stream = forwarder.0.take_stream(port);
        let stream = stream.context("no stream was opened")?;
        let trouble = forwarder.0.take_error(port);
        let trouble = async {
            match trouble {
                Some(trouble) => trouble.await,
                None => None,
            }
        };
        let mut answer = std::pin::pin!(admin::exchange(stream, method, "localhost", path));
        tokio::select! {
            biased;
            answer = &mut answer => answer,
            // Its end without a word is no trouble.
            said = trouble => match said {
                Some(said) => Err(Error::msg(last(&said))),
                None => answer.await,
            },
        }
    }
}

/// Of the kubelet's chain of causes the last one: `dial tcp4 127.0.0.1:14021: connection refused`.
fn last(said: &str) -> String {
    let said = said.trim();
    let short = said.find("dial tcp").and_then(|at| said.get(at..));
    short.unwrap_or(said).to_owned()
}

fn refused(error: kube::Error, pod: &PodName) -> Error {
    let status = match &error {
        kube::Error::UpgradeConnection(UpgradeConnectionError::ProtocolSwitch(status)) => *status,
        _ => return said(error),
    };
    let said = match status {
        StatusCode::FORBIDDEN => format!(
            "no permission: it needs the verbs get and create on pods/portforward in namespace {}; \
             ask for them, or use another --context",
            pod.namespace
        ),
        StatusCode::NOT_FOUND => format!("there is no pod {pod}"),
        StatusCode::UNAUTHORIZED => {
            "the API server does not know this user: log in again, or use another --context"
                .to_owned()
        }
        StatusCode::BAD_REQUEST | StatusCode::INTERNAL_SERVER_ERROR => format!(
            "the API server cannot reach it ({status}): is the pod running? kubectl -n {} describe pod {}",
            pod.namespace, pod.name
        ),
        status => format!("the API server answers {status}"),
    };
    Error::msg(said)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_kubelets_chain_is_cut() {
        let said = "error forwarding port 14021 to pod 0f, uid : failed to execute portforward in network namespace \"/x\": failed to connect to localhost:14021 inside namespace: dial tcp4 127.0.0.1:14021: connect: connection refused\n";
        assert_eq!(
            last(said),
            "dial tcp4 127.0.0.1:14021: connect: connection refused"
        );
        assert_eq!(last("pod is gone"), "pod is gone");
    }
}
