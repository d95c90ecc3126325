//! The document as people write it. Every default of the policy stands here.
//!
//! No untagged enums and no flattening: serde would lose the place of a mistake in them.

use callgate_json::{Object, present};
use serde::Deserialize;
use serde::de::value::MapAccessDeserializer;
use serde::de::{self, Deserializer, MapAccess, Visitor};
use serde_json::value::RawValue;

use super::{Decisions, DefaultVerdict, Format, Guarantee, Mode, OnFailure, Sighup, WhenFull};

/// A policy of callgate.
#[derive(Debug, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema), schemars(title = "callgate policy"))]
#[serde(deny_unknown_fields)]
pub struct Document {
    /// For editors: where the JSON Schema of this document is.
    #[serde(rename = "$schema", default, deserialize_with = "present")]
    pub schema: Option<String>,
    /// Version of the document's format.
    #[serde(default = "version")]
    #[cfg_attr(feature = "schema", schemars(range(min = 1, max = 1)))]
    pub version: u32,
    /// Whether what is denied is blocked, or only recorded.
    #[serde(default = "enforce")]
    pub mode: Mode,
    /// Whether `mode` holds whatever `CALLGATE_MODE` or a flag says.
    #[serde(default)]
    pub lock_mode: bool,
    /// What happens to an event on which every plugin abstains. An event that no plugin asked to see is not even looked at,
    /// and always allowed.
    #[serde(default = "deny")]
    pub default: DefaultVerdict,
    /// The plugins, in the order in which they are asked: the first denial counts. For the built-in allowlist alone, its
    /// configuration can stand at the top of the document instead.
    #[serde(default, deserialize_with = "present")]
    #[cfg_attr(feature = "schema", schemars(length(min = 1)))]
    pub plugins: Option<Vec<Object<PluginDocument>>>,
    /// The audit log.
    #[serde(default)]
    pub audit: Object<AuditDocument>,
    /// Guarantees (SECURITY.md) that must hold on this machine; the command is not started without them.
    #[serde(default)]
    pub require: Vec<Guarantee>,
    /// What SIGHUP, sent to callgate, means: that the policy is to be read again, or the same as to the command. A terminal
    /// that hangs up is the command's affair in any case.
    #[serde(default = "reload")]
    pub sighup: Sighup,
    /// For the allowlist: what may run.
    #[serde(default, deserialize_with = "present")]
    #[cfg_attr(feature = "schema", schemars(skip))]
    pub allow_executables: Option<Box<RawValue>>,
    /// For the allowlist: what may not run.
    #[serde(default, deserialize_with = "present")]
    #[cfg_attr(feature = "schema", schemars(skip))]
    pub deny_executables: Option<Box<RawValue>>,
    /// For the allowlist: what may be reached.
    #[serde(default, deserialize_with = "present")]
    #[cfg_attr(feature = "schema", schemars(skip))]
    pub network: Option<Box<RawValue>>,
    /// For the allowlist: who processes may be.
    #[serde(default, deserialize_with = "present")]
    #[cfg_attr(feature = "schema", schemars(skip))]
    pub users: Option<Box<RawValue>>,
}

impl Document {
    /// The keys of the short form that are there: the built-in plugin's configuration at the top of the document.
    pub fn short_form(&self) -> Vec<(&'static str, &RawValue)> {
        [
            ("allow_executables", &self.allow_executables),
            ("deny_executables", &self.deny_executables),
            ("network", &self.network),
            ("users", &self.users),
        ]
        .into_iter()
        .filter_map(|(key, value)| Some((key, value.as_deref()?)))
        .collect()
    }
}

/// One plugin.
#[derive(Debug, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema), schemars(rename = "Plugin"))]
#[serde(deny_unknown_fields)]
pub struct PluginDocument {
    /// Its name in records, unique within the policy. Without `path` and `builtin`: the built-in plugin of this name.
    #[cfg_attr(feature = "schema", schemars(length(min = 1)))]
    pub name: String,
    /// The file of a WebAssembly component that exports the interface `callgate:policy/policy`; relative to the policy's
    /// directory.
    #[serde(default, deserialize_with = "present")]
    pub path: Option<String>,
    /// The built-in plugin that it is, where `name` is another: `allowlist`.
    #[serde(default, deserialize_with = "present")]
    pub builtin: Option<String>,
    /// The SHA-256 that the file must have, in hexadecimal; without it, whatever the file holds is loaded.
    #[serde(default, deserialize_with = "present")]
    #[cfg_attr(feature = "schema", schemars(regex(pattern = "^[0-9a-fA-F]{64}$")))]
    pub sha256: Option<String>,
    /// The plugin's own configuration, which it checks itself. Absent: `{}`.
    #[serde(default, deserialize_with = "present")]
    #[cfg_attr(feature = "schema", schemars(with = "serde_json::Value"))]
    pub config: Option<Box<RawValue>>,
    /// What it means when the plugin fails: it traps, misses its deadline, wants too much memory, answers nonsense.
    #[serde(default = "deny_on_failure")]
    pub on_failure: OnFailure,
    /// How long a decision may take, in milliseconds.
    #[serde(default = "deadline_ms")]
    #[cfg_attr(feature = "schema", schemars(range(min = 1, max = 60_000)))]
    pub deadline_ms: u64,
    /// How much memory it may use, in MiB.
    #[serde(default = "memory_mib")]
    #[cfg_attr(feature = "schema", schemars(range(min = 1, max = 4096)))]
    pub memory_mib: u64,
    /// `dry-run`: what this plugin denies is recorded as such, and does not count.
    #[serde(default = "enforce")]
    pub mode: Mode,
}

impl PluginDocument {
    /// A plugin of which nothing but the name is said.
    pub fn named(name: &str) -> Self {
        Self {
            name: name.to_owned(),
            path: None,
            builtin: None,
            sha256: None,
            config: None,
            on_failure: deny_on_failure(),
            deadline_ms: deadline_ms(),
            memory_mib: memory_mib(),
            mode: enforce(),
        }
    }
}

/// The audit log.
#[derive(Debug, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema), schemars(rename = "Audit"))]
#[serde(deny_unknown_fields, default)]
pub struct AuditDocument {
    /// Where records go; each place gets every record.
    pub sinks: Vec<SinkDocument>,
    /// Which decisions are recorded. Denials always are.
    pub decisions: Decisions,
    /// What happens when a sink does not keep up.
    pub when_full: WhenFull,
    /// How many records a sink may lag behind.
    #[cfg_attr(feature = "schema", schemars(range(min = 1, max = 1_000_000)))]
    pub queue: usize,
}

impl Default for AuditDocument {
    fn default() -> Self {
        Self {
            sinks: vec![SinkDocument { to: "stderr".to_owned(), format: Format::Auto }],
            decisions: Decisions::Denials,
            when_full: WhenFull::Drop,
            queue: 8192,
        }
    }
}

/// A place that records go to: `"stderr"`, `"file:PATH"` (no symbolic link), `"fd:N"` from 3 or `"unix:PATH"`, or an object with
/// a format.
#[derive(Debug)]
pub struct SinkDocument {
    /// The place.
    pub to: String,
    /// How records are written.
    pub format: Format,
}

#[cfg(feature = "schema")]
const PLACE: &str = "^(stderr|file:/.*|fd:0*([3-9]|[1-9][0-9]+)|unix:/.*)$";

/// The long form of a sink.
#[derive(Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema), schemars(rename = "LongSink"))]
#[serde(deny_unknown_fields)]
struct SinkObject {
    /// The place: `stderr`, `file:PATH` (appended to; a symbolic link is refused, since whoever may change it could have records
    /// written into any file), `fd:N` (inherited; 0, 1 and 2 are the command's) or `unix:PATH` (a socket).
    #[cfg_attr(feature = "schema", schemars(regex(pattern = PLACE)))]
    to: String,
    /// How records are written: `auto` is text on a terminal, else JSON.
    #[serde(default = "auto")]
    format: Format,
}

impl<'de> Deserialize<'de> for SinkDocument {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Sink;
        impl<'de> Visitor<'de> for Sink {
            type Value = SinkDocument;

            fn expecting(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
                f.write_str("a place such as \"stderr\", or an object with \"to\" and \"format\"")
            }

            fn visit_str<E: de::Error>(self, to: &str) -> Result<SinkDocument, E> {
                Ok(SinkDocument { to: to.to_owned(), format: Format::Auto })
            }

            fn visit_map<A: MapAccess<'de>>(self, map: A) -> Result<SinkDocument, A::Error> {
                let SinkObject { to, format } = SinkObject::deserialize(MapAccessDeserializer::new(map))?;
                Ok(SinkDocument { to, format })
            }
        }
        deserializer.deserialize_any(Sink)
    }
}

#[cfg(feature = "schema")]
impl schemars::JsonSchema for SinkDocument {
    fn schema_name() -> std::borrow::Cow<'static, str> {
        "Sink".into()
    }

    fn json_schema(generator: &mut schemars::SchemaGenerator) -> schemars::Schema {
        let object = generator.subschema_for::<SinkObject>();
        schemars::json_schema!({
            "description": "A place that records go to, alone or with a format. A file is appended to, and never reached through a \
                symbolic link; descriptors 0, 1 and 2 are the command's.",
            "anyOf": [{ "type": "string", "pattern": PLACE }, object]
        })
    }
}

const fn version() -> u32 {
    1
}

const fn enforce() -> Mode {
    Mode::Enforce
}

const fn reload() -> Sighup {
    Sighup::Reload
}

const fn deny() -> DefaultVerdict {
    DefaultVerdict::Deny
}

const fn deny_on_failure() -> OnFailure {
    OnFailure::Deny
}

/// Long beside the microsecond that a decision takes, so that a busy machine does not make a plugin fail.
const fn deadline_ms() -> u64 {
    1000
}

const fn memory_mib() -> u64 {
    16
}

const fn auto() -> Format {
    Format::Auto
}
