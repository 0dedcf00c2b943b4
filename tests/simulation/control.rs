//! The control plane: what a controller and the clients' sidecars send each other, late, in order on
//! each stream, and lost with it.

use std::time::Duration;

use weft_config::xds::{DeltaDiscoveryRequest, DeltaDiscoveryResponse};

use super::clock::millis;
use super::plan::Without;
use super::proxy::Proxy;
use super::world::{Event, World};

impl World {
    pub fn controller_dies(&mut self, back_after: Duration) {
        let Some(mut controller) = self.controller.take() else {
            return;
        };
        let waiting: Vec<usize> = (0..self.cluster.pods.len())
            .filter(|pod| controller.give_up(*pod).is_some())
            .collect();
        self.controller_down_at = self.clock.now + back_after;
        for pod in waiting {
            self.told(pod, None);
        }
        for proxy in 0..self.proxies.len() {
            if self.proxies[proxy].stream.is_some() {
                self.proxies[proxy].disconnected(self.clock.now);
                let wait = millis(self.clock.between(100.0, 1_000.0));
                self.clock.after(wait, Event::Connect(proxy));
            }
        }
        self.clock.after(back_after, Event::ControllerUp);
    }

    pub fn cut(&mut self, proxy: usize, back_after: Duration) {
        let Some(stream) = self.proxies[proxy].stream else {
            return;
        };
        self.proxies[proxy].disconnected(self.clock.now);
        let wait = millis(self.clock.between(0.0, 3_000.0));
        self.clock.after(wait, Event::Noticed(stream));
        self.clock.after(back_after, Event::Connect(proxy));
    }

    pub fn connect(&mut self, proxy: usize) {
        if self.proxies[proxy].stream.is_some() {
            return;
        }
        self.proxies[proxy].cut_at = self.clock.now;
        let Some(controller) = &mut self.controller else {
            let wait = millis(self.clock.between(100.0, 800.0));
            return self.clock.after(wait, Event::Connect(proxy));
        };
        self.streams += 1;
        let stream = self.streams;
        controller.connect(stream, &self.proxies[proxy].uid);
        let requests = self.proxies[proxy].connected(stream);
        self.send_up(stream, requests);
    }

    pub fn send_up(&mut self, stream: u64, requests: Vec<DeltaDiscoveryRequest>) {
        for request in requests {
            let wait = self.latency();
            let time = self.in_order(('u', stream), wait);
            self.clock.at(time, Event::Up(stream, request));
        }
    }

    pub fn send_down(&mut self) {
        let Some(controller) = &mut self.controller else {
            return;
        };
        for (stream, response) in controller.responses() {
            let to = |proxy: &Proxy| proxy.stream == Some(stream);
            let Some(proxy) = self.proxies.iter().position(to) else {
                continue;
            };
            let wait = self.latency();
            let time = self.in_order(('d', stream), wait);
            self.clock.at(time, Event::Down(proxy, stream, response));
        }
        self.tell_leavers();
    }

    pub fn down(&mut self, number: usize, stream: u64, response: &DeltaDiscoveryResponse) {
        let now = self.clock.now;
        let proxy = &mut self.proxies[number];
        if proxy.stream != Some(stream) {
            return;
        }
        proxy.receive(response, now);
        if self.without == Without::LateAcknowledgement {
            let early = proxy.acknowledge();
            self.send_up(stream, early);
        }
        self.publish(number);
    }

    pub fn publish(&mut self, number: usize) {
        let now = self.clock.now;
        let proxy = &mut self.proxies[number];
        if !proxy.is_due(now) {
            let due = proxy.rebuild_at.unwrap_or(now);
            let asked = proxy.subscribe_if_connected();
            self.clock.at(due, Event::Publish(number));
            if let Some((stream, requests)) = asked {
                self.send_up(stream, requests);
            }
            return;
        }
        proxy.publish(now);
        self.clock.say(format_args!(
            "{} knows {:?}",
            proxy.uid,
            proxy.endpoints("shop/web:80")
        ));
        let Some(stream) = proxy.stream else { return };
        let mut requests = proxy.acknowledge();
        requests.extend(proxy.subscribe());
        self.send_up(stream, requests);
    }
}
