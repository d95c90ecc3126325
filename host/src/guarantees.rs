//! What can be promised here: found out at start, on the command's own process, which waits under its filter.
//!
//! SECURITY.md says what each guarantee is worth. May depend on `sys`, `intercept::caller` and `policy`.

use std::fs::File;
use std::io::{self, Read};

use anyhow::{Result, bail};
use nix::errno::Errno;
use nix::fcntl::{OFlag, openat};
use nix::sys::ptrace;
use nix::sys::stat::Mode as FileMode;
use nix::sys::wait::WaitPidFlag;
use nix::unistd::Pid;

use crate::event::{EventKind, EventKinds};
use crate::intercept::caller::{Caller, Status};
use crate::intercept::path::View;
use crate::policy::{Guarantee, Mode};
use crate::sys::credentials::capability_sets;
use crate::sys::notify::Listener;
use crate::sys::pidfd;
use crate::sys::wait::{TRACEES, Whom, wait};

/// For each guarantee: that it holds, or why it does not.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Findings {
    found: Vec<(Guarantee, Result<(), String>)>,
    /// How many seccomp filters the command's process is under, and so everything that it starts at the least.
    pub filters: Option<u32>,
}

/// Tries what enforcement will need. `command` waits and has not run yet.
///
/// # Errors
/// Nothing at all can be decided on, because the supervisor may not look at the command's process.
pub fn find(view: &View, listener: &Listener, command: Pid) -> Result<Findings> {
    let caller = match Caller::read(view, command.as_raw() as u32) {
        Ok(caller) => caller,
        Err(error) => bail!(
            "the supervisor may not look at the command's process ({error}): without that it cannot decide on anything. \
             Give the container CAP_SYS_PTRACE, which the command will not get"
        ),
    };
    let held = hold(command); // stops while the rest is found out
    let sockets = can_take_sockets(&caller);
    let protected = cannot_reach_us(&caller);
    let found = vec![
        (Guarantee::RaceFreeExec, held.and_then(|()| let_go(command)).map_err(why_not_held)),
        (Guarantee::RaceFreeNetwork, sockets),
        (Guarantee::ProtectedSupervisor, protected),
        (Guarantee::RestartFree, never_restarts(listener)),
        (Guarantee::AllCallers, can_look_at_anybody()?),
    ];
    Ok(Findings { found, filters: caller.status()?.filters })
}

/// Says where else the token is to be found, which callgate keeps from the workload: whoever has started `guardian` and is still
/// there has it as well.
pub fn look_for_the_token(view: &View, guardian: u32) {
    let Some(parent) = Status::of(view, guardian).ok().map(|status| status.parent).filter(|parent| *parent != 0) else {
        return;
    };
    let name = format!("{parent}/environ");
    let environment = openat(view.proc(), name.as_str(), OFlag::O_RDONLY | OFlag::O_CLOEXEC, FileMode::empty())
        .map_err(io::Error::from)
        .and_then(|file| {
            let mut bytes = Vec::new();
            File::from(file).take(ENVIRONMENT).read_to_end(&mut bytes).map(|_| bytes)
        });
    if environment.is_ok_and(|bytes| bytes.split(|byte| *byte == 0).any(|entry| entry.starts_with(TOKEN))) {
        tracing::warn!(
            "process {parent}, which has started callgate, has CALLGATE_TOKEN in its environment, where the workload may be able to \
             read it: have callgate started in its place (`exec callgate …`), or as the container's first process"
        );
    }
}

const TOKEN: &[u8] = b"CALLGATE_TOKEN=";
/// How much of an environment is looked at.
const ENVIRONMENT: u64 = 1 << 20;

impl Findings {
    /// Says what does not hold and would be missed.
    ///
    /// # Errors
    /// The policy requires it, or rules would be without effect.
    pub fn check(&self, required: &[Guarantee], governed: EventKinds, mode: Mode) -> Result<()> {
        for (guarantee, found) in &self.found {
            let Err(why) = found else { continue };
            if required.contains(guarantee) {
                bail!("the policy requires {guarantee}, which cannot be had here: {why}");
            }
            match guarantee {
                Guarantee::RaceFreeNetwork if governed.intersects(NETWORK) => match mode {
                    Mode::Enforce => bail!("the policy's network rules cannot be enforced here: {why}"),
                    Mode::DryRun => tracing::warn!("network events are not seen: {why}"),
                },
                Guarantee::RaceFreeExec if governed.contains(EventKind::Exec) && mode == Mode::Enforce => {
                    tracing::warn!("{guarantee} does not hold, so an attacker can run what is denied: {why}");
                }
                Guarantee::AllCallers if !governed.is_empty() && nix::unistd::geteuid().is_root() => {
                    tracing::warn!("{why}");
                }
                _ => tracing::info!("{guarantee} does not hold: {why}"),
            }
        }
        Ok(())
    }

    /// Whether a guarantee holds.
    pub fn has(&self, wanted: Guarantee) -> bool {
        self.found.iter().any(|(guarantee, found)| *guarantee == wanted && found.is_ok())
    }
}

const NETWORK: EventKinds = EventKinds::NONE
    .with(EventKind::Connect)
    .with(EventKind::Bind)
    .with(EventKind::Listen)
    .with(EventKind::Accept)
    .with(EventKind::Send);

/// PTRACE_SEIZE, by which an exec is held before its first instruction.
fn hold(command: Pid) -> nix::Result<()> {
    ptrace::seize(command, ptrace::Options::empty())?;
    ptrace::interrupt(command)
}

fn let_go(command: Pid) -> nix::Result<()> {
    wait(Whom::One(command), TRACEES | WaitPidFlag::WSTOPPED | WaitPidFlag::WEXITED)?;
    ptrace::detach(command, None)
}

fn why_not_held(error: Errno) -> String {
    let scope = std::fs::read_to_string("/proc/sys/kernel/yama/ptrace_scope").unwrap_or_default();
    match scope.trim() {
        "2" | "3" => format!("ptrace(2) is refused ({error}); kernel.yama.ptrace_scope is {}", scope.trim()),
        _ => format!("ptrace(2) is refused ({error})"),
    }
}

/// pidfd_getfd(2), by which calls are performed on the caller's own socket.
fn can_take_sockets(caller: &Caller) -> Result<(), String> {
    match pidfd::duplicate(caller.pidfd(), 0) {
        Err(error) if error.raw_os_error() != Some(libc::EBADF) => Err(format!(
            "pidfd_getfd(2) is refused ({error}), as Docker's seccomp profile does without CAP_SYS_PTRACE; give the container \
             that capability (on Fargate: linuxParameters.capabilities.add), the command will not get it"
        )),
        _ => Ok(()),
    }
}

/// With these capabilities (capabilities(7)) the workload has means that the supervisor cannot take from it: another
/// process's namespaces and memory (`CAP_SYS_ADMIN`), its files (`CAP_DAC_READ_SEARCH`, by handle), the machine.
fn cannot_reach_us(caller: &Caller) -> Result<(), String> {
    const REACHING: [(u32, &str); 2] = [(21, "CAP_SYS_ADMIN"), (22, "CAP_SYS_BOOT")];
    let theirs = caller.status().map_err(|error| format!("its capabilities cannot be read: {error}"))?;
    let has = |number: u32| theirs.identity.capabilities & (1 << number) != 0;
    match REACHING.iter().find(|(number, _)| has(*number)) {
        Some((_, name)) => Err(format!("the command has {name}")),
        None => Ok(()),
    }
}

/// `SECCOMP_FILTER_FLAG_WAIT_KILLABLE_RECV`.
fn never_restarts(listener: &Listener) -> Result<(), String> {
    if listener.keeps_callers() {
        return Ok(());
    }
    Err("this kernel (before Linux 5.19) starts a call again when a signal comes while it is being decided".to_owned())
}

/// ptrace(2), "access mode checking": without the capability we may look only at processes of our own user that are dumpable.
fn can_look_at_anybody() -> Result<Result<(), String>> {
    const CAP_SYS_PTRACE: u64 = 1 << 19;
    if capability_sets()?.effective & CAP_SYS_PTRACE != 0 {
        return Ok(Ok(()));
    }
    let why =
        "without CAP_SYS_PTRACE the calls of processes that change their user, or are not dumpable, are refused unseen";
    Ok(Err(why.to_owned()))
}
