//! An exec of a caller that a process of the workload traces: strace(1), a debugger.
//!
//! A thread has one tracer, so we cannot hold such a caller ourselves. But its tracer can be held, and with it the caller:
//! one that has stopped for its tracer goes on only when the tracer says so, or ends. So the tracer is stopped with
//! ptrace(2), also if it is killed (`PTRACE_O_TRACEEXIT`: before it lets its tracees go); the caller goes on with its exec;
//! and when it has stopped for its tracer, it is looked at, before the tracer is let go.
//!
//! It has to be certain that the caller stops, whatever options its tracer has set:
//! - One attached with `PTRACE_SEIZE` is interrupted in the tracer's name: the tracer is made to call
//!   `ptrace(PTRACE_INTERRUPT, …)`, which stays pending until the exec is over.
//! - That call fails with `EIO` for one attached in any other way, and such a one gets a SIGTRAP from the kernel at every
//!   exec, unless it asked for the event instead (`ptrace_event`, include/linux/ptrace.h).
//! - A tracer that waits for its only child in vfork(2) cannot be made to call anything. Nor has it done anything since the
//!   child was born, so that it is the child itself that asked to be traced.
//!
//! Where none of this can be had the exec is refused.

use std::fs::File;
use std::io::{self, Read};
use std::os::fd::AsFd;
use std::os::unix::fs::FileExt;
use std::time::{Duration, Instant};

use nix::errno::Errno;
use nix::fcntl::{OFlag, openat};
use nix::sys::ptrace;
use nix::sys::signal::Signal;
use nix::sys::stat::Mode;
use nix::sys::wait::{WaitPidFlag, WaitStatus, waitpid};
use nix::unistd::Pid;

use super::exec::Verified;
use crate::intercept::caller::{Caller, Status};
use crate::intercept::path::View;
use crate::sys::injection;
use crate::sys::notify::{Answer, Listener};
use crate::sys::pidfd;

/// How long a tracer may take to stop. As a rule it waits for its tracees.
const PATIENCE: Duration = Duration::from_millis(500);

/// Lets the kernel carry out the exec of a caller that `caller.status.tracer` traces. `check` looks at the caller when it
/// has stopped, and says what is wrong with it.
///
/// # Errors
/// None at present.
pub fn exec(
    listener: &Listener,
    view: &View,
    id: u64,
    caller: &Caller,
    check: impl FnOnce(Pid) -> Option<String>,
) -> io::Result<Verified> {
    // An exec of another thread than the leader changes its number on the way.
    if caller.tid != caller.status.pid {
        return Ok(Verified::Traced);
    }
    let Some(tracer) = Tracer::hold(view, caller) else { return Ok(Verified::Traced) };
    let Some(before) = tracer.will_stop(view, caller).then(|| image(view, caller.tid)).flatten() else {
        return Ok(Verified::Traced);
    };
    if listener.send(id, Answer::Continue).is_err() || !is_over(view, caller) {
        return Ok(Verified::Gone);
    }
    if image(view, caller.tid) == Some(before) {
        return Ok(Verified::Done); // the exec has failed
    }
    let wrong = check(Pid::from_raw(caller.tid as i32));
    let Some((state, _)) = state(view, caller.tid).filter(|(state, _)| !ENDED.contains(state)) else {
        return Ok(Verified::Gone); // of such a one nothing can be read
    };
    let wrong = if state == STOPPED { wrong } else { Some("it did not stop".to_owned()) };
    Ok(wrong.map_or(Verified::Done, |why| {
        let _ = pidfd::signal(caller.pidfd.as_fd(), libc::SIGKILL);
        Verified::Killed(why)
    }))
}

/// A tracer that is stopped, or will be before its next instruction, for as long as this lives.
struct Tracer {
    thread: Pid,
    status: Status,
    stopped: bool,
}

impl Tracer {
    /// Stops the caller's tracer. `None` if that cannot be had: it is traced itself, or it is one of us.
    fn hold(view: &View, caller: &Caller) -> Option<Self> {
        let tid = caller.status.tracer;
        let open = |name: &str| openat(view.proc(), name, OFlag::O_PATH | OFlag::O_CLOEXEC, Mode::empty());
        if tid == 0 || open(&format!("self/task/{tid}")).is_ok() {
            return None;
        }
        let thread = Pid::from_raw(tid as i32);
        let options = ptrace::Options::PTRACE_O_TRACEEXIT
            | ptrace::Options::PTRACE_O_EXITKILL
            | ptrace::Options::PTRACE_O_TRACESYSGOOD;
        let deadline = Instant::now() + PATIENCE;
        while let Err(error) = ptrace::seize(thread, options) {
            // Another thread of ours may hold it, for another of its tracees.
            let holder = Status::read(open(&tid.to_string()).ok()?.as_fd()).ok()?.tracer;
            let ours = holder == 0 || open(&format!("self/task/{holder}")).is_ok();
            if error != Errno::EPERM || !ours || Instant::now() > deadline {
                return None;
            }
            std::thread::sleep(Duration::from_micros(100));
        }
        let mut tracer = Self { thread, status: Status::default(), stopped: false };
        ptrace::interrupt(thread).ok()?;
        tracer.status = Status::read(open(&tid.to_string()).ok()?.as_fd()).ok()?;
        loop {
            match waitpid(thread, Some(WaitPidFlag::__WALL | WaitPidFlag::__WNOTHREAD | WaitPidFlag::WNOHANG)) {
                Ok(WaitStatus::PtraceEvent(_, _, event)) => {
                    tracer.stopped = true;
                    return (event != ptrace::Event::PTRACE_EVENT_EXIT as i32).then_some(tracer);
                }
                Ok(WaitStatus::Stopped(_, signal)) => {
                    let _ = ptrace::cont(thread, signal);
                }
                Ok(WaitStatus::StillAlive) | Err(Errno::EINTR) => {
                    if tracer.waits_in_vfork(view, caller) {
                        return Some(tracer);
                    }
                    if Instant::now() > deadline {
                        return None;
                    }
                    std::thread::sleep(Duration::from_micros(20));
                }
                _ => return None,
            }
        }
    }

    /// Whether the tracer is the caller's parent, in the midst of the vfork(2) by which it made it.
    fn waits_in_vfork(&self, view: &View, caller: &Caller) -> bool {
        let call = read(view, &format!("{}/syscall", self.thread)).unwrap_or_default();
        // clone(2) could have given the child another parent.
        call.split_whitespace().next() == Some(&libc::SYS_vfork.to_string())
            && read(view, &format!("{0}/task/{0}/children", self.thread))
                .is_some_and(|children| children.split_whitespace().eq([caller.tid.to_string()]))
    }

    /// Code that the kernel itself has put into every process.
    fn vdso(&self, view: &View) -> Option<injection::Code> {
        let address = auxiliary(view, self.thread.as_raw() as u32, libc::AT_SYSINFO_EHDR)?;
        let mut bytes = vec![0; 8192];
        let length = memory(view, self.thread.as_raw() as u32)?.read_at(&mut bytes, address).ok()?;
        bytes.truncate(length);
        Some(injection::Code { address, bytes })
    }

    /// Makes sure that the caller will stop when its exec is over.
    fn will_stop(&self, view: &View, caller: &Caller) -> bool {
        let traps = caller.status.blocked_signals & (1 << (libc::SIGTRAP - 1)) == 0;
        if !self.stopped {
            return traps;
        }
        // What the tracer calls the caller, in its own pid namespace.
        let Some(name) = self.status.ids.len().checked_sub(1).and_then(|depth| caller.status.ids.get(depth)) else {
            return false;
        };
        let interrupt = [ptrace::Request::PTRACE_INTERRUPT as u64, u64::from(*name), 0, 0];
        let Some(vdso) = self.vdso(view) else { return false };
        match injection::call(self.thread, &vdso, libc::SYS_ptrace as u64, interrupt) {
            Ok(0) => true,
            Ok(failed) => failed == -i64::from(libc::EIO) && traps,
            Err(_) => false,
        }
    }
}

impl Drop for Tracer {
    fn drop(&mut self) {
        // Not stopped yet, or killed meanwhile: then there is a stop to wait for, or its end.
        while ptrace::detach(self.thread, None).is_err() {
            match waitpid(self.thread, Some(WaitPidFlag::__WALL | WaitPidFlag::__WNOTHREAD | WaitPidFlag::WNOHANG)) {
                Ok(WaitStatus::Stopped(_, signal)) if signal != Signal::SIGTRAP => {
                    let _ = ptrace::detach(self.thread, signal);
                    return;
                }
                Ok(WaitStatus::StillAlive) => std::thread::sleep(Duration::from_micros(50)),
                Ok(WaitStatus::Exited(..) | WaitStatus::Signaled(..)) | Err(Errno::ECHILD) => return,
                Ok(_) | Err(_) => {}
            }
        }
    }
}

/// A process that has stopped for its tracer, as proc_pid_stat(5) shows it.
const STOPPED: char = 't';
/// One that has ended.
const ENDED: [char; 2] = ['Z', 'X'];

/// Waits until the caller's exec is over: it has stopped for its tracer; or the exec has failed and it goes on, in which
/// case one that was not seized need not stop. False if it has ended.
fn is_over(view: &View, caller: &Caller) -> bool {
    let mut nap = Duration::from_micros(20);
    let begun = state(view, caller.tid).map(|(_, time)| time);
    loop {
        match state(view, caller.tid) {
            Some((STOPPED, _)) => return true,
            Some((state, _)) if ENDED.contains(&state) => return false,
            None => return false,
            // In the exec it spends no time in user mode, and is in no other call.
            Some((_, time)) if Some(time) != begun || is_elsewhere(view, caller) => return true,
            Some(_) => std::thread::sleep(nap),
        }
        nap = (nap * 3 / 2).min(Duration::from_millis(2));
    }
}

fn is_elsewhere(view: &View, caller: &Caller) -> bool {
    let call = read(view, &format!("{}/syscall", caller.tid)).unwrap_or_default();
    let number = call.split_whitespace().next().and_then(|number| number.parse::<i64>().ok());
    number.is_some_and(|number| number != libc::SYS_execve && number != libc::SYS_execveat)
}

/// The state, and the time in user mode.
fn state(view: &View, pid: u32) -> Option<(char, u64)> {
    let text = read(view, &format!("{pid}/stat"))?;
    let mut fields = text.rsplit_once(')')?.1.split_whitespace();
    let state = fields.next()?.chars().next()?;
    Some((state, fields.nth(10)?.parse().ok()?))
}

fn read(view: &View, name: &str) -> Option<String> {
    let file = openat(view.proc(), name, OFlag::O_RDONLY | OFlag::O_CLOEXEC, Mode::empty()).ok()?;
    io::read_to_string(File::from(file)).ok()
}

/// What tells one image of a process from the next: where the kernel has put its random bytes, and which they are
/// (`AT_RANDOM`, getauxval(3)).
fn image(view: &View, pid: u32) -> Option<(u64, [u8; 16])> {
    let address = auxiliary(view, pid, libc::AT_RANDOM)?;
    let mut random = [0; 16];
    memory(view, pid)?.read_exact_at(&mut random, address).ok()?;
    Some((address, random))
}

/// An entry of the auxiliary vector.
fn auxiliary(view: &View, pid: u32, key: u64) -> Option<u64> {
    let name = format!("{pid}/auxv");
    let file = openat(view.proc(), name.as_str(), OFlag::O_RDONLY | OFlag::O_CLOEXEC, Mode::empty()).ok()?;
    let mut bytes = Vec::new();
    File::from(file).read_to_end(&mut bytes).ok()?;
    let word = |bytes: &[u8]| u64::from_ne_bytes(bytes.try_into().unwrap_or_default());
    let pair = bytes.chunks_exact(16).find(|pair| word(&pair[..8]) == key)?;
    Some(word(&pair[8..]))
}

fn memory(view: &View, pid: u32) -> Option<File> {
    let name = format!("{pid}/mem");
    openat(view.proc(), name.as_str(), OFlag::O_RDONLY | OFlag::O_CLOEXEC, Mode::empty()).ok().map(File::from)
}
