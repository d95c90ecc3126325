//! What a decision costs: the built-in allowlist, with a hundred entries, on what is asked most.
#![allow(clippy::unwrap_used, missing_docs)]

use std::net::Ipv4Addr;

use criterion::{Criterion, criterion_group, criterion_main};

use callgate::decide::{Chain, KnownFacts};
use callgate::event::{Action, Address, Endpoint, Event, Exec, File, Socket, Subject};
use callgate::plugin::{Engine, builtin};
use callgate::policy::{Policy, Source};

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
    criterion.bench_function("load", |bencher| bencher.iter(|| chain(&engine, &policy)));
}

criterion_group!(benches, decisions);
criterion_main!(benches);
