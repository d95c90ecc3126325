//! Compiled plugins, kept by their content: compiling one of a hundred kilobytes takes tens of milliseconds.
//!
//! Compiled code is executed as it is, with all that the supervisor may do. So it is taken only from a directory in which the
//! workload cannot write, and never written while there is one: `callgate compile` fills it when the image is built.

use std::fs;
use std::io::{self, Write};
use std::os::fd::OwnedFd;
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};

use nix::fcntl::{OFlag, open};
use nix::sys::stat::Mode;
use sha2::{Digest, Sha256};
use wasmtime::component::Component;

use super::{Engine, code};
use crate::sys::credentials::Identity;
use crate::sys::precompiled;
use crate::trust;

/// A directory of compiled plugins.
#[derive(Debug)]
pub struct Cache {
    path: PathBuf,
    directory: OwnedFd,
    /// The most that the workload may be.
    workload: Identity,
}

impl Cache {
    /// The directory, if it is there.
    pub fn open(path: &Path, workload: Identity) -> Option<Self> {
        let directory = open(path, OFlag::O_PATH | OFlag::O_DIRECTORY | OFlag::O_CLOEXEC, Mode::empty()).ok()?;
        Some(Self { path: path.to_owned(), directory, workload })
    }

    /// The compiled form of the component with this SHA-256, if it is there, is to be believed and fits this engine.
    pub(super) fn find(&self, engine: &wasmtime::Engine, digest: &[u8; 32]) -> Option<Component> {
        let name = name(digest);
        let found = match trust::read(&self.directory, Path::new(&name), &self.workload) {
            Ok(code) => precompiled::component_of_file(engine, &code).map_err(|error| format!("{error:#}")),
            Err(error) if error.kind() == io::ErrorKind::NotFound => return None,
            Err(error) => Err(error.to_string()),
        };
        found.inspect_err(|why| tracing::info!("{} is not used: {why}", self.path.join(name).display())).ok()
    }
}

/// Compiles components into a directory, which is made if need be. Returns the files.
///
/// # Errors
/// What is no component, and what cannot be written.
pub fn fill(directory: &Path, components: &[Vec<u8>]) -> io::Result<Vec<PathBuf>> {
    fs::create_dir_all(directory)?;
    let engine = Engine::portable().map_err(io::Error::other)?;
    let mut filled = Vec::new();
    for component in components {
        let compiled = code::on_all_processors(|| engine.wasm().precompile_component(component))?;
        let code = compiled.map_err(|error| io::Error::other(format!("{error:#}")))?;
        let path = directory.join(name(&Sha256::digest(component).into()));
        let unfinished = path.with_extension("new");
        let mut file = fs::OpenOptions::new().write(true).create(true).truncate(true).mode(0o644).open(&unfinished)?;
        file.write_all(&code)?;
        fs::rename(&unfinished, &path)?;
        filled.push(path);
    }
    Ok(filled)
}

fn name(digest: &[u8; 32]) -> String {
    format!("{}.cwasm", hex::encode(digest))
}
