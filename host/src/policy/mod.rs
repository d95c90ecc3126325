//! The JSON policy: what the document means, as types. `document` is how it is written, `load` how it is read, `source` how
//! a mistake in it is shown.
//!
//! May depend on `event` only; knows nothing of the kernel, of wasmtime or of the audit log.

pub mod document;
mod load;
mod source;

use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

pub use self::load::BUILTIN;
pub use self::source::{PolicyError, Source};

/// A policy that has been read and checked: every default is filled in.
#[derive(Debug, Clone)]
pub struct Policy {
    /// Whether denials are carried out.
    pub mode: Mode,
    /// Whether `mode` may not be changed by a flag or an environment variable.
    pub lock_mode: bool,
    /// What happens to an event on which every plugin abstains.
    pub default: DefaultVerdict,
    /// The plugins, in the order in which they are asked.
    pub plugins: Vec<PluginSettings>,
    /// Where records go.
    pub audit: AuditSettings,
    /// Guarantees without which the workload must not start.
    pub require: Vec<Guarantee>,
    /// What SIGHUP means.
    pub sighup: Sighup,
}

/// What it means that somebody sends SIGHUP to callgate. A terminal that hangs up is the command's affair in any case.
#[derive(Debug, Clone, Copy, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
#[serde(rename_all = "kebab-case")]
pub enum Sighup {
    /// The policy is read again; the command does not get the signal.
    Reload,
    /// It is meant for the command, like all other signals.
    PassOn,
}

/// Whether denials are carried out.
#[derive(Debug, Clone, Copy, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
#[serde(rename_all = "kebab-case")]
pub enum Mode {
    /// What is denied does not happen.
    Enforce,
    /// Nothing is blocked; what would have been denied is recorded.
    DryRun,
}

impl std::fmt::Display for Mode {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Self::Enforce => "enforce",
            Self::DryRun => "dry-run",
        })
    }
}

/// What happens to an event on which every plugin abstains.
#[derive(Debug, Clone, Copy, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
#[serde(rename_all = "kebab-case")]
pub enum DefaultVerdict {
    /// It is denied.
    Deny,
    /// It is allowed.
    Allow,
}

/// A guarantee of SECURITY.md that a policy can insist on.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, serde::Serialize, serde::Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
#[serde(rename_all = "kebab-case")]
pub enum Guarantee {
    /// What begins to run is the file that was decided on, whatever other threads and processes do.
    RaceFreeExec,
    /// What is connected, bound and sent is what was decided on.
    RaceFreeNetwork,
    /// The workload cannot kill, stop, trace or read the supervisor.
    ProtectedSupervisor,
    /// A signal never makes the kernel run a call of the workload twice (Linux 5.19).
    RestartFree,
    /// Processes that have changed their user, or are not dumpable, are decided on like all others (`CAP_SYS_PTRACE`).
    AllCallers,
}

impl std::fmt::Display for Guarantee {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Self::RaceFreeExec => "race-free-exec",
            Self::RaceFreeNetwork => "race-free-network",
            Self::ProtectedSupervisor => "protected-supervisor",
            Self::RestartFree => "restart-free",
            Self::AllCallers => "all-callers",
        })
    }
}

/// One plugin of the chain.
#[derive(Debug, Clone)]
pub struct PluginSettings {
    /// Its name in records, unique within the policy.
    pub name: String,
    /// Where its code comes from.
    pub source: PluginSource,
    /// Its configuration, as JSON text exactly as the policy holds it (`{}` if it holds none).
    pub config: String,
    /// What a trap, a missed deadline or too much memory means.
    pub on_failure: OnFailure,
    /// How long a decision may take.
    pub deadline: Duration,
    /// How much linear memory it may use, in bytes.
    pub memory: usize,
    /// `DryRun`: its verdicts are recorded and do not count.
    pub mode: Mode,
    /// Where in the policy it stands: a JSON Pointer.
    pub place: String,
    /// Where its configuration stands.
    pub config_place: String,
}

/// Where a plugin's code comes from.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum PluginSource {
    /// The allowlist that is part of the executable.
    Builtin,
    /// A component in a file.
    File {
        /// The file, absolute or relative to the policy's directory, already joined.
        path: PathBuf,
        /// The SHA-256 that its bytes must have, in lower-case hexadecimal.
        sha256: Option<String>,
        /// What it held when somebody read it already, so that its path is not looked up any more.
        content: Option<Arc<[u8]>>,
    },
}

/// What a plugin's failure means.
#[derive(Debug, Clone, Copy, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
#[serde(rename_all = "kebab-case")]
pub enum OnFailure {
    /// The event is denied.
    Deny,
    /// The plugin has no opinion on the event.
    Abstain,
}

/// Where records go, and which.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct AuditSettings {
    /// The sinks; each gets every record.
    pub sinks: Vec<Sink>,
    /// Which decisions are recorded.
    pub decisions: Decisions,
    /// What happens when a sink does not keep up.
    pub when_full: WhenFull,
    /// How many records a sink may lag behind.
    pub queue: usize,
}

/// A place that records go to.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Sink {
    /// The place.
    pub to: SinkTarget,
    /// How a record is written.
    pub format: Format,
}

/// A place that records go to.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum SinkTarget {
    /// Standard error of the supervisor.
    Stderr,
    /// `file:PATH`, appended to, created with mode 0600.
    File(PathBuf),
    /// `fd:N`, a descriptor that was inherited; the workload does not get it.
    Fd(i32),
    /// `unix:PATH`, a stream or datagram socket that somebody listens on.
    Unix(PathBuf),
}

/// As a policy writes it.
impl std::fmt::Display for SinkTarget {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Stderr => f.write_str("stderr"),
            Self::File(path) => write!(f, "file:{}", path.display()),
            Self::Fd(number) => write!(f, "fd:{number}"),
            Self::Unix(path) => write!(f, "unix:{}", path.display()),
        }
    }
}

/// How a record is written.
#[derive(Debug, Clone, Copy, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
#[serde(rename_all = "kebab-case")]
pub enum Format {
    /// Text on a terminal, else JSON.
    Auto,
    /// One JSON object a line.
    Json,
    /// One readable line.
    Text,
}

/// Which decisions are recorded.
#[derive(Debug, Clone, Copy, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
#[serde(rename_all = "kebab-case")]
pub enum Decisions {
    /// Denials, also those of a dry run.
    Denials,
    /// Every decision.
    All,
}

/// What happens when a sink does not keep up.
#[derive(Debug, Clone, Copy, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
#[serde(rename_all = "kebab-case")]
pub enum WhenFull {
    /// Records are dropped, counted, and the count is said.
    Drop,
    /// The event waits until there is room.
    Block,
}
