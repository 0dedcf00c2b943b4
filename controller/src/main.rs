//! `weft-controller`: reads the command line and hands over to the app.

use std::process::ExitCode;

use clap::Parser;
use weft_controller::app;

fn main() -> ExitCode {
    app::run(&app::Args::parse())
}
