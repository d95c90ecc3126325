//! Ending a system call that one of our own threads waits in.
#![allow(unsafe_code)]

use std::io;

use nix::errno::Errno;
use nix::sys::signal::{SaFlags, SigAction, SigHandler, SigSet, Signal, sigaction};

use crate::sys::pidfd;

/// Nothing sends this signal (signal(7): "unused"), so that none is taken from those that are passed on to the command.
const SIGNAL: Signal = Signal::SIGSTKFLT;

/// Makes [`interrupt`] end system calls with `EINTR`: by a handler that does nothing, and is installed without
/// `SA_RESTART`.
///
/// # Errors
/// The kernel's.
pub fn prepare() -> io::Result<()> {
    extern "C" fn nothing(_: i32) {}
    let action = SigAction::new(SigHandler::Handler(nothing), SaFlags::empty(), SigSet::empty());
    // SAFETY: a handler that does nothing may run at any point.
    unsafe { sigaction(SIGNAL, &action) }?;
    Ok(())
}

/// Lets the calling thread be interrupted.
///
/// # Errors
/// The kernel's.
pub fn allow() -> nix::Result<()> {
    let mut set = SigSet::empty();
    set.add(SIGNAL);
    set.thread_unblock()
}

/// The calling thread, for [`interrupt`].
pub fn own_thread() -> u32 {
    thread_local!(static THREAD: u32 = nix::unistd::gettid().as_raw() as u32);
    THREAD.with(|thread| *thread)
}

/// Ends the system call that a thread of ours waits in, with `EINTR`. If it is not waiting yet, or any more, nothing
/// happens: whoever needs it to end has to ask again.
pub fn interrupt(thread: u32) {
    let _ = pidfd::signal_thread(std::process::id(), thread, SIGNAL as i32);
}

/// Repeats a call for as long as it is interrupted.
pub fn uninterrupted<T>(mut call: impl FnMut() -> nix::Result<T>) -> nix::Result<T> {
    loop {
        match call() {
            Err(Errno::EINTR) => {}
            result => return result,
        }
    }
}
