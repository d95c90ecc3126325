//! `callgatectl plugin run`: what a plugin says to events that were written down.

use std::io::Write;
use std::path::Path;

use anyhow::Result;
use serde::Serialize;

use super::events;
use super::sandbox::{Answer, Limits, Sandbox, ask_about};
use crate::audit::line::{plain, what, who};
use crate::ctl::Checked;
use crate::event::Event;
use crate::policy::Source;

/// What is to be run.
#[derive(Debug)]
pub struct Run<'a> {
    /// The component.
    pub file: &'a Path,
    /// Its configuration.
    pub config: &'a Source,
    /// What it may use.
    pub limits: Limits,
    /// The event, or the log of events.
    pub events: &'a Path,
    /// A JSON object a line instead of text.
    pub json: bool,
}

/// One line of the answer in JSON.
#[derive(Serialize)]
struct Line<'a> {
    /// The line on which the event begins.
    line: usize,
    event: &'static str,
    sequence: u64,
    /// Whether the plugin subscribed to events of this kind.
    asked: bool,
    verdict: &'static str,
    #[serde(skip_serializing_if = "Option::is_none")]
    rule: Option<&'a str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    reason: Option<&'a str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    hint: Option<&'a str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    errno: Option<i32>,
    took_us: f64,
}

/// Asks one instance about the events in their order. It has failed if the plugin failed on one.
///
/// # Errors
/// The component cannot be loaded, or an event is none.
pub fn run(run: &Run<'_>, out: &mut dyn Write) -> Result<Checked> {
    let log = events::read(&super::document(run.events)?)?;
    let sandbox = Sandbox::open(run.file)?;
    let mut plugin = sandbox.configured(run.config, run.limits)?;
    let mut checked = Checked::Passed;
    for (line, told) in &log.events {
        let (answer, took) = ask_about(&mut plugin, told);
        if matches!(answer, Answer::Failed(_)) {
            checked = Checked::Failed;
        }
        let took_us = took.as_nanos() as f64 / 1000.0;
        if run.json {
            let line = Line {
                line: *line,
                event: told.event.kind().name(),
                sequence: told.event.sequence,
                asked: !matches!(answer, Answer::NotAsked),
                verdict: answer.word(),
                rule: answer.rule(),
                reason: answer.reason(),
                hint: answer.hint(),
                errno: answer.errno(told.event.kind()),
                took_us,
            };
            writeln!(out, "{}", serde_json::to_string(&line)?)?;
        } else {
            writeln!(out, "{}", text(*line, &told.event, &answer, took_us))?;
        }
    }
    if log.others > 0 {
        tracing::warn!("{} records are not about events, and were passed over", log.others);
    }
    if log.events.is_empty() {
        anyhow::bail!("there is no event in {}", run.events.display());
    }
    Ok(checked)
}

fn text(line: usize, event: &Event, answer: &Answer, took_us: f64) -> String {
    let hint = answer.hint().map(|hint| format!("; to allow it, {hint}")).unwrap_or_default();
    let asked = format!("{} by {}", what(&event.action), who(&event.subject));
    format!("line {line}: {}: {}{} ({took_us:.1} µs)", plain(&asked), plain(&answer.text()), plain(&hint))
}
