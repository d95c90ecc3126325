//! Starting the command, and what a process does to itself.
#![allow(unsafe_code)]

use std::ffi::{CString, OsStr, OsString};
use std::io;
use std::os::fd::{FromRawFd, OwnedFd, RawFd};
use std::os::unix::ffi::OsStrExt;
use std::sync::atomic::{AtomicBool, Ordering::Relaxed};
use std::sync::{PoisonError, RwLock, RwLockReadGuard, RwLockWriteGuard};

use nix::sys::signal::SigSet;
use nix::unistd::Pid;

use crate::sys::seccomp::Filter;

/// Which of the two a fork has returned in.
#[derive(Debug, Clone, Copy)]
pub enum Forked {
    /// The one that forked.
    Parent(Pid),
    /// The new one.
    Child,
}

/// fork(2). Must be called while the process has one thread, and says so if it hasn't.
///
/// # Errors
/// The kernel's; `EDEADLK` if there are other threads.
pub fn fork() -> io::Result<Forked> {
    if std::fs::read_dir("/proc/self/task").map(Iterator::count).unwrap_or(1) != 1 {
        return Err(io::Error::from_raw_os_error(libc::EDEADLK));
    }
    // SAFETY: with one thread no lock can be held by another, so the child may do whatever we may.
    match unsafe { nix::unistd::fork() }? {
        nix::unistd::ForkResult::Parent { child } => Ok(Forked::Parent(child)),
        nix::unistd::ForkResult::Child => Ok(Forked::Child),
    }
}

/// A command that is ready to be run: nothing has to be allocated any more.
#[derive(Debug)]
pub struct Command {
    candidates: Vec<CString>,
    arguments: Vec<CString>,
    environment: Vec<CString>,
    said: Vec<u8>,
}

impl Command {
    /// Prepares a command: the paths that execvp(3) would try, in its order.
    ///
    /// # Errors
    /// `EINVAL` for a NUL in an argument; there is none in what a kernel has handed us.
    pub fn new(command: &[OsString], environment: &[(OsString, OsString)]) -> io::Result<Self> {
        let c = |text: &[u8]| CString::new(text).map_err(|_| io::Error::from_raw_os_error(libc::EINVAL));
        let name = command.first().map(|name| name.as_bytes()).unwrap_or_default();
        let path = environment.iter().find(|(key, _)| key == "PATH").map(|(_, value)| value.as_os_str());
        let path = path.unwrap_or(OsStr::new("/bin:/usr/bin")).as_bytes();
        let candidates = if name.contains(&b'/') || name.is_empty() {
            vec![c(name)?]
        } else {
            path.split(|byte| *byte == b':')
                .map(|directory| match directory {
                    b"" => c(name),
                    directory => c(&[directory, b"/", name].concat()),
                })
                .collect::<io::Result<_>>()?
        };
        Ok(Self {
            candidates,
            arguments: command.iter().map(|argument| c(argument.as_bytes())).collect::<io::Result<_>>()?,
            environment: environment
                .iter()
                .map(|(key, value)| c(&[key.as_bytes(), b"=", value.as_bytes()].concat()))
                .collect::<io::Result<_>>()?,
            said: [b"callgate: ", name, b": "].concat(),
        })
    }
}

/// How the command's process is to be set up before it runs.
#[derive(Debug)]
pub struct Setup<'a> {
    /// The filter that it is put under.
    pub filter: &'a Filter,
    /// Whether the filter's listener keeps callers through signals.
    pub killable: bool,
    /// The process group that it joins; 0 for a new one of its own; `None` to stay.
    pub group: Option<i32>,
    /// The terminal whose foreground group it becomes.
    pub terminal: Option<RawFd>,
    /// The signal mask that it starts with.
    pub mask: SigSet,
    /// Capabilities that it must never have, by number.
    pub without: &'a [u32],
    /// Where it writes the number of the listener's descriptor, and then waits for a byte.
    pub report: RawFd,
    /// Where the byte comes from.
    pub go: RawFd,
}

/// Starts the command's process. It shares our descriptor table until its filter is installed: that is how we come by the
/// listener, with no permission and no system call that the filter might govern.
///
/// # Errors
/// The kernel's.
pub fn start(command: &Command, setup: &Setup<'_>) -> io::Result<Pid> {
    let pointers = |strings: &[CString]| -> Vec<*const libc::c_char> {
        strings.iter().map(|string| string.as_ptr()).chain([std::ptr::null()]).collect()
    };
    let (argv, envp) = (pointers(&command.arguments), pointers(&command.environment));
    let flags = libc::CLONE_FILES | libc::SIGCHLD;
    // SAFETY: no CLONE_VM and no new stack: a fork that shares descriptors. The child runs only what follows, which
    // allocates nothing, takes no lock and ends in execve or _exit.
    let pid = unsafe { libc::syscall(libc::SYS_clone, flags, 0_usize, 0_usize, 0_usize, 0_usize) };
    match pid {
        -1 => Err(io::Error::last_os_error()),
        0 => {
            // SAFETY: as above; every pointer is into `command`, `argv` and `envp`, which live on.
            unsafe { become_command(command, setup, &argv, &envp) }
        }
        pid => Ok(Pid::from_raw(pid as i32)),
    }
}

/// # Safety
/// Only in a child made by [`start`].
unsafe fn become_command(
    command: &Command,
    setup: &Setup<'_>,
    argv: &[*const libc::c_char],
    envp: &[*const libc::c_char],
) -> ! {
    // SAFETY: system calls on numbers and on buffers that live on.
    unsafe {
        if let Some(group) = setup.group {
            libc::setpgid(0, group);
        }
        if let Some(terminal) = setup.terminal {
            libc::tcsetpgrp(terminal, libc::getpgrp());
        }
        for capability in setup.without {
            libc::prctl(libc::PR_CAPBSET_DROP, u64::from(*capability), 0, 0, 0);
            libc::prctl(libc::PR_CAP_AMBIENT, libc::PR_CAP_AMBIENT_LOWER, u64::from(*capability), 0, 0);
        }
        give_up(setup.without);
        // We are hidden, and so is what we fork; but without CAP_SYS_PTRACE the supervisor could not look at it either. There
        // is nobody of the workload yet to look into this copy of our memory, and the exec discards it.
        libc::prctl(libc::PR_SET_DUMPABLE, 1, 0, 0, 0);
        // Rust's runtime ignores SIGPIPE in every program; the command is not to inherit that.
        libc::signal(libc::SIGPIPE, libc::SIG_DFL);
        libc::pthread_sigmask(libc::SIG_SETMASK, setup.mask.as_ref(), std::ptr::null_mut());
        let listener = match setup.filter.install(setup.killable) {
            // Only then may our supervisor touch its own table.
            Ok(_) if own_table() != 0 => -*libc::__errno_location(),
            Ok(listener) => listener,
            Err(error) => -error.raw_os_error().unwrap_or(libc::EIO),
        };
        libc::write(setup.report, (&raw const listener).cast(), 4);
        if listener < 0 {
            libc::_exit(125);
        }
        let mut byte = 0_u8;
        if libc::read(setup.go, (&raw mut byte).cast(), 1) != 1 {
            libc::_exit(125);
        }
        let mut failure = libc::ENOENT;
        for candidate in &command.candidates {
            libc::execve(candidate.as_ptr(), argv.as_ptr(), envp.as_ptr());
            match *libc::__errno_location() {
                libc::ENOENT | libc::ENOTDIR => {}
                libc::EACCES => failure = libc::EACCES,
                other => {
                    failure = other;
                    break;
                }
            }
        }
        let text: &[u8] = match failure {
            libc::ENOENT => b"command not found\n",
            libc::EACCES => b"Permission denied\n",
            libc::ENOEXEC => b"Exec format error\n",
            _ => b"cannot be run\n",
        };
        libc::write(2, command.said.as_ptr().cast(), command.said.len());
        libc::write(2, text.as_ptr().cast(), text.len());
        libc::_exit(if failure == libc::ENOENT { 127 } else { 126 });
    }
}

/// Gives the calling process a descriptor table of its own, with what is in the shared one. By close_range(2) (Linux 5.9) of
/// nothing, since Docker's seccomp profile forbids unshare(2).
///
/// # Safety
/// None: numbers go in. It is called between clone and exec, so it allocates nothing.
unsafe fn own_table() -> i32 {
    // SAFETY: takes numbers only; no descriptor has the number that is closed.
    unsafe {
        match libc::syscall(libc::SYS_close_range, u32::MAX, u32::MAX, libc::CLOSE_RANGE_UNSHARE) {
            0 => 0,
            _ => libc::unshare(libc::CLONE_FILES),
        }
    }
}

/// Takes capabilities out of the calling thread's sets.
///
/// # Safety
/// None: a number goes in. It is called between clone and exec, so it allocates nothing.
unsafe fn give_up(without: &[u32]) {
    let header = [0x2008_0522_u32, 0];
    let mut data = [[0_u32; 3]; 2];
    // SAFETY: capget(2) and capset(2) with header and data of version 3.
    unsafe {
        if libc::syscall(libc::SYS_capget, header.as_ptr(), data.as_mut_ptr()) == 0 {
            for capability in without {
                for set in 0..3 {
                    data[(*capability / 32) as usize][set] &= !(1 << (capability % 32));
                }
            }
            libc::syscall(libc::SYS_capset, header.as_ptr(), data.as_ptr());
        }
    }
}

/// Takes over a descriptor that the command's process has put into our table.
pub fn adopt(fd: RawFd) -> OwnedFd {
    // SAFETY: the child made it in the table that we shared, and has a table of its own by now; nobody else owns it here.
    unsafe { OwnedFd::from_raw_fd(fd) }
}

/// Overwrites the values of our own variables where the kernel put them, so that nobody reads them from
/// `/proc/PID/environ`, and returns them. Must be called before any other thread exists.
pub fn take_environment(prefix: &str) -> Vec<(String, String)> {
    let mut taken = Vec::new();
    // SAFETY: one thread; `environ` is the array that execve(2) handed us, of writable strings that end with NUL.
    unsafe {
        let mut entry = *std::ptr::addr_of!(environ);
        while !entry.is_null() && !(*entry).is_null() {
            let text = std::ffi::CStr::from_ptr(*entry).to_bytes();
            if let Some((key, value)) = text.starts_with(prefix.as_bytes()).then(|| split_variable(text)).flatten() {
                taken.push((key, value));
                // A page that is never read again may lose plain writes to the optimiser.
                for at in 0..text.len() {
                    (*entry).cast::<u8>().add(at).write_volatile(0);
                }
            }
            entry = entry.add(1);
        }
    }
    taken
}

unsafe extern "C" {
    static mut environ: *mut *mut libc::c_char;
}

fn split_variable(text: &[u8]) -> Option<(String, String)> {
    let text = String::from_utf8_lossy(text);
    let (key, value) = text.split_once('=')?;
    Some((key.to_owned(), value.to_owned()))
}

/// Makes the process unreadable to others of its user: no ptrace(2), no `/proc/PID/mem`, `environ`, `fd`.
pub fn hide() {
    // SAFETY: takes numbers only; cannot fail.
    unsafe { libc::prctl(libc::PR_SET_DUMPABLE, 0, 0, 0, 0) };
}

/// Threads that could not get a working directory and a umask of their own, and take turns with the one that all share.
static SHARED_DIRECTORY: AtomicBool = AtomicBool::new(false);
static TURN: RwLock<()> = RwLock::new(());

/// Gives the calling thread a working directory and a umask of its own. Where that is forbidden, as by Docker's seccomp
/// profile, [`staying`] and [`leaving`] keep threads out of each other's way.
pub fn own_directory() {
    if nix::sched::unshare(nix::sched::CloneFlags::CLONE_FS).is_err() {
        SHARED_DIRECTORY.store(true, Relaxed);
    }
}

/// While it is held, the working directory stays what it is.
pub fn staying() -> Option<RwLockReadGuard<'static, ()>> {
    SHARED_DIRECTORY.load(Relaxed).then(|| TURN.read().unwrap_or_else(PoisonError::into_inner))
}

/// While it is held, the calling thread may change working directory and umask; it has to change them back.
pub fn leaving() -> Option<RwLockWriteGuard<'static, ()>> {
    SHARED_DIRECTORY.load(Relaxed).then(|| TURN.write().unwrap_or_else(PoisonError::into_inner))
}

/// A procfs of our own that is mounted nowhere, for a root directory without `/proc` (fsopen(2), Linux 5.2).
///
/// # Errors
/// `EPERM` without `CAP_SYS_ADMIN`.
pub fn detached_proc() -> io::Result<OwnedFd> {
    const FSCONFIG_CMD_CREATE: libc::c_uint = 6;
    let check = |fd: libc::c_long| if fd < 0 { Err(io::Error::last_os_error()) } else { Ok(fd as RawFd) };
    // SAFETY: system calls on a constant string and on numbers; the descriptors are new and ours.
    unsafe {
        let context = adopt(check(libc::syscall(libc::SYS_fsopen, c"proc".as_ptr(), 1))?);
        let fd = std::os::fd::AsRawFd::as_raw_fd(&context);
        check(libc::syscall(libc::SYS_fsconfig, fd, FSCONFIG_CMD_CREATE, 0_usize, 0_usize, 0))?;
        Ok(adopt(check(libc::syscall(libc::SYS_fsmount, fd, 1, 0))?))
    }
}

/// A descriptor that whoever started us left open, by its number. One that is not open answers every call with `EBADF`.
pub fn borrow(fd: RawFd) -> std::os::fd::BorrowedFd<'static> {
    // SAFETY: nothing of ours closes descriptors that it has not opened, so the number keeps its meaning.
    unsafe { std::os::fd::BorrowedFd::borrow_raw(fd) }
}

/// A copy of such a descriptor, close-on-exec.
///
/// # Errors
/// `EBADF`, `EMFILE`.
pub fn duplicate(fd: RawFd) -> io::Result<OwnedFd> {
    borrow(fd).try_clone_to_owned()
}
