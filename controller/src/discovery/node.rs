//! What a proxy says of itself when it comes.

use weft_config::xds::Node;

/// Bytes of each word of it.
const WORD_BYTES_MAX: usize = 128;

/// What a proxy says of itself.
#[derive(Debug)]
pub struct Said {
    pub admin: Option<String>,
    pub signing_root: Option<String>,
    pub version: String,
}

/// A text of the node's metadata.
pub fn field<'a>(node: &'a Node, name: &str) -> Option<&'a str> {
    let field = node.metadata.as_ref()?.fields.get(name)?;
    match &field.kind {
        Some(prost_types::value::Kind::StringValue(text)) => Some(text),
        _ => None,
    }
}

impl Said {
    pub fn of(node: &Node) -> Self {
        let word = |text: &str| {
            let end = text.floor_char_boundary(WORD_BYTES_MAX);
            text.get(..end).unwrap_or_default().to_owned()
        };
        Self {
            admin: field(node, "admin").map(word),
            signing_root: field(node, "signingRoot").map(word),
            version: word(&node.user_agent_version),
        }
    }
}
