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
    extern "C" fn handle(signal: i32, info: *mut libc::siginfo_t, _: *mut libc::c_void) {
        // SAFETY: the kernel hands a valid siginfo to a handler with SA_SIGINFO.
        if unsafe { (*info).si_pid() } as u32 != std::process::id() {
            hand_over(signal, info);
        }
    }
    install(SIGNAL, handle)
}

/// Keeps signals that say of a fault, and were only sent, from being lost on a thread that must take real ones. To be called
/// before wasmtime installs its handlers, which then leave to ours what is no trap of a plugin's.
///
/// # Errors
/// The kernel's.
pub fn tell_sent_from_faults() -> io::Result<()> {
    extern "C" fn handle(signal: i32, info: *mut libc::siginfo_t, _: *mut libc::c_void) {
        // SAFETY: as above; signal(2) may be called in a handler. A real fault is met again, and then ends the process.
        unsafe {
            if (*info).si_code > 0 {
                libc::signal(signal, libc::SIG_DFL);
            } else {
                hand_over(signal, info);
            }
        }
    }
    for signal in [Signal::SIGILL, Signal::SIGBUS, Signal::SIGFPE, Signal::SIGSEGV, Signal::SIGTRAP] {
        install(signal, handle)?;
    }
    Ok(())
}

type Handler = extern "C" fn(i32, *mut libc::siginfo_t, *mut libc::c_void);

fn install(signal: Signal, handler: Handler) -> io::Result<()> {
    let action = SigAction::new(SigHandler::SigAction(handler), SaFlags::SA_ONSTACK, SigSet::empty());
    // SAFETY: the handlers above call nothing but async-signal-safe functions (signal-safety(7)).
    unsafe { sigaction(signal, &action) }?;
    Ok(())
}

/// Gives a signal that somebody sent to us all to the main thread, which passes it on to the command. May be called in a
/// handler.
fn hand_over(signal: i32, info: *mut libc::siginfo_t) {
    // SAFETY: a valid siginfo, which is copied; the call takes it and numbers. The main thread's id is the process's.
    unsafe {
        let mut copy = *info;
        // What kill(2) says of itself may only be said by it (rt_tgsigqueueinfo(2)); its value is none.
        if copy.si_code >= 0 || copy.si_code == libc::SI_TKILL {
            copy.si_code = libc::SI_QUEUE;
        }
        let process = libc::getpid();
        libc::syscall(libc::SYS_rt_tgsigqueueinfo, process, process, signal, &raw const copy);
    }
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
