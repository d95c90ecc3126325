//! What Rust cannot check: the only unsafe code.
#![allow(unsafe_code)]

pub mod precompiled;
