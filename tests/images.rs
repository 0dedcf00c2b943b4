//! The container images: built as `make images` builds them, looked into, and run with nothing
//! around them but what Kubernetes gives a container.

use std::fs::{self, create_dir_all};
use std::path::{Path, PathBuf};
use std::process::{Command, Output};

use serde_json::{Value, json};
use tempfile::TempDir;
use weft_tests::config::front;
use weft_tests::dns::Dns;
use weft_tests::images::{NAMES, archive, build_in, built};
use weft_tests::proxy::Proxy;
use weft_tests::raw::Raw;
use weft_tests::upstream::Upstream;
use weft_tests::{eventually, port};

/// What an image may hold.
const SIZE_MAX: u64 = 20 * 1024 * 1024;
const OWNER: &str = "1337:1337";

fn run(command: &mut Command) -> Output {
    let output = command.output().expect("it can be run");
    let said = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{command:?}\n{said}");
    output
}

/// An image: what it says of itself, and its files.
struct Image {
    config: Value,
    root: PathBuf,
    _folder: TempDir,
}

impl Image {
    fn open(name: &str) -> Self {
        let folder = TempDir::new().expect("a folder can be made");
        let (outer, inner) = (folder.path().join("archive"), folder.path().join("root"));
        unpack(&archive(name), &outer);
        let manifest = &read_json(&outer.join("manifest.json"))[0];
        let path = |value: &Value| outer.join(value.as_str().expect("it is a path"));
        let config = read_json(&path(&manifest["Config"]));
        for layer in manifest["Layers"].as_array().expect("there are layers") {
            unpack(&path(layer), &inner);
        }
        Self {
            config,
            root: inner,
            _folder: folder,
        }
    }

    /// A program in it, as Kubernetes would run it there.
    fn command(&self, name: &str) -> Command {
        let mut command = Command::new("chroot");
        command
            .arg(format!("--userspec={OWNER}"))
            .arg(&self.root)
            .arg(format!("/usr/local/bin/{name}"));
        command
    }
}

fn unpack(archive: &Path, into: &Path) {
    create_dir_all(into).expect("a folder can be made");
    run(Command::new("tar")
        .arg("-xf")
        .arg(archive)
        .arg("-C")
        .arg(into));
}

fn read_json(path: &Path) -> Value {
    let text = fs::read(path).expect("it can be read");
    serde_json::from_slice(&text).expect("it is JSON")
}

fn files(root: &Path) -> Vec<String> {
    let output = run(Command::new("find")
        .arg(root)
        .args(["-type", "f", "-printf", "%P\n"]));
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    let mut files: Vec<String> = text.lines().map(str::to_owned).collect();
    files.sort();
    files
}

#[test]
fn an_image_is_one_static_program() {
    if !built() {
        return;
    }
    for name in NAMES {
        let image = Image::open(name);
        let program = format!("usr/local/bin/{name}");
        assert_eq!(files(&image.root), ["LICENSE", &program]);
        let size = fs::metadata(archive(name)).expect("it is there").len();
        assert!(size < SIZE_MAX, "{name}: {size} bytes");
        let config = &image.config["config"];
        assert_eq!(config["User"], OWNER);
        assert_eq!(config["Entrypoint"], json!([format!("/{program}")]));
        let labels = &config["Labels"];
        let label = |key: &str| labels[format!("org.opencontainers.image.{key}")].clone();
        assert_eq!(label("title"), name);
        assert_eq!(label("version"), env!("CARGO_PKG_VERSION"));
        assert_eq!(label("licenses"), "Apache-2.0");
        assert!(label("revision").as_str().is_some_and(|it| it.len() >= 7));
        // A dynamic one would not start without its loader.
        let output = image.command(name).arg("--version").output();
        let output = output.expect("chroot can be run");
        let said = String::from_utf8_lossy(&output.stderr).into_owned();
        if said.contains("cannot change root") {
            println!("stepped aside: running a program in its image takes root");
            return;
        }
        assert!(output.status.success(), "{name}: {said}");
    }
}

#[test]
fn the_same_commit_gives_the_same_images() {
    if !built() {
        return;
    }
    // In folders of their own: the other tests read the first ones.
    let folders = [(); 2].map(|()| TempDir::new().expect("a folder can be made"));
    for folder in &folders {
        build_in(folder.path());
    }
    for name in NAMES {
        let [first, second] = folders.each_ref().map(|folder| {
            fs::read(folder.path().join(format!("{name}.tar"))).expect("it is there")
        });
        assert!(first == second, "{name} differs");
    }
}

/// Nothing but Rust looks names up there: glibc would load plugins that no image has.
#[test]
fn names_are_resolved_in_an_empty_image() {
    if !built() {
        return;
    }
    if !rustix::process::geteuid().is_root() {
        println!("stepped aside: running a program in its image takes root");
        return;
    }
    let image = Image::open("weft-proxy");
    let upstream_port = port::free();
    let address = format!("127.0.0.1:{upstream_port}")
        .parse()
        .expect("an address");
    let _upstream = Upstream::echo_at(address, "named");
    let dns = Dns::start(9, "web.test A 1 127.0.0.1\n");
    let web = port::free_address();
    let mut config = front(web, &[]);
    config["services"] =
        json!([{"name": "up", "dns": {"name": "web.test", "port": upstream_port}}]);
    let _proxy = Proxy::start_as(config, |folder| {
        create_dir_all(image.root.join("etc")).expect("a folder can be made");
        // Of a container's /dev what a static program asks for randomness.
        create_dir_all(image.root.join("dev")).expect("a folder can be made");
        for (device, minor) in [("dev/random", "8"), ("dev/urandom", "9")] {
            let mut mknod = Command::new("mknod");
            mknod.args(["-m", "666"]).arg(image.root.join(device));
            run(mknod.args(["c", "1", minor]));
        }
        fs::copy(&dns.resolv, image.root.join("etc/resolv.conf")).expect("it can be copied");
        fs::copy(folder.join("weft.yaml"), image.root.join("weft.yaml")).expect("it can be copied");
        let mut command = image.command("weft-proxy");
        command.args(["--config", "/weft.yaml"]);
        command
    });
    eventually("an answer from a named service", || {
        let answer = Raw::try_connect(web)?.try_get("/")?;
        (answer.header("x-upstream") == Some("named")).then_some(())
    });
}
