//! `callgatectl reload`.

use std::ffi::OsString;

use anyhow::Result;

use callgate::control;
use callgate::ctl::Checked;
use callgate::reload::Handed;

use crate::arguments::{Form, Given, say};

const FORM: Form = Form {
    name: "reload",
    summary: "Has a callgate that runs here put another policy into force, without starting its workload anew.",
    usage: "[--pid PID] [--policy FILE]",
    help: "\
  --pid PID      the supervisor, if there are several
  --policy FILE  the policy, which is handed over with its plugins; default: the one that it was started with, read again
                 (it refuses what its workload could have written)

To be called from outside of the workload: `docker exec`, for example. `callgate reload` does the same.
",
    words: 0..=0,
    options: &["pid", "policy"],
    flags: &[],
    run: reload,
};

/// Runs the subcommand.
pub(crate) fn run(arguments: Vec<OsString>) -> Result<Checked> {
    FORM.run(arguments)
}

fn reload(given: &Given) -> Result<Checked> {
    let policy = given.option_path("policy").map(Handed::open).transpose()?;
    say(&format!("{}\n", control::ask(given.number("pid", 1..=u32::MAX)?, policy)?))
}
