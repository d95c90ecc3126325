//! The supervisor knows callers again, and does not take them for what they were.

use std::fs;

use serde_json::json;

use crate::harness::{Fixture, run};
use crate::network::governed;

const RENEWED: &str = include_str!("programs/renewed.c");

fn is_seen_as_it_is(mode: &str, fixture: &Fixture) {
    let program = fixture.compile("renewed", RENEWED, &["-static", "-no-pie", "-fno-pie"]);
    let again = fixture.path("again");
    fs::copy(&program, &again).unwrap();
    let outcome = run(fixture.callgate().arg(&program).args([mode, "300"]).arg(&again));
    assert_eq!((outcome.code(), outcome.stdout.as_str()), (0, "0\n"), "{mode}: {outcome:?}");
}

/// All records, of which those of the second program have ports from 3000 on.
fn recorded() -> Fixture {
    Fixture::new(json!({
        "allow_executables": ["/**"],
        "network": { "outbound": [{ "to": "127.0.0.1" }] },
        "audit": { "decisions": "all", "queue": 100_000 }
    }))
}

fn names_are_those_of_what_runs(fixture: &Fixture) {
    let directory = fixture.path("").canonicalize().unwrap();
    let connects: Vec<_> = fixture.records().into_iter().filter(|record| record["event"] == "connect").collect();
    assert!(connects.len() > 500, "{}", connects.len());
    for record in connects {
        let second = record["address"]["port"].as_u64().unwrap() >= 3000;
        let expected = directory.join(if second { "again" } else { "renewed" });
        assert_eq!(record["subject"]["executable"], expected.to_str().unwrap(), "{record}");
    }
}

#[test]
fn a_program_that_is_begun_in_a_shared_memory_is_read_in_its_own() {
    let fixture = recorded();
    is_seen_as_it_is("vfork", &fixture);
    names_are_those_of_what_runs(&fixture);
}

#[test]
fn a_program_that_another_thread_begins_is_read_in_its_own_memory() {
    let fixture = recorded();
    is_seen_as_it_is("thread", &fixture);
    names_are_those_of_what_runs(&fixture);
}

#[test]
fn a_number_that_comes_again_is_another_process() {
    is_seen_as_it_is("number", &governed(json!({ "outbound": [{ "to": "127.0.0.1" }] })));
}

/// A connection to somebody on this machine is not expected to take long, so that nobody else is woken to receive calls
/// meanwhile; here it does take long, for ever.
#[test]
fn a_call_that_takes_long_unexpectedly_keeps_nobody_else_waiting() {
    let code = r#"
import os, signal, socket
listener = socket.socket(socket.AF_UNIX); listener.bind("full"); listener.listen(0)
first = socket.socket(socket.AF_UNIX); first.connect("full")
pid = os.fork()
if pid == 0:
    second = socket.socket(socket.AF_UNIX); second.connect("full"); os._exit(1)
CONNECT = "42 "
while not open(f"/proc/{pid}/syscall").read().startswith(CONNECT): pass
for port in range(1, 101):
    s = socket.socket(socket.AF_INET, socket.SOCK_DGRAM); s.connect(("127.0.0.1", port)); s.close()
print("served", open(f"/proc/{pid}/syscall").read().startswith(CONNECT))
os.kill(pid, signal.SIGKILL); os.waitpid(pid, 0)
"#;
    let fixture =
        governed(json!({ "outbound": [{ "to": "127.0.0.1" }, { "unix": "/**" }], "inbound": [{ "unix": "/**" }] }));
    let mut command = fixture.callgate();
    let outcome = run(command.args(["/usr/bin/python3", "-c", code]).current_dir(fixture.path("")));
    assert_eq!((outcome.code(), outcome.stdout.as_str()), (0, "served True\n"), "{outcome:?}");
}

/// Then no exec is seen.
#[test]
fn the_same_holds_where_programs_are_not_governed() {
    for mode in ["vfork", "thread", "number"] {
        is_seen_as_it_is(mode, &Fixture::new(json!({ "network": { "outbound": [{ "to": "127.0.0.1" }] } })));
    }
}

/// An exec of another thread gives its program the caller's number. Who calls is asked of that number: late, where decisions wait
/// for each other, as they do here.
#[test]
fn the_next_program_of_a_callers_number_does_not_lend_it_its_name() {
    let program = Fixture::new(json!({ "allow_executables": ["/bin/true"] }));
    let replaced = program.compile("replaced", include_str!("programs/replaced.c"), &["-static", "-pthread"]);
    let globs: Vec<_> =
        (0..2000).map(|n| format!("/x{n}*0/**/y*{n}/*z")).chain(["/usr/bin/whoami".to_owned()]).collect();
    let slow = json!({
        "allow_executables": ["/usr/bin/", replaced],
        "deny_executables": globs,
        "network": { "outbound": [{ "to": "127.0.0.1" }] }
    });
    let mut plugins: Vec<_> =
        (0..4).map(|n| json!({ "name": format!("slow-{n}"), "builtin": "allowlist", "config": slow })).collect();
    let hours = program.path("hours.wasm");
    fs::write(&hours, crate::samples::sample("hours")).unwrap();
    let config = json!({ "closed": true, "governs": ["connect"], "except": ["/usr/bin/true"] });
    plugins.push(json!({ "name": "hours", "path": hours, "config": config }));
    let fixture = Fixture::new(json!({ "plugins": plugins, "audit": { "queue": 100_000 } }));
    let outcome = run(fixture.callgate().arg(&replaced).args(["1500", "/usr/bin/true"]));
    assert_eq!((outcome.code(), outcome.stdout.as_str()), (0, "0\n"), "{outcome:?}");
    let denied = fixture.records().iter().filter(|record| record["plugin"] == "hours").count();
    assert!(denied > 50, "{denied} calls have come before the other program");
}
