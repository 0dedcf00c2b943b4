//! See `weft_fuzz::bytes::http1_chunked`.
#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| weft_fuzz::bytes::http1_chunked(data));
