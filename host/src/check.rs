//! `callgate check`: says what a policy means on this machine, and what about it may surprise.
//!
//! May depend on everything that `wrap` may.

use std::fmt::Write;
use std::fs::{self, Metadata};
use std::os::unix::fs::PermissionsExt;
use std::path::Path;

use anyhow::Result;

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
    let chain = wrap::load(&Engine::new()?, &policy, &source)?;
    let mut report = Report { text: format!("{}: valid\n", path.display()), warnings: Vec::new(), source: &source };
    report.of_policy(&policy);
    for (settings, plugin) in policy.plugins.iter().zip(chain.plugins()) {
        report.of_plugin(settings, plugin);
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
        match &settings.source {
            PluginSource::File { path, .. } => {
                if others_can_write(path) {
                    let warning = format!("everybody can write {}", path.display());
                    self.warn(&format!("{}/path", settings.place), &warning);
                }
            }
            PluginSource::Builtin => self.of_executables(settings),
        }
    }

    /// What the allowlist's lists of executables mean here.
    fn of_executables(&mut self, settings: &PluginSettings) {
        let Ok(config) = serde_json::from_str::<serde_json::Value>(&settings.config) else { return };
        let entries = |key: &str| {
            let list = config.get(key).and_then(serde_json::Value::as_array).into_iter().flatten();
            list.filter_map(|entry| Some(entry.as_str()?.to_owned())).enumerate().collect::<Vec<_>>()
        };
        let place = |key: &str, index: usize| format!("{}/{key}/{index}", settings.config_place);
        let denied = entries("deny_executables");
        if config.get("allow_executables").is_some() {
            let count = entries("allow_executables").len();
            let what = if count == 1 { "entry" } else { "entries" };
            self.line(&format!("  allows the executables of {count} {what} and no others"));
        } else if !denied.is_empty() {
            self.line("  allows every executable that is not denied");
            let warning = "without allow_executables a copy of a denied file runs under any other name";
            self.warn(&format!("{}/deny_executables", settings.config_place), warning);
        }
        for (index, entry) in entries("allow_executables") {
            for warning in surprises(&entry) {
                self.warn(&place("allow_executables", index), &warning);
            }
        }
        for (index, entry) in denied {
            if let Surroundings::Missing = look(&entry) {
                self.warn(&place("deny_executables", index), &format!("there is no {entry} yet"));
            }
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

/// What is at the path of an entry.
enum Surroundings {
    /// The entry is a digest or a glob.
    Several,
    Missing,
    There(Metadata),
}

fn look(entry: &str) -> Surroundings {
    if !entry.starts_with('/') || entry.contains(['*', '?', '[', '{']) {
        return Surroundings::Several;
    }
    fs::metadata(entry).map_or(Surroundings::Missing, Surroundings::There)
}

/// What about an allowed executable may surprise.
fn surprises(entry: &str) -> Vec<String> {
    let metadata = match look(entry) {
        Surroundings::Several => return Vec::new(),
        Surroundings::Missing => return vec![format!("there is no {entry}; whoever makes it may run it")],
        Surroundings::There(metadata) => metadata,
    };
    let mut warnings = Vec::new();
    if metadata.is_dir() {
        if !entry.ends_with('/') {
            warnings
                .push(format!("{entry} is a directory, so this allows nothing; with a / at the end, what is in it"));
        } else if metadata.permissions().mode() & 0o002 != 0 {
            warnings.push(format!("everybody can put a program into {entry}"));
        }
        return warnings;
    }
    let real = fs::canonicalize(entry).unwrap_or_else(|_| entry.into());
    let name = |path: &Path| path.file_name().map(|name| name.to_string_lossy().into_owned()).unwrap_or_default();
    let (asked, real_name) = (name(Path::new(entry)), name(&real));
    if asked != real_name {
        warnings.push(format!(
            "{entry} leads to {}, and it is that file which is allowed, by whatever name",
            real.display()
        ));
    }
    if metadata.permissions().mode() & 0o111 == 0 {
        warnings.push(format!("{entry} is not executable"));
    }
    if others_can_write(&real) {
        warnings.push(format!("everybody can write {}", real.display()));
    }
    if let Some(what) = runs_anything(&real_name) {
        warnings.push(format!("{entry} is {what}"));
    }
    warnings
}

fn others_can_write(path: &Path) -> bool {
    fs::metadata(path).is_ok_and(|metadata| metadata.permissions().mode() & 0o002 != 0)
}

/// Programs that do what a file or an argument tells them: what is allowed is more than the name says.
fn runs_anything(name: &str) -> Option<&'static str> {
    const SHELLS: &[&str] = &["sh", "bash", "dash", "zsh", "ksh", "ash", "fish", "busybox", "toybox"];
    const LANGUAGES: &[&str] =
        &["python", "perl", "ruby", "node", "php", "lua", "luajit", "tclsh", "java", "gawk", "mawk", "awk", "gdb"];
    // `python3.11` is python.
    let stem = name.trim_end_matches(|c: char| c.is_ascii_digit() || c == '.');
    if name.starts_with("ld-") || name.starts_with("ld.so") {
        Some("a dynamic loader, which runs any program that it is given")
    } else if SHELLS.contains(&name) {
        Some("a shell: it runs any script, if not every program")
    } else if LANGUAGES.contains(&stem) {
        Some("an interpreter: it runs any script")
    } else {
        None
    }
}
