//! What the stages of an answer cost: looking at the caller, decoding its call, the decision of the built-in allowlist with a
//! hundred entries, the record.
#![allow(clippy::unwrap_used, missing_docs)]

use std::net::{Ipv4Addr, UdpSocket};
use std::os::fd::{AsFd, AsRawFd};
use std::time::Duration;

use criterion::{Criterion, criterion_group, criterion_main};

use callgate::audit::{Audit, Outcome, Record, Sinks};
use callgate::decide::{Chain, Decision, Denial, KnownFacts};
use callgate::event::{Action, Address, Endpoint, Event, EventKind, EventKinds, Exec, File, Socket, Subject};
use callgate::intercept::caller::Caller;
use callgate::intercept::path::View;
use callgate::intercept::sockets::Sockets;
use callgate::intercept::{calls, intercept};
use callgate::plugin::{Engine, builtin};
use callgate::policy::{Mode, Policy, Source};
use callgate::sys::credentials::Own;
use callgate::sys::notify::Notification;
use callgate::sys::seccomp;
use nix::fcntl::{OFlag, open};
use nix::sys::stat::Mode as FileMode;

fn chain(engine: &Engine, policy: &serde_json::Value) -> Chain {
    let source = Source { path: "policy.json".into(), text: policy.to_string() };
    Chain::load(engine, &Policy::parse(&source).unwrap(), builtin::ALLOWLIST_PRECOMPILED).unwrap()
}

fn event(action: Action) -> Event {
    let subject = Subject { pid: 10, tid: 10, parent: 1, executable: "/usr/bin/bash".into(), uid: 0, gid: 0 };
    Event { sequence: 0, time_ms: 0, subject, action }
}

fn exec(path: &str, arguments: usize) -> Event {
    let file = File { path: path.into(), canonical: true, mode: 0o100_755, ..File::default() };
    let loader = File { path: "/usr/lib/x86_64-linux-gnu/ld-linux-x86-64.so.2".into(), ..file.clone() };
    event(Action::Exec(Exec {
        requested: path.into(),
        file,
        loader: Some(loader),
        arguments: vec!["an argument".to_owned(); arguments],
        directory: "/root".into(),
        ..Exec::default()
    }))
}

fn connect(port: u16) -> Event {
    event(Action::Connect(Endpoint {
        socket: Socket { family: 2, kind: 1, protocol: 6 },
        address: Address::Ipv4 { ip: Ipv4Addr::new(10, 0, 99, 1), port },
    }))
}

/// Everything that is read of a caller and its memory, with ourselves as the caller.
fn decoding(criterion: &mut Criterion) {
    let handle = OFlag::O_PATH | OFlag::O_DIRECTORY | OFlag::O_CLOEXEC;
    let root = open("/", handle, FileMode::empty()).unwrap();
    let proc = open("/proc", handle, FileMode::empty()).unwrap();
    let outer = root.try_clone().unwrap();
    let view = View::new(root, proc, outer.as_fd()).unwrap();
    let own = Own { identity: view.own().clone(), withheld: 0 };
    let sockets = Sockets::default();
    let wanted: EventKinds = EventKind::ALL.into_iter().collect();
    let tid = nix::unistd::gettid().as_raw() as u32;
    criterion.bench_function("caller, new", |bencher| bencher.iter(|| Caller::read(&view, tid).unwrap()));
    let caller = Caller::read(&view, tid).unwrap();

    let socket = UdpSocket::bind("127.0.0.1:0").unwrap();
    let address = [&(libc::AF_INET as u16).to_ne_bytes()[..], &9_u16.to_be_bytes(), &[127, 0, 0, 1], &[0; 8]].concat();
    let (data, fd) = ([0_u8; 64], socket.as_raw_fd() as u64);
    let path = c"/bin/sh";
    let argv = [path.as_ptr(), c"-c".as_ptr(), c"true".as_ptr(), std::ptr::null()];
    let (to, length) = (address.as_ptr() as u64, address.len() as u64);
    let sendto = [fd, data.as_ptr() as u64, data.len() as u64, 0, to, length];
    let mut decode = |name: &str, number: libc::c_long, args: [u64; 6]| {
        let notification = Notification { id: 1, tid, number: number as i32, arch: seccomp::NATIVE_ARCH, args };
        let call = calls::call(number as i32).unwrap();
        criterion.bench_function(name, |bencher| {
            bencher.iter(|| intercept(&view, &own, &sockets, &caller, wanted, call, &notification).unwrap());
        });
    };
    decode("decode connect", libc::SYS_connect, [fd, to, length, 0, 0, 0]);
    decode("decode sendto", libc::SYS_sendto, sendto);
    decode("decode exec", libc::SYS_execve, [path.as_ptr() as u64, argv.as_ptr() as u64, 0, 0, 0, 0]);
}

/// What recording costs the caller, and what it costs until it is written.
fn records(criterion: &mut Criterion) {
    let text = serde_json::json!({
        "allow_executables": [], "audit": { "sinks": ["file:/dev/null"], "when_full": "block" }
    });
    let policy = Policy::parse(&Source { path: "policy.json".into(), text: text.to_string() }).unwrap();
    let audit = Audit::start(&policy.audit, Sinks::open(&policy.audit).unwrap()).unwrap();
    let event = exec("/usr/bin/whoami", 1);
    let denial = Denial { rule: "executables.not-listed".into(), reason: "it is not".into(), hint: None, errno: None };
    let decision = Decision {
        denial: Some(denial),
        plugin: "allowlist".into(),
        allowed_by: None,
        failures: vec![],
        candidates: vec![],
        took: Duration::ZERO,
    };
    let record = Record {
        mode: Mode::Enforce,
        ancestors: vec![event.subject.clone(); 3],
        event,
        decision: decision.into(),
        outcome: Outcome::Denied(13),
    };
    criterion.bench_function("record, until it is written", |bencher| bencher.iter(|| audit.record(record.clone())));
    audit.finish(Mode::Enforce, Duration::from_secs(2));
}

fn decisions(criterion: &mut Criterion) {
    let engine = Engine::new().unwrap();
    let _clock = engine.start_clock().unwrap();
    let paths: Vec<String> = (0..100).map(|n| format!("/opt/tools/bin/tool-{n}")).collect();
    let globs: Vec<String> = (0..100).map(|n| format!("/opt/*/bin/tool-{n}-*")).collect();
    let rules: Vec<_> = (0..100)
        .map(|n| serde_json::json!({ "to": format!("10.0.{n}.0/24"), "ports": 443, "protocol": "tcp" }))
        .collect();
    let policy = serde_json::json!({ "allow_executables": paths, "network": { "outbound": rules } });
    let by_glob = serde_json::json!({ "allow_executables": globs });
    let (mut listed, mut globs) = (chain(&engine, &policy), chain(&engine, &by_glob));
    let mut measure = |name: &str, chain: &mut Chain, mut event: Event| {
        let facts = KnownFacts::default().about(&event);
        criterion.bench_function(name, |bencher| bencher.iter(|| chain.decide(&mut event, &facts)));
    };
    measure("exec, listed", &mut listed, exec("/opt/tools/bin/tool-99", 3));
    measure("exec, denied", &mut listed, exec("/usr/bin/whoami", 1));
    measure("exec, 1000 arguments", &mut listed, exec("/opt/tools/bin/tool-99", 1000));
    measure("connect, the last of 100 rules", &mut listed, connect(443));
    measure("connect, denied", &mut listed, connect(80));
    measure("exec, the last of 100 globs", &mut globs, exec("/opt/tools/bin/tool-99-x", 3));
    for (name, mut event) in [("connect", connect(443)), ("exec", exec("/opt/tools/bin/tool-99", 3))] {
        let recalled = format!("{name}, recalled");
        criterion.bench_function(&recalled, |bencher| bencher.iter(|| listed.recall(&mut event).unwrap()));
    }
    criterion.bench_function("load", |bencher| bencher.iter(|| chain(&engine, &policy)));
}

criterion_group!(benches, decoding, decisions, records);
criterion_main!(benches);
