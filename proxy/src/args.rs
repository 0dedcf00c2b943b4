//! The command line.

use std::net::SocketAddr;
use std::path::PathBuf;

use clap::error::{ContextKind, ContextValue};
use clap::{Args as Arguments, CommandFactory as _, Parser, Subcommand, ValueEnum};

use crate::capture::Capture;
use crate::sidecar::Sidecar;
use crate::telemetry::log::LogFormat;

const EXAMPLES: &str = "\
Examples:
  weft-proxy --config weft.yaml                 run
  weft-proxy --config weft.yaml --check         validate; every mistake on a line, exit 1
  weft-proxy --config weft.yaml --explain 'GET http://shop.example/cart' -H 'x-user: 7'
                                                what would happen to this request, and why
  weft-proxy capture --help                     have the kernel hand traffic to a sidecar
  weft-proxy sidecar --help                     run as a pod's sidecar, told by flags

Signals:
  SIGTERM, SIGINT  drain: finish what runs, then exit (a second one: exit now)
  SIGHUP           read the configuration again, reopen the access log
  SIGUSR2          replace this process with a new one of the same binary; no
                   connection is refused (not as the first process of a
                   container: there use --upgrade-socket or a rolling update)

The configuration is also read again whenever the file changes; a bad one is
refused and the last good one stays. State and metrics: http://127.0.0.1:14020/";

/// An L4/L7 load balancer: the data plane of the Weft service mesh.
#[derive(Clone, Debug, Parser)]
#[command(
    name = "weft-proxy",
    version,
    after_help = EXAMPLES,
    args_conflicts_with_subcommands = true,
    subcommand_negates_reqs = true,
    disable_help_subcommand = true
)]
pub struct CommandLine {
    #[command(subcommand)]
    pub command: Option<Command>,

    /// Without a command: how the proxy runs. Then it is there, as `--config` is required.
    #[command(flatten)]
    pub run: Option<Args>,

    #[command(flatten)]
    pub process: ProcessArgs,
}

#[derive(Clone, Debug, Subcommand)]
pub enum Command {
    Capture(Capture),
    Sidecar(Box<Sidecar>),
}

/// How the proxy runs.
#[derive(Clone, Debug, Arguments)]
pub struct Args {
    /// The configuration file (YAML or JSON).
    #[arg(short, long, value_name = "FILE")]
    pub config: PathBuf,

    /// Validate the configuration, open the certificates it names, and exit.
    #[arg(long, conflicts_with = "explain")]
    pub check: bool,

    /// Say what would happen to a request: `[METHOD] URL`.
    #[arg(long, value_name = "REQUEST")]
    pub explain: Option<String>,

    /// A header of the request to explain; may be repeated.
    #[arg(
        short = 'H',
        long = "header",
        value_name = "NAME: VALUE",
        requires = "explain"
    )]
    pub headers: Vec<String>,

    /// The listener that the request to explain comes to; default: the one with the URL's port, or the only one.
    #[arg(long, value_name = "NAME", requires = "explain")]
    pub listener: Option<String>,

    /// How --explain answers.
    #[arg(short, long, value_enum, default_value_t, requires = "explain")]
    pub output: Output,

    /// The admin server's address, over the configuration's settings.admin.
    #[arg(long, value_name = "ADDRESS")]
    pub admin: Option<SocketAddr>,

    /// Worker threads, over the configuration's settings.workers; 0: the CPU quota.
    #[arg(long, value_name = "N")]
    pub workers: Option<usize>,
}

/// What any long-running process of ours takes.
#[derive(Clone, Debug, Arguments)]
pub struct ProcessArgs {
    /// off, error, warn, info, debug, trace, or directives such as `info,weft_proxy::health=debug`.
    #[arg(
        long,
        value_name = "LEVEL",
        env = "WEFT_LOG_LEVEL",
        default_value = "info"
    )]
    pub log_level: String,

    /// How the log is written (to standard error).
    #[arg(long, value_enum, env = "WEFT_LOG_FORMAT", default_value_t)]
    pub log_format: LogFormat,

    /// Take over from the weft-proxy that listens at this path, if one does, and listen there for the next.
    #[arg(long, value_name = "PATH")]
    pub upgrade_socket: Option<PathBuf>,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, ValueEnum)]
pub enum Output {
    #[default]
    Text,
    Json,
}

/// Reads the command line; whoever made a mistake in it is told, and that is the end.
pub fn parse() -> CommandLine {
    CommandLine::try_parse().unwrap_or_else(|error| with_variables(error).exit())
}

/// Names the variable beside each flag that an error is about: in a container nobody
/// has written the flag.
fn with_variables(mut error: clap::Error) -> clap::Error {
    let named = match error.get(ContextKind::InvalidArg) {
        Some(ContextValue::String(named)) => vec![named.clone()],
        Some(ContextValue::Strings(named)) => named.clone(),
        _ => return error,
    };
    let mut line = CommandLine::command();
    line.build();
    let commands = std::iter::once(&line).chain(line.get_subcommands());
    let arguments: Vec<&clap::Arg> = commands.flat_map(clap::Command::get_arguments).collect();
    let mut tips = Vec::new();
    for named in named {
        let flag = named.split_whitespace().next().unwrap_or_default();
        let found = arguments.iter().find(|argument| {
            let long = argument.get_long();
            argument.get_env().is_some() && long == flag.strip_prefix("--")
        });
        if let Some(variable) = found.and_then(|argument| argument.get_env()) {
            tips.push(format!("{flag} is also what {} says", variable.display()).into());
        }
    }
    if !tips.is_empty() {
        error.insert(ContextKind::Suggested, ContextValue::StyledStrs(tips));
    }
    error
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(arguments: &[&str]) -> Result<CommandLine, clap::Error> {
        CommandLine::try_parse_from(["weft-proxy"].iter().chain(arguments))
    }

    #[test]
    fn the_command_line_is_consistent() {
        CommandLine::command().debug_assert();
        let line = parse(&["-c", "x", "--explain", "/", "-H", "a: b", "-o", "json"]).unwrap();
        assert!(line.command.is_none());
        assert_eq!(line.run.unwrap().output, Output::Json);
        assert!(parse(&["-c", "x", "-H", "a: b"]).is_err());
        assert!(parse(&[]).is_err(), "--config is required");
        assert!(parse(&["--check"]).is_err(), "--config is required");
    }

    #[test]
    fn what_every_process_takes_goes_before_no_command() {
        let line = parse(&["-c", "x", "--log-level=debug"]).unwrap();
        assert_eq!(line.process.log_level, "debug");
        assert!(parse(&["--log-level=debug", "capture"]).is_err());
        assert!(
            parse(&["--log-level=debug"]).is_err(),
            "--config is missing"
        );
    }

    #[test]
    fn an_error_names_the_variable() {
        for (given, said) in [
            (["sidecar", "--addresses=x"].as_slice(), "WEFT_ADDRESSES"),
            (&["sidecar", "--drain-max=soon"], "WEFT_DRAIN_MAX"),
            (&["sidecar"], "WEFT_CONTROLLERS"),
        ] {
            let error = with_variables(parse(given).unwrap_err()).to_string();
            assert!(error.contains(said), "{error}");
        }
    }

    #[test]
    fn capture_needs_no_configuration() {
        let line = parse(&["capture", "--undo"]).unwrap();
        assert!(line.run.is_none());
        let Some(Command::Capture(capture)) = line.command else {
            panic!("{line:?}");
        };
        assert!(capture.undo);
        assert!(parse(&["-c", "x", "capture"]).is_err());
    }
}
