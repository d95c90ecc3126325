//! Process descriptors (pidfd_open(2), pidfd_getfd(2)), and signals to one thread.
#![allow(unsafe_code)]

use std::io;
use std::os::fd::{AsRawFd, BorrowedFd, FromRawFd, OwnedFd, RawFd};

/// What a process descriptor refers to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Target {
    /// A thread-group leader, and so a process.
    Process,
    /// Any thread (`PIDFD_THREAD`, Linux 6.9).
    Thread,
}

/// A descriptor for the process or thread with this id.
///
/// # Errors
/// `ESRCH`; `EINVAL` for [`Target::Thread`] before Linux 6.9, and for [`Target::Process`] of a thread that isn't a leader.
pub fn open(id: u32, target: Target) -> io::Result<OwnedFd> {
    let flags = match target {
        Target::Process => 0,
        Target::Thread => libc::O_EXCL,
    };
    // SAFETY: takes numbers only.
    owned(unsafe { libc::syscall(libc::SYS_pidfd_open, id, flags) })
}

/// What the kernel says of the task behind a descriptor, in the reader's namespaces.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Info {
    /// Thread id.
    pub tid: u32,
    /// Thread group id.
    pub pid: u32,
    /// Parent's process id.
    pub parent: u32,
    /// Effective user id.
    pub uid: u32,
    /// Effective group id.
    pub gid: u32,
}

/// Asks about the task behind a descriptor (`PIDFD_GET_INFO`).
///
/// # Errors
/// `ESRCH`: it is gone, or its parent is in none of our namespaces. Before Linux 6.13: something else.
pub fn info(process: BorrowedFd<'_>) -> io::Result<Info> {
    const ALL: u64 = (libc::PIDFD_INFO_PID | libc::PIDFD_INFO_CREDS) as u64;
    // SAFETY: all-zero bytes are a valid `pidfd_info`.
    let mut info: libc::pidfd_info = unsafe { std::mem::zeroed() };
    info.mask = ALL;
    // SAFETY: the kernel reads and writes one `pidfd_info`, whose size is part of the request.
    let result = unsafe { libc::ioctl(process.as_raw_fd(), libc::PIDFD_GET_INFO as _, &raw mut info) };
    check(result.into())?;
    if info.mask & ALL != ALL {
        return Err(io::Error::from_raw_os_error(libc::ESRCH)); // what is left of it is its exit status
    }
    Ok(Info { tid: info.pid, pid: info.tgid, parent: info.ppid, uid: info.euid, gid: info.egid })
}

/// A copy of another process's descriptor; close-on-exec.
///
/// # Errors
/// `ESRCH`: it is gone. `EBADF`: it has no such descriptor. `EPERM`: we may not ptrace it, or a seccomp profile forbids it.
pub fn duplicate(process: BorrowedFd<'_>, fd: RawFd) -> io::Result<OwnedFd> {
    // SAFETY: takes numbers only.
    owned(unsafe { libc::syscall(libc::SYS_pidfd_getfd, process.as_raw_fd(), fd, 0) })
}

/// Sends a signal to a process by its descriptor, which cannot have come to mean another.
///
/// # Errors
/// `ESRCH`: it is gone.
pub fn signal(process: BorrowedFd<'_>, signal: i32) -> io::Result<()> {
    // SAFETY: takes numbers and a null pointer, which stands for the default siginfo.
    check(unsafe { libc::syscall(libc::SYS_pidfd_send_signal, process.as_raw_fd(), signal, 0_usize, 0) })
}

/// Likewise, with flags: to the thread, the process, or its whole group (Linux 6.9).
///
/// # Errors
/// `ESRCH`: it is gone. `EINVAL`: this kernel does not know the flags.
pub fn signal_with(process: BorrowedFd<'_>, signal: i32, flags: u32) -> io::Result<()> {
    // SAFETY: as above.
    check(unsafe { libc::syscall(libc::SYS_pidfd_send_signal, process.as_raw_fd(), signal, 0_usize, flags) })
}

/// Sends a signal to one thread.
///
/// # Errors
/// `ESRCH`: it is gone.
pub fn signal_thread(pid: u32, tid: u32, signal: i32) -> io::Result<()> {
    // SAFETY: takes numbers only.
    check(unsafe { libc::syscall(libc::SYS_tgkill, pid, tid, signal) })
}

fn owned(result: libc::c_long) -> io::Result<OwnedFd> {
    check(result)?;
    // SAFETY: the kernel has just made this descriptor for us, and nobody else knows of it.
    Ok(unsafe { OwnedFd::from_raw_fd(result as RawFd) })
}

fn check(result: libc::c_long) -> io::Result<()> {
    if result < 0 { Err(io::Error::last_os_error()) } else { Ok(()) }
}
