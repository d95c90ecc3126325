//! A system call that another thread is made to call, while it is stopped for us with ptrace(2).
#![allow(unsafe_code)]

use std::io;
#[cfg(target_arch = "x86_64")]
use std::time::{Duration, Instant};

#[cfg(target_arch = "x86_64")]
use nix::errno::Errno;
#[cfg(target_arch = "x86_64")]
use nix::sys::ptrace;
#[cfg(target_arch = "x86_64")]
use nix::sys::signal::{Signal, kill};
#[cfg(target_arch = "x86_64")]
use nix::sys::wait::WaitPidFlag;
use nix::unistd::Pid;

#[cfg(target_arch = "x86_64")]
use super::wait::{Change, TRACEES, Whom, wait};

/// The number of vfork(2), where it is a system call of its own.
#[cfg(target_arch = "x86_64")]
pub const VFORK: Option<i64> = Some(libc::SYS_vfork);
/// The number of vfork(2), where it is a system call of its own.
#[cfg(not(target_arch = "x86_64"))]
pub const VFORK: Option<i64> = None;

/// The calls that are made don't wait, so this is for a thread that gets no processor.
#[cfg(target_arch = "x86_64")]
const PATIENCE: Duration = Duration::from_secs(5);

/// Code of the thread's process, in which an instruction for system calls is looked for.
#[derive(Debug)]
pub struct Code {
    /// Where it begins.
    pub address: u64,
    /// The code.
    pub bytes: Vec<u8>,
}

/// Makes the thread call `number`, and puts its registers back. It must be held in a stop that PTRACE_INTERRUPT brought,
/// under `PTRACE_O_TRACESYSGOOD`, and is in such a stop again afterwards; what it was interrupted in then goes on as after
/// any stop. Returns what the kernel returned, an errno as a negative number.
///
/// # Errors
/// There is no such instruction; the thread is dying.
#[cfg(target_arch = "x86_64")]
pub fn call(thread: Pid, code: &Code, number: u64, arguments: [u64; 4]) -> io::Result<i64> {
    const SYSCALL: [u8; 2] = [0x0f, 0x05];
    let found = code.bytes.windows(2).position(|bytes| bytes == SYSCALL);
    let offset = found.ok_or_else(|| io::Error::other("no instruction for system calls"))?;
    let before = ptrace::getregs(thread)?;
    let mut registers = before;
    registers.orig_rax = u64::MAX; // nothing is to be started again
    registers.rip = code.address + offset as u64;
    registers.rax = number;
    [registers.rdi, registers.rsi, registers.rdx, registers.r10] = arguments;
    // A signal's handler would run where the thread is not.
    let mask = signal_mask(thread)?;
    set_signal_mask(thread, u64::MAX)?;
    let result =
        ptrace::setregs(thread, registers).map_err(io::Error::from).and_then(|()| through(thread, number, arguments));
    ptrace::setregs(thread, before)?;
    set_signal_mask(thread, mask)?;
    result
}

/// From a stop through one system call, to a stop from which the kernel starts an interrupted call again
/// (`arch_do_signal_or_restart`): that of PTRACE_INTERRUPT, like the first.
#[cfg(target_arch = "x86_64")]
fn through(thread: Pid, number: u64, arguments: [u64; 4]) -> io::Result<i64> {
    for entry in [true, false] {
        ptrace::syscall(thread, None)?;
        match next_stop(thread)? {
            Change::Syscall if entry => {
                let now = ptrace::getregs(thread)?;
                if (now.orig_rax, [now.rdi, now.rsi, now.rdx, now.r10]) != (number, arguments) {
                    kill(thread, Signal::SIGKILL)?;
                    return Err(io::Error::other("the thread was about to make another call"));
                }
            }
            Change::Syscall => {}
            Change::Signal(signal) => {
                kill(thread, Signal::try_from(signal)?)?; // SIGSTOP, which cannot be blocked: it comes later
                return Err(io::Error::other("the thread was stopped"));
            }
            other => return Err(io::Error::other(format!("the thread did not make the call: {other:?}"))),
        }
    }
    let result = ptrace::getregs(thread)?.rax as i64;
    ptrace::interrupt(thread)?;
    ptrace::cont(thread, None)?;
    next_stop(thread)?;
    Ok(result)
}

#[cfg(target_arch = "x86_64")]
fn signal_mask(thread: Pid) -> io::Result<u64> {
    const PTRACE_GETSIGMASK: libc::c_uint = 0x420a;
    let mut mask = 0_u64;
    // SAFETY: the kernel writes 8 bytes, as many as the third argument says.
    match unsafe { libc::ptrace(PTRACE_GETSIGMASK, thread.as_raw(), size_of::<u64>(), &raw mut mask) } {
        -1 => Err(io::Error::last_os_error()),
        _ => Ok(mask),
    }
}

#[cfg(target_arch = "x86_64")]
fn set_signal_mask(thread: Pid, mask: u64) -> io::Result<()> {
    const PTRACE_SETSIGMASK: libc::c_uint = 0x420b;
    // SAFETY: the kernel reads 8 bytes, as many as the third argument says.
    match unsafe { libc::ptrace(PTRACE_SETSIGMASK, thread.as_raw(), size_of::<u64>(), &raw const mask) } {
        -1 => Err(io::Error::last_os_error()),
        _ => Ok(()),
    }
}

#[cfg(target_arch = "x86_64")]
fn next_stop(thread: Pid) -> io::Result<Change> {
    let deadline = Instant::now() + PATIENCE;
    loop {
        match wait(Whom::One(thread), TRACEES | WaitPidFlag::WEXITED | WaitPidFlag::WSTOPPED | WaitPidFlag::WNOHANG) {
            Err(Errno::EINTR) => {}
            Ok(None) if Instant::now() > deadline => {
                kill(thread, Signal::SIGKILL)?;
                return Err(io::Error::other("the thread does not make the call"));
            }
            Ok(None) => std::thread::sleep(Duration::from_micros(20)),
            Ok(Some((_, change))) => return Ok(change),
            Err(error) => return Err(error.into()),
        }
    }
}

/// Not yet: see the other.
///
/// # Errors
/// Always.
#[cfg(not(target_arch = "x86_64"))]
pub fn call(_thread: Pid, _code: &Code, _number: u64, _arguments: [u64; 4]) -> io::Result<i64> {
    Err(io::Error::from(io::ErrorKind::Unsupported))
}
