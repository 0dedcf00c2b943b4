//! `weft-controller`: reads the command line and hands over to the app.

use std::process::ExitCode;

use clap::Parser;
use weft_controller::app;

/// Small resident memory: what a list of all objects took for a moment is given back.
#[global_allocator]
static ALLOCATOR: tikv_jemallocator::Jemalloc = tikv_jemallocator::Jemalloc;

/// By a thread that only that wakes, as in weft-proxy. (What `malloc_conf` is to jemalloc.)
#[allow(
    unsafe_code,
    reason = "a symbol that jemalloc looks for, and nobody else has"
)]
#[unsafe(export_name = "_rjem_malloc_conf")]
pub static ALLOCATOR_OPTIONS: &[u8; 60] =
    b"background_thread:true,dirty_decay_ms:1000,muzzy_decay_ms:0\0";

fn main() -> ExitCode {
    app::run(&app::Args::parse())
}
