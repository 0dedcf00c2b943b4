//! See `weft_fuzz::bytes::proxy_protocol`.
#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| weft_fuzz::bytes::proxy_protocol(data));
