//! Native code of components that were compiled ahead of time.
#![allow(unsafe_code)]

use wasmtime::Engine;
use wasmtime::component::Component;

use crate::trust::Believed;

/// Loads a component that the build compiled into this executable. `code` must be such bytes, which is why it is `'static`
/// and why this is no part of the library's face.
///
/// # Errors
/// The code was compiled by another version of wasmtime, or under another configuration.
pub(crate) fn component(engine: &Engine, code: &'static [u8]) -> wasmtime::Result<Component> {
    // SAFETY: the bytes were written by wasmtime's own compiler in this executable's build and lie in its read-only data;
    // whoever can change them can change the executable. Version and configuration are checked by wasmtime.
    unsafe { Component::deserialize(engine, code) }
}

/// Loads a component that was compiled before, by somebody who could as well have replaced this executable.
///
/// # Errors
/// The code was compiled by another version of wasmtime, under another configuration, or for another processor.
pub(crate) fn component_of_file(engine: &Engine, code: &Believed) -> wasmtime::Result<Component> {
    // SAFETY: `Believed` is what nobody in the workload can have written, and the bytes are a copy that nobody changes. What
    // the image's builder puts there is trusted like the executable beside it.
    unsafe { Component::deserialize(engine, code) }
}
