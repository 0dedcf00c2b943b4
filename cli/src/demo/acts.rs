//! The acts: what is done to the store while it serves.

use std::time::Duration;

use anyhow::{Context, Result, ensure};
use bytes::Bytes;
use http::{Request, StatusCode};
use http_body_util::Full;
use tokio::time::sleep;

use super::board::{Life, Tone};
use super::load::Http1;
use super::manifests;
use super::programs::Service;
use super::replica::Role;
use super::stage::Stage;
use super::timeline::Act;

/// How many replicas scaling out adds.
const SCALED: usize = 2;
/// Shares of the canary, in percent.
const CANARY_SHARES: [u32; 3] = [20, 50, 100];
const OLD: u32 = 1;
const NEW: u32 = 2;
const CANARY: u32 = 3;
/// The controller has read what is written within this.
const READ_TIME: Duration = Duration::from_millis(300);

impl Stage {
    /// Does one act; `pause` is for those who watch.
    pub async fn perform(&mut self, act: Act, pause: Duration) -> Result<()> {
        match act {
            Act::Stranger => self.stranger().await,
            Act::RollOut => self.roll_out(pause).await,
            Act::ScaleOut => self.scale_out().await,
            Act::ScaleIn => self.scale_in().await,
            Act::Canary => self.canary(pause).await,
            Act::Crash => self.crash(pause).await,
            Act::Outage => self.outage(pause).await,
            Act::HandOver => self.hand_over().await,
            Act::Mistake => self.mistake(pause).await,
        }
    }

    fn tell(&self, tone: Tone, text: impl Into<String>) {
        self.board.tell(tone, text);
    }

    /// The gateway tries to be paid.
    async fn stranger(&mut self) -> Result<()> {
        self.board
            .doing("the gateway tries to pay, which only the frontend may");
        let way = manifests::way(&self.subnet, Service::Payment);
        let request = Request::post("/pay").body(Full::from(Bytes::from("{\"order\": 0}")))?;
        let answer = Http1::new(way, false).call(request).await;
        let answer = answer.map_err(|loss| anyhow::anyhow!("asking {way}: {}", loss.0))?;
        let policy = answer.headers.get("weft-policy");
        let policy = policy
            .and_then(|policy| policy.to_str().ok())
            .unwrap_or_default();
        ensure!(
            answer.status == StatusCode::FORBIDDEN,
            "the gateway may pay, which only the frontend should: status {}",
            answer.status
        );
        let text = format!("the gateway asks for a payment by itself: 403, {policy}");
        self.tell(Tone::Good, text);
        Ok(())
    }

    /// A new version of everything: replica by replica, the new one first.
    async fn roll_out(&mut self, pause: Duration) -> Result<()> {
        for service in [
            Service::Payment,
            Service::Authentication,
            Service::Catalogue,
            Service::Frontend,
        ] {
            for old in self.names(service) {
                let doing = format!("rollout of {}: {old} (v{OLD}) is replaced", service.name());
                self.board.doing(doing);
                let new = self.add(Role::new(service, NEW)).await?;
                self.leave(&old).await?;
                let text = format!("{new} (v{NEW}) serves, {old} (v{OLD}) has left");
                self.tell(Tone::Plain, text);
                sleep(pause / 3).await;
            }
        }
        self.tell(
            Tone::Good,
            format!("rollout complete: all of the store is v{NEW}"),
        );
        Ok(())
    }

    async fn scale_out(&mut self) -> Result<()> {
        let before = self.names(Service::Catalogue).len();
        self.board.doing(format!(
            "scaling catalogue out, {before} to {}",
            before + SCALED
        ));
        let mut addresses = Vec::new();
        for _ in 0..SCALED {
            addresses.push(self.start(Role::new(Service::Catalogue, NEW))?);
        }
        for address in addresses {
            self.await_rotation(address).await?;
        }
        let text = format!(
            "catalogue is scaled out, from {before} replicas to {}",
            before + SCALED
        );
        self.tell(Tone::Good, text);
        Ok(())
    }

    async fn scale_in(&mut self) -> Result<()> {
        let names = self.names(Service::Catalogue);
        let kept = names.len().saturating_sub(SCALED);
        self.board
            .doing(format!("scaling catalogue in, {} to {kept}", names.len()));
        for name in names.iter().take(SCALED) {
            self.leave(name).await?;
        }
        let text = format!(
            "catalogue is scaled in, from {} replicas to {kept}",
            names.len()
        );
        self.tell(Tone::Good, text);
        Ok(())
    }

    /// The catalogue's next version gets a growing share of the requests, and then none.
    async fn canary(&mut self, pause: Duration) -> Result<()> {
        let role = Role {
            canary: true,
            ..Role::new(Service::Catalogue, CANARY)
        };
        self.board
            .doing(format!("canary: starting catalogue v{CANARY}"));
        // With a share of nothing callers get to know it, and can be asked for it.
        self.write(manifests::ROUTE, &manifests::canary(0))?;
        let name = self.add(role).await?;
        for share in CANARY_SHARES {
            self.board.doing(format!(
                "canary: {share} % of the catalogue's requests to v{CANARY}"
            ));
            self.write(manifests::ROUTE, &manifests::canary(share))?;
            self.settled().await?;
            let text = format!("HTTPRoute canary: {share} % of catalogue to v{CANARY}");
            self.tell(Tone::Plain, text);
            sleep(pause).await;
        }
        self.board
            .doing("canary: the route is removed, its replica leaves");
        self.remove(manifests::ROUTE)?;
        self.settled().await?;
        self.leave(&name).await?;
        self.tell(Tone::Good, "the route is removed, and the canary has left");
        Ok(())
    }

    /// An application is killed. One that only gets GETs, and so can be asked twice.
    async fn crash(&mut self, pause: Duration) -> Result<()> {
        let names = self.names(Service::Catalogue);
        let name = names.first().context("catalogue has replicas")?;
        self.board
            .doing(format!("SIGKILL to the application of {name}"));
        let mut replica = self.take(name)?;
        let pid = replica.kill_application()?;
        self.board.set_life(replica.application(), Life::Killed);
        let text = format!("SIGKILL to {name}'s application (pid {pid}), in mid-work");
        self.tell(Tone::Bad, text);
        let why = "  (it takes GETs only: a payment that is half done nobody can save)";
        self.tell(Tone::Plain, why);
        replica.ended().await?;
        sleep(pause).await;
        let new = self.add(Role::new(Service::Catalogue, NEW)).await?;
        self.tell(Tone::Good, format!("{new} has taken its place"));
        Ok(())
    }

    /// The controller is killed, a replica leaves without it, and it is started again.
    async fn outage(&mut self, pause: Duration) -> Result<()> {
        let pid = self.controller.kill().await?;
        self.board.doing("the controller is dead");
        self.tell(Tone::Bad, format!("SIGKILL to weft-controller (pid {pid})"));
        sleep(pause).await;
        let names = self.names(Service::Payment);
        let name = names.first().context("payment has replicas")?;
        self.board
            .doing(format!("the controller is dead, and {name} leaves"));
        self.leave(name).await?;
        let text = format!("without a controller {name} has left, by the word of its own answers");
        self.tell(Tone::Good, text);
        sleep(pause).await;
        self.board.doing("the controller is started again");
        let pid = self.controller.start(&self.group).await?;
        let count = self.replicas.len() + 1;
        let back = |status: &weft_config::status::Status| status.proxies.len() >= count;
        self.controller
            .awaits("all sidecars are back", back)
            .await?;
        let text =
            format!("weft-controller runs again (pid {pid}), and all {count} sidecars are back");
        self.tell(Tone::Good, text);
        let new = self.add(Role::new(Service::Payment, NEW)).await?;
        self.tell(Tone::Plain, format!("{new} serves"));
        Ok(())
    }

    /// The gateway replaces itself.
    async fn hand_over(&mut self) -> Result<()> {
        let gateway = self.gateway.as_mut().context("the gateway runs")?;
        let old = gateway.pid();
        self.board
            .doing(format!("the gateway (pid {old}) replaces itself"));
        let new = gateway.begin_handover().await?;
        let text = format!("SIGUSR2 to the gateway (pid {old}): its successor ({new}) listens");
        self.board.tell(Tone::Plain, text);
        let took = gateway.end_handover(new).await?.as_secs_f64();
        let text = format!("the old gateway has answered all it had, and left after {took:.2} s");
        self.tell(Tone::Good, text);
        Ok(())
    }

    /// A manifest with a mistake, and after a while the right one again.
    async fn mistake(&mut self, pause: Duration) -> Result<()> {
        self.board
            .doing("a manifest with a mistake is in the controller's directory");
        let right = manifests::store();
        self.write(
            manifests::STORE,
            &right.replacen("methods: [POST]", "methodes: [POST]", 1),
        )?;
        let told = self
            .controller
            .awaits("a manifest is wrong", |status| !status.errors.is_empty());
        let told = told.await?;
        let error = told.errors.first().context("there is one")?;
        self.tell(
            Tone::Plain,
            "a manifest with a mistake is written (methodes: [POST])",
        );
        let text = format!(
            "the controller keeps the last good one: {} {}: {}",
            error.object, error.field, error.message
        );
        self.tell(Tone::Good, text);
        sleep(pause).await;
        self.write(manifests::STORE, &right)?;
        let mended = self
            .controller
            .awaits("all manifests are right", |status| status.errors.is_empty());
        mended.await?;
        self.tell(Tone::Plain, "the mistake is mended");
        Ok(())
    }

    /// Waits until every sidecar has acknowledged what the controller has read.
    async fn settled(&self) -> Result<()> {
        sleep(READ_TIME).await;
        let settled = |status: &weft_config::status::Status| {
            let mut proxies = status.proxies.iter();
            proxies.all(|proxy| proxy.acknowledged >= status.revision)
        };
        self.controller
            .awaits("all sidecars know the route", settled)
            .await?;
        Ok(())
    }
}
