//! The entrypoint wrapper: arguments in, exit status out. Everything else is in the library.

use std::ffi::{OsStr, OsString};
use std::path::PathBuf;
use std::process::ExitCode;

use anyhow::{Context, Result, anyhow, bail, ensure};
use lexopt::{Arg, Parser, ValueExt};

use callgate::control;
use callgate::log;
use callgate::policy::Mode;
use callgate::reload::Handed;
use callgate::sys::process::{self, Environment};
use callgate::wrap::{self, DEFAULT_CACHE, DEFAULT_POLICY, Wrap};

const HELP: &str = "\
Polices a container from inside: every exec and network event of COMMAND is decided by the plugins of a policy.

Usage: callgate [OPTIONS] COMMAND [ARG…]
       callgate run [OPTIONS] -- COMMAND [ARG…]
       callgate check [--policy FILE]
       callgate reload [--pid PID] [--policy FILE]
       callgate compile [--policy FILE] [--cache DIR]

Options:
  -p, --policy FILE  the policy (or CALLGATE_POLICY; default /etc/callgate/policy.json)
      --dry-run      block nothing, record what would have been denied (or CALLGATE_MODE=dry-run)
      --enforce      block what is denied, even if the policy says dry-run (or CALLGATE_MODE=enforce)
      --cache DIR    compiled plugins (or CALLGATE_CACHE; default /var/cache/callgate)
  -h, --help         print this
  -V, --version      print the version

`check` loads a policy and its plugins and says what they govern; nothing is started.
`reload` has the callgate that runs here (or the one with this PID) read its policy again, or take this one instead. It works
from outside of the workload: `docker exec`, for example.
`compile` compiles the plugins of a policy beforehand, into /var/cache/callgate (or CALLGATE_CACHE), for the build of an image.
They then start at once where the workload cannot write in that directory; elsewhere they are compiled at each start.

CALLGATE_LOG sets what is said about the enforcer's own work: error, warn (the default), info, debug or trace.
Variables that begin with CALLGATE_ are ours; the command does not get them.

Exit status: the command's own; 128+n if signal n ended it; 126 if it may not run; 127 if there is none; 125 if callgate
itself failed, in which case the command was not started, or was ended.
";

fn main() -> ExitCode {
    // Before anything else can look into /proc/PID/environ.
    let environment = process::take_environment("CALLGATE_");
    match work(environment) {
        Ok(status) => ExitCode::from(status),
        Err(error) => {
            wrap::report(&error);
            ExitCode::from(125)
        }
    }
}

fn work(Environment { own, rest }: Environment) -> Result<u8> {
    let variable = |name: &str| own.iter().find(|(key, _)| key == name).map(|(_, value)| value.as_str());
    log::start(variable("CALLGATE_LOG").filter(|filter| !filter.is_empty()).unwrap_or("warn"))?;
    let environment_mode = match variable("CALLGATE_MODE") {
        None | Some("") => None,
        Some("dry-run") => Some((Mode::DryRun, "CALLGATE_MODE")),
        Some("enforce") => Some((Mode::Enforce, "CALLGATE_MODE")),
        Some(other) => bail!("CALLGATE_MODE is {other:?}; it takes enforce or dry-run"),
    };
    // Said flat: the errors of `lexopt` have their causes in them.
    let arguments = match parse().map_err(|error| anyhow!("{error}\ntry callgate --help"))? {
        Arguments::Say(text) => {
            print!("{text}");
            return Ok(0);
        }
        Arguments::Do(arguments) => arguments,
    };
    let named = arguments.policy.clone();
    let is_default = named.is_none() && variable("CALLGATE_POLICY").is_none_or(str::is_empty);
    let policy = arguments
        .policy
        .or_else(|| variable("CALLGATE_POLICY").filter(|path| !path.is_empty()).map(PathBuf::from))
        .unwrap_or_else(|| DEFAULT_POLICY.into());
    let cache = arguments
        .cache
        .or_else(|| variable("CALLGATE_CACHE").filter(|path| !path.is_empty()).map(PathBuf::from))
        .unwrap_or_else(|| DEFAULT_CACHE.into());
    match arguments.job {
        Job::Check => {
            print!("{}", callgate::check::check(&policy)?);
            Ok(0)
        }
        Job::Reload(pid) => {
            println!("{}", control::ask(pid, named.map(|path| Handed::open(&path)).transpose()?)?);
            Ok(0)
        }
        Job::Compile => {
            print!("{}", wrap::compile(&policy, &cache)?);
            Ok(0)
        }
        Job::Run(command) => {
            let is_unknown = is_default && !policy.exists() && is_nowhere(&command[0]);
            let unknown = is_unknown.then(|| command[0].clone());
            let mode = arguments.mode.or(environment_mode);
            let status = wrap::run(&Wrap { policy, cache, mode, command, environment: rest });
            if let (Some(word), Err(error)) = (unknown, &status) {
                // `callgate help`, say.
                wrap::report(error);
                log::say(&format!("there is no command {word:?} either; try callgate --help"));
                return Ok(125);
            }
            status
        }
    }
}

enum Arguments {
    Say(String),
    Do(Invocation),
}

struct Invocation {
    policy: Option<PathBuf>,
    cache: Option<PathBuf>,
    mode: Option<(Mode, &'static str)>,
    job: Job,
}

enum Job {
    Run(Vec<OsString>),
    Check,
    Reload(Option<u32>),
    Compile,
}

/// Whether there is no such command.
fn is_nowhere(command: &OsStr) -> bool {
    let path = std::env::var_os("PATH").unwrap_or_default();
    let is_there = |directory: PathBuf| directory.join(command).exists();
    !command.as_encoded_bytes().contains(&b'/') && !std::env::split_paths(&path).any(is_there)
}

/// A path that an option names.
fn path(option: &str, value: OsString) -> Result<PathBuf> {
    ensure!(!value.is_empty(), "{option} is empty; it takes a path");
    Ok(value.into())
}

/// Options stand before the command; what follows it is the command's own.
fn parse() -> Result<Arguments> {
    let mut parser = Parser::from_env();
    let (mut policy, mut mode) = (None, None);
    let (mut word, mut pid, mut cache) = (None, None, None);
    while let Some(argument) = parser.next()? {
        match argument {
            Arg::Short('h') | Arg::Long("help") => return Ok(Arguments::Say(HELP.to_owned())),
            Arg::Short('V') | Arg::Long("version") => {
                return Ok(Arguments::Say(format!("callgate {}\n", env!("CARGO_PKG_VERSION"))));
            }
            Arg::Short('p') | Arg::Long("policy") => policy = Some(path("--policy", parser.value()?)?),
            Arg::Long("dry-run") => mode = Some((Mode::DryRun, "--dry-run")),
            Arg::Long("enforce") => mode = Some((Mode::Enforce, "--enforce")),
            Arg::Long("cache") => cache = Some(path("--cache", parser.value()?)?),
            Arg::Long("pid") if word.as_deref() == Some("reload") => {
                let value = parser.value()?;
                let number = value.to_str().and_then(|value| value.parse().ok());
                pid = Some(number.with_context(|| format!("--pid takes the number of a process, not {value:?}"))?);
            }
            Arg::Value(value)
                if word.is_none() && ["run", "check", "reload", "compile"].iter().any(|word| value == *word) =>
            {
                word = Some(value.string()?);
            }
            Arg::Value(first) => {
                if let Some(word @ ("check" | "reload" | "compile")) = word.as_deref() {
                    bail!("{word} takes no argument {first:?}; name the policy with --policy");
                }
                let rest = parser.raw_args().context("cannot read the command's arguments")?;
                let command = std::iter::once(first).chain(rest).collect();
                return Ok(Arguments::Do(Invocation { policy, cache, mode, job: Job::Run(command) }));
            }
            other => return Err(other.unexpected().into()),
        }
    }
    match word.as_deref() {
        Some("check") => Ok(Arguments::Do(Invocation { policy, cache, mode, job: Job::Check })),
        Some("reload") => Ok(Arguments::Do(Invocation { policy, cache, mode, job: Job::Reload(pid) })),
        Some("compile") => Ok(Arguments::Do(Invocation { policy, cache, mode, job: Job::Compile })),
        _ => bail!("there is no command to run"),
    }
}
