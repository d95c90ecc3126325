//! What the network rules let through and what they don't, with real programs.

use std::io::{Read, Write};
use std::net::{Ipv4Addr, Ipv6Addr, SocketAddr, TcpListener, TcpStream, UdpSocket};
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use serde_json::{Value, json};

use crate::harness::{Fixture, Outcome, eventually, finish, run, wait};

const PYTHON: &str = "/usr/bin/python3";

/// Any program may run; the network is governed by these rules.
pub fn governed(network: Value) -> Fixture {
    Fixture::new(json!({ "allow_executables": ["/**"], "network": network }))
}

/// Runs Python under the policy, in the fixture's directory.
fn python(fixture: &Fixture, code: &str) -> Outcome {
    run(fixture.callgate().args([PYTHON, "-c", code]).current_dir(fixture.path("")))
}

/// Functions for programs that try calls: `errno_of` says how a call ended, by the name of its errno or "ok".
pub const PRELUDE: &str = r#"
import ctypes, errno, os, socket, struct, sys, threading
from socket import *
libc = ctypes.CDLL(None, use_errno=True)
def errno_of(call, *args):
    try:
        call(*args)
        return "ok"
    except OSError as e:
        return errno.errorcode[e.errno]
def raw(number, *args):
    return "ok" if libc.syscall(number, *args) >= 0 else errno.errorcode[ctypes.get_errno()]
def v4(ip, port, family=AF_INET):
    return struct.pack("=H", family) + struct.pack(">H", port) + inet_aton(ip) + bytes(8)
"#;

/// What such a program prints, under the policy.
pub fn answers(fixture: &Fixture, code: &str) -> String {
    let outcome = python(fixture, &format!("{PRELUDE}\n{code}"));
    assert_eq!(outcome.code(), 0, "{outcome:?}");
    outcome.stdout
}

/// A web server for as long as the test runs, outside of the policy.
fn serve(address: SocketAddr) -> u16 {
    let listener = TcpListener::bind(address).unwrap();
    let port = listener.local_addr().unwrap().port();
    std::thread::spawn(move || {
        for stream in listener.incoming() {
            let mut stream = stream.unwrap();
            let _ = stream.set_read_timeout(Some(Duration::from_millis(200)));
            let _ = stream.read(&mut [0; 4096]);
            let _ = stream.write_all(b"HTTP/1.0 200 OK\r\nContent-Length: 6\r\n\r\nhello\n");
        }
    });
    port
}

fn serve_v4() -> u16 {
    serve((Ipv4Addr::LOCALHOST, 0).into())
}

#[test]
fn programs_reach_what_is_listed_and_nothing_else() {
    let (allowed, denied) = (serve_v4(), serve_v4());
    let fixture = governed(json!({ "outbound": [{ "to": "127.0.0.1", "ports": allowed, "protocol": "tcp" }] }));
    let fetched = fixture.run(&["curl", "-sS", &format!("http://127.0.0.1:{allowed}/")]);
    assert_eq!((fetched.code(), fetched.stdout.as_str()), (0, "hello\n"), "{fetched:?}");
    let refused = fixture.run(&["curl", "-sS", &format!("http://127.0.0.1:{denied}/")]);
    assert_eq!(refused.code(), 7, "{refused:?}");
    let talk = |port| fixture.bash(&format!("exec 3<>/dev/tcp/127.0.0.1/{port} && echo >&3 && cat <&3"));
    assert!(talk(allowed).stdout.ends_with("hello\n"));
    assert!(talk(denied).stderr.contains("Operation not permitted"), "{:?}", talk(denied));
    let record = &fixture.records()[0];
    assert_eq!((&record["event"], &record["errno"]["name"]), (&json!("connect"), &json!("EPERM")));
    assert_eq!(record["address"], json!({ "family": "ipv4", "ip": "127.0.0.1", "port": denied }));
}

#[test]
fn one_address_is_the_same_however_it_is_written() {
    let (allowed, denied) = (serve_v4(), serve_v4());
    let fixture = governed(json!({ "outbound": [{ "to": "127.0.0.1", "ports": allowed }] }));
    let code = format!(
        r#"
A, D = {allowed}, {denied}
def tcp(family, address): return errno_of(socket(family, SOCK_STREAM).connect, address)
print(tcp(AF_INET, ("127.0.0.1", A)), tcp(AF_INET, ("127.0.0.1", D)))
print(tcp(AF_INET, ("0.0.0.0", A)), tcp(AF_INET, ("0.0.0.0", D)))
print(tcp(AF_INET, ("127.0.0.2", A)))
print(tcp(AF_INET6, ("::ffff:127.0.0.1", A)), tcp(AF_INET6, ("::ffff:127.0.0.1", D)))
print(tcp(AF_INET6, ("::1", A)), tcp(AF_INET6, ("::", A)), tcp(AF_INET6, ("::127.0.0.1", A)))
print(tcp(AF_INET6, ("fe80::1", A, 0, 1)))
# An address of another family than the socket's; AF_UNSPEC, which IPv4 takes for AF_INET in a datagram.
u, u6 = socket(AF_INET, SOCK_DGRAM), socket(AF_INET6, SOCK_DGRAM)
for s, address in [(u, v4("127.0.0.1", A)), (u, v4("127.0.0.1", D)), (u, v4("127.0.0.1", D, 0)), (u, v4("127.0.0.1", A, 0)),
                   (u6, v4("127.0.0.1", A)), (u6, v4("127.0.0.1", D))]:
    print(raw(44, s.fileno(), b"x", 1, 0, address, 16))
"#
    );
    let expected = "ok EPERM\nok EPERM\nEPERM\nok EPERM\nEPERM EPERM EPERM\nEPERM\nok\nEPERM\nEPERM\nok\nok\nEPERM\n";
    assert_eq!(answers(&fixture, &code), expected);
}

#[test]
fn rules_for_ipv6_hold_for_ipv6() {
    let port = serve((Ipv6Addr::LOCALHOST, 0).into());
    let connect = format!("print(errno_of(socket(AF_INET6, SOCK_STREAM).connect, ('::1', {port})))");
    for (to, expected) in [("::1", "ok\n"), ("::/64", "ok\n"), ("2001:db8::/32", "EPERM\n"), ("0.0.0.0/0", "EPERM\n")] {
        let fixture = governed(json!({ "outbound": [{ "to": to }] }));
        assert_eq!(answers(&fixture, &connect), expected, "{to}");
    }
}

#[test]
fn every_way_to_send_a_datagram_is_decided_message_by_message() {
    let receiver = UdpSocket::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
    receiver.set_read_timeout(Some(Duration::from_secs(10))).unwrap();
    let spy = UdpSocket::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
    spy.set_nonblocking(true).unwrap();
    let (allowed, denied) = (receiver.local_addr().unwrap().port(), spy.local_addr().unwrap().port());
    let fixture = governed(json!({ "outbound": [{ "to": "127.0.0.1", "ports": allowed, "protocol": "udp" }] }));
    let source = r#"
#define _GNU_SOURCE
#include <arpa/inet.h>
#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#define SAY(call) do { errno = 0; long r = (call); printf("%s ", r < 0 ? strerrorname_np(errno) : r == 0 ? "0" : r == 1 ? "1" : r == 2 ? "2" : "more"); } while (0)
int main(int n, char **a) {
    struct sockaddr_in to[2];
    for (int i = 0; i < 2; i++) to[i] = (struct sockaddr_in){AF_INET, htons(atoi(a[1 + i])), {htonl(INADDR_LOOPBACK)}};
    int s = socket(AF_INET, SOCK_DGRAM, 0);
    struct iovec part = {"x", 1};
    struct mmsghdr m[2];
    memset(m, 0, sizeof m);
    for (int i = 0; i < 2; i++) m[i].msg_hdr = (struct msghdr){&to[i], sizeof to[i], &part, 1};
    for (int i = 0; i < 2; i++) SAY(sendto(s, "x", 1, 0, (void *)&to[i], sizeof to[i]));
    for (int i = 0; i < 2; i++) SAY(sendmsg(s, &m[i].msg_hdr, 0));
    SAY(sendmmsg(s, m, 2, 0));
    SAY(m[0].msg_len);
    SAY(sendmmsg(s, m + 1, 1, 0));
    for (int i = 0; i < 2; i++) SAY(connect(s, (void *)&to[i], sizeof to[i]));
    SAY(send(s, "x", 1, 0));
    SAY(sendto(s, "x", 1, 0, (void *)&to[1], sizeof to[1]));
    SAY(socket(AF_INET, SOCK_DGRAM, 136));
    int t = socket(AF_INET, SOCK_STREAM, 0);
    SAY(sendto(t, "x", 1, MSG_FASTOPEN, (void *)&to[1], sizeof to[1]));
    SAY(sendmsg(t, &m[1].msg_hdr, MSG_FASTOPEN));
    SAY(sendmmsg(t, m + 1, 1, MSG_FASTOPEN));
    int mp = socket(AF_INET, SOCK_STREAM, 262);
    SAY(connect(mp, (void *)&to[1], sizeof to[1]));
    SAY(sendmsg(mp, &m[1].msg_hdr, MSG_FASTOPEN));
    puts("");
}"#;
    let program = fixture.compile("send", source, &[]);
    let outcome = fixture.run(&[program.to_str().unwrap(), &allowed.to_string(), &denied.to_string()]);
    let expected = "1 EPERM 1 EPERM 1 1 EPERM 0 EPERM 1 EPERM EPERM EPERM EPERM EPERM EPERM EPERM \n";
    assert_eq!(outcome.stdout, expected, "{outcome:?}");
    for _ in 0..4 {
        receiver.recv(&mut [0; 8]).unwrap();
    }
    assert!(spy.recv(&mut [0; 8]).is_err(), "the denied receiver got something");
}

#[test]
fn other_families_are_denied_unless_they_are_named() {
    let code = r#"
def make(*what):
    return errno_of(socket, *what)
print(make(AF_PACKET, SOCK_RAW, 0), make(AF_INET, SOCK_RAW, 1), make(AF_INET6, SOCK_RAW, 58), make(40, SOCK_STREAM, 0),
      make(38, 5, 0), make(AF_NETLINK, SOCK_RAW, 16), make(AF_INET, 10, 768), make(AF_INET, SOCK_STREAM, 33))
print(make(AF_INET, SOCK_STREAM), make(AF_INET6, SOCK_DGRAM), make(AF_UNIX, SOCK_STREAM), make(AF_NETLINK, SOCK_RAW, 0))
a, b = socketpair(AF_UNIX, SOCK_STREAM)
a.send(b"x"); print(b.recv(1))
"#;
    let fixture = governed(json!({}));
    let said = answers(&fixture, code);
    assert_eq!(said, "EPERM EPERM EPERM EPERM EPERM EPERM EPERM EPERM\nok ok ok ok\nb'x'\n");
    let named = governed(json!({ "families": ["packet", "raw", "netlink"] }));
    let said = answers(&named, code);
    assert_eq!(said.lines().next(), Some("ok ok ok EPERM EPERM ok ok EPERM"));
}

#[test]
fn a_program_may_ask_for_the_interfaces_unless_the_policy_says_no() {
    let open = governed(json!({}));
    for command in
        [&["ip", "addr"][..], &["ip", "route"], &[PYTHON, "-c", "import socket; print(socket.if_nameindex())"]]
    {
        assert_eq!(open.run(command).code(), 0, "{command:?}");
    }
    assert!(open.run(&["ip", "addr"]).stdout.contains("lo:"));
    let closed = governed(json!({ "netlink_route": false }));
    assert_ne!(closed.run(&["ip", "addr"]).code(), 0);
    assert_eq!(closed.records()[0]["rule"], "network.family");
}

#[test]
fn listening_needs_a_rule_also_without_bind() {
    let fixture = governed(json!({ "inbound": [{ "on": "127.0.0.1", "ports": "18400-18404" }] }));
    let code = r#"
def listening(kind, *address):
    s = socket(AF_INET, kind)
    s.setsockopt(SOL_SOCKET, SO_REUSEADDR, 1)
    first = errno_of(s.bind, *address) if address else "-"
    return first + "/" + errno_of(s.listen)
print(listening(SOCK_STREAM, ("127.0.0.1", 18401)), listening(SOCK_STREAM, ("127.0.0.1", 18405)),
      listening(SOCK_STREAM, ("0.0.0.0", 18401)), listening(SOCK_STREAM, ("127.0.0.1", 0)), listening(SOCK_STREAM))
print(errno_of(socket(AF_INET, SOCK_DGRAM).bind, ("127.0.0.1", 18402)), errno_of(socket(AF_INET, SOCK_DGRAM).bind, ("127.0.0.1", 18406)))
s = socket(AF_INET6, SOCK_STREAM)
print(errno_of(s.bind, ("::ffff:127.0.0.1", 18407)), errno_of(s.bind, ("::ffff:127.0.0.1", 18403)), errno_of(s.listen))
# An association is dissolved, but a port bound by AF_UNSPEC is a port bound.
s = socket(AF_INET, SOCK_STREAM)
print(raw(49, s.fileno(), v4("0.0.0.0", 18408, 0), 16))
"#;
    let said = answers(&fixture, code);
    assert_eq!(said, "ok/ok EPERM/EPERM EPERM/EPERM ok/EPERM -/EPERM\nok EPERM\nEPERM ok ok\nEPERM\n");
}

#[test]
fn only_listed_peers_are_let_in() {
    let rule = json!({ "on": "127.0.0.1", "ports": 18410, "from": ["127.0.0.2", "127.0.1.0/24"] });
    let fixture = governed(json!({ "inbound": [rule] }));
    let code = format!(
        r#"{PRELUDE}
s = socket(); s.setsockopt(SOL_SOCKET, SO_REUSEADDR, 1); s.bind(("127.0.0.1", 18410)); s.listen()
print("ready", flush=True)
for _ in range(2):
    c, a = s.accept()
    c.sendall(a[0].encode()); c.close()
s.setblocking(False)
print(errno_of(s.accept))
"#
    );
    let mut server = spawn(&fixture, &code);
    until_ready(&mut server);
    let from = |ip: [u8; 4]| {
        use nix::sys::socket::{AddressFamily, SockFlag, SockType, SockaddrIn, bind, connect, socket};
        use std::os::fd::AsRawFd;
        let s = socket(AddressFamily::Inet, SockType::Stream, SockFlag::empty(), None).unwrap();
        bind(s.as_raw_fd(), &SockaddrIn::new(ip[0], ip[1], ip[2], ip[3], 0)).unwrap();
        connect(s.as_raw_fd(), &SockaddrIn::new(127, 0, 0, 1, 18410)).unwrap();
        let mut text = String::new();
        let mut stream = TcpStream::from(s);
        stream.set_read_timeout(Some(Duration::from_secs(20))).unwrap();
        let _ = stream.read_to_string(&mut text);
        text
    };
    assert_eq!(from([127, 0, 0, 1]), "");
    assert_eq!(from([127, 0, 0, 2]), "127.0.0.2");
    assert_eq!(from([127, 0, 2, 9]), "");
    assert_eq!(from([127, 0, 1, 7]), "127.0.1.7");
    let outcome = finish(server);
    assert_eq!((outcome.code(), outcome.stdout.as_str()), (0, "EAGAIN\n"), "{outcome:?}");
    let denied = fixture.records_of("denied");
    assert_eq!(denied.len(), 2, "{denied:?}");
    assert_eq!((&denied[0]["event"], &denied[0]["peer"]["ip"]), (&json!("accept"), &json!("127.0.0.1")));
}

fn spawn(fixture: &Fixture, code: &str) -> Child {
    let mut command = fixture.callgate();
    command.args([PYTHON, "-c", code]).current_dir(fixture.path(""));
    command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap()
}

fn until_ready(child: &mut Child) {
    let mut line = [0; 6];
    child.stdout.as_mut().unwrap().read_exact(&mut line).unwrap();
    assert_eq!(&line, b"ready\n");
}

#[test]
fn unix_sockets_are_told_by_the_file_that_is_meant() {
    let place = Fixture::allowing(&[]);
    let directory = place.path("").canonicalize().unwrap();
    let at = |name: &str| directory.join(name).to_str().unwrap().to_owned();
    for name in ["allowed", "denied"] {
        std::fs::create_dir(at(name)).unwrap();
    }
    let fixture = governed(json!({
        "outbound": [{ "unix": at("allowed/*.sock") }, { "unix_abstract": "callgate-allowed-*" }],
        "inbound": [{ "unix": at("allowed/*.sock") }, { "unix_abstract": "callgate-allowed-*" }],
    }));
    let listeners: Vec<_> = ["allowed/s.sock", "denied/s.sock"]
        .map(|name| std::os::unix::net::UnixListener::bind(at(name)).unwrap())
        .into();
    let code = format!(
        r#"
os.chdir({directory:?})
def to(path): return errno_of(socket(AF_UNIX, SOCK_STREAM).connect, path)
def at(path): return errno_of(socket(AF_UNIX, SOCK_STREAM).bind, path)
for link, target in [("direct", "denied/s.sock"), ("good", "allowed/s.sock"), ("dir", "denied"), ("allowed/up", "../denied"),
                     ("allowed/l.sock", "../denied/s.sock"), ("denied/l.sock", {directory:?} + "/allowed/s.sock")]:
    os.symlink(target, link)
here = {directory:?} + "/"
print(to("allowed/s.sock"), to(here + "allowed/s.sock"), to("good"), to("denied/l.sock"), to("./denied/../allowed//s.sock"))
print(to("denied/s.sock"), to(here + "denied/s.sock"), to("direct"), to("dir/s.sock"), to("allowed/up/s.sock"),
      to("allowed/l.sock"), to("allowed/../denied/s.sock"), to("/proc/self/cwd/denied/s.sock"))
os.link("denied/s.sock", "denied/hard.sock")
print(to("denied/hard.sock"))
print(at("allowed/new.sock"), at("allowed/up/new.sock"), at("denied/new.sock"), at("dir/n.sock"), at("allowed/new.txt"),
      at("/proc/self/cwd/allowed/other.sock"), at("/proc/self/cwd/denied/other.sock"))
print(at("\0callgate-allowed-1"), at("\0callgate-denied-1"), to("\0callgate-denied-1"), at("\0callgate-allowed-1\0"))
d = socket(AF_UNIX, SOCK_DGRAM)
print(errno_of(d.sendto, b"x", "denied/s.sock"), errno_of(d.connect, "denied/s.sock"), errno_of(d.sendto, b"x", "\0callgate-denied"))
print(errno_of(socket(AF_UNIX, SOCK_STREAM).connect, "allowed/other.sock"))
if os.fork() == 0:
    os.chroot("."); os.chdir("/allowed")
    l = socket(AF_UNIX, SOCK_STREAM); l.bind("/allowed/in-root.sock"); l.listen()
    print(l.getsockname(), to("in-root.sock"), to("/allowed/in-root.sock"), at("/denied/in-root.sock"), to("/denied/s.sock"), flush=True)
    os._exit(0)
os.wait()
l = socket(AF_UNIX, SOCK_STREAM); l.bind("allowed/l2.sock"); l.listen(); os.chdir("/"); print(to(here + "allowed/l2.sock"), l.getsockname())
print(errno_of(socket(AF_UNIX, SOCK_STREAM).listen), sorted(os.listdir(here + "denied")))
"#
    );
    let said = answers(&fixture, &code);
    let expected = "ok ok ok ok ok
EPERM EPERM EPERM EPERM EPERM EPERM EPERM EPERM
EPERM
ok EPERM EPERM EPERM EPERM ok EPERM
ok EPERM EPERM ok
EPERM EPERM EPERM
ECONNREFUSED
/allowed/in-root.sock ok ok EPERM EPERM
ok allowed/l2.sock
EINVAL ['hard.sock', 'l.sock', 's.sock']
";
    assert_eq!(said, expected, "{:?}", fixture.records());
    drop(listeners);
}

#[test]
fn without_a_network_section_the_network_is_left_alone() {
    let port = serve_v4();
    let fixture = Fixture::new(json!({ "allow_executables": ["/**"], "audit": { "decisions": "all" } }));
    let code = format!(
        "print(errno_of(socket().connect, ('127.0.0.1', {port})), errno_of(socket(AF_PACKET, SOCK_RAW, 0).close))
print(raw(425, 1, bytes(120)))"
    );
    assert!(answers(&fixture, &code).starts_with("ok ok\n"));
    let others: Vec<_> = fixture.records().into_iter().filter(|record| record["event"] != "exec").collect();
    assert!(others.is_empty(), "{others:?}");
}

#[test]
fn doors_around_the_rules_are_shut() {
    let denied = serve_v4();
    let fixture = governed(json!({ "outbound": [{ "to": "192.0.2.1" }] }));
    let source = r#"
#include <arpa/inet.h>
#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/socket.h>
#include <sys/syscall.h>
#include <unistd.h>
extern const char *strerrorname_np(int);
#define SAY(call) do { errno = 0; long r = (call); puts(r < 0 ? strerrorname_np(errno) : "ok"); } while (0)
static long i386(long number, long a, long b, long c) {
    long result;
    __asm__ volatile("int $0x80" : "=a"(result) : "a"(number), "b"(a), "c"(b), "d"(c) : "memory", "r8", "r9", "r10", "r11");
    errno = result < 0 ? -(int)result : 0;
    return (int)result < 0 ? -1 : result;
}
int main(int n, char **arguments) {
    struct sockaddr_in *to = mmap((void *)0x10000, 4096, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_FIXED, -1, 0);
    *to = (struct sockaddr_in){AF_INET, htons(atoi(arguments[1])), {htonl(INADDR_LOOPBACK)}};
    int s = socket(AF_INET, SOCK_STREAM, 0), s6 = socket(AF_INET6, SOCK_DGRAM, 0);
    char ring[120] = {0};
    SAY(syscall(425, 8, ring));
    SAY(i386(362, s, (long)to, sizeof *to));
    SAY(i386(359, AF_INET, SOCK_STREAM, 0));
    SAY(syscall(0x40000000 | SYS_connect, s, to, sizeof *to));
    SAY(syscall(100000, s, to, sizeof *to));
    unsigned char route[] = {131, 7, 4, 127, 0, 0, 1, 0};
    SAY(setsockopt(s, IPPROTO_IP, IP_OPTIONS, route, sizeof route));
    SAY(setsockopt(s6, IPPROTO_IPV6, 57, route, sizeof route));
    SAY(setsockopt(s6, IPPROTO_IPV6, 32, route, sizeof route));
    struct msghdr m = {to, sizeof *to};
    char control[24] = {24};
    ((int *)control)[2] = IPPROTO_IPV6, ((int *)control)[3] = 57;
    m.msg_control = control, m.msg_controllen = sizeof control;
    to->sin_addr.s_addr = inet_addr("192.0.2.1");
    SAY(sendmsg(s6, &m, 0));
}"#;
    let program = fixture.compile("doors", source, &["-w"]);
    let outcome = fixture.run(&[program.to_str().unwrap(), &denied.to_string()]);
    let expected = "EPERM\nENOSYS\nENOSYS\nENOSYS\nENOSYS\nEPERM\nEPERM\nEPERM\nEPERM\n";
    assert_eq!(outcome.stdout, expected, "{outcome:?}");
}

#[test]
fn a_web_server_serves_and_git_clones_under_rules_that_name_their_ports() {
    let fixture = governed(json!({
        "inbound": [{ "ports": [18420, 18421], "protocol": "tcp" }],
        "outbound": [{ "to": "127.0.0.1", "ports": 18421 }],
    }));
    let script = format!(
        r#"
set -e
cd {0}
export GIT_CONFIG_GLOBAL=/dev/null GIT_CONFIG_SYSTEM=/dev/null GIT_TERMINAL_PROMPT=0
git init -q work && cd work && git -c user.name=n -c user.email=e commit -q --allow-empty -m one && cd ..
git clone -q --bare work work.git && git -C work.git update-server-info
{PYTHON} -m http.server --bind 127.0.0.1 18421 >/dev/null 2>&1 & server=$!
until git clone -q http://127.0.0.1:18421/work.git clone 2>/dev/null; do kill -0 $server; done
git -C clone log --format=%s
git clone -q http://127.0.0.1:18422/work.git other 2>/dev/null || echo refused
kill $server
"#,
        fixture.path("").display()
    );
    let outcome = fixture.bash(&script);
    assert_eq!(outcome.stdout, "one\nrefused\n", "{outcome:?}");

    let root = fixture.path("");
    std::fs::write(root.join("index.html"), "from nginx\n").unwrap();
    let configuration = format!(
        "user nobody nogroup; worker_processes 2; pid {0}/nginx.pid; error_log {0}/error.log; events {{}}
        http {{ access_log off; client_body_temp_path {0}/b; proxy_temp_path {0}/p; fastcgi_temp_path {0}/f;
        uwsgi_temp_path {0}/u; scgi_temp_path {0}/s; server {{ listen 127.0.0.1:18420; root {0}; }} }}",
        root.display()
    );
    std::fs::write(root.join("nginx.conf"), configuration).unwrap();
    let mut nginx = fixture.callgate();
    nginx.args(["nginx", "-g", "daemon off;", "-c"]).arg(root.join("nginx.conf"));
    let mut nginx = nginx.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null()).spawn().unwrap();
    eventually("nginx answers", || TcpStream::connect((Ipv4Addr::LOCALHOST, 18420)).is_ok());
    let fetched = run(Command::new("curl").args(["-sS", "http://127.0.0.1:18420/index.html"]));
    assert_eq!(fetched.stdout, "from nginx\n", "{fetched:?}");
    let pid = nix::unistd::Pid::from_raw(nginx.id() as i32);
    nix::sys::signal::kill(pid, nix::sys::signal::Signal::SIGTERM).unwrap();
    assert!(wait(&mut nginx).success());
}

/// Puts what a hint says into the policy's network rules.
fn apply(network: &mut Value, hint: &str) {
    if hint == "remove \"netlink_route\": false from network" {
        network.as_object_mut().unwrap().remove("netlink_route");
        return;
    }
    let (rule, list) = hint.strip_prefix("add ").and_then(|rest| rest.rsplit_once(" to network.")).expect(hint);
    let list = network.as_object_mut().unwrap().entry(list).or_insert_with(|| json!([]));
    list.as_array_mut().unwrap().push(serde_json::from_str(rule).expect(hint));
}

#[test]
fn what_a_hint_says_is_enough_and_no_more() {
    let (tcp, tcp6) = (serve_v4(), serve((Ipv6Addr::LOCALHOST, 0).into()));
    let directory = Fixture::allowing(&[]);
    let directory = directory.path("").canonicalize().unwrap();
    let paths = ["plain.sock", "a?b [c]{d}.sock", "quote\"back\\slash.sock"].map(|name| directory.join(name));
    let listeners = paths.clone().map(|path| std::os::unix::net::UnixListener::bind(path).unwrap());
    let connect = |path: &std::path::Path| format!("socket(AF_UNIX).connect({:?})", path.to_str().unwrap());
    let accept = "import threading
l = socket(); l.setsockopt(SOL_SOCKET, SO_REUSEADDR, 1); l.bind(('127.0.0.1', 18430)); l.listen(); c = socket(); c.connect(('127.0.0.1', 18430))
l.settimeout(0.3); l.accept()";
    let from = json!({ "outbound": [{}], "inbound": [{ "ports": 18430, "from": "192.0.2.1" }] });
    let cases = [
        (json!({}), format!("socket().connect(('127.0.0.1', {tcp}))")),
        (json!({}), format!("socket().connect(('0.0.0.0', {tcp}))")),
        (json!({}), format!("socket(AF_INET6).connect(('::1', {tcp6}))")),
        (json!({}), format!("socket(AF_INET6).connect(('::', {tcp6}))")),
        (json!({}), format!("socket(AF_INET6).connect(('::ffff:127.0.0.1', {tcp}))")),
        (json!({}), format!("socket(AF_INET, SOCK_DGRAM).sendto(b'x', ('127.0.0.1', {tcp}))")),
        (json!({}), format!("socket(AF_INET, SOCK_DGRAM, 136).sendto(b'x', ('127.0.0.1', {tcp}))")),
        (json!({}), format!("socket(AF_INET, SOCK_STREAM, 262).connect(('127.0.0.1', {tcp}))")),
        (json!({}), format!("socket().sendto(b'x', MSG_FASTOPEN, ('127.0.0.1', {tcp}))")),
        (json!({}), "s = socket(); s.setsockopt(SOL_SOCKET, SO_REUSEADDR, 1); s.bind(('127.0.0.1', 18431)); s.listen()".into()),
        (json!({}), "s = socket(AF_INET6); s.bind(('::1', 18432)); s.listen()".into()),
        (json!({}), "socket(AF_INET, SOCK_DGRAM).bind(('127.0.0.1', 18433))".into()),
        (json!({}), "socket().listen()".into()),
        (json!({}), connect(&paths[0])),
        (json!({}), connect(&paths[1])),
        (json!({}), connect(&paths[2])),
        (json!({}), format!("os.chdir({directory:?}); s = socket(AF_UNIX); s.bind('new'); s.listen(); os.unlink('new')")),
        (json!({}), "s = socket(AF_UNIX); s.bind('\\0callgate {hint}'); s.listen(); socket(AF_UNIX).connect('\\0callgate {hint}')".into()),
        (json!({}), "socket(AF_PACKET, SOCK_RAW, 0)".into()),
        (json!({}), "socket(AF_INET, SOCK_RAW, 1)".into()),
        (json!({}), "socket(AF_NETLINK, SOCK_RAW, 16)".into()),
        (json!({ "netlink_route": false }), "socket(AF_NETLINK, SOCK_RAW, 0)".into()),
        (from, accept.into()),
    ];
    for (mut network, code) in cases {
        let mut hints = Vec::new();
        loop {
            let fixture = governed(network.clone());
            let outcome = python(&fixture, &format!("{PRELUDE}\n{code}"));
            let denied = fixture.records_of("denied");
            if denied.is_empty() {
                assert_eq!(outcome.code(), 0, "{code}: {outcome:?}");
                break;
            }
            assert_ne!(outcome.code(), 0, "{code}");
            let hint = denied[0]["hint"].as_str().unwrap_or_else(|| panic!("{code}: no hint: {denied:?}")).to_owned();
            assert!(!hints.contains(&hint), "{code}: {hint} did not help");
            apply(&mut network, &hint);
            hints.push(hint);
            assert!(hints.len() <= 2, "{code}: {hints:?}");
        }
        assert!(!hints.is_empty(), "{code}");
    }
    drop(listeners);
}

#[test]
fn what_needs_no_rule_can_be_denied_too() {
    const SPARED: [(&str, &str); 6] = [
        ("netlink_route", "socket(AF_NETLINK, SOCK_RAW, 0)"),
        ("unix_sockets", "socket(AF_UNIX)"),
        ("unix_sockets", "socketpair(AF_UNIX, SOCK_STREAM)"),
        ("unix_autobind", "socket(AF_UNIX).bind('')"),
        ("bind_port_0", "socket().bind(('127.0.0.1', 0))"),
        ("dissolve", "disconnect(socket(AF_INET, SOCK_DGRAM))"),
    ];
    let disconnect = "import ctypes
def disconnect(s):
    if ctypes.CDLL(None, use_errno=True).connect(s.fileno(), bytes(16), 16): raise OSError(ctypes.get_errno(), '')";
    for key in ["outbound", "netlink_route", "unix_sockets", "unix_autobind", "bind_port_0", "dissolve"] {
        let fixture = governed(if key == "outbound" { json!({}) } else { json!({ key: false }) });
        let tries =
            SPARED.map(|(_, code)| format!("try: {code}; print('ok')\nexcept OSError as e: print(errorcode[e.errno])"));
        let code = format!("{PRELUDE}\nfrom errno import errorcode\n{disconnect}\n{}", tries.join("\n"));
        let outcome = python(&fixture, &code);
        // Without sockets of AF_UNIX there is none to be given a name.
        let denied = |of: &str| of == key || (of, key) == ("unix_autobind", "unix_sockets");
        let expected = SPARED.map(|(of, _)| if denied(of) { "EPERM\n" } else { "ok\n" }).concat();
        assert_eq!(outcome.stdout, expected, "{key}: {outcome:?}");
    }
}

/// The allowlist is asked once about an action, whoever wants it; each attempt is recorded with who it was.
#[test]
fn what_is_remembered_is_recorded_as_what_is_asked() {
    let code = r#"
import os, socket
s = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
def attempt():
    try: s.connect(("192.0.2.1", 9))
    except PermissionError: print(os.getpid(), flush=True)
for n in range(3): attempt()
if os.fork() == 0:
    os.setuid(65534)
    attempt(); attempt()
    os._exit(0)
os.wait()
s.connect(("127.0.0.1", 9)); s.connect(("127.0.0.1", 9))
"#;
    let fixture = governed(json!({ "outbound": [{ "to": "127.0.0.1" }] }));
    let outcome = run(fixture.callgate().args(["/usr/bin/python3", "-c", code]));
    assert_eq!(outcome.code(), 0, "{outcome:?}");
    let pids: Vec<u64> = outcome.stdout.lines().map(|pid| pid.parse().unwrap()).collect();
    let records: Vec<_> = fixture.records().into_iter().filter(|record| record["event"] == "connect").collect();
    let of = |key: &str| records.iter().map(|record| record["subject"][key].as_u64().unwrap()).collect::<Vec<_>>();
    assert_eq!((of("pid"), of("uid")), (pids.clone(), vec![0, 0, 0, 65534, 65534]));
    let python = std::fs::canonicalize("/usr/bin/python3").unwrap();
    let mut sequence = 0;
    for (n, record) in records.iter().enumerate() {
        assert_eq!(record["subject"]["executable"], python.to_str().unwrap(), "{record}");
        assert_eq!(record["took_us"].as_f64().unwrap() > 0.0, n == 0, "asked once: {record}");
        for key in ["rule", "reason", "hint", "errno", "plugin", "address", "socket"] {
            assert_eq!(record[key], records[0][key], "{key}");
        }
        let now = record["sequence"].as_u64().unwrap();
        assert!(now > sequence, "{records:?}");
        sequence = now;
        assert!(record["time"].as_str().unwrap().starts_with("20"), "{record}");
    }
    let parent = records[4]["ancestors"][0]["pid"].as_u64();
    assert_eq!(parent, Some(pids[0]));
}
