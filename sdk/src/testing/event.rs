//! Events to ask about: plausible ones, of which a test says what matters to it.

use std::collections::BTreeMap;
use std::net::SocketAddr;

use crate::{
    Accepted, Action, Address, Credentials, Endpoint, Event, Exec, File, Socket, Stream, StreamSocket, Subject,
};

/// An event that is being built, whose action is an `A`. Where no method fits, [`Build::with`] reaches every field.
#[derive(Debug, Clone)]
pub struct Build<A> {
    action: A,
    of: fn(A) -> Action,
    subject: Subject,
    time_ms: u64,
    facts: Facts,
}

/// An event, and what the host knows about it.
#[derive(Debug, Clone)]
pub struct Given {
    /// The event. Its place in the order is given by the tester.
    pub event: Event,
    /// The facts.
    pub facts: Facts,
}

/// What a host knows about an event, and tells if it is asked.
#[derive(Debug, Clone, Default)]
pub struct Facts {
    /// Ancestors of the process, parent first.
    pub ancestors: Vec<Subject>,
    /// SHA-256 of the event's files, by the file's path.
    pub digests: BTreeMap<String, String>,
    /// The environment.
    pub environment: BTreeMap<String, String>,
    /// Standard streams, by number. The others are unknown.
    pub standard_streams: BTreeMap<u32, Stream>,
    /// The names of the event's IP address.
    pub names: Vec<String>,
    /// When the workload was started, in milliseconds since the Unix epoch.
    pub started_ms: u64,
}

/// When events happen that say nothing else: 14 July 2017, 02:40 UTC. The workload was started a minute before.
const TIME_MS: u64 = 1_500_000_000_000;
const STARTED_MS: u64 = TIME_MS - 60_000;

fn build<A>(action: A, of: fn(A) -> Action) -> Build<A> {
    let subject = Subject { pid: 100, tid: 100, parent: 99, executable: "/usr/bin/bash".to_owned(), uid: 0, gid: 0 };
    Build { action, of, subject, time_ms: TIME_MS, facts: Facts { started_ms: STARTED_MS, ..Facts::default() } }
}

/// The program at this path is about to be run, without arguments, by root's bash. It belongs to the image: it is root's,
/// everybody may run it, and it is a year older than the workload.
pub fn exec(path: &str) -> Build<Exec> {
    build(program(path), Action::Exec)
}

/// The same of a file without a path, which the kernel calls `name` (`/memfd:x (deleted)`).
pub fn exec_fileless(name: &str) -> Build<Exec> {
    let mut exec = program(name);
    exec.file.canonical = false;
    exec.requested = "/proc/self/fd/3".to_owned();
    build(exec, Action::ExecFileless)
}

fn program(path: &str) -> Exec {
    Exec {
        requested: path.to_owned(),
        file: file(path),
        interpreters: Vec::new(),
        loader: None,
        runs_loader: false,
        arguments: vec![path.to_owned()],
        arguments_cut: false,
        directory: "/".to_owned(),
    }
}

fn file(path: &str) -> File {
    const YEAR_NS: i64 = 365 * 86_400 * 1_000_000_000;
    File {
        path: path.to_owned(),
        canonical: true,
        device: 1,
        // Different paths are different files.
        inode: path.bytes().fold(2, |inode: u64, byte| inode.wrapping_mul(31).wrapping_add(byte.into())),
        uid: 0,
        gid: 0,
        mode: 0o100_755,
        size: 100_000,
        changed_ns: STARTED_MS as i64 * 1_000_000 - YEAR_NS,
    }
}

/// A TCP socket and an IP address, written as `10.0.0.1:443` or `[2001:db8::1]:443`.
///
/// # Panics
/// It is no such address.
pub fn tcp(address: &str) -> Endpoint {
    endpoint(address, 1, 6)
}

/// A UDP socket and an IP address.
///
/// # Panics
/// It is no such address.
pub fn udp(address: &str) -> Endpoint {
    endpoint(address, 2, 17)
}

fn endpoint(address: &str, kind: u32, protocol: u32) -> Endpoint {
    let parsed: SocketAddr = address.parse().unwrap_or_else(|_| panic!("{address:?} is no IP address with a port"));
    Endpoint {
        socket: Socket { family: if parsed.is_ipv4() { 2 } else { 10 }, kind, protocol },
        address: parsed.into(),
    }
}

/// What can be the target of a [`connect`], a [`bind`] and so on.
impl From<&str> for Endpoint {
    /// An IP address with a port, of TCP; or the path, or after `@` the abstract name, of an AF_UNIX stream socket.
    fn from(text: &str) -> Self {
        let address = match text.strip_prefix('@') {
            Some(name) => Address::UnixAbstract(name.to_owned()),
            None if text.starts_with('/') => Address::Unix(text.to_owned()),
            None => return tcp(text),
        };
        Self { socket: Socket { family: 1, kind: 1, protocol: 0 }, address }
    }
}

/// A socket is to be connected: `connect("10.0.0.1:443")`, `connect(udp("[::1]:53"))`, `connect("/run/x.sock")`.
pub fn connect(to: impl Into<Endpoint>) -> Build<Endpoint> {
    build(to.into(), Action::Connect)
}

/// A datagram is to be sent: `send(udp("10.0.0.1:53"))`.
pub fn send(to: impl Into<Endpoint>) -> Build<Endpoint> {
    build(to.into(), Action::Send)
}

/// A socket is to be given a local address.
pub fn bind(to: impl Into<Endpoint>) -> Build<Endpoint> {
    build(to.into(), Action::Bind)
}

/// A socket is to accept connections.
pub fn listen(on: impl Into<Endpoint>) -> Build<Endpoint> {
    build(on.into(), Action::Listen)
}

/// A peer has connected to a local address.
pub fn accept(local: impl Into<Endpoint>, peer: impl Into<Endpoint>) -> Build<Accepted> {
    let Endpoint { socket, address: local } = local.into();
    build(Accepted { socket, local, peer: peer.into().address }, Action::Accept)
}

/// A socket is to be created, in the kernel's numbers (socket(2)).
pub fn socket(family: u16, kind: u32, protocol: u32) -> Build<Socket> {
    build(Socket { family, kind, protocol }, Action::Socket)
}

/// A process is to change its user or groups by this call: `credentials("setuid").uids([0])`.
pub fn credentials(call: &str) -> Build<Credentials> {
    let change = Credentials { call: call.to_owned(), uids: Vec::new(), gids: Vec::new(), groups: None };
    build(change, Action::Credentials)
}

impl<A> Build<A> {
    /// Changes any field of the action.
    #[must_use]
    pub fn with(mut self, change: impl FnOnce(&mut A)) -> Self {
        change(&mut self.action);
        self
    }

    /// Changes any field of the process that asks.
    #[must_use]
    pub fn by(mut self, change: impl FnOnce(&mut Subject)) -> Self {
        change(&mut self.subject);
        self
    }

    /// The process that asks, by its id.
    #[must_use]
    pub fn pid(self, pid: u32) -> Self {
        self.by(|subject| (subject.pid, subject.tid) = (pid, pid))
    }

    /// The file that the process is running.
    #[must_use]
    pub fn executable(self, path: &str) -> Self {
        self.by(|subject| path.clone_into(&mut subject.executable))
    }

    /// The process's user.
    #[must_use]
    pub fn uid(self, uid: u32) -> Self {
        self.by(|subject| subject.uid = uid)
    }

    /// The process's group.
    #[must_use]
    pub fn gid(self, gid: u32) -> Self {
        self.by(|subject| subject.gid = gid)
    }

    /// When it happens, in milliseconds since the Unix epoch.
    #[must_use]
    pub fn time_ms(mut self, time_ms: u64) -> Self {
        self.time_ms = time_ms;
        self
    }

    /// Changes any fact.
    #[must_use]
    pub fn facts(mut self, change: impl FnOnce(&mut Facts)) -> Self {
        change(&mut self.facts);
        self
    }

    /// One more ancestor, above those there are: the parent first. It runs the file at this path, as the process's user.
    #[must_use]
    pub fn ancestor(mut self, path: &str) -> Self {
        let Subject { uid, gid, .. } = self.subject;
        let pid = 99 - self.facts.ancestors.len() as u32;
        let ancestor = Subject { pid, tid: pid, parent: pid - 1, executable: path.to_owned(), uid, gid };
        self.facts.ancestors.push(ancestor);
        self
    }

    /// The SHA-256 of the event's file at this path.
    #[must_use]
    pub fn digest(self, path: &str, digest: &str) -> Self {
        self.facts(|facts| drop(facts.digests.insert(path.to_owned(), digest.to_owned())))
    }

    /// A variable of the environment.
    #[must_use]
    pub fn variable(self, name: &str, value: &str) -> Self {
        self.facts(|facts| drop(facts.environment.insert(name.to_owned(), value.to_owned())))
    }

    /// A standard stream.
    #[must_use]
    pub fn stream(self, number: u32, stream: Stream) -> Self {
        self.facts(|facts| drop(facts.standard_streams.insert(number, stream)))
    }

    /// All three standard streams are this socket, connected to this address.
    #[must_use]
    pub fn streams_to(self, peer: impl Into<Endpoint>) -> Self {
        let Endpoint { socket, address } = peer.into();
        let stream = Stream::Socket(StreamSocket { socket, peer: Some(address) });
        (0..3).fold(self, |event, number| event.stream(number, stream.clone()))
    }

    /// A name that `/etc/hosts` has for the event's address.
    #[must_use]
    pub fn name(self, name: &str) -> Self {
        self.facts(|facts| facts.names.push(name.to_owned()))
    }

    /// When the workload was started, in milliseconds since the Unix epoch.
    #[must_use]
    pub fn started_ms(self, started_ms: u64) -> Self {
        self.facts(|facts| facts.started_ms = started_ms)
    }
}

impl Build<Exec> {
    /// The arguments, from `argv[0]`.
    #[must_use]
    pub fn arguments<'a>(self, arguments: impl IntoIterator<Item = &'a str>) -> Self {
        self.with(|exec| exec.arguments = arguments.into_iter().map(str::to_owned).collect())
    }

    /// One more interpreter: what `#!` names, and what `#!` in that names.
    #[must_use]
    pub fn interpreter(self, path: &str) -> Self {
        self.with(|exec| exec.interpreters.push(file(path)))
    }

    /// The dynamic loader.
    #[must_use]
    pub fn loader(self, path: &str) -> Self {
        self.with(|exec| exec.loader = Some(file(path)))
    }

    /// Changes any field of the file.
    #[must_use]
    pub fn file(self, change: impl FnOnce(&mut File)) -> Self {
        self.with(|exec| change(&mut exec.file))
    }

    /// When the file's inode was last changed, in nanoseconds since the Unix epoch.
    #[must_use]
    pub fn changed_ns(self, changed_ns: i64) -> Self {
        self.file(|file| file.changed_ns = changed_ns)
    }
}

impl Build<Credentials> {
    /// User ids that the process would have.
    #[must_use]
    pub fn uids(self, uids: impl IntoIterator<Item = u32>) -> Self {
        self.with(|change| change.uids = uids.into_iter().collect())
    }

    /// Group ids that it would have.
    #[must_use]
    pub fn gids(self, gids: impl IntoIterator<Item = u32>) -> Self {
        self.with(|change| change.gids = gids.into_iter().collect())
    }

    /// Supplementary groups that it would have.
    #[must_use]
    pub fn groups(self, groups: impl IntoIterator<Item = u32>) -> Self {
        self.with(|change| change.groups = Some(groups.into_iter().collect()))
    }
}

impl<A> From<Build<A>> for Event {
    fn from(build: Build<A>) -> Self {
        Given::from(build).event
    }
}

impl<A> From<Build<A>> for Given {
    fn from(Build { action, of, subject, time_ms, facts }: Build<A>) -> Self {
        Self { event: Event { sequence: 1, time_ms, subject, action: of(action) }, facts }
    }
}

/// An event about which nothing more is known.
impl From<Event> for Given {
    fn from(event: Event) -> Self {
        Self { event, facts: Facts::default() }
    }
}
