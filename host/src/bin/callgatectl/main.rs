//! The tool for laptops and CI: arguments in, exit status out. Everything else is in the library, behind the feature `ctl`.

mod arguments;
mod plugin;
mod reload;

use std::ffi::OsString;
use std::io::{self, ErrorKind};
use std::process::ExitCode;

use anyhow::Result;

use callgate::ctl::Checked;
use callgate::policy::PolicyError;

use arguments::Usage;

const HELP: &str = "\
Writes, tests and ships plugins of callgate, and changes the policy of one that runs.

Usage: callgatectl plugin SUBCOMMAND …
       callgatectl reload [--pid PID] [--policy FILE]

Options:
  -h, --help     print this, or what a subcommand takes
  -V, --version  print the version

CALLGATE_LOG sets what is said about its own work, and what plugins log: error, warn (the default), info, debug or trace.

Exit status: 0 if all is well, 1 if something that was looked at is not, or could not be, 2 if the arguments make no sense.
";

fn main() -> ExitCode {
    match work() {
        Ok(Checked::Passed) => ExitCode::SUCCESS,
        Ok(Checked::Failed) => ExitCode::FAILURE,
        // Whoever reads our output has seen enough.
        Err(error) if error.root_cause().downcast_ref().map(io::Error::kind) == Some(ErrorKind::BrokenPipe) => {
            ExitCode::SUCCESS
        }
        Err(error) => {
            report(&error);
            ExitCode::from(if error.is::<Usage>() { 2 } else { 1 })
        }
    }
}

fn work() -> Result<Checked> {
    let level = std::env::var("CALLGATE_LOG").unwrap_or_else(|_| "warn".to_owned());
    callgate::log::start(&level)?;
    let mut arguments = std::env::args_os().skip(1);
    let word = arguments.next().unwrap_or_default();
    let rest: Vec<OsString> = arguments.collect();
    match word.to_str() {
        Some("plugin") => plugin::run(rest),
        Some("reload") => reload::run(rest),
        Some("-h" | "--help" | "help") => arguments::say(&format!("{HELP}\n{}", plugin::help())),
        Some("-V" | "--version") => arguments::say(&format!("callgatectl {}\n", env!("CARGO_PKG_VERSION"))),
        Some("") => Err(Usage("there is no subcommand; see callgatectl --help".to_owned()).into()),
        _ => Err(Usage(format!("there is no subcommand {word:?}; see callgatectl --help")).into()),
    }
}

fn report(error: &anyhow::Error) {
    let terminal = io::IsTerminal::is_terminal(&io::stderr());
    let colour = terminal && std::env::var_os("NO_COLOR").is_none_or(|value| value.is_empty());
    match error.downcast_ref::<PolicyError>() {
        Some(mistake) => eprintln!("callgatectl: {}", mistake.render(colour)),
        None => eprintln!("callgatectl: {error:#}"),
    }
}
