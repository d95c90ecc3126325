//! Notification → event: copies what a call means out of the caller, once.
//!
//! May depend on `sys` and `event`. What comes out is an [`Action`] for the plugins and a [`Copy`] for `enforce`, made of the
//! same bytes; the caller's memory is not read again.

pub mod caller;
pub mod calls;
pub mod exec;
pub mod network;
pub mod path;

use std::os::fd::AsRawFd;

use nix::errno::Errno;

use crate::event::{Accept, Action, Credentials, EventKinds, Socket};
use crate::sys::notify::Notification;
use crate::sys::socket;
use caller::{Caller, IdKind};
use calls::Call;
use network::{Held, Message, Target};
use path::View;

/// The private copy of a call: what is carried out if it is allowed.
#[derive(Debug)]
pub enum Copy {
    /// Run this program.
    Exec(Box<exec::Program>),
    /// Connect this socket.
    Connect(Held, Target),
    /// Bind this socket.
    Bind(Held, Target),
    /// Listen on this socket, with this backlog.
    Listen(Held, i32),
    /// Give the caller this connection, which has been accepted already.
    Accept(Held),
    /// Send these messages; for sendmmsg(2), write what was sent to the caller's vector.
    Send(Held, Message),
    /// All arguments are numbers: the kernel can go on with the very call.
    Numbers,
    /// Like numbers, but the groups are in the caller's memory: the kernel goes on, and the result is verified.
    Groups(Vec<u32>),
}

/// What a notification turned out to be.
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
    /// Not for plugins: the supervisor itself refuses it.
    Refused(&'static str, Errno),
}

/// Decodes a call that was notified of.
///
/// # Errors
/// The errno that the kernel would answer to this call.
pub fn intercept(
    view: &View,
    caller: &Caller,
    wanted: EventKinds,
    call: Call,
    notification: &Notification,
) -> Result<Intercepted, Errno> {
    let args = notification.args;
    let held = || Held::take(caller, args[0] as i32);
    Ok(match call {
        Call::Execve | Call::Execveat => {
            let (action, program) = exec::read(view, caller, notification, call == Call::Execveat)?;
            Intercepted::Event(action, Copy::Exec(Box::new(program)))
        }
        Call::Connect => {
            let held = held()?;
            let bytes = network::copy_address(caller, args[1], args[2])?;
            let target = network::destination(view, caller, &held, bytes)?;
            let action = Action::Connect(network::endpoint(&held, target.address.clone()));
            Intercepted::Event(action, Copy::Connect(held, target))
        }
        Call::Bind => {
            let held = held()?;
            let bytes = network::copy_address(caller, args[1], args[2])?;
            let target = network::local(view, caller, &held, bytes)?;
            let action = Action::Bind(network::endpoint(&held, target.address.clone()));
            Intercepted::Event(action, Copy::Bind(held, target))
        }
        Call::Listen => {
            let held = held()?;
            let own = socket::local_address(&held.fd).map_err(|_| Errno::EINVAL)?;
            let address = network::known(held.socket.family, &own);
            let action = Action::Listen(network::endpoint(&held, address));
            Intercepted::Event(action, Copy::Listen(held, args[1] as i32))
        }
        Call::Accept => {
            let flags = if i64::from(notification.number) == libc::SYS_accept4 { args[3] as i32 } else { 0 };
            Intercepted::Accepting(held()?, flags)
        }
        Call::Sendto => {
            let held = held()?;
            let mut message = Message { flags: args[3] as i32, ..Message::default() };
            if args[4] != 0 && args[5] as i32 != 0 {
                let bytes = network::copy_address(caller, args[4], args[5])?;
                message.target = Some(network::destination(view, caller, &held, bytes)?);
            }
            message.data = network::copy_payload(caller, &held, args[1], args[2])?;
            sending(wanted, held, message)
        }
        Call::Sendmsg => {
            let held = held()?;
            let message = network::copy_message(view, caller, &held, args[1], args[2] as i32)?;
            sending(wanted, held, message)
        }
        Call::Sendmmsg => Intercepted::Messages(held()?, args[1], args[2].min(network::PARTS_MAX), args[3] as i32),
        Call::Socket => {
            let kind = args[1] as u32 & !((libc::SOCK_NONBLOCK | libc::SOCK_CLOEXEC) as u32);
            let socket = Socket { family: args[0] as u16, kind, protocol: args[2] as u32 };
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
        Call::Bypass(name) => Intercepted::Refused(name, Errno::EPERM),
        Call::Task(_) | Call::PidfdSendSignal => Intercepted::Ungoverned(Copy::Numbers),
    })
}

/// What a message to be sent is: a connection, with `MSG_FASTOPEN` on a stream; a datagram to an address; or neither, and
/// then it goes where the socket is connected to already.
pub fn sending(wanted: EventKinds, held: Held, message: Message) -> Intercepted {
    let Some(target) = &message.target else { return Intercepted::Ungoverned(Copy::Send(held, message)) };
    let endpoint = network::endpoint(&held, target.address.clone());
    let fast_open = message.flags & libc::MSG_FASTOPEN != 0;
    let action = if fast_open && held.is_stream() { Action::Connect(endpoint) } else { Action::Send(endpoint) };
    // A stream takes no address from a message, save to open a connection with it.
    let ignored = held.is_stream() && !fast_open;
    if ignored || !wanted.contains(action.kind()) {
        return Intercepted::Ungoverned(Copy::Send(held, message));
    }
    Intercepted::Event(action, Copy::Send(held, message))
}

/// The event of a connection that has been accepted from a listening socket.
pub fn accepted(listening: &Held, connection: &Held, peer: &[u8]) -> Action {
    let family = listening.socket.family;
    let local = socket::local_address(&connection.fd).unwrap_or_default();
    debug_assert!(connection.fd.as_raw_fd() >= 0);
    Action::Accept(Accept {
        socket: listening.socket,
        local: network::known(family, &local),
        peer: network::known(family, peer),
    })
}
