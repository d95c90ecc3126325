//! What a caller wants to do, as an owned and complete value.
//!
//! An [`Event`] holds no pointer, no descriptor and no live process: everything that a decision may depend on was copied
//! out of the caller once, before anybody looked at it. The same value is what plugins decide on, what `enforce` carries
//! out and what the audit log keeps, so a recorded event can be decided again.
//!
//! Depends on nothing but `serde`.

use std::fmt;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use serde::{Deserialize, Serialize};

/// One thing that a process of the workload asked the kernel for.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
pub struct Event {
    /// Position in the order in which events were decided, from 1. Assigned by `decide`.
    #[serde(default)]
    pub sequence: u64,
    /// When the notification was received, in milliseconds since the Unix epoch.
    #[serde(default)]
    pub time_ms: u64,
    /// Who asked.
    pub subject: Subject,
    /// What was asked for.
    #[serde(flatten)]
    pub action: Action,
}

impl Event {
    /// The kind of event, by which plugins subscribe.
    pub fn kind(&self) -> EventKind {
        self.action.kind()
    }
}

/// The process behind an event.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
pub struct Subject {
    /// Process id (thread group), in the supervisor's pid namespace.
    pub pid: u32,
    /// The notified thread; equal to `pid` for the leader.
    pub tid: u32,
    /// Process id of the parent.
    pub parent: u32,
    /// The file the process is running, by its path from the supervisor's root and mounts; empty if it has none, or nothing is
    /// known of it. What such a path does not lead to (it was reached through a mount or a namespace made after the start, or
    /// has no path any more) is given as `(unreachable)` and what the kernel calls it, which is no path.
    pub executable: String,
    /// Effective user id, in the supervisor's user namespace.
    pub uid: u32,
    /// Effective group id, in the supervisor's user namespace.
    pub gid: u32,
}

/// The kinds of event that a plugin can subscribe to.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
#[serde(rename_all = "kebab-case")]
pub enum EventKind {
    /// A program is about to be run from a file that has a path.
    Exec,
    /// A program is about to be run from a file without one: a memfd, or a deleted file.
    ExecFileless,
    /// A socket is to be connected to an address.
    Connect,
    /// A socket is to be given a local address.
    Bind,
    /// A socket is to accept connections.
    Listen,
    /// A peer has connected.
    Accept,
    /// A datagram is to be sent to an address.
    Send,
    /// A socket is to be created, or a pair of them.
    Socket,
    /// A process is to change its user or groups.
    Credentials,
}

impl EventKind {
    /// All kinds, in the order of their bits in [`EventKinds`].
    pub const ALL: [EventKind; 9] = [
        Self::Exec,
        Self::ExecFileless,
        Self::Connect,
        Self::Bind,
        Self::Listen,
        Self::Accept,
        Self::Send,
        Self::Socket,
        Self::Credentials,
    ];

    /// The name used in policies, records and the plugin interface.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Exec => "exec",
            Self::ExecFileless => "exec-fileless",
            Self::Connect => "connect",
            Self::Bind => "bind",
            Self::Listen => "listen",
            Self::Accept => "accept",
            Self::Send => "send",
            Self::Socket => "socket",
            Self::Credentials => "credentials",
        }
    }
}

impl fmt::Display for EventKind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

/// A set of [`EventKind`]s.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Hash)]
pub struct EventKinds(u16);

impl EventKinds {
    /// No kind at all.
    pub const NONE: Self = Self(0);

    /// Whether `kind` is in the set.
    pub const fn contains(self, kind: EventKind) -> bool {
        self.0 & (1 << kind as u16) != 0
    }

    /// The set with `kind` added.
    #[must_use]
    pub const fn with(self, kind: EventKind) -> Self {
        Self(self.0 | (1 << kind as u16))
    }

    /// Everything that is in either set.
    #[must_use]
    pub const fn union(self, other: Self) -> Self {
        Self(self.0 | other.0)
    }

    /// Whether some kind is in both sets.
    pub const fn intersects(self, other: Self) -> bool {
        self.0 & other.0 != 0
    }

    /// Whether the set is empty.
    pub const fn is_empty(self) -> bool {
        self.0 == 0
    }

    /// The kinds in the set.
    pub fn iter(self) -> impl Iterator<Item = EventKind> {
        EventKind::ALL.into_iter().filter(move |kind| self.contains(*kind))
    }
}

impl FromIterator<EventKind> for EventKinds {
    fn from_iter<I: IntoIterator<Item = EventKind>>(kinds: I) -> Self {
        kinds.into_iter().fold(Self::NONE, Self::with)
    }
}

/// What the caller asked for.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
#[serde(tag = "event", rename_all = "kebab-case")]
pub enum Action {
    /// execve(2), execveat(2) of a file with a path.
    Exec(Exec),
    /// execve(2), execveat(2) of a file without a path.
    ExecFileless(Exec),
    /// connect(2), and sending with `MSG_FASTOPEN`.
    Connect(Endpoint),
    /// bind(2).
    Bind(Endpoint),
    /// listen(2); the address is the socket's own.
    Listen(Endpoint),
    /// accept(2), accept4(2); the address is the peer's.
    Accept(Accept),
    /// sendto(2), sendmsg(2), sendmmsg(2) with an address.
    Send(Endpoint),
    /// socket(2).
    Socket(Socket),
    /// setuid(2) and its relatives, setgroups(2).
    Credentials(Credentials),
}

impl Action {
    /// The kind of event that this is.
    pub const fn kind(&self) -> EventKind {
        match self {
            Self::Exec(_) => EventKind::Exec,
            Self::ExecFileless(_) => EventKind::ExecFileless,
            Self::Connect(_) => EventKind::Connect,
            Self::Bind(_) => EventKind::Bind,
            Self::Listen(_) => EventKind::Listen,
            Self::Accept(_) => EventKind::Accept,
            Self::Send(_) => EventKind::Send,
            Self::Socket(_) => EventKind::Socket,
            Self::Credentials(_) => EventKind::Credentials,
        }
    }

    /// About how many bytes its text and lists have.
    pub fn length(&self) -> usize {
        let address = |address: &Address| match address {
            Address::Unix { path: text } | Address::UnixAbstract { name: text } | Address::Other { data: text, .. } => {
                text.len()
            }
            _ => 0,
        };
        match self {
            Self::Exec(exec) | Self::ExecFileless(exec) => {
                let files = exec.interpreters.iter().chain(&exec.loader).chain([&exec.file]);
                let files = files.map(|file| size_of::<File>() + file.path.len()).sum::<usize>();
                let arguments =
                    exec.arguments.iter().map(|argument| size_of::<String>() + argument.len()).sum::<usize>();
                files + arguments + exec.requested.len() + exec.directory.len()
            }
            Self::Connect(to) | Self::Bind(to) | Self::Listen(to) | Self::Send(to) => address(&to.address),
            Self::Accept(accept) => address(&accept.local) + address(&accept.peer),
            Self::Socket(_) => 0,
            Self::Credentials(change) => {
                let ids = change.uids.len() + change.gids.len() + change.groups.as_ref().map_or(0, Vec::len);
                change.call.len() + ids * size_of::<u32>()
            }
        }
    }
}

/// A program to be run.
#[derive(Debug, Clone, Default, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
pub struct Exec {
    /// The path as the caller wrote it; empty with `AT_EMPTY_PATH`.
    pub requested: String,
    /// The file that the path resolves to: the script, where it is one.
    pub file: File,
    /// The program that will interpret `file` (`#!`), and the interpreter of that one in turn; the last is what the
    /// kernel runs. Empty for a program that the kernel runs itself.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub interpreters: Vec<File>,
    /// The dynamic loader that the executable names (ELF `PT_INTERP`), if it names one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub loader: Option<File>,
    /// Whether what the kernel would run is itself a dynamic loader: a program that runs any other program which is given
    /// to it as an argument.
    #[serde(default)]
    pub runs_loader: bool,
    /// Arguments, from `argv[0]`, with bytes that aren't UTF-8 replaced.
    pub arguments: Vec<String>,
    /// Whether there were more arguments than are recorded.
    #[serde(default)]
    pub arguments_cut: bool,
    /// The working directory of the caller.
    pub directory: String,
}

/// A file that is to be run.
#[derive(Debug, Clone, Default, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
pub struct File {
    /// The absolute path without symbolic links, as seen from the root that the supervisor started with. For a file
    /// without a path, what the kernel calls it (`/memfd:name (deleted)`).
    pub path: String,
    /// Whether `path`, looked up from the supervisor's own root and mounts, leads to this very file. False where the
    /// caller reached it through a mount, a root or a namespace that was made after the start, and for files without a path.
    pub canonical: bool,
    /// Device number (`st_dev`).
    pub device: u64,
    /// Inode number.
    pub inode: u64,
    /// Owner.
    pub uid: u32,
    /// Group.
    pub gid: u32,
    /// File type and permission bits (`st_mode`).
    pub mode: u32,
    /// Size in bytes.
    pub size: u64,
    /// Last change of the inode, in nanoseconds since the Unix epoch.
    pub changed_ns: i64,
}

/// A socket and an address that it is to be used with.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
pub struct Endpoint {
    /// The socket.
    pub socket: Socket,
    /// The address.
    pub address: Address,
}

/// A connection that a peer has made.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
pub struct Accept {
    /// The listening socket.
    pub socket: Socket,
    /// The address that was connected to.
    pub local: Address,
    /// The address that the connection came from.
    pub peer: Address,
}

/// What kind of socket it is, in the kernel's numbers.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
pub struct Socket {
    /// `AF_…` (socket(2)).
    pub family: u16,
    /// `SOCK_…`, without flags.
    #[serde(rename = "type")]
    pub kind: u32,
    /// `IPPROTO_…`, or what the family means by it.
    pub protocol: u32,
}

/// A socket address. An IPv4 address mapped into IPv6 is given as IPv4.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
#[serde(tag = "family", rename_all = "kebab-case")]
pub enum Address {
    /// `AF_INET`, and v4-mapped `AF_INET6`.
    Ipv4 {
        /// The address.
        ip: Ipv4Addr,
        /// Port, in host order.
        port: u16,
    },
    /// `AF_INET6`.
    Ipv6 {
        /// The address.
        ip: Ipv6Addr,
        /// Port, in host order.
        port: u16,
        /// Interface index of a scoped address, else 0.
        #[serde(default)]
        scope: u32,
    },
    /// `AF_UNIX` with a path: the socket file's canonical path for connect and send, where it is to be made for bind.
    Unix {
        /// The path.
        path: String,
    },
    /// `AF_UNIX` in the abstract name space.
    UnixAbstract {
        /// The name without the leading NUL.
        name: String,
    },
    /// `AF_UNIX` without a name: bind to a name that the kernel chooses, an unnamed peer.
    UnixUnnamed,
    /// `AF_NETLINK`.
    Netlink {
        /// Port id, 0 for the kernel.
        pid: u32,
        /// Multicast groups.
        groups: u32,
    },
    /// `AF_VSOCK`.
    Vsock {
        /// Context id.
        cid: u32,
        /// Port.
        port: u32,
    },
    /// `AF_UNSPEC`: dissolves an association.
    Unspecified,
    /// Any other family.
    Other {
        /// `AF_…`.
        number: u16,
        /// The rest of the address, in hexadecimal.
        data: String,
    },
}

impl Address {
    /// The address of an IP family.
    pub fn ip(&self) -> Option<(IpAddr, u16)> {
        match *self {
            Self::Ipv4 { ip, port } => Some((ip.into(), port)),
            Self::Ipv6 { ip, port, .. } => Some((ip.into(), port)),
            _ => None,
        }
    }
}

/// For people: `10.0.0.1:443`, `[::1]:80`, `/run/x.sock`, `@name`.
impl fmt::Display for Address {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Ipv4 { ip, port } => write!(f, "{ip}:{port}"),
            Self::Ipv6 { ip, port, scope: 0 } => write!(f, "[{ip}]:{port}"),
            Self::Ipv6 { ip, port, scope } => write!(f, "[{ip}%{scope}]:{port}"),
            Self::Unix { path } => write!(f, "{path}"),
            Self::UnixAbstract { name } => write!(f, "@{name}"),
            Self::UnixUnnamed => f.write_str("an unnamed unix address"),
            Self::Netlink { pid, groups } => write!(f, "netlink port {pid} groups {groups}"),
            Self::Vsock { cid, port } => write!(f, "vsock {cid}:{port}"),
            Self::Unspecified => f.write_str("no address"),
            Self::Other { number, data } => write!(f, "address family {number} {data}"),
        }
    }
}

/// A change of user or groups. Ids are those of the supervisor's user namespace; one that is not to change is absent.
#[derive(Debug, Clone, Default, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
pub struct Credentials {
    /// The system call's name: `setuid`, `setresgid`, `setgroups`, …
    pub call: String,
    /// User ids that the process would have afterwards (real, effective, saved or file-system).
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub uids: Vec<u32>,
    /// Group ids that the process would have afterwards.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub gids: Vec<u32>,
    /// Supplementary groups that the process would have afterwards (setgroups).
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub groups: Option<Vec<u32>>,
}
