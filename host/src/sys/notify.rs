//! The seccomp user-notification listener (seccomp_unotify(2)).
#![allow(unsafe_code)]

use std::io;
use std::mem;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd, RawFd};

use nix::poll::{PollFd, PollFlags, PollTimeout, poll};

use crate::sys::interruption::uninterrupted;

/// A notification that waits for an answer.
#[derive(Debug, Clone, Copy)]
pub struct Notification {
    /// Cookie that names it until it is answered or its caller dies.
    pub id: u64,
    /// Thread id of the caller in our pid namespace; 0 if it has none there.
    pub tid: u32,
    /// System call number, in the numbering of `arch`.
    pub number: i32,
    /// `AUDIT_ARCH_…` of the entry that was used.
    pub arch: u32,
    /// The arguments as they were in the registers.
    pub args: [u64; 6],
}

/// What the caller gets.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Answer {
    /// The kernel goes on with the call. Not a decision: whatever the arguments point to is read again.
    Continue,
    /// The call is over, with this value.
    Value(i64),
    /// The call has failed with this errno.
    Errno(i32),
}

mod ioctls {
    nix::ioctl_readwrite!(recv, b'!', 0, libc::seccomp_notif);
    nix::ioctl_readwrite!(send, b'!', 1, libc::seccomp_notif_resp);
    nix::ioctl_write_ptr!(id_valid, b'!', 2, u64);
    nix::ioctl_write_ptr!(addfd, b'!', 3, libc::seccomp_notif_addfd);
}

/// The descriptor on which the kernel hands over notifications.
#[derive(Debug)]
pub struct Listener {
    fd: OwnedFd,
    killable: bool,
}

impl Listener {
    /// Takes over the descriptor that installing the filter returned. `killable`: it was installed with
    /// `SECCOMP_FILTER_FLAG_WAIT_KILLABLE_RECV`.
    pub fn new(fd: OwnedFd, killable: bool) -> Self {
        Self { fd, killable }
    }

    /// Whether callers sleep through signals that don't kill them while their notification is being handled. If not, a
    /// signal ends the notification, and the kernel starts the call again.
    pub fn keeps_callers(&self) -> bool {
        self.killable
    }

    /// Asks the kernel to run caller and supervisor on one CPU in turn (`SECCOMP_USER_NOTIF_FD_SYNC_WAKE_UP`). Whether it
    /// does: before Linux 6.6 it does not.
    pub fn synchronous_wake_up(&self) -> bool {
        /// `SECCOMP_IOCTL_NOTIF_SET_FLAGS`, which libc does not have.
        const SET_FLAGS: libc::c_ulong = 0x4008_2104;
        // SAFETY: the ioctl takes a number, no pointer.
        unsafe { libc::ioctl(self.fd.as_raw_fd(), SET_FLAGS as _, 1_u64) == 0 }
    }

    /// Waits for the next notification.
    ///
    /// # Errors
    /// `ENOENT`: the caller died before it was handed over, or, for good, no process uses the filter any more. `EINTR`.
    pub fn receive(&self) -> io::Result<Notification> {
        // SAFETY: all-zero bytes are a valid `seccomp_notif`, and the kernel wants them so.
        let mut raw: libc::seccomp_notif = unsafe { mem::zeroed() };
        // SAFETY: the kernel writes one `seccomp_notif` of the size that it had when libc's type was made; it has not
        // grown since (`SECCOMP_GET_NOTIF_SIZES` is checked at start, in `seccomp::check_sizes`).
        unsafe { ioctls::recv(self.fd.as_raw_fd(), &raw mut raw) }?;
        Ok(Notification { id: raw.id, tid: raw.pid, number: raw.data.nr, arch: raw.data.arch, args: raw.data.args })
    }

    /// Whether there is a notification that nobody has received yet.
    pub fn has_more(&self) -> bool {
        let mut this = [PollFd::new(self.fd.as_fd(), PollFlags::POLLIN)];
        poll(&mut this, PollTimeout::ZERO).is_ok_and(|ready| ready > 0)
    }

    /// Answers a notification.
    ///
    /// # Errors
    /// `ENOENT`: the caller is gone, or its call was interrupted.
    pub fn send(&self, id: u64, answer: Answer) -> io::Result<()> {
        const CONTINUE: u32 = 1;
        let (val, error, flags) = match answer {
            Answer::Continue => (0, 0, CONTINUE),
            Answer::Value(value) => (value, 0, 0),
            Answer::Errno(errno) => (0, -errno, 0),
        };
        let mut response = libc::seccomp_notif_resp { id, val, error, flags };
        // SAFETY: `response` is a valid `seccomp_notif_resp` for the time of the call.
        uninterrupted(|| unsafe { ioctls::send(self.fd.as_raw_fd(), &raw mut response) })?;
        Ok(())
    }

    /// Whether the caller still waits for the answer: what was read of it in between was its own.
    pub fn is_valid(&self, id: u64) -> bool {
        // SAFETY: the kernel reads one u64.
        uninterrupted(|| unsafe { ioctls::id_valid(self.fd.as_raw_fd(), &raw const id) }).is_ok()
    }

    /// Puts a copy of `fd` into the caller's descriptor table. It goes on waiting for the answer, and does not know of it.
    /// Returns its number there.
    ///
    /// # Errors
    /// `ENOENT`, `ESRCH` as for [`Self::send`]; `EMFILE` where the caller has no room; `EINVAL` before Linux 5.9.
    pub fn add_descriptor(&self, id: u64, fd: BorrowedFd<'_>, cloexec: bool) -> io::Result<i32> {
        Ok(self.addfd(id, fd, cloexec, 0)?)
    }

    /// The same, which answers with the number in one step from Linux 5.14 on (`SECCOMP_ADDFD_FLAG_SEND`); then `None`.
    /// Before that the number is still to be answered.
    ///
    /// # Errors
    /// As [`Self::add_descriptor`].
    pub fn send_descriptor(&self, id: u64, fd: BorrowedFd<'_>, cloexec: bool) -> io::Result<Option<i32>> {
        const SEND: u32 = 2;
        match self.addfd(id, fd, cloexec, SEND) {
            Ok(_) => Ok(None),
            Err(nix::errno::Errno::EINVAL) => Ok(Some(self.addfd(id, fd, cloexec, 0)?)),
            Err(error) => Err(error.into()),
        }
    }

    fn addfd(&self, id: u64, fd: BorrowedFd<'_>, cloexec: bool, flags: u32) -> nix::Result<i32> {
        let newfd_flags = if cloexec { libc::O_CLOEXEC as u32 } else { 0 };
        let request = libc::seccomp_notif_addfd { id, flags, srcfd: fd.as_raw_fd() as u32, newfd: 0, newfd_flags };
        // SAFETY: `request` is a valid `seccomp_notif_addfd` for the time of the call.
        uninterrupted(|| unsafe { ioctls::addfd(self.fd.as_raw_fd(), &raw const request) })
    }
}

impl AsRawFd for Listener {
    fn as_raw_fd(&self) -> RawFd {
        self.fd.as_raw_fd()
    }
}
