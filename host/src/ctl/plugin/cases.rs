//! The document that `callgatectl plugin test` reads: cases of events, configurations and expected verdicts.

use std::path::Path;

use anyhow::Result;
use callgate_json::{Mistake, Object, from_str, present};
use serde::Deserialize;
use serde_json::value::RawValue;

use super::events::{self, Told};
use super::sandbox::{Answer, Limits};
use crate::policy::{PolicyError, Source};

/// Cases for a plugin of callgate.
#[derive(Debug, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema), schemars(title = "callgate plugin cases"))]
#[serde(deny_unknown_fields)]
pub struct Document {
    /// For editors: where the JSON Schema of this document is.
    #[serde(rename = "$schema", default, deserialize_with = "present")]
    pub schema: Option<String>,
    /// The cases. Each has an instance of its own.
    pub cases: Vec<Object<CaseDocument>>,
}

/// One case.
#[derive(Debug, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema), schemars(rename = "Case"))]
#[serde(deny_unknown_fields)]
pub struct CaseDocument {
    /// What it shows, for the report.
    #[cfg_attr(feature = "schema", schemars(length(min = 1)))]
    pub name: String,
    /// The plugin's configuration. Absent: `{}`.
    #[serde(default, deserialize_with = "present")]
    #[cfg_attr(feature = "schema", schemars(with = "serde_json::Value"))]
    pub config: Option<Box<RawValue>>,
    /// The events, in order, of which the plugin may remember what it likes.
    #[cfg_attr(feature = "schema", schemars(with = "Vec<serde_json::Value>"))]
    pub events: Vec<Box<RawValue>>,
    /// How long a decision may take, in milliseconds. Absent: as in a policy that says nothing.
    #[serde(default, deserialize_with = "present")]
    #[cfg_attr(feature = "schema", schemars(with = "u64", range(min = 1, max = 60_000)))]
    pub deadline_ms: Option<u64>,
    /// How much memory the plugin may use, in MiB. Absent: as in a policy that says nothing.
    #[serde(default, deserialize_with = "present")]
    #[cfg_attr(feature = "schema", schemars(with = "u64", range(min = 1, max = 4096)))]
    pub memory_mib: Option<u64>,
}

/// What a plugin is to say to an event.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
#[serde(deny_unknown_fields)]
pub struct Expect {
    /// The verdict.
    pub verdict: ExpectedVerdict,
    /// The rule that it names; of a failure its kind (`panic`, `deadline`, `memory`, …). Absent: any.
    #[serde(default, deserialize_with = "present")]
    #[cfg_attr(feature = "schema", schemars(with = "String"))]
    pub rule: Option<String>,
    /// The errno that the caller gets. Absent: any.
    #[serde(default, deserialize_with = "present")]
    #[cfg_attr(feature = "schema", schemars(with = "i32", range(min = 1, max = 133)))]
    pub errno: Option<i32>,
    /// A part of the reason, or of a failure's message. Absent: any.
    #[serde(default, deserialize_with = "present")]
    #[cfg_attr(feature = "schema", schemars(with = "String"))]
    pub reason: Option<String>,
}

/// What a plugin can say, and that it can fail to say anything.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
#[serde(rename_all = "kebab-case")]
pub enum ExpectedVerdict {
    /// It lets it happen.
    Allow,
    /// It does not.
    Deny,
    /// It has no opinion, or did not subscribe to events of this kind.
    Abstain,
    /// It traps, is late, wants too much memory or answers nonsense.
    Fail,
}

impl ExpectedVerdict {
    fn word(self) -> &'static str {
        match self {
            Self::Allow => "allow",
            Self::Deny => "deny",
            Self::Abstain => "abstain",
            Self::Fail => "fail",
        }
    }
}

impl Expect {
    /// What is not as expected; nothing if all is.
    pub(super) fn differences(&self, answer: &Answer, kind: crate::event::EventKind) -> Vec<String> {
        let mut differences = Vec::new();
        if answer.word() != self.verdict.word() {
            differences.push(format!("expected {}, got {}", self.verdict.word(), answer.text()));
            return differences;
        }
        let (rule, reason) = (answer.rule(), answer.reason().unwrap_or_default());
        if let Some(expected) = self.rule.as_deref().filter(|expected| Some(*expected) != rule) {
            differences.push(match rule {
                Some(rule) => format!("expected the rule {expected:?}, got {rule:?}"),
                None => format!("expected the rule {expected:?}, got none"),
            });
        }
        if let Some(expected) = self.reason.as_deref().filter(|part| !reason.contains(part)) {
            differences.push(format!("expected {expected:?} in the reason, which is {reason:?}"));
        }
        if let Some(expected) = self.errno.filter(|expected| Some(*expected) != answer.errno(kind)) {
            differences.push(match answer.errno(kind) {
                Some(errno) => format!("expected the errno {expected}, got {errno}"),
                None => format!("expected the errno {expected}, got none"),
            });
        }
        differences
    }
}

/// A case, read and checked.
#[derive(Debug)]
pub(super) struct Case {
    pub(super) name: String,
    pub(super) config: String,
    pub(super) limits: Limits,
    pub(super) events: Vec<(Told, Option<Expect>)>,
    /// Where its configuration stands: a JSON Pointer.
    pub(super) config_place: String,
}

/// Reads a file of cases.
pub(super) fn load(path: &Path) -> Result<(Vec<Case>, Source)> {
    let source = super::document(path)?;
    let cases = parse(&source)?;
    Ok((cases, source))
}

fn parse(source: &Source) -> Result<Vec<Case>, PolicyError> {
    if let Err(error) = serde_json::from_str::<serde_json::Value>(&source.text) {
        return Err(source.no_json(&error));
    }
    let at = |place: String| move |m: Mistake| source.mistake(&format!("{place}{}", m.pointer), m.message, m.hint);
    let Object(document): Object<Document> = from_str(&source.text).map_err(at(String::new()))?;
    if document.cases.is_empty() {
        return Err(source.error_at("/cases", "there is no case", None));
    }
    let mut cases = Vec::new();
    for (index, Object(case)) in document.cases.into_iter().enumerate() {
        let place = format!("/cases/{index}");
        let defaults = Limits::default();
        let limits = Limits {
            deadline_ms: case.deadline_ms.unwrap_or(defaults.deadline_ms),
            memory_mib: case.memory_mib.unwrap_or(defaults.memory_mib),
        };
        if !(1..=60_000).contains(&limits.deadline_ms) {
            let message = format!("a deadline of {} ms; it takes 1 to 60000", limits.deadline_ms);
            return Err(source.error_at(&format!("{place}/deadline_ms"), message, None));
        }
        if !(1..=4096).contains(&limits.memory_mib) {
            let message = format!("a memory of {} MiB; it takes 1 to 4096", limits.memory_mib);
            return Err(source.error_at(&format!("{place}/memory_mib"), message, None));
        }
        let mut events = Vec::new();
        for (number, text) in case.events.iter().enumerate() {
            let place = format!("{place}/events/{number}");
            let told = events::event(text.get(), &["expect"]).map_err(at(place.clone()))?;
            let Expecting { expect } = from_str(text.get()).map_err(at(place))?;
            events.push((events::numbered(told, number), expect.map(|Object(expect)| expect)));
        }
        if events.is_empty() {
            return Err(source.error_at(&format!("{place}/events"), "there is no event", None));
        }
        let config = case.config.map_or_else(|| "{}".to_owned(), |config| config.get().to_owned());
        cases.push(Case { name: case.name, config, limits, events, config_place: format!("{place}/config") });
    }
    Ok(cases)
}

/// The rest of an event is not our business.
#[derive(Deserialize)]
struct Expecting {
    #[serde(default, deserialize_with = "present")]
    expect: Option<Object<Expect>>,
}
