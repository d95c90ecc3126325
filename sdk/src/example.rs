//! Events for a plugin's own tests: plausible values, of which a test replaces what it is about.

use crate::{Action, Address, Endpoint, Event, Exec, File, Ipv4Address, Socket, Subject};

/// An event of a shell, run by root.
pub fn event(action: Action) -> Event {
    let subject = Subject { pid: 100, tid: 100, parent: 1, executable: "/usr/bin/bash".to_owned(), uid: 0, gid: 0 };
    Event { sequence: 1, time_ms: 1_500_000_000_000, subject, action }
}

/// A program of the image, which root owns and everybody may run.
pub fn file(path: &str) -> File {
    File {
        path: path.to_owned(),
        canonical: true,
        device: 1,
        inode: 1,
        uid: 0,
        gid: 0,
        mode: 0o100_755,
        size: 1,
        changed_ns: 0,
    }
}

/// That program about to be run, without arguments.
pub fn exec(path: &str) -> Exec {
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

/// A TCP socket and an address.
pub fn tcp(ip: [u8; 4], port: u16) -> Endpoint {
    Endpoint {
        socket: Socket { family: 2, kind: 1, protocol: 6 },
        address: Address::Ipv4(Ipv4Address { ip: u32::from_be_bytes(ip), port }),
    }
}
