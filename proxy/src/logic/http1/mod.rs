//! HTTP/1.1 message syntax, sans I/O: bytes to heads and body chunks, and back.
//!
//! Owns RFC 9112 (syntax and framing) and the parts of RFC 9110 that a head alone
//! decides: Host and target agreement, hop-by-hop fields, Expect. Leaves sockets,
//! timeouts, routing and body limits to its callers.
//!
//! **Invariant:** what is accepted has exactly one reading. Whatever two
//! implementations could frame differently is rejected, never repaired, and every
//! message is written anew from its parsed form, so that no ambiguity is passed on.
//!
//! **Invariant:** no input panics, and the work is linear in the bytes received,
//! also when they trickle in one at a time.
//!
//! What the parsed header map does *not* hold: Host (in [`Target::authority`]),
//! Content-Length and Transfer-Encoding (in [`Framing`]; a Content-Length that frames
//! nothing, as in the answer to HEAD or a 304, stays), and hop-by-hop fields.

mod body;
mod encode;
mod fields;
mod head;
mod message;
mod reject;
mod target;

pub use body::{BodyDecoder, BodyLimits, Chunk, ChunkedDecoder, LengthDecoder};
pub use encode::{
    Connection, RequestLine, encode_chunk_header, encode_last_chunk, encode_request,
    encode_response,
};
pub use fields::strip_hop_by_hop;
pub use head::HeadReader;
pub use message::{
    Framing, HEAD_BYTES_MAX, HEADERS_MAX, HeadLimits, NotKept, RequestHead, ResponseHead, Target,
    TargetForm, Version,
};
pub use reject::{Reject, UpstreamFault};
pub use target::parse_authority;

#[cfg(test)]
mod tests;
