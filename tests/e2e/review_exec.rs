//! What an attacker with fresh eyes tried against execs and the supervisor.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::os::unix::net::UnixListener;
use std::process::Command;

use serde_json::json;

use crate::harness::{Fixture, repository, run};

fn program(fixture: &Fixture, name: &str) -> String {
    let source = fs::read_to_string(repository(&format!("tests/e2e/programs/{name}.c"))).unwrap();
    fixture.compile(name, &source, &["-pthread"]).display().to_string()
}

/// A fixture that allows a program of `programs/`, which lies in the fixture's own directory.
fn allowing(name: &str, more: &[&str]) -> (Fixture, String) {
    let fixture = Fixture::allowing(&[]);
    let program = program(&fixture, name);
    let allowed: Vec<&str> = [program.as_str()].iter().chain(more).copied().collect();
    let records = format!("file:{}", fixture.path("records").display());
    let policy = json!({ "allow_executables": allowed, "audit": { "sinks": [records] } });
    fs::write(fixture.policy(), policy.to_string()).unwrap();
    (fixture, program)
}

#[test]
fn threads_of_the_command_that_execute_at_once_hold_nobody_up() {
    let (fixture, program) = allowing("exec_at_once", &[]);
    let outcome = fixture.run(&[program.as_str(), "300"]);
    assert_eq!(outcome.code(), 42, "{outcome:?}");
}

/// Capabilities in a user namespace that one makes oneself are worth nothing outside; the supervisor, which performs the
/// call, has real ones.
#[test]
fn capabilities_of_another_user_namespace_are_worth_nothing_through_the_supervisor() {
    const TRY: &str = r#"
import os, socket, struct, sys
def attempt(what):
    try:
        what()
        print("done")
    except OSError as error:
        print(error.strerror)
def bind():
    socket.socket().bind(("127.0.0.1", int(sys.argv[1])))
def connect():
    socket.socket(socket.AF_UNIX).connect(sys.argv[2])
def claim():
    one, other = socket.socketpair(socket.AF_UNIX, socket.SOCK_DGRAM)
    who = struct.pack("iII", os.getpid(), 5, 5)
    one.sendmsg([b"x"], [(socket.SOL_SOCKET, socket.SCM_CREDENTIALS, who)])
for what in (bind, connect, claim):
    attempt(what)
"#;
    let fixture = Fixture::new(json!({
        "allow_executables": ["/usr/bin/", "/bin/"],
        "network": {
            "outbound": [{ "unix": "/**" }],
            "inbound": [{ "on": "127.0.0.1", "ports": "1-1023", "protocol": "tcp" }]
        }
    }));
    let closed = fixture.path("closed");
    fs::create_dir(&closed).unwrap();
    fs::set_permissions(&closed, fs::Permissions::from_mode(0o700)).unwrap();
    let socket = closed.join("socket");
    let _listening = UnixListener::bind(&socket).unwrap();
    fs::set_permissions(&socket, fs::Permissions::from_mode(0o777)).unwrap();
    let line =
        ["setpriv", "--reuid", "1234", "--regid", "1234", "--clear-groups", "unshare", "--user", "--map-root-user"];
    let bare = run(Command::new(line[0]).args(&line[1..]).args(["python3", "-c", TRY, "81"]).arg(&socket));
    let confined = run(fixture.callgate().args(line).args(["python3", "-c", TRY, "81"]).arg(&socket));
    assert_eq!(bare.stdout, "Permission denied\nPermission denied\nInvalid argument\n", "{bare:?}");
    assert_eq!(confined.stdout, bare.stdout, "{confined:?}");
}

/// Where the supervisor ends a call for a signal it holds the command for a moment. If that is killed just then, its status
/// still has to reach those who wait for it.
#[test]
fn a_command_that_is_killed_while_a_signal_ends_its_call_ends_the_supervisor() {
    let fixture = Fixture::allowing(&[]);
    let program = program(&fixture, "killed_waiting");
    let records = format!("file:{}", fixture.path("records").display());
    let policy = json!({
        "allow_executables": [program],
        "network": { "inbound": [{ "on": "127.0.0.1", "ports": "1-65535", "protocol": "tcp", "from": "127.0.0.1" }] },
        "audit": { "sinks": [records] }
    });
    fs::write(fixture.policy(), policy.to_string()).unwrap();
    for round in 0..150 {
        let outcome = fixture.run(&[program.as_str(), &(round * 8).to_string()]);
        assert_eq!(outcome.code(), 137, "{outcome:?}");
    }
}
