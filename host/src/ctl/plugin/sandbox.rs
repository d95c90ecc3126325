//! The runtime that enforces, around one component.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use sha2::{Digest, Sha256};
use wasmtime::component::Component;

use super::events::Told;
use crate::decide::{Denial, Facts, Failure, Verdict};
use crate::event::{Event, EventKind};
use crate::plugin::{self, Clock, Description, Engine, LoadError, Plugin};
use crate::policy::document::PluginDocument;
use crate::policy::{Mode, OnFailure, PluginSettings, PluginSource, Source};

/// What a policy may say about a plugin beside its configuration.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Limits {
    /// How long a decision may take, in milliseconds.
    pub deadline_ms: u64,
    /// How much memory it may use, in MiB.
    pub memory_mib: u64,
}

/// Those of a policy that says nothing.
impl Default for Limits {
    fn default() -> Self {
        let PluginDocument { deadline_ms, memory_mib, .. } = PluginDocument::named("plugin");
        Self { deadline_ms, memory_mib }
    }
}

/// A compiled component, and what it runs in.
pub(super) struct Sandbox {
    engine: Engine,
    // Plugins run only while the clock does.
    _clock: Clock,
    component: Component,
    file: PathBuf,
    /// The component's bytes.
    pub(super) bytes: Vec<u8>,
    /// How long compiling it took.
    pub(super) compiled_in: Duration,
}

impl Sandbox {
    /// Reads and compiles a component.
    pub(super) fn open(file: &Path) -> Result<Self> {
        let engine = Engine::new()?;
        let clock = engine.start_clock().context("cannot start a thread")?;
        let bytes = match plugin::read(file) {
            Err(LoadError::Read { source, .. }) => bail!("cannot read {}: {source}", file.display()),
            other => other?,
        };
        let started = Instant::now();
        let component = plugin::compile(&engine, &bytes).map_err(|e| anyhow::anyhow!("{}: {e}", file.display()))?;
        let compiled_in = started.elapsed();
        Ok(Self { engine, _clock: clock, component, file: file.to_owned(), bytes, compiled_in })
    }

    /// The names of what it imports.
    pub(super) fn imports(&self) -> Vec<String> {
        let kind = self.component.component_type();
        kind.imports(self.engine.wasm()).map(|(name, _)| name.to_owned()).collect()
    }

    /// The names of what it exports.
    pub(super) fn exports(&self) -> Vec<String> {
        let kind = self.component.component_type();
        kind.exports(self.engine.wasm()).map(|(name, _)| name.to_owned()).collect()
    }

    /// What it says it is, without a configuration.
    pub(super) fn describe(&self, limits: Limits) -> Result<Description, LoadError> {
        plugin::describe(&self.engine, &self.component, memory(limits))
    }

    /// An instance of its own with this configuration.
    pub(super) fn plugin(&self, config: &str, limits: Limits) -> Result<Plugin, LoadError> {
        let name = self.file.file_stem().unwrap_or_default().to_string_lossy().into_owned();
        let settings = PluginSettings {
            name,
            source: PluginSource::File { path: self.file.clone(), sha256: None, content: None },
            config: config.to_owned(),
            on_failure: OnFailure::Deny,
            deadline: Duration::from_millis(limits.deadline_ms),
            memory: memory(limits),
            mode: Mode::Enforce,
            place: String::new(),
            config_place: String::new(),
        };
        Plugin::of(&self.engine, &settings, &self.component, Sha256::digest(&self.bytes).into())
    }

    /// The same, where what is wrong with the configuration is shown in it.
    pub(super) fn configured(&self, config: &Source, limits: Limits) -> Result<Plugin> {
        self.plugin(&config.text, limits).map_err(|error| match error {
            LoadError::Config { pointer, message, hint } => {
                config.mistake(&pointer, format!("{} refuses it: {message}", self.file.display()), hint).into()
            }
            other => anyhow::anyhow!("{} {other}", self.file.display()),
        })
    }
}

fn memory(limits: Limits) -> usize {
    (limits.memory_mib as usize) << 20
}

/// What a plugin answered.
pub(super) enum Answer {
    Verdict(Verdict),
    Failed(Failure),
    /// It did not subscribe to events of this kind.
    NotAsked,
}

/// Asks the plugin as the chain would.
pub(super) fn ask(plugin: &mut Plugin, event: &Event, facts: &Arc<dyn Facts>) -> (Answer, Duration) {
    if !plugin.subscriptions().contains(event.kind()) {
        return (Answer::NotAsked, Duration::ZERO);
    }
    let started = Instant::now();
    let answer = plugin.decide(event, facts);
    let took = started.elapsed();
    (answer.map_or_else(Answer::Failed, |said| Answer::Verdict(said.verdict)), took)
}

/// Asks it about what somebody wrote down.
pub(super) fn ask_about(plugin: &mut Plugin, told: &Told) -> (Answer, Duration) {
    let facts = told.facts.clone().about(&told.event);
    ask(plugin, &told.event, &facts)
}

impl Answer {
    /// The word that cases use for it.
    pub(super) fn word(&self) -> &'static str {
        match self {
            Self::Verdict(Verdict::Allow { .. }) => "allow",
            Self::Verdict(Verdict::Deny(_)) => "deny",
            Self::Verdict(Verdict::Abstain) | Self::NotAsked => "abstain",
            Self::Failed(_) => "fail",
        }
    }

    /// The rule that it names; the kind of a failure.
    pub(super) fn rule(&self) -> Option<&str> {
        match self {
            Self::Verdict(Verdict::Allow { rule }) => rule.as_deref(),
            Self::Verdict(Verdict::Deny(denial)) => Some(&denial.rule),
            Self::Verdict(Verdict::Abstain) | Self::NotAsked => None,
            Self::Failed(failure) => Some(&failure.kind),
        }
    }

    /// Why it denied, or how it failed.
    pub(super) fn reason(&self) -> Option<&str> {
        match self {
            Self::Verdict(Verdict::Deny(denial)) => Some(&denial.reason),
            Self::Failed(failure) => Some(&failure.message),
            Self::NotAsked => Some("it did not subscribe to events of this kind"),
            Self::Verdict(_) => None,
        }
    }

    /// What the caller would have to do to be allowed.
    pub(super) fn hint(&self) -> Option<&str> {
        self.denial().and_then(|denial| denial.hint.as_deref())
    }

    /// The errno that the caller gets.
    pub(super) fn errno(&self, kind: EventKind) -> Option<i32> {
        self.denial().map(|denial| denial.errno_for(kind))
    }

    fn denial(&self) -> Option<&Denial> {
        match self {
            Self::Verdict(Verdict::Deny(denial)) => Some(denial),
            _ => None,
        }
    }

    /// For a person: `deny [rule]: reason`.
    pub(super) fn text(&self) -> String {
        let mut text = self.word().to_owned();
        if let Some(rule) = self.rule() {
            text = format!("{text} [{rule}]");
        }
        match self.reason() {
            Some(reason) => format!("{text}: {reason}"),
            None => text,
        }
    }
}
