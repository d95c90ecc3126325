//! Another policy for a workload that runs already.
//!
//! All or nothing: the policy and every plugin of it are loaded beside those that are in force, and take their place between
//! two decisions; or nothing changes, and the reason is said. A plugin that stays as it was keeps its instance, and so what
//! it remembers.
//!
//! *Who may change it.* Whoever may signal the supervisor from outside of the workload may ask it to read its policy again,
//! but by then the workload may have written the file. So a file is believed only if the workload cannot have written it,
//! and a plugin only by its digest in the policy. Whoever comes through [`crate::control`] hands the files over and answers
//! for them.
//!
//! May depend on everything that `wrap` may.

use std::ffi::OsString;
use std::fs::File;
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use anyhow::{Context, Result, bail, ensure};
use nix::fcntl::{OFlag, OpenHow, ResolveFlag, open, openat2};
use nix::sys::stat::Mode as FileMode;

use crate::decide::Chain;
use crate::plugin::{Engine, read_component};
use crate::policy::{Mode, PluginSource, Policy, PolicyError, Source};
use crate::sys::credentials::Identity;
use crate::{trust, wrap};

/// A policy that could take the place of the one in force.
pub struct Candidate {
    /// The policy.
    pub policy: Policy,
    /// Its plugins.
    pub chain: Chain,
    /// Its mode, or the one that a flag asks for.
    pub mode: Mode,
    /// The policy's text and name.
    pub source: Source,
}

impl Candidate {
    /// Loads the plugins of a policy. The engine's clock must run.
    ///
    /// # Errors
    /// A mistake in the policy.
    pub fn load(engine: &Engine, policy: Policy, source: Source, asked: Option<(Mode, &'static str)>) -> Result<Self> {
        let chain = wrap::load_running(engine, &policy, &source)?;
        let mode = wrap::mode(&policy, asked);
        Ok(Self { policy, chain, mode, source })
    }
}

/// Where the policy came from, and may be read again.
#[derive(Debug)]
pub struct Origin {
    path: PathBuf,
    /// The directory that the file was in when we started, whatever its path leads to later.
    directory: OwnedFd,
    name: OsString,
}

impl Origin {
    /// The policy of this path, which has just been read.
    ///
    /// # Errors
    /// Its directory cannot be opened.
    pub fn of(path: &Path) -> Result<Self> {
        let name = path.file_name().with_context(|| format!("{} is no file", path.display()))?.to_owned();
        let parent = path.parent().filter(|parent| !parent.as_os_str().is_empty()).unwrap_or(Path::new("."));
        let directory = open(parent, OFlag::O_PATH | OFlag::O_DIRECTORY | OFlag::O_CLOEXEC, FileMode::empty())
            .with_context(|| format!("cannot open {}", parent.display()))?;
        Ok(Self { path: path.to_owned(), directory, name })
    }

    /// The policy's path, as it was given.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Reads the policy again, if the workload, which has at most the rights of `workload`, cannot have written it.
    ///
    /// # Errors
    /// It could have; the file cannot be read; there is a mistake in it; a plugin of it is not pinned by its digest.
    pub fn read_again(&self, workload: &Identity) -> Result<(Policy, Source)> {
        let how = OpenHow::new()
            // Neither a fifo nor a terminal may do something to us before we see what it is.
            .flags(OFlag::O_RDONLY | OFlag::O_NONBLOCK | OFlag::O_NOCTTY | OFlag::O_CLOEXEC)
            .resolve(ResolveFlag::RESOLVE_BENEATH | ResolveFlag::RESOLVE_NO_MAGICLINKS);
        let file = openat2(&self.directory, self.name.as_os_str(), how).map_err(|error| {
            PolicyError::of_file(&self.path, format!("cannot read the policy: {}", error.desc()), None)
        })?;
        if let Some(how) = trust::writable(&file, &self.directory, Path::new(&self.name), workload)? {
            bail!(
                "{}: the workload {how} and so could have written it; mount it read-only, or hand the policy over with \
                 `callgate reload --policy FILE`",
                self.path.display()
            );
        }
        let source = Source::read(File::from(file), &self.path)?;
        let policy = Policy::parse(&source)?;
        for plugin in &policy.plugins {
            if let PluginSource::File { sha256: None, .. } = &plugin.source {
                let hint = "add the \"sha256\" of the file; `sha256sum FILE` prints it";
                let message = format!("plugin {:?} could have been written by the workload", plugin.name);
                return Err(source.mistake(&format!("{}/path", plugin.place), message, Some(hint.to_owned())).into());
            }
        }
        Ok((policy, source))
    }
}

/// Files that somebody has handed over.
#[derive(Debug)]
pub struct Handed {
    /// What the policy's file is called; the paths of its plugins are relative to it.
    pub path: PathBuf,
    /// The policy.
    pub policy: File,
    /// The plugins that it names, by their paths as the policy means them.
    pub plugins: Vec<(PathBuf, File)>,
}

impl Handed {
    /// Opens a policy and what it names, to be handed over.
    ///
    /// # Errors
    /// A file cannot be opened, or there is a mistake in the policy.
    pub fn open(path: &Path) -> Result<Self> {
        let (policy, _) = Policy::load(path)?;
        let mut plugins: Vec<(PathBuf, File)> = Vec::new();
        for plugin in &policy.plugins {
            if let PluginSource::File { path, .. } = &plugin.source
                && !plugins.iter().any(|(known, _)| known == path)
            {
                let file = File::open(path)
                    .with_context(|| format!("plugin {:?}: cannot read {}", plugin.name, path.display()))?;
                plugins.push((path.clone(), file));
            }
        }
        let policy = File::open(path).with_context(|| format!("cannot read {}", path.display()))?;
        Ok(Self { path: path.to_owned(), policy, plugins })
    }

    /// Reads the files.
    ///
    /// # Errors
    /// One cannot be read, or is not there; there is a mistake in the policy.
    pub fn read(self) -> Result<(Policy, Source)> {
        let source = Source::read(self.policy, &self.path)?;
        let mut policy = Policy::parse(&source)?;
        let mut contents: Vec<(PathBuf, Arc<[u8]>)> = Vec::new();
        for (path, file) in self.plugins {
            let bytes = read_component(file).with_context(|| format!("cannot read {}", path.display()))?;
            contents.push((path, bytes.into()));
        }
        for plugin in &mut policy.plugins {
            if let PluginSource::File { path, content, .. } = &mut plugin.source {
                *content = contents.iter().find(|(known, _)| known == path).map(|(_, bytes)| Arc::clone(bytes));
                ensure!(content.is_some(), "plugin {:?}: {} was not handed over", plugin.name, path.display());
            }
        }
        Ok((policy, source))
    }
}
