//! `weft-proxy`: reads the command line and hands over to the app.

use std::process::ExitCode;

use weft_proxy::{app, args};

/// Small resident memory that is given back after a burst, and cheap across threads.
#[global_allocator]
static ALLOCATOR: tikv_jemallocator::Jemalloc = tikv_jemallocator::Jemalloc;

/// Pages that nobody uses go back to the kernel within seconds, by a thread that only that
/// wakes: by itself the allocator does it when a thread allocates, and the control thread
/// of a proxy whose configuration rests does not. (What `malloc_conf` is to jemalloc.)
#[allow(
    unsafe_code,
    reason = "a symbol that jemalloc looks for, and nobody else has"
)]
#[unsafe(export_name = "_rjem_malloc_conf")]
pub static ALLOCATOR_OPTIONS: &[u8; 60] =
    b"background_thread:true,dirty_decay_ms:1000,muzzy_decay_ms:0\0";

fn main() -> ExitCode {
    app::run(&args::parse())
}
