//! Resources one by one: decoded, and tried alone before they are believed. Pure.

use prost::Message;
use weft_config::compile::compile;
use weft_config::snapshot::Endpoint;
use weft_config::wire;

/// The same route on several destinations is one route with several parents.
pub fn add_route(routes: &mut Vec<wire::Route>, route: &wire::Route) {
    let same = |known: &&mut wire::Route| {
        known.kind == route.kind && known.namespace == route.namespace && known.name == route.name
    };
    match routes.iter_mut().find(same) {
        Some(known) if known.rules == route.rules => {
            known.parent_refs.extend(route.parent_refs.iter().cloned());
        }
        // Of another revision: its own, until the others are told too.
        Some(_) => {
            let mut own = route.clone();
            let parent = route.parent_refs.first().map_or("", |parent| &parent.name);
            own.name = format!("{}@{parent}", route.name);
            routes.push(own);
        }
        None => routes.push(route.clone()),
    }
}

pub fn decode<T: Message + Default>(bytes: &[u8]) -> Result<T, String> {
    T::decode(bytes).map_err(|error| format!("cannot be decoded: {error}"))
}

pub fn stub(name: &str) -> wire::Service {
    wire::Service {
        name: name.to_owned(),
        protocol: wire::service::Protocol::Mirror.into(),
        ..Default::default()
    }
}

/// A destination with stand-ins for its services.
pub fn alone(destination: &wire::Destination) -> Result<wire::Config, String> {
    let listener = destination.listener.clone().ok_or("has no listener")?;
    Ok(wire::Config {
        settings: None,
        listeners: vec![listener],
        routes: destination.routes.clone(),
        services: destination.services.iter().map(|name| stub(name)).collect(),
    })
}

pub fn check(config: &wire::Config) -> Result<(), String> {
    compile(config)
        .map(drop)
        .map_err(|errors| errors.to_string())
}

pub fn compile_endpoints(told: &wire::Endpoints) -> Result<Vec<Endpoint>, String> {
    let service = wire::Service {
        endpoints: told.endpoints.clone(),
        ..stub("endpoints")
    };
    let config = wire::Config {
        services: vec![service],
        ..Default::default()
    };
    let snapshot = compile(&config).map_err(|errors| errors.to_string())?;
    let mut services = snapshot.services.into_iter();
    Ok(services
        .next()
        .map_or_else(Vec::new, |service| service.endpoints.clone()))
}
