//! An exec that was allowed: the kernel carries it out, and what it has begun is looked at before its first instruction.
//!
//! The caller is seized with ptrace(2) while it still waits for our answer, and interrupted; that stays pending until the
//! call is over. Then there is either an exec stop, at which the new program is there and has not run, or, if the exec has
//! failed, an ordinary one. Everything here happens on the thread that received the notification, because ptrace belongs
//! to a thread.

use std::fs::File;
use std::io::{self, BufRead, BufReader, Read};
use std::os::fd::{AsFd, BorrowedFd};
use std::time::Duration;

use nix::errno::Errno;
use nix::fcntl::{OFlag, openat};
use nix::sys::ptrace;
use nix::sys::signal::{Signal, kill};
use nix::sys::stat::{Mode, fstat};
use nix::sys::wait::{Id, WaitPidFlag, WaitStatus, waitid, waitpid};
use nix::unistd::Pid;

use crate::decide::FileRole;
use crate::intercept::caller::Caller;
use crate::intercept::exec::{Program, digest};
use crate::intercept::path::{View, same_file};
use crate::sys::notify::{Answer, Listener};

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
}

/// Lets the kernel carry out an exec, and kills what is not `program`. `digests` are files whose content was decided on.
///
/// # Errors
/// ptrace(2) failed in a way that has no meaning for us; the call was not carried out.
pub fn exec(
    listener: &Listener,
    view: &View,
    id: u64,
    caller: &Caller,
    program: &Program,
    digests: &[(FileRole, String)],
) -> io::Result<Verified> {
    held(listener, id, caller, |leader, is_exec| {
        if !is_exec {
            return None;
        }
        difference(view, leader, program, digests)
    })
}

/// Lets the kernel carry out setgroups(2), and kills the caller if it then has other groups.
///
/// # Errors
/// As [`exec`].
pub fn groups(listener: &Listener, id: u64, caller: &Caller, groups: &[u32]) -> io::Result<Verified> {
    let before = &caller.status.identity.groups;
    held(listener, id, caller, |_, _| {
        let Ok(now) = crate::intercept::caller::Status::read(caller.directory()) else {
            return Some("its groups could not be read".to_owned());
        };
        let mut found = now.identity.groups;
        if found == *before {
            return None; // refused by the kernel
        }
        found.sort_unstable();
        (found != groups).then(|| format!("it has the groups {found:?}"))
    })
}

/// Holds the caller while the kernel carries out its call, and kills it if `check` finds something wrong.
fn held(
    listener: &Listener,
    id: u64,
    caller: &Caller,
    check: impl FnOnce(Pid, bool) -> Option<String>,
) -> io::Result<Verified> {
    let thread = Pid::from_raw(caller.tid as i32);
    let options = ptrace::Options::PTRACE_O_TRACEEXEC | ptrace::Options::PTRACE_O_EXITKILL;
    match ptrace::seize(thread, options) {
        Ok(()) => {}
        Err(Errno::ESRCH) => return Ok(Verified::Gone),
        Err(Errno::EPERM) => return Ok(Verified::Traced),
        Err(error) => return Err(error.into()),
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
    let Some((stopped, is_exec)) = wait_for_stop(caller) else { return Ok(Verified::Gone) };
    if let Some(why) = check(stopped, is_exec) {
        let _ = kill(stopped, Signal::SIGKILL);
        let _ = ptrace::detach(stopped, None);
        reap(stopped);
        return Ok(Verified::Killed(why));
    }
    let _ = ptrace::detach(stopped, None);
    Ok(Verified::Done)
}

/// Waits for the caller to stop. An exec by a thread that is not the leader gives it the leader's number.
fn wait_for_stop(caller: &Caller) -> Option<(Pid, bool)> {
    let leads = caller.tid == caller.status.pid;
    let which = || if leads { Id::Pid(Pid::from_raw(caller.tid as i32)) } else { Id::All };
    let flags = WaitPidFlag::__WALL | WaitPidFlag::__WNOTHREAD;
    loop {
        // Only looked at: the end of a process that is also our child is the business of the thread that reaps.
        let peek = waitid(which(), flags | WaitPidFlag::WEXITED | WaitPidFlag::WSTOPPED | WaitPidFlag::WNOWAIT);
        match peek {
            Err(Errno::EINTR) => {}
            Err(_) => return None,
            Ok(status) => {
                let pid = status.pid()?;
                match status {
                    WaitStatus::Exited(..) | WaitStatus::Signaled(..) => {
                        reap(pid);
                        if pid.as_raw() as u32 == caller.tid || pid.as_raw() as u32 == caller.status.pid {
                            return None;
                        }
                    }
                    _ => match waitpid(pid, Some(flags | WaitPidFlag::WNOHANG)) {
                        Ok(WaitStatus::PtraceEvent(pid, _, event)) => {
                            return Some((pid, event == ptrace::Event::PTRACE_EVENT_EXEC as i32));
                        }
                        // A signal on its way to the caller goes on; the stop that we asked for follows.
                        Ok(WaitStatus::Stopped(pid, signal)) => {
                            let _ = ptrace::cont(pid, signal);
                        }
                        _ => {}
                    },
                }
            }
        }
    }
}

/// Sees a dead tracee off, so that its parent gets to know. If that is we ourselves, the thread that reaps does it: it
/// needs the status.
fn reap(pid: Pid) {
    let flags = WaitPidFlag::__WALL | WaitPidFlag::__WNOTHREAD | WaitPidFlag::WEXITED;
    for _ in 0..10_000 {
        match waitid(Id::Pid(pid), flags | WaitPidFlag::WNOWAIT) {
            Err(Errno::EINTR) => continue,
            Err(_) => return,
            Ok(_) => {}
        }
        let own_child = parent_of(pid) == Some(std::process::id());
        if !own_child {
            let _ = waitid(Id::Pid(pid), flags | WaitPidFlag::WNOHANG);
            return;
        }
        std::thread::sleep(Duration::from_millis(1));
    }
}

fn parent_of(pid: Pid) -> Option<u32> {
    let text = std::fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    text.rsplit_once(')')?.1.split_whitespace().nth(1)?.parse().ok()
}

/// In what the program at the stop differs from the one that was decided on.
fn difference(view: &View, leader: Pid, program: &Program, digests: &[(FileRole, String)]) -> Option<String> {
    let open = |name: &str, flags: OFlag| {
        openat(view.proc(), format!("{leader}/{name}").as_str(), flags | OFlag::O_CLOEXEC, Mode::empty())
    };
    let unreadable = |what: &str, error: Errno| Some(format!("its {what} could not be read: {error}"));
    let running = match open("exe", OFlag::O_PATH) {
        Ok(exe) => exe,
        Err(error) => return unreadable("executable", error),
    };
    match (fstat(&running), fstat(program.files.executable())) {
        (Ok(now), Ok(decided)) if same_file(&now, &decided) => {}
        _ => return Some(format!("it began to run {}", view.name(running.as_fd()).path)),
    }
    let loader = match open("auxv", OFlag::O_RDONLY) {
        Ok(auxv) => loader_of(view, File::from(auxv), || open("maps", OFlag::O_RDONLY).map(File::from)),
        Err(error) => return unreadable("auxiliary vector", error),
    };
    match (loader, &program.files.loader) {
        (Ok(None), None) => {}
        (Ok(Some((path, inode))), Some(decided)) => {
            let same = fstat(decided).is_ok_and(|stat| stat.st_ino == inode)
                && view.link_of(decided.as_fd()).is_ok_and(|name| *name == *path);
            if !same {
                return Some(format!("its loader is {path}"));
            }
        }
        (Ok(found), _) => return Some(format!("its loader is {}", found.map_or("none".into(), |(path, _)| path))),
        (Err(error), _) => return Some(format!("its loader could not be found: {error}")),
    }
    if let Some(difference) = argument_difference(program, open("cmdline", OFlag::O_RDONLY).map(File::from)) {
        return Some(difference);
    }
    for (role, decided) in digests {
        let file: Option<BorrowedFd<'_>> = program.files.get(*role);
        match file.map(|file| digest(view, file)) {
            Some(Ok(now)) if now == *decided => {}
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

/// The file that is mapped where the kernel put the dynamic loader (`AT_BASE`, getauxval(3)), if there is one.
fn loader_of(
    _view: &View,
    mut auxv: File,
    maps: impl FnOnce() -> nix::Result<File>,
) -> io::Result<Option<(String, u64)>> {
    let mut bytes = Vec::new();
    auxv.read_to_end(&mut bytes)?;
    let word = |bytes: &[u8]| u64::from_ne_bytes(bytes.try_into().unwrap_or_default());
    let base = bytes
        .chunks_exact(16)
        .map(|pair| (word(&pair[..8]), word(&pair[8..])))
        .find(|(kind, _)| *kind == libc::AT_BASE as u64)
        .map_or(0, |(_, value)| value);
    if base == 0 {
        return Ok(None);
    }
    for line in BufReader::new(maps()?).split(b'\n') {
        let line = String::from_utf8_lossy(&line?).into_owned();
        let mut fields = line.split_whitespace();
        let start = fields.next().and_then(|range| range.split('-').next()).unwrap_or_default();
        if u64::from_str_radix(start, 16) == Ok(base) {
            let inode = fields.nth(3).and_then(|inode| inode.parse().ok()).unwrap_or(0);
            let path = line.find('/').map_or("", |at| &line[at..]).to_owned();
            return Ok(Some((path, inode)));
        }
    }
    Err(io::Error::other("nothing is mapped at AT_BASE"))
}
