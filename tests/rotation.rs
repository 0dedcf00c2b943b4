//! `weft ca rotate`: the root replaced while everything runs, by a command that may be killed.

use std::fs;
use std::path::Path;
use std::process::{Command, Output};

use serde_json::Value;
use weft_tests::eventually;
use weft_tests::load::{Load, Mode};
use weft_tests::mesh::{Mesh, Sidecar};
use weft_tests::process::{Program, Signal};
use weft_tests::upstream::Upstream;
use weft_tests::weft::weft;

struct Shop {
    mesh: Mesh,
    replica: Sidecar,
    _application: Upstream,
    client: Sidecar,
}

fn shop() -> Shop {
    let mesh = Mesh::start();
    let replica = mesh.sidecar("web", &[]);
    let application = Upstream::echo_at(replica.application(), "one");
    mesh.service("web", &[&replica]);
    let client = mesh.sidecar("client", &["web.shop:80"]);
    mesh.settled();
    Shop {
        mesh,
        replica,
        _application: application,
        client,
    }
}

impl Shop {
    fn ca(&self, arguments: &[&str]) -> Command {
        let mut command = weft();
        command
            .args(["ca"])
            .args(arguments)
            .arg("--ca-dir")
            .arg(self.mesh.folder.path().join("ca"))
            .args(["--controller-admin", &self.mesh.admin.to_string()]);
        command
    }

    fn fingerprints(&self) -> Vec<String> {
        let status = self.mesh.status();
        status
            .roots
            .into_iter()
            .map(|root| root.fingerprint)
            .collect()
    }

    /// What `weft ca show` says comes next.
    fn next(&self) -> Value {
        let output = run(&mut self.ca(&["show", "-o", "json"]));
        let shown: Value = serde_json::from_slice(&output.stdout).expect("it prints JSON");
        shown["rotation"].clone()
    }
}

fn run(command: &mut Command) -> Output {
    command.output().expect("weft runs")
}

fn text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}

#[test]
fn the_root_is_rotated_under_load_and_nothing_is_lost() {
    let shop = shop();
    let load = Load::start(shop.client.upstreams[0], Mode::ConnectEach, 2);
    load.goes_on(50);
    let before = shop.fingerprints();
    let dry = run(&mut shop.ca(&["rotate", "--dry-run"]));
    assert!(dry.status.success(), "{dry:?}");
    assert!(text(&dry.stdout).contains("would 1/3"), "{dry:?}");
    assert_eq!(shop.fingerprints(), before);
    assert_eq!(shop.next(), Value::Null, "nothing is changed");
    let rotated = run(&mut shop.ca(&["rotate"]));
    assert!(rotated.status.success(), "{rotated:?}");
    for step in ["1/3", "2/3", "3/3"] {
        let done = text(&rotated.stdout);
        let mut lines = done.lines();
        let done = lines.any(|line| line.starts_with(step) && line.contains("done"));
        assert!(done, "{step}: {rotated:?}");
    }
    let after = shop.fingerprints();
    assert_eq!(after.len(), 1);
    assert_ne!(after, before);
    for proxy in shop.mesh.status().proxies {
        assert_eq!(proxy.signing_root, after[0], "{proxy:#?}");
    }
    let ca = shop.mesh.folder.path().join("ca");
    for name in ["next.crt", "next.key", "previous.crt", "bundle.pem"] {
        assert!(!ca.join(name).exists(), "{name}");
    }
    load.goes_on(50);
    load.stop().none_lost();
}

/// A rotation in the background.
fn begin(shop: &Shop) -> Program {
    let folder = shop.mesh.folder.path();
    Program::start("weft-ca", &mut shop.ca(&["rotate"]), folder)
}

#[test]
fn a_rotation_waits_for_everybody_and_goes_on_where_it_was_killed() {
    let shop = shop();
    let before = shop.fingerprints();
    shop.replica.proxy.program.freeze();
    let mut first = begin(&shop);
    eventually("both roots being trusted", || {
        (shop.fingerprints().len() == 2).then_some(())
    });
    first.kill();
    assert_eq!(shop.next(), "2/3 sign with the new root");
    // Who has not followed is named, and nothing more is done.
    let late = run(&mut shop.ca(&["rotate", "--timeout", "1s"]));
    assert!(!late.status.success(), "{late:?}");
    let said = text(&late.stderr);
    assert!(said.contains(&shop.replica.uid), "{said}");
    assert!(said.contains("goes on from here"), "{said}");
    assert_eq!(shop.fingerprints()[0], before[0], "the old one signs");
    shop.replica.proxy.signal(Signal::CONT);
    let second = run(&mut shop.ca(&["rotate", "-o", "json"]));
    assert!(second.status.success(), "{second:?}");
    for line in text(&second.stdout).lines() {
        let _: Value = serde_json::from_str(line).expect("each line is JSON");
    }
    let after = shop.fingerprints();
    assert!(after.len() == 1 && after != before, "{after:?}");
    assert_eq!(shop.next(), Value::Null);
}

#[test]
fn an_unsafe_step_is_refused_with_its_reason() {
    let shop = shop();
    let ca = shop.mesh.folder.path().join("ca");
    let refused = |shop: &Shop, arguments: &[&str], reason: &str| {
        let output = run(&mut shop.ca(&[&["rotate"], arguments].concat()));
        let said = text(&output.stderr);
        assert!(!output.status.success() && said.contains(reason), "{said}");
    };
    let own = |name: &str| path(&ca.join(name));
    let (certificate, key) = (own("ca.crt"), own("ca.key"));
    let same = ["--certificate", &certificate, "--key", &key];
    refused(&shop, &same, "the one that signs now");
    // A key that is not the certificate's.
    let other = shop.mesh.folder.path().join("other.key");
    fs::write(
        &other,
        rcgen::KeyPair::generate().expect("a key").serialize_pem(),
    )
    .expect("it is written");
    let pair = ["--certificate", &certificate, "--key", &path(&other)];
    refused(&shop, &pair, "is not the key");
    assert_eq!(shop.next(), Value::Null, "nothing is changed");
}

fn path(path: &Path) -> String {
    path.display().to_string()
}
