//! Starts the command and looks after it: signals, orphans, job control, exit status.
//!
//! As the first process of a pid namespace we are the supervisor ourselves, and the kernel protects us: nothing inside can
//! signal us to death. Otherwise we are two. The process that was started stays as the *guardian*, in the place, session
//! and process group that the outside knows. It has forked the *supervisor*, which is the parent of the command and of what
//! the command leaves behind. If either of the two dies, the other ends the workload: what the supervisor leaves behind
//! becomes the guardian's child, and the supervisor sees its connection to the guardian end.
//!
//! *Sessions.* The command is in the session and process group that we were started in, and the supervisor is in a session
//! of its own (setsid(2)). So the terminal's signals, `kill 0` and the shell that started us reach the command as if we were
//! not there and never reach the supervisor, whose being the command's parent also does not change whether the command's
//! group is orphaned, and so whether Ctrl-Z may stop it (setpgid(2)). Only who leads a session cannot leave it: a first
//! process that does, as a container runtime makes it, gives up its terminal instead, and the command takes that along into
//! a new session.
//!
//! *Which thread waits for whom.* A process that is our child may at the same time be held with ptrace(2) by a thread of
//! ours. The kernel shows its stops to every thread of the tracer's process that waits for it, so the main thread only
//! looks (`WNOWAIT`), takes nothing but exits, and leaves stops to the thread that holds it.
//!
//! May depend on `sys`.

use std::ffi::{CString, OsString};
use std::fs::File;
use std::io::{self, Read, Write};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd, RawFd};
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use landlock::{CompatLevel, Compatible, Ruleset, RulesetAttr, Scope};
use nix::errno::Errno;
use nix::fcntl::OFlag;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::prctl;
use nix::sys::resource::{Resource, getrlimit, setrlimit};
use nix::sys::signal::{SigSet, SigmaskHow, Signal, kill, sigprocmask};
use nix::sys::signalfd::{SfdFlags, SignalFd};
use nix::sys::socket::{AddressFamily, MsgFlags, SockFlag, SockType, recv, send, socketpair};
use nix::sys::wait::WaitPidFlag;
use nix::unistd::{Pid, getpid, getppid, getsid, pipe2, setsid};

use crate::intercept::calls::Protected;
use crate::log;
use crate::sys::notify::Listener;
use crate::sys::process::{self, Command, Forked, Sent, Session, Setup, Timers};
use crate::sys::seccomp::{self, Filter};
use crate::sys::wait::{Change, TRACEES, Whom, wait};

/// What is to be run, and under what.
#[derive(Debug)]
pub struct Launch {
    /// The command and its arguments.
    pub command: Vec<OsString>,
    /// Its environment.
    pub environment: Vec<CString>,
    /// Capabilities that it must never have, by number (capabilities(7)).
    pub without: Vec<u32>,
}

/// Waits until the command's process is under its filter.
pub type Awaited<'a> = Box<dyn FnOnce() -> Result<Listener> + 'a>;

/// What supervises while the command runs.
pub trait Supervision {
    /// What the command is put under.
    ///
    /// # Errors
    /// It cannot be made.
    fn filter(&self, protected: Protected) -> Result<Filter>;
    /// Takes the listener and begins to answer. The command's process is there, and waits; it puts itself under its filter
    /// while we do what can be done without the listener.
    ///
    /// # Errors
    /// The command is then not run.
    fn begin(&mut self, listener: Awaited<'_>, command: Pid, guardian: Option<u32>) -> Result<()>;
    /// Somebody sent us SIGHUP. Whether that was all: else it is for the command. `sender`: the process, if it could be one
    /// of the workload.
    fn hang_up(&mut self, sender: Option<u32>) -> bool;
    /// The command has ended, and some of its descendants go on.
    fn command_ended(&mut self);
    /// Nothing of the workload is left.
    fn end(&mut self);
}

/// Runs the command and returns its exit status: its own, or 128+n for signal n. What it is supervised by is prepared in the
/// process that will need it: the guardian stays as small as it can be, and what signals do to a process that has not got
/// beyond reading its policy they do to both.
///
/// # Errors
/// Our own failures, before the command has begun. Where there are two of us, it is the supervisor in which this returns them,
/// for it to say them; the guardian then returns 125.
pub fn run<S: Supervision>(launch: &Launch, prepare: impl FnOnce() -> Result<S>) -> Result<u8> {
    process::expect_children();
    let timers = Timers::take();
    if getpid().as_raw() == 1 {
        return supervise(launch, &mut prepare()?, timers, None);
    }
    let (to_supervisor, to_guardian) =
        socketpair(AddressFamily::Unix, SockType::SeqPacket, None, SockFlag::SOCK_CLOEXEC)?;
    let guardian = getpid();
    prctl::set_child_subreaper(true)?;
    match process::fork().context("cannot start the supervisor")? {
        Forked::Parent(supervisor) => {
            drop(to_guardian);
            guard(supervisor, &to_supervisor)
        }
        Forked::Child => {
            drop(to_supervisor);
            prctl::set_pdeathsig(Signal::SIGKILL)?;
            let parent = getppid();
            if parent != guardian && parent.as_raw() != 0 {
                std::process::exit(125); // it was gone before; 0 is one in another pid namespace
            }
            prctl::set_child_subreaper(true)?;
            let mut supervision = prepare()?;
            supervise(launch, &mut supervision, timers, Some(Outside { socket: to_guardian, guardian }))?;
            std::process::exit(0)
        }
    }
}

/// The supervisor's way to the guardian.
struct Outside {
    socket: OwnedFd,
    guardian: Pid,
}

/// What the supervisor tells the guardian.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum News {
    /// The supervisor is prepared, and starts the command once the guardian is [`Order::Ready`].
    Prepared,
    /// The command was stopped by this signal, and so should be the guardian, unless it has gone on in the meantime: it had
    /// for the time with this number, as far as we know.
    Stopped(i32, u32),
    /// The guardian has gone on, for the time with this number, and the command is stopped by this signal: still, or again.
    StillStopped(i32, u32),
    /// The command has ended with this status; something that it has left behind goes on.
    Ended(u8),
    /// The command has ended with this status, and nothing is left.
    Over(u8),
}

/// What the guardian tells the supervisor.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Order {
    /// The guardian passes signals on from now on.
    Ready,
    /// The guardian has got this signal.
    Signal(Sent),
    /// The guardian was stopped, and goes on again, for the time with this number.
    Resumed(u32),
    /// The command is to go on as well, unless the guardian was stopped again since that time.
    Continue(u32),
}

impl News {
    const LENGTH: usize = 9;

    fn encode(self) -> [u8; Self::LENGTH] {
        let (letter, number, time) = match self {
            Self::Prepared => (b'P', 0, 0),
            Self::Stopped(signal, time) => (b'S', signal, time),
            Self::StillStopped(signal, time) => (b's', signal, time),
            Self::Ended(status) => (b'E', i32::from(status), 0),
            Self::Over(status) => (b'O', i32::from(status), 0),
        };
        let mut bytes = [letter; Self::LENGTH];
        bytes[1..5].copy_from_slice(&number.to_ne_bytes());
        bytes[5..].copy_from_slice(&time.to_ne_bytes());
        bytes
    }

    fn decode(bytes: [u8; Self::LENGTH]) -> Self {
        let number = i32::from_ne_bytes([bytes[1], bytes[2], bytes[3], bytes[4]]);
        let time = u32::from_ne_bytes([bytes[5], bytes[6], bytes[7], bytes[8]]);
        match bytes[0] {
            b'P' => Self::Prepared,
            b'S' => Self::Stopped(number, time),
            b's' => Self::StillStopped(number, time),
            b'E' => Self::Ended(number as u8),
            _ => Self::Over(number as u8),
        }
    }
}

impl Order {
    const LENGTH: usize = 24;

    fn encode(self) -> [u8; Self::LENGTH] {
        let mut bytes = [0; Self::LENGTH];
        // No signal has such a number.
        let sent = match self {
            Self::Signal(sent) => sent,
            Self::Resumed(time) => Sent { number: 0, pid: time, ..Sent::default() },
            Self::Continue(time) => Sent { number: -1, pid: time, ..Sent::default() },
            Self::Ready => Sent { number: -2, ..Sent::default() },
        };
        bytes[..4].copy_from_slice(&sent.number.to_ne_bytes());
        bytes[4..8].copy_from_slice(&sent.code.to_ne_bytes());
        bytes[8..12].copy_from_slice(&sent.pid.to_ne_bytes());
        bytes[12..16].copy_from_slice(&sent.uid.to_ne_bytes());
        bytes[16..].copy_from_slice(&sent.value.to_ne_bytes());
        bytes
    }

    fn decode(bytes: [u8; Self::LENGTH]) -> Self {
        let word = |at: usize| u32::from_ne_bytes([bytes[at], bytes[at + 1], bytes[at + 2], bytes[at + 3]]);
        match word(0) as i32 {
            0 => return Self::Resumed(word(8)),
            -1 => return Self::Continue(word(8)),
            -2 => return Self::Ready,
            _ => {}
        }
        let mut value = [0; 8];
        value.copy_from_slice(&bytes[16..]);
        let value = u64::from_ne_bytes(value);
        Self::Signal(Sent { number: word(0) as i32, code: word(4) as i32, pid: word(8), uid: word(12), value })
    }
}

impl Outside {
    fn tell(&self, news: News) {
        // If the guardian is gone, the socket will say so.
        let _ = send(self.socket.as_raw_fd(), &news.encode(), MsgFlags::MSG_NOSIGNAL);
    }

    /// Waits until the guardian is ready.
    ///
    /// # Errors
    /// It is gone.
    fn wait_until_ready(&self) -> Result<(), Errno> {
        while message(&self.socket, MsgFlags::empty())?.map(Order::decode) != Some(Order::Ready) {}
        Ok(())
    }

    /// The next order, if there is one; an error if the guardian is gone.
    fn order(&self) -> Result<Option<Order>, Errno> {
        Ok(message(&self.socket, MsgFlags::MSG_DONTWAIT)?.map(Order::decode))
    }
}

/// The next message; `None` if there is none yet, an error if the other end is gone.
fn message<const LENGTH: usize>(socket: &OwnedFd, flags: MsgFlags) -> Result<Option<[u8; LENGTH]>, Errno> {
    let mut bytes = [0; LENGTH];
    loop {
        return match recv(socket.as_raw_fd(), &mut bytes, flags) {
            Ok(length) if length == LENGTH => Ok(Some(bytes)),
            Err(Errno::EAGAIN | Errno::EINTR) => Ok(None),
            // The other end went without reading all that we had sent (unix_release_sock, net/unix/af_unix.c). That is said
            // once, and before what it has sent.
            Err(Errno::ECONNRESET) => continue,
            _ => Err(Errno::EPIPE),
        };
    }
}

fn supervise(
    launch: &Launch,
    supervision: &mut dyn Supervision,
    timers: Timers,
    outside: Option<Outside>,
) -> Result<u8> {
    seccomp::check_sizes().context("this kernel cannot hand system calls to a supervisor")?;
    process::hide();
    let mut mask = SigSet::empty();
    sigprocmask(SigmaskHow::SIG_SETMASK, Some(&SigSet::all()), Some(&mut mask))?;
    if let Some(outside) = &outside {
        // From now on its end is noticed otherwise, and then the command is ended first.
        prctl::set_pdeathsig(None)?;
        outside.tell(News::Prepared);
    }
    let filter = supervision.filter(Protected { group: outside.as_ref().map(|_| getpid().as_raw() as u32) })?;
    let command = Command::new(&launch.command, launch.environment.clone())?;
    let killable = seccomp::knows_wait_killable();
    let (report, report_end) = pipe2(OFlag::O_CLOEXEC)?;
    let report = File::from(report);
    let (go_end, go) = pipe2(OFlag::O_CLOEXEC)?;
    let leads_session = outside.is_none() && getsid(None) == Ok(getpid());
    let terminal = if leads_session { Terminal::given_up() } else { Terminal::None };
    let domain = domain();
    let setup = Setup {
        filter: &filter,
        killable,
        session: if leads_session { Session::Own(terminal.number()) } else { Session::Ours },
        mask,
        timers,
        without: &launch.without,
        domain: domain.as_ref().map(AsFd::as_fd),
        report: report_end.as_raw_fd(),
        go: go_end.as_raw_fd(),
        go_writer: go.as_raw_fd(),
    };
    let child = process::start(&command, &setup).context("cannot start the command")?;
    let apart = leads_session || setsid().is_ok();
    be_robust();
    // Until it has a table of descriptors of its own none of these numbers may become that of something else.
    let mut shared = Some((report, report_end, go_end, terminal));
    let listener = Box::new(|| {
        let (report, ..) = shared.as_ref().context("made twice")?;
        let listener = listener_of(child, report, killable)?;
        shared = None;
        process::forget_streams(&[0, 1]); // what the command leaves open must not stay open because of us
        Ok(listener)
    });
    let guardian = outside.as_ref().map(|outside| outside.guardian.as_raw() as u32);
    if let Err(error) = supervision.begin(listener, child, guardian) {
        let _ = kill(child, Signal::SIGKILL);
        return Err(error);
    }
    process::close_inherited();
    process::expect_ends_only();
    if outside.is_some() {
        watch_stops(child).context("cannot start a thread")?;
    }
    if let Some(outside) = &outside
        && outside.wait_until_ready().is_err()
    {
        abandoned(supervision);
    }
    File::from(go).write_all(b"!").context("the command's process is gone")?;
    look_after(child, supervision, outside.as_ref(), apart)
}

/// What keeps the workload from the container's other processes, which come from outside of it (`docker exec`) and are under
/// no filter: who is in a Landlock domain can neither trace nor write processes out of it (`hook_ptrace_access_check`,
/// security/landlock/task.c), nor, as there is no domain without some restriction, signal them. Linux 6.12. In a machine's own
/// pid namespace there are others whom a program may well want to signal.
fn domain() -> Option<OwnedFd> {
    const PROC_PID_INIT_INO: u64 = 0xEFFF_FFFC; // include/uapi/linux/nsfs.h
    let namespace = nix::sys::stat::stat("/proc/self/ns/pid").ok()?;
    if namespace.st_ino == PROC_PID_INIT_INO {
        return None;
    }
    let ruleset = Ruleset::default().set_compatibility(CompatLevel::HardRequirement).scope(Scope::Signal);
    match ruleset.and_then(Ruleset::create) {
        Ok(ruleset) => ruleset.into(),
        Err(error) => {
            tracing::info!("the workload may trace processes of its user that come from outside: {error}");
            None
        }
    }
}

/// The terminal that we have given up, for the command to take.
enum Terminal {
    None,
    Standard(RawFd),
    Opened(File),
}

impl Terminal {
    fn given_up() -> Self {
        let own = getsid(None).ok();
        let terminal = match (0..3).find(|fd| own.is_some() && process::terminal_session(*fd) == own) {
            Some(fd) => Self::Standard(fd),
            None => File::options().read(true).write(true).open("/dev/tty").map_or(Self::None, Self::Opened),
        };
        if let Some(fd) = terminal.number() {
            process::leave_terminal(fd);
        }
        terminal
    }

    fn number(&self) -> Option<RawFd> {
        match self {
            Self::None => None,
            Self::Standard(fd) => Some(*fd),
            Self::Opened(file) => Some(file.as_raw_fd()),
        }
    }
}

/// The workload's limits are not for us, as far as we may change that: it could use up what we need. Where memory runs out,
/// the workload is to go first.
fn be_robust() {
    if let Ok((soft, hard)) = getrlimit(Resource::RLIMIT_NOFILE)
        && soft < hard
    {
        let _ = setrlimit(Resource::RLIMIT_NOFILE, hard, hard);
    }
    let _ = std::fs::write("/proc/self/oom_score_adj", "-1000");
}

fn listener_of(child: Pid, mut report: &File, killable: bool) -> Result<Listener> {
    let patience = Instant::now() + Duration::from_secs(30);
    // The child shares our descriptors, also the other end of this pipe: its death would go unnoticed.
    while poll(&mut [PollFd::new(report.as_fd(), PollFlags::POLLIN)], PollTimeout::from(100_u8))? == 0 {
        let gone = wait(Whom::One(child), WaitPidFlag::WEXITED | WaitPidFlag::WNOHANG | WaitPidFlag::WNOWAIT)
            .is_ok_and(|change| change.is_some());
        anyhow::ensure!(!gone && Instant::now() < patience, "the command's process did not start");
    }
    let mut number = [0; 4];
    report.read_exact(&mut number)?;
    match i32::from_ne_bytes(number) {
        // seccomp(2): there is one listener at the most for a process, whoever of its ancestors has it.
        failed if -failed == libc::EBUSY => anyhow::bail!(
            "another supervisor is above already, callgate or another user of seccomp notifications: there can be only one, \
             so the command cannot be put under a second"
        ),
        failed if failed < 0 => {
            let error = io::Error::from_raw_os_error(-failed);
            Err(error).context("cannot put the command under the seccomp filter")
        }
        fd => Ok(Listener::new(process::adopt(fd), killable)),
    }
}

/// Waits for signals and for children until nothing of the workload is left. `apart`: we are in another session than the
/// command.
fn look_after(command: Pid, supervision: &mut dyn Supervision, outside: Option<&Outside>, apart: bool) -> Result<u8> {
    let signals = SignalFd::with_flags(&SigSet::all(), SfdFlags::SFD_CLOEXEC | SfdFlags::SFD_NONBLOCK)?;
    let mut status = None;
    let mut told_stop = false;
    let mut resumed = 0;
    loop {
        let (ended, none_left) = reap(command);
        if let Some(code) = ended {
            status = ended;
            match outside {
                // The kernel ends the rest with us: but only when we are gone, and a thread of ours that waits for a file system
                // of the workload's does not even die before who serves that (`request_wait_answer`, fs/fuse/dev.c).
                None => {
                    supervision.end();
                    let _ = kill(Pid::from_raw(-1), Signal::SIGKILL);
                    return Ok(code);
                }
                Some(outside) if !none_left => {
                    supervision.command_ended();
                    let_go_of_stderr();
                    outside.tell(News::Ended(code));
                }
                Some(_) => {}
            }
        }
        if let (Some(code), true) = (status, none_left) {
            supervision.end();
            if let Some(outside) = outside {
                outside.tell(News::Over(code));
            }
            return Ok(code);
        }
        let running = status.is_none();
        let stop = if running && outside.is_some() { stop_of(command) } else { Stop::None };
        match (stop, outside) {
            (Stop::By(signal), Some(outside)) if !told_stop => {
                told_stop = true;
                outside.tell(News::Stopped(signal, resumed));
            }
            (Stop::None, _) => told_stop = false,
            _ => {}
        }
        // While one of our threads holds the command, nobody tells us that it is also stopped otherwise.
        let most = (stop == Stop::Held).then_some(Duration::from_millis(20));
        match outside {
            // Until the command's end, that is: then the guardian may go.
            Some(outside) if running => wait_readable(&[signals.as_fd(), outside.socket.as_fd()], most),
            _ => wait_readable(&[signals.as_fd()], most),
        }
        while let Ok(Some(signal)) = signals.read_signal() {
            let signal = sent(&signal);
            if running && outside.is_none() && !(is_hang_up(&signal) && is_order(&signal, supervision)) {
                forward(command, &signal, apart);
            }
        }
        while let (Some(outside), true) = (outside, running) {
            match outside.order() {
                Ok(None) => break,
                // The filter keeps the workload from sending the guardian any but such as come of input, whose codes are
                // positive (`F_SETSIG`, fcntl(2)).
                Ok(Some(Order::Signal(signal)))
                    if is_hang_up(&signal) && signal.code <= 0 && supervision.hang_up(None) => {}
                Ok(Some(Order::Signal(signal))) => process::send_on(command, &signal),
                Ok(Some(Order::Resumed(time))) => {
                    resumed = time;
                    let stop = stop_of(command);
                    told_stop = stop != Stop::None;
                    if let Stop::By(signal) = stop {
                        outside.tell(News::StillStopped(signal, time));
                    }
                }
                Ok(Some(Order::Continue(time))) if time == resumed => {
                    let _ = kill(command, Signal::SIGCONT);
                }
                Ok(Some(Order::Continue(_) | Order::Ready)) => {}
                Err(_) => abandoned(supervision),
            }
        }
    }
}

/// The guardian is gone: whoever started us believes that it is over.
fn abandoned(supervision: &mut dyn Supervision) -> ! {
    end_all();
    supervision.end();
    std::process::exit(125)
}

/// Has a thread wake who looks after the command when that stops, while it is stopped, and when it goes on. SIGCHLD would do
/// so as well, but also at each exec of the whole workload (ptrace(2)), and cost each of them some microseconds.
fn watch_stops(command: Pid) -> io::Result<()> {
    const LOOK: Duration = Duration::from_millis(20);
    let wake = || kill(getpid(), Signal::SIGCHLD);
    let watch = move || {
        let flags = WaitPidFlag::WSTOPPED | WaitPidFlag::WEXITED | WaitPidFlag::WNOWAIT;
        let mut stopped = false;
        loop {
            // What is stopped could go on and be stopped again without our noticing, if we waited for either.
            match wait(Whom::One(command), if stopped { flags | WaitPidFlag::WNOHANG } else { flags }) {
                Ok(Some((_, Change::Stopped(_)))) => {
                    stopped = true;
                    let _ = wake();
                    std::thread::sleep(LOOK);
                }
                Ok(None) => {
                    stopped = false;
                    let _ = wake();
                }
                // Held by another thread of ours; how it is otherwise shows afterwards.
                Ok(Some((_, change))) if !change.is_end() => std::thread::sleep(LOOK),
                Err(Errno::EINTR) => {}
                _ => return,
            }
        }
    };
    std::thread::Builder::new().name("callgate-stops".into()).spawn(watch).map(drop)
}

/// Whether the command is stopped, as its parent sees it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Stop {
    None,
    /// By this signal.
    By(i32),
    /// By one of our threads, which verifies what it does.
    Held,
}

fn stop_of(command: Pid) -> Stop {
    let flags = WaitPidFlag::WSTOPPED | WaitPidFlag::WNOHANG | WaitPidFlag::WNOWAIT;
    match wait(Whom::One(command), flags | TRACEES) {
        Ok(Some((_, Change::Stopped(signal)))) => Stop::By(signal),
        Ok(Some((_, Change::Event(_) | Change::Signal(_) | Change::Syscall))) => Stop::Held,
        _ => Stop::None,
    }
}

/// Whoever reads what we wrote there waits for the end, which has come as far as the command is concerned; what it has left
/// behind has closed it, or keeps it open itself. What happens to a file is nobody's loss.
fn let_go_of_stderr() {
    use nix::sys::stat::{SFlag, fstat};
    let kind =
        fstat(io::stderr()).map_or(SFlag::empty(), |stat| SFlag::from_bits_truncate(stat.st_mode) & SFlag::S_IFMT);
    if kind != SFlag::S_IFREG {
        process::forget_streams(&[2]);
    }
}

/// Reaps what has ended. Tells the command's status if it is among it, and whether no child is left.
fn reap(command: Pid) -> (Option<u8>, bool) {
    let mut found = None;
    let flags = WaitPidFlag::WEXITED | WaitPidFlag::WNOHANG | WaitPidFlag::__WNOTHREAD;
    loop {
        let pid = match wait(Whom::Any, flags | WaitPidFlag::WNOWAIT | WaitPidFlag::__WALL) {
            Err(Errno::ECHILD) => return (found, true),
            Ok(Some((pid, change))) if change.is_end() => pid,
            Err(Errno::EINTR) => continue,
            // Nothing yet; or a stop, which belongs to the thread that holds it.
            _ => return (found, false),
        };
        match wait(Whom::One(pid), flags | WaitPidFlag::__WALL) {
            Ok(Some((_, Change::Exited(code)))) if pid == command => found = Some(code as u8),
            Ok(Some((_, Change::Killed(signal)))) if pid == command => found = Some(128 + signal as u8),
            _ => {}
        }
    }
}

/// The process that was started, while its supervisor works.
struct Guardian<'a> {
    socket: &'a OwnedFd,
    supervisor: Pid,
    signals: SignalFd,
    leads_session: bool,
    /// The supervisor is dead.
    bereft: bool,
    /// The terminal has told the group to stop, and so the command as well, since we went on the last time.
    stop_key: bool,
    /// How often we have gone on: what was said about an earlier time is out of date.
    resumed: u32,
}

fn guard(supervisor: Pid, socket: &OwnedFd) -> Result<u8> {
    if !is_prepared(supervisor, socket)? {
        return Ok(bereaved(supervisor, false));
    }
    sigprocmask(SigmaskHow::SIG_SETMASK, Some(&SigSet::all()), None)?;
    process::hide();
    process::close_inherited();
    process::forget_streams(&[0, 1]);
    let signals = SignalFd::with_flags(&SigSet::all(), SfdFlags::SFD_CLOEXEC | SfdFlags::SFD_NONBLOCK)?;
    let leads_session = getsid(None) == Ok(getpid());
    let mut guardian =
        Guardian { socket, supervisor, signals, leads_session, bereft: false, stop_key: false, resumed: 0 };
    guardian.order(Order::Ready);
    loop {
        wait_readable(&[guardian.signals.as_fd(), socket.as_fd()], None);
        guardian.pass_signals_on(true);
        loop {
            match message(socket, MsgFlags::MSG_DONTWAIT).map(|bytes| bytes.map(News::decode)) {
                Ok(None) if !guardian.bereft => break,
                Ok(Some(News::Stopped(signal, time))) => {
                    // The whole group may have been stopped, and we with it, and have gone on since.
                    guardian.pass_signals_on(true);
                    if time == guardian.resumed {
                        guardian.stop(signal);
                    }
                }
                Ok(Some(News::StillStopped(signal, time))) if time == guardian.resumed => {
                    guardian.pass_signals_on(true);
                    if guardian.stop_key { guardian.stop(signal) } else { guardian.order(Order::Continue(time)) }
                }
                Ok(Some(News::StillStopped(..))) => {}
                Ok(Some(News::Ended(status))) => return Ok(status),
                Ok(Some(News::Over(status))) => {
                    let _ = wait(Whom::One(supervisor), WaitPidFlag::WEXITED);
                    return Ok(status);
                }
                // (Until it runs, the command has the socket as well.)
                Ok(None | Some(News::Prepared)) | Err(_) => return Ok(bereaved(supervisor, true)),
            }
        }
    }
}

/// Waits until the supervisor is prepared; false if it is gone. Until then signals do to us what they do to any process, save
/// that the other, which was stopped with our group, goes on when we do.
fn is_prepared(supervisor: Pid, socket: &OwnedFd) -> Result<bool> {
    let continued = SigSet::from(Signal::SIGCONT);
    sigprocmask(SigmaskHow::SIG_BLOCK, Some(&continued), None)?;
    let signals = SignalFd::with_flags(&continued, SfdFlags::SFD_CLOEXEC | SfdFlags::SFD_NONBLOCK)?;
    loop {
        wait_readable(&[signals.as_fd(), socket.as_fd()], None);
        while let Ok(Some(_)) = signals.read_signal() {
            let _ = kill(supervisor, Signal::SIGCONT);
        }
        match message(socket, MsgFlags::MSG_DONTWAIT).map(|bytes| bytes.map(News::decode)) {
            Ok(Some(News::Prepared)) => return Ok(true),
            Ok(_) => {}
            Err(_) => return Ok(false),
        }
    }
}

/// The supervisor is gone, and did not say that all is well. `begun`: it may have started the command.
fn bereaved(supervisor: Pid, begun: bool) -> u8 {
    let failed = wait(Whom::One(supervisor), WaitPidFlag::WEXITED);
    let so = if begun { "the command and what it started were ended" } else { "the command was not started" };
    if begun {
        end_all();
    }
    let how = match failed {
        Ok(Some((_, Change::Exited(125)))) => return 125, // it has said why
        Ok(Some((_, Change::Killed(signal)))) => format!("was killed by {}", named(signal)),
        Ok(Some((_, Change::Exited(status)))) => format!("has ended with status {status}"),
        _ => "is gone".to_owned(),
    };
    log::say(&format!("the supervisor {how}; {so}"));
    125
}

impl Guardian<'_> {
    fn order(&self, order: Order) {
        // A supervisor that does not keep up is not waited for.
        let _ = send(self.socket.as_raw_fd(), &order.encode(), MsgFlags::MSG_NOSIGNAL | MsgFlags::MSG_DONTWAIT);
    }

    /// Passes on what has come, save SIGCONT unless `also_continue`.
    fn pass_signals_on(&mut self, also_continue: bool) {
        while let Ok(Some(signal)) = self.signals.read_signal() {
            let signal = sent(&signal);
            if signal.number == libc::SIGCHLD {
                let flags = WaitPidFlag::WEXITED | WaitPidFlag::WNOHANG | WaitPidFlag::WNOWAIT;
                self.bereft |= wait(Whom::One(self.supervisor), flags) != Ok(None);
            }
            if reached_the_group(&signal, self.leads_session) {
                self.stop_key |= matches!(signal.number, libc::SIGTSTP | libc::SIGTTIN | libc::SIGTTOU);
            } else if !is_about_us(&signal) && (also_continue || signal.number != libc::SIGCONT) {
                self.order(Order::Signal(signal));
            }
            if also_continue && signal.number == libc::SIGCONT {
                self.goes_on();
            }
        }
    }

    /// Stops as the command was stopped, until we are told to go on. Then the command was as well, if the whole group was
    /// told; else it is not running yet. But it may also have gone on and be stopped again already. Only the supervisor can
    /// look, and only we can tell.
    fn stop(&mut self, signal: i32) {
        self.stop_key = false;
        if let Ok(signal) = Signal::try_from(signal) {
            process::stop_by(signal);
        }
        self.pass_signals_on(false);
        self.goes_on();
    }

    /// We were stopped, by ourselves or with the group, and go on: what was said before is out of date.
    fn goes_on(&mut self) {
        self.resumed = self.resumed.wrapping_add(1);
        self.order(Order::Resumed(self.resumed));
    }
}

fn named(signal: i32) -> String {
    Signal::try_from(signal).map_or_else(|_| format!("signal {signal}"), |signal| signal.to_string())
}

fn sent(signal: &nix::sys::signalfd::siginfo) -> Sent {
    Sent {
        number: signal.ssi_signo as i32,
        code: signal.ssi_code,
        pid: signal.ssi_pid,
        uid: signal.ssi_uid,
        value: signal.ssi_ptr,
    }
}

/// Passes a signal of the first process on to the command.
fn forward(command: Pid, signal: &Sent, apart: bool) {
    if !is_about_us(signal) && (apart || !reached_the_group(signal, false)) {
        process::send_on(command, signal);
    }
}

/// Our children, or (where we gave up the terminal) we ourselves are the cause.
fn is_about_us(signal: &Sent) -> bool {
    signal.number == libc::SIGCHLD || signal.pid == std::process::id()
}

/// Whether somebody has sent SIGHUP, and not a terminal that is no more.
fn is_hang_up(signal: &Sent) -> bool {
    signal.number == libc::SIGHUP && signal.code != SI_KERNEL && !is_about_us(signal)
}

/// Whether a SIGHUP of the first process was an order. Of a pid namespace's first process the kernel keeps no signal that it
/// waits for, and the filter none either. Who has sent it with kill(2) is known, if somebody inside; with rt_sigqueueinfo(2)
/// one says oneself.
fn is_order(signal: &Sent, supervision: &mut dyn Supervision) -> bool {
    signal.code == libc::SI_USER && supervision.hang_up(Some(signal.pid).filter(|sender| *sender != 0))
}

/// The kernel itself sends the signal (sigaction(2)).
const SI_KERNEL: i32 = 0x80;

/// Whether the terminal has sent a signal to the whole process group, and so to the command as well. When it hangs up,
/// however, it tells only who leads the session (tty_signal_session_leader, drivers/tty/tty_jobctrl.c).
fn reached_the_group(signal: &Sent, leads_session: bool) -> bool {
    let by_terminal = match signal.number {
        libc::SIGHUP | libc::SIGCONT => !leads_session,
        libc::SIGINT | libc::SIGQUIT | libc::SIGTSTP | libc::SIGTTIN | libc::SIGTTOU | libc::SIGWINCH => true,
        _ => false,
    };
    signal.code == SI_KERNEL && by_terminal
}

/// Kills every child, and what then becomes our child, until there is none.
fn end_all() {
    loop {
        for child in process::children() {
            let _ = kill(child, Signal::SIGKILL);
        }
        let mut flags = WaitPidFlag::WEXITED | WaitPidFlag::__WALL;
        loop {
            match wait(Whom::Any, flags) {
                Err(Errno::ECHILD) => return,
                Ok(None) => break,
                Ok(_) | Err(_) => flags |= WaitPidFlag::WNOHANG,
            }
        }
    }
}

/// Waits until one of these can be read, for `most` at the most, if there is a limit.
fn wait_readable(fds: &[BorrowedFd<'_>], most: Option<Duration>) {
    let mut fds: Vec<PollFd<'_>> = fds.iter().map(|fd| PollFd::new(*fd, PollFlags::POLLIN)).collect();
    let most = most.map_or(PollTimeout::NONE, |most| PollTimeout::try_from(most).unwrap_or(PollTimeout::MAX));
    let _ = poll(&mut fds, most);
}
