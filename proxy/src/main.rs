//! `weft-proxy`: reads the command line and hands over to the app.

use std::process::ExitCode;

use clap::Parser;
use weft_proxy::app;
use weft_proxy::args::CommandLine;

/// Small resident memory that is given back after a burst, and cheap across threads.
#[global_allocator]
static ALLOCATOR: tikv_jemallocator::Jemalloc = tikv_jemallocator::Jemalloc;

fn main() -> ExitCode {
    app::run(&CommandLine::parse())
}
