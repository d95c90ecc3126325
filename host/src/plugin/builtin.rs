//! The plugin that is part of the executable, made by the build script: a component, and the same compiled for this machine.

/// The allowlist, as a component.
pub const ALLOWLIST_COMPONENT: &[u8] = include_bytes!(concat!(env!("OUT_DIR"), "/allowlist.wasm"));
/// The same, compiled for this machine. It is run where it lies, and so begins on a page of its own.
pub static ALLOWLIST_PRECOMPILED: &[u8] = &OnPages(*include_bytes!(concat!(env!("OUT_DIR"), "/allowlist.cwasm"))).0;

#[repr(C, align(4096))]
struct OnPages<T>(T);
