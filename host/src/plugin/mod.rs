//! Plugins in wasmtime: engine, limits, compiled-module cache, host functions.
//!
//! May depend on `event`, `policy` and `decide`'s types; knows nothing of the kernel.
