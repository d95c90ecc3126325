//! `callgatectl plugin test`: a table of events and expected verdicts, in the runtime that enforces.

use std::io::Write;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use anyhow::{Context, Result};

use super::cases::{self, Case};
use super::report::{Format, Result as CaseResult, write};
use super::sandbox::{Sandbox, ask_about};
use crate::ctl::Checked;
use crate::plugin::LoadError;
use crate::policy::Source;

/// What is to be tested.
#[derive(Debug)]
pub struct Test<'a> {
    /// The component, or the directory of a crate, which is built first.
    pub plugin: &'a Path,
    /// The cases; absent: `cases.json` beside the component, or in the crate.
    pub cases: Option<&'a Path>,
    /// How the results are written.
    pub format: Format,
}

/// Runs all cases, each in an instance of its own.
///
/// # Errors
/// The component cannot be loaded, or the cases cannot be read. Cases that fail are no error.
pub fn test(test: &Test<'_>, out: &mut dyn Write) -> Result<Checked> {
    let directory = if test.plugin.is_dir() { Some(test.plugin) } else { test.plugin.parent() };
    let cases = test.cases.map_or_else(|| directory.unwrap_or(Path::new("")).join("cases.json"), PathBuf::from);
    let (cases, source) = cases::load(&cases)?;
    let file = super::component(test.plugin)?;
    let sandbox = Sandbox::open(&file)?;
    let results: Vec<CaseResult> = cases.iter().map(|case| run(&sandbox, case, &source)).collect();
    write(test.format, &file, &results, out).context("cannot write the results")?;
    Ok(Checked::all(results.iter().map(|it| if it.failures.is_empty() { Checked::Passed } else { Checked::Failed })))
}

fn run(sandbox: &Sandbox, case: &Case, source: &Source) -> CaseResult {
    let started = Instant::now();
    let failures = match sandbox.plugin(&case.config, case.limits) {
        Err(LoadError::Config { pointer, message, hint }) => {
            let mistake = source.mistake(&format!("{}{pointer}", case.config_place), message, hint);
            let place = mistake.line_and_column().map(|(line, column)| format!(" at {line}:{column}"));
            vec![format!("the plugin refuses its configuration{}: {}", place.unwrap_or_default(), mistake.message())]
        }
        Err(other) => vec![format!("the plugin {other}")],
        Ok(mut plugin) => {
            let mut failures = Vec::new();
            for (number, (told, expect)) in case.events.iter().enumerate() {
                let (answer, _) = ask_about(&mut plugin, told);
                let kind = told.event.kind();
                let differences = match expect {
                    Some(expect) => expect.differences(&answer, kind),
                    // Whatever it says, it must not fail at it.
                    None if answer.word() == "fail" => vec![answer.text()],
                    None => Vec::new(),
                };
                failures.extend(differences.into_iter().map(|it| format!("event {} ({kind}): {it}", number + 1)));
            }
            failures
        }
    };
    CaseResult { name: case.name.clone(), failures, took: started.elapsed().max(Duration::from_nanos(1)) }
}
