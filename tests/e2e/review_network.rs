//! Network rules against callers who make a user namespace, bind before they connect, write names that are no text, or
//! leave others waiting.

use std::net::{Ipv4Addr, TcpListener};
use std::os::unix::fs::PermissionsExt;

use serde_json::{Value, json};

use crate::harness::{Fixture, run};
use crate::network::{PRELUDE, answers, governed};

fn all() -> Value {
    let every = json!([{}, { "unix": "/**" }, { "unix_abstract": "**" }]);
    json!({ "outbound": every, "inbound": every })
}

#[test]
fn capabilities_in_a_user_namespace_of_its_own_are_worth_nothing_outside() {
    let fixture = governed(all());
    std::fs::set_permissions(fixture.path(""), PermissionsExt::from_mode(0o777)).unwrap();
    let code = r#"
os.mkdir("private", 0o700)
private = socket(AF_UNIX, SOCK_DGRAM); private.bind("private/s"); os.chmod("private/s", 0o777)
closed = socket(AF_UNIX, SOCK_DGRAM); closed.bind("closed"); os.chmod("closed", 0o700)
bus = socket(AF_UNIX, SOCK_DGRAM); bus.bind("bus"); os.chmod("bus", 0o777)
bus.setsockopt(SOL_SOCKET, SO_PASSCRED, 1)
if os.fork() == 0:
    os.setgroups([]); os.setresgid(4321, 4321, 4321); os.setresuid(4321, 4321, 4321)
    libc.prctl(4, 1)
    assert libc.unshare(0x10000000) == 0
    open("/proc/self/setgroups", "w").write("deny")
    open("/proc/self/uid_map", "w").write("0 4321 1")
    open("/proc/self/gid_map", "w").write("0 4321 1")
    def unix(): return socket(AF_UNIX, SOCK_DGRAM)
    def claim(pid, uid, gid):
        said = [(SOL_SOCKET, 2, struct.pack("3i", pid, uid, gid))]
        return errno_of(unix().sendmsg, [b"x"], said, 0, "bus")
    print(errno_of(unix().connect, "private/s"), errno_of(unix().connect, "closed"))
    print(errno_of(unix().bind, "private/mine"), errno_of(unix().bind, "private/s"))
    print(errno_of(socket().bind, ("127.0.0.1", 80)))
    print(claim(os.getpid(), 12, 0), claim(os.getpid(), 0, 12), claim(1, 0, 0), claim(os.getpid(), 0, 0), flush=True)
    os._exit(0)
assert os.wait()[1] == 0
_, ancillary, _, _ = bus.recvmsg(1, 100)
print(struct.unpack("3i", ancillary[0][2])[1:], errno_of(bus.recv, 1, MSG_DONTWAIT))
"#;
    let bare = run(std::process::Command::new("/usr/bin/python3")
        .args(["-c", &format!("{PRELUDE}\n{code}")])
        .current_dir(tempfile::tempdir_in(fixture.path("")).inspect(|d| open(d.path())).unwrap().keep()));
    let expected = "EACCES EACCES\nEACCES EACCES\nEACCES\nEINVAL EINVAL EPERM ok\n(4321, 4321) EAGAIN\n";
    assert_eq!(bare.stdout, expected, "{bare:?}");
    assert_eq!(answers(&fixture, code), expected);
}

fn open(directory: &std::path::Path) {
    std::fs::set_permissions(directory, PermissionsExt::from_mode(0o777)).unwrap();
}

#[test]
fn no_address_leads_where_the_rules_say_from_wherever_it_is_called() {
    // The same port at two addresses of this machine: one is allowed.
    let (port, _denied, _allowed) = (0..100)
        .find_map(|_| {
            let denied = TcpListener::bind((Ipv4Addr::new(127, 0, 0, 2), 0)).unwrap();
            let port = denied.local_addr().unwrap().port();
            Some((port, denied, TcpListener::bind((Ipv4Addr::LOCALHOST, port)).ok()?))
        })
        .unwrap();
    let code = format!(
        r#"
def reach(family, kind, local, remote):
    s = socket(family, kind)
    if local: s.bind((local, 0))
    said = errno_of(s.connect, (remote, {port}))
    return s.getpeername()[0] if said == "ok" else said
for kind in (SOCK_STREAM, SOCK_DGRAM):
    print(reach(AF_INET, kind, None, "0.0.0.0"), reach(AF_INET, kind, "127.0.0.1", "0.0.0.0"),
          reach(AF_INET, kind, "127.0.0.2", "0.0.0.0"))
    print(reach(AF_INET6, kind, None, "::"), reach(AF_INET6, kind, None, "::ffff:0.0.0.0"),
          reach(AF_INET6, kind, "::ffff:127.0.0.2", "::ffff:0.0.0.0"), reach(AF_INET6, kind, "::ffff:127.0.0.1", "::"))
def sent(source):
    s = socket(AF_INET, SOCK_DGRAM)
    own = struct.pack("i4s4s", 0, inet_aton(source), bytes(4))
    return errno_of(s.sendmsg, [b"x"], [(IPPROTO_IP, 8, own)], 0, ("0.0.0.0", {port}))
receiver = socket(AF_INET, SOCK_DGRAM); receiver.bind(("127.0.0.2", {port}))
print(sent("127.0.0.2"), errno_of(receiver.recv, 1, MSG_DONTWAIT))
"#
    );
    let fixture = governed(json!({
        "outbound": [{ "to": "127.0.0.1", "ports": port }],
        "inbound": [{ "on": "127.0.0.2", "ports": port, "protocol": "udp" }],
    }));
    let each = "127.0.0.1 127.0.0.1 EPERM\nEPERM ::ffff:127.0.0.1 EPERM ::ffff:127.0.0.1\n";
    assert_eq!(answers(&fixture, &code), format!("{each}{each}ok EAGAIN\n"));
    // With ::1 allowed instead, a socket that is bound to IPv4 does not get to IPv4 by ::.
    let fixture = governed(json!({ "outbound": [{ "to": "::1" }] }));
    let said = answers(&fixture, &code.lines().take(6).chain([
        r#"print(reach(AF_INET6, SOCK_STREAM, "::ffff:127.0.0.1", "::"), reach(AF_INET6, SOCK_DGRAM, None, "::"))"#,
    ]).collect::<Vec<_>>().join("\n"));
    assert_eq!(said, "EPERM ::1\n");
}

#[test]
fn a_rule_for_a_protocol_allows_no_raw_sockets_of_it() {
    let rules = json!([{ "protocol": "sctp" }, { "protocol": "udplite" }, { "protocol": "icmp" }]);
    let fixture = governed(json!({ "outbound": rules }));
    let code = r#"
def made(*what): return errno_of(socket, *what) in ("ok", "EPROTONOSUPPORT", "ESOCKTNOSUPPORT", "EACCES")
PACKET = 10
print([made(family, kind, protocol) for family in (AF_INET, AF_INET6) for protocol in (132, 136, 1, 58)
       for kind in (SOCK_RAW, PACKET, 4)])
print(made(AF_INET, SOCK_STREAM, 132), made(AF_INET, SOCK_SEQPACKET, 132), made(AF_INET, SOCK_DGRAM, 136),
      made(AF_INET, SOCK_DGRAM, 1))
"#;
    assert_eq!(answers(&fixture, code), format!("[{}]\nTrue True True True\n", ["False"; 24].join(", ")));
    let record = &fixture.records()[1];
    assert_eq!((&record["family"], &record["type"]), (&json!(17), &json!(10)), "an old way to say AF_PACKET: {record}");
}

#[test]
fn names_that_are_no_text_pass_for_no_other() {
    let fixture = Fixture::new(json!({ "allow_executables": ["/**"] }));
    let replacement = fixture.path("a\u{fffd}");
    let rules = json!([{ "unix_abstract": "a\u{fffd}" }, { "unix": replacement }]);
    let policy = json!({ "allow_executables": ["/**"], "network": { "outbound": rules, "inbound": rules } });
    std::fs::write(fixture.policy(), policy.to_string()).unwrap();
    let code = r#"
def both(name): return errno_of(socket(AF_UNIX, SOCK_DGRAM).bind, name), errno_of(socket(AF_UNIX, SOCK_DGRAM).connect, name)
text = "a\ufffd".encode()
print(both(b"\0a\xff"), both(b"\0a\xfe"), both(b"\0" + text), both(b"a\xff"), both(text))
"#;
    let refused = "('EPERM', 'EPERM')";
    assert_eq!(
        answers(&fixture, code),
        format!("{refused} {refused} ('ok', 'ECONNREFUSED') ('EPERM', 'ENOENT') ('ok', 'ECONNREFUSED')\n")
    );
}

/// Runs a program where nobody may have a working directory of its own, as under Docker's seccomp profile.
const WITHOUT_UNSHARE: &str = r#"
#include <linux/filter.h>
#include <linux/seccomp.h>
#include <stddef.h>
#include <sys/prctl.h>
#include <sys/syscall.h>
#include <unistd.h>
int main(int count, char **arguments) {
    struct sock_filter filter[] = {
        BPF_STMT(BPF_LD | BPF_W | BPF_ABS, offsetof(struct seccomp_data, nr)),
        BPF_JUMP(BPF_JMP | BPF_JEQ | BPF_K, SYS_unshare, 0, 1),
        BPF_STMT(BPF_RET | BPF_K, SECCOMP_RET_ERRNO | 1),
        BPF_STMT(BPF_RET | BPF_K, SECCOMP_RET_ALLOW),
    };
    struct sock_fprog program = {4, filter};
    if (prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) || prctl(PR_SET_SECCOMP, 2, &program)) return 99;
    execvp(arguments[1], arguments + 1);
    return 98;
}"#;

#[test]
fn who_waits_for_a_busy_listener_holds_up_nobody_who_makes_a_socket() {
    let fixture = governed(all());
    let launcher = fixture.compile("without-unshare", WITHOUT_UNSHARE, &["-w"]);
    // The second connection waits until the listener accepts, and it does when the other sockets are there.
    let code = r#"
busy = socket(AF_UNIX); busy.bind("busy"); busy.listen(0)
first = socket(AF_UNIX); first.connect("busy")
waiting, place = socket(AF_UNIX), os.path.abspath("busy")
thread = threading.Thread(target=lambda: waiting.connect(place)); thread.start()
os.mkdir("sub"); os.chdir("sub")
def work():
    for n in range(50):
        l = socket(AF_UNIX); l.bind(f"l{n}"); l.listen(1)
        socket(AF_UNIX).connect(f"l{n}")
        d = socket(AF_UNIX, SOCK_DGRAM); d.bind(f"d{n}"); socket(AF_UNIX, SOCK_DGRAM).sendto(b"x", f"d{n}")
worker = threading.Thread(target=work, daemon=True); worker.start(); worker.join(20)
print(worker.is_alive(), thread.is_alive(), os.path.exists("l49"))
busy.accept(); busy.accept(); thread.join()
"#;
    let mut command = std::process::Command::new(launcher);
    command.arg(crate::harness::CALLGATE).arg("--policy").arg(fixture.policy());
    command.args(["/usr/bin/python3", "-c", &format!("{PRELUDE}\n{code}")]).current_dir(fixture.path(""));
    let outcome = run(&mut command);
    assert_eq!((outcome.code(), outcome.stdout.as_str()), (0, "False True True\n"), "{outcome:?}");
}

#[test]
fn nobody_is_given_the_supervisor_for_a_peer() {
    let code = r#"
l = socket(AF_UNIX); l.bind("s"); l.listen()
c = socket(AF_UNIX); c.connect("s"); a, _ = l.accept()
PEERPIDFD = 77
def told(end):
    try:
        fd = struct.unpack("i", end.getsockopt(SOL_SOCKET, PEERPIDFD, 4))[0]
        return f"Pid:\t{os.getpid()}\n" in open(f"/proc/self/fdinfo/{fd}").read()
    except OSError as e:
        return e.errno == errno.ENOPROTOOPT
one, other = socketpair()
print(told(c), told(a), told(one))
"#;
    assert_eq!(answers(&governed(all()), code), "True True True\n");
}

/// Listens on the address that an association has while another thread dissolves the association, so that the kernel
/// chooses anew: any address, and by IP_LOCAL_PORT_RANGE the same port.
const DISSOLVING: &str = r#"
#define _GNU_SOURCE
#include <arpa/inet.h>
#include <pthread.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/socket.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>
static atomic_int rounds, fd, delay;
static void *dissolve(void *unused) {
    struct sockaddr none = {AF_UNSPEC};
    for (int round = 1;; round++) {
        while (atomic_load(&rounds) < round);
        for (volatile int i = 0; i < atomic_load(&delay); i++);
        connect(atomic_load(&fd), &none, sizeof none);
    }
}
int main(int count, char **arguments) {
    struct sockaddr_in to = {AF_INET, 0, {htonl(INADDR_LOOPBACK)}}, now = {0};
    socklen_t length = sizeof to;
    int server = socket(AF_INET, SOCK_STREAM, 0), any = socket(AF_INET, SOCK_STREAM, 0), status = 0;
    bind(server, (void *)&to, sizeof to);
    listen(server, 1000);
    getsockname(server, (void *)&to, &length);
    bind(any, (void *)&now, sizeof now);
    getsockname(any, (void *)&now, &length);
    close(any);
    unsigned range = ntohs(now.sin_port) | ntohs(now.sin_port) << 16, one = 1;
    time_t end = time(0) + 4;
    if (!fork()) {
        pthread_t thread;
        pthread_create(&thread, 0, dissolve, 0);
        while (time(0) < end) {
            int s = socket(AF_INET, SOCK_STREAM, 0);
            setsockopt(s, SOL_SOCKET, SO_REUSEADDR, &one, 4);
            if (setsockopt(s, IPPROTO_IP, 51, &range, 4)) exit(77);
            if (!connect(s, (void *)&to, sizeof to)) {
                atomic_store(&fd, s);
                atomic_store(&delay, rand() % 60000);
                atomic_fetch_add(&rounds, 1);
                if (!listen(s, 1)) {
                    getsockname(s, (void *)&now, &length);
                    exit(now.sin_addr.s_addr ? 0 : 2);
                }
                close(accept(server, 0, 0));
            }
            close(s);
        }
        exit(0);
    }
    wait(&status);
    puts(WIFEXITED(status) && WEXITSTATUS(status) == 2 ? "escaped" : "held");
}"#;

#[test]
fn listening_is_on_the_address_that_was_decided_on_whatever_is_dissolved_meanwhile() {
    let fixture = governed(json!({ "outbound": [{ "to": "127.0.0.1" }], "inbound": [{ "on": "127.0.0.1" }] }));
    // It begins with any address, which takes a rule for port 0 only.
    let program = fixture.compile("dissolving", DISSOLVING, &["-w"]);
    let outcome = fixture.run(&[program]);
    assert_eq!(outcome.stdout, "held\n", "{outcome:?}");
}
