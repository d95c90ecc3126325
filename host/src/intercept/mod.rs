//! Notification → event: copies what a call means out of the caller, once.
//!
//! May depend on `sys` and `event`. What comes out is an [`Action`] for the plugins and a [`Copy`] for `enforce`, made of the
//! same bytes; the caller's memory is not read again.

pub mod caller;
pub mod callers;
pub mod calls;
pub mod errands;
pub mod exec;
pub mod facts;
pub mod network;
pub mod path;
pub mod sockets;

use std::hash::{DefaultHasher, Hash, Hasher};

use nix::errno::Errno;

use crate::event::{Accept, Action, Address, Credentials, EventKinds, Socket};
use crate::sys::credentials::Own;
use crate::sys::notify::Notification;
use crate::sys::socket;
use caller::{Caller, IdKind};
use calls::Call;
use network::{Held, Message, Target};
use path::View;
use sockets::Sockets;

/// The private copy of a call: what is carried out if it is allowed.
#[derive(Debug)]
pub enum Copy {
    /// Run this program.
    Exec(Box<exec::Program>),
    /// Connect this socket.
    Connect(Held, Target),
    /// Bind this socket.
    Bind(Held, Target),
    /// Listen on this socket, with this backlog, at this address that it had.
    Listen(Held, i32, Vec<u8>),
    /// Give the caller this connection, which has been accepted already.
    Accept(Held),
    /// Send these messages; for sendmmsg(2), write what was sent to the caller's vector.
    Send(Held, Message),
    /// All arguments are numbers: the kernel can go on with the very call.
    Numbers,
    /// Like numbers, but the groups are in the caller's memory: the kernel goes on, and the result is verified.
    Groups(Vec<u32>),
}

impl Copy {
    /// The socket that it is about.
    pub fn socket(&self) -> Option<&Held> {
        match self {
            Self::Connect(held, _) | Self::Bind(held, _) | Self::Listen(held, ..) => Some(held),
            Self::Accept(held) | Self::Send(held, _) => Some(held),
            Self::Exec(_) | Self::Numbers | Self::Groups(_) => None,
        }
    }

    /// A number that the same call on the same socket has when it is made again, and hardly another.
    pub fn fingerprint(&self) -> u64 {
        let mut hasher = DefaultHasher::new();
        std::mem::discriminant(self).hash(&mut hasher);
        // Not the bytes for the kernel, in which there may be numbers of our own descriptors.
        let address = |target: &Target| format!("{:?}", target.address);
        match self {
            Self::Connect(_, target) | Self::Bind(_, target) => address(target).hash(&mut hasher),
            Self::Listen(_, backlog, _) => backlog.hash(&mut hasher),
            Self::Send(_, message) => {
                message.target.as_ref().map(address).hash(&mut hasher);
                (message.flags, message.control.len(), message.passed.len(), message.claim).hash(&mut hasher);
                (*message.data).hash(&mut hasher);
                message.rest.hash(&mut hasher);
            }
            Self::Accept(_) | Self::Exec(_) | Self::Numbers | Self::Groups(_) => {}
        }
        hasher.finish()
    }
}

/// What a notification turned out to be.
#[expect(clippy::large_enum_variant, reason = "made once for a call, and not moved about")]
#[derive(Debug)]
pub enum Intercepted {
    /// An event to be decided on, and what to do if it is allowed.
    Event(Action, Copy),
    /// Nothing that a plugin decides on, to be carried out from the copy all the same.
    Ungoverned(Copy),
    /// Several messages: each is decided on.
    Messages(Held, u64, u64, i32),
    /// A connection is to be accepted: the peer is known only then.
    Accepting(Held, i32),
    /// The caller asks who its peer is, and wants that written here, and its length there: the kernel may believe that it
    /// is the supervisor.
    PeerCredentials(Held, u64, u64),
    /// It asks for a descriptor of its peer, which might be one of the supervisor.
    PeerDescriptor(Held),
    /// Not for plugins: the supervisor itself refuses it.
    Refused(&'static str, Errno),
}

/// Decodes a call that was notified of.
///
/// # Errors
/// The errno that the kernel would answer to this call.
pub fn intercept(
    view: &View,
    own: &Own,
    sockets: &Sockets,
    caller: &Caller,
    wanted: EventKinds,
    call: Call,
    notification: &Notification,
) -> Result<Intercepted, Errno> {
    let args = notification.args;
    let held = || Held::take(caller, args[0] as i32, |socket| sockets.kind(socket));
    Ok(match call {
        Call::Execve | Call::Execveat => {
            let (action, program) = exec::read(view, caller, notification, call == Call::Execveat)?;
            Intercepted::Event(action, Copy::Exec(Box::new(program)))
        }
        Call::Connect => {
            let held = held()?;
            let bytes = network::copy_address(caller, &held, args[1], args[2])?;
            let target = network::destination(view, own, caller, &held, bytes)?;
            if held.refuses(&target.bytes) {
                return Ok(Intercepted::Ungoverned(Copy::Connect(held, target)));
            }
            let action = Action::Connect(network::endpoint(&held, target.address.clone()));
            Intercepted::Event(action, Copy::Connect(held, target))
        }
        Call::Bind => {
            // As a rule it is what a socket is used for first, so that nobody has asked yet what it is.
            let held = Held::take(caller, args[0] as i32, |socket| sockets::kind(socket))?;
            let bytes = network::copy_address(caller, &held, args[1], args[2])?;
            let target = network::local(view, own, caller, &held, bytes)?;
            let autobinds = i32::from(held.socket.family) == libc::AF_UNIX && target.address == Address::UnixUnnamed;
            if held.refuses(&target.bytes) && !autobinds {
                return Ok(Intercepted::Ungoverned(Copy::Bind(held, target)));
            }
            let action = Action::Bind(network::endpoint(&held, target.address.clone()));
            Intercepted::Event(action, Copy::Bind(held, target))
        }
        Call::Listen => {
            let held = held()?;
            let local = socket::local_address(&held.fd).map_err(|_| Errno::EINVAL)?;
            let address = match sockets.bound(&held.fd) {
                Some(path) => Address::Unix { path },
                None => network::known(held.socket.family, &local),
            };
            let action = Action::Listen(network::endpoint(&held, address));
            Intercepted::Event(action, Copy::Listen(held, args[1] as i32, local))
        }
        Call::Accept => {
            let flags = if i64::from(notification.number) == libc::SYS_accept4 { args[3] as i32 } else { 0 };
            let held = held()?;
            if flags & !(libc::SOCK_NONBLOCK | libc::SOCK_CLOEXEC) != 0 {
                return Err(Errno::EINVAL);
            }
            Intercepted::Accepting(held, flags)
        }
        Call::Sendto => {
            let held = held()?;
            let mut message = Message { flags: args[3] as i32, ..Message::default() };
            let inet = matches!(i32::from(held.socket.family), libc::AF_INET | libc::AF_INET6);
            if args[4] != 0 && args[5] as i32 == 0 && inet && !held.is_stream() {
                return Err(Errno::EINVAL); // an address of no length is not the same as none (udp_sendmsg, net/ipv4/udp.c)
            }
            if args[4] != 0 && args[5] as i32 != 0 {
                let bytes = network::copy_address(caller, &held, args[4], args[5])?;
                message.target = Some(network::receiver(view, own, caller, &held, bytes)?);
            }
            let parts = [(args[1], args[2])].into();
            (message.data, message.rest) = network::copy_payload(caller, &held, message.flags, parts)?;
            sending(wanted, held, message)
        }
        Call::Sendmsg => {
            let held = held()?;
            let message = network::copy_message(view, own, caller, &held, args[1], args[2] as i32)?;
            sending(wanted, held, message)
        }
        Call::Sendmmsg => {
            let count = u64::from(args[2] as u32).min(network::PARTS_MAX);
            Intercepted::Messages(held()?, args[1], count, args[3] as i32)
        }
        Call::Socket => {
            const INET: u16 = libc::AF_INET as u16;
            const PACKET: u32 = 10; // SOCK_PACKET
            let kind = args[1] as u32 & !((libc::SOCK_NONBLOCK | libc::SOCK_CLOEXEC) as u32);
            let family = match (args[0] as u16, kind) {
                // `__sock_create` (net/socket.c): an old way to say AF_PACKET.
                (INET, PACKET) => libc::AF_PACKET as u16,
                (family, _) => family,
            };
            let socket = Socket { family, kind, protocol: args[2] as u32 };
            Intercepted::Event(Action::Socket(socket), Copy::Numbers)
        }
        Call::Identity(identity) => {
            let ids: Vec<u32> =
                args[..identity.count].iter().map(|id| *id as u32).filter(|id| *id != u32::MAX).collect();
            let ids = caller.known_to_us(view, if identity.users { IdKind::User } else { IdKind::Group }, &ids)?;
            let call = identity.name.to_owned();
            let credentials = if identity.users {
                Credentials { call, uids: ids, ..Credentials::default() }
            } else {
                Credentials { call, gids: ids, ..Credentials::default() }
            };
            Intercepted::Event(Action::Credentials(credentials), Copy::Numbers)
        }
        Call::Setgroups => {
            const NGROUPS_MAX: u64 = 65536; // limits.h
            if args[0] as u32 as u64 > NGROUPS_MAX {
                return Err(Errno::EINVAL);
            }
            let list = caller.copy(args[1], args[0] as u32 as usize * 4)?;
            let groups: Vec<u32> =
                list.chunks_exact(4).map(|id| u32::from_ne_bytes([id[0], id[1], id[2], id[3]])).collect();
            let mut groups = caller.known_to_us(view, IdKind::Group, &groups)?;
            groups.sort_unstable();
            let credentials =
                Credentials { call: "setgroups".into(), groups: Some(groups.clone()), ..Credentials::default() };
            Intercepted::Event(Action::Credentials(credentials), Copy::Groups(groups))
        }
        Call::Getsockopt if (args[1] as i32, args[2] as i32) == (libc::SOL_SOCKET, calls::SO_PEERPIDFD) => {
            Intercepted::PeerDescriptor(held()?)
        }
        Call::Getsockopt if args[1] as i32 == libc::SOL_SOCKET => {
            Intercepted::PeerCredentials(held()?, args[3], args[4])
        }
        Call::Getsockopt => Intercepted::Refused("getsockopt", Errno::EPERM),
        Call::Bypass(name) => Intercepted::Refused(name, Errno::EPERM),
        Call::Task(_) | Call::TaskOrMany(_) | Call::PidfdSendSignal => Intercepted::Ungoverned(Copy::Numbers),
    })
}

/// What a message to be sent is: a connection, with `MSG_FASTOPEN` on a stream; a datagram to an address; or neither, and
/// then it goes where the socket is connected to already.
pub fn sending(wanted: EventKinds, held: Held, message: Message) -> Intercepted {
    let Some(target) = &message.target else { return Intercepted::Ungoverned(Copy::Send(held, message)) };
    let endpoint = network::endpoint(&held, target.address.clone());
    let fast_open = message.flags & libc::MSG_FASTOPEN != 0;
    let action = if fast_open && held.is_stream() { Action::Connect(endpoint) } else { Action::Send(endpoint) };
    let ignored = held.ignores_addresses() && !(fast_open && held.is_stream());
    if ignored || held.refuses(&target.bytes) || !wanted.contains(action.kind()) {
        return Intercepted::Ungoverned(Copy::Send(held, message));
    }
    Intercepted::Event(action, Copy::Send(held, message))
}

/// The event of a connection that has been accepted from a listening socket.
pub fn accepted(listening: &Held, connection: &Held, peer: &[u8]) -> Action {
    let family = listening.socket.family;
    let local = socket::local_address(&connection.fd).unwrap_or_default();
    Action::Accept(Accept {
        socket: listening.socket,
        local: network::known(family, &local),
        peer: network::known(family, peer),
    })
}
