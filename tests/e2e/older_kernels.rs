//! What kernels before Linux 5.19 and 6.9 lack, and how programs fare there: by a filter under which callgate takes this
//! kernel for such a one. Real ones are booted by `tests/kernels/run`.

use std::fs;
use std::path::PathBuf;
use std::process::Command;

use serde_json::json;

use crate::harness::{Fixture, Outcome, repository, run};
use crate::network::governed;
use crate::plugins::hostile;

/// Compiles `older_kernel` into the fixture's directory.
pub fn older(fixture: &Fixture) -> PathBuf {
    fixture.compile("older", include_str!("programs/older_kernel.c"), &[])
}

/// `callgate` as on such a kernel, or as on this one.
pub fn callgate(fixture: &Fixture, older: Option<&PathBuf>) -> Command {
    let command = fixture.callgate();
    let Some(older) = older else { return command };
    let mut behind = Command::new(older);
    behind.arg(command.get_program()).args(command.get_args());
    behind
}

/// A mode of `tests/kernels/threads.c`, with signals as often as is said.
fn threads(mode: &str, rounds: u32, storm_us: u32) -> Outcome {
    let fixture = governed(json!({
        "outbound": [{}, { "unix": "/**" }],
        "inbound": [{ "protocol": "tcp", "from": "127.0.0.0/8" }, { "protocol": "udp" }, { "unix": "/tmp/**" }],
    }));
    let (older, program) = (older(&fixture), fixture.compile("threads", include_str!("../kernels/threads.c"), &[]));
    let port = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
    let mut command = callgate(&fixture, Some(&older));
    command.arg(program).args([mode, &port.to_string(), &rounds.to_string()]);
    run(command.env("STORM_US", storm_us.to_string()))
}

#[test]
fn threads_and_signals_to_oneself_are_as_without_us() {
    for mode in ["nonleader", "exec", "pidfd-self", "sigpipe", "unix-bind"] {
        let outcome = threads(mode, 1, 15_000);
        assert_eq!(outcome.code(), 0, "{mode}: {outcome:?}");
    }
}

#[test]
fn a_thread_whose_sockets_are_out_of_reach_is_refused_and_that_is_said_once() {
    for mode in ["own-table", "leaderless"] {
        let outcome = threads(mode, 1, 15_000);
        assert!(outcome.stdout.contains("Operation not permitted"), "{mode}: {outcome:?}");
        assert_eq!(outcome.stderr.matches("their sockets are out of reach").count(), 1, "{mode}: {outcome:?}");
    }
}

#[test]
fn bytes_of_a_stream_come_once_whatever_signals_come() {
    let outcome = threads("stream", 4, 2_000);
    assert_eq!(outcome.code(), 0, "{outcome:?}");
}

#[test]
fn execs_under_a_storm_of_signals_are_not_refused() {
    let outcome = threads("spawn", 200, 300);
    assert_eq!(outcome.code(), 0, "{outcome:?}");
}

/// Bits of `event-kinds` in `sdk/wit/policy.wit`.
const CONNECT: u32 = 1 << 2;
const BIND: u32 = 1 << 3;
const ACCEPT: u32 = 1 << 5;
const SEND: u32 = 1 << 6;

/// Under a plugin that takes long to decide on the second event of these kinds.
fn interrupted(mode: &str, kinds: u32) {
    let plugin = hostile(
        "(global $n (mut i32) (i32.const 0))",
        &format!("(i32.store16 (i32.const 0x204) (i32.const {kinds}))"),
        "(loop $spin (global.set $n (i32.add (global.get $n) (i32.const 1))) \
         (br_if $spin (i32.lt_u (global.get $n) (i32.const 100000000))))",
    );
    let fixture = Fixture::new(json!({
        "plugins": [{ "name": "slow", "path": "slow.wasm", "deadline_ms": 30_000 }],
        "default": "allow",
    }));
    fs::write(fixture.path("slow.wasm"), plugin).unwrap();
    let (older, program) =
        (older(&fixture), fixture.compile("interrupted", include_str!("programs/interrupted.c"), &[]));
    for older in [None, Some(&older)] {
        let outcome = run(callgate(&fixture, older).arg(&program).arg(mode));
        assert_eq!(outcome.code(), 0, "{outcome:?}");
    }
}

#[test]
fn what_a_signal_interrupts_and_the_kernel_starts_again_is_carried_out_once() {
    for (mode, kinds) in [
        ("sendto", SEND),
        ("sendmsg", SEND),
        ("sendmmsg", SEND),
        ("handler", SEND),
        ("connect", CONNECT),
        ("nonblock", CONNECT),
        ("bind", BIND),
        ("accept", ACCEPT),
    ] {
        interrupted(mode, kinds);
    }
}

#[test]
fn what_a_signal_interrupts_and_the_program_makes_again_is_carried_out_once() {
    for (mode, kinds) in [
        ("sendto-eintr", SEND),
        ("sendmmsg-eintr", SEND),
        ("connect-eintr", CONNECT),
        ("bind-eintr", BIND),
        ("accept-eintr", ACCEPT),
    ] {
        interrupted(mode, kinds);
    }
}

#[test]
fn an_answer_that_nobody_heard_is_forgotten_at_the_next_call() {
    interrupted("changed-eintr", SEND);
}

#[test]
fn a_list_of_groups_that_changes_gives_no_others_not_for_a_moment() {
    let fixture = Fixture::new(json!({ "allow_executables": ["/**"], "users": { "uids": [0], "gids": [0, 5] } }));
    let include = format!("-I{}", repository("tests/attacks").display());
    let attack = fixture.compile("users", include_str!("../attacks/users.c"), &[&include]);
    let older = older(&fixture);
    for mode in ["groups-race", "groups-second"] {
        let outcome = run(callgate(&fixture, Some(&older)).arg(&attack).args([mode, "1000"]));
        assert!(!outcome.stdout.contains("ESCAPED"), "{mode}: {outcome:?}");
    }
    // And those that are allowed are had, also under signals.
    let change = "import os, signal
signal.signal(signal.SIGALRM, lambda *_: None)
signal.siginterrupt(signal.SIGALRM, False)
signal.setitimer(signal.ITIMER_REAL, 0.002, 0.002)
for groups in [[5], [0, 5], []] * 100:
    os.setgroups(groups)
    assert os.getgroups() == groups, (os.getgroups(), groups)
signal.setitimer(signal.ITIMER_REAL, 0)
try:
    os.setgroups([7])
except PermissionError:
    print('refused')";
    let outcome = run(callgate(&fixture, Some(&older)).args(["/usr/bin/python3", "-c", change]));
    assert_eq!((outcome.code(), outcome.stdout.as_str()), (0, "refused\n"), "{outcome:?}");
}
