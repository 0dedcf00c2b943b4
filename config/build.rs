//! Generates the Rust types and their YAML/JSON form from the schema, and the messages of the
//! transport that carries them. Services are generated where they are served and called.

use prost::Message as _;

const SCHEMA: [&str; 2] = ["weft/v1/config.proto", "weft/v1/mesh.proto"];
const TRANSPORT: &str = "envoy/service/discovery/v3/discovery.proto";

fn main() -> Result<(), Box<dyn std::error::Error>> {
    println!("cargo:rerun-if-changed=proto");
    let schema = protox::Compiler::new(["proto"])?
        .include_source_info(true)
        .open_files(SCHEMA)?
        .file_descriptor_set();
    prost_build::Config::new().compile_fds(schema.clone())?;
    pbjson_build::Builder::new()
        .register_descriptors(&schema.encode_to_vec())?
        .build(&[".weft.v1"])?;
    let transport = protox::Compiler::new(["proto"])?
        .include_imports(true)
        .open_file(TRANSPORT)?
        .file_descriptor_set();
    prost_build::Config::new().compile_fds(transport)?;
    Ok(())
}
