//! Plugins in wasmtime: engine, limits, host functions.
//!
//! A plugin is a component without any rights: it computes on what it is given, for as long and in as much memory as the
//! policy says, and whatever it does ends in a [`Verdict`] or a [`Failure`]. Start at [`Plugin`].
//!
//! May depend on `event`, `policy` and `decide`'s types; knows nothing of the kernel.

mod bindings;
pub mod builtin;
pub mod cache;
mod code;
mod engine;
pub mod engine_config;
mod host;
mod limits;
mod text;

use std::io;
use std::mem;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, Instant};

use wasmtime::component::{Component, HasSelf, Linker};
use wasmtime::{Store, Trap};

use self::bindings::{PluginPre, types};
pub use self::code::{compile, read, read_component};
pub use self::engine::{Clock, Engine, EngineError};
use self::host::{Log, Paths, State, TooManyFacts, TooManyPaths};
use self::limits::OverLimit;
use self::text::clean;
use crate::decide::{Denial, Facts, Failure, Said, Verdict};
use crate::event::{Event, EventKinds};
use crate::policy::PluginSettings;

/// How long an instance may take to come up: its start functions, and reading its configuration.
const START: Duration = Duration::from_secs(5);
/// How long a plugin without an instance waits for the next attempt at one.
const AGAIN: Duration = Duration::from_secs(1);
/// How many bytes a plugin can hand to the host in one call, in either direction.
const TRANSFER: usize = 1 << 20;
/// The largest errno(3) of Linux.
const ERRNOS: std::ops::RangeInclusive<u16> = 1..=133;

/// Bytes of what a plugin says, beyond which it is cut.
const NAME: usize = 128;
const SENTENCE: usize = 1024;

/// A loaded and configured plugin.
pub struct Plugin {
    name: Arc<str>,
    blueprint: Blueprint,
    /// In ticks of the clock.
    deadline: u64,
    description: Description,
    subscriptions: EventKinds,
    instance: Instance,
}

/// What a plugin says it is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Description {
    /// Its own name; the policy may call it otherwise.
    pub name: String,
    /// Its version.
    pub version: String,
    /// A JSON Schema of its configuration.
    pub config_schema: Option<String>,
}

/// Why a plugin cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum LoadError {
    /// Its file cannot be read.
    #[error("cannot read {}: {source}", path.display())]
    Read {
        /// The file.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// Its file has other content than the policy says.
    #[error("has the sha256 {actual}, the policy says {expected}")]
    Digest {
        /// What the policy says.
        expected: String,
        /// What the file has, in lower-case hexadecimal.
        actual: String,
    },
    /// It is not a component, or cannot be compiled.
    #[error("{0}")]
    Invalid(String),
    /// It wants more of the host than plugins get.
    #[error("imports {0}; a plugin may import nothing but callgate:policy/host@0.1")]
    Import(String),
    /// It is a component, but not a plugin.
    #[error("is no plugin of callgate:policy@0.1: {0}")]
    Interface(String),
    /// It failed before it was configured.
    #[error("does not start: {} ({})", .0.message, .0.kind)]
    Start(Failure),
    /// It refused its configuration.
    #[error("{message}")]
    Config {
        /// Where in the configuration: a JSON Pointer, empty for all of it.
        pointer: String,
        /// What is wrong there.
        message: String,
        /// What to write instead.
        hint: Option<String>,
    },
}

impl Plugin {
    /// Loads, instantiates and configures the plugin. `builtin` is the code of the built-in one, compiled ahead of time.
    /// The engine's clock must run.
    ///
    /// # Errors
    /// See [`LoadError`].
    pub fn load(engine: &Engine, settings: &PluginSettings, builtin: &'static [u8]) -> Result<Self, LoadError> {
        let (component, digest) = code::component(engine, settings, builtin)?;
        Self::of(engine, settings, &component, digest)
    }

    /// The same of a component that is compiled already, of bytes that have this SHA-256.
    ///
    /// # Errors
    /// See [`LoadError`].
    pub fn of(
        engine: &Engine,
        settings: &PluginSettings,
        component: &Component,
        digest: [u8; 32],
    ) -> Result<Self, LoadError> {
        let code = link(engine, component)?;
        let name: Arc<str> = settings.name.as_str().into();
        let blueprint = Blueprint {
            engine: engine.clone(),
            code,
            digest,
            config: settings.config.clone(),
            memory: settings.memory,
        };
        let Started { live, description, subscriptions } =
            blueprint.start(Log::new(Arc::clone(&name)), Paths::of(engine)).map_err(|failed| match failed.error {
                StartError::Failed(broken) => LoadError::Start(broken.failure(&name)),
                StartError::Refused { pointer, message, hint } => LoadError::Config { pointer, message, hint },
            })?;
        Ok(Self {
            name,
            blueprint,
            deadline: engine::ticks(settings.deadline),
            description,
            subscriptions,
            instance: Instance::Live(live),
        })
    }

    /// Whether both are the same: name, code, configuration and limits.
    pub fn is_like(&self, other: &Self) -> bool {
        let (one, two) = (&self.blueprint, &other.blueprint);
        self.name == other.name
            && self.deadline == other.deadline
            && (one.digest, &one.config, one.memory) == (two.digest, &two.config, two.memory)
    }

    /// Its name in the policy.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// What it says it is.
    pub fn description(&self) -> &Description {
        &self.description
    }

    /// The kinds of event that it wants to be asked about.
    pub fn subscriptions(&self) -> EventKinds {
        self.subscriptions
    }

    /// How much linear memory its instance has, in bytes. An instance never gives any back.
    pub fn memory(&self) -> usize {
        match &self.instance {
            Instance::Live(live) => live.store.data().limits.used(),
            Instance::Failed { .. } | Instance::None => 0,
        }
    }

    /// Asks the plugin. `facts` are those of `event`.
    ///
    /// # Errors
    /// The plugin gave no answer, or none that makes sense. It then has a fresh instance for the next event; while none can
    /// be had, it fails, and it is tried again.
    pub fn decide(&mut self, event: &Event, facts: &Arc<dyn Facts>) -> Result<Said, Failure> {
        if matches!(&self.instance, Instance::Failed { next, .. } if Instant::now() >= *next) {
            self.restart();
        }
        let live = match &mut self.instance {
            Instance::Live(live) => live,
            Instance::Failed { failure, .. } => return Err(failure.clone()),
            Instance::None => return Err(Broken::clock().failure(&self.name)),
        };
        let Some(running) = self.blueprint.engine.running() else {
            return Err(Broken::clock().failure(&self.name));
        };
        let (answer, missed) = live.decide(event, facts, self.deadline);
        let by_action_alone = live.store.data().is_by_action_alone();
        drop(running);
        match (answer, missed) {
            // It is sound, and keeps what it remembers; but what it says rests on something that nobody knows.
            (Ok(Verdict::Allow { .. } | Verdict::Abstain), Some(missed)) => {
                Err(Broken::new(kind::FACTS, missed).failure(&self.name))
            }
            (Ok(verdict), _) => Ok(Said { verdict, by_action_alone }),
            (Err(broken), _) => {
                self.restart();
                Err(broken.failure(&self.name))
            }
        }
    }

    /// Replaces the instance, whose state nobody can trust any more.
    fn restart(&mut self) {
        // The log goes over: a plugin that traps at every event gets no more to say for it. So do paths.
        let (log, paths) = match mem::replace(&mut self.instance, Instance::None) {
            Instance::Live(live) => {
                let State { log, paths, .. } = live.store.into_data();
                (log, paths)
            }
            Instance::Failed { log, paths, .. } => (log, paths),
            Instance::None => return,
        };
        self.instance = match self.blueprint.start(log, paths) {
            Ok(Started { live, .. }) => Instance::Live(live),
            Err(failed) => {
                let StartFailed { error, log, paths } = *failed;
                let broken = match error {
                    StartError::Failed(broken) => broken,
                    StartError::Refused { message, .. } => Broken::new(kind::CONFIG, message),
                };
                Instance::Failed { failure: broken.failure(&self.name), next: Instant::now() + AGAIN, log, paths }
            }
        };
    }
}

/// Asks a plugin what it is, whether it takes a configuration or not. The engine's clock must run.
///
/// # Errors
/// See [`LoadError`].
pub fn describe(engine: &Engine, component: &Component, memory: usize) -> Result<Description, LoadError> {
    let code = link(engine, component)?;
    let blueprint = Blueprint { engine: engine.clone(), code, digest: [0; 32], config: String::new(), memory };
    let mut store = Store::new(engine.wasm(), State::new(memory, Log::new("plugin".into()), Paths::of(engine)));
    let failed = |broken: Broken| LoadError::Start(broken.failure("plugin"));
    let _running = engine.running().ok_or_else(|| failed(Broken::clock()))?;
    blueprint.instantiate(&mut store).map(|(_, description)| description).map_err(failed)
}

/// Gives the component what plugins get, and nothing else.
fn link(engine: &Engine, component: &Component) -> Result<PluginPre<State>, LoadError> {
    code::check_imports(engine, component)?;
    let mut linker = Linker::new(engine.wasm());
    bindings::Plugin::add_to_linker::<_, HasSelf<State>>(&mut linker, |state| state)
        .and_then(|()| PluginPre::new(linker.instantiate_pre(component)?))
        .map_err(|e| LoadError::Interface(format!("{e:#}")))
}

/// What instances are made from.
struct Blueprint {
    engine: Engine,
    code: PluginPre<State>,
    /// SHA-256 of the component.
    digest: [u8; 32],
    config: String,
    memory: usize,
}

/// A configured instance, and what it said.
struct Started {
    live: Live,
    description: Description,
    subscriptions: EventKinds,
}

/// None, and what the next one goes on with.
struct StartFailed {
    error: StartError,
    log: Log,
    paths: Paths,
}

enum StartError {
    Failed(Broken),
    Refused { pointer: String, message: String, hint: Option<String> },
}

impl From<Broken> for StartError {
    fn from(broken: Broken) -> Self {
        Self::Failed(broken)
    }
}

impl Blueprint {
    fn start(&self, log: Log, paths: Paths) -> Result<Started, Box<StartFailed>> {
        let mut store = Store::new(self.engine.wasm(), State::new(self.memory, log, paths));
        match self.configure(&mut store) {
            Ok((exports, description, subscriptions)) => {
                store.data_mut().paths.settle();
                Ok(Started { live: Live { store, exports }, description, subscriptions })
            }
            Err(error) => {
                let State { log, paths, .. } = store.into_data();
                Err(Box::new(StartFailed { error, log, paths }))
            }
        }
    }

    fn configure(&self, store: &mut Store<State>) -> Result<(bindings::Plugin, Description, EventKinds), StartError> {
        let _running = self.engine.running().ok_or_else(Broken::clock)?;
        let (exports, description) = self.instantiate(store)?;
        let guest = exports.callgate_policy_policy();
        let configured = guest.call_configure(&mut *store, &self.config).map_err(|e| Broken::of(&e, store))?;
        let kinds = configured.map_err(|e| StartError::Refused {
            pointer: clean(e.pointer, SENTENCE),
            message: clean(e.message, SENTENCE),
            hint: e.hint.map(|hint| clean(hint, SENTENCE)),
        })?;
        Ok((exports, description, bindings::kinds(kinds)))
    }

    /// An instance that is not configured yet. The engine must be held running.
    fn instantiate(&self, store: &mut Store<State>) -> Result<(bindings::Plugin, Description), Broken> {
        store.limiter(|state| &mut state.limits);
        store.set_hostcall_fuel(TRANSFER);
        store.set_epoch_deadline(engine::ticks(START));
        store.data_mut().enter(None);

        let exports = self.code.instantiate(&mut *store).map_err(|e| Broken::of(&e, store))?;
        let guest = exports.callgate_policy_policy();
        let description = guest.call_describe(&mut *store).map_err(|e| Broken::of(&e, store))?;
        let description = Description {
            name: clean(description.name, NAME),
            version: clean(description.version, NAME),
            config_schema: description.config_schema,
        };
        Ok((exports, description))
    }
}

enum Instance {
    Live(Live),
    /// No new one could be made after the last had failed. It may have been for want of memory, and must not be so for ever.
    Failed {
        failure: Failure,
        next: Instant,
        log: Log,
        paths: Paths,
    },
    /// While it is replaced.
    None,
}

struct Live {
    store: Store<State>,
    exports: bindings::Plugin,
}

impl Live {
    /// The verdict; and why a fact could not be had, if the plugin was not told that.
    fn decide(
        &mut self,
        event: &Event,
        facts: &Arc<dyn Facts>,
        deadline: u64,
    ) -> (Result<Verdict, Broken>, Option<String>) {
        self.store.set_epoch_deadline(deadline);
        self.store.data_mut().enter(Some(Arc::clone(facts)));
        let lists = bindings::Lists::of(event);
        let answer = self.exports.callgate_policy_policy().call_decide(&mut self.store, bindings::event(event, &lists));
        let missed = self.store.data_mut().leave();
        match answer {
            Ok(verdict) => (check(verdict), missed),
            Err(e) => (Err(Broken::of(&e, &mut self.store)), missed),
        }
    }
}

/// Takes nothing from a plugin that would do harm in a record or at a caller.
fn check(verdict: types::Verdict) -> Result<Verdict, Broken> {
    match verdict {
        types::Verdict::Allow(rule) => Ok(Verdict::Allow { rule: rule.map(|rule| clean(rule, NAME)) }),
        types::Verdict::Abstain => Ok(Verdict::Abstain),
        types::Verdict::Deny(denial) => {
            if let Some(errno) = denial.errno.filter(|errno| !ERRNOS.contains(errno)) {
                let message = format!("denied with the errno {errno}, which is not between 1 and 133");
                return Err(Broken::new(kind::ANSWER, message));
            }
            Ok(Verdict::Deny(Denial {
                rule: clean(denial.rule, NAME),
                reason: clean(denial.reason, SENTENCE),
                hint: denial.hint.map(|hint| clean(hint, SENTENCE)),
                errno: denial.errno,
            }))
        }
    }
}

/// The values of [`Failure::kind`].
pub mod kind {
    /// It did not answer in time.
    pub const DEADLINE: &str = "deadline";
    /// It wanted more memory than it may have.
    pub const MEMORY: &str = "memory";
    /// It called itself too deeply.
    pub const STACK: &str = "stack";
    /// It said why it gave up.
    pub const PANIC: &str = "panic";
    /// It did something that WebAssembly forbids.
    pub const TRAP: &str = "trap";
    /// It asked the host too often, or for something that could not be found out.
    pub const FACTS: &str = "facts";
    /// What it handed over makes no sense.
    pub const ANSWER: &str = "answer";
    /// A fresh instance refused the configuration that the first had taken.
    pub const CONFIG: &str = "config";
    /// The engine's clock does not run, so that the plugin may not.
    pub const CLOCK: &str = "clock";
}

/// A failure whose plugin is still to be named.
struct Broken {
    kind: &'static str,
    message: String,
}

impl Broken {
    fn new(kind: &'static str, message: String) -> Self {
        Self { kind, message }
    }

    fn clock() -> Self {
        Self::new(kind::CLOCK, "the clock that would interrupt it does not run".into())
    }

    fn of(error: &wasmtime::Error, store: &mut Store<State>) -> Self {
        if let Some(trap) = error.downcast_ref::<Trap>() {
            match trap {
                Trap::Interrupt => Self::new(kind::DEADLINE, "did not answer in time".into()),
                Trap::StackOverflow => Self::new(kind::STACK, trap.to_string()),
                _ => match store.data_mut().log.take_panic() {
                    Some(panic) => Self::new(kind::PANIC, panic),
                    None => Self::new(kind::TRAP, trap.to_string()),
                },
            }
        } else if let Some(over) = error.downcast_ref::<OverLimit>() {
            Self::new(kind::MEMORY, over.to_string())
        } else if let Some(facts) = error.downcast_ref::<TooManyFacts>() {
            Self::new(kind::FACTS, facts.to_string())
        } else if let Some(paths) = error.downcast_ref::<TooManyPaths>() {
            Self::new(kind::FACTS, paths.to_string())
        } else {
            Self::new(kind::ANSWER, clean(error.root_cause().to_string(), SENTENCE))
        }
    }

    fn failure(self, plugin: &str) -> Failure {
        Failure { plugin: plugin.to_owned(), kind: self.kind.to_owned(), message: self.message }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::decide::KnownFacts;
    use crate::event::{Action, Exec, File, Subject};
    use crate::policy::{Policy, Source};

    #[test]
    fn a_plugin_without_an_instance_fails_until_it_gets_one() {
        let engine = Engine::new().unwrap();
        let clock = engine.start_clock().unwrap();
        let text = r#"{"allow_executables": ["/bin/sh"]}"#.to_owned();
        let policy = Policy::parse(&Source { path: "policy.json".into(), text }).unwrap();
        let mut plugin = Plugin::load(&engine, &policy.plugins[0], builtin::ALLOWLIST_PRECOMPILED).unwrap();
        let action = Action::Exec(Exec::default());
        let event = Event { sequence: 1, time_ms: 0, subject: Subject::default(), action };
        let facts = KnownFacts::default().about(&event);

        drop(clock);
        plugin.restart();
        assert_eq!(plugin.decide(&event, &facts).unwrap_err().kind, kind::CLOCK);
        let _clock = engine.start_clock().unwrap();
        assert_eq!(plugin.decide(&event, &facts).unwrap_err().kind, kind::CLOCK, "it is not tried at every event");
        if let Instance::Failed { next, .. } = &mut plugin.instance {
            *next = Instant::now();
        }
        assert!(matches!(plugin.decide(&event, &facts), Ok(Said { verdict: Verdict::Deny(_), .. })));
    }

    #[test]
    fn what_rests_on_more_than_the_action_does_not_hold_for_others() {
        let engine = Engine::new().unwrap();
        let _clock = engine.start_clock().unwrap();
        let digest = format!("sha256:{}", "0".repeat(64));
        for (policy, holds) in [
            (serde_json::json!({ "allow_executables": ["/bin/sh"] }), true),
            (serde_json::json!({ "allow_executables": [digest] }), false),
            (serde_json::json!({ "allow_executables": ["/bin/sh"], "users": { "uids": [0], "gids": [0] } }), false),
        ] {
            let policy = Policy::parse(&Source { path: "policy.json".into(), text: policy.to_string() }).unwrap();
            let mut plugin = Plugin::load(&engine, &policy.plugins[0], builtin::ALLOWLIST_PRECOMPILED).unwrap();
            let file = File { path: "/bin/sh".into(), canonical: true, ..File::default() };
            let action = Action::Exec(Exec { file, ..Exec::default() });
            let event = Event { sequence: 1, time_ms: 0, subject: Subject::default(), action };
            for _ in 0..2 {
                let said = plugin.decide(&event, &KnownFacts::default().about(&event)).unwrap();
                assert_eq!(said.by_action_alone, holds, "{policy:?}");
            }
        }
    }
}
