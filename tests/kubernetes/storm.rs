//! The storm on a real node, with and without the mesh.

use weft_tests::cluster::Cluster;
use weft_tests::install;
use weft_tests::storm::{self, Lane, OnTerm};

/// Or the storm would prove nothing.
#[test]
fn without_a_mesh_the_storm_loses_requests() {
    let Some(cluster) = Cluster::connect() else {
        return;
    };
    storm::prepare(&cluster);
    let _alone = super::alone();
    let namespace = cluster.namespace("plain", &[]);
    let lanes = storm::blow(&namespace, OnTerm::Exits);
    println!("{}", storm::table(&rows(OnTerm::Exits, &lanes)));
    let lost: u64 = lanes.iter().map(|lane| lane.lost).sum();
    assert!(lost > 0, "nothing was lost: {lanes:#?}");
}

#[test]
fn in_the_mesh_the_storm_loses_nothing() {
    let Some(cluster) = install::connect() else {
        return;
    };
    let _alone = super::alone();
    let mut all = Vec::new();
    let mut losses = String::new();
    for kind in [OnTerm::Exits, OnTerm::Finishes] {
        let namespace = cluster.namespace("storm", &[super::INJECTED]);
        let lanes = storm::blow(&namespace, kind);
        all.extend(rows(kind, &lanes));
        losses += &storm::losses(&lanes);
    }
    println!("{}", storm::table(&all));
    assert!(losses.is_empty(), "{losses}{}", install::logs(&cluster));
    for (_, lane) in &all {
        assert!(lane.sent > 500, "{lane:?}");
    }
}

fn rows(kind: OnTerm, lanes: &[Lane]) -> Vec<(OnTerm, Lane)> {
    lanes.iter().map(|lane| (kind, lane.clone())).collect()
}
