//! Strategies (`proptest`) for events of every kind: what a workload may do, and what only a hostile one would.
//!
//! ```no_run
//! # use callgate_sdk::testing::{Tester, strategies};
//! # use callgate_sdk::{ConfigError, Event, Exec, NoConfig, Plugin, Verdict};
//! # struct Mine;
//! # #[callgate_sdk::plugin]
//! # impl Plugin for Mine {
//! #     type Config = NoConfig;
//! #     fn new(_: NoConfig) -> Result<Self, ConfigError> { Ok(Self) }
//! #     fn exec(&mut self, _: &Event, _: &Exec) -> Verdict { Verdict::Abstain }
//! # }
//! proptest::proptest! {
//!     #[test]
//!     fn no_event_makes_it_panic(events in proptest::collection::vec(strategies::event(), 1..50)) {
//!         let mut plugin = Tester::<Mine>::new("{}").unwrap();
//!         for event in events {
//!             plugin.decide(event);
//!         }
//!     }
//! }
//! ```

use std::net::SocketAddr;

use proptest::collection::vec;
use proptest::option;
use proptest::prelude::{Just, Strategy, any, prop_oneof};

use crate::{
    Accepted, Action, Address, Credentials, Endpoint, Event, Exec, File, NetlinkAddress, OtherAddress, Socket, Subject,
    VsockAddress,
};

/// Any event.
pub fn event() -> impl Strategy<Value = Event> {
    (any::<u32>(), subject(), action()).prop_map(|(time, subject, action)| Event {
        sequence: 1,
        time_ms: 1_500_000_000_000 + u64::from(time),
        subject,
        action,
    })
}

/// What any event asks for.
pub fn action() -> impl Strategy<Value = Action> {
    prop_oneof![
        exec().prop_map(Action::Exec),
        exec().prop_map(Action::ExecFileless),
        endpoint().prop_map(Action::Connect),
        endpoint().prop_map(Action::Bind),
        endpoint().prop_map(Action::Listen),
        (socket(), address(), address()).prop_map(|(socket, local, peer)| Action::Accept(Accepted {
            socket,
            local,
            peer
        })),
        endpoint().prop_map(Action::Send),
        socket().prop_map(Action::Socket),
        credentials().prop_map(Action::Credentials),
    ]
}

/// A process.
pub fn subject() -> impl Strategy<Value = Subject> {
    (1..1_000_u32, 1..1_000_u32, path(), id(), id()).prop_map(|(pid, parent, executable, uid, gid)| Subject {
        pid,
        tid: pid,
        parent,
        executable,
        uid,
        gid,
    })
}

/// A canonical path: of a usual program, of few short names, or of anything that can be in one.
pub fn path() -> impl Strategy<Value = String> {
    prop_oneof![
        4 => proptest::sample::select(vec![
            "/usr/bin/bash", "/usr/bin/dash", "/usr/bin/ls", "/usr/bin/python3.11", "/usr/bin/curl", "/usr/sbin/nginx",
        ]).prop_map(str::to_owned),
        2 => "(/[a-c]{1,2}){1,3}",
        1 => "(/[^/\\x00]{1,8}){1,4}",
    ]
}

/// A file that may be run.
pub fn file() -> impl Strategy<Value = File> {
    let owner = (id(), id(), proptest::sample::select(vec![0o100_755, 0o100_777, 0o104_755, 0o100_700]));
    (path(), any::<bool>(), 1..4_u64, 1..100_u64, owner, 0..1_u64 << 32, 0..2_000_000_000_i64).prop_map(
        |(path, canonical, device, inode, (uid, gid, mode), size, changed)| File {
            path,
            canonical,
            device,
            inode,
            uid,
            gid,
            mode,
            size,
            changed_ns: changed * 1_000_000_000,
        },
    )
}

/// A program that is to be run.
pub fn exec() -> impl Strategy<Value = Exec> {
    let arguments = vec(prop_oneof![4 => "[ -~]{0,12}", 1 => "\\PC{0,12}"], 0..6);
    (file(), vec(file(), 0..3), option::of(file()), any::<(bool, bool)>(), arguments, path()).prop_map(
        |(file, interpreters, loader, (runs_loader, arguments_cut), arguments, directory)| Exec {
            requested: file.path.clone(),
            file,
            interpreters,
            loader,
            runs_loader,
            arguments,
            arguments_cut,
            directory,
        },
    )
}

/// A socket of a family and type that there may be.
pub fn socket() -> impl Strategy<Value = Socket> {
    (0..48_u16, 1..8_u32, 0..300_u32).prop_map(|(family, kind, protocol)| Socket { family, kind, protocol })
}

/// An address of any family.
pub fn address() -> impl Strategy<Value = Address> {
    prop_oneof![
        4 => any::<SocketAddr>().prop_map(Address::from),
        1 => path().prop_map(Address::Unix),
        1 => "\\PC{0,12}".prop_map(Address::UnixAbstract),
        1 => Just(Address::UnixUnnamed),
        1 => any::<(u32, u32)>().prop_map(|(pid, groups)| Address::Netlink(NetlinkAddress { pid, groups })),
        1 => any::<(u32, u32)>().prop_map(|(cid, port)| Address::Vsock(VsockAddress { cid, port })),
        1 => Just(Address::Unspecified),
        1 => (3..48_u16, "([0-9a-f]{2}){0,14}").prop_map(|(number, data)| Address::Other(OtherAddress { number, data })),
    ]
}

/// A socket and an address. Mostly they fit each other.
pub fn endpoint() -> impl Strategy<Value = Endpoint> {
    prop_oneof![
        4 => (any::<SocketAddr>(), proptest::sample::select(vec![(1, 6), (2, 17)])).prop_map(|(address, (kind, protocol))| {
            let family = if address.is_ipv4() { 2 } else { 10 };
            Endpoint { socket: Socket { family, kind, protocol }, address: address.into() }
        }),
        1 => (socket(), address()).prop_map(|(socket, address)| Endpoint { socket, address }),
    ]
}

/// A change of user or groups.
pub fn credentials() -> impl Strategy<Value = Credentials> {
    let calls = vec!["setuid", "setresuid", "setgid", "setresgid", "setgroups", "setfsuid"];
    (proptest::sample::select(calls), vec(id(), 0..4), vec(id(), 0..4), option::of(vec(id(), 0..4)))
        .prop_map(|(call, uids, gids, groups)| Credentials { call: call.to_owned(), uids, gids, groups })
}

/// A user or a group: root, a service, a person, or any number.
fn id() -> impl Strategy<Value = u32> {
    prop_oneof![4 => proptest::sample::select(vec![0, 33, 1000, 65534]), 1 => any::<u32>()]
}

/// A [`Glob`](crate::Glob), with what is special elsewhere among what is special in it.
pub fn glob() -> impl Strategy<Value = String> {
    const PARTS: &[&str] =
        &["a", "b", "/", "*", "**", "?", "[ab]", "{a,b/}", "\\", "!", "abc", "/**/", "tool", "[", "]", "}", "aab"];
    vec(proptest::sample::select(PARTS), 0..8).prop_map(|parts| parts.concat())
}
