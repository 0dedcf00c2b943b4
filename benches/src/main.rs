//! `hop`: measures one proxy hop end to end, Weft beside its floor and its
//! peers, on one machine in one run. This file owns the command line and leaves
//! the measuring to `run`. The subcommands are the processes that a run
//! starts of itself: the fast upstream, the floor proxy, and what launches both
//! and every peer on their cores.

mod answer;
mod bars;
mod case;
mod figures;
mod floor;
mod load;
mod mesh;
mod options;
mod peers;
mod plot;
mod process;
mod report;
mod run;
mod subjects;
mod upstream;

use std::process::ExitCode;

use clap::{Parser, Subcommand};

use crate::options::Options;

/// What one hop through a proxy costs, beside the floor and the peers.
#[derive(Debug, Parser)]
#[command(name = "hop", args_conflicts_with_subcommands = true)]
struct Cli {
    #[command(subcommand)]
    role: Option<Role>,
    #[command(flatten)]
    options: Options,
}

#[derive(Debug, Subcommand)]
enum Role {
    /// Figures of the mesh that are no request's cost; writes mesh.json.
    Mesh(Box<figures::Options>),
    /// The upstream of every case (a run starts it by itself).
    #[command(hide = true)]
    Upstream(upstream::Ports),
    /// The floor proxy (a run starts it by itself).
    #[command(hide = true)]
    Floor(floor::Options),
    /// A process on a core of its own (a run starts its own so).
    #[command(hide = true)]
    Launch(process::Launch),
}

fn main() -> ExitCode {
    let cli = Cli::parse();
    let result = match cli.role {
        Some(Role::Mesh(options)) => figures::run(&options),
        Some(Role::Upstream(ports)) => upstream::serve(&ports),
        Some(Role::Floor(options)) => floor::serve(&options),
        Some(Role::Launch(launch)) => launch.run(),
        None => run::run(&cli.options),
    };
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("hop: {error:#}");
            ExitCode::FAILURE
        }
    }
}
