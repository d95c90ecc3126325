//! Native code of components that were compiled ahead of time.
#![allow(unsafe_code)]

use std::io;
use std::ptr::NonNull;
use std::sync::atomic::{AtomicBool, Ordering::Relaxed};

use wasmtime::component::Component;
use wasmtime::{CustomCodeMemory, Engine};

use crate::trust::Believed;

/// Makes code executable where it lies. Wasmtime does so itself only with memory that it has mapped, into which it would have to
/// copy the megabyte of code that is part of this executable: an eighth of the time that we take to start.
pub(crate) struct InPlace;

impl CustomCodeMemory for InPlace {
    fn required_alignment(&self) -> usize {
        // The kernel takes the length of what is protected for pages of its own.
        nix::unistd::sysconf(nix::unistd::SysconfVar::PAGE_SIZE).ok().flatten().map_or(4096, |size| size as usize)
    }

    fn publish_executable(&self, start: *const u8, length: usize) -> wasmtime::Result<()> {
        protect(start, length, libc::PROT_READ | libc::PROT_EXEC)
    }

    fn unpublish_executable(&self, start: *const u8, length: usize) -> wasmtime::Result<()> {
        protect(start, length, libc::PROT_READ)
    }
}

fn protect(start: *const u8, length: usize, protection: libc::c_int) -> wasmtime::Result<()> {
    // SAFETY: wasmtime names the code of one component, whole pages of it, which it only reads and runs.
    match unsafe { libc::mprotect(start.cast_mut().cast(), length, protection) } {
        0 => Ok(()),
        _ => Err(io::Error::last_os_error().into()),
    }
}

/// Loads a component that the build compiled into this executable, to be run where it lies; a copy of it from the second time
/// on, since wasmtime tells code by its place. `code` must be such bytes, which is why it is `'static` and why this is no part of
/// the library's face. The engine's code must be published by [`InPlace`].
///
/// # Errors
/// The code was compiled by another version of wasmtime, or under another configuration.
pub(crate) fn component(engine: &Engine, code: &'static [u8]) -> wasmtime::Result<Component> {
    static TAKEN: AtomicBool = AtomicBool::new(false);
    // SAFETY: the bytes were written by wasmtime's own compiler in this executable's build and lie in its read-only data, for
    // as long as the process lives; whoever can change them can change the executable. Version and configuration are checked
    // by wasmtime.
    unsafe {
        if TAKEN.swap(true, Relaxed) {
            Component::deserialize(engine, code)
        } else {
            Component::deserialize_raw(engine, NonNull::from(code))
        }
    }
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
