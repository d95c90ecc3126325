//! Ways around the network rules that are no network call, or not one with an address in it.

use serde_json::json;

use crate::harness::{Fixture, run};

fn fixture() -> Fixture {
    Fixture::new(json!({
        "allow_executables": ["/usr/bin/python3*"],
        "network": { "outbound": [{ "to": ["127.0.0.1", "::1"] }] }
    }))
}

#[test]
fn io_uring_is_refused_because_the_filter_would_not_see_what_it_does() {
    let place = fixture();
    let program = place.compile(
        "ring",
        r#"
        #include <errno.h>
        #include <stdio.h>
        #include <sys/syscall.h>
        #include <unistd.h>
        int main(void) { char params[120] = {0}; long ring = syscall(SYS_io_uring_setup, 4, params); printf("%ld %d\n", ring, errno); }"#,
        &[],
    );
    let bare = run(&mut std::process::Command::new(&program));
    let fixture = Fixture::new(json!({ "allow_executables": [program], "network": {} }));
    let outcome = fixture.run(&[&program]);
    assert_eq!(outcome.stdout, "-1 1\n", "bare: {bare:?}");
    let records = fixture.records();
    assert_eq!((&records[0]["event"], &records[0]["call"]), (&json!("call"), &json!("io_uring_setup")), "{records:?}");
}

#[test]
fn a_source_route_would_lead_elsewhere_and_is_refused() {
    // 131 is LSRR (RFC 791), by way of 192.0.2.1; 4 is a segment routing header (RFC 8754) of one segment.
    let script = r#"
import socket, struct
def attempt(family, level, name, value):
    try:
        socket.socket(family, socket.SOCK_DGRAM).setsockopt(level, name, value)
        return "set"
    except OSError as error:
        return error.strerror
print(attempt(socket.AF_INET, 0, 4, bytes([131, 7, 4, 192, 0, 2, 1, 0])))
print(attempt(socket.AF_INET6, 41, 57, bytes([0, 2, 4, 0, 0, 0, 0, 0]) + socket.inet_pton(socket.AF_INET6, "2001:db8::1")))
print(attempt(socket.AF_INET6, 41, 6, bytes(16)))
print(attempt(socket.AF_INET, 0, 4, b""))
"#;
    let bare = run(std::process::Command::new("/usr/bin/python3").args(["-c", script]));
    assert_eq!(bare.stdout.lines().next(), Some("set"), "{bare:?}");
    let fixture = fixture();
    let outcome = fixture.run(&["/usr/bin/python3", "-c", script]);
    let refused = "Operation not permitted";
    assert_eq!(outcome.stdout.lines().collect::<Vec<_>>(), [refused, refused, refused, "set"], "{outcome:?}");
    assert_eq!(fixture.records().len(), 3);
}

/// Who writes `/sbin/request-key` could have it run by the kernel; where that is the host's, the host's runs.
#[test]
fn no_key_makes_the_kernel_start_a_program() {
    let code = r#"
import ctypes, errno
libc = ctypes.CDLL(None, use_errno=True)
def request_key(callout):
    libc.syscall(249, b"user", b"callgate:nothing", callout, ctypes.c_long(-2))
    return errno.errorcode[ctypes.get_errno()]
print(request_key(None), request_key(b"words"))
"#;
    let fixture = fixture();
    let outcome = run(fixture.callgate().args(["/usr/bin/python3", "-c", code]));
    assert_eq!((outcome.code(), outcome.stdout.as_str()), (0, "ENOKEY EPERM\n"), "{outcome:?}");
    let [record] = &fixture.records_of("denied")[..] else { panic!("{:?}", fixture.records()) };
    assert_eq!((&record["call"], &record["rule"]), (&"request_key".into(), &"request_key".into()), "{record}");
}
