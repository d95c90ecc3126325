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
