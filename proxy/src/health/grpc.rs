//! The two messages of `grpc.health.v1.Health/Check`, and gRPC's framing of
//! one message.

use bytes::{BufMut, Bytes, BytesMut};
use prost::Message;

/// `SERVING` of the protocol's enum.
pub const SERVING: i32 = 1;
/// What a frame begins with: a flag and a length.
const FRAME_HEAD: usize = 5;

#[derive(Clone, PartialEq, Message)]
pub struct CheckRequest {
    #[prost(string, tag = "1")]
    pub service: String,
}

#[derive(Clone, PartialEq, Message)]
pub struct CheckResponse {
    #[prost(int32, tag = "1")]
    pub status: i32,
}

/// One message, uncompressed, in its frame.
pub fn frame(message: &impl Message) -> Bytes {
    let length = message.encoded_len();
    let mut out = BytesMut::with_capacity(FRAME_HEAD + length);
    out.put_u8(0);
    out.put_u32(u32::try_from(length).unwrap_or(u32::MAX));
    // The buffer grows as needed, so encoding cannot fail.
    let _ = message.encode(&mut out);
    out.freeze()
}

/// The message of a body that is one whole frame.
pub fn unframe<M: Message + Default>(body: &[u8]) -> Option<M> {
    let (head, message) = body.split_at_checked(FRAME_HEAD)?;
    let (0, length) = (*head.first()?, head.get(1..)?) else {
        return None;
    };
    let length = u32::from_be_bytes(length.try_into().ok()?);
    let message = message.get(..usize::try_from(length).ok()?)?;
    M::decode(message).ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn frames() {
        let request = CheckRequest {
            service: "a".to_owned(),
        };
        assert_eq!(frame(&request).as_ref(), b"\0\0\0\0\x03\x0a\x01a");
        let response: CheckResponse = unframe(b"\0\0\0\0\x02\x08\x01").unwrap();
        assert_eq!(response.status, SERVING);
        for bad in [
            &b""[..],
            b"\0\0\0\0",
            b"\x01\0\0\0\x02\x08\x01",
            b"\0\0\0\0\x09\x08\x01",
        ] {
            assert!(unframe::<CheckResponse>(bad).is_none());
        }
    }
}
