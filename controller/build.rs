//! Generates the gRPC services that the controller serves; their messages are `weft-config`'s.

fn main() -> Result<(), Box<dyn std::error::Error>> {
    println!("cargo:rerun-if-changed=../config/proto");
    let descriptors = protox::Compiler::new(["../config/proto"])?
        .include_imports(true)
        .open_files([
            "weft/v1/mesh.proto",
            "envoy/service/discovery/v3/discovery.proto",
        ])?
        .file_descriptor_set();
    tonic_prost_build::configure()
        .build_client(false)
        .build_transport(false)
        .extern_path(".weft.v1", "::weft_config::wire")
        .extern_path(".envoy.service.discovery.v3", "::weft_config::xds")
        .compile_fds(descriptors)?;
    Ok(())
}
