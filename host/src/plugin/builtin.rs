//! The plugin that is part of the executable, made by the build script: a component, and the same compiled for this machine.

/// The allowlist, as a component.
pub const ALLOWLIST_COMPONENT: &[u8] = include_bytes!(concat!(env!("OUT_DIR"), "/allowlist.wasm"));
/// The same, compiled for this machine.
pub const ALLOWLIST_PRECOMPILED: &[u8] = include_bytes!(concat!(env!("OUT_DIR"), "/allowlist.cwasm"));
