//! `callgatectl plugin …`: from an empty directory to a tested, signed and shipped plugin.
//!
//! A plugin is looked at, run and tested in the runtime that enforces, with its limits: there is no second one that could be
//! of another mind.

pub mod archive;
mod artifact;
pub mod bench;
pub mod build;
pub mod cases;
mod events;
pub mod inspect;
pub mod new;
pub mod registry;
mod report;
pub mod run;
mod sandbox;
pub mod sign;
pub mod test;
mod wasi;

use std::ffi::OsStr;
use std::fs;
use std::io::Read;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};

pub use self::report::Format;
pub use self::sandbox::Limits;
use crate::policy::Source;

/// The configuration that a plugin gets: a file's, or the argument itself where that is JSON.
///
/// # Errors
/// The file cannot be read, or it is not JSON.
pub fn config(argument: Option<&OsStr>) -> Result<Source> {
    let source = match argument {
        None => Source { path: "(no --config)".into(), text: "{}".to_owned() },
        Some(text) if is_json(text) => Source { path: "--config".into(), text: text.to_string_lossy().into_owned() },
        Some(file) => document(Path::new(file))?,
    };
    if let Err(error) = serde_json::from_str::<serde_json::Value>(&source.text) {
        return Err(source.no_json(&error).into());
    }
    Ok(source)
}

/// Whether an argument is meant as JSON. A number or a word could as well be a file's name, if there is such a file.
fn is_json(argument: &OsStr) -> bool {
    let text = argument.to_string_lossy();
    let simple = || serde_json::from_str::<serde_json::Value>(&text).is_ok() && !Path::new(argument).exists();
    text.trim_start().starts_with(['{', '[', '"']) || simple()
}

/// A text file; `-` is standard input.
fn document(path: &Path) -> Result<Source> {
    let mut bytes = Vec::new();
    let (read, name) = if path == Path::new("-") {
        (std::io::stdin().lock().read_to_end(&mut bytes).map(|_| ()), PathBuf::from("(standard input)"))
    } else {
        (fs::read(path).map(|content| bytes = content), path.to_owned())
    };
    read.with_context(|| format!("cannot read {}", name.display()))?;
    match String::from_utf8(bytes) {
        Ok(text) => Ok(Source { path: name, text }),
        Err(error) => {
            let at = error.utf8_error().valid_up_to();
            let source = Source { path: name, text: String::from_utf8_lossy(error.as_bytes()).into_owned() };
            Err(source.error_at_byte(at, "not UTF-8", None).into())
        }
    }
}

/// The component of a plugin: the file itself, or what the crate in the directory is built to.
fn component(path: &Path) -> Result<PathBuf> {
    if path.is_dir() { build::build(path, None) } else { Ok(path.to_owned()) }
}

/// SHA-256 in lower-case hexadecimal.
fn sha256(bytes: &[u8]) -> String {
    use sha2::{Digest, Sha256};
    hex::encode(Sha256::digest(bytes))
}
