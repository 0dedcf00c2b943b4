//! Temporary: the data path without the app.
use std::sync::Arc;
use weft_proxy::state::{Clock, Runtime, Shared};
use weft_proxy::worker::{self, Command};
#[global_allocator]
static GLOBAL: mimalloc::MiMalloc = mimalloc::MiMalloc;
fn main() {
    tracing_subscriber::fmt()
        .with_env_filter(tracing_subscriber::EnvFilter::from_default_env())
        .init();
    let text = std::fs::read_to_string(std::env::args().nth(1).unwrap()).unwrap();
    let wire = weft_config::file::parse(&text).unwrap_or_else(|e| panic!("{e}"));
    let snapshot = Arc::new(weft_config::compile::compile(&wire).unwrap_or_else(|e| panic!("{e}")));
    let clock = Clock::start();
    let runtime = Runtime::build(snapshot.clone(), None, clock.now()).unwrap();
    let shared = Arc::new(Shared::new(runtime, clock));
    let handle = worker::spawn(0, shared.clone()).unwrap();
    for l in &snapshot.listeners {
        let socket = std::net::TcpListener::bind(l.address).unwrap();
        handle
            .commands
            .blocking_send(Command::Listen {
                listener: l.name.to_string(),
                socket,
            })
            .unwrap();
    }
    handle.thread.join().unwrap();
}
