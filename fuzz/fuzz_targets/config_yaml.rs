//! See `weft_fuzz::config::config_yaml`.
#![no_main]

libfuzzer_sys::fuzz_target!(|text: &str| weft_fuzz::config::config_yaml(text));
