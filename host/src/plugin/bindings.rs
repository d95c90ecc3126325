//! The types of `sdk/wit`, and events as such.

use std::net::{Ipv4Addr, Ipv6Addr};

use crate::{decide, event};

wasmtime::component::bindgen!({
    path: "../sdk/wit",
    world: "plugin",
    // Events are written into the plugin's memory straight from ours.
    ownership: Borrowing { duplicate_if_necessary: true },
    imports: { default: trappable },
});

pub(super) use self::callgate::policy::types;

/// The lists of an event, which WIT types can only borrow.
pub(super) struct Lists<'a> {
    arguments: Vec<&'a str>,
    interpreters: Vec<types::File<'a>>,
}

impl<'a> Lists<'a> {
    pub(super) fn of(event: &'a event::Event) -> Self {
        match &event.action {
            event::Action::Exec(exec) | event::Action::ExecFileless(exec) => Self {
                arguments: exec.arguments.iter().map(String::as_str).collect(),
                interpreters: exec.interpreters.iter().map(file).collect(),
            },
            _ => Self { arguments: Vec::new(), interpreters: Vec::new() },
        }
    }
}

/// The event as the plugin gets it. `lists` are its own.
pub(super) fn event<'a>(event: &'a event::Event, lists: &'a Lists<'a>) -> types::Event<'a> {
    let subject = &event.subject;
    types::Event {
        sequence: event.sequence,
        time_ms: event.time_ms,
        subject: types::SubjectParam {
            pid: subject.pid,
            tid: subject.tid,
            parent: subject.parent,
            executable: &subject.executable,
            uid: subject.uid,
            gid: subject.gid,
        },
        action: match &event.action {
            event::Action::Exec(it) => types::Action::Exec(exec(it, lists)),
            event::Action::ExecFileless(it) => types::Action::ExecFileless(exec(it, lists)),
            event::Action::Connect(it) => types::Action::Connect(endpoint(it)),
            event::Action::Bind(it) => types::Action::Bind(endpoint(it)),
            event::Action::Listen(it) => types::Action::Listen(endpoint(it)),
            event::Action::Accept(it) => types::Action::Accept(types::Accepted {
                socket: socket(it.socket),
                local: address(&it.local),
                peer: address(&it.peer),
            }),
            event::Action::Send(it) => types::Action::Send(endpoint(it)),
            event::Action::Socket(it) => types::Action::Socket(socket(*it)),
            event::Action::Credentials(it) => types::Action::Credentials(types::Credentials {
                call: &it.call,
                uids: &it.uids,
                gids: &it.gids,
                groups: it.groups.as_deref(),
            }),
        },
    }
}

fn exec<'a>(exec: &'a event::Exec, lists: &'a Lists<'a>) -> types::Exec<'a> {
    types::Exec {
        requested: &exec.requested,
        file: file(&exec.file),
        interpreters: &lists.interpreters,
        loader: exec.loader.as_ref().map(file),
        runs_loader: exec.runs_loader,
        arguments: &lists.arguments,
        arguments_cut: exec.arguments_cut,
        directory: &exec.directory,
    }
}

fn file(file: &event::File) -> types::File<'_> {
    types::File {
        path: &file.path,
        canonical: file.canonical,
        device: file.device,
        inode: file.inode,
        uid: file.uid,
        gid: file.gid,
        mode: file.mode,
        size: file.size,
        changed_ns: file.changed_ns,
    }
}

fn endpoint(endpoint: &event::Endpoint) -> types::Endpoint<'_> {
    types::Endpoint { socket: socket(endpoint.socket), address: address(&endpoint.address) }
}

fn socket(socket: event::Socket) -> types::Socket {
    types::Socket { family: socket.family, kind: socket.kind, protocol: socket.protocol }
}

fn address(address: &event::Address) -> types::AddressParam<'_> {
    match address {
        event::Address::Ipv4 { ip, port } => types::AddressParam::Ipv4(ipv4(*ip, *port)),
        event::Address::Ipv6 { ip, port, scope } => types::AddressParam::Ipv6(ipv6(*ip, *port, *scope)),
        event::Address::Unix { path } => types::AddressParam::Unix(path),
        event::Address::UnixAbstract { name } => types::AddressParam::UnixAbstract(name),
        event::Address::UnixUnnamed => types::AddressParam::UnixUnnamed,
        event::Address::Netlink { pid, groups } => {
            types::AddressParam::Netlink(types::NetlinkAddress { pid: *pid, groups: *groups })
        }
        event::Address::Vsock { cid, port } => {
            types::AddressParam::Vsock(types::VsockAddress { cid: *cid, port: *port })
        }
        event::Address::Unspecified => types::AddressParam::Unspecified,
        event::Address::Other { number, data } => {
            types::AddressParam::Other(types::OtherAddressParam { number: *number, data })
        }
    }
}

/// A standard stream, as the plugin gets it.
pub(super) fn stream(stream: decide::Stream) -> types::Stream {
    match stream {
        decide::Stream::Closed => types::Stream::Closed,
        decide::Stream::File(path) => types::Stream::File(path),
        decide::Stream::Terminal(path) => types::Stream::Terminal(path),
        decide::Stream::Pipe => types::Stream::Pipe,
        decide::Stream::Socket { socket: it, peer } => {
            types::Stream::Socket(types::StreamSocket { socket: socket(it), peer: peer.map(owned_address) })
        }
        decide::Stream::Other(name) => types::Stream::Other(name),
        decide::Stream::Unknown => types::Stream::Unknown,
    }
}

/// An address that goes into a plugin as the answer of a host function.
fn owned_address(address: event::Address) -> types::AddressResult {
    match address {
        event::Address::Ipv4 { ip, port } => types::AddressResult::Ipv4(ipv4(ip, port)),
        event::Address::Ipv6 { ip, port, scope } => types::AddressResult::Ipv6(ipv6(ip, port, scope)),
        event::Address::Unix { path } => types::AddressResult::Unix(path),
        event::Address::UnixAbstract { name } => types::AddressResult::UnixAbstract(name),
        event::Address::UnixUnnamed => types::AddressResult::UnixUnnamed,
        event::Address::Netlink { pid, groups } => types::AddressResult::Netlink(types::NetlinkAddress { pid, groups }),
        event::Address::Vsock { cid, port } => types::AddressResult::Vsock(types::VsockAddress { cid, port }),
        event::Address::Unspecified => types::AddressResult::Unspecified,
        event::Address::Other { number, data } => {
            types::AddressResult::Other(types::OtherAddressResult { number, data })
        }
    }
}

fn ipv4(ip: Ipv4Addr, port: u16) -> types::Ipv4Address {
    types::Ipv4Address { ip: ip.to_bits(), port }
}

fn ipv6(ip: Ipv6Addr, port: u16, scope: u32) -> types::Ipv6Address {
    let bits = ip.to_bits();
    types::Ipv6Address { high: (bits >> 64) as u64, low: bits as u64, port, scope }
}

/// The kinds that a plugin subscribed to.
pub(super) fn kinds(flags: types::EventKinds) -> event::EventKinds {
    event::EventKind::ALL.into_iter().filter(|kind| flags.contains(flag(*kind))).collect()
}

fn flag(kind: event::EventKind) -> types::EventKinds {
    match kind {
        event::EventKind::Exec => types::EventKinds::EXEC,
        event::EventKind::ExecFileless => types::EventKinds::EXEC_FILELESS,
        event::EventKind::Connect => types::EventKinds::CONNECT,
        event::EventKind::Bind => types::EventKinds::BIND,
        event::EventKind::Listen => types::EventKinds::LISTEN,
        event::EventKind::Accept => types::EventKinds::ACCEPT,
        event::EventKind::Send => types::EventKinds::SEND,
        event::EventKind::Socket => types::EventKinds::SOCKET,
        event::EventKind::Credentials => types::EventKinds::CREDENTIALS,
    }
}
