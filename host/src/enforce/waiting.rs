//! Waiting on behalf of a caller, who must not notice: it can be killed, interrupted by a signal, stopped.

use std::io;
use std::os::fd::BorrowedFd;
use std::time::{Duration, Instant};

use nix::errno::Errno;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::ptrace;
use nix::sys::wait::{WaitPidFlag, waitpid};
use nix::unistd::Pid;

use crate::enforce::exec::release;
use crate::intercept::caller::{Caller, Status};
use crate::sys::notify::{Answer, Listener};

/// How a wait ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Woken {
    /// The descriptor is ready, or it is time to try again.
    Ready,
    /// The caller is gone.
    Gone,
    /// The caller has a signal to handle.
    Signal,
    /// The time that the socket allows is over.
    TimedOut,
}

/// How often a waiting caller is looked at. The kernel tells nobody but the caller that it has got a signal.
const GLANCE: Duration = Duration::from_millis(10);

/// Waits until `fd` is ready for `events`, or for a while if there are none to wait for.
pub fn until_ready(
    listener: &Listener,
    id: u64,
    caller: &Caller,
    fd: BorrowedFd<'_>,
    events: PollFlags,
    deadline: Option<Instant>,
) -> Woken {
    loop {
        let now = Instant::now();
        if deadline.is_some_and(|deadline| deadline <= now) {
            return Woken::TimedOut;
        }
        let left = deadline.map_or(GLANCE, |deadline| GLANCE.min(deadline - now));
        if events.is_empty() {
            std::thread::sleep(left);
        } else {
            let timeout = PollTimeout::try_from(left.max(Duration::from_millis(1))).unwrap_or(PollTimeout::ZERO);
            match poll(&mut [PollFd::new(fd, events)], timeout) {
                Ok(0) | Err(Errno::EINTR) => {}
                _ => return Woken::Ready,
            }
        }
        if !listener.is_valid(id) {
            return Woken::Gone;
        }
        match Status::read(caller.directory()) {
            Ok(status) if status.deliverable_signals != 0 => return Woken::Signal,
            Ok(_) => {}
            Err(_) => return Woken::Gone,
        }
        if events.is_empty() {
            return Woken::Ready;
        }
    }
}

/// Ends the caller's wait as a signal would: it handles the signal, and its call fails with `EINTR` or, if the handler was
/// installed with `SA_RESTART` and `restartable`, starts again.
///
/// The kernel's own code for "restart, or fail with EINTR" is `ERESTARTSYS`. It acts on it only when the thread has
/// something to do before it returns to user mode, else the program would see the number; so the thread is interrupted
/// with ptrace(2), which makes sure of that even if another thread takes the signal.
///
/// # Errors
/// The caller is gone.
pub fn interrupt(listener: &Listener, id: u64, caller: &Caller, restartable: bool) -> io::Result<()> {
    const ERESTARTSYS: i32 = 512; // include/linux/errno.h
    if !restartable {
        return listener.send(id, Answer::Errno(libc::EINTR));
    }
    let pid = Pid::from_raw(caller.tid as i32);
    if ptrace::seize(pid, ptrace::Options::PTRACE_O_EXITKILL).is_err() {
        // Somebody in the workload traces it. Its own signals are its own only if it is alone.
        let errno = if caller.status.threads == 1 { ERESTARTSYS } else { libc::EINTR };
        return listener.send(id, Answer::Errno(errno));
    }
    let interrupted = ptrace::interrupt(pid);
    let sent = listener.send(id, Answer::Errno(if interrupted.is_ok() { ERESTARTSYS } else { libc::EINTR }));
    // Also if the caller has died: a tracer has to see that.
    let _ = waitpid(pid, Some(WaitPidFlag::__WALL | WaitPidFlag::__WNOTHREAD));
    release(pid);
    sent
}
