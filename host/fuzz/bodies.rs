//! What the fuzz targets do with their input. Shared by cargo-fuzz's targets beside this file and by `tests/fuzz.rs`, which runs
//! each for a moment with every test run.

use std::io::Write;
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::path::PathBuf;
use std::sync::OnceLock;

use callgate::event::{EventKind, EventKinds};
use callgate::intercept::caller::Caller;
use callgate::intercept::calls;
use callgate::intercept::path::View;
use callgate::intercept::sockets::Sockets;
use callgate::intercept::{self};
use callgate::policy::{Policy, Source};
use callgate::sys::credentials::Own;
use callgate::sys::notify::Notification;
use callgate::sys::seccomp;
use nix::fcntl::{OFlag, open};
use nix::sys::memfd::{MFdFlags, memfd_create};
use nix::sys::socket::{AddressFamily, SockFlag, SockType, socket};
use nix::sys::stat::Mode;

/// Decodes a call whose arguments, and the memory that they point to, are the input: we are our own hostile caller.
pub fn call(data: &[u8]) {
    static PLACE: OnceLock<Place> = OnceLock::new();
    let place = PLACE.get_or_init(Place::new);
    let Some((head, memory)) = data.split_at_checked(14) else { return };
    let number = NUMBERS[head[0] as usize % NUMBERS.len()];
    // Where an argument is a pointer, it points into the input, before its end or a little after it.
    let mut args = [0; 6];
    for (argument, pair) in args.iter_mut().zip(head[2..].chunks_exact(2)) {
        let value = u16::from_le_bytes([pair[0], pair[1]]);
        *argument = match value >> 14 {
            0 => u64::from(value),
            1 => place.descriptors[value as usize % place.descriptors.len()].as_raw_fd() as u64,
            _ => memory.as_ptr() as u64 + u64::from(value & 0x3fff) % (memory.len() as u64 + 8),
        };
    }
    // Pointers within the memory, as in a message's header, mean offsets, too.
    let mut memory = memory.to_vec();
    let begin = memory.as_ptr() as u64;
    if head[1] & 1 == 1 {
        for word in memory.chunks_exact_mut(8) {
            if word[7] == 0xff {
                let offset = u64::from(u16::from_le_bytes([word[0], word[1]]));
                word.copy_from_slice(&(begin + offset % 4096).to_ne_bytes());
            }
        }
    }
    let old = data[14..].as_ptr() as u64;
    for argument in &mut args {
        if (old..=old + memory.len() as u64 + 8).contains(argument) {
            *argument = *argument - old + begin;
        }
    }
    let tid = nix::unistd::gettid().as_raw() as u32;
    let caller = Caller::read(&place.view, tid).expect("we can look at ourselves");
    let call = calls::call(number as i32).expect("the table knows its own numbers");
    let notification = Notification { id: 1, tid, number: number as i32, arch: seccomp::NATIVE_ARCH, args };
    let wanted: EventKinds = EventKind::ALL.into_iter().collect();
    let _ = intercept::intercept(&place.view, &place.own, &Sockets::default(), &caller, wanted, call, &notification);
}

/// Decodes the exec of a file whose content is the input: first line, ELF header, program headers.
pub fn program(data: &[u8]) {
    static PLACE: OnceLock<Place> = OnceLock::new();
    let place = PLACE.get_or_init(Place::new);
    let file = memfd_create(c"fuzz", MFdFlags::empty()).expect("a memfd");
    std::fs::File::from(file.try_clone().expect("a descriptor")).write_all(data).expect("room");
    let tid = nix::unistd::gettid().as_raw() as u32;
    let caller = Caller::read(&place.view, tid).expect("we can look at ourselves");
    let (path, argv) = (c"", [0_u64; 2]);
    let args = [file.as_raw_fd() as u64, path.as_ptr() as u64, argv.as_ptr() as u64, 0, libc::AT_EMPTY_PATH as u64, 0];
    let number = libc::SYS_execveat as i32;
    let notification = Notification { id: 1, tid, number, arch: seccomp::NATIVE_ARCH, args };
    let call = calls::call(number).expect("in the table");
    let wanted: EventKinds = EventKind::ALL.into_iter().collect();
    let _ = intercept::intercept(&place.view, &place.own, &Sockets::default(), &caller, wanted, call, &notification);
}

/// Reads a policy, and shows what is wrong with it.
pub fn policy(data: &[u8]) {
    let Ok(text) = std::str::from_utf8(data) else { return };
    let source = Source { path: PathBuf::from("policy.json"), text: text.to_owned() };
    if let Err(mistake) = Policy::parse(&source) {
        mistake.render(true);
    }
}

const NUMBERS: &[i64] = &[
    libc::SYS_connect,
    libc::SYS_bind,
    libc::SYS_sendto,
    libc::SYS_sendmsg,
    libc::SYS_execve,
    libc::SYS_execveat,
    libc::SYS_setgroups,
    libc::SYS_socket,
    libc::SYS_setresuid,
    libc::SYS_listen,
];

struct Place {
    view: View,
    own: Own,
    descriptors: Vec<OwnedFd>,
}

impl Place {
    fn new() -> Self {
        let handle = OFlag::O_PATH | OFlag::O_DIRECTORY | OFlag::O_CLOEXEC;
        let [root, proc, outer] = ["/", "/proc", "/"].map(|path| open(path, handle, Mode::empty()).expect(path));
        let view = View::new(root, proc, outer.as_fd()).expect("a /proc");
        let own = Own { identity: view.own().clone(), withheld: 0 };
        let kinds = [
            (AddressFamily::Inet, SockType::Datagram),
            (AddressFamily::Inet6, SockType::Stream),
            (AddressFamily::Unix, SockType::Stream),
            (AddressFamily::Unix, SockType::Datagram),
            (AddressFamily::Netlink, SockType::Raw),
        ];
        let descriptors =
            kinds.map(|(family, kind)| socket(family, kind, SockFlag::SOCK_CLOEXEC, None).expect("a socket"));
        Self { view, own, descriptors: descriptors.into() }
    }
}
