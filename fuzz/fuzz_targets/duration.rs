//! See `weft_fuzz::config::duration`.
#![no_main]

libfuzzer_sys::fuzz_target!(|text: &str| weft_fuzz::config::duration(text));
