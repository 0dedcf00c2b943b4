//! From the wire form to a [`Snapshot`]: every default of the schema is filled
//! in, every reference resolved, every rule put in its order, and every mistake
//! reported. Pure: files (certificates) are named here and opened by the proxy.
//!
//! **Invariant:** a snapshot is made only of a configuration without mistakes.

pub(crate) mod at;
mod attach;
mod authorization;
mod balancer;
mod condition;
mod filter;
mod health;
mod hostname;
mod listener;
mod mesh;
mod order;
mod path;
mod pattern;
mod route;
mod rule;
mod service;
mod settings;
pub mod timestamp;

use std::cell::RefCell;
use std::collections::HashMap;
use std::sync::Arc;

use prost::Message as _;

use crate::error::Errors;
use crate::nearest::suggestion;
use crate::snapshot::{ServiceId, Snapshot};
use crate::wire;
use at::{At, Found};
pub(crate) use hostname::HOSTNAME_BYTES_MAX;
#[cfg(test)]
pub(crate) use path::prefix as path_prefix;

/// Largest weight, Gateway API's own (`HTTPBackendRef.weight`).
const WEIGHT_MAX: u32 = 1_000_000;

/// Compiles a configuration, or says everything that is wrong with it.
pub fn compile(config: &wire::Config) -> Result<Snapshot, Errors> {
    let found: Found = RefCell::default();
    let snapshot = compile_into(config, &found);
    let list = found.into_inner();
    match snapshot {
        Some(snapshot) if list.is_empty() => Ok(snapshot),
        _ => Err(Errors {
            source_name: String::new(),
            list,
        }),
    }
}

/// Compiles what a controller sent: [`wire::Config`] as protobuf bytes.
pub fn from_bytes(bytes: &[u8]) -> Result<Snapshot, Errors> {
    let config = wire::Config::decode(bytes)
        .map_err(|error| Errors::one("", format!("is not a weft.v1.Config: {error}")))?;
    compile(&config)
}

/// As [`compile`], adding to mistakes that were found before. `None` only with a
/// mistake reported.
pub(crate) fn compile_into(config: &wire::Config, found: &Found) -> Option<Snapshot> {
    let root = At::root(found);
    let names = ServiceNames::new(&root.field("services"), &config.services);
    let settings = settings::compile(&root.field("settings"), config.settings.as_ref());

    let services_at = root.field("services");
    let services = at::each(&services_at, &config.services, |at, service| {
        service::compile(at, service, &names)
    });

    let listeners_at = root.field("listeners");
    let mut listeners = listener::compile_all(&listeners_at, &config.listeners, &names);
    let routes_at = root.field("routes");
    let attached = route::compile_all(&routes_at, config, &names);
    attach::attach(&routes_at, attached, &mut listeners);
    let admin = settings.as_ref().map(|settings| settings.admin);
    let mesh = config.settings.as_ref().is_some_and(|s| s.mesh.is_some());
    listener::check_all(&listeners_at, &listeners, admin, mesh);

    Some(Snapshot {
        settings: settings?,
        listeners: listeners
            .into_iter()
            .map(|draft| Arc::new(draft.listener))
            .collect(),
        services: services.into_iter().map(Arc::new).collect(),
        revision: revision(config),
    })
}

/// The first 12 hex digits of the FNV-1a hash of the wire form: short, and the
/// same in every build and on every machine, which `std`'s hashers do not
/// promise. It tells revisions apart; it proves nothing.
fn revision(config: &wire::Config) -> String {
    let hash = config
        .encode_to_vec()
        .iter()
        .fold(0xcbf2_9ce4_8422_2325_u64, |hash, byte| {
            (hash ^ u64::from(*byte)).wrapping_mul(0x0000_0100_0000_01b3)
        });
    format!("{hash:016x}")[..12].to_owned()
}

/// What a reference may name.
pub(crate) struct ServiceNames<'a> {
    by_name: HashMap<&'a str, (ServiceId, &'a wire::Service)>,
}

impl<'a> ServiceNames<'a> {
    /// Also reports services without a name and those that share one.
    fn new(at: &At<'_>, services: &'a [wire::Service]) -> Self {
        let mut by_name = HashMap::with_capacity(services.len());
        for (index, service) in services.iter().enumerate() {
            let at = at.index(index);
            let at = at.field("name");
            let Some(name) = at.required(&service.name) else {
                continue;
            };
            let id = ServiceId(u32::try_from(index).unwrap_or(u32::MAX));
            if let Some((first, _)) = by_name.get(name) {
                let ServiceId(first) = *first;
                at.error(format!(
                    "\"{name}\" is already the name of services[{first}]"
                ));
            } else {
                by_name.insert(name, (id, service));
            }
        }
        Self { by_name }
    }

    fn id(&self, name: &str) -> Option<ServiceId> {
        self.by_name.get(name).map(|(id, _)| *id)
    }

    /// The service that a reference names, or a report of what is near.
    fn resolve(&self, at: &At<'_>, name: &str) -> Option<(ServiceId, &'a wire::Service)> {
        let found = self.by_name.get(at.required(name)?).copied();
        if found.is_none() {
            at.error(format!(
                "no service is named \"{name}\"{}",
                suggestion(name, self.by_name.keys().copied())
            ));
        }
        found
    }
}

#[cfg(test)]
mod tests;
