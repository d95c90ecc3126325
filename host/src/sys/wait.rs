//! waitid(2) and going on after a stop, with signals as numbers: nix knows no real-time signals, and takes a process that was
//! ended or stopped by one for an error, after the kernel has told of it.
#![allow(unsafe_code)]

use nix::errno::Errno;
use nix::sys::wait::WaitPidFlag;
use nix::unistd::Pid;

/// What has become of a process or thread.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Change {
    /// It has exited with this status.
    Exited(i32),
    /// It was ended by this signal.
    Killed(i32),
    /// It was stopped by this signal, as processes are by job control.
    Stopped(i32),
    /// We hold it, and it has stopped before it gets this signal.
    Signal(i32),
    /// It has stopped at this event for us who hold it (`PTRACE_EVENT_…`, ptrace(2)).
    Event(i32),
    /// It has stopped for us at a system call's beginning or end (`PTRACE_O_TRACESYSGOOD`).
    Syscall,
    /// It goes on.
    Continued,
}

impl Change {
    /// Whether it has ended.
    pub fn is_end(self) -> bool {
        matches!(self, Self::Exited(_) | Self::Killed(_))
    }
}

/// What the calling thread holds, and its own children, of whatever kind; nothing of other threads.
pub const TRACEES: WaitPidFlag = WaitPidFlag::__WALL.union(WaitPidFlag::__WNOTHREAD);

/// Whom to wait for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Whom {
    /// Any child, or any that the thread holds.
    Any,
    /// This one.
    One(Pid),
}

/// Waits as waitid(2) does. `None` with `WNOHANG` if there is nothing to tell.
///
/// # Errors
/// The kernel's; `ECHILD` if there is no such child.
pub fn wait(whom: Whom, flags: WaitPidFlag) -> Result<Option<(Pid, Change)>, Errno> {
    let (kind, id) = match whom {
        Whom::Any => (libc::P_ALL, 0),
        Whom::One(pid) => (libc::P_PID, pid.as_raw() as libc::id_t),
    };
    // SAFETY: zero bytes are a valid siginfo_t, and the kernel writes into it; when it has returned without an error, the
    // fields that are read are those of a child's change, or all zero.
    let (pid, code, status) = unsafe {
        let mut info: libc::siginfo_t = std::mem::zeroed();
        Errno::result(libc::waitid(kind, id, &raw mut info, flags.bits()))?;
        (info.si_pid(), info.si_code, info.si_status())
    };
    if pid == 0 {
        return Ok(None);
    }
    let change = match code {
        libc::CLD_EXITED => Change::Exited(status),
        libc::CLD_KILLED | libc::CLD_DUMPED => Change::Killed(status),
        libc::CLD_CONTINUED => Change::Continued,
        libc::CLD_TRAPPED if status == libc::SIGTRAP | 0x80 => Change::Syscall,
        libc::CLD_TRAPPED if status >> 8 != 0 => Change::Event(status >> 8),
        libc::CLD_TRAPPED => Change::Signal(status),
        _ => Change::Stopped(status),
    };
    Ok(Some((Pid::from_raw(pid), change)))
}

/// How something that is held goes on.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum On {
    /// To its next stop.
    ToStop,
    /// To its next stop, or the next beginning or end of a system call.
    ToSyscall,
    /// For good: it is let go.
    Free,
}

/// Has something that is held and stopped go on, with this signal; 0 for none.
///
/// # Errors
/// The kernel's; `ESRCH` if it is not held, not stopped, or was killed.
pub fn go_on(held: Pid, on: On, signal: i32) -> Result<(), Errno> {
    let request = match on {
        On::ToStop => libc::PTRACE_CONT,
        On::ToSyscall => libc::PTRACE_SYSCALL,
        On::Free => libc::PTRACE_DETACH,
    };
    // SAFETY: these requests take numbers, and touch no memory of ours.
    Errno::result(unsafe { libc::ptrace(request, held.as_raw(), 0, libc::c_long::from(signal)) }).map(drop)
}
