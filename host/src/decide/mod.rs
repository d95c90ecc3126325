//! Event → decision: the chain of plugins, and what a plugin's failure means.
//!
//! May depend on `event`, `policy` and `plugin`. Knows nothing of the kernel: what a plugin wants to know beyond the event
//! comes through [`Facts`], which `intercept` answers from the live process and a replay from the record.

mod chain;
mod memory;

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

pub use self::chain::{Chain, ChainError, Judge};
use crate::event::{Action, Address, Event, EventKind, File, Socket, Subject};

/// What a plugin may ask about the event at hand. Fetched only when asked for.
///
/// The plugin's instance keeps them for the length of a decision, hence `Send`, `Sync`, and an `Arc` of them.
pub trait Facts: Send + Sync {
    /// Ancestors of the subject, parent first, as far as they belong to the workload.
    fn ancestors(&self) -> Vec<Subject>;
    /// SHA-256 in lower-case hexadecimal of a file of the event.
    ///
    /// # Errors
    /// Says in a sentence why it cannot be had.
    fn digest(&self, role: FileRole) -> Result<String, String>;
    /// A variable of the environment that the new program gets, or the process was started with.
    ///
    /// # Errors
    /// Says in a sentence why it cannot be told whether there is one.
    fn environment(&self, name: &str) -> Result<Option<String>, String>;
    /// A standard stream of the process (0, 1, 2).
    fn standard_stream(&self, number: u32) -> Stream;
    /// The names of the event's IP address that are known.
    fn names(&self) -> Vec<String>;
    /// When the workload was started, in milliseconds since the Unix epoch.
    fn started_ms(&self) -> u64;
}

/// What one of a process's standard streams is.
#[derive(Debug, Clone, Default, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
#[serde(rename_all = "kebab-case")]
pub enum Stream {
    /// There is none of that number.
    Closed,
    /// A regular file or a directory, by its path, or as [`Subject::executable`] where none leads there.
    File(String),
    /// A terminal, by its path.
    Terminal(String),
    /// A pipe or fifo.
    Pipe,
    /// A socket, and the address that it is connected to.
    Socket {
        /// The socket.
        socket: Socket,
        /// The address that it is connected to, if it is.
        #[serde(default)]
        peer: Option<Address>,
    },
    /// Anything else, by what the kernel calls it.
    Other(String),
    /// We cannot tell.
    #[default]
    Unknown,
}

/// Facts that were written down: for events without a live process, in a replay, or where an author tries a plugin. What
/// is not written down is not known.
#[derive(Debug, Clone, Default, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema), schemars(rename = "Facts"))]
#[serde(deny_unknown_fields, default)]
pub struct KnownFacts {
    /// Ancestors of the subject, parent first.
    pub ancestors: Vec<Subject>,
    /// SHA-256 of the event's files, by the file's path.
    pub digests: BTreeMap<String, String>,
    /// The environment.
    pub environment: BTreeMap<String, String>,
    /// The standard streams, from 0.
    pub standard_streams: Vec<Stream>,
    /// The names of the event's IP address.
    pub names: Vec<String>,
    /// When the workload was started, in milliseconds since the Unix epoch.
    pub started_ms: u64,
}

impl KnownFacts {
    /// These facts, about this event.
    pub fn about(self, event: &Event) -> Arc<dyn Facts> {
        let files = FileRole::files(&event.action).map(|(role, file)| (role, file.path.clone())).collect();
        Arc::new(Known { facts: self, files })
    }
}

struct Known {
    facts: KnownFacts,
    files: Vec<(FileRole, String)>,
}

impl Facts for Known {
    fn ancestors(&self) -> Vec<Subject> {
        self.facts.ancestors.clone()
    }

    fn digest(&self, role: FileRole) -> Result<String, String> {
        let (_, path) = self.files.iter().find(|(of, _)| *of == role).ok_or("the event has no such file")?;
        self.facts.digests.get(path).cloned().ok_or_else(|| format!("the digest of {path} is not written down"))
    }

    fn environment(&self, name: &str) -> Result<Option<String>, String> {
        Ok(self.facts.environment.get(name).cloned())
    }

    fn standard_stream(&self, number: u32) -> Stream {
        self.facts.standard_streams.get(number as usize).cloned().unwrap_or_default()
    }

    fn names(&self) -> Vec<String> {
        self.facts.names.clone()
    }

    fn started_ms(&self) -> u64 {
        self.facts.started_ms
    }
}

/// Which file of an exec event.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum FileRole {
    /// The file that was asked for.
    File,
    /// The interpreter at this position of `Exec::interpreters`.
    Interpreter(usize),
    /// The dynamic loader.
    Loader,
}

impl FileRole {
    /// The files of an event, if it has any, in their roles.
    pub fn files(action: &Action) -> impl Iterator<Item = (Self, &File)> {
        let exec = match action {
            Action::Exec(exec) | Action::ExecFileless(exec) => Some(exec),
            _ => None,
        };
        exec.into_iter().flat_map(|exec| {
            let interpreters = exec.interpreters.iter().enumerate();
            let interpreters = interpreters.map(|(at, file)| (Self::Interpreter(at), file));
            let loader = exec.loader.iter().map(|file| (Self::Loader, file));
            [(Self::File, &exec.file)].into_iter().chain(interpreters).chain(loader)
        })
    }
}

/// What one plugin said.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Verdict {
    /// Let it happen.
    Allow {
        /// The rule that decided.
        rule: Option<String>,
    },
    /// Don't.
    Deny(Denial),
    /// No opinion.
    Abstain,
}

/// A verdict, and on what it rests.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Said {
    /// The verdict.
    pub verdict: Verdict,
    /// Whether it is the same for every event with the same action.
    pub by_action_alone: bool,
}

/// Why something is denied.
#[derive(Debug, Clone, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
pub struct Denial {
    /// Stable identifier of the rule.
    pub rule: String,
    /// One sentence.
    pub reason: String,
    /// What would allow it.
    pub hint: Option<String>,
    /// The errno(3) that the caller gets; `None` for the host's choice.
    pub errno: Option<u16>,
}

impl Denial {
    /// The errno(3) that the caller of an event of this kind gets.
    pub fn errno_for(&self, kind: EventKind) -> i32 {
        match self.errno {
            Some(errno) => errno.into(),
            None if matches!(kind, EventKind::Exec | EventKind::ExecFileless) => libc::EACCES,
            None => libc::EPERM,
        }
    }
}

/// What the chain decided on an event.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Decision {
    /// `None`: allowed. Otherwise why not.
    pub denial: Option<Denial>,
    /// The plugin whose verdict counted; `callgate` for the policy's default and for the host's own guards.
    pub plugin: String,
    /// The rule that allowed it, where a plugin named one.
    pub allowed_by: Option<String>,
    /// Plugins that failed on this event, and how.
    pub failures: Vec<Failure>,
    /// Denials of plugins that are themselves in dry-run, by plugin. They did not count.
    pub candidates: Vec<(String, Denial)>,
    /// How long the plugins took; nothing, where none was asked.
    pub took: Duration,
}

impl Decision {
    /// The errno(3) that the caller of an event of this kind gets; `None` if it is allowed.
    pub fn errno(&self, kind: EventKind) -> Option<i32> {
        self.denial.as_ref().map(|denial| denial.errno_for(kind))
    }
}

/// A plugin that did not answer.
#[derive(Debug, Clone, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
pub struct Failure {
    /// Its name.
    pub plugin: String,
    /// One of [`crate::plugin::kind`]: `trap`, `deadline`, `memory`, `panic`, …
    pub kind: String,
    /// What the runtime said.
    pub message: String,
}
