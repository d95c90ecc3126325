//! Starts the command and looks after it: signals, orphans, job control, exit status.
//!
//! As the first process of a pid namespace we are the supervisor ourselves, and the kernel protects us: nothing inside can
//! signal us. Otherwise we are two. The process that was started stays as the *guardian*, in the place and the process
//! group that the outside knows; it has forked the *supervisor*, which is in a group of its own, out of the way of
//! `kill(0, …)`, and is the parent of the command and of what the command leaves behind. Should the supervisor die, its
//! children become the guardian's, which ends them.
//!
//! Which thread waits for whom: a process that is our child may at the same time be held with ptrace(2) by a thread of
//! ours. The kernel shows its stops to every thread of the tracer's process that waits for it, so the main thread only
//! looks (`WNOWAIT`), takes nothing but exits, and leaves stops to the thread that holds it.
//!
//! May depend on `sys`.

use std::ffi::OsString;
use std::fs::File;
use std::io::{self, Read, Write};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use nix::errno::Errno;
use nix::fcntl::OFlag;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::prctl;
use nix::sys::signal::{SigSet, SigmaskHow, Signal, kill, sigprocmask};
use nix::sys::signalfd::{SfdFlags, SignalFd, siginfo};
use nix::sys::wait::{Id, WaitPidFlag, WaitStatus, waitid};
use nix::unistd::{Pid, getpgrp, getpid, getppid, pipe2, setpgid};

use crate::intercept::calls::Protected;
use crate::sys::notify::Listener;
use crate::sys::process::{self, Command, Forked, Setup};
use crate::sys::seccomp::{self, Filter};

/// What is to be run, and under what.
#[derive(Debug)]
pub struct Launch {
    /// The command and its arguments.
    pub command: Vec<OsString>,
    /// Its environment.
    pub environment: Vec<(OsString, OsString)>,
    /// Capabilities that it must never have, by number (capabilities(7)).
    pub without: Vec<u32>,
}

/// What supervises while the command runs.
pub trait Supervision {
    /// Takes the listener and begins to answer. The command's process is there, under its filter, and waits.
    ///
    /// # Errors
    /// The command is then not run.
    fn begin(&mut self, listener: Listener, command: Pid, guardian: Option<u32>) -> Result<()>;
    /// The command has ended; some of its descendants may go on.
    fn command_ended(&mut self);
    /// Nothing of the workload is left.
    fn end(&mut self);
}

/// Runs the command and returns its exit status: its own, or 128+n for signal n.
///
/// # Errors
/// Our own failures, before the command has begun.
pub fn run(
    launch: &Launch,
    filter: impl FnOnce(Option<Protected>) -> Result<Filter>,
    supervision: &mut dyn Supervision,
) -> Result<u8> {
    seccomp::check_sizes().context("this kernel cannot hand system calls to a supervisor")?;
    process::hide();
    let mut mask = SigSet::empty();
    sigprocmask(SigmaskHow::SIG_SETMASK, Some(&SigSet::all()), Some(&mut mask))?;
    if getpid().as_raw() == 1 {
        return supervise(launch, &filter(None)?, mask, supervision, None);
    }
    let (messages, to_guardian) = pipe2(OFlag::O_CLOEXEC)?;
    let group = getpgrp();
    let guardian = getpid();
    prctl::set_child_subreaper(true)?;
    match process::fork().context("cannot start the supervisor")? {
        Forked::Parent(supervisor) => {
            drop(to_guardian);
            guard(supervisor, File::from(messages))
        }
        Forked::Child => {
            drop(messages);
            process::hide();
            prctl::set_pdeathsig(Signal::SIGHUP)?;
            prctl::set_child_subreaper(true)?;
            setpgid(Pid::from_raw(0), Pid::from_raw(0))?;
            if getppid() != guardian {
                std::process::exit(125);
            }
            let protected = Protected { group: getpid().as_raw() as u32 };
            let outside = Outside { to_guardian: File::from(to_guardian), guardian, group };
            let result =
                filter(Some(protected)).and_then(|filter| supervise(launch, &filter, mask, supervision, Some(outside)));
            match result {
                Ok(_) => std::process::exit(0),
                Err(error) => {
                    eprintln!("callgate: {error:#}");
                    std::process::exit(125)
                }
            }
        }
    }
}

/// The supervisor's way to the guardian.
struct Outside {
    to_guardian: File,
    guardian: Pid,
    group: Pid,
}

/// What the supervisor tells the guardian: a letter and a number.
enum Message {
    /// The command's process id.
    Started(i32),
    /// The command was stopped, and so should be we.
    Stopped,
    /// The command has ended with this status.
    Ended(u8),
}

impl Outside {
    fn tell(&mut self, message: &Message) {
        let (letter, number) = match message {
            Message::Started(pid) => (b'P', *pid),
            Message::Stopped => (b'S', 0),
            Message::Ended(status) => (b'E', i32::from(*status)),
        };
        let mut line = vec![letter];
        line.extend_from_slice(&number.to_ne_bytes());
        // If the guardian is gone, a signal has told us or will.
        let _ = self.to_guardian.write_all(&line);
    }
}

fn supervise(
    launch: &Launch,
    filter: &Filter,
    mask: SigSet,
    supervision: &mut dyn Supervision,
    mut outside: Option<Outside>,
) -> Result<u8> {
    let command = Command::new(&launch.command, &launch.environment)?;
    let killable = seccomp::knows_wait_killable();
    let (report, report_end) = pipe2(OFlag::O_CLOEXEC)?;
    let (go_end, go) = pipe2(OFlag::O_CLOEXEC)?;
    let is_init = outside.is_none();
    let terminal = File::open("/dev/tty")
        .ok()
        .filter(|tty| is_init && nix::unistd::tcgetpgrp(tty).is_ok_and(|foreground| foreground == getpgrp()));
    let setup = Setup {
        filter,
        killable,
        group: Some(outside.as_ref().map_or(0, |outside| outside.group.as_raw())),
        terminal: terminal.as_ref().map(AsRawFd::as_raw_fd),
        mask,
        without: &launch.without,
        report: report_end.as_raw_fd(),
        go: go_end.as_raw_fd(),
    };
    let child = process::start(&command, &setup).context("cannot start the command")?;
    let listener = listener_of(child, report, killable)?;
    drop((report_end, go_end, terminal));
    // The command has a table of its own now. What it leaves open must not stay open because of us.
    let null = File::options().read(true).write(true).open("/dev/null");
    if let Ok(null) = &null {
        let _ = nix::unistd::dup2_stdin(null);
        let _ = nix::unistd::dup2_stdout(null);
    }
    let guardian = outside.as_ref().map(|outside| outside.guardian.as_raw() as u32);
    if let Err(error) = supervision.begin(listener, child, guardian) {
        let _ = kill(child, Signal::SIGKILL);
        return Err(error);
    }
    if let Some(outside) = &mut outside {
        outside.tell(&Message::Started(child.as_raw()));
    }
    File::from(go).write_all(b"!").context("the command's process is gone")?;
    let status = look_after(child, supervision, &mut outside)?;
    Ok(status)
}

fn listener_of(child: Pid, report: OwnedFd, killable: bool) -> Result<Listener> {
    let mut report = File::from(report);
    let patience = Instant::now() + Duration::from_secs(30);
    // The child shares our descriptors, also the other end of this pipe: its death would go unnoticed.
    while poll(&mut [PollFd::new(report.as_fd(), PollFlags::POLLIN)], PollTimeout::from(100_u8))? == 0 {
        let gone = waitid(Id::Pid(child), WaitPidFlag::WEXITED | WaitPidFlag::WNOHANG | WaitPidFlag::WNOWAIT)
            .is_ok_and(|status| status != WaitStatus::StillAlive);
        anyhow::ensure!(!gone && Instant::now() < patience, "the command's process did not start");
    }
    let mut number = [0; 4];
    report.read_exact(&mut number)?;
    match i32::from_ne_bytes(number) {
        failed if failed < 0 => {
            let error = io::Error::from_raw_os_error(-failed);
            Err(error).context("cannot install the seccomp filter")
        }
        fd => Ok(Listener::new(process::adopt(fd), killable)),
    }
}

/// Waits for signals and for children until nothing of the workload is left.
fn look_after(command: Pid, supervision: &mut dyn Supervision, outside: &mut Option<Outside>) -> Result<u8> {
    let signals = SignalFd::with_flags(&SigSet::all(), SfdFlags::SFD_CLOEXEC | SfdFlags::SFD_NONBLOCK)?;
    let mut status = None;
    let mut was_stopped = false;
    loop {
        let (ended, none_left) = reap(command);
        status = status.or(ended);
        if let Some(code) = ended {
            supervision.command_ended();
            if !none_left && outside.is_none() {
                // The kernel ends the rest with us.
                supervision.end();
                return Ok(code);
            }
            if let (Some(outside), false) = (&mut *outside, none_left) {
                outside.tell(&Message::Ended(code));
            }
        }
        if let (Some(code), true) = (status, none_left) {
            supervision.end();
            if let Some(outside) = outside {
                outside.tell(&Message::Ended(code));
            }
            return Ok(code);
        }
        let stopped = status.is_none() && state_of(command) == Some('T');
        if stopped
            && !was_stopped
            && let Some(outside) = outside
        {
            outside.tell(&Message::Stopped);
        }
        was_stopped = stopped;
        wait_readable(&[signals.as_fd()], Duration::from_millis(if none_left { 20 } else { 500 }));
        while let Ok(Some(signal)) = signals.read_signal() {
            let number = signal.ssi_signo as i32;
            if let Some(outside) = outside
                && getppid() != outside.guardian
                && status.is_none()
            {
                // Whoever started us believes that it is over.
                end_all();
                supervision.end();
                std::process::exit(125);
            }
            if status.is_none() && outside.is_none() {
                forward(command, &signal, number);
            }
        }
    }
}

/// Reaps what has ended. Tells the command's status if it is among it, and whether no child is left.
fn reap(command: Pid) -> (Option<u8>, bool) {
    let mut found = None;
    let flags = WaitPidFlag::WEXITED | WaitPidFlag::WNOHANG | WaitPidFlag::__WNOTHREAD;
    loop {
        let pid = match waitid(Id::All, flags | WaitPidFlag::WNOWAIT | WaitPidFlag::__WALL) {
            Err(Errno::ECHILD) => return (found, true),
            Ok(WaitStatus::Exited(pid, _) | WaitStatus::Signaled(pid, ..)) => pid,
            Err(Errno::EINTR) => continue,
            // Nothing yet; or a stop, which belongs to the thread that holds it.
            _ => return (found, false),
        };
        match waitid(Id::Pid(pid), flags | WaitPidFlag::__WALL) {
            Ok(WaitStatus::Exited(_, code)) if pid == command => found = Some(code as u8),
            Ok(WaitStatus::Signaled(_, signal, _)) if pid == command => found = Some(128 + signal as i32 as u8),
            _ => {}
        }
    }
}

/// The process that was started, while its supervisor works.
fn guard(supervisor: Pid, mut messages: File) -> Result<u8> {
    let signals = SignalFd::with_flags(&SigSet::all(), SfdFlags::SFD_CLOEXEC | SfdFlags::SFD_NONBLOCK)?;
    let mut command = None;
    loop {
        wait_readable(&[signals.as_fd(), messages.as_fd()], Duration::from_secs(3600));
        while let Ok(Some(signal)) = signals.read_signal() {
            if let Some(command) = command {
                forward(command, &signal, signal.ssi_signo as i32);
            }
        }
        if !is_readable(messages.as_fd()) {
            continue;
        }
        let mut line = [0; 5];
        if messages.read_exact(&mut line).is_err() {
            // The other end is gone, and did not say that all is well.
            let failed = waitid(Id::Pid(supervisor), WaitPidFlag::WEXITED);
            end_all();
            if !matches!(failed, Ok(WaitStatus::Exited(_, 125))) {
                eprintln!("callgate: the supervisor has died; the command and what it started were ended");
            }
            return Ok(125);
        }
        let number = i32::from_ne_bytes([line[1], line[2], line[3], line[4]]);
        match line[0] {
            b'P' => command = Some(Pid::from_raw(number)),
            b'S' => {
                let _ = kill(getpid(), Signal::SIGSTOP);
                if let Some(command) = command {
                    let _ = kill(command, Signal::SIGCONT);
                }
            }
            _ => return Ok(number as u8),
        }
    }
}

/// Passes a signal on to the command, unless the terminal has sent it to the whole foreground group, or it is about us.
fn forward(command: Pid, signal: &siginfo, number: i32) {
    const SI_KERNEL: i32 = 0x80;
    let from_terminal = signal.ssi_code == SI_KERNEL && getpid().as_raw() != 1;
    if number == libc::SIGCHLD || from_terminal {
        return;
    }
    if let Ok(number) = Signal::try_from(number) {
        let _ = kill(command, number);
    }
}

/// Kills every child, and what then becomes our child, until there is none.
fn end_all() {
    let own = getpid().as_raw();
    loop {
        for entry in std::fs::read_dir("/proc").into_iter().flatten().flatten() {
            let Some(pid) = entry.file_name().to_str().and_then(|name| name.parse::<i32>().ok()) else { continue };
            if stat_field(pid, 1).and_then(|parent| parent.parse().ok()) == Some(own) {
                let _ = kill(Pid::from_raw(pid), Signal::SIGKILL);
            }
        }
        match waitid(Id::All, WaitPidFlag::WEXITED | WaitPidFlag::__WALL) {
            Ok(_) | Err(Errno::EINTR) => {}
            Err(_) => return,
        }
    }
}

fn state_of(pid: Pid) -> Option<char> {
    stat_field(pid.as_raw(), 0)?.chars().next()
}

/// A field of proc_pid_stat(5), counted from the state.
fn stat_field(pid: i32, index: usize) -> Option<String> {
    let text = std::fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    text.rsplit_once(')')?.1.split_whitespace().nth(index).map(str::to_owned)
}

fn wait_readable(fds: &[BorrowedFd<'_>], most: Duration) {
    let mut fds: Vec<PollFd<'_>> = fds.iter().map(|fd| PollFd::new(*fd, PollFlags::POLLIN)).collect();
    let _ = poll(&mut fds, PollTimeout::try_from(most).unwrap_or(PollTimeout::MAX));
}

fn is_readable(fd: BorrowedFd<'_>) -> bool {
    poll(&mut [PollFd::new(fd, PollFlags::POLLIN)], PollTimeout::ZERO).is_ok_and(|ready| ready > 0)
}
