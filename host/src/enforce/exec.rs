//! An exec that was allowed: the kernel carries it out, and what it has begun is looked at before its first instruction.
//!
//! The caller is seized with ptrace(2) while it still waits for our answer, and interrupted; that stays pending until the
//! call is over. Then there is either an exec stop, at which the new program is there and has not run, or, if the exec has
//! failed, an ordinary one. Everything here happens on the thread that received the notification, because ptrace belongs
//! to a thread.

use std::collections::HashSet;
use std::fs::File;
use std::io::{self, Read};
use std::os::fd::{AsFd, BorrowedFd};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use nix::errno::Errno;
use nix::fcntl::{AtFlags, OFlag, openat};
use nix::sys::ptrace;
use nix::sys::signal::{Signal, kill};
use nix::sys::stat::{Mode, fstat, fstatat};
use nix::sys::wait::WaitPidFlag;
use nix::unistd::Pid;

use crate::decide::FileRole;
use crate::enforce::traced::{self, Turns};
use crate::intercept::caller::{Caller, Status};
use crate::intercept::callers::UnderWay;
use crate::intercept::exec::{Program, digest};
use crate::intercept::path::{View, same_file};
use crate::sys::mapping::{self, Mapped, ToBe};
use crate::sys::notify::{Answer, Listener};
use crate::sys::wait::{Change, On, TRACEES, Whom, go_on, wait};

/// How a verified call ended.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Verified {
    /// What was decided on is running, or the call failed by itself.
    Done,
    /// The caller died first.
    Gone,
    /// Something else was about to run, and was killed. Says what.
    Killed(String),
    /// The caller cannot be held, because somebody in the workload traces it: the call was not carried out.
    Traced,
    /// We may not read the file, so what it runs is not known: the call was not carried out.
    Unreadable,
}

/// What has to be known, and remembered, to hold callers.
#[derive(Debug)]
pub struct Holder {
    /// The one of our children whose status somebody wants: who reaps, and nobody else, is told of its end.
    command: Pid,
    /// How many filters a process has that has none of its own.
    pub(super) filters: Option<u32>,
    pub(super) turns: Turns,
    again: Again,
}

impl Holder {
    /// For this command; see [`Findings::filters`](crate::guarantees::Findings::filters).
    pub fn new(command: Pid, filters: Option<u32>) -> Self {
        Self { command, filters, turns: Turns::default(), again: Again::default() }
    }

    /// Whether this thread makes a setgroups(2) again that was allowed before. Once.
    pub fn expects(&self, tid: u32) -> bool {
        self.again.is_expected(tid)
    }

    /// Lets go of a task that is held. One that has been killed meanwhile cannot be detached, and its parent hears nothing of
    /// it until its tracer has seen it off.
    pub fn release(&self, held: Pid) {
        if ptrace::detach(held, None).is_err() {
            self.reap(held);
        }
    }

    /// Sees a dead tracee off, so that its parent gets to know, or an exec that waits for this thread's end goes on. Nothing is
    /// opened for it: it has to be done also where no files are left. The command's status is left to who reaps, who sees it
    /// off as well (`wait_consider_task`, kernel/exit.c); other children of ours have nobody else to be reaped for.
    fn reap(&self, pid: Pid) {
        if pid == self.command {
            return;
        }
        let flags = TRACEES | WaitPidFlag::WEXITED;
        while wait(Whom::One(pid), flags) == Err(Errno::EINTR) {}
    }
}

/// Lets the kernel carry out an exec, and kills what is not `program`. `digests` are files whose content was decided on.
/// `under_way` is told as soon as it is known that the exec is over; after a success it is, whatever was said.
///
/// # Errors
/// ptrace(2) failed in a way that has no meaning for us; the call was not carried out.
#[allow(clippy::too_many_arguments)] // each is a thing of its own
pub fn exec(
    listener: &Listener,
    view: &View,
    holder: &Holder,
    id: u64,
    caller: &Caller,
    program: &Program,
    digests: &[(FileRole, String)],
    under_way: &mut UnderWay<'_>,
) -> io::Result<Verified> {
    if program.unreadable {
        return Ok(Verified::Unreadable);
    }
    let Some(_turn) = holder.turns.exec(caller.pid, || listener.is_valid(id)) else { return Ok(Verified::Gone) };
    let result = held(listener, view, holder, id, caller, |leader, is_exec| {
        under_way.is_over();
        if !is_exec {
            return None;
        }
        difference(view, caller, leader, program, digests)
    });
    match result {
        Ok(Verified::Traced) => {
            let check = |leader| {
                under_way.is_over();
                difference(view, caller, leader, program, digests)
            };
            traced::exec(listener, view, holder, id, caller, check)
        }
        result => result,
    }
}

/// Lets the kernel carry out setgroups(2), and kills the caller if it then has other groups.
///
/// # Errors
/// As [`exec`].
pub fn groups(
    listener: &Listener,
    view: &View,
    holder: &Holder,
    id: u64,
    caller: &Caller,
    groups: &[u32],
) -> io::Result<Verified> {
    let before = &caller.status()?.identity.groups;
    let check = || {
        let Ok(now) = Status::read(caller.directory()) else {
            return Some("its groups could not be read".to_owned());
        };
        let mut found = now.identity.groups;
        if found == *before {
            return None; // refused by the kernel
        }
        found.sort_unstable();
        (found != groups).then(|| format!("it has the groups {found:?}"))
    };
    if listener.keeps_callers() {
        held(listener, view, holder, id, caller, |_, _| check())
    } else {
        made_again(view, holder, caller, check)
    }
}

/// Threads of the workload whose setgroups(2) was allowed and is made again under our eyes: it is not decided on again.
#[derive(Debug, Default)]
struct Again(Mutex<HashSet<u32>>);

impl Again {
    fn threads(&self) -> MutexGuard<'_, HashSet<u32>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Whether this thread is one of them. Once.
    fn is_expected(&self, tid: u32) -> bool {
        self.threads().remove(&tid)
    }
}

/// Before Linux 5.19 nothing can be kept pending for the end of a call that waits for our answer, and after the answer the
/// caller would run on for a moment before it can be stopped. So it is stopped first, which ends the call; the kernel starts
/// it again, and each of its ends is a stop (`PTRACE_SYSCALL`): the last before anything runs with the new groups.
fn made_again(
    view: &View,
    holder: &Holder,
    caller: &Caller,
    check: impl FnOnce() -> Option<String>,
) -> io::Result<Verified> {
    let thread = Pid::from_raw(caller.tid as i32);
    match ptrace::seize(thread, ptrace::Options::PTRACE_O_EXITKILL | ptrace::Options::PTRACE_O_TRACESYSGOOD) {
        Ok(()) => {}
        Err(Errno::ESRCH) => return Ok(Verified::Gone),
        Err(Errno::EPERM) => return Ok(Verified::Traced),
        Err(error) => return Err(error.into()),
    }
    let _ = ptrace::interrupt(thread);
    let again = &holder.again;
    let mut expected = false;
    let wrong = loop {
        let signal = match next_stop(holder, thread) {
            None => {
                again.is_expected(caller.tid);
                return Ok(Verified::Gone);
            }
            Some(Change::Syscall) if expected => break check(),
            Some(Change::Syscall) => {
                // A handler of a signal may have run meanwhile, and makes a call of its own.
                let call = traced::current_call(view, caller.tid).unwrap_or_default();
                if call.split(' ').next() != Some(&libc::SYS_setgroups.to_string()) {
                    break None;
                }
                expected = again.threads().insert(caller.tid);
                0
            }
            Some(Change::Signal(signal)) => signal,
            Some(_) => 0,
        };
        let _ = go_on(thread, On::ToSyscall, signal);
    };
    again.is_expected(caller.tid);
    if wrong.is_some() {
        let _ = kill(thread, Signal::SIGKILL);
    }
    holder.release(thread);
    Ok(wrong.map_or(Verified::Done, Verified::Killed))
}

/// The next stop of a thread that we hold; `None` if it has ended.
fn next_stop(holder: &Holder, thread: Pid) -> Option<Change> {
    loop {
        let peek = TRACEES | WaitPidFlag::WEXITED | WaitPidFlag::WSTOPPED | WaitPidFlag::WNOWAIT;
        match wait(Whom::One(thread), peek) {
            Err(Errno::EINTR) | Ok(None) => {}
            Err(_) => return None,
            Ok(Some((_, change))) if change.is_end() => {
                holder.reap(thread);
                return None;
            }
            Ok(Some(_)) => match wait(Whom::One(thread), TRACEES | WaitPidFlag::WSTOPPED | WaitPidFlag::WNOHANG) {
                Ok(None) | Err(Errno::EINTR) => {}
                Ok(Some((_, stop))) => return Some(stop),
                Err(_) => return None,
            },
        }
    }
}

/// Holds the caller while the kernel carries out its call, and kills it if `check` finds something wrong.
fn held(
    listener: &Listener,
    view: &View,
    holder: &Holder,
    id: u64,
    caller: &Caller,
    check: impl FnOnce(Pid, bool) -> Option<String>,
) -> io::Result<Verified> {
    let thread = Pid::from_raw(caller.tid as i32);
    let options = ptrace::Options::PTRACE_O_TRACEEXEC | ptrace::Options::PTRACE_O_EXITKILL;
    loop {
        match ptrace::seize(thread, options) {
            Ok(()) => break,
            Err(Errno::ESRCH) => return Ok(Verified::Gone),
            // Before Linux 5.19 the caller may have come again while another thread of ours still holds it.
            Err(Errno::EPERM) if !listener.keeps_callers() && traced::is_held_by_us(view, caller.tid) => {
                if !listener.is_valid(id) {
                    return Ok(Verified::Gone);
                }
                std::thread::sleep(Duration::from_micros(50));
            }
            Err(Errno::EPERM) => return Ok(Verified::Traced),
            Err(error) => return Err(error.into()),
        }
    }
    // The interruption stays pending until the call is over. Before Linux 5.19 it would end the notification instead, and so
    // comes after the answer: an exec that has gone through by then has stopped all the same.
    let interrupt =
        || ptrace::interrupt(thread).or_else(|error| if error == Errno::ESRCH { Ok(()) } else { Err(error) });
    if listener.keeps_callers() {
        interrupt()?;
    }
    // Also if the caller has died in between: then the wait ends with that.
    let _ = listener.send(id, Answer::Continue);
    if !listener.keeps_callers() {
        interrupt()?;
    }
    let Some((stopped, is_exec)) = wait_for_stop(holder, caller) else { return Ok(Verified::Gone) };
    // Of one that somebody kills meanwhile nothing can be read any more.
    let wrong = check(stopped, is_exec).filter(|_| ptrace::getevent(stopped).is_ok());
    if wrong.is_some() {
        let _ = kill(stopped, Signal::SIGKILL);
    }
    holder.release(stopped);
    Ok(wrong.map_or(Verified::Done, Verified::Killed))
}

/// Waits for the caller to stop. An exec by a thread that is not the leader gives it the leader's number.
fn wait_for_stop(holder: &Holder, caller: &Caller) -> Option<(Pid, bool)> {
    const EXEC: i32 = ptrace::Event::PTRACE_EVENT_EXEC as i32;
    let leads = caller.tid == caller.pid;
    let which = if leads { Whom::One(Pid::from_raw(caller.tid as i32)) } else { Whom::Any };
    loop {
        // Only looked at: the end of a process that is also our child is the business of the thread that reaps.
        match wait(which, TRACEES | WaitPidFlag::WEXITED | WaitPidFlag::WSTOPPED | WaitPidFlag::WNOWAIT) {
            Err(Errno::EINTR) | Ok(None) => {}
            Err(_) => return None,
            Ok(Some((pid, change))) if change.is_end() => {
                holder.reap(pid);
                if pid.as_raw() as u32 == caller.tid || pid.as_raw() as u32 == caller.pid {
                    return None;
                }
            }
            // Letting go of it takes the stop with it. Not where it has come by another number: such a one cannot be
            // let go before its stop was waited for (`looks_like_a_spurious_pid`, kernel/ptrace.c).
            Ok(Some((pid, Change::Event(EXEC)))) if leads => return Some((pid, true)),
            Ok(Some((pid, _))) => {
                match wait(Whom::One(pid), TRACEES | WaitPidFlag::WSTOPPED | WaitPidFlag::WNOHANG) {
                    Ok(Some((pid, Change::Event(event)))) => return Some((pid, event == EXEC)),
                    // A signal on its way to the caller goes on; the stop that we asked for follows.
                    Ok(Some((pid, Change::Signal(signal)))) => {
                        let _ = go_on(pid, On::ToStop, signal);
                    }
                    _ => {}
                }
            }
        }
    }
}

/// In what the program at the stop differs from the one that was decided on. It has its process's number, whichever thread
/// made the call.
fn difference(
    view: &View,
    caller: &Caller,
    leader: Pid,
    program: &Program,
    digests: &[(FileRole, String)],
) -> Option<String> {
    let unreadable = |what: &str, error: Errno| Some(format!("its {what} could not be read: {error}"));
    let opened;
    let directory = if leader.as_raw() as u32 == caller.tid {
        caller.directory()
    } else {
        let flags = OFlag::O_PATH | OFlag::O_DIRECTORY | OFlag::O_CLOEXEC;
        match openat(view.proc(), leader.to_string().as_str(), flags, Mode::empty()) {
            Ok(directory) => opened = directory,
            Err(error) => return unreadable("process", error),
        }
        opened.as_fd()
    };
    let open = |name: &str, flags: OFlag| openat(directory, name, flags | OFlag::O_CLOEXEC, Mode::empty());
    match (fstatat(directory, "exe", AtFlags::empty()), fstat(program.files.executable())) {
        (Ok(now), Ok(decided)) if same_file(&now, &decided) => {}
        (Err(error), _) => return unreadable("executable", error),
        _ => {
            let name = open("exe", OFlag::O_PATH).and_then(|running| view.name(running.as_fd()));
            return Some(format!("it began to run {}", name.unwrap_or_default().path));
        }
    }
    let maps = match open("maps", OFlag::O_RDONLY) {
        Ok(maps) => File::from(maps),
        Err(error) => return unreadable("memory", error),
    };
    let mapped = |to_be| mapping::files(&maps, to_be).map(|mapped| mapped_difference(view, &mapped, program));
    // What runs has been mapped to be executed. But a loader that is made so that it cannot run is a loader, too.
    let looked = match mapped(ToBe::Executed) {
        Ok(Some(Unlike::LoadsNothing)) => mapped(ToBe::Anything),
        looked => looked,
    };
    match looked {
        Ok(None) => {}
        Ok(Some(Unlike::Loads(other))) => return Some(format!("its loader is {}", mapping::path(&maps, other.start))),
        Ok(Some(Unlike::LoadsNothing)) => return Some("it has no loader".to_owned()),
        Err(error) => return Some(format!("its memory could not be looked at: {error}")),
    }
    drop(maps); // its descriptor may be the last one
    if let Some(difference) = argument_difference(program, open("cmdline", OFlag::O_RDONLY).map(File::from)) {
        return Some(difference);
    }
    for (role, decided) in digests {
        let file: Option<BorrowedFd<'_>> = program.files.get(*role);
        match file.map(|file| digest(view, file)) {
            Some(Ok(now)) if now == *decided => {}
            Some(Err(error)) => return Some(format!("its content could not be read again: {error}")),
            _ => return Some("its content changed".to_owned()),
        }
    }
    None
}

fn argument_difference(program: &Program, cmdline: nix::Result<File>) -> Option<String> {
    // With no arguments at all the kernel makes one, an empty one (Linux 5.18).
    if program.arguments.is_empty() {
        return None;
    }
    let mut expected = program.arguments.join(&0);
    expected.push(0);
    let mut found = vec![0; expected.len()];
    let read = cmdline.map_err(io::Error::from).and_then(|mut cmdline| {
        cmdline.read_exact(&mut found)?;
        let more = cmdline.read(&mut [0])?;
        Ok(more != 0)
    });
    match read {
        Ok(more) if found == expected && (!more || program.cut) => None,
        Ok(_) => Some("it got other arguments".to_owned()),
        Err(error) => Some(format!("it got other arguments ({error})")),
    }
}

/// What a process has mapped that it should not, or the other way round.
enum Unlike {
    Loads(Mapped),
    LoadsNothing,
}

/// Before its first instruction a process has mapped the program and its loader, and no other file. `mapped` may be a part of
/// what it has.
fn mapped_difference(view: &View, mapped: &[Mapped], program: &Program) -> Option<Unlike> {
    let loader = program.files.loader.as_ref().map(AsFd::as_fd);
    let has = |shown: &[(u64, u64)], mapped: &Mapped| shown.contains(&(mapped.device, mapped.inode));
    let mut executable = shown_as(program.files.executable());
    let mut loads = loader.map(shown_as).unwrap_or_default();
    if !mapped.iter().all(|mapped| has(&executable, mapped) || has(&loads, mapped)) {
        executable.extend(really_shown_as(view, program.files.executable()));
        loads.extend(loader.and_then(|loader| really_shown_as(view, loader)));
    }
    if let Some(other) = mapped.iter().find(|mapped| !has(&executable, mapped) && !has(&loads, mapped)) {
        return Some(Unlike::Loads(*other));
    }
    (loader.is_some() && !mapped.iter().any(|mapped| has(&loads, mapped))).then_some(Unlike::LoadsNothing)
}

/// The device and inode numbers that a mapping of this file has, as a rule.
fn shown_as(file: BorrowedFd<'_>) -> Vec<(u64, u64)> {
    fstat(file).map(|stat| (stat.st_dev, stat.st_ino)).into_iter().collect()
}

/// The same where the file system is made of others (overlayfs, btrfs) and shows other numbers there than to stat(2): by
/// mapping the file ourselves.
fn really_shown_as(view: &View, file: BorrowedFd<'_>) -> Option<(u64, u64)> {
    let maps = openat(view.proc(), "self/maps", OFlag::O_RDONLY | OFlag::O_CLOEXEC, Mode::empty()).ok()?;
    let file = view.reopen(file, OFlag::O_RDONLY).ok()?;
    let ours = mapping::of(file.as_fd(), &File::from(maps)).ok()?;
    Some((ours.device, ours.inode))
}
