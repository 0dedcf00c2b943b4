//! What a stream has yet to be told, in its order.
//!
//! **Invariant:** a controller that is slow to read holds up neither what it sends nor who asks;
//! what we want meanwhile gathers in the store, and is said together.

use std::collections::VecDeque;
use std::time::Duration;

use tokio::time::{Instant, sleep_until, timeout_at};
use weft_config::xds::{DeltaDiscoveryRequest, Node, Status};

use super::store::{Store, Type};
use super::stream::Requests;

/// How long a controller may take to read. One that hears us at a pace of its own takes seconds.
const READ_MAX: Duration = Duration::from_secs(10);
/// Requests that wait; a controller leaves one response of each type unanswered at most.
const WAITING_MAX: usize = 64;
const INVALID_ARGUMENT: i32 = 3;
const STUCK: &str = "the controller does not read what we send";

#[derive(Debug)]
pub struct Outgoing {
    requests: Requests,
    waiting: VecDeque<DeltaDiscoveryRequest>,
    /// When the first of them has waited too long.
    read_by: Option<Instant>,
}

impl Outgoing {
    pub fn new(requests: Requests) -> Self {
        Self {
            requests,
            waiting: VecDeque::new(),
            read_by: None,
        }
    }

    pub fn is_empty(&self) -> bool {
        self.waiting.is_empty()
    }

    /// Says what the store wants, once what was to be said before is. `node`: who we are, which
    /// a stream's first request says.
    pub fn subscribe(&mut self, store: &mut Store, node: &mut Option<Node>) {
        for interest in store.subscriptions() {
            let mut request = interest.request();
            request.node = node.take();
            self.waiting.push_back(request);
        }
    }

    pub fn push(&mut self, request: DeltaDiscoveryRequest) {
        self.waiting.push_back(request);
    }

    /// Sends all that waits; what is wrong if the controller does not take it. May be dropped
    /// and called again.
    pub async fn send(&mut self) -> Result<(), &'static str> {
        if self.waiting.len() > WAITING_MAX {
            return Err(STUCK);
        }
        while !self.waiting.is_empty() {
            let first = Instant::now() + READ_MAX;
            let by = *self.read_by.get_or_insert(first);
            match timeout_at(by, self.requests.reserve()).await {
                Ok(Ok(place)) => {
                    if let Some(request) = self.waiting.pop_front() {
                        place.send(request);
                    }
                    self.read_by = None;
                }
                // The stream has ended: its responses say why.
                Ok(Err(_)) => sleep_until(by).await,
                Err(_) => return Err(STUCK),
            }
        }
        Ok(())
    }
}

/// The answer to a response, of which some resources may be refused.
pub fn acknowledgement(
    kind: Type,
    nonce: String,
    refused: &[(String, String)],
) -> DeltaDiscoveryRequest {
    let problems: Vec<String> = refused
        .iter()
        .map(|(name, problem)| format!("{name}: {problem}"))
        .collect();
    DeltaDiscoveryRequest {
        type_url: kind.url(),
        response_nonce: nonce,
        error_detail: (!problems.is_empty()).then(|| Status {
            code: INVALID_ARGUMENT,
            message: problems.join("\n"),
        }),
        ..Default::default()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use tokio::sync::mpsc;
    use weft_config::snapshot::Destination;

    fn address(number: usize) -> String {
        format!("10.96.{}.{}:80", number / 250, number % 250 + 1)
    }

    /// A turn of the stream for each new destination.
    fn ask(outgoing: &mut Outgoing, store: &mut Store, numbers: std::ops::Range<usize>) {
        for number in numbers {
            store.want(&Destination::parse(&address(number)).unwrap(), false);
            if outgoing.is_empty() {
                outgoing.subscribe(store, &mut None);
            }
            // As far as there is room now.
            let mut sending = std::pin::pin!(outgoing.send());
            let waker = std::task::Waker::noop();
            let _ = sending
                .as_mut()
                .poll(&mut std::task::Context::from_waker(waker));
        }
    }

    #[tokio::test(start_paused = true)]
    async fn a_burst_is_told_whole_however_slowly_it_is_read() {
        let (requests, mut read) = mpsc::channel(4);
        let mut outgoing = Outgoing::new(requests);
        let mut store = Store::new("uid", "td", "10.0.0.9");
        ask(&mut outgoing, &mut store, 0..5000);
        let (mut names, mut count) = (std::collections::BTreeSet::new(), 0);
        while names.len() < 5002 {
            if let Ok(request) = read.try_recv() {
                count += 1;
                names.extend(request.resource_names_subscribe);
                tokio::time::sleep(READ_MAX / 2).await;
            } else if outgoing.is_empty() {
                outgoing.subscribe(&mut store, &mut None);
                assert!(
                    !outgoing.is_empty(),
                    "{} names are lost",
                    5002 - names.len()
                );
            }
            tokio::select! {
                sent = outgoing.send() => assert_eq!(sent, Ok(())),
                () = std::future::ready(()) => {}
            }
        }
        assert!(names.contains(&address(4999)));
        assert!(count < 12, "{count} requests");
    }

    #[tokio::test(start_paused = true)]
    async fn a_controller_that_does_not_read_is_noticed() {
        let (requests, _read) = mpsc::channel(4);
        let mut outgoing = Outgoing::new(requests);
        let mut store = Store::new("uid", "td", "10.0.0.9");
        ask(&mut outgoing, &mut store, 0..100);
        let began = Instant::now();
        // However often something else comes in between.
        let problem = loop {
            let sending = tokio::time::timeout(READ_MAX / 7, outgoing.send());
            if let Ok(sent) = sending.await {
                break sent;
            }
        };
        assert_eq!(problem, Err(STUCK));
        assert_eq!(began.elapsed().as_secs(), READ_MAX.as_secs());
    }
}
