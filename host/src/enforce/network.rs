//! connect, bind, listen, accept and send, performed on the caller's own socket from the private copy.

use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::sync::Arc;
use std::time::Duration;

use landlock::{AccessFs, PathBeneath, Ruleset, RulesetAttr, RulesetCreatedAttr, RulesetError};
use nix::errno::Errno;
use nix::fcntl::AtFlags;
use nix::sys::stat::{Mode, SFlag, fstat, fstatat, umask};

use crate::enforce::waiting::{Over, Room};
use crate::event::Address;
use crate::intercept::caller::Caller;
use crate::intercept::network::{Held, Message, Payload, Rest, Target};
use crate::intercept::path::View;
use crate::intercept::sockets::{Place, Sockets};
use crate::relay::Relay;
use crate::sys::credentials::{CAP_SETGID, CAP_SETUID, CAP_SYS_ADMIN, Own};
use crate::sys::memory::Pages;
use crate::sys::notify::{Answer, Listener};
use crate::sys::{process, socket};

/// What a performed call came to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Performed {
    /// The answer to give.
    Answer(Answer),
    /// A signal has to be handled first; afterwards the call may start again (or not).
    Interrupted {
        /// Whether `SA_RESTART` makes it.
        restartable: bool,
    },
    /// The caller is gone.
    Gone,
    /// Something other than what was decided on came to be: the caller must be killed.
    Mismatch,
    /// `EPIPE`, and SIGPIPE.
    Pipe,
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
    pub own: &'a Own,
    /// Where those are looked after whose calls wait.
    pub room: &'a Room,
    /// To be told before a call that may wait.
    pub relay: &'a Relay,
    /// What we did before.
    pub sockets: &'a Sockets,
    /// The notification.
    pub id: u64,
    /// The caller.
    pub caller: &'a Arc<Caller>,
}

/// Whether a call that may wait does so as a rule.
#[derive(Debug, Clone, Copy)]
enum Wait {
    /// Others are received meanwhile.
    Likely,
    /// Then nobody is woken for that, unless one such call did wait lately.
    Unlikely,
}

impl Desk<'_> {
    /// Runs a call with the caller's rights, where those decide about it and are not ours.
    fn as_caller<T>(&self, work: impl FnOnce() -> io::Result<T>) -> io::Result<T> {
        self.own.act_as(&*self.caller.identity(self.view)?, 0, work)
    }

    /// Where a signal ends the caller's call: waits until it has, if there is one. An answer in that very moment would be
    /// lost (see [`super::unheard`]).
    fn let_go(&self) {
        for _ in 0..200 {
            if self.listener.keeps_callers() || Over::look(self.listener, self.id, self.caller) != Some(Over::Signal) {
                return;
            }
            std::thread::sleep(Duration::from_micros(100));
        }
    }

    /// Makes a call that may wait. `limit`: the socket's option that says how long.
    fn waiting<T>(
        &self,
        expected: Wait,
        held: &Held,
        limit: i32,
        mut call: impl FnMut() -> io::Result<T>,
    ) -> Result<io::Result<T>, Performed> {
        match expected {
            Wait::Likely => self.relay.hand_over(),
            Wait::Unlikely => self.relay.hand_over_to_a_crowd(),
        }
        loop {
            let result = {
                let Some(_seat) = self.room.enter(self.id, self.caller, held.fd.as_fd()) else {
                    return Err(Performed::Answer(Answer::Errno(libc::ENOBUFS)));
                };
                call()
            };
            if result.as_ref().err().and_then(io::Error::raw_os_error) != Some(libc::EINTR) {
                return Ok(result);
            }
            match Over::look(self.listener, self.id, self.caller) {
                None => {}
                Some(Over::Gone) => return Err(Performed::Gone),
                Some(Over::Signal) => {
                    // sock_intr_errno (include/net/sock.h): with a time limit the call does not start again.
                    let limited = socket::timeout_us(&held.fd, limit).unwrap_or(0) > 0;
                    return Err(Performed::Interrupted { restartable: !limited });
                }
            }
        }
    }
}

/// connect(2).
pub fn connect(desk: &Desk<'_>, held: &Held, target: &Target) -> Performed {
    let rights_matter = !matches!(target.address, Address::Ipv4 { .. } | Address::Ipv6 { .. } | Address::Unspecified);
    let call = || {
        let work = || socket::connect(&held.fd, &target.bytes);
        if rights_matter { desk.as_caller(work) } else { work() }
    };
    let connects = held.socket.kind == libc::SOCK_STREAM as u32 || held.socket.kind == libc::SOCK_SEQPACKET as u32;
    let result = if connects && held.blocks() {
        let expected = match target.address.ip() {
            Some((ip, _)) if !ip.is_loopback() => Wait::Likely,
            _ => Wait::Unlikely,
        };
        match desk.waiting(expected, held, libc::SO_SNDTIMEO, call) {
            Ok(result) => result,
            Err(performed) => return performed,
        }
    } else {
        call()
    };
    if result.is_ok()
        && let Some(place) = place(held, target)
    {
        desk.sockets.was_connected(&held.fd, &place, desk.caller.pid);
    }
    result.into()
}

/// Where an AF_UNIX socket is connected to.
fn place(held: &Held, target: &Target) -> Option<Place> {
    if i32::from(held.socket.family) != libc::AF_UNIX {
        return None;
    }
    match &target.file {
        Some(file) => fstat(file).ok().map(|stat| Place::File(stat.st_dev, stat.st_ino)),
        None => Some(Place::Name(target.bytes.clone())),
    }
}

/// bind(2).
pub fn bind(desk: &Desk<'_>, held: &Held, target: &Target) -> Performed {
    if let Some(parent) = &target.file {
        return bind_to_path(desk, held, target, parent);
    }
    let work = || socket::bind(&held.fd, &target.bytes);
    // Whether one may have a port depends on who one is (`__inet_bind`, net/ipv4/af_inet.c), but not for one that the kernel
    // chooses.
    let any_port = matches!(target.address.ip(), Some((_, 0)));
    if any_port { work() } else { desk.as_caller(work) }.into()
}

/// A path is what getsockname(2) will tell, so it must be the caller's own; it is looked up again, from the caller's
/// directory. That this leads to the place that was decided on is seen to by Landlock, on a thread that may make sockets
/// there and nowhere else, and by a look at what was made.
fn bind_to_path(desk: &Desk<'_>, held: &Held, target: &Target, parent: &OwnedFd) -> Performed {
    desk.relay.hand_over();
    let path: Vec<u8> = target.bytes[2..].iter().copied().take_while(|byte| *byte != 0).collect();
    let name = path.rsplit(|byte| *byte == b'/').next().unwrap_or_default();
    // As the caller, for who may not search a directory must not learn from us what it has.
    if desk.as_caller(|| Ok(fstatat(parent, name, AtFlags::AT_SYMLINK_NOFOLLOW)?)).is_ok() {
        return Performed::Answer(Answer::Errno(libc::EADDRINUSE));
    }
    let result = std::thread::scope(|scope| {
        let bind = std::thread::Builder::new().spawn_scoped(scope, || {
            process::own_directory();
            let shared = process::leaving();
            let before = take_place_of(desk, shared.is_none())?;
            if let Err(error) = confine(parent) {
                tracing::debug!(%error, "no Landlock: what a bind made is looked at afterwards");
            }
            let result = desk.as_caller(|| socket::bind(&held.fd, &target.bytes));
            if shared.is_some() {
                umask(before);
                go_home(desk);
            }
            result
        });
        bind?.join().unwrap_or_else(|_| Err(Errno::EFAULT.into()))
    });
    // A path that leads nowhere for us, as /proc/self/fd/3/name does: then the socket is named after our way to its place.
    let result = result.or_else(|error| match error.raw_os_error() {
        Some(libc::EACCES | libc::ENOENT | libc::ENOTDIR) => bind_beneath(desk, held, parent, name).map_err(|_| error),
        _ => Err(error),
    });
    if result.is_ok() {
        let made = fstatat(parent, name, AtFlags::AT_SYMLINK_NOFOLLOW);
        let is_socket =
            made.is_ok_and(|stat| SFlag::from_bits_truncate(stat.st_mode) & SFlag::S_IFMT == SFlag::S_IFSOCK);
        if !is_socket {
            return Performed::Mismatch;
        }
        if let Address::Unix { path } = &target.address {
            desk.sockets.was_bound(&held.fd, path.clone());
        }
    }
    result.into()
}

/// From now on the calling thread makes sockets only under this directory.
fn confine(directory: &OwnedFd) -> Result<(), RulesetError> {
    let rule = PathBeneath::new(directory, AccessFs::MakeSock);
    let ruleset = Ruleset::default().handle_access(AccessFs::MakeSock)?.create()?.add_rule(rule)?;
    ruleset.restrict_self().map(drop)
}

/// Makes a path mean to the calling thread what it means to the caller; but for the root, where other threads of ours have
/// the same. Returns the umask that was.
fn take_place_of(desk: &Desk<'_>, alone: bool) -> io::Result<Mode> {
    let root = desk.view.caller_directory(desk.caller, "root")?;
    let directory = desk.view.caller_directory(desk.caller, "cwd")?;
    if alone {
        nix::unistd::fchdir(root)?;
        if let Err(error) = nix::unistd::chroot(".") {
            tracing::debug!(%error, "the root stays our own");
        }
    }
    nix::unistd::fchdir(directory)?;
    Ok(umask(Mode::from_bits_truncate(desk.caller.status()?.umask)))
}

/// Threads that perform calls work in `/proc`; see [`process::path_to`].
fn go_home(desk: &Desk<'_>) {
    if nix::unistd::fchdir(desk.view.proc()).is_err() {
        std::process::abort();
    }
}

fn bind_beneath(desk: &Desk<'_>, held: &Held, parent: &OwnedFd, name: &[u8]) -> io::Result<i64> {
    let mut address = (libc::AF_UNIX as u16).to_ne_bytes().to_vec();
    address.extend_from_slice(process::path_to(parent).as_bytes());
    address.push(b'/');
    address.extend_from_slice(name);
    address.push(0);
    let theirs = Mode::from_bits_truncate(desk.caller.status()?.umask);
    let _alone = process::leaving();
    let before = umask(theirs);
    let result = desk.as_caller(|| socket::bind(&held.fd, &address));
    umask(before);
    result
}

/// listen(2).
pub fn listen(desk: &Desk<'_>, held: &Held, backlog: i32, decided: &[u8]) -> Performed {
    let work = || socket::listen(&held.fd, backlog);
    // Who connects to an AF_UNIX socket is told who listened (`SO_PEERCRED`).
    let unix = i32::from(held.socket.family) == libc::AF_UNIX;
    let result = if unix { desk.as_caller(work) } else { work() };
    // An association that was dissolved meanwhile takes an address and a port with it that the kernel had chosen, and listen
    // chooses others; the same port, if `IP_LOCAL_PORT_RANGE` leaves no other.
    if !unix && result.is_ok() {
        let mut now = socket::local_address(&held.fd).unwrap_or_default();
        let had_none = decided.get(2..4) == Some(&[0, 0]);
        if let Some(port) = now.get_mut(2..4).filter(|_| had_none) {
            port.fill(0); // the one that listen has chosen
        }
        if now != decided {
            socket::stop(&held.fd);
            return Performed::Mismatch;
        }
    }
    if unix
        && result.is_ok()
        && let Some(place) = own_place(desk, held)
    {
        desk.sockets.listens(place, desk.caller.pid);
    }
    result.into()
}

/// Where an AF_UNIX socket was bound to.
fn own_place(desk: &Desk<'_>, held: &Held) -> Option<Place> {
    match desk.sockets.bound(&held.fd) {
        Some(path) => {
            let stat = nix::sys::stat::stat(path.as_str()).ok()?;
            Some(Place::File(stat.st_dev, stat.st_ino))
        }
        None => socket::local_address(&held.fd).ok().map(Place::Name),
    }
}

/// `SO_PEERCRED` of getsockopt(2).
pub fn peer_credentials(desk: &Desk<'_>, held: &Held, value: u64, length: u64) -> Answer {
    // Only where it is we whom the kernel takes for the peer is there anything to be put right; and a caller in a pid
    // namespace of its own knows processes by other numbers than we do.
    let same_numbers = desk.caller.status().is_ok_and(|status| status.inner_pid == status.pid);
    let told = socket::peer_credentials(&held.fd).ok().filter(|ids| ids[0] == std::process::id() && same_numbers);
    let Some((told, peer)) = told.and_then(|told| Some((told, desk.sockets.peer(&held.fd)?))) else {
        return Answer::Continue;
    };
    let ids: Vec<u8> = [peer, told[1], told[2]].iter().flat_map(|id| id.to_ne_bytes()).collect();
    let write = || {
        let room = desk.caller.copy(length, 4)?;
        let room = i32::from_ne_bytes([room[0], room[1], room[2], room[3]]);
        let count = usize::try_from(room).map_err(|_| Errno::EINVAL)?.min(ids.len());
        desk.caller.write(value, &ids[..count])?;
        desk.caller.write(length, &(count as u32).to_ne_bytes())
    };
    write().map_or_else(|errno| Answer::Errno(errno as i32), |()| Answer::Value(0))
}

/// `SO_PEERPIDFD` of getsockopt(2): where the kernel takes us for the peer there is no such option, as before Linux 6.5, and
/// programs ask for the credentials. Who had the peer's process id then may be another now, which is what the option is for.
pub fn peer_descriptor(held: &Held) -> Answer {
    let is_ours = socket::peer_credentials(&held.fd).is_ok_and(|ids| ids[0] == std::process::id());
    if is_ours { Answer::Errno(libc::ENOPROTOOPT) } else { Answer::Continue }
}

/// accept(2).
///
/// # Errors
/// How it ended instead.
pub fn accept(desk: &Desk<'_>, held: &Held) -> Result<(Held, Vec<u8>), Performed> {
    let call = || socket::accept(&held.fd, 0);
    let result = if held.blocks() { desk.waiting(Wait::Likely, held, libc::SO_RCVTIMEO, call)? } else { call() };
    match result {
        Ok((fd, peer)) => Ok((Held { fd, socket: held.socket }, peer)),
        Err(error) => Err(Err(error).into()),
    }
}

/// One message. On a stream that blocks, all of it is sent, as the kernel does.
///
/// It is first tried without waiting, which costs nothing; what does not go like that is done again in the caller's way.
pub fn send(desk: &Desk<'_>, held: &Held, message: &Message) -> Performed {
    let mut sending = match Sending::new(desk, held, message) {
        Ok(sending) => sending,
        Err(error) => return Err(error).into(),
    };
    let may_wait = || message.flags & libc::MSG_DONTWAIT == 0 && held.blocks();
    let mut wait = sending.in_one_piece() && may_wait();
    loop {
        let result = if wait {
            match desk.waiting(Wait::Likely, held, libc::SO_SNDTIMEO, || sending.attempt(0)) {
                Ok(result) => result,
                Err(_) if sending.sent > 0 => Ok(0),
                Err(performed) => return performed,
            }
        } else {
            sending.attempt(libc::MSG_DONTWAIT)
        };
        match result {
            Ok(count) if sending.goes_on(count as usize, wait) => {
                if sending.is_cut_short() {
                    wait = may_wait();
                    if !wait {
                        return Performed::Answer(Answer::Value(sending.sent as i64));
                    }
                }
            }
            Ok(_) => {
                if wait && sending.is_cut_short() {
                    desk.let_go();
                }
                return Performed::Answer(Answer::Value(sending.sent as i64));
            }
            Err(_) if sending.sent > 0 => return Performed::Answer(Answer::Value(sending.sent as i64)),
            Err(error) => match error.raw_os_error() {
                Some(libc::EAGAIN | libc::EINPROGRESS) if !wait && may_wait() => wait = true,
                Some(libc::EPIPE) if message.flags & libc::MSG_NOSIGNAL == 0 && held.is_stream() => {
                    return Performed::Pipe;
                }
                _ => return Err(error).into(),
            },
        }
    }
}

/// A message on its way: a stream takes as much at a time as we hold of it.
struct Sending<'a> {
    desk: &'a Desk<'a>,
    held: &'a Held,
    message: &'a Message,
    claim: Claim,
    /// Pages that the kernel may read later, in place of `message.data`.
    pages: Option<Pages>,
    /// The part that is sent now, if it is no longer the message's first.
    later: Option<Payload>,
    rest: Rest,
    at: usize,
    sent: usize,
}

impl<'a> Sending<'a> {
    fn new(desk: &'a Desk<'a>, held: &'a Held, message: &'a Message) -> io::Result<Self> {
        let unix = i32::from(held.socket.family) == libc::AF_UNIX;
        let claim = if unix { Claim::of_sender(desk, message)? } else { Claim::default() };
        // Without the socket's option the flag means nothing (tcp_sendmsg_locked, net/ipv4/tcp.c).
        let zero_copy = message.flags & libc::MSG_ZEROCOPY != 0
            && socket::option(&held.fd, libc::SO_ZEROCOPY).is_ok_and(|enabled| enabled != 0);
        let pages = if zero_copy { Some(Pages::copy_of(&message.data)?) } else { None };
        // Each call of ours is told of when its pages are free, so it must be one, and the stream sends a part.
        let rest = if zero_copy { Rest::default() } else { message.rest.clone() };
        Ok(Self { desk, held, message, claim, pages, later: None, rest, at: 0, sent: 0 })
    }

    /// Whether a first part sent without waiting would be noticed.
    fn in_one_piece(&self) -> bool {
        self.pages.is_some() || self.message.flags & libc::MSG_FASTOPEN != 0
    }

    fn part(&self) -> &[u8] {
        match (&self.later, &self.pages) {
            (Some(later), _) => later,
            (None, Some(pages)) => pages.as_ref(),
            (None, None) => &self.message.data,
        }
    }

    fn attempt(&self, flags: i32) -> io::Result<i64> {
        let mut flags = self.message.flags | flags | libc::MSG_NOSIGNAL;
        if !self.rest.is_empty() {
            flags &= !libc::MSG_OOB; // it is the last byte that is urgent
        }
        let first = self.sent == 0;
        let address = self.message.target.as_ref().filter(|_| first).map(|target| target.bytes.as_slice());
        let mut control = if first { self.message.control.clone() } else { Vec::new() };
        self.claim.write(&mut control);
        let inet = matches!(i32::from(self.held.socket.family), libc::AF_INET | libc::AF_INET6);
        let data = &self.part()[self.at..];
        let mut work = || socket::send(&self.held.fd, data, address, &mut control, flags);
        if inet && self.message.control.is_empty() {
            return work();
        }
        self.desk.own.act_as(&*self.desk.caller.identity(self.desk.view)?, self.claim.takes, work)
    }

    /// Counts what was sent. Whether there is more to be sent, and it makes sense to go on.
    fn goes_on(&mut self, count: usize, waited: bool) -> bool {
        self.sent += count;
        self.at += count;
        if !self.held.is_stream() || self.pages.is_some() {
            return false;
        }
        if self.is_cut_short() {
            // A call that waited and was cut short has met a signal, a time limit or an error; the next one says which.
            return !waited;
        }
        let kept = || self.desk.listener.keeps_callers() || self.desk.listener.is_valid(self.desk.id);
        match self.rest.take(self.desk.caller) {
            Ok(more) if more.is_empty() => false,
            // One who has been interrupted goes on, and uses the memory for something else.
            Ok(_) if !kept() => false,
            Ok(more) => {
                self.later = Some(more);
                self.at = 0;
                true
            }
            Err(_) => false,
        }
    }

    fn is_cut_short(&self) -> bool {
        self.at < self.part().len()
    }
}

/// Who the sender of a message on an AF_UNIX socket is, said in place of the kernel, which would say that it is us.
#[derive(Default)]
struct Claim {
    /// Process, user and group, if there is anything to be said.
    ids: Option<[u32; 3]>,
    /// The capabilities that it takes to say so.
    takes: u64,
}

impl Claim {
    /// The kernel lets us name another process than ours only with `CAP_SYS_ADMIN`. Without, a receiver that asks for
    /// credentials (`SO_PASSCRED`) sees the supervisor's process id.
    fn of_sender(desk: &Desk<'_>, message: &Message) -> io::Result<Self> {
        let status = desk.caller.status()?;
        let may_name = desk.own.identity.capabilities & CAP_SYS_ADMIN;
        let process = |theirs| if may_name != 0 || theirs != status.pid { theirs } else { std::process::id() };
        let said = message.claim.unwrap_or([status.pid, status.real_uid, status.real_gid]);
        let ids = Some([process(said[0]), said[1], said[2]]);
        Ok(Self { ids, takes: may_name | CAP_SETUID | CAP_SETGID })
    }

    /// Puts it after other control messages.
    fn write(&self, control: &mut Vec<u8>) {
        let Some(ids) = self.ids else { return };
        control.resize(control.len().next_multiple_of(8), 0);
        control.extend_from_slice(&28_usize.to_ne_bytes());
        control.extend_from_slice(&libc::SOL_SOCKET.to_ne_bytes());
        control.extend_from_slice(&libc::SCM_CREDENTIALS.to_ne_bytes());
        for id in [ids[0], ids[1], ids[2], 0] {
            control.extend_from_slice(&id.to_ne_bytes());
        }
    }
}
