//! The target `rescue` for `cargo fuzz`.

#![no_main]

libfuzzer_sys::fuzz_target!(|input: &[u8]| avhdx_fuzz::run("rescue", input));
