//! `callgate check`: says what a policy means on this machine, and what about it may surprise.
//!
//! May depend on everything that `wrap` may.

mod allowlist;

use std::fmt::Write;
use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;

use anyhow::{Context, Result};

use crate::event::{EventKind, EventKinds};
use crate::plugin::{Engine, Plugin};
use crate::policy::{
    Decisions, DefaultVerdict, Mode, OnFailure, PluginSettings, PluginSource, Policy, SinkTarget, Source, WhenFull,
};
use crate::wrap;

/// Loads a policy and its plugins, and reports on them. Warnings do not make it invalid.
///
/// # Errors
/// A mistake in the policy.
pub fn check(path: &Path) -> Result<String> {
    let (policy, source) = Policy::load(path)?;
    let engine = Engine::new()?;
    let _clock = engine.start_clock().context("cannot start a thread")?;
    let mut chain = wrap::load_running(&engine, &policy, &source)?;
    let mut report = Report { text: format!("{}: valid\n", path.display()), warnings: Vec::new(), source: &source };
    report.of_policy(&policy);
    for (index, settings) in policy.plugins.iter().enumerate() {
        chain.plugins().skip(index).take(1).for_each(|plugin| report.of_plugin(settings, plugin));
        if settings.source == PluginSource::Builtin {
            allowlist::report(&mut report, settings, &mut chain);
        }
    }
    let free: Vec<&str> =
        EventKind::ALL.into_iter().filter(|kind| !chain.subscriptions().contains(*kind)).map(EventKind::name).collect();
    if !free.is_empty() {
        report.line(&format!("not governed: {}", free.join(", ")));
    }
    Ok(report.text + &report.warnings.concat())
}

struct Report<'a> {
    text: String,
    warnings: Vec<String>,
    source: &'a Source,
}

impl Report<'_> {
    fn line(&mut self, line: &str) {
        // Writing to a string cannot fail.
        let _ = writeln!(self.text, "{line}");
    }

    /// About a place in the policy, as a JSON Pointer.
    fn warn(&mut self, pointer: &str, warning: &str) {
        let place = self.source.error_at(pointer, warning, None).line_and_column();
        let place = place.map(|(line, column)| format!("{line}:{column}: ")).unwrap_or_default();
        self.warnings.push(format!("warning: {}:{place}{warning}\n", self.source.path.display()));
    }

    fn of_policy(&mut self, policy: &Policy) {
        let mode = match (policy.mode, policy.lock_mode) {
            (mode, true) => format!("{mode}, locked"),
            (mode, false) => format!("{mode}, which CALLGATE_MODE and flags can change"),
        };
        self.line(&format!("mode: {mode}"));
        if policy.mode == Mode::DryRun {
            self.warn("/mode", "in a dry run nothing is blocked");
        }
        let default = match policy.default {
            DefaultVerdict::Deny => "deny",
            DefaultVerdict::Allow => "allow",
        };
        self.line(&format!("where every plugin abstains: {default}"));
        if policy.default == DefaultVerdict::Allow {
            self.warn("/default", "what no plugin denies is allowed");
        }
        let decisions = match policy.audit.decisions {
            Decisions::Denials => "denials",
            Decisions::All => "all decisions",
        };
        let sinks: Vec<String> = policy.audit.sinks.iter().map(|sink| sink.to.to_string()).collect();
        let sinks = if sinks.is_empty() { "nowhere".to_owned() } else { sinks.join(", ") };
        let full = match policy.audit.when_full {
            WhenFull::Drop => "what they cannot keep up with is dropped and counted",
            WhenFull::Block => "what they cannot keep up with makes the workload wait",
        };
        self.line(&format!("records: {decisions}, to {sinks}; {full}"));
        if policy.audit.sinks.is_empty() {
            self.warn("/audit/sinks", "nothing is recorded anywhere");
        }
        for (index, sink) in policy.audit.sinks.iter().enumerate() {
            if let SinkTarget::File(file) = &sink.to
                && file.parent().is_some_and(|directory| !directory.is_dir())
            {
                self.warn(
                    &format!("/audit/sinks/{index}"),
                    "the directory of this file does not exist, so nothing would start",
                );
            }
        }
    }

    fn of_plugin(&mut self, settings: &PluginSettings, plugin: &Plugin) {
        let (is, name) = (plugin.description(), plugin.name());
        let from = match &settings.source {
            PluginSource::Builtin => "built in".to_owned(),
            PluginSource::File { path, sha256: Some(_), .. } => format!("{}, pinned by its sha256", path.display()),
            PluginSource::File { path, sha256: None, .. } => format!("{}, whatever it holds", path.display()),
        };
        self.line(&format!("plugin {name}: {} {} ({from})", is.name, is.version));
        self.line(&format!("  decides on: {}", names(plugin.subscriptions())));
        let keys = is.config_schema.as_deref().map(keys).unwrap_or_default();
        if !keys.is_empty() {
            self.line(&format!("  takes: {}", keys.join(", ")));
        }
        let failure = match settings.on_failure {
            OnFailure::Deny => "deny",
            OnFailure::Abstain => "abstain",
        };
        self.line(&format!(
            "  if it fails: {failure}; deadline {} ms, memory {} MiB",
            settings.deadline.as_millis(),
            settings.memory >> 20
        ));
        if settings.mode == Mode::DryRun {
            self.line("  in dry-run: what it denies is recorded and happens");
            self.warn(
                &format!("{}/mode", settings.place),
                &format!("plugin {name:?} is in dry-run: what it denies happens"),
            );
        }
        if let PluginSource::File { path, .. } = &settings.source
            && others_can_write(path)
        {
            self.warn(&format!("{}/path", settings.place), &format!("everybody can write {}", path.display()));
        }
    }
}

/// What a configuration may have, by its JSON Schema: key by key, where it is such a schema.
fn keys(schema: &str) -> Vec<String> {
    let schema = serde_json::from_str::<serde_json::Value>(schema).unwrap_or_default();
    schema["properties"].as_object().into_iter().flatten().map(|(key, _)| key.escape_debug().to_string()).collect()
}

fn names(kinds: EventKinds) -> String {
    let names: Vec<&str> =
        EventKind::ALL.into_iter().filter(|kind| kinds.contains(*kind)).map(EventKind::name).collect();
    if names.is_empty() { "nothing".to_owned() } else { names.join(", ") }
}

fn others_can_write(path: &Path) -> bool {
    fs::metadata(path).is_ok_and(|metadata| metadata.permissions().mode() & 0o002 != 0)
}
