//! Where objects come from: a directory of manifests, and what tells of its changes.

pub mod directory;
pub mod follow;
pub mod manifest;
mod watch;
