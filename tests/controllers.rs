//! Several controllers of one mesh: proxies are spread over them, move when one dies, and lose
//! nothing when a workload leaves that callers at each of them use.

use std::net::SocketAddr;
use std::time::Duration;

use weft_config::status::ProxyStatus;
use weft_tests::load::{Load, Mode};
use weft_tests::mesh::{Mesh, Replica, Sidecar, status_at};
use weft_tests::upstream::Upstream;
use weft_tests::{PATIENCE, eventually_within};

/// `shop/web` with these replicas, and a client at each of two controllers.
struct Shop {
    mesh: Mesh,
    second: Replica,
    replicas: Vec<(Sidecar, Upstream)>,
    clients: [Sidecar; 2],
}

fn shop(names: &[&'static str]) -> Shop {
    let mut mesh = Mesh::start();
    let second = mesh.join();
    let replicas = mesh.replicas(names);
    let first_s = mesh.sidecar("client", &["web.shop:80"]);
    mesh.controllers.reverse();
    let second_s = mesh.sidecar("client", &["web.shop:80"]);
    connected(second.admin, &second_s);
    connected(mesh.admin, &first_s);
    Shop {
        mesh,
        second,
        replicas,
        clients: [first_s, second_s],
    }
}

/// Waits until a sidecar is connected there, and has all there is.
#[track_caller]
fn connected(admin: SocketAddr, sidecar: &Sidecar) {
    connected_within(PATIENCE, admin, sidecar);
}

#[track_caller]
fn connected_within(patience: Duration, admin: SocketAddr, sidecar: &Sidecar) {
    eventually_within(patience, "the sidecar being there", || {
        let status = status_at(admin);
        let mut proxies = status.proxies.iter();
        let found = proxies.find(|proxy| proxy.workload == sidecar.uid)?;
        (found.acknowledged == status.revision).then_some(())
    });
}

impl Shop {
    fn loads(&self) -> Vec<Load> {
        let clients = self.clients.iter().map(|client| client.upstreams[0]);
        let loads: Vec<Load> = clients
            .flat_map(|address| {
                [
                    Load::start(address, Mode::Post, 3),
                    Load::start(address, Mode::ConnectEach, 1),
                ]
            })
            .collect();
        go_on(&loads);
        loads
    }

    /// A replica passes the barrier, and its application is gone at once.
    fn leave(&mut self) -> serde_json::Value {
        let (mut leaving, mut application) = self.replicas.remove(0);
        let left = leaving.drain();
        application.stop();
        drop(application);
        leaving.proxy.program.kill();
        let sidecars: Vec<&Sidecar> = self.replicas.iter().map(|(sidecar, _)| sidecar).collect();
        self.mesh.service("web", &sidecars);
        left
    }
}

impl Shop {
    /// A replica leaves, whom callers at both controllers have used, and nothing is lost.
    fn leave_without_a_loss(&mut self, loads: Vec<Load>) {
        let left = self.leave();
        assert_eq!(left["users"], 2, "{left}");
        assert_eq!(left["acknowledged"], 2, "{left}");
        go_on(&loads);
        for load in loads {
            load.stop().none_lost();
        }
    }
}

fn go_on(loads: &[Load]) {
    for load in loads {
        load.goes_on(50);
    }
}

#[test]
fn who_leaves_tells_the_callers_of_every_controller() {
    let mut shop = shop(&["one", "two", "three"]);
    let loads = shop.loads();
    for _ in 0..2 {
        let left = shop.leave();
        assert_eq!(left["users"], 2, "{left}");
        assert_eq!(left["acknowledged"], 2, "{left}");
        assert_eq!(left["inFlight"], 0, "{left}");
        go_on(&loads);
    }
    for load in loads {
        load.stop().none_lost();
    }
}

#[test]
fn when_a_controller_dies_its_proxies_go_to_the_other_and_lose_nothing() {
    let mut shop = shop(&["one", "two", "three"]);
    let loads = shop.loads();
    shop.second.program.kill();
    connected(shop.mesh.admin, &shop.clients[1]);
    go_on(&loads);
    // The other has been told the same meanwhile, under names of its own: what is gone is gone.
    let left = shop.leave();
    assert_eq!(left["users"], 2, "{left}");
    assert_eq!(left["acknowledged"], 2, "{left}");
    go_on(&loads);
    let known = status_at(shop.mesh.admin);
    let refused = known.proxies.iter().map(|proxy| proxy.refused.len());
    assert_eq!(refused.sum::<usize>(), 0, "{known:#?}");
    for load in loads {
        load.stop().none_lost();
    }
}

#[test]
fn a_controller_that_is_gone_does_not_hold_up_who_leaves() {
    let mut shop = shop(&["one", "two"]);
    let loads = shop.loads();
    shop.mesh.controller.kill();
    connected(shop.second.admin, &shop.clients[0]);
    shop.leave_without_a_loss(loads);
}

/// It still takes connections, as a host does that hangs: nothing ends by itself.
#[test]
fn a_controller_that_hangs_is_left_for_the_other() {
    let mut shop = shop(&["one", "two", "three"]);
    let loads = shop.loads();
    shop.second.program.freeze();
    // It takes a ping without an answer, and what a back-off adds.
    connected_within(3 * PATIENCE, shop.mesh.admin, &shop.clients[1]);
    go_on(&loads);
    shop.leave_without_a_loss(loads);
}

#[test]
fn who_was_driven_from_its_controller_goes_back_to_it() {
    let mut shop = shop(&["one", "two"]);
    let loads = shop.loads();
    shop.second.program.kill();
    connected(shop.mesh.admin, &shop.clients[1]);
    shop.second.restart(&shop.mesh);
    eventually_within(Duration::from_secs(60), "it is back", || {
        let status = status_at(shop.second.admin);
        let own = |proxy: &&ProxyStatus| proxy.workload == shop.clients[1].uid;
        let has_all = status.proxies.iter().find(own)?.acknowledged == status.revision;
        // And the other has let it go, or it would be asked twice about who leaves.
        let left = status_at(shop.mesh.admin)
            .proxies
            .iter()
            .find(own)
            .is_none();
        (has_all && left).then_some(())
    });
    shop.leave_without_a_loss(loads);
}
