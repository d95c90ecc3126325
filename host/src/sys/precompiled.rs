//! Native code of components that were compiled ahead of time.
#![allow(unsafe_code)]

use std::io;
use std::ptr::NonNull;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering::Relaxed};

use wasmtime::component::Component;
use wasmtime::{CustomCodeMemory, Engine};

use crate::trust::Believed;

/// Makes code executable where it lies. Wasmtime does so itself only with memory that it has mapped, into which it would have to
/// copy the megabyte of code that is part of this executable: an eighth of the time that we take to start.
struct InPlace;

/// On other processors code has to be made known to them as well, for which wasmtime provides.
const CAN_BE_IN_PLACE: bool = cfg!(target_arch = "x86_64");

/// Has an engine's code made executable where it lies, if it can be.
pub(crate) fn in_place(config: &mut wasmtime::Config) {
    if CAN_BE_IN_PLACE {
        config.with_custom_code_memory(Some(Arc::new(InPlace)));
    }
}

impl CustomCodeMemory for InPlace {
    fn required_alignment(&self) -> usize {
        4096 // a page
    }

    fn publish_executable(&self, start: *const u8, length: usize) -> wasmtime::Result<()> {
        // SAFETY: wasmtime names the code of one component, whole pages of it, which it only reads and runs.
        match unsafe { libc::mprotect(start.cast_mut().cast(), length, libc::PROT_READ | libc::PROT_EXEC) } {
            0 => Ok(()),
            _ => Err(io::Error::last_os_error().into()),
        }
    }

    /// It is not to be changed, but unmapped, or lies in the executable.
    fn unpublish_executable(&self, _: *const u8, _: usize) -> wasmtime::Result<()> {
        Ok(())
    }
}

/// Loads a component that the build compiled into this executable, to be run where it lies; a copy of it from the second time
/// on, since wasmtime tells code by its place. `code` must be such bytes, which is why it is `'static` and why this is no part of
/// the library's face. The engine must be configured [for it](in_place).
///
/// # Errors
/// The code was compiled by another version of wasmtime, or under another configuration.
pub(crate) fn component(engine: &Engine, code: &'static [u8]) -> wasmtime::Result<Component> {
    static TAKEN: AtomicBool = AtomicBool::new(false);
    // SAFETY: the bytes were written by wasmtime's own compiler in this executable's build and lie in its read-only data, for
    // as long as the process lives; whoever can change them can change the executable. Version and configuration are checked
    // by wasmtime.
    unsafe {
        if CAN_BE_IN_PLACE && !TAKEN.swap(true, Relaxed) {
            Component::deserialize_raw(engine, NonNull::from(code))
        } else {
            Component::deserialize(engine, code)
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
