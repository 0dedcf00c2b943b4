//! `weft install` and `weft uninstall`: the chart's objects, printed or applied, without helm.

pub mod apply;
pub mod manifests;

use std::process::ExitCode;
use std::time::Duration;

use anyhow::Result;
use serde_json::Value;

use crate::cluster::{Cluster, Options};
use crate::terminal::print;
use manifests::{Choices, kind, objects, yaml};

const INSTALL: &str = "\
Examples:
  weft check --pre                    can Weft be installed here?
  weft install | kubectl apply --server-side -f -
  weft install --apply                the same, and waits until it runs
  weft install --replicas 3 --sidecar memory-limit=128Mi > weft.yaml

The objects are the chart's (charts/weft); `helm install` has more values. Installing again with
other choices, or with another version of weft, is the upgrade.

Exit code: 0; 1 if something is refused or does not become ready; 2 wrong arguments.";

const UNINSTALL: &str = "\
Examples:
  weft uninstall | kubectl delete -f -
  weft uninstall --apply              refuses while pods have sidecars
  weft uninstall --apply --everything also policies with their definitions, the certificate authority
                                      and the namespace

Exit code: 0; 1 if something cannot be deleted; 2 wrong arguments.";

#[derive(Debug, clap::Args)]
#[command(after_help = INSTALL)]
pub struct Install {
    /// Apply, and wait until the controller and the webhook work; without, manifests are printed
    #[arg(long)]
    apply: bool,
    /// Take fields over that others have set: `kubectl scale`, an editor
    #[arg(long, requires = "apply")]
    force_conflicts: bool,
    /// How long to wait
    #[arg(long, value_name = "DURATION", default_value = "3m", value_parser = weft_config::duration::parse)]
    timeout: Duration,
    #[command(flatten)]
    choices: Choices,
    #[command(flatten)]
    cluster: Options,
}

#[derive(Debug, clap::Args)]
#[command(after_help = UNINSTALL)]
pub struct Uninstall {
    /// Delete; without, the manifests of what is to be deleted are printed
    #[arg(long)]
    apply: bool,
    /// Also the definitions of Weft's kinds and with them all policies, the certificate authority and
    /// the namespace
    #[arg(long)]
    everything: bool,
    /// Also while pods have sidecars: they go on, learn nothing new, and their certificates end
    #[arg(long, requires = "apply")]
    force: bool,
    #[command(flatten)]
    cluster: Options,
}

fn block_on<T>(future: impl Future<Output = Result<T>>) -> Result<T> {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()?;
    runtime.block_on(future)
}

pub fn install(arguments: &Install) -> Result<ExitCode> {
    let objects = objects(&arguments.choices, arguments.cluster.namespace())?;
    if !arguments.apply {
        print(&[yaml(&objects)?.trim_end().to_owned()]);
        return Ok(ExitCode::SUCCESS);
    }
    block_on(async {
        let cluster = Cluster::connect(&arguments.cluster).await?;
        apply::install(&cluster, &objects, arguments.force_conflicts).await?;
        apply::ready(&cluster, arguments.timeout).await?;
        eprintln!(
            "Weft is in namespace {}. Next: weft check",
            cluster.namespace
        );
        Ok(ExitCode::SUCCESS)
    })
}

pub fn uninstall(arguments: &Uninstall) -> Result<ExitCode> {
    let mut objects = objects(&Choices::default(), arguments.cluster.namespace())?;
    let kept = |object: &Value| matches!(kind(object), "Namespace" | "CustomResourceDefinition");
    objects.retain(|object| arguments.everything || !kept(object));
    // What was made last is the first to go: no pod waits for a webhook that is not there.
    objects.reverse();
    if !arguments.apply {
        print(&[yaml(&objects)?.trim_end().to_owned()]);
        return Ok(ExitCode::SUCCESS);
    }
    block_on(async {
        let cluster = Cluster::connect(&arguments.cluster).await?;
        apply::uninstall(&cluster, &objects, arguments.force).await?;
        Ok(ExitCode::SUCCESS)
    })
}
