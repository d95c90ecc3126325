//! Signals that the supervisor sends on behalf of a caller: those of which the kernel would also give some to the supervisor,
//! or whose target could be exchanged while it is looked at.
//!
//! The caller's rights decide, as in the kernel: `kill_ok_by_cred` and `check_kill_permission` (kernel/signal.c). The
//! receiver sees the supervisor as the sender.

use std::os::fd::{AsFd, OwnedFd};

use nix::dir::Dir;
use nix::errno::Errno;
use nix::fcntl::{OFlag, openat};
use nix::sys::stat::Mode;

use crate::intercept::caller::{Caller, Status};
use crate::intercept::path::View;
use crate::sys::notify::Answer;
use crate::sys::pidfd::{self, Target};

/// Signal 0 checks, without sending.
const HIGHEST: i32 = 64;

/// kill(2) with -1: every process of the caller's pid namespace, which is ours, but the first, the caller, and `ours`.
pub fn to_everybody(view: &View, caller: &Caller, signal: i32, ours: impl Fn(u32) -> bool) -> Answer {
    if !(0..=HIGHEST).contains(&signal) {
        return Answer::Errno(libc::EINVAL);
    }
    let mut sent = Vec::new();
    let mut result = Errno::ESRCH;
    // The kernel holds still what it goes through. Here something may be forked meanwhile, so we look again until there is
    // nobody new, in the end for as long as anybody can reasonably expect.
    for _ in 0..100 {
        let before = sent.len();
        for pid in processes(view) {
            if pid <= 1 || pid == caller.pid || ours(pid) || sent.contains(&pid) {
                continue;
            }
            let Some((process, status)) = open(view, pid) else { continue };
            if !allowed(view, caller, &status, signal) {
                result = Errno::EPERM;
                continue;
            }
            if send(&process, signal, 0).is_ok() {
                sent.push(pid);
            }
        }
        if sent.len() == before || signal != libc::SIGKILL {
            break;
        }
    }
    if sent.is_empty() { Answer::Errno(result as i32) } else { Answer::Value(0) }
}

/// A signal that may be sent.
#[derive(Debug)]
pub struct Directed {
    process: OwnedFd,
    signal: i32,
    flags: u32,
    /// Whether it is for the caller's own process.
    pub for_itself: bool,
}

impl Directed {
    /// Sends it.
    pub fn send(&self) -> Answer {
        match send(&self.process, self.signal, self.flags) {
            Ok(()) => Answer::Value(0),
            Err(error) => Answer::Errno(error.raw_os_error().unwrap_or(libc::EPERM)),
        }
    }
}

/// pidfd_send_signal(2): the signal that is to be sent, or what to answer instead.
///
/// # Errors
/// Why it is refused: it is meant for one of `ours`, or cannot be told whom it is meant for.
pub fn by_descriptor(
    view: &View,
    caller: &Caller,
    arguments: [u64; 6],
    ours: impl Fn(u32) -> bool,
) -> Result<Result<Directed, Answer>, &'static str> {
    let (fd, signal, info, flags) = (arguments[0] as i32, arguments[1] as i32, arguments[2], arguments[3] as u32);
    let errno = |errno: i32| Ok(Err(Answer::Errno(errno)));
    // Flags that say thread, process or group (Linux 6.9).
    const KNOWN: u32 = 0b111;
    if flags & !KNOWN != 0 || !(0..=HIGHEST).contains(&signal) {
        return errno(libc::EINVAL);
    }
    if caller.handle(fd).is_err() {
        return errno(libc::EBADF);
    }
    let Some(pid) = pid_of(caller, fd) else { return Err("a signal to a process that cannot be told") };
    let Ok(pid) = u32::try_from(pid) else { return errno(libc::ESRCH) };
    if pid == 0 {
        return errno(libc::EINVAL); // not in our pid namespace, and so not in the caller's
    }
    if ours(pid) {
        return Err("it is meant for the supervisor");
    }
    let Some((process, status)) = open(view, pid) else { return errno(libc::ESRCH) };
    // Only while it lives does the caller's descriptor say a number: so it is the one that we have opened.
    if pid_of(caller, fd).and_then(|now| u32::try_from(now).ok()) != Some(pid) {
        return errno(libc::ESRCH);
    }
    if !allowed(view, caller, &status, signal) {
        return errno(libc::EPERM);
    }
    if info != 0 && status.pid != caller.pid {
        // do_pidfd_send_signal: what only the kernel says about a signal may not be said to another process.
        match caller.copy(info, 12) {
            Ok(bytes) => {
                let number = |at: usize| i32::from_ne_bytes([bytes[at], bytes[at + 1], bytes[at + 2], bytes[at + 3]]);
                if number(0) != signal {
                    return errno(libc::EINVAL);
                }
                if number(8) >= 0 || number(8) == libc::SI_TKILL {
                    return errno(libc::EPERM);
                }
            }
            Err(error) => return errno(error as i32),
        }
    }
    Ok(Ok(Directed { process, signal, flags, for_itself: status.pid == caller.pid }))
}

fn send(process: &OwnedFd, signal: i32, flags: u32) -> std::io::Result<()> {
    pidfd::signal_with(process.as_fd(), signal, flags)
}

fn processes(view: &View) -> Vec<u32> {
    let directory =
        Dir::openat(view.proc(), ".", OFlag::O_RDONLY | OFlag::O_DIRECTORY | OFlag::O_CLOEXEC, Mode::empty());
    let Ok(mut directory) = directory else { return Vec::new() };
    directory.iter().flatten().filter_map(|entry| entry.file_name().to_str().ok()?.parse().ok()).collect()
}

/// A process, and what it was when nothing else could have its number.
fn open(view: &View, pid: u32) -> Option<(OwnedFd, Status)> {
    let process = pidfd::open(pid, Target::Process).ok()?;
    let status = Status::of(view, pid).ok()?;
    // It still lives, so what we read was its own.
    pidfd::signal(process.as_fd(), 0).is_ok().then_some((process, status))
}

fn allowed(view: &View, caller: &Caller, target: &Status, signal: i32) -> bool {
    const CAP_KILL: u64 = 1 << 5;
    let Ok(status) = caller.status() else { return false };
    let (real, effective) = (status.real_uid, status.identity.uid);
    let theirs = [target.uids.first(), target.uids.get(2)];
    let same_user = theirs.into_iter().flatten().any(|uid| *uid == real || *uid == effective);
    let capable = || caller.identity(view).is_ok_and(|identity| identity.capabilities & CAP_KILL != 0);
    same_user || target.pid == caller.pid || capable() || (signal == libc::SIGCONT && same_session(caller, target))
}

fn same_session(caller: &Caller, target: &Status) -> bool {
    let session = |pid: u32| nix::unistd::getsid(Some(nix::unistd::Pid::from_raw(pid as i32))).ok();
    session(target.pid).is_some_and(|theirs| Some(theirs) == session(caller.pid))
}

/// What a process descriptor of the caller refers to (`Pid:` in its fdinfo): negative if that is gone.
fn pid_of(caller: &Caller, fd: i32) -> Option<i32> {
    let flags = OFlag::O_RDONLY | OFlag::O_CLOEXEC;
    let info = openat(caller.directory(), format!("fdinfo/{fd}").as_str(), flags, Mode::empty()).ok()?;
    let text = std::io::read_to_string(std::fs::File::from(info)).ok()?;
    text.lines().find_map(|line| line.strip_prefix("Pid:")?.trim().parse().ok())
}
