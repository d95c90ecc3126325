//! `callgatectl plugin inspect` and `check`: what a component is, and whether this host can load it.

use std::fmt::Write;
use std::path::Path;
use std::time::Duration;

use anyhow::Result;
use serde::Serialize;
use serde_json::Value;

use super::sandbox::{Limits, Sandbox};
use crate::ctl::Checked;
use crate::plugin::LoadError;
use crate::policy::Source;

/// What is found.
#[derive(Debug, Serialize)]
struct Findings {
    file: String,
    size: usize,
    sha256: String,
    /// Whether this host can load it.
    loads: bool,
    /// Why not.
    #[serde(skip_serializing_if = "Option::is_none")]
    reason: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    name: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    version: Option<String>,
    imports: Vec<String>,
    /// With a configuration: what it then decides on.
    #[serde(skip_serializing_if = "Option::is_none")]
    subscriptions: Option<Vec<&'static str>>,
    /// With a configuration: the linear memory of the instance.
    #[serde(skip_serializing_if = "Option::is_none")]
    memory: Option<usize>,
    compile_ms: f64,
    #[serde(skip_serializing_if = "Option::is_none")]
    config_schema: Option<Value>,
}

/// Says what `file` is. Without a configuration it is not known what it subscribes to.
///
/// # Errors
/// The file cannot be read, or is no component.
pub fn inspect(file: &Path, config: Option<&Source>, limits: Limits, json: bool) -> Result<(String, Checked)> {
    let sandbox = Sandbox::open(file)?;
    let mut found = Findings {
        file: file.display().to_string(),
        size: sandbox.bytes.len(),
        sha256: super::sha256(&sandbox.bytes),
        loads: true,
        reason: None,
        name: None,
        version: None,
        imports: sandbox.imports(),
        subscriptions: None,
        memory: None,
        compile_ms: milliseconds(sandbox.compiled_in),
        config_schema: None,
    };
    if let Err(error) = look(&mut found, &sandbox, config, limits) {
        found.loads = false;
        found.reason = Some(error.to_string());
    }
    let checked = if found.loads { Checked::Passed } else { Checked::Failed };
    let text = if json { serde_json::to_string_pretty(&found)? + "\n" } else { found.text() };
    Ok((text, checked))
}

/// Says nothing if this host can load the component, and why not if it cannot.
///
/// # Errors
/// It cannot.
pub fn check(file: &Path, config: Option<&Source>, limits: Limits) -> Result<()> {
    let sandbox = Sandbox::open(file)?;
    match config {
        Some(config) => sandbox.configured(config, limits).map(drop),
        None => sandbox.describe(limits).map(drop).map_err(|error| anyhow::anyhow!("{} {error}", file.display())),
    }
}

fn look(found: &mut Findings, sandbox: &Sandbox, config: Option<&Source>, limits: Limits) -> Result<(), LoadError> {
    let description = sandbox.describe(limits)?;
    found.name = Some(description.name);
    found.version = Some(description.version);
    // A schema that is no JSON is shown as the text that it is.
    found.config_schema =
        description.config_schema.map(|text| serde_json::from_str(&text).unwrap_or(Value::String(text)));
    if let Some(config) = config {
        let plugin = sandbox.plugin(&config.text, limits)?;
        found.subscriptions = Some(plugin.subscriptions().iter().map(|kind| kind.name()).collect());
        found.memory = Some(plugin.memory());
    }
    Ok(())
}

impl Findings {
    fn text(&self) -> String {
        let mut text = String::new();
        let mut line = |name: &str, value: &str| {
            // Writing to a string cannot fail.
            let _ = writeln!(text, "{:15} {value}", format!("{name}:"));
        };
        line("file", &self.file);
        line("size", &format!("{} bytes", self.size));
        line("sha256", &self.sha256);
        match &self.reason {
            None => line("loads here", "yes"),
            Some(reason) => line("loads here", &format!("no: {reason}")),
        }
        if let (Some(name), Some(version)) = (&self.name, &self.version) {
            line("name", name);
            line("version", version);
        }
        line("imports", &or(&self.imports.join(", "), "nothing"));
        match &self.subscriptions {
            Some(kinds) => line("decides on", &or(&kinds.join(", "), "nothing")),
            None if self.loads => line("decides on", "what its configuration says; give one with --config"),
            None => {}
        }
        if let Some(memory) = self.memory {
            line("memory", &format!("{} KiB", memory >> 10));
        }
        line("compiled in", &format!("{:.1} ms", self.compile_ms));
        match &self.config_schema {
            Some(Value::String(schema)) => line("configuration", schema),
            Some(schema) => line("configuration", &format!("\n{schema:#}")),
            None => line("configuration", "has no schema"),
        }
        text
    }
}

fn or(text: &str, otherwise: &str) -> String {
    if text.is_empty() { otherwise.to_owned() } else { text.to_owned() }
}

fn milliseconds(time: Duration) -> f64 {
    time.as_secs_f64() * 1000.0
}
