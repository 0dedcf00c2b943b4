//! The sidecar's process: started, awaited, started again when it dies, ended.
//!
//! ```text
//! Starting ──ready──▶ Uncertified ──certificate──▶ Serving
//!    ▲                     └──────── it dies ─────────┤
//!    └─────────────────── back-off ◀──────────────────┘
//! ```
//! One that replaces itself (SIGUSR2) ends too, but its admin port goes on
//! answering, and then there is nothing to start.

use std::convert::Infallible;
use std::future::pending;
use std::io::Write as _;
use std::process::Stdio;
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context as _, Result, bail};
use http::Method;
use rustix::process::Signal;
use serde_json::Value;
use tokio::io::{AsyncRead, AsyncReadExt as _};
use tokio::process::Child;
use tokio::sync::watch;
use tokio::task::{JoinHandle, JoinSet};
use tokio::time::{Instant, sleep, timeout};
use weft_controller::ca::token;

use super::plan::{Plan, Proof};
use super::{configuration, say};
use crate::admin;
use crate::guard::Guard;

/// Without a controller the proxy waits 10 seconds for one before it is ready.
const START_TIMEOUT: Duration = Duration::from_secs(30);
const LOOK_INTERVAL: Duration = Duration::from_millis(50);
const PAGE_TIMEOUT: Duration = Duration::from_secs(2);
/// The proxy's own bound is 15 seconds: the last endpoint of a service waits for
/// another one.
const BARRIER_TIMEOUT: Duration = Duration::from_secs(20);
/// From SIGTERM to SIGKILL; the proxy's `drain.timeout` is 5 seconds.
const END_TIMEOUT: Duration = Duration::from_secs(7);
/// Between a death and the next start: doubled up to the second, and the first
/// again after the third without a death.
const BACKOFF_MIN: Duration = Duration::from_millis(100);
const BACKOFF_MAX: Duration = Duration::from_secs(5);
const BACKOFF_FORGOTTEN: Duration = Duration::from_secs(30);
/// A token's life, and how often there is a new one: a sidecar whose certificate
/// has expired needs one that is good.
const TOKEN_LIFE: Duration = Duration::from_secs(600);
const TOKEN_INTERVAL: Duration = Duration::from_secs(300);
/// A longer line of its log is cut.
const LINE_BYTES_MAX: usize = 16 * 1024;
/// What a process said at its end is on its way within this.
const LAST_WORDS: Duration = Duration::from_millis(200);

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum State {
    Starting,
    /// Ready, and lets nobody in.
    Uncertified,
    Serving,
}

#[derive(Debug)]
pub struct Sidecar {
    plan: Arc<Plan>,
    state: watch::Receiver<State>,
    ending: watch::Sender<bool>,
    keeper: JoinHandle<Result<()>>,
}

impl Sidecar {
    pub fn start(plan: Arc<Plan>, group: Guard) -> Self {
        let (said, state) = watch::channel(State::Starting);
        let (ending, asked) = watch::channel(false);
        let keeper = Keeper {
            plan: Arc::clone(&plan),
            group,
            state: said,
            ending: asked,
            logs: JoinSet::new(),
        };
        Self {
            plan,
            state,
            ending,
            keeper: tokio::spawn(keeper.keep()),
        }
    }

    /// Waits for its first start.
    pub async fn ready(&mut self) -> Result<()> {
        let ready = self.state.wait_for(|state| *state != State::Starting);
        match timeout(START_TIMEOUT, ready).await {
            Ok(Ok(_)) => Ok(()),
            // The keeper has ended: the first start failed.
            Ok(Err(_)) => (&mut self.keeper).await?,
            Err(_) => bail!(
                "the sidecar is not ready within {START_TIMEOUT:?}: http://{}/ready does not answer 200",
                self.plan.admin
            ),
        }
    }

    pub fn is_serving(&self) -> bool {
        *self.state.borrow() == State::Serving
    }

    /// Passes the drain barrier; what came of it, in words.
    pub async fn leave(&self) -> Result<String> {
        let begun = Instant::now();
        let page = admin::ask(&Method::POST, self.plan.admin, "/drain", BARRIER_TIMEOUT).await?;
        if !page.status.is_success() {
            bail!(
                "the sidecar answers {}: {}",
                page.status,
                page.text().trim()
            );
        }
        let said: Value = serde_json::from_slice(&page.body).context("what the sidecar answers")?;
        let number = |name: &str| said.get(name).and_then(Value::as_u64);
        let callers = match (number("acknowledged"), number("users")) {
            (Some(acknowledged), Some(users)) => {
                format!("{acknowledged} of {users} callers have acknowledged")
            }
            _ => "no controller, so it waited for quiet".to_owned(),
        };
        let in_flight = number("inFlight").unwrap_or_default();
        let took = begun.elapsed().as_secs_f64();
        Ok(format!(
            "the drain barrier: {callers}, {in_flight} in flight, after {took:.2} s"
        ))
    }

    /// Ends it, within a bound.
    pub async fn end(mut self) {
        self.ending.send_replace(true);
        // An error: it has ended, and what for is told already.
        let _ended = timeout(END_TIMEOUT * 2, &mut self.keeper).await;
        self.keeper.abort();
    }
}

/// Owns the process.
struct Keeper {
    plan: Arc<Plan>,
    group: Guard,
    state: watch::Sender<State>,
    ending: watch::Receiver<bool>,
    logs: JoinSet<()>,
}

impl Keeper {
    /// Until it is asked to end. An error: the first one did not become ready.
    async fn keep(mut self) -> Result<()> {
        let file = self.plan.private.join("weft.yaml");
        std::fs::write(&file, configuration::text(&self.plan)).context("its configuration")?;
        let mut backoff = BACKOFF_MIN;
        let mut was_ready = false;
        loop {
            let begun = Instant::now();
            let Some(how) = self.attend().await? else {
                return Ok(());
            };
            was_ready |= *self.state.borrow() != State::Starting;
            if !was_ready {
                bail!("the sidecar {how}");
            }
            self.state.send_replace(State::Starting);
            if begun.elapsed() > BACKOFF_FORGOTTEN {
                backoff = BACKOFF_MIN;
            }
            say(&format!(
                "the sidecar {how}; the application goes on, the next sidecar starts in {backoff:?}"
            ));
            tokio::select! {
                () = sleep(backoff) => {}
                () = asked(&mut self.ending) => return Ok(()),
            }
            backoff = (backoff * 2).min(BACKOFF_MAX);
        }
    }

    /// One process from its start to its end; how it ended, or none if it was asked to.
    async fn attend(&mut self) -> Result<Option<String>> {
        mint(&self.plan)?;
        let mut child = self.spawn()?;
        let (plan, state) = (&self.plan, &self.state);
        let ended = tokio::select! {
            ended = child.wait() => ended?,
            never = observe(plan, state) => match never {},
            never = keep_token(plan) => match never {},
            () = asked(&mut self.ending) => {
                self.group.signal(Signal::TERM)?;
                if timeout(END_TIMEOUT, child.wait()).await.is_err() {
                    say(&format!("the sidecar still runs {END_TIMEOUT:?} after SIGTERM: SIGKILL"));
                }
                return Ok(None);
            }
        };
        if ended.success() && is_ready(plan).await {
            say("the sidecar has replaced itself");
            tokio::select! {
                () = until_silent(plan) => {}
                never = keep_token(plan) => match never {},
                () = asked(&mut self.ending) => {
                    self.group.signal(Signal::TERM)?;
                    let _silent = timeout(END_TIMEOUT, until_silent(plan)).await;
                    return Ok(None);
                }
            }
        }
        let last = async { while self.logs.join_next().await.is_some() {} };
        let _said = timeout(LAST_WORDS, last).await;
        Ok(Some(format!("has ended ({ended})")))
    }

    fn spawn(&mut self) -> Result<Child> {
        let plan = &self.plan;
        let mut child = tokio::process::Command::new(&plan.proxy)
            .arg("--config")
            .arg(plan.private.join("weft.yaml"))
            .args(["--log-level", &plan.arguments.log_level])
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::piped())
            .process_group(self.group.group())
            .spawn()
            .with_context(|| format!("starting {}", plan.proxy.display()))?;
        while self.logs.try_join_next().is_some() {}
        if let Some(log) = child.stderr.take() {
            self.logs.spawn(pass_on(log));
        }
        Ok(child)
    }
}

/// Until it is to end, or its owner has gone.
async fn asked(ending: &mut watch::Receiver<bool>) {
    let _gone = ending.wait_for(|ending| *ending).await.is_err();
}

/// Says how it stands until it serves, and then waits for ever.
async fn observe(plan: &Plan, state: &watch::Sender<State>) -> Infallible {
    while !is_ready(plan).await {
        sleep(LOOK_INTERVAL).await;
    }
    let at = (plan.inbound(), plan.admin);
    say(&format!(
        "sidecar of {plan} is ready: mTLS at {}, admin at http://{}",
        at.0, at.1
    ));
    let mut told = false;
    while let Some(problem) = uncertified(plan).await {
        state.send_replace(State::Uncertified);
        if !told {
            say(&format!(
                "the sidecar has no certificate, and lets nobody in: {problem}"
            ));
            told = true;
        }
        sleep(LOOK_INTERVAL * 10).await;
    }
    if told {
        say("the sidecar has its certificate");
    }
    state.send_replace(State::Serving);
    pending().await
}

async fn is_ready(plan: &Plan) -> bool {
    admin::get(plan.admin, "/ready", PAGE_TIMEOUT).await.is_ok()
}

async fn until_silent(plan: &Plan) {
    while is_ready(plan).await {
        sleep(LOOK_INTERVAL * 10).await;
    }
}

/// Why it has no certificate; none: it has one.
async fn uncertified(plan: &Plan) -> Option<String> {
    let page = admin::get(plan.admin, "/mesh", PAGE_TIMEOUT).await;
    let said: Value = match page.and_then(|page| Ok(serde_json::from_slice(&page.body)?)) {
        Ok(said) => said,
        Err(error) => return Some(format!("{error:#}")),
    };
    if said
        .get("certificateExpiresInSeconds")
        .is_some_and(Value::is_u64)
    {
        return None;
    }
    let problem = said.get("problem").and_then(Value::as_str);
    Some(
        problem
            .unwrap_or("no controller has answered yet")
            .to_owned(),
    )
}

/// A token of our own making, where we are to make them.
fn mint(plan: &Plan) -> Result<()> {
    let Proof::Authority(directory) = &plan.proof else {
        return Ok(());
    };
    let arguments = &plan.arguments;
    let who = (
        arguments.namespace.as_str(),
        arguments.service_account.as_str(),
        plan.uid.as_str(),
    );
    let token = token::mint(directory, who, TOKEN_LIFE, 1).context("making a token (--ca-dir)")?;
    std::fs::write(configuration::token_file(&plan.private), token).context("writing the token")
}

async fn keep_token(plan: &Plan) -> Infallible {
    loop {
        sleep(TOKEN_INTERVAL).await;
        if let Err(error) = mint(plan) {
            say(&format!("{error:#}"));
        }
    }
}

/// Copies its log, each line marked as its.
async fn pass_on(mut log: impl AsyncRead + Unpin) {
    let mut bytes = Vec::new();
    while matches!(log.read_buf(&mut bytes).await, Ok(1..)) {
        while let Some(end) = bytes.iter().position(|byte| *byte == b'\n') {
            let line: Vec<u8> = bytes.drain(..=end).collect();
            tell(&line);
        }
        if bytes.len() > LINE_BYTES_MAX {
            tell(&bytes);
            bytes.clear();
        }
    }
    if !bytes.is_empty() {
        tell(&bytes);
    }
}

fn tell(line: &[u8]) {
    let line = String::from_utf8_lossy(line);
    // A closed standard error leaves nobody to tell.
    let _told = writeln!(std::io::stderr(), "sidecar: {}", line.trim_end());
}
