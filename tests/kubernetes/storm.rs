//! The storm on a real node.

use weft_tests::cluster::Cluster;
use weft_tests::storm::{self, OnTerm};

/// Or the storm would prove nothing.
#[test]
fn without_a_mesh_the_storm_loses_requests() {
    let Some(cluster) = Cluster::connect() else {
        return;
    };
    storm::prepare(&cluster);
    let namespace = cluster.namespace("plain", &[]);
    let lanes = storm::blow(&namespace, OnTerm::Exits);
    let rows: Vec<_> = lanes
        .iter()
        .map(|lane| (OnTerm::Exits, lane.clone()))
        .collect();
    println!("{}", storm::table(&rows));
    let lost: u64 = lanes.iter().map(|lane| lane.lost).sum();
    assert!(lost > 0, "nothing was lost: {lanes:#?}");
}
