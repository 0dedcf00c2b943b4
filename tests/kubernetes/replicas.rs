//! Controllers and the API server are killed under load; in full, `make faults-cluster`.

use std::time::Duration;

use weft_tests::install;
use weft_tests::replicas::{Extent, losses, run, table};

const SHORT: Extent = Extent {
    away: Duration::from_secs(40),
    down: Duration::from_secs(10),
};

#[test]
fn controllers_and_the_api_server_die_and_nothing_is_lost() {
    let Some(cluster) = install::connect() else {
        return;
    };
    let _alone = super::alone();
    let rows = run(&cluster, SHORT, &[]);
    println!("{}", table(&rows));
    let losses = losses(&rows);
    assert!(losses.is_empty(), "{losses}{}", install::logs(&cluster));
}
