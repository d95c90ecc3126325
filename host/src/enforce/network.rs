//! connect, bind, listen, accept and send, performed on the caller's own socket from the private copy.

use std::io;
use std::os::fd::AsFd;
use std::time::{Duration, Instant};

use nix::errno::Errno;
use nix::fcntl::{AtFlags, FcntlArg, OFlag, fcntl};
use nix::poll::PollFlags;
use nix::sys::stat::{Mode, SFlag, fstat, fstatat, umask};

use crate::enforce::waiting::{self, Woken};
use crate::event::Address;
use crate::intercept::caller::Caller;
use crate::intercept::network::{Held, Message, Target};
use crate::intercept::path::{View, same_file};
use crate::sys::credentials::{self, Identity};
use crate::sys::notify::{Answer, Listener};
use crate::sys::{pidfd, process, socket};

/// What a performed call came to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Performed {
    /// The answer to give.
    Answer(Answer),
    /// A signal has to be handled first; afterwards the call may start again (or not).
    Interrupted {
        /// Whether `SA_RESTART` restarts it.
        restartable: bool,
    },
    /// The caller is gone.
    Gone,
    /// Something other than what was decided on came to be: the caller must be killed.
    Mismatch,
}

impl From<io::Result<i64>> for Performed {
    fn from(result: io::Result<i64>) -> Self {
        Self::Answer(match result {
            Ok(value) => Answer::Value(value),
            Err(error) => Answer::Errno(error.raw_os_error().unwrap_or(libc::EIO)),
        })
    }
}

/// What performing a call needs of its surroundings.
#[derive(Debug)]
pub struct Desk<'a> {
    /// The listener.
    pub listener: &'a Listener,
    /// Our view of files.
    pub view: &'a View,
    /// Who we are.
    pub own: &'a Identity,
    /// Capabilities that the workload was never given, as bits.
    pub withheld: u64,
    /// The notification.
    pub id: u64,
    /// The caller.
    pub caller: &'a Caller,
}

impl Desk<'_> {
    /// Runs a call with the caller's rights, where those decide about it and are not ours.
    fn as_caller<T>(&self, work: impl FnOnce() -> io::Result<T>) -> io::Result<T> {
        let theirs = &self.caller.status.identity;
        let same = theirs.uid == self.own.uid
            && theirs.gid == self.own.gid
            && theirs.groups == self.own.groups
            && theirs.capabilities == self.own.capabilities & !self.withheld;
        if same { work() } else { credentials::run_as(self.own, theirs, work)? }
    }
}

/// connect(2).
pub fn connect(desk: &Desk<'_>, held: &Held, target: &Target) -> Performed {
    let rights_matter = !matches!(target.address, Address::Ipv4 { .. } | Address::Ipv6 { .. } | Address::Unspecified);
    let attempt = || {
        let _staying = target.file.is_some().then(process::staying);
        let work = || socket::connect(&held.fd, &target.bytes);
        if rights_matter { desk.as_caller(work) } else { work() }
    };
    let connects = held.socket.kind == libc::SOCK_STREAM as u32 || held.socket.kind == libc::SOCK_SEQPACKET as u32;
    if !connects || !held.blocks() {
        return attempt().into();
    }
    let timeout = socket::timeout_us(&held.fd, libc::SO_SNDTIMEO).unwrap_or(0);
    let deadline = (timeout > 0).then(|| Instant::now() + Duration::from_micros(timeout as u64));
    let unix = i32::from(held.socket.family) == libc::AF_UNIX;
    let mut first = true;
    loop {
        // connect(2) has no flag for not waiting, only the socket has; it is set for as long as the call takes.
        let result = without_blocking(held, attempt);
        let error = result.as_ref().err().and_then(io::Error::raw_os_error);
        let events = match error {
            Some(libc::EINPROGRESS | libc::EALREADY) => PollFlags::POLLOUT,
            Some(libc::EAGAIN) if unix => PollFlags::empty(),
            // An attempt that went well in the meantime, if it was ours.
            Some(libc::EISCONN) if !first && !unix => return Performed::Answer(Answer::Value(0)),
            _ => return result.into(),
        };
        first = false;
        match waiting::until_ready(desk.listener, desk.id, desk.caller, held.fd.as_fd(), events, deadline) {
            Woken::Ready => {}
            Woken::Gone => return Performed::Gone,
            // sock_intr_errno (include/net/sock.h): with a time limit the call does not start again.
            Woken::Signal => return Performed::Interrupted { restartable: timeout == 0 },
            Woken::TimedOut if unix => return Performed::Answer(Answer::Errno(libc::EAGAIN)),
            Woken::TimedOut => return Performed::Answer(Answer::Errno(libc::EINPROGRESS)),
        }
    }
}

fn without_blocking<T>(held: &Held, work: impl FnOnce() -> io::Result<T>) -> io::Result<T> {
    let flags = OFlag::from_bits_retain(fcntl(&held.fd, FcntlArg::F_GETFL)?);
    fcntl(&held.fd, FcntlArg::F_SETFL(flags | OFlag::O_NONBLOCK))?;
    let result = work();
    fcntl(&held.fd, FcntlArg::F_SETFL(flags))?;
    result
}

/// bind(2).
pub fn bind(desk: &Desk<'_>, held: &Held, target: &Target) -> Performed {
    if let Some(parent) = &target.file {
        return bind_to_path(desk, held, target, parent.as_fd());
    }
    let unprivileged = matches!(target.address,
        Address::Ipv4 { port, .. } | Address::Ipv6 { port, .. } if port == 0 || port >= 1024);
    let work = || socket::bind(&held.fd, &target.bytes);
    if unprivileged { work() } else { desk.as_caller(work) }.into()
}

/// A path is what getsockname(2) will tell, so it must be the caller's own; it is looked up again, from the caller's
/// directory, and what was made is then compared with where it was decided that it be made.
fn bind_to_path(desk: &Desk<'_>, held: &Held, target: &Target, parent: std::os::fd::BorrowedFd<'_>) -> Performed {
    let path: Vec<u8> = target.bytes[2..].iter().copied().take_while(|byte| *byte != 0).collect();
    let name: Vec<u8> = path.iter().rev().copied().take_while(|byte| *byte != b'/').collect::<Vec<_>>();
    let name: Vec<u8> = name.into_iter().rev().collect();
    let name = name.as_slice();
    if fstatat(parent, name, AtFlags::AT_SYMLINK_NOFOLLOW).is_ok() {
        return Performed::Answer(Answer::Errno(libc::EADDRINUSE));
    }
    let roots = desk.view.caller_directory(desk.caller, "root").and_then(|root| fstat(&root));
    let ours = nix::fcntl::openat(desk.view.proc(), "self/root", OFlag::O_PATH | OFlag::O_CLOEXEC, Mode::empty())
        .and_then(|root| fstat(&root));
    let same_root = matches!((roots, ours), (Ok(theirs), Ok(ours)) if same_file(&theirs, &ours));
    let result = (|| {
        let directory = if path.starts_with(b"/") && same_root {
            None
        } else if !path.starts_with(b"/") {
            Some(desk.view.caller_directory(desk.caller, "cwd")?)
        } else {
            // Another root: the name that others see cannot be kept.
            return Err(io::Error::from(Errno::EOPNOTSUPP));
        };
        let _leaving = process::leaving();
        if let Some(directory) = &directory {
            nix::unistd::fchdir(directory)?;
        }
        let before = umask(Mode::from_bits_truncate(desk.caller.status.umask));
        let result = desk.as_caller(|| socket::bind(&held.fd, &target.bytes));
        umask(before);
        // Threads that perform calls work in /proc; see `intercept::network::destination`.
        if nix::unistd::fchdir(desk.view.proc()).is_err() {
            std::process::abort();
        }
        result
    })();
    if result.is_ok() {
        let made = fstatat(parent, name, AtFlags::AT_SYMLINK_NOFOLLOW);
        let is_socket =
            made.is_ok_and(|stat| SFlag::from_bits_truncate(stat.st_mode) & SFlag::S_IFMT == SFlag::S_IFSOCK);
        if !is_socket {
            return Performed::Mismatch;
        }
    }
    result.into()
}

/// listen(2).
pub fn listen(held: &Held, backlog: i32) -> Performed {
    socket::listen(&held.fd, backlog).into()
}

/// Waits for a connection, without taking more than one.
///
/// # Errors
/// How the wait ended instead.
pub fn accept(desk: &Desk<'_>, held: &Held) -> Result<(Held, Vec<u8>), Performed> {
    let blocks = held.blocks();
    let timeout = socket::timeout_us(&held.fd, libc::SO_RCVTIMEO).unwrap_or(0);
    let deadline = (timeout > 0).then(|| Instant::now() + Duration::from_micros(timeout as u64));
    loop {
        match without_blocking(held, || socket::accept(&held.fd, 0)) {
            Ok((fd, peer)) => return Ok((Held { fd, socket: held.socket }, peer)),
            Err(error) if blocks && error.raw_os_error() == Some(libc::EAGAIN) => {}
            Err(error) => return Err(Err(error).into()),
        }
        match waiting::until_ready(desk.listener, desk.id, desk.caller, held.fd.as_fd(), PollFlags::POLLIN, deadline) {
            Woken::Ready => {}
            Woken::Gone => return Err(Performed::Gone),
            Woken::Signal => return Err(Performed::Interrupted { restartable: timeout == 0 }),
            Woken::TimedOut => return Err(Performed::Answer(Answer::Errno(libc::EAGAIN))),
        }
    }
}

/// One message. On a stream that blocks, all of it is sent, as the kernel does.
pub fn send(desk: &Desk<'_>, held: &Held, message: &Message) -> Performed {
    let quiet = message.flags & libc::MSG_NOSIGNAL != 0;
    // Pages of ours that the kernel reads later would change under it; this is what it answers where it cannot pin any.
    if message.flags & libc::MSG_ZEROCOPY != 0 {
        return Performed::Answer(Answer::Errno(libc::ENOBUFS));
    }
    let waits = message.flags & libc::MSG_DONTWAIT == 0 && held.blocks();
    let flags = message.flags | libc::MSG_NOSIGNAL | libc::MSG_DONTWAIT;
    let timeout = socket::timeout_us(&held.fd, libc::SO_SNDTIMEO).unwrap_or(0);
    let deadline = (timeout > 0).then(|| Instant::now() + Duration::from_micros(timeout as u64));
    let inet = matches!(i32::from(held.socket.family), libc::AF_INET | libc::AF_INET6);
    let unix = i32::from(held.socket.family) == libc::AF_UNIX;
    let mut control = message.control.clone();
    if unix {
        add_credentials(desk, &mut control);
    }
    let address = message.target.as_ref().map(|target| target.bytes.as_slice());
    let mut sent = 0;
    loop {
        let first = sent == 0;
        let mut attempt = || {
            let by_path = message.target.as_ref().is_some_and(|target| target.file.is_some());
            let _staying = by_path.then(process::staying);
            let control = if first { control.as_mut_slice() } else { &mut [] };
            socket::send(&held.fd, &message.data[sent..], if first { address } else { None }, control, flags)
        };
        let result = if inet && message.control.is_empty() { attempt() } else { desk.as_caller(attempt) };
        let error = result.as_ref().err().and_then(io::Error::raw_os_error);
        match (result, error) {
            (Ok(count), _) => {
                sent += count as usize;
                if !waits || !held.is_stream() || sent >= message.data.len() {
                    return Performed::Answer(Answer::Value(sent as i64));
                }
                continue;
            }
            (_, Some(libc::EAGAIN | libc::EINPROGRESS)) if waits => {}
            (_, _) if sent > 0 => return Performed::Answer(Answer::Value(sent as i64)),
            (result, Some(libc::EPIPE)) if !quiet && held.is_stream() => {
                if desk.listener.is_valid(desk.id) {
                    let _ = pidfd::signal_thread(desk.caller.status.pid, desk.caller.tid, libc::SIGPIPE);
                }
                return result.into();
            }
            (result, _) => return result.into(),
        }
        // A datagram socket is writable even if the one it sends to has no room.
        let events = if unix && !held.is_stream() { PollFlags::empty() } else { PollFlags::POLLOUT };
        match waiting::until_ready(desk.listener, desk.id, desk.caller, held.fd.as_fd(), events, deadline) {
            Woken::Ready => {}
            Woken::Gone => return Performed::Gone,
            Woken::Signal | Woken::TimedOut if sent > 0 => return Performed::Answer(Answer::Value(sent as i64)),
            Woken::Signal => return Performed::Interrupted { restartable: timeout == 0 },
            Woken::TimedOut => return Performed::Answer(Answer::Errno(libc::EAGAIN)),
        }
    }
}

/// Says who the sender is, in place of the kernel, which would say that it is us. It lets us if we have `CAP_SYS_ADMIN`;
/// without, a receiver that asks for credentials (`SO_PASSCRED`) sees the supervisor's process id.
fn add_credentials(desk: &Desk<'_>, control: &mut Vec<u8>) {
    const CAP_SYS_ADMIN: u64 = 1 << 21;
    let says_so_itself = control.chunks(1).len() >= 16
        && control[8..16] == [libc::SOL_SOCKET.to_ne_bytes(), libc::SCM_CREDENTIALS.to_ne_bytes()].concat();
    if says_so_itself || desk.caller.status.identity.capabilities & CAP_SYS_ADMIN == 0 {
        return;
    }
    let status = &desk.caller.status;
    control.resize(control.len().next_multiple_of(8), 0);
    control.extend_from_slice(&28_usize.to_ne_bytes());
    control.extend_from_slice(&libc::SOL_SOCKET.to_ne_bytes());
    control.extend_from_slice(&libc::SCM_CREDENTIALS.to_ne_bytes());
    for id in [status.pid, status.real_uid, status.real_gid, 0] {
        control.extend_from_slice(&id.to_ne_bytes());
    }
}
