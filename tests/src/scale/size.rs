//! How large a run is, and who uses what. Pure.

use std::net::Ipv4Addr;

/// Services' ports, and where their pods listen.
pub const PORT: u16 = 80;
pub const POD_PORT: u16 = 8080;
/// The service that everybody uses.
pub const COMMON: usize = 0;
/// The first pod's address; no route leads there, and nobody dials it.
const FIRST_ADDRESS: u32 = u32::from_be_bytes([10, 128, 0, 1]);
/// From which addresses proxies connect: each from its own, as pods do.
const FIRST_LOOPBACK: u32 = u32::from_be_bytes([127, 1, 0, 1]);
/// Pods of a node, as kubelets have them by default.
const PODS_OF_NODE: usize = 110;

#[derive(Clone, Copy, Debug)]
pub struct Size {
    pub proxies: usize,
    pub services: usize,
    /// Endpoints of each service, each with its Pod.
    pub endpoints: usize,
    /// Services that each proxy uses, `COMMON` among them.
    pub uses: usize,
    pub namespaces: usize,
    /// Pods are bound to Nodes; else to none.
    pub has_nodes: bool,
}

impl Size {
    pub fn pods(&self) -> usize {
        self.services * self.endpoints
    }

    pub fn nodes(&self) -> usize {
        match self.has_nodes {
            true => self.pods().div_ceil(PODS_OF_NODE),
            false => 0,
        }
    }

    /// Which pod's proxy this is: service and endpoint.
    pub fn pod_of(&self, proxy: usize) -> (usize, usize) {
        (
            proxy % self.services,
            proxy / self.services % self.endpoints,
        )
    }

    /// The services that a proxy uses, each once. All but the common one have about as many users.
    pub fn used_by(&self, proxy: usize) -> Vec<usize> {
        let others = self.services - 1;
        let first = proxy * (self.uses - 1);
        let further = (0..self.uses - 1).map(|step| 1 + (first + step) % others);
        std::iter::once(COMMON).chain(further).collect()
    }

    /// How many proxies use each service.
    pub fn users(&self) -> Vec<usize> {
        let mut users = vec![0; self.services];
        for proxy in 0..self.proxies {
            for service in self.used_by(proxy) {
                users[service] += 1;
            }
        }
        users
    }

    /// An address that no other pod has; `generation`: of the pod's successors.
    pub fn address(&self, service: usize, endpoint: usize, generation: usize) -> Ipv4Addr {
        let pod = service * self.endpoints + endpoint + generation * self.pods();
        Ipv4Addr::from_bits(FIRST_ADDRESS + u32::try_from(pod).unwrap_or(u32::MAX >> 8))
    }
}

pub fn loopback(proxy: usize) -> Ipv4Addr {
    Ipv4Addr::from_bits(FIRST_LOOPBACK + u32::try_from(proxy).unwrap_or(0))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_uses_as_many_as_it_should_and_none_twice() {
        for (proxies, services, uses) in [(1000, 2000, 20), (60, 120, 20), (50, 30, 20)] {
            let size = Size {
                proxies,
                services,
                endpoints: 3,
                uses,
                namespaces: 2,
                has_nodes: false,
            };
            for proxy in 0..proxies {
                let mut used = size.used_by(proxy);
                assert!(used.contains(&COMMON));
                used.sort_unstable();
                used.dedup();
                assert_eq!(used.len(), uses, "{used:?}");
            }
            let users = size.users();
            assert_eq!(users[COMMON], proxies);
            let (least, most) = (users[1..].iter().min(), users[1..].iter().max());
            assert!(most.unwrap() - least.unwrap() <= 1, "{users:?}");
        }
    }
}
