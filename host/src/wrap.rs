//! The main job: a policy, the plugins that it names, and the command under them.
//!
//! What `callgate run` does, from the policy's file to the command's exit status. May depend on everything.

use std::ffi::{CString, OsString};
use std::fs::File;
use std::io::IsTerminal;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};

use crate::audit::Sinks;
use crate::decide::{Chain, ChainError};
use crate::launch::{self, Launch};
use crate::log;
use crate::plugin::cache::{self, Cache};
use crate::plugin::{Engine, LoadError, Plugin, builtin, kind, read_component};
use crate::policy::{Mode, PluginSettings, PluginSource, Policy, PolicyError, Source};
use crate::reload::Origin;
use crate::supervise::Supervisor;
use crate::sys::credentials::{Identity, capability_sets};
use crate::sys::{interruption, process};

/// The policy where nobody names another.
pub const DEFAULT_POLICY: &str = "/etc/callgate/policy.json";

/// Where compiled plugins are kept, where nobody names another directory.
pub const DEFAULT_CACHE: &str = "/var/cache/callgate";

/// What is to be run, and how.
#[derive(Debug)]
pub struct Wrap {
    /// The policy's file.
    pub policy: PathBuf,
    /// The directory of compiled plugins; it need not be there.
    pub cache: PathBuf,
    /// The mode that a flag or the environment asks for, and which of them.
    pub mode: Option<(Mode, &'static str)>,
    /// The command and its arguments.
    pub command: Vec<OsString>,
    /// The environment that it gets.
    pub environment: Vec<CString>,
}

/// Runs the command under the policy. Returns its exit status: its own, 128+n for signal n, 126 where it may not run, 127
/// where there is none.
///
/// # Errors
/// Our own failures, before the command has begun; the exit status for them is 125. A mistake in the policy is a
/// [`PolicyError`].
pub fn run(wrap: &Wrap) -> Result<u8> {
    process::outlive_file_limit();
    let launch =
        Launch { command: wrap.command.clone(), environment: wrap.environment.clone(), without: WITHHELD.to_vec() };
    launch::run(&launch, || prepare(wrap))
}

fn prepare(wrap: &Wrap) -> Result<Supervisor> {
    let (policy, source) = Policy::load(&wrap.policy)?;
    let mode = mode(&policy, wrap.mode);
    interruption::tell_sent_from_faults()?;
    let mut engine = Engine::new()?;
    if let Some(cache) = Cache::open(&wrap.cache, workload()?) {
        engine = engine.cached(cache);
    }
    let chain = load(&engine, &policy, &source)?;
    let sinks = Sinks::open(&policy.audit)
        .map_err(|error| source.error_at(&format!("/audit/sinks/{}/to", error.index), error.message, error.hint))?;
    let origin = Origin::of(&wrap.policy)?;
    Ok(Supervisor::new(engine, chain, mode, policy, sinks, origin, wrap.mode))
}

/// Capabilities (capabilities(7)) that the command never gets: with them it could read, write or replace the supervisor, or
/// the kernel under it. `CAP_SYS_MODULE`, `CAP_SYS_RAWIO`, `CAP_SYS_PTRACE`, `CAP_PERFMON`, `CAP_BPF`.
const WITHHELD: [u32; 5] = [16, 17, 19, 38, 39];

pub(crate) fn mode(policy: &Policy, asked: Option<(Mode, &'static str)>) -> Mode {
    match asked {
        Some((mode, by)) if mode != policy.mode && policy.lock_mode => {
            tracing::warn!("{by} asks for another mode, but the policy locks it: {}", policy.mode);
            policy.mode
        }
        Some((mode, _)) => mode,
        None => policy.mode,
    }
}

/// [`WITHHELD`], as bits.
pub(crate) fn withheld() -> u64 {
    WITHHELD.iter().fold(0, |bits, capability| bits | 1 << capability)
}

/// The most that the command and what it starts may be: what we are, less what is withheld.
pub(crate) fn workload() -> Result<Identity> {
    Ok(Identity {
        uid: nix::unistd::geteuid().as_raw(),
        gid: nix::unistd::getegid().as_raw(),
        groups: Vec::new(),
        capabilities: capability_sets()?.permitted & !withheld(),
    })
}

/// Compiles the plugins of a policy that come from files into a cache, for the build of an image. Says where they are.
///
/// # Errors
/// A mistake in the policy, a file that cannot be read or is no plugin, a directory that cannot be written.
pub fn compile(policy: &Path, cache: &Path) -> Result<String> {
    let (policy, source) = Policy::load(policy)?;
    // First of all, whether they can be used.
    load(&Engine::new()?, &policy, &source)?;
    let mut components = Vec::new();
    for plugin in &policy.plugins {
        if let PluginSource::File { path, .. } = &plugin.source {
            let component = File::open(path).and_then(read_component);
            components.push(component.with_context(|| format!("cannot read {}", path.display()))?);
        }
    }
    let filled = cache::fill(cache, &components).with_context(|| format!("cannot fill {}", cache.display()))?;
    Ok(filled.iter().map(|path| format!("{}\n", path.display())).collect())
}

/// Loads the plugins of a policy.
pub(crate) fn load(engine: &Engine, policy: &Policy, source: &Source) -> Result<Chain> {
    // Plugins run only while the clock does; its thread has ended when this returns, so that we can fork.
    let _clock = engine.start_clock().context("cannot start a thread")?;
    load_running(engine, policy, source)
}

/// The same, where the engine's clock runs already.
pub(crate) fn load_running(engine: &Engine, policy: &Policy, source: &Source) -> Result<Chain> {
    let chain = Chain::load(engine, policy, builtin::ALLOWLIST_PRECOMPILED);
    Ok(chain.map_err(|error| explain(engine, policy, source, error))?)
}

/// A plugin that cannot be used is a mistake in the policy, at the place that names what is wrong.
fn explain(engine: &Engine, policy: &Policy, source: &Source, error: ChainError) -> PolicyError {
    let settings = &policy.plugins[error.index];
    let (place, hint) = match &error.source {
        LoadError::Config { pointer, hint, .. } => (format!("{}{pointer}", settings.config_place), hint.clone()),
        LoadError::Digest { actual, .. } => {
            (format!("{}/sha256", settings.place), Some(format!("if this is the plugin you mean, write {actual:?}")))
        }
        LoadError::Start(failure) if failure.kind == kind::MEMORY => {
            let hint = least_memory(engine, settings)
                .map(|least| format!("\"memory_mib\": {least} is the least that will do"));
            (format!("{}/memory_mib", settings.place), hint)
        }
        error => (format!("{}/path", settings.place), path_hint(settings, error)),
    };
    source.mistake(&place, format!("plugin {:?}: {}", settings.name, error.source), hint)
}

/// What to do about a file that is none, or no plugin.
fn path_hint(settings: &PluginSettings, error: &LoadError) -> Option<String> {
    let PluginSource::File { path, .. } = &settings.source else { return None };
    match error {
        LoadError::Read { source, .. } if source.kind() == std::io::ErrorKind::NotFound => {
            let directory = path.parent().filter(|directory| directory.is_dir());
            Some(match directory {
                Some(_) => "a path is relative to the directory of the policy".to_owned(),
                None => {
                    "its directory is not there either; a path is relative to the directory of the policy".to_owned()
                }
            })
        }
        LoadError::Invalid(_) => {
            Some("a plugin is a WebAssembly component, as `callgatectl plugin build` makes them".to_owned())
        }
        _ => None,
    }
}

/// How much memory a plugin needs to start, in MiB.
fn least_memory(engine: &Engine, settings: &PluginSettings) -> Option<usize> {
    const MOST: usize = 4096;
    let starts = |mib: usize| {
        let settings = PluginSettings { memory: mib << 20, ..settings.clone() };
        Plugin::load(engine, &settings, builtin::ALLOWLIST_PRECOMPILED).is_ok()
    };
    let mut low = settings.memory >> 20;
    let mut high = (1..).map(|n| low << n).take_while(|mib| *mib <= MOST).find(|mib| starts(*mib))?;
    while high - low > 1 {
        let middle = low.midpoint(high);
        if starts(middle) {
            high = middle;
        } else {
            low = middle;
        }
    }
    Some(high)
}

/// Says on standard error why we have failed.
pub fn report(error: &anyhow::Error) {
    let colour = std::io::stderr().is_terminal() && std::env::var_os("NO_COLOR").is_none_or(|value| value.is_empty());
    match error.downcast_ref::<PolicyError>() {
        Some(mistake) => log::say(&mistake.render(colour)),
        None => log::say(&format!("{error:#}")),
    }
}
