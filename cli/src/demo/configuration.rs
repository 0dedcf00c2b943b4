//! The proxy's configuration, written by the demo as its backends come and go.
//! What is written was read by the proxy's own code first.

use std::fs;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};
use weft_config::file;

use super::programs::Service;

/// What the configuration is made from.
#[derive(Debug)]
pub struct Configuration<'a> {
    pub listen: SocketAddr,
    pub admin: SocketAddr,
    pub access_log: PathBuf,
    pub services: &'a [Service],
    /// The endpoints that are to be in rotation.
    pub endpoints: Vec<(Service, SocketAddr)>,
}

impl Configuration<'_> {
    pub fn text(&self) -> String {
        let mut text = format!(
            r#"# Written by `weft demo`, anew for each backend that comes or goes; the proxy reloads it.
settings:
  admin: "{admin}"
  accessLog: {{format: json, path: {log:?}}}
  drain: {{timeout: 10s, quiet: 500ms}}
listeners:
  - {{name: shop, address: "{listen}", protocol: http}}
services:
"#,
            admin = self.admin,
            listen = self.listen,
            log = self.access_log.display().to_string(),
        );
        for service in self.services {
            let (protocol, check) = match service {
                Service::Catalogue | Service::Payment => ("http1", "kind: http, path: /health"),
                Service::Authentication => ("grpc", "kind: grpc"),
            };
            text.push_str(&format!(
                r#"  - name: {name}
    protocol: {protocol}
    connectTimeout: 1s
    healthCheck: {{{check}, interval: 500ms, timeout: 1s, unhealthyThreshold: 2}}
    outlierDetection: {{consecutiveFailures: 3, baseEjectionTime: 2s}}
    endpoints:
"#,
                name = service.name(),
            ));
            for (_, address) in self.endpoints.iter().filter(|(of, _)| of == service) {
                text.push_str(&format!("      - {{address: \"{address}\"}}\n"));
            }
        }
        text.push_str("routes:\n");
        self.services
            .iter()
            .for_each(|service| text.push_str(route(*service)));
        text
    }

    /// Replaces the file in one step, so that nobody reads half of it.
    pub fn write(&self, path: &Path) -> Result<()> {
        let text = self.text();
        file::load(&path.display().to_string(), &text)
            .context("the demo wrote a configuration that the proxy would refuse")?;
        replace(path, &text)
    }
}

pub fn replace(path: &Path, text: &str) -> Result<()> {
    let new = path.with_extension("new");
    fs::write(&new, text).with_context(|| format!("writing {}", new.display()))?;
    fs::rename(&new, path).with_context(|| format!("replacing {}", path.display()))
}

fn route(service: Service) -> &'static str {
    match service {
        Service::Catalogue => {
            r"  - name: catalogue
    parentRefs: [{kind: Listener, name: shop}]
    rules:
      - matches: [{path: {type: PathPrefix, value: /catalogue}, method: GET}]
        backendRefs: [{name: catalogue}]
        timeouts: {request: 4s, backendRequest: 1500ms}
        retry: {codes: [502, 503], attempts: 2, backoff: 10ms}
"
        }
        // A payment is never sent twice: no retry policy. (One that provably was not processed is
        // tried elsewhere all the same.)
        Service::Payment => {
            r"  - name: payment
    parentRefs: [{kind: Listener, name: shop}]
    rules:
      - matches: [{path: {type: PathPrefix, value: /payment}, method: POST}]
        backendRefs: [{name: payment}]
        timeouts: {request: 4s}
"
        }
        Service::Authentication => {
            r"  - name: authentication
    kind: grpc
    parentRefs: [{kind: Listener, name: shop}]
    rules:
      - matches: [{grpcMethod: {service: shop.Authentication}}]
        backendRefs: [{name: authentication}]
        timeouts: {request: 4s}
        retry: {grpcCodes: [unavailable], attempts: 2, backoff: 10ms}
"
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_choice_of_services_is_a_valid_configuration() {
        let all = [
            Service::Catalogue,
            Service::Payment,
            Service::Authentication,
        ];
        let address = "127.0.0.1:18101".parse().unwrap();
        for services in [&all[..], &all[..2], &all[..1]] {
            let configuration = Configuration {
                listen: "127.0.0.1:18080".parse().unwrap(),
                admin: "127.0.0.1:18081".parse().unwrap(),
                access_log: PathBuf::from("/tmp/a \"quoted\" folder/access.log"),
                services,
                endpoints: services.iter().map(|service| (*service, address)).collect(),
            };
            let text = configuration.text();
            if let Err(errors) = file::load("weft.yaml", &text) {
                panic!("{errors}\n{text}");
            }
        }
    }
}
