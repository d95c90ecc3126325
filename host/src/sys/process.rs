//! Starting the command, and what a process does to itself.
#![allow(unsafe_code)]

use std::ffi::{CStr, CString, OsString};
use std::io;
use std::os::fd::{AsRawFd, BorrowedFd, FromRawFd, OwnedFd, RawFd};
use std::os::unix::ffi::OsStrExt;
use std::sync::atomic::{AtomicBool, AtomicU8, AtomicU32, Ordering::Relaxed};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use nix::errno::Errno;
use nix::sys::signal::{SigSet, SigmaskHow, Signal, sigprocmask};
use nix::sys::wait::WaitPidFlag;
use nix::unistd::Pid;

use crate::sys::seccomp::Filter;
use crate::sys::wait::{Whom, wait};

/// The standard streams that were closed when we were started, and the signals that were ignored, one bit for each by its
/// number. Rust's runtime opens `/dev/null` for the former and ignores SIGPIPE before `main`, so it is looked at before that;
/// the command gets it all as it was.
static CLOSED: AtomicU8 = AtomicU8::new(0);
static IGNORED: AtomicU32 = AtomicU32::new(0);
/// The signals that we handle otherwise than we found: Rust's runtime, SIGPIPE; wasmtime, faults; we, SIGCHLD and SIGXFSZ.
const OURS: [libc::c_int; 7] =
    [libc::SIGPIPE, libc::SIGCHLD, libc::SIGSEGV, libc::SIGBUS, libc::SIGILL, libc::SIGFPE, libc::SIGXFSZ];

#[used]
#[unsafe(link_section = ".init_array")]
static LOOK: extern "C" fn() = {
    extern "C" fn look() {
        let (mut closed, mut ignored) = (0, 0);
        // SAFETY: fcntl takes numbers; sigaction(2) without a new action only writes the old one, for which zero bytes are
        // a valid value. Nothing here needs the runtime, which has not begun yet.
        unsafe {
            for stream in 0..3 {
                if libc::fcntl(stream, libc::F_GETFD) == -1 {
                    closed |= 1 << stream;
                }
            }
            for signal in OURS {
                let mut action: libc::sigaction = std::mem::zeroed();
                libc::sigaction(signal, std::ptr::null(), &raw mut action);
                if action.sa_sigaction == libc::SIG_IGN {
                    ignored |= 1 << signal;
                }
            }
        }
        CLOSED.store(closed, Relaxed);
        IGNORED.store(ignored, Relaxed);
    }
    look
};

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
    let alone = || std::fs::read_dir("/proc/self/task").map(Iterator::count).unwrap_or(1) == 1;
    // A thread that has been joined may be there for a moment longer: the C library knows of its end before the kernel is
    // through with it (CLONE_CHILD_CLEARTID, clone(2)).
    let deadline = Instant::now() + Duration::from_secs(5);
    while !alone() {
        if Instant::now() > deadline {
            return Err(io::Error::from_raw_os_error(libc::EDEADLK));
        }
        std::thread::sleep(Duration::from_micros(100));
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
    /// Whether they come from `PATH`.
    searched: bool,
    arguments: Vec<CString>,
    environment: Vec<CString>,
    said: Vec<u8>,
}

impl Command {
    /// Prepares a command: the paths that execvp(3) would try, in its order.
    ///
    /// # Errors
    /// `EINVAL` for a NUL in an argument; there is none in what a kernel has handed us.
    pub fn new(command: &[OsString], environment: Vec<CString>) -> io::Result<Self> {
        let c = |text: &[u8]| CString::new(text).map_err(|_| io::Error::from_raw_os_error(libc::EINVAL));
        let name = command.first().map(|name| name.as_bytes()).unwrap_or_default();
        let path = environment.iter().find_map(|entry| entry.to_bytes().strip_prefix(b"PATH="));
        let searched = !name.contains(&b'/');
        let candidates = if !searched || name.is_empty() {
            vec![c(name)?]
        } else {
            path.unwrap_or(b"/bin:/usr/bin")
                .split(|byte| *byte == b':')
                .map(|directory| match directory {
                    b"" => c(name),
                    directory => c(&[directory, b"/", name].concat()),
                })
                .collect::<io::Result<_>>()?
        };
        Ok(Self {
            candidates,
            searched,
            arguments: command.iter().map(|argument| c(argument.as_bytes())).collect::<io::Result<_>>()?,
            environment,
            said: [b"callgate: ", name, b": "].concat(),
        })
    }
}

/// Timers (setitimer(2)), which an exec keeps and a fork does not.
#[derive(Debug, Clone, Copy)]
pub struct Timers {
    timers: [libc::itimerval; 3],
    taken: Instant,
}

const TIMERS: [libc::c_int; 3] = [libc::ITIMER_REAL, libc::ITIMER_VIRTUAL, libc::ITIMER_PROF];

impl Timers {
    /// Takes them off the calling process: `alarm 5; exec …` limits the command's time, not ours.
    pub fn take() -> Self {
        // SAFETY: zero bytes are a valid itimerval, one that is not running; the kernel fills in the old ones.
        unsafe {
            let stopped: libc::itimerval = std::mem::zeroed();
            let mut timers = [stopped; 3];
            for (which, timer) in TIMERS.into_iter().zip(&mut timers) {
                libc::setitimer(which as _, &raw const stopped, timer);
            }
            Self { timers, taken: Instant::now() }
        }
    }

    /// Gives them to the calling process, less the time that has passed: `timeout` has not waited for us. Allocates nothing.
    fn start(&self) {
        for (which, mut timer) in TIMERS.into_iter().zip(self.timers) {
            let value = timer.it_value;
            if value.tv_sec == 0 && value.tv_usec == 0 {
                continue;
            }
            if which == libc::ITIMER_REAL {
                let whole = Duration::new(value.tv_sec as u64, value.tv_usec as u32 * 1000);
                let left = whole.saturating_sub(self.taken.elapsed()).max(Duration::from_micros(1)); // 0 would stop it
                timer.it_value = libc::timeval {
                    tv_sec: left.as_secs() as libc::time_t,
                    tv_usec: left.subsec_micros() as libc::suseconds_t,
                };
            }
            // SAFETY: `timer` is a valid itimerval.
            unsafe { libc::setitimer(which as _, &raw const timer, std::ptr::null_mut()) };
        }
    }
}

/// How many descriptors a process may have (`RLIMIT_NOFILE`, prlimit(2)); `None` if that cannot be told.
pub fn descriptor_limit(process: u32) -> Option<u64> {
    let mut limit = libc::rlimit64 { rlim_cur: 0, rlim_max: 0 };
    // SAFETY: nothing is set, for there are no new limits; the kernel writes one `rlimit64`.
    let result =
        unsafe { libc::prlimit64(process as libc::pid_t, libc::RLIMIT_NOFILE, std::ptr::null(), &raw mut limit) };
    (result == 0).then_some(limit.rlim_cur)
}

/// Makes sure that children can be waited for: who ignores SIGCHLD has none (wait(2)).
pub fn expect_children() {
    // SAFETY: SIG_DFL is no function of ours.
    unsafe { libc::signal(libc::SIGCHLD, libc::SIG_DFL) };
}

/// From now on SIGCHLD tells of children that have ended, and not of stops: each thing that a thread of ours holds is one.
pub fn expect_ends_only() {
    // SAFETY: zero bytes are a valid sigaction, with an empty mask; SIG_DFL is no function of ours.
    unsafe {
        let mut action: libc::sigaction = std::mem::zeroed();
        action.sa_sigaction = libc::SIG_DFL;
        action.sa_flags = libc::SA_NOCLDSTOP;
        libc::sigaction(libc::SIGCHLD, &raw const action, std::ptr::null_mut());
    }
}

/// A limit of file sizes (setrlimit(2)) that was meant for the command ends no process of ours: what is longer fails with
/// `EFBIG`, an audit log, say.
pub fn outlive_file_limit() {
    // SAFETY: SIG_IGN is no function of ours.
    unsafe { libc::signal(libc::SIGXFSZ, libc::SIG_IGN) };
}

/// The session that the command is put into.
#[derive(Debug, Clone, Copy)]
pub enum Session {
    /// The one that we were started in, and the process group.
    Ours,
    /// One of its own, which it leads, with this terminal.
    Own(Option<RawFd>),
}

/// How the command's process is to be set up before it runs.
#[derive(Debug)]
pub struct Setup<'a> {
    /// The filter that it is put under.
    pub filter: &'a Filter,
    /// Whether the filter's listener keeps callers through signals.
    pub killable: bool,
    /// Where it stands.
    pub session: Session,
    /// The signal mask that it starts with.
    pub mask: SigSet,
    /// The timers that run for it.
    pub timers: Timers,
    /// Capabilities that it must never have, by number.
    pub without: &'a [u32],
    /// A Landlock ruleset (landlock(7)) that it is put under as well.
    pub domain: Option<BorrowedFd<'a>>,
    /// Where it writes the number of the listener's descriptor, and then waits for a byte.
    pub report: RawFd,
    /// Where the byte comes from.
    pub go: RawFd,
    /// The other end of that, of which it must not keep a copy: it would wait for itself.
    pub go_writer: RawFd,
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
        if let Session::Own(terminal) = setup.session {
            libc::setsid();
            if let Some(terminal) = terminal {
                libc::ioctl(terminal, libc::TIOCSCTTY, 0);
            }
        }
        for capability in setup.without {
            libc::prctl(libc::PR_CAPBSET_DROP, u64::from(*capability), 0, 0, 0);
            libc::prctl(libc::PR_CAP_AMBIENT, libc::PR_CAP_AMBIENT_LOWER, u64::from(*capability), 0, 0);
        }
        give_up(setup.without);
        // We are hidden, and so is what we fork; but without CAP_SYS_PTRACE the supervisor could not look at it either. There
        // is nobody of the workload yet to look into this copy of our memory, and the exec discards it.
        libc::prctl(libc::PR_SET_DUMPABLE, 1, 0, 0, 0);
        for signal in OURS {
            let ignored = IGNORED.load(Relaxed) & 1 << signal != 0;
            libc::signal(signal, if ignored { libc::SIG_IGN } else { libc::SIG_DFL });
        }
        let listener = match setup.filter.install(setup.killable) {
            // Only then may our supervisor touch its own table.
            Ok(_) if own_table() != 0 => -*libc::__errno_location(),
            Ok(_) if !enter(setup.domain) => -*libc::__errno_location(),
            Ok(listener) => listener,
            Err(error) => -error.raw_os_error().unwrap_or(libc::EIO),
        };
        libc::write(setup.report, (&raw const listener).cast(), 4);
        if listener < 0 {
            libc::_exit(125);
        }
        // Should the supervisor die now, its listener must be gone with it: nobody would answer the exec.
        libc::close(listener);
        libc::close(setup.go_writer);
        for stream in 0..3 {
            if CLOSED.load(Relaxed) & 1 << stream != 0 {
                libc::close(stream);
            }
        }
        let mut byte = 0_u8;
        if libc::read(setup.go, (&raw mut byte).cast(), 1) != 1 {
            libc::_exit(125);
        }
        // What has come in the meantime comes now, when somebody looks after us.
        setup.timers.start();
        libc::pthread_sigmask(libc::SIG_SETMASK, setup.mask.as_ref(), std::ptr::null_mut());
        // As execvp(3), but for a script without `#!`: that would run it with /bin/sh, which is not what was asked for, and
        // container runtimes do not either.
        let mut failure = libc::ENOENT;
        for candidate in &command.candidates {
            libc::execve(candidate.as_ptr(), argv.as_ptr(), envp.as_ptr());
            match *libc::__errno_location() {
                libc::ENOTDIR if !command.searched => failure = libc::ENOTDIR,
                libc::ENOENT | libc::ENOTDIR | libc::ESTALE | libc::ENODEV | libc::ETIMEDOUT => {}
                libc::EACCES => failure = libc::EACCES,
                other => {
                    failure = other;
                    break;
                }
            }
        }
        // As bash has it.
        let text = match failure {
            libc::ENOENT if command.searched => "command not found",
            libc::ENOENT => "No such file or directory",
            libc::EACCES => "Permission denied",
            other => Errno::from_raw(other).desc(),
        };
        let mut start = [0; START];
        // A file that is there is missed by nobody; what it needs to be run is.
        let there = command.candidates.iter().find(|file| libc::access(file.as_ptr(), libc::F_OK) == 0);
        let interpreter = match there {
            Some(file) if matches!(failure, libc::ENOENT | libc::ENOTDIR) => Some(interpreter(file, &mut start)),
            _ => None,
        };
        let parts: [&[u8]; 4] = match interpreter {
            None => [&command.said, text.as_bytes(), b"", b"\n"],
            Some(b"") => [&command.said, b"cannot execute: required file not found", b"", b"\n"],
            Some(interpreter) => {
                let why: &[u8] = match failure {
                    libc::ENOENT => b": bad interpreter: No such file or directory\n",
                    _ => b": bad interpreter: Not a directory\n",
                };
                [&command.said, interpreter, why, b""]
            }
        };
        // In one piece: the supervisor writes records there.
        let parts = parts.map(|part| libc::iovec { iov_base: part.as_ptr().cast_mut().cast(), iov_len: part.len() });
        libc::writev(2, parts.as_ptr(), parts.len() as i32);
        libc::_exit(if failure == libc::ENOENT { 127 } else { 126 });
    }
}

/// As much of a script as the kernel looks at for the interpreter (`BINPRM_BUF_SIZE`, linux/binfmts.h).
const START: usize = 256;

/// The interpreter of a script, from its first line; empty if it is none. Allocates nothing.
///
/// # Safety
/// As [`own_table`].
unsafe fn interpreter<'a>(file: &CStr, start: &'a mut [u8; START]) -> &'a [u8] {
    // SAFETY: `file` ends with NUL, and the buffer is as long as is said.
    let length = unsafe {
        let fd = libc::open(file.as_ptr(), libc::O_RDONLY | libc::O_NONBLOCK | libc::O_NOCTTY);
        libc::read(fd, start.as_mut_ptr().cast(), START)
    };
    let line = start.get(..usize::try_from(length).unwrap_or(0)).and_then(|start| start.strip_prefix(b"#!"));
    let line = line.and_then(|line| line.split(|byte| matches!(byte, b'\n' | b'\0')).next()).unwrap_or_default();
    line.trim_ascii_start().split(u8::is_ascii_whitespace).next().unwrap_or_default()
}

/// Enters a Landlock domain. It takes `no_new_privs`.
///
/// # Safety
/// As [`own_table`].
unsafe fn enter(domain: Option<BorrowedFd<'_>>) -> bool {
    // SAFETY: takes numbers only.
    domain.is_none_or(|domain| unsafe { libc::syscall(libc::SYS_landlock_restrict_self, domain.as_raw_fd(), 0) } == 0)
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
                for set in &mut data[(*capability / 32) as usize] {
                    *set &= !(1 << (capability % 32));
                }
            }
            libc::syscall(libc::SYS_capset, header.as_ptr(), data.as_ptr());
        }
    }
}

/// Takes over a descriptor that nobody owns yet: a call has just returned it, or the command's process has put it into our
/// table.
pub fn adopt(fd: RawFd) -> OwnedFd {
    // SAFETY: as the callers say. The command's process made it in the table that we shared, and has one of its own by now.
    unsafe { OwnedFd::from_raw_fd(fd) }
}

/// An environment, taken apart.
#[derive(Debug, Default)]
pub struct Environment {
    /// The variables that are ours.
    pub own: Vec<(String, String)>,
    /// Everything else, byte for byte: execve(2) promises neither a `=` nor that a name is there once.
    pub rest: Vec<CString>,
}

/// Overwrites our own variables, which begin with `prefix`, where the kernel put them, so that nobody reads them from
/// `/proc/PID/environ`. Must be called before any other thread exists.
pub fn take_environment(prefix: &str) -> Environment {
    let mut taken = Environment::default();
    // SAFETY: one thread; `environ` is the array that execve(2) handed us, of writable strings that end with NUL.
    unsafe {
        let mut entry = *std::ptr::addr_of!(environ);
        while !entry.is_null() && !(*entry).is_null() {
            let text = CStr::from_ptr(*entry);
            if text.to_bytes().starts_with(prefix.as_bytes()) {
                taken.own.extend(split_variable(text.to_bytes()));
                // A page that is never read again may lose plain writes to the optimiser.
                for at in 0..text.to_bytes().len() {
                    (*entry).cast::<u8>().add(at).write_volatile(0);
                }
            } else {
                taken.rest.push(text.to_owned());
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

/// Closes what whoever started us left open, above the standard streams. It is what has no close-on-exec: that would have
/// been closed when we were started, and everything of our own has it.
pub fn close_inherited() {
    let close = |fd: RawFd| {
        // SAFETY: takes numbers only. Nobody owns the descriptor: everything that was opened here is close-on-exec.
        unsafe {
            if libc::fcntl(fd, libc::F_GETFD) == 0 {
                libc::close(fd);
            }
        }
    };
    match std::fs::read_dir("/proc/self/fd") {
        Ok(entries) => {
            let open: Vec<RawFd> = entries.flatten().filter_map(|e| e.file_name().to_str()?.parse().ok()).collect();
            open.into_iter().filter(|fd| *fd > 2).for_each(close);
        }
        Err(_) => (3..1024).for_each(close),
    }
}

/// Puts something empty in the place of these standard streams, so that they don't stay open because of us.
pub fn forget_streams(streams: &[RawFd]) {
    let nothing = std::fs::File::options().read(true).write(true).open("/dev/null").map(OwnedFd::from);
    // Reading from the end of a pipe that nobody holds is an end of file, too.
    let nothing = nothing.or_else(|_| nix::unistd::pipe2(nix::fcntl::OFlag::O_CLOEXEC).map(|(end, _)| end));
    if let Ok(nothing) = nothing {
        for stream in streams {
            // SAFETY: takes numbers only; the standard streams belong to nobody.
            unsafe { libc::dup2(std::os::fd::AsRawFd::as_raw_fd(&nothing), *stream) };
        }
    }
}

/// The session whose terminal this is, if it is one.
pub fn terminal_session(fd: RawFd) -> Option<Pid> {
    // SAFETY: takes a number.
    let session = unsafe { libc::tcgetsid(fd) };
    (session >= 0).then(|| Pid::from_raw(session))
}

/// Gives up our terminal (TIOCNOTTY, ioctl_tty(2)); if we lead the session, then another may take it.
pub fn leave_terminal(fd: RawFd) {
    // SAFETY: takes a number.
    unsafe { libc::ioctl(fd, libc::TIOCNOTTY) };
}

/// A signal that one process sends to another, as signalfd(2) shows it.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Sent {
    /// Its number.
    pub number: i32,
    /// How it came to be sent (`SI_…`, sigaction(2)).
    pub code: i32,
    /// By whom.
    pub pid: u32,
    /// Of which user.
    pub uid: u32,
    /// The value that sigqueue(3) adds.
    pub value: u64,
}

/// Sends a signal on, with its value if it has one. Real-time signals, which nix does not have, too.
pub fn send_on(to: Pid, signal: &Sent) {
    // SAFETY: kill takes numbers. Zero bytes are a valid siginfo_t, and what is written into it are the members of a queued
    // signal, at the offsets that they have on 64-bit Linux (include/uapi/asm-generic/siginfo.h).
    unsafe {
        if signal.code == libc::SI_QUEUE {
            let mut info: libc::siginfo_t = std::mem::zeroed();
            (info.si_signo, info.si_code) = (signal.number, signal.code);
            let bytes = (&raw mut info).cast::<u8>();
            bytes.add(16).cast::<u32>().write_unaligned(signal.pid);
            bytes.add(20).cast::<u32>().write_unaligned(signal.uid);
            bytes.add(24).cast::<u64>().write_unaligned(signal.value);
            libc::syscall(libc::SYS_rt_sigqueueinfo, to.as_raw(), signal.number, &raw const info);
        } else {
            libc::kill(to.as_raw(), signal.number);
        }
    }
}

/// Stops the process as this signal does by default, even if it is blocked; returns when it goes on.
pub fn stop_by(signal: Signal) {
    let mut alone = SigSet::empty();
    alone.add(signal);
    // SAFETY: SIG_DFL is no function of ours.
    unsafe { libc::signal(signal as i32, libc::SIG_DFL) };
    let _ = nix::sys::signal::kill(nix::unistd::getpid(), signal);
    let _ = sigprocmask(SigmaskHow::SIG_UNBLOCK, Some(&alone), None);
    let _ = sigprocmask(SigmaskHow::SIG_BLOCK, Some(&alone), None);
}

/// Our children, as the kernel lists them, or, where it cannot say, by asking for every number that there may be.
pub fn children() -> Vec<Pid> {
    if let Ok(list) = std::fs::read_to_string("/proc/thread-self/children") {
        return list.split_whitespace().filter_map(|pid| pid.parse().ok()).map(Pid::from_raw).collect();
    }
    const PID_MAX_LIMIT: i32 = 1 << 22; // proc_sys_kernel(5)
    let flags = WaitPidFlag::WEXITED | WaitPidFlag::WNOHANG | WaitPidFlag::WNOWAIT | WaitPidFlag::__WALL;
    let is_child = |pid: &i32| wait(Whom::One(Pid::from_raw(*pid)), flags).is_ok();
    (2..PID_MAX_LIMIT).filter(is_child).map(Pid::from_raw).collect()
}

static SHARED_DIRECTORY: AtomicBool = AtomicBool::new(false);
static TURN: Mutex<()> = Mutex::new(());

/// Gives the calling thread a working directory and a umask of its own. Where that is forbidden, as by Docker's seccomp
/// profile, [`leaving`] keeps threads out of each other's way.
pub fn own_directory() {
    if nix::sched::unshare(nix::sched::CloneFlags::CLONE_FS).is_err() {
        SHARED_DIRECTORY.store(true, Relaxed);
    }
}

/// While it is held, the calling thread may change working directory and umask; it has to change them back.
pub fn leaving() -> Option<MutexGuard<'static, ()>> {
    SHARED_DIRECTORY.load(Relaxed).then(|| TURN.lock().unwrap_or_else(PoisonError::into_inner))
}

/// A path by which the calling thread, which works in `/proc`, reaches one of our descriptors. A thread whose directory is
/// not its own cannot rely on that, and needs no guard against mounts over `/proc`: who may not unshare may not mount.
pub fn path_to(descriptor: &OwnedFd) -> String {
    let proc = if SHARED_DIRECTORY.load(Relaxed) { "/proc/" } else { "" };
    format!("{proc}self/fd/{}", descriptor.as_raw_fd())
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
        let fd = context.as_raw_fd();
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

/// Bytes that nobody can know beforehand, at most 256. Not from a file: what is in `/dev` the workload may exchange.
///
/// # Errors
/// The kernel's.
pub fn random<const N: usize>() -> io::Result<[u8; N]> {
    let mut bytes = [0; N];
    // SAFETY: pointer and length describe `bytes`.
    let got = unsafe { libc::getrandom(bytes.as_mut_ptr().cast(), N, 0) };
    if got == N as isize { Ok(bytes) } else { Err(io::Error::last_os_error()) }
}
