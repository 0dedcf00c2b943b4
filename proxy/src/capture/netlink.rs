//! One transaction with the kernel's nftables: sent whole, in force whole or not at all.

use std::io;

use rustix::io::Errno;
use rustix::net::{
    AddressFamily, RecvFlags, SendFlags, SocketFlags, SocketType, netlink, recv, send, socket_with,
};

use super::message::{Step, encode};

/// What the kernel answers with is far shorter than a page a message.
const ANSWER_BYTES_MAX: usize = 64 * 1024;
const HEADER_BYTES: usize = 16;
const ERROR: u16 = 2;

/// What the kernel did not take.
#[derive(Debug)]
pub struct Refusal<'s> {
    /// `None`: all of it.
    pub step: Option<&'s Step>,
    pub error: Errno,
}

/// Outer error: the kernel could not be asked.
pub fn transact(steps: &[Step]) -> io::Result<Result<(), Refusal<'_>>> {
    let opened = socket_with(
        AddressFamily::NETLINK,
        SocketType::RAW,
        SocketFlags::CLOEXEC,
        Some(netlink::NETFILTER),
    );
    let socket = match opened {
        Ok(socket) => socket,
        // A kernel without netfilter.
        Err(error @ Errno::PROTONOSUPPORT) => return Ok(Err(Refusal { step: None, error })),
        Err(error) => return Err(error.into()),
    };
    send(&socket, &encode(steps), SendFlags::empty())?;
    // It has worked when `send` returns: every answer is there by then.
    let mut acknowledged = 0;
    let mut buffer = vec![0; ANSWER_BYTES_MAX];
    loop {
        let length = match recv(&socket, buffer.as_mut_slice(), RecvFlags::DONTWAIT) {
            Ok((length, _)) => length,
            Err(Errno::AGAIN) => break,
            Err(error) => return Err(error.into()),
        };
        for (sequence, code) in answers(buffer.get(..length).unwrap_or_default()) {
            if code != 0 {
                let index = usize::try_from(sequence)
                    .ok()
                    .and_then(|of| of.checked_sub(1));
                return Ok(Err(Refusal {
                    step: index.and_then(|index| steps.get(index)),
                    error: Errno::from_raw_os_error(code.wrapping_neg()),
                }));
            }
            acknowledged += 1;
        }
    }
    if acknowledged == steps.len() {
        return Ok(Ok(()));
    }
    let said = format!(
        "{acknowledged} of {} messages were acknowledged",
        steps.len()
    );
    Err(io::Error::other(said))
}

/// Sequence numbers and error codes (0: done) of what was answered.
fn answers(mut bytes: &[u8]) -> Vec<(u32, i32)> {
    let number = |bytes: &[u8], at: usize| {
        let four = bytes.get(at..at + 4)?;
        four.try_into().ok().map(u32::from_ne_bytes)
    };
    let mut found = Vec::new();
    while let (Some(length), Some(sequence)) = (number(bytes, 0), number(bytes, 8)) {
        let kind = bytes.get(4..6).and_then(|two| two.try_into().ok());
        if kind.map(u16::from_ne_bytes) == Some(ERROR)
            && let Some(code) = number(bytes, HEADER_BYTES)
        {
            found.push((sequence, code.cast_signed()));
        }
        let length = usize::try_from(length)
            .unwrap_or(usize::MAX)
            .max(HEADER_BYTES);
        let next = length.checked_next_multiple_of(4).unwrap_or(usize::MAX);
        bytes = bytes.get(next..).unwrap_or_default();
    }
    found
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn answers_are_read_one_by_one() {
        let answer = |length: u32, kind: u16, sequence: u32, code: i32| {
            let mut bytes = length.to_ne_bytes().to_vec();
            bytes.extend(kind.to_ne_bytes());
            bytes.extend([0; 2]);
            bytes.extend(sequence.to_ne_bytes());
            bytes.extend([0; 4]);
            bytes.extend(code.to_ne_bytes());
            bytes.resize((length as usize).next_multiple_of(4), 0);
            bytes
        };
        let all = [
            answer(36, 2, 1, 0),
            answer(20, 3, 9, 9),
            answer(36, 2, 2, -1),
        ]
        .concat();
        assert_eq!(answers(&all), [(1, 0), (2, -1)]);
        for cut in 0..all.len() {
            let _ = answers(&all[..cut]);
        }
        assert_eq!(answers(&[0; 64]), []);
        assert_eq!(answers(&[255; 64]), []);
    }
}
