//! Event → decision: the chain of plugins, and what a plugin's failure means.
//!
//! May depend on `event`, `policy` and `plugin`. Knows nothing of the kernel: what a plugin wants to know beyond the event
//! comes through [`Facts`], which `intercept` answers from the live process and a replay from the record.

mod chain;

use std::time::Duration;

pub use self::chain::{Chain, ChainError, Judge};
use crate::event::{EventKind, Subject};

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
    fn environment(&self, name: &str) -> Option<String>;
}

/// Which file of an exec event.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum FileRole {
    /// The file that was asked for.
    File,
    /// The interpreter at this position of `Exec::interpreters`.
    Interpreter(usize),
    /// The dynamic loader.
    Loader,
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
    /// How long the plugins took.
    pub took: Duration,
}

impl Decision {
    /// The errno(3) that the caller of an event of this kind gets; `None` if it is allowed.
    pub fn errno(&self, kind: EventKind) -> Option<i32> {
        let denial = self.denial.as_ref()?;
        Some(match denial.errno {
            Some(errno) => errno.into(),
            None if matches!(kind, EventKind::Exec | EventKind::ExecFileless) => libc::EACCES,
            None => libc::EPERM,
        })
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
