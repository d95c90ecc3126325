//! Records, sinks and back-pressure.
//!
//! May depend on `event`, `policy` and `decide`.

use crate::decide::Decision;
use crate::event::{Event, Subject};
use crate::policy::Mode;

/// What became of a call.
#[derive(Debug, Clone, Copy, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Outcome {
    /// It was carried out, or went on.
    Allowed,
    /// The caller got this errno.
    Denied(i32),
    /// It would have been denied, were it not for the dry run.
    WouldDeny(i32),
    /// The caller was killed: what it began to do was not what had been decided.
    Killed,
}

/// Everything that the audit log says about one event.
#[derive(Debug, Clone)]
pub struct Record<'a> {
    /// The mode the decision was made in.
    pub mode: Mode,
    /// The event.
    pub event: &'a Event,
    /// The subject's ancestors, parent first.
    pub ancestors: Vec<Subject>,
    /// The decision.
    pub decision: &'a Decision,
    /// What became of the call.
    pub outcome: Outcome,
}
