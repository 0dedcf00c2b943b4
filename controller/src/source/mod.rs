//! Where objects come from. A directory of manifests here.

pub mod directory;
pub mod manifest;
