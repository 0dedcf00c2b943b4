//! See `weft_fuzz::bytes::http1_request`.
#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| weft_fuzz::bytes::http1_request(data));
