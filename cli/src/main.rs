//! `weft`: the command line. Owns reading the arguments; each subcommand is a
//! module of its own and says how the process ends.

mod admin;
mod ca;
mod check;
mod cluster;
mod demo;
mod explain;
mod exposition;
mod guard;
mod inject;
mod install;
mod logs;
mod mesh;
mod offline;
mod program;
mod run;
mod status;
mod terminal;
mod token;
mod top;

use std::io::Write;
use std::process::ExitCode;

use clap::{Parser, Subcommand};

const EXAMPLES: &str = "\
Examples:
  weft demo                           an online store in a mesh, for 60 seconds
  weft demo --seconds 90 --rate 300   longer, and three times the load
  weft demo -o json | tail -1         what was sent and lost, for a script
  weft run --help                     one application with its sidecar, step by step
  weft install --apply                into the cluster of your kubeconfig
  weft check && weft status           is all well, and who is connected
  weft top                            success rate, requests a second and latency, live
  weft explain --proxy 127.1.0.1:14020 GET http://catalogue.shop:80/items
                                      what a sidecar would do with a request, and why";

#[derive(Debug, Parser)]
#[command(name = "weft", version, about = "Weft, a service mesh and load balancer", after_help = EXAMPLES)]
struct Arguments {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// An online store in a mesh under load: rolled out, scaled, parts killed, nothing lost
    Demo(demo::Arguments),
    /// One application with its sidecar, which leaves without a lost request
    Run(Box<run::Arguments>),
    /// Who is connected, what is wrong, whether everyone has got everything
    Status(status::Arguments),
    /// Live success rate, requests a second and latency of every service and edge
    Top(top::Arguments),
    /// Weft's objects for a Kubernetes cluster, printed or applied
    Install(Box<install::Install>),
    /// Takes Weft out of a cluster again
    Uninstall(Box<install::Uninstall>),
    /// Is everything there that a mesh needs, and is one that runs well?
    Check(check::Arguments),
    /// What would happen to a request, and why: of a live proxy, or of files
    Explain(explain::Arguments),
    /// What sidecars, or the controller, log in a cluster
    Logs(logs::Arguments),
    /// Manifests with sidecars, as injection would make them: of a file, offline
    Inject(Box<inject::Arguments>),
    /// The certificate authority: what it is, and replacing its root without a restart
    Ca(ca::Arguments),
    /// A join token, by which a sidecar gets its first certificate
    Token(token::Arguments),
    /// Ends the programs of a demo or a `weft run` that was killed before it could
    #[command(hide = true)]
    Guard(guard::Arguments),
}

fn main() -> ExitCode {
    let result = match Arguments::parse().command {
        Command::Demo(arguments) => demo::run(&arguments),
        Command::Run(arguments) => run::run(*arguments),
        Command::Status(arguments) => status::run(&arguments),
        Command::Top(arguments) => top::run(&arguments),
        Command::Install(arguments) => install::install(&arguments),
        Command::Uninstall(arguments) => install::uninstall(&arguments),
        Command::Check(arguments) => check::run(&arguments),
        Command::Explain(arguments) => explain::run(&arguments),
        Command::Logs(arguments) => logs::run(&arguments),
        Command::Inject(arguments) => inject::run(&arguments),
        Command::Ca(arguments) => ca::run(&arguments),
        Command::Token(arguments) => token::run(&arguments),
        Command::Guard(arguments) => guard::run(&arguments),
    };
    result.unwrap_or_else(|error| {
        // A closed standard error leaves nobody to tell.
        let _told = writeln!(std::io::stderr(), "weft: {error:#}");
        ExitCode::FAILURE
    })
}
