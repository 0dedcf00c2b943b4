//! `make scale` with fewer of everything: what must hold at every size. How long it took is a
//! figure and no matter here.

use std::time::Duration;

use weft_tests::cluster::Cluster;
use weft_tests::proxy::built;
use weft_tests::scale::figures::Figures;
use weft_tests::scale::run::{Plan, Run, Teller};
use weft_tests::scale::size::Size;

struct Lines;

impl Teller for Lines {
    fn act(&self, what: &str) {
        println!("{what}");
    }

    fn step(&self, _what: &str, _done: usize, _of: usize) {}

    fn said(&self, what: &str) {
        println!("  {what}");
    }
}

/// Fails where a proxy was told what it does not use or holds already, or never heard of a change.
fn played(cluster: &Cluster, name: &str, (proxies, services): (usize, usize)) -> Figures {
    let plan = Plan {
        size: Size {
            proxies,
            services,
            endpoints: 3,
            uses: 20,
            namespaces: 2,
            // They are in no namespace, and the cluster would look after them.
            has_nodes: false,
        },
        changes: 2 * services,
        interval: Duration::from_millis(10),
    };
    let controller = built("weft-controller", "weft-controller");
    let prefix = format!("{name}-{}", std::process::id());
    let mut run = Run::begin(plan, &prefix, (&controller, &cluster.kubeconfig), &Lines)
        .unwrap_or_else(|problem| panic!("{problem}"));
    let played = run.play();
    run.end();
    played.unwrap_or_else(|problem| panic!("{problem}"))
}

#[test]
fn everybody_hears_of_what_it_uses_and_of_nothing_else() {
    let Some(cluster) = Cluster::connect() else {
        return;
    };
    let _node = crate::shared();
    let few = played(&cluster, "scale-few", (20, 30));
    let many = played(&cluster, "scale-all", (60, 120));
    for figures in [&few, &many] {
        let told = figures.resources_per_proxy_per_change;
        assert!(
            (told - 1.0).abs() < f64::EPSILON,
            "{told} resources a proxy a change"
        );
    }
    let (few, many) = (
        few.resource_bytes_per_proxy_per_change,
        many.resource_bytes_per_proxy_per_change,
    );
    // A name is some letters longer.
    assert!(
        many < 1.05 * few,
        "a change takes {few} bytes a proxy with 30 services, and {many} with 120"
    );
}
