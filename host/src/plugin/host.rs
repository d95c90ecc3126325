//! What a plugin may call: its log, and facts about the event at hand.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use super::bindings::callgate::policy::host::{FileRole, Host, Level, Stream, Subject};
use super::bindings::{self, types};
use super::engine::Engine;
use super::limits::Limits;
use super::text::clean;
use crate::decide::{self, Facts};

/// How many facts a plugin may ask for in one decision: each costs system calls.
const FACTS: u32 = 256;
/// Bytes of a variable's name that are said of it.
const VARIABLE: usize = 128;
/// How many ancestors it gets, as the interface says.
const ANCESTORS: usize = 64;

/// What belongs to an instance.
pub(super) struct State {
    pub(super) limits: Limits,
    pub(super) log: Log,
    pub(super) paths: Paths,
    /// The event at hand, while there is one.
    facts: Option<Arc<dyn Facts>>,
    asked: u32,
    /// Whether the plugin has said that its verdict rests on the action alone.
    by_action_alone: bool,
    /// Whether it has asked for what the action does not say.
    asked_for_more: bool,
    /// Why a fact could not be had of which the interface cannot say that.
    missed: Option<String>,
}

impl State {
    pub(super) fn new(memory: usize, log: Log, paths: Paths) -> Self {
        Self {
            limits: Limits::new(memory),
            log,
            paths,
            facts: None,
            asked: 0,
            by_action_alone: false,
            asked_for_more: false,
            missed: None,
        }
    }

    /// Begins a decision.
    pub(super) fn enter(&mut self, facts: Option<Arc<dyn Facts>>) {
        self.facts = facts;
        self.asked = 0;
        self.by_action_alone = false;
        self.asked_for_more = false;
        self.missed = None;
        self.log.enter();
    }

    /// Ends it. Returns why a fact could not be had, if the plugin was not told that.
    pub(super) fn leave(&mut self) -> Option<String> {
        self.facts = None;
        self.missed.take()
    }

    /// Whether the verdict of the decision that is at its end rests on the action alone.
    pub(super) fn is_by_action_alone(&self) -> bool {
        self.by_action_alone && !self.asked_for_more
    }

    fn facts(&mut self) -> Result<Option<&dyn Facts>, TooManyFacts> {
        self.asked += 1;
        if self.asked > FACTS {
            return Err(TooManyFacts);
        }
        Ok(self.facts.as_deref())
    }

    /// For facts that an equal action does not answer alike.
    fn more_facts(&mut self) -> Result<Option<&dyn Facts>, TooManyFacts> {
        self.asked_for_more = true;
        self.facts()
    }
}

/// A plugin keeps asking.
#[derive(Debug, thiserror::Error)]
#[error("asks for more than {FACTS} facts in one decision")]
pub(super) struct TooManyFacts;

impl types::Host for State {}

impl Host for State {
    fn log(&mut self, level: Level, message: String) -> wasmtime::Result<()> {
        self.log.write(level, message);
        Ok(())
    }

    fn ancestors(&mut self) -> wasmtime::Result<Vec<Subject>> {
        let ancestors = self.more_facts()?.map(Facts::ancestors).unwrap_or_default();
        Ok(ancestors.into_iter().take(ANCESTORS).map(subject).collect())
    }

    fn digest(&mut self, role: FileRole) -> wasmtime::Result<Result<String, String>> {
        let role = match role {
            FileRole::File => decide::FileRole::File,
            FileRole::Interpreter(position) => decide::FileRole::Interpreter(position as usize),
            FileRole::Loader => decide::FileRole::Loader,
        };
        Ok(match self.more_facts()? {
            Some(facts) => facts.digest(role),
            None => Err("no event is being decided".into()),
        })
    }

    fn canonical_path(&mut self, path: String) -> wasmtime::Result<Option<String>> {
        Ok(self.paths.canonical(path)?)
    }

    fn environment(&mut self, name: String) -> wasmtime::Result<Option<String>> {
        let found = self.more_facts()?.map_or(Ok(None), |facts| facts.environment(&name));
        Ok(found.unwrap_or_else(|why| {
            self.missed = Some(format!("asked for the variable {}, but {why}", clean(name, VARIABLE)));
            None
        }))
    }

    fn standard_stream(&mut self, number: u32) -> wasmtime::Result<Stream> {
        let found = self.more_facts()?.map(|facts| facts.standard_stream(number)).unwrap_or_default();
        Ok(bindings::stream(found))
    }

    fn names(&mut self) -> wasmtime::Result<Vec<String>> {
        Ok(self.facts()?.map(Facts::names).unwrap_or_default())
    }

    fn started_ms(&mut self) -> wasmtime::Result<u64> {
        Ok(self.facts()?.map(Facts::started_ms).unwrap_or_default())
    }

    fn by_action_alone(&mut self) -> wasmtime::Result<()> {
        self.by_action_alone = true;
        Ok(())
    }
}

/// Where the paths of a plugin's configuration lead. Looked up while the first instance is configured, and settled then.
pub(super) struct Paths {
    /// What all plugins of the engine have found.
    known: Arc<Mutex<HashMap<String, String>>>,
    found: HashMap<String, Option<String>>,
    /// Bytes that `found` takes, about.
    bytes: usize,
    settled: bool,
}

impl Paths {
    /// How much is remembered: a quarter of a million paths of the usual length.
    const BYTES: usize = 64 << 20;
    /// What a path takes beside its own bytes and those of the answer.
    const EACH: usize = 64;
    /// What is longer is no path, and is not remembered (`PATH_MAX`, limits.h).
    const LONGEST: usize = 4096;

    /// None yet.
    pub(super) fn of(engine: &Engine) -> Self {
        Self { known: Arc::clone(&engine.paths), found: HashMap::new(), bytes: 0, settled: false }
    }

    /// From now on nothing is looked up any more.
    pub(super) fn settle(&mut self) {
        self.settled = true;
    }

    fn canonical(&mut self, path: String) -> Result<Option<String>, TooManyPaths> {
        if let Some(found) = self.found.get(&path) {
            return Ok(found.clone());
        }
        if self.settled || path.len() >= Self::LONGEST {
            return Ok(None);
        }
        let mut known = self.known.lock().unwrap_or_else(PoisonError::into_inner);
        let found = known
            .get(&path)
            .cloned()
            .or_else(|| std::fs::canonicalize(&path).ok()?.into_os_string().into_string().ok());
        if let Some(found) = &found {
            known.insert(path.clone(), found.clone());
        }
        drop(known);
        self.bytes += path.len() + found.as_ref().map_or(0, String::len) + Self::EACH;
        if self.bytes > Self::BYTES {
            return Err(TooManyPaths);
        }
        self.found.insert(path, found.clone());
        Ok(found)
    }
}

/// A plugin keeps looking up paths.
#[derive(Debug, thiserror::Error)]
#[error("looks up more paths than fit into {} MiB", Paths::BYTES >> 20)]
pub(super) struct TooManyPaths;

fn subject(subject: crate::event::Subject) -> Subject {
    Subject {
        pid: subject.pid,
        tid: subject.tid,
        parent: subject.parent,
        executable: subject.executable,
        uid: subject.uid,
        gid: subject.gid,
    }
}

/// A plugin's log messages, of which only so many and so much get through.
pub(super) struct Log {
    plugin: Arc<str>,
    /// Messages of this call.
    call: u32,
    /// The second at hand, and the messages in it.
    second: Option<Instant>,
    messages: u32,
    /// Messages that were dropped and not yet spoken of.
    dropped: u64,
    /// The first panic message of this call.
    panic: Option<String>,
}

impl Log {
    /// Bytes of one message.
    const LENGTH: usize = 4096;
    /// Messages in one call of the plugin.
    const PER_CALL: u32 = 32;
    /// Messages in a second.
    const PER_SECOND: u32 = 200;

    pub(super) fn new(plugin: Arc<str>) -> Self {
        Self { plugin, call: 0, second: None, messages: 0, dropped: 0, panic: None }
    }

    /// What the panic handler of the plugin said in this call.
    pub(super) fn take_panic(&mut self) -> Option<String> {
        self.panic.take()
    }

    fn enter(&mut self) {
        self.call = 0;
        self.panic = None;
    }

    fn write(&mut self, level: Level, message: String) {
        let message = clean(message, Self::LENGTH);
        // Rust's panic messages begin so, and the SDK logs them. What it says is worth more than the trap that follows.
        if level == Level::Error && self.panic.is_none() && message.starts_with("panicked at ") {
            self.panic = Some(message.clone());
        }
        let now = Instant::now();
        if self.second.is_none_or(|second| now.duration_since(second) >= Duration::from_secs(1)) {
            self.second = Some(now);
            self.messages = 0;
            if self.dropped > 0 {
                tracing::warn!(target: "callgate::plugin", plugin = &*self.plugin, "{} messages dropped", self.dropped);
                self.dropped = 0;
            }
        }
        if self.call >= Self::PER_CALL || self.messages >= Self::PER_SECOND {
            self.dropped += 1;
            return;
        }
        self.call += 1;
        self.messages += 1;
        let plugin = &*self.plugin;
        match level {
            Level::Error => tracing::error!(target: "callgate::plugin", plugin, "{message}"),
            Level::Warn => tracing::warn!(target: "callgate::plugin", plugin, "{message}"),
            Level::Info => tracing::info!(target: "callgate::plugin", plugin, "{message}"),
            Level::Debug => tracing::debug!(target: "callgate::plugin", plugin, "{message}"),
            Level::Trace => tracing::trace!(target: "callgate::plugin", plugin, "{message}"),
        }
    }
}
