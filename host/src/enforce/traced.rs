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
//! And that it is the kernel that has answered the call: a filter of the tracer's own could do that as well, so there must
//! be none. Only an exec by another thread of the tracer's process could end a tracer that is stopped at its end, so its
//! process makes none meanwhile ([`Turns`]).
//!
//! Where none of this can be had the exec is refused.

use std::collections::HashMap;
use std::fs::File;
use std::io::{self, Read};
use std::os::fd::BorrowedFd;
use std::os::unix::fs::FileExt;
use std::sync::{Condvar, Mutex, PoisonError};
use std::time::{Duration, Instant};

use nix::errno::Errno;
use nix::fcntl::{OFlag, openat};
use nix::sys::ptrace;
use nix::sys::stat::Mode;
use nix::sys::wait::WaitPidFlag;
use nix::unistd::Pid;

use super::exec::{Holder, Verified};
use crate::intercept::caller::{Caller, Status};
use crate::intercept::path::View;
use crate::sys::injection;
use crate::sys::notify::{Answer, Listener};
use crate::sys::pidfd;
use crate::sys::wait::{Change, On, TRACEES, Whom, go_on, wait};

/// How long a tracer may take to stop. As a rule it waits for its tracees.
const PATIENCE: Duration = Duration::from_secs(2);

/// Which processes have an exec under way, and which have a thread that is held because it traces a caller: none has both.
#[derive(Debug, Default)]
pub struct Turns {
    taken: Mutex<Taken>,
    given_back: Condvar,
}

#[derive(Debug, Default)]
struct Taken {
    /// How many execs each process has under way; none while a thread of it is held.
    processes: HashMap<u32, usize>,
    /// How many wait for a turn.
    waiting: usize,
}

const HELD: usize = 0;

impl Turns {
    /// The turn of a process for one more exec; `None` if `goes_on` says no before it comes.
    pub fn exec(&self, pid: u32, goes_on: impl Fn() -> bool) -> Option<Turn<'_>> {
        self.take(pid, goes_on, |count| match count {
            None => Some(1),
            Some(HELD) => None,
            Some(execs) => Some(execs + 1),
        })
    }

    fn hold(&self, pid: u32, goes_on: impl Fn() -> bool) -> Option<Turn<'_>> {
        self.take(pid, goes_on, |count| count.is_none().then_some(HELD))
    }

    fn take(
        &self,
        pid: u32,
        goes_on: impl Fn() -> bool,
        next: impl Fn(Option<usize>) -> Option<usize>,
    ) -> Option<Turn<'_>> {
        const LOOK: Duration = Duration::from_millis(50);
        let mut taken = self.taken.lock().unwrap_or_else(PoisonError::into_inner);
        loop {
            if let Some(count) = next(taken.processes.get(&pid).copied()) {
                taken.processes.insert(pid, count);
                return Some(Turn { turns: self, pid });
            }
            if !goes_on() {
                return None;
            }
            taken.waiting += 1;
            taken = self.given_back.wait_timeout(taken, LOOK).unwrap_or_else(PoisonError::into_inner).0;
            taken.waiting -= 1;
        }
    }
}

/// One's turn, until it is dropped.
#[derive(Debug)]
pub struct Turn<'a> {
    turns: &'a Turns,
    pid: u32,
}

impl Drop for Turn<'_> {
    fn drop(&mut self) {
        let mut taken = self.turns.taken.lock().unwrap_or_else(PoisonError::into_inner);
        match taken.processes.get(&self.pid).copied() {
            Some(count) if count > 1 => taken.processes.insert(self.pid, count - 1),
            _ => taken.processes.remove(&self.pid),
        };
        if taken.waiting > 0 {
            self.turns.given_back.notify_all(); // a system call, even if nobody waits
        }
    }
}

/// Lets the kernel carry out the exec of a caller that somebody traces. `check` looks at the caller when it
/// has stopped, and says what is wrong with it.
///
/// # Errors
/// Its status cannot be read.
pub fn exec(
    listener: &Listener,
    view: &View,
    holder: &Holder,
    id: u64,
    caller: &Caller,
    check: impl FnOnce(Pid) -> Option<String>,
) -> io::Result<Verified> {
    // An exec of another thread than the leader changes its number on the way.
    if caller.tid != caller.pid {
        return Ok(Verified::Traced);
    }
    let tracer = caller.status()?.tracer;
    let deadline = Instant::now() + PATIENCE;
    let Some(process) = status(view, tracer).map(|status| status.pid) else {
        return Ok(Verified::Traced);
    };
    let Some(_turn) = holder.turns.hold(process, || Instant::now() < deadline) else { return Ok(Verified::Traced) };
    let Some(mut tracer) = Tracer::seize(view, caller, process, deadline) else { return Ok(Verified::Traced) };
    let certain = tracer.stop(view, caller, deadline) && tracer.will_stop(view, caller, holder.filters);
    // That somebody is told of its call does not mean that it waits already.
    let call = || loop {
        match current_call(view, caller.tid) {
            None if Instant::now() < deadline => std::thread::sleep(Duration::from_micros(20)),
            found => return found,
        }
    };
    let held = if certain { image(view, caller.tid).zip(call()) } else { None };
    let Some((before, call)) = held else {
        // Before the tracer is waited for: it may wait for the caller.
        let _ = listener.send(id, Answer::Errno(libc::EPERM));
        return Ok(Verified::Traced);
    };
    if listener.send(id, Answer::Continue).is_err() {
        return Ok(Verified::Gone);
    }
    let checked = || {
        if !is_over(view, caller, &before, &call)? {
            return Ok(Checked::Ended);
        }
        if image(view, caller.tid).as_ref() == Some(&before) {
            return Ok(Checked::Wrong(None)); // the exec has failed
        }
        let wrong = check(Pid::from_raw(caller.tid as i32));
        match state(view, caller.tid)? {
            State::Ended => Ok(Checked::Ended), // of such a one nothing can be read
            State::Stopped => Ok(Checked::Wrong(wrong)),
            State::Other => Ok(Checked::Wrong(Some("it did not stop".to_owned()))),
        }
    };
    // What it runs is not known, for want of descriptors, say: then it does not run.
    let unseen = |error: Errno| Checked::Wrong(Some(format!("it could not be looked at: {error}")));
    let wrong = match checked().unwrap_or_else(unseen) {
        Checked::Ended => return Ok(Verified::Gone),
        Checked::Wrong(wrong) => wrong,
    };
    Ok(wrong.map_or(Verified::Done, |why| {
        let _ = pidfd::signal(caller.pidfd(), libc::SIGKILL);
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
    /// Takes hold of the caller's tracer, a thread of `process`. `None` if that cannot be had: it is traced itself, or it
    /// is one of us.
    fn seize(view: &View, caller: &Caller, process: u32, deadline: Instant) -> Option<Self> {
        let tid = caller.status().ok()?.tracer;
        if tid == 0 || is_ours(view, tid) {
            return None;
        }
        let thread = Pid::from_raw(tid as i32);
        let options = ptrace::Options::PTRACE_O_TRACEEXIT
            | ptrace::Options::PTRACE_O_EXITKILL
            | ptrace::Options::PTRACE_O_TRACESYSGOOD;
        while let Err(error) = ptrace::seize(thread, options) {
            // Another thread of ours may hold it, to make a call for it.
            let holder = status(view, tid)?.tracer;
            if error != Errno::EPERM || holder != 0 && !is_ours(view, holder) || Instant::now() > deadline {
                return None;
            }
            std::thread::sleep(Duration::from_micros(100));
        }
        let mut tracer = Self { thread, status: Status::default(), stopped: false };
        ptrace::interrupt(thread).ok()?;
        tracer.status = status(view, tid).filter(|status| status.pid == process)?;
        Some(tracer)
    }

    /// What has become of it since the last time, if something has.
    fn change(&self) -> Result<Option<Change>, Errno> {
        let flags = TRACEES | WaitPidFlag::WNOHANG;
        let flags = flags | WaitPidFlag::WEXITED | WaitPidFlag::WSTOPPED;
        Ok(wait(Whom::One(self.thread), flags)?.map(|(_, change)| change))
    }

    /// Stops it, or finds it where it cannot go on before the caller's exec is over.
    fn stop(&mut self, view: &View, caller: &Caller, deadline: Instant) -> bool {
        loop {
            match self.change() {
                Ok(Some(Change::Event(event))) => {
                    self.stopped = true;
                    return event != ptrace::Event::PTRACE_EVENT_EXIT as i32;
                }
                Ok(Some(Change::Signal(signal))) => {
                    let _ = go_on(self.thread, On::ToStop, signal);
                }
                Ok(None) | Err(Errno::EINTR) => {
                    if self.waits_in_vfork(view, caller) {
                        return true;
                    }
                    if Instant::now() > deadline {
                        return false;
                    }
                    std::thread::sleep(Duration::from_micros(20));
                }
                _ => return false,
            }
        }
    }

    /// Whether the tracer is the caller's parent, in the midst of the vfork(2) by which it made it.
    fn waits_in_vfork(&self, view: &View, caller: &Caller) -> bool {
        // clone(2) could have given the child another parent.
        current_call(view, self.thread.as_raw() as u32).is_some_and(|call| {
            let number = call.split_whitespace().next().and_then(|number| number.parse().ok());
            number.is_some() && number == injection::VFORK
        }) && read(view, &format!("{0}/task/{0}/children", self.thread))
            .is_ok_and(|children| children.split_whitespace().eq([caller.tid.to_string()]))
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
    fn will_stop(&self, view: &View, caller: &Caller, filters: Option<u32>) -> bool {
        let Ok(theirs) = caller.status() else { return false };
        let traps = theirs.blocked_signals & (1 << (libc::SIGTRAP - 1)) == 0;
        if !self.stopped {
            return traps;
        }
        // What the tracer calls the caller, in its own pid namespace.
        let Some(name) = self.status.ids.len().checked_sub(1).and_then(|depth| theirs.ids.get(depth)) else {
            return false;
        };
        let interrupt = [ptrace::Request::PTRACE_INTERRUPT as u64, u64::from(*name), 0, 0];
        let Some(vdso) = self.vdso(view) else { return false };
        let answer = injection::call(self.thread, &vdso, libc::SYS_ptrace as u64, interrupt);
        // Looked at afterwards: none is ever taken away, but another thread can add one (SECCOMP_FILTER_FLAG_TSYNC).
        let now = status(view, self.thread.as_raw() as u32).and_then(|status| status.filters);
        if now.is_none() || now != filters {
            return false;
        }
        match answer {
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
            match self.change() {
                Ok(Some(Change::Signal(signal))) if signal != libc::SIGTRAP => {
                    let _ = go_on(self.thread, On::Free, signal);
                    return;
                }
                Ok(None) => std::thread::sleep(Duration::from_micros(50)),
                Ok(Some(Change::Exited(_) | Change::Killed(_))) | Err(Errno::ECHILD) => return,
                Ok(_) | Err(_) => {}
            }
        }
    }
}

/// Whether a thread of ours traces this one, or has just let go of it.
pub(super) fn is_held_by_us(view: &View, tid: u32) -> bool {
    status(view, tid).is_some_and(|status| status.tracer == 0 || is_ours(view, status.tracer))
}

fn is_ours(view: &View, tid: u32) -> bool {
    let task = format!("self/task/{tid}");
    openat(view.proc(), task.as_str(), OFlag::O_PATH | OFlag::O_CLOEXEC, Mode::empty()).is_ok()
}

/// What came of looking at a caller whose exec was let go.
enum Checked {
    Ended,
    /// What is wrong with it, if something is.
    Wrong(Option<String>),
}

/// What a process does, as far as it matters here.
#[derive(Debug, PartialEq, Eq)]
enum State {
    /// It has stopped for its tracer.
    Stopped,
    Ended,
    Other,
}

/// As proc_pid_stat(5) shows it.
fn state(view: &View, pid: u32) -> Result<State, Errno> {
    let text = match read(view, &format!("{pid}/stat")) {
        Err(Errno::ENOENT | Errno::ESRCH) => return Ok(State::Ended),
        text => text?,
    };
    match text.rsplit_once(')').and_then(|(_, rest)| rest.trim_start().chars().next()) {
        Some('t') => Ok(State::Stopped),
        Some('Z' | 'X') => Ok(State::Ended),
        _ => Ok(State::Other),
    }
}

/// Waits until the caller's exec is over: it has stopped for its tracer; or the exec has failed and it goes on, in which
/// case one that was not seized need not stop. False if it has ended.
///
/// A caller that goes on is found at its next call that waits. `call` is the one that it waits in now, with its arguments:
/// nobody can change those in the midst of it, and what the kernel puts there when the exec succeeds comes with an image
/// that is not the one `before`.
///
/// # Errors
/// That cannot be found out.
fn is_over(view: &View, caller: &Caller, before: &Image, call: &str) -> Result<bool, Errno> {
    let mut nap = Duration::from_micros(20);
    loop {
        match state(view, caller.tid)? {
            State::Stopped => return Ok(true),
            State::Ended => return Ok(false),
            State::Other => {
                let elsewhere = current_call(view, caller.tid).is_some_and(|now| now != call);
                if elsewhere && image(view, caller.tid).as_ref() == Some(before) {
                    return Ok(true);
                }
                std::thread::sleep(nap);
            }
        }
        nap = (nap * 3 / 2).min(Duration::from_millis(2));
    }
}

/// The call that a thread waits in, with its arguments, as proc_pid_syscall(5) shows it; `None` while it runs.
pub(super) fn current_call(view: &View, tid: u32) -> Option<String> {
    read(view, &format!("{tid}/syscall")).ok().filter(|call| !call.starts_with("running"))
}

fn status(view: &View, tid: u32) -> Option<Status> {
    Status::of(view, tid).ok()
}

fn read(view: &View, name: &str) -> Result<String, Errno> {
    let file = openat(view.proc(), name, OFlag::O_RDONLY | OFlag::O_CLOEXEC, Mode::empty())?;
    let errno = |error: io::Error| Errno::from_raw(error.raw_os_error().unwrap_or(libc::EIO));
    io::read_to_string(File::from(file)).map_err(errno)
}

pub(super) type Image = (u64, [u8; 16]);

/// What tells one image of a process from the next: where the kernel has put its random bytes, and which they are
/// (`AT_RANDOM`, getauxval(3)).
pub(super) fn image(view: &View, pid: u32) -> Option<Image> {
    let address = auxiliary(view, pid, libc::AT_RANDOM)?;
    let mut random = [0; 16];
    memory(view, pid)?.read_exact_at(&mut random, address).ok()?;
    Some((address, random))
}

/// When a thread was started, in clock ticks since the machine was (proc_pid_stat(5)). `directory` is its `/proc/TID`.
pub(super) fn start_time(directory: BorrowedFd<'_>) -> Option<u64> {
    let file = openat(directory, "stat", OFlag::O_RDONLY | OFlag::O_CLOEXEC, Mode::empty()).ok()?;
    let text = io::read_to_string(File::from(file)).ok()?;
    // The 22nd field; the second is a name in parentheses, with whatever in it, and the third comes after.
    text.rsplit_once(')')?.1.split_whitespace().nth(19)?.parse().ok()
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
