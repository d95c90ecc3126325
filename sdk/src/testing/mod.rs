//! Tests of plugins without WebAssembly: events to ask about, and a host that answers what it is told to.
//!
//! ```
//! use callgate_sdk::testing::{Tester, connect, exec};
//! # use callgate_sdk::{ConfigError, Event, Exec, NoConfig, Plugin, Verdict, ancestors};
//! # struct NoShellFromServers;
//! # #[callgate_sdk::plugin]
//! # impl Plugin for NoShellFromServers {
//! #     type Config = NoConfig;
//! #     fn new(_: NoConfig) -> Result<Self, ConfigError> { Ok(Self) }
//! #     fn exec(&mut self, _: &Event, exec: &Exec) -> Verdict {
//! #         let server = ancestors().into_iter().find(|it| it.executable.ends_with("/nginx"));
//! #         match server {
//! #             Some(it) if exec.file.path.ends_with("/bash") => Verdict::deny("shell", format!("below {}", it.pid)),
//! #             _ => Verdict::Abstain,
//! #         }
//! #     }
//! # }
//! # fn main() {
//!
//! let mut plugin = Tester::<NoShellFromServers>::new("{}").unwrap();
//! let verdict = plugin.decide(exec("/usr/bin/bash").arguments(["bash", "-i"]).ancestor("/usr/sbin/nginx").uid(33));
//! assert_eq!(verdict.rule(), Some("shell"));
//! assert_eq!(plugin.decide(exec("/usr/bin/bash")), Verdict::Abstain);
//! # }
//! ```
//!
//! What differs from a real host: there is no deadline and no limit of memory, and a panic is a test's failure. What is as
//! there: events of kinds that the plugin has not subscribed to do not reach it, paths are settled once the configuration is
//! taken, and a plugin that asks for more facts in one decision than it may is stopped.

mod event;
#[cfg(feature = "proptest")]
pub mod strategies;

use std::cell::RefCell;
use std::collections::BTreeMap;
use std::fs;

pub use self::event::{
    Build, Facts, Given, accept, bind, connect, credentials, exec, exec_fileless, listen, send, socket, tcp, udp,
};
use crate::{
    Action, ConfigError, Event, EventKinds, Exec, FileRole, Level, Plugin, Stream, Subject, Verdict, configure, decide,
};

/// A plugin under test, and the host that it asks.
#[derive(Debug)]
pub struct Tester<P> {
    plugin: P,
    subscriptions: EventKinds,
    sequence: u64,
    host: Host,
}

impl<P: Plugin> Tester<P> {
    /// A plugin with this configuration: JSON text, or what prints as such (`serde_json::json!`).
    ///
    /// # Errors
    /// What the plugin finds wrong with it.
    pub fn new(config: impl ToString) -> Result<Self, ConfigError> {
        Self::with_host(Host::default(), config)
    }

    /// The same, with a host that answers while the configuration is taken.
    ///
    /// # Errors
    /// What the plugin finds wrong with it.
    pub fn with_host(mut host: Host, config: impl ToString) -> Result<Self, ConfigError> {
        crate::start();
        let config = config.to_string();
        let plugin: P = during(&mut host, || configure(&config))?;
        host.settled = true;
        let subscriptions = plugin.subscriptions(P::written_by_attribute());
        Ok(Self { plugin, subscriptions, sequence: 0, host })
    }

    /// What it says to an event, with the facts that were given with it. It abstains from kinds that it has not subscribed to,
    /// as it is not asked.
    pub fn decide(&mut self, given: impl Into<Given>) -> Verdict {
        let Given { mut event, facts } = given.into();
        self.sequence += 1;
        event.sequence = self.sequence;
        if !self.subscriptions.contains(kind(&event.action)) {
            return Verdict::Abstain;
        }
        self.host.enter(&event, facts);
        let plugin = &mut self.plugin;
        during(&mut self.host, || decide(plugin, &event))
    }

    /// Whether what it said last holds for every event with the same action: see [`crate::by_action_alone`].
    pub fn said_by_action_alone(&self) -> bool {
        self.host.by_action_alone && !self.host.asked_for_more
    }

    /// The kinds of event that it wants to be asked about.
    pub fn subscriptions(&self) -> EventKinds {
        self.subscriptions
    }

    /// What it has logged, in order.
    pub fn log(&self) -> &[(Level, String)] {
        &self.host.log
    }

    /// The plugin itself.
    pub fn plugin(&self) -> &P {
        &self.plugin
    }
}

/// What a host answers that does not depend on the event. What does is given with the event ([`Facts`]).
#[derive(Debug, Clone, Default)]
pub struct Host {
    paths: BTreeMap<String, Option<String>>,
    asked: BTreeMap<String, Option<String>>,
    settled: bool,
    facts: Facts,
    files: Vec<(FileRole, String)>,
    questions: u32,
    by_action_alone: bool,
    asked_for_more: bool,
    log: Vec<(Level, String)>,
}

/// As in the host.
const FACTS: u32 = 256;

impl Host {
    /// A host for which every path is there and leads nowhere else, and which knows nothing of the rest.
    pub fn new() -> Self {
        Self::default()
    }

    /// Lets a path lead, by symbolic links, to another.
    #[must_use]
    pub fn link(mut self, path: &str, target: &str) -> Self {
        self.paths.insert(path.to_owned(), Some(target.to_owned()));
        self
    }

    /// Lets nothing be at a path.
    #[must_use]
    pub fn missing(mut self, path: &str) -> Self {
        self.paths.insert(path.to_owned(), None);
        self
    }

    fn enter(&mut self, event: &Event, facts: Facts) {
        self.facts = facts;
        self.questions = 0;
        (self.by_action_alone, self.asked_for_more) = (false, false);
        self.files = match &event.action {
            Action::Exec(exec) | Action::ExecFileless(exec) => files(exec),
            _ => Vec::new(),
        };
    }

    fn asked(&mut self) -> &Facts {
        self.questions += 1;
        assert!(self.questions <= FACTS, "a plugin may not ask for more than {FACTS} facts in one decision");
        &self.facts
    }

    /// For facts that an equal action does not answer alike.
    fn asked_for_more(&mut self) -> &Facts {
        self.asked_for_more = true;
        self.asked()
    }

    pub(crate) fn digest(&mut self, role: FileRole) -> Result<String, String> {
        self.asked_for_more();
        let mut files = self.files.iter();
        let (_, path) = files.find(|(of, _)| same(of, &role)).ok_or("the event has no such file")?;
        self.facts.digests.get(path).cloned().ok_or_else(|| format!("the digest of {path} was not given"))
    }

    pub(crate) fn ancestors(&mut self) -> Vec<Subject> {
        self.asked_for_more().ancestors.clone()
    }

    pub(crate) fn canonical_path(&mut self, path: &str) -> Option<String> {
        if self.settled {
            return self.asked.get(path).cloned().flatten();
        }
        let found = self.paths.get(path).cloned().unwrap_or_else(|| Some(path.to_owned()));
        self.asked.insert(path.to_owned(), found.clone());
        found
    }

    pub(crate) fn environment(&mut self, name: &str) -> Option<String> {
        self.asked_for_more().environment.get(name).cloned()
    }

    pub(crate) fn standard_stream(&mut self, number: u32) -> Stream {
        self.asked_for_more().standard_streams.get(&number).cloned().unwrap_or(Stream::Unknown)
    }

    pub(crate) fn names(&mut self) -> Vec<String> {
        self.asked().names.clone()
    }

    pub(crate) fn started_ms(&mut self) -> u64 {
        self.asked().started_ms
    }

    pub(crate) fn by_action_alone(&mut self) {
        self.by_action_alone = true;
    }
}

fn files(exec: &Exec) -> Vec<(FileRole, String)> {
    let loader = exec.loader.iter().map(|file| (FileRole::Loader, file));
    exec.files().chain(loader).map(|(role, file)| (role, file.path.clone())).collect()
}

fn same(one: &FileRole, other: &FileRole) -> bool {
    match (one, other) {
        (FileRole::File, FileRole::File) | (FileRole::Loader, FileRole::Loader) => true,
        (FileRole::Interpreter(one), FileRole::Interpreter(other)) => one == other,
        _ => false,
    }
}

fn kind(action: &Action) -> EventKinds {
    match action {
        Action::Exec(_) => EventKinds::EXEC,
        Action::ExecFileless(_) => EventKinds::EXEC_FILELESS,
        Action::Connect(_) => EventKinds::CONNECT,
        Action::Bind(_) => EventKinds::BIND,
        Action::Listen(_) => EventKinds::LISTEN,
        Action::Accept(_) => EventKinds::ACCEPT,
        Action::Send(_) => EventKinds::SEND,
        Action::Socket(_) => EventKinds::SOCKET,
        Action::Credentials(_) => EventKinds::CREDENTIALS,
    }
}

thread_local! {
    /// The host of the plugin that this thread is testing right now.
    static HOST: RefCell<Option<Host>> = const { RefCell::new(None) };
}

/// Lets `host` answer whatever the plugin asks in `call`.
fn during<T>(host: &mut Host, call: impl FnOnce() -> T) -> T {
    /// Gives the host back, also where the plugin panics.
    struct Borrowed<'a>(&'a mut Host);
    impl Drop for Borrowed<'_> {
        fn drop(&mut self) {
            if let Some(host) = HOST.take() {
                *self.0 = host;
            }
        }
    }
    HOST.set(Some(std::mem::take(host)));
    let _borrowed = Borrowed(host);
    call()
}

/// Asks the host, if there is one.
pub(crate) fn answer<T>(question: impl FnOnce(&mut Host) -> T, nobody: T) -> T {
    HOST.with_borrow_mut(|host| match host {
        Some(host) => question(host),
        None => nobody,
    })
}

pub(crate) fn log(level: Level, message: &str) {
    HOST.with_borrow_mut(|host| match host {
        Some(host) => host.log.push((level, message.to_owned())),
        None => eprintln!("{level:?}: {message}"),
    });
}

/// The JSON Schema of a configuration, as text.
pub fn schema<Config: schemars::JsonSchema>() -> String {
    callgate_json::schema::<Config>()
}

/// Compares a file with the JSON Schema of a configuration, and writes it anew where they differ. The attribute
/// [`crate::plugin`] adds a test that does this.
///
/// # Panics
/// They differed.
pub fn check_schema<Config: schemars::JsonSchema>(file: &str) {
    let schema = schema::<Config>();
    if fs::read_to_string(file).unwrap_or_default() != schema {
        match fs::write(file, schema) {
            Ok(()) => panic!("{file} was not the schema of the configuration, and has been written anew: look at it"),
            Err(error) => panic!("{file} is not the schema of the configuration, and cannot be written: {error}"),
        }
    }
}

#[cfg(test)]
mod tests;
