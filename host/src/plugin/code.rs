//! From a policy's words to compiled code that may be instantiated.

use std::fs::{File, OpenOptions};
use std::io::{self, Read};
use std::num::NonZero;
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;
use std::thread;

use rayon::{ThreadBuilder, ThreadPoolBuilder};
use sha2::{Digest, Sha256};
use wasmtime::component::Component;

use super::{Engine, LoadError};
use crate::policy::{PluginSettings, PluginSource};
use crate::sys::precompiled;

/// The largest component that is read. Those of the SDK have a hundred kilobytes; one with an interpreter of another
/// language in it has ten megabytes.
const SIZE: u64 = 64 << 20;

/// The version of the interface that this host speaks.
const INTERFACE: &str = "0.1";

/// The code of the plugin, and its digest: `builtin` for the built-in one, whose digest is zero, else read from its file,
/// checked and compiled.
pub(super) fn component(
    engine: &Engine,
    settings: &PluginSettings,
    builtin: &'static [u8],
) -> Result<(Component, [u8; 32]), LoadError> {
    Ok(match &settings.source {
        PluginSource::Builtin => {
            let component = engine
                .builtin(|wasm| precompiled::component(wasm, builtin))
                .map_err(|e| LoadError::Invalid(format!("the built-in plugin does not fit this executable: {e:#}")))?;
            (component, [0; 32])
        }
        PluginSource::File { path, sha256, content } => {
            let read = content.is_none().then(|| read(path)).transpose()?;
            let bytes = content.as_deref().or(read.as_deref()).unwrap_or_default();
            let digest = Sha256::digest(bytes).into();
            if let Some(expected) = sha256 {
                check_digest(&digest, expected)?;
            }
            let known = engine.cache.as_ref().and_then(|cache| cache.find(engine.wasm(), &digest));
            (known.map_or_else(|| compile(engine, bytes), Ok)?, digest)
        }
    })
}

/// The bytes of a plugin's file.
///
/// # Errors
/// It cannot be read, is no regular file, or is larger than plugins may be.
pub fn read(path: &Path) -> Result<Vec<u8>, LoadError> {
    // A fifo would hold up the start; a device may never end; a terminal would become ours.
    let file = OpenOptions::new().read(true).custom_flags(libc::O_NONBLOCK | libc::O_NOCTTY).open(path);
    file.and_then(read_component).map_err(|source| LoadError::Read { path: path.to_owned(), source })
}

/// What a plugin's file holds.
///
/// # Errors
/// It cannot be read, is no regular file, or is too large.
pub fn read_component(file: File) -> io::Result<Vec<u8>> {
    if !file.metadata()?.is_file() {
        return Err(io::Error::new(io::ErrorKind::InvalidInput, "not a regular file"));
    }
    let mut bytes = Vec::new();
    file.take(SIZE + 1).read_to_end(&mut bytes)?;
    if bytes.len() as u64 > SIZE {
        return Err(io::Error::new(io::ErrorKind::FileTooLarge, format!("larger than {SIZE} bytes")));
    }
    Ok(bytes)
}

fn check_digest(digest: &[u8; 32], expected: &str) -> Result<(), LoadError> {
    let actual = hex::encode(digest);
    if actual.eq_ignore_ascii_case(expected) {
        Ok(())
    } else {
        Err(LoadError::Digest { expected: expected.to_owned(), actual })
    }
}

/// Compiles a component.
///
/// # Errors
/// It is none, or none that can be compiled here.
pub fn compile(engine: &Engine, bytes: &[u8]) -> Result<Component, LoadError> {
    match bytes {
        // Magic and version (binary format, 5.5.16).
        [b'\0', b'a', b's', b'm', 1, 0, 0, 0, ..] => Err(LoadError::Invalid(
            "a core module, not a component: make one of it with `callgatectl plugin componentize`".into(),
        )),
        [b'\0', b'a', b's', b'm', ..] => on_all_processors(|| Component::from_binary(engine.wasm(), bytes))
            .map_err(|e| LoadError::Invalid(format!("cannot be compiled: {e}")))?
            .map_err(|e| LoadError::Invalid(format!("not a valid component: {e:#}"))),
        _ => Err(LoadError::Invalid("not webassembly".into())),
    }
}

/// Has `work` compile on as many threads as there are processors for us, but on no more than are needed later on anyway; on the
/// calling one where none can be had: the workload may have used them up. They have ended when this returns.
///
/// # Errors
/// The calling thread cannot even do it alone.
pub(super) fn on_all_processors<T: Send>(work: impl FnOnce() -> T + Send) -> io::Result<T> {
    const MOST: usize = 4;
    let processors = thread::available_parallelism().map_or(1, NonZero::get);
    let threads = |count| ThreadPoolBuilder::new().num_threads(count).thread_name(|_| "callgate-compile".into());
    let mut work = Some(work);
    let done = threads(processors.min(MOST))
        .build_scoped(ThreadBuilder::run, |pool| pool.install(|| work.take().map(|work| work())));
    if let Ok(Some(done)) = done {
        return Ok(done);
    }
    if rayon::current_thread_index().is_none() {
        // The calling thread is one of this pool ever after.
        std::mem::forget(threads(1).use_current_thread().build().map_err(io::Error::other)?);
    }
    work.map(|work| work()).ok_or_else(|| io::ErrorKind::Other.into())
}

/// Refuses by name what the linker would refuse by absence: whoever adds to the linker has to come by here.
pub(super) fn check_imports(engine: &Engine, component: &Component) -> Result<(), LoadError> {
    match component.component_type().imports(engine.wasm()).find(|(name, _)| !may_import(name)) {
        Some((name, _)) => Err(LoadError::Import(name.to_owned())),
        None => Ok(()),
    }
}

fn may_import(name: &str) -> bool {
    let Some((interface, version)) = name.split_once('@') else {
        return false;
    };
    let patch = version.strip_prefix(INTERFACE).and_then(|rest| rest.strip_prefix('.'));
    matches!(interface, "callgate:policy/host" | "callgate:policy/types")
        && patch.is_some_and(|patch| !patch.is_empty() && patch.bytes().all(|b| b.is_ascii_digit()))
}

#[cfg(test)]
mod tests {
    use super::may_import;

    #[test]
    fn only_the_interface_of_this_version_may_be_imported() {
        for name in ["callgate:policy/host@0.1.0", "callgate:policy/types@0.1.0", "callgate:policy/host@0.1.17"] {
            assert!(may_import(name), "{name}");
        }
        for name in [
            "wasi:cli/environment@0.2.0",
            "callgate:policy/host",
            "callgate:policy/host@0.2.0",
            "callgate:policy/host@0.10.0",
            "callgate:policy/host@0.1",
            "callgate:policy/host@0.1.",
            "callgate:policy/host@0.1.0-rc.1",
            "callgate:policy/policy@0.1.0",
            "host@0.1.0",
            "",
        ] {
            assert!(!may_import(name), "{name}");
        }
    }
}
