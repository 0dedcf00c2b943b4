//! `weft token`: a join token, the proof by which a sidecar gets its first
//! certificate where no Kubernetes can be asked.

use std::io::Write as _;
use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Duration;

use clap::Args;
use weft_config::spiffe::is_workload_uid;
use weft_controller::ca::token;

/// A token is a secret that lies in a file: not for long.
const TTL_MAX: Duration = Duration::from_secs(24 * 3600);

#[derive(Debug, Args)]
pub struct Arguments {
    /// Namespace of the workload.
    #[arg(long, value_name = "NAMESPACE")]
    ns: String,
    /// Its service account.
    #[arg(long, value_name = "NAME", default_value = "default")]
    sa: String,
    /// The one workload (its UID) that may use the token; default: any.
    #[arg(long, value_name = "UID", default_value = "")]
    workload: String,
    /// How long it is good, e.g. 10m; at most 24h.
    #[arg(long, value_name = "DURATION", default_value = "10m")]
    ttl: String,
    /// How often it may be used.
    #[arg(long, value_name = "N", default_value_t = 1)]
    uses: u32,
    /// The controller's certificate authority directory.
    #[arg(long, value_name = "DIR")]
    ca_dir: PathBuf,
}

pub fn run(arguments: &Arguments) -> anyhow::Result<ExitCode> {
    let life = weft_config::duration::parse(&arguments.ttl)
        .map_err(|error| anyhow::anyhow!("--ttl {}: {error}", arguments.ttl))?;
    anyhow::ensure!(
        !life.is_zero() && life <= TTL_MAX,
        "--ttl {}: a token is good for more than nothing and at most 24h",
        arguments.ttl
    );
    anyhow::ensure!(
        arguments.workload.is_empty() || is_workload_uid(&arguments.workload),
        "--workload {}: is no UID: up to 63 lower-case letters, digits and hyphens",
        arguments.workload
    );
    anyhow::ensure!(
        arguments.ca_dir.join("token.key").exists(),
        "--ca-dir {}: holds no token.key; start weft-controller with this --ca-dir first, it makes one",
        arguments.ca_dir.display()
    );
    let who = (
        arguments.ns.as_str(),
        arguments.sa.as_str(),
        arguments.workload.as_str(),
    );
    let token = token::mint(&arguments.ca_dir, who, life, arguments.uses)?;
    writeln!(std::io::stdout(), "{token}")?;
    Ok(ExitCode::SUCCESS)
}
