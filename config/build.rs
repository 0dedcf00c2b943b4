//! Generates the Rust types and their YAML/JSON form from the one schema.

use prost::Message as _;

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let proto = "proto/weft/v1/config.proto";
    println!("cargo:rerun-if-changed={proto}");
    let descriptors = protox::Compiler::new(["proto"])?
        .include_source_info(true)
        .open_file("weft/v1/config.proto")?
        .file_descriptor_set();
    prost_build::Config::new().compile_fds(descriptors.clone())?;
    pbjson_build::Builder::new()
        .register_descriptors(&descriptors.encode_to_vec())?
        .build(&[".weft.v1"])?;
    Ok(())
}
