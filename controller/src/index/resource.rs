//! What proxies can ask for, by type and name.

use std::collections::BTreeSet;

pub use weft_config::resource::Type;

/// Names of resources that are not what they were.
pub type Touched = BTreeSet<(Type, String)>;
