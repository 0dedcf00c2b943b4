//! Every file in examples/ is a configuration that the proxy takes.

use std::path::Path;

use weft_config::file;

/// Examples that README and documentation speak of.
const EXPECTED: [&str; 5] = [
    "canary.yaml",
    "grpc.yaml",
    "load-balancer.yaml",
    "postgres.yaml",
    "tls.yaml",
];

#[test]
fn every_example_is_valid() {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("../examples");
    let mut found = Vec::new();
    let mut refused = Vec::new();
    for entry in std::fs::read_dir(&folder).expect("examples/ can be read") {
        let path = entry.expect("examples/ can be read").path();
        if path.extension().is_none_or(|extension| extension != "yaml") {
            continue;
        }
        let name = path
            .file_name()
            .expect("a file has a name")
            .to_string_lossy()
            .into_owned();
        let text = std::fs::read_to_string(&path).expect("an example can be read");
        refused.extend(
            file::load(&name, &text)
                .err()
                .map(|errors| errors.to_string()),
        );
        found.push(name);
    }
    assert!(refused.is_empty(), "{}", refused.join("\n"));
    found.sort();
    assert_eq!(found, EXPECTED);
}
