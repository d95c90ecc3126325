//! Programs must not notice that their network calls are carried out by somebody else.

use std::ffi::OsStr;
use std::io::Read;
use std::net::{Ipv4Addr, TcpListener};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use serde_json::{Value, json};

use crate::harness::{CALLGATE, eventually, finish, run};
use crate::network::governed;

/// Rules that allow everything, and have every call looked at, accept too.
fn all() -> Value {
    json!({
        "outbound": [{}, { "protocol": "udplite" }, { "unix": "/**" }, { "unix_abstract": "**" }],
        "inbound": [{ "from": ["0.0.0.0/0", "::/0"] }, { "protocol": "udp" }, { "unix": "/**" }, { "unix_abstract": "**" }],
        "families": ["netlink", "raw", "packet", "vsock"],
    })
}

#[test]
fn every_call_returns_what_it_returns_without_us() {
    let fixture = governed(all());
    let program = fixture.compile("matrix", include_str!("programs/network_matrix.c"), &["-w"]);
    let output = |name: &str, command: &mut Command| {
        let directory = fixture.path(name);
        std::fs::create_dir(&directory).unwrap();
        let outcome = run(command.arg(&program).current_dir(directory));
        assert_eq!(outcome.code(), 0, "{name}: {outcome:?}");
        outcome.stdout
    };
    let bare = output("bare", &mut Command::new("env"));
    let under = output("under", &mut fixture.callgate());
    assert!(bare.lines().count() > 300, "{bare}");
    let differences: Vec<_> = bare.lines().zip(under.lines()).filter(|(bare, under)| bare != under).collect();
    assert_eq!(differences, []);
    assert_eq!(bare, under);
    assert!(fixture.records_of("denied").is_empty());
}

#[test]
fn every_call_returns_the_same_also_where_neither_supervisor_nor_workload_is_root() {
    let fixture = governed(all());
    let open = || std::os::unix::fs::PermissionsExt::from_mode(0o777);
    std::fs::set_permissions(fixture.path(""), open()).unwrap();
    std::fs::copy(CALLGATE, fixture.path("callgate")).unwrap();
    let program = fixture.compile("matrix", include_str!("programs/network_matrix.c"), &["-w"]);
    let output = |name: &str, before: &[&OsStr]| {
        let directory = fixture.path(name);
        std::fs::create_dir(&directory).unwrap();
        std::fs::set_permissions(&directory, open()).unwrap();
        let mut command = Command::new("setpriv");
        command.args(["--reuid", "65534", "--regid", "65534", "--clear-groups"]).args(before).arg(&program);
        let outcome = run(command.current_dir(directory));
        assert_eq!(outcome.code(), 0, "{name}: {outcome:?}");
        // Without CAP_SYS_ADMIN nobody may say for another process who it is: the receiver of a message with
        // SCM_CREDENTIALS sees the supervisor's process id.
        outcome.stdout.replace("from the expected process: no", "from the expected process: yes")
    };
    let bare = output("bare", &[]);
    let (callgate, policy) = (fixture.path("callgate"), fixture.policy());
    let under = output("under", &[callgate.as_os_str(), OsStr::new("--policy"), policy.as_os_str()]);
    let differences: Vec<_> = bare.lines().zip(under.lines()).filter(|(bare, under)| bare != under).collect();
    assert_eq!(differences, []);
    assert_eq!(bare, under);
}

#[test]
fn an_address_that_no_socket_takes_fails_as_it_does_without_us_whatever_the_rules_say() {
    let source = include_str!("programs/refused_addresses.c");
    for (rules, mode) in [(json!({}), "fresh"), (all(), "fresh"), (all(), "used")] {
        let fixture = governed(rules);
        let program = fixture.compile("refused", source, &["-w"]);
        let output = |command: &mut Command| {
            let outcome = run(command.arg(&program).arg(mode).current_dir(fixture.path("")));
            assert_eq!(outcome.code(), 0, "{mode}: {outcome:?}");
            outcome.stdout
        };
        let (bare, under) = (output(&mut Command::new("env")), output(&mut fixture.callgate()));
        let differences: Vec<_> = bare.lines().zip(under.lines()).filter(|(bare, under)| bare != under).collect();
        assert_eq!(differences, [], "{mode}");
        assert!(bare.lines().count() > 10, "{bare}");
        assert_eq!(bare, under, "{mode}");
        assert_eq!(fixture.records(), [] as [Value; 0], "{mode}");
    }
}

#[test]
fn memory_that_does_not_come_holds_up_nobody_but_its_owner() {
    let fixture = governed(all());
    let source = r#"
#define _GNU_SOURCE
#include <arpa/inet.h>
#include <errno.h>
#include <fcntl.h>
#include <linux/userfaultfd.h>
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <sys/socket.h>
#include <sys/syscall.h>
#include <unistd.h>
static char *page;
static volatile int returned;
static struct sockaddr_in to = {AF_INET};
static void *call(void *n) {
    int s = socket(AF_INET, SOCK_DGRAM, 0), which = (long)n % 3;
    struct msghdr m = {page, sizeof to};
    if (which == 0) connect(s, (void *)page, sizeof to);
    if (which == 1) sendto(s, page, 4096, 0, (void *)&to, sizeof to);
    if (which == 2) sendmsg(s, &m, 0);
    __sync_fetch_and_add(&returned, 1);
    return 0;
}
int main(void) {
    to.sin_port = htons(9), to.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
    page = mmap(0, 4096, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    int fd = syscall(SYS_userfaultfd, O_CLOEXEC);
    struct uffdio_api api = {UFFD_API};
    struct uffdio_register registered = {{(unsigned long)page, 4096}, UFFDIO_REGISTER_MODE_MISSING};
    if (fd < 0 || ioctl(fd, UFFDIO_API, &api) || ioctl(fd, UFFDIO_REGISTER, &registered)) { puts("no userfaultfd"); return 0; }
    pthread_t t[30];
    for (long i = 0; i < 30; i++) pthread_create(&t[i], 0, call, (void *)i);
    int u = socket(AF_INET, SOCK_DGRAM, 0), fine = 0;
    for (int i = 0; i < 100; i++) fine += sendto(u, "x", 1, 0, (void *)&to, sizeof to) == 1;
    printf("%d\n", fine);
}"#;
    let program = fixture.compile("slow", source, &["-w"]);
    let outcome = fixture.run(&[program]);
    assert!(["100\n", "no userfaultfd\n"].contains(&outcome.stdout.as_str()), "{outcome:?}");
}

#[test]
fn thousands_of_calls_wait_and_none_delays_another() {
    let fixture = governed(all());
    let source = r#"
#define _GNU_SOURCE
#include <arpa/inet.h>
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/resource.h>
#include <sys/socket.h>
#include <time.h>
#include <unistd.h>
static int listener, waiting;
static struct sockaddr_in address = {AF_INET};
static void *wait_for_one(void *unused) {
    __sync_fetch_and_add(&waiting, 1);
    int fd = accept(listener, 0, 0);
    close(fd);
    return 0;
}
static int tcp(void) { return socket(AF_INET, SOCK_STREAM, 0); }
int main(int n, char **arguments) {
    int count = atoi(arguments[1]);
    struct rlimit files = {20000, 20000};
    setrlimit(RLIMIT_NOFILE, &files);
    socklen_t length = sizeof address;
    address.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
    listener = tcp();
    bind(listener, (void *)&address, length);
    listen(listener, 4096);
    getsockname(listener, (void *)&address, &length);
    pthread_t *threads = calloc(count, sizeof *threads);
    pthread_attr_t small;
    pthread_attr_init(&small);
    pthread_attr_setstacksize(&small, 1 << 16);
    for (int i = 0; i < count; i++) if (pthread_create(&threads[i], &small, wait_for_one, 0)) return 2;
    while (waiting < count) usleep(1000);
    puts("ready");
    fflush(stdout);
    // Other calls, while all of those wait.
    struct timespec start, end;
    long worst = 0, total = 0;
    struct sockaddr_in receiver = {AF_INET, htons(9), {htonl(INADDR_LOOPBACK)}};
    int u = socket(AF_INET, SOCK_DGRAM, 0);
    for (int i = 0; i < 200; i++) {
        clock_gettime(CLOCK_MONOTONIC, &start);
        sendto(u, "x", 1, 0, (void *)&receiver, sizeof receiver);
        clock_gettime(CLOCK_MONOTONIC, &end);
        long took = (end.tv_sec - start.tv_sec) * 1000000 + (end.tv_nsec - start.tv_nsec) / 1000;
        total += took;
        if (took > worst) worst = took;
    }
    printf("%ld %ld\n", total / 200, worst);
    fflush(stdout);
    for (int i = 0; i < count; i++) {
        int fd = tcp();
        if (connect(fd, (void *)&address, length)) return 3;
        close(fd);
    }
    for (int i = 0; i < count; i++) pthread_join(threads[i], 0);
    puts("all came through");
    return 0;
}"#;
    let program = fixture.compile("crowd", source, &["-w"]);
    let outcome = fixture.run(&[program.to_str().unwrap(), "3000"]);
    assert_eq!(outcome.code(), 0, "{outcome:?}");
    let lines: Vec<&str> = outcome.stdout.lines().collect();
    assert_eq!((lines[0], lines[2]), ("ready", "all came through"));
    let mean: u64 = lines[1].split(' ').next().unwrap().parse().unwrap();
    assert!(mean < 5_000, "a datagram took {mean} microseconds, {}", lines[1]);
}

#[test]
fn a_caller_that_is_killed_while_it_waits_takes_no_connection_with_it() {
    let fixture = governed(all());
    let code = r#"
import os, signal, socket, sys
l = socket.socket(); l.bind(("127.0.0.1", 0)); l.listen(64)
full = socket.socket(); full.bind(("127.0.0.1", 0)); full.listen(0)
fillers = []
for _ in range(3):
    s = socket.socket(); s.setblocking(False); s.connect_ex(full.getsockname()); fillers.append(s)
def in_a_child(work):
    r, w = os.pipe()
    pid = os.fork()
    if pid == 0:
        os.write(w, b"!"); work(); os._exit(0)
    os.read(r, 1); os.close(r); os.close(w)
    return pid
for round in range(30):
    waits = (lambda: l.accept()) if round % 2 else (lambda: socket.socket().connect(full.getsockname()))
    pid = in_a_child(waits)
    os.sched_yield()
    if round % 3: import time; time.sleep(0.004)
    os.kill(pid, signal.SIGKILL)
    assert os.waitpid(pid, 0)[1] == signal.SIGKILL
# A connection that comes now is for whoever still lives. The supervisor hears of a death at once.
import time; time.sleep(0.1)
for _ in range(20):
    c = socket.socket(); c.connect(l.getsockname())
    l.settimeout(5); l.accept()
print("ok")
"#;
    let outcome = fixture.run(&["/usr/bin/python3", "-c", code]);
    assert_eq!((outcome.code(), outcome.stdout.as_str()), (0, "ok\n"), "{outcome:?}");
}

#[test]
fn a_waiting_supervisor_forgets_what_it_held_for_the_dead() {
    let fixture = governed(all());
    let code = r#"
import os, signal, socket, sys
l = socket.socket(); l.bind(("127.0.0.1", 0)); l.listen(64)
pids = []
for _ in range(50):
    pid = os.fork()
    if pid == 0: l.accept(); os._exit(0)
    pids.append(pid)
print("ready", flush=True); sys.stdin.readline()
for pid in pids: os.kill(pid, signal.SIGKILL)
for pid in pids: os.waitpid(pid, 0)
print("killed", flush=True); sys.stdin.readline()
"#;
    let mut command = fixture.callgate();
    command.args(["/usr/bin/python3", "-c", code]).stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
    let mut child = command.spawn().unwrap();
    let mut input = child.stdin.take().unwrap();
    let expect = |child: &mut std::process::Child, text: &str| {
        let mut line = vec![0; text.len()];
        child.stdout.as_mut().unwrap().read_exact(&mut line).unwrap();
        assert_eq!(line, text.as_bytes());
    };
    expect(&mut child, "ready\n");
    let supervisor = std::fs::read_to_string(format!("/proc/{0}/task/{0}/children", child.id())).unwrap();
    let supervisor = supervisor.trim().to_owned();
    let threads = || std::fs::read_dir(format!("/proc/{supervisor}/task")).unwrap().count();
    let sockets = || {
        let open = std::fs::read_dir(format!("/proc/{supervisor}/fd")).unwrap().flatten();
        open.filter(|fd| std::fs::read_link(fd.path()).is_ok_and(|link| link.to_string_lossy().starts_with("socket:")))
            .count()
    };
    // A caller that waits costs us a thread and its socket. (What is kept of callers beyond that is bounded.)
    eventually("all of them wait", || threads() > 50 && sockets() > 50);
    std::io::Write::write_all(&mut input, b"\n").unwrap();
    expect(&mut child, "killed\n");
    eventually("their threads are gone", || threads() < 15);
    eventually("their sockets are gone", || sockets() < 10);
    drop(input);
    assert_eq!(finish(child).code(), 0);
}

#[test]
fn a_signal_reaches_a_caller_that_has_waited_long_soon_enough() {
    let fixture = governed(all());
    let code = r#"
import signal, socket, time, os, threading
l = socket.socket(); l.bind(("127.0.0.1", 0)); l.listen(1)
came = []
def handler(*_):
    came.append(time.monotonic())
    raise InterruptedError
signal.signal(signal.SIGUSR1, handler)
for wait in (0.05, 0.6):
    def send():
        time.sleep(wait); sent.append(time.monotonic()); os.kill(os.getpid(), signal.SIGUSR1)
    sent = []; came.clear()
    t = threading.Thread(target=send); t.start()
    try: l.accept()
    except InterruptedError: pass
    t.join()
    print("soon" if came[0] - sent[0] < 0.4 else came[0] - sent[0])
"#;
    let outcome = fixture.run(&["/usr/bin/python3", "-c", code]);
    assert_eq!(outcome.stdout, "soon\nsoon\n", "{outcome:?}");
}

#[test]
fn others_who_share_a_socket_see_nothing_of_a_call_that_waits() {
    let fixture = governed(all());
    let code = r#"
import fcntl, os, socket, threading, time
l = socket.socket(); l.bind(("127.0.0.1", 0)); l.listen(64)
over = False
def accepting():
    for _ in range(300): l.accept()[0].close()
def connecting():
    for _ in range(300): c = socket.socket(); c.connect(l.getsockname()); c.close()
threads = [threading.Thread(target=t) for t in (accepting, connecting)]
for t in threads: t.start()
seen = 0
while any(t.is_alive() for t in threads):
    seen += bool(fcntl.fcntl(l, fcntl.F_GETFL) & os.O_NONBLOCK)
print(seen)
"#;
    let outcome = fixture.run(&["/usr/bin/python3", "-c", code]);
    assert_eq!(outcome.stdout, "0\n", "{outcome:?}");
}

#[test]
fn callers_of_other_users_and_callers_that_may_not_be_looked_at_are_served() {
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
    let port = listener.local_addr().unwrap().port();
    let fixture = governed(all());
    let open = std::os::unix::fs::PermissionsExt::from_mode(0o777);
    std::fs::set_permissions(fixture.path(""), open).unwrap();
    let code = format!(
        r#"
import ctypes, os, socket, struct
libc = ctypes.CDLL(None)
parent, child = socket.socketpair(socket.AF_UNIX, socket.SOCK_STREAM)
if os.fork() == 0:
    os.setgroups([1234]); os.setresgid(4321, 4321, 4321); os.setresuid(4321, 4321, 4321)
    assert libc.prctl(3) == 0 or libc.prctl(4, 0) == 0
    s = socket.socket(); s.connect(("127.0.0.1", {port}))
    s.sendmsg([b"x"])
    l = socket.socket(socket.AF_UNIX); l.bind("{directory}/u.sock"); l.listen()
    c = socket.socket(socket.AF_UNIX); c.connect("{directory}/u.sock")
    a, _ = l.accept()
    for end in (a, c):
        pid, uid, gid = struct.unpack("3i", end.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, 12))
        assert (pid, uid, gid) == (os.getpid(), 4321, 4321), (pid, uid, gid)
    st = os.stat("{directory}/u.sock"); assert (st.st_uid, st.st_gid) == (4321, 4321)
    d = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM); d.bind("{directory}/d.sock")
    d.setsockopt(socket.SOL_SOCKET, socket.SO_PASSCRED, 1)
    socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM).sendto(b"x", "{directory}/d.sock")
    _, ancillary, _, _ = d.recvmsg(1, 100)
    assert struct.unpack("3i", ancillary[0][2]) == (os.getpid(), 4321, 4321), ancillary
    child.sendmsg([b"fine"])
    os._exit(0)
assert os.wait()[1] == 0
print(parent.recv(4))
"#,
        directory = fixture.path("").display()
    );
    let outcome = fixture.run(&["/usr/bin/python3", "-c", &code]);
    assert_eq!(outcome.stdout, "b'fine'\n", "{outcome:?}");
    drop(listener);
}

#[test]
fn processes_that_share_memory_or_descriptors_are_served() {
    let fixture = governed(all());
    let source = r#"
#define _GNU_SOURCE
#include <arpa/inet.h>
#include <sched.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/socket.h>
#include <sys/wait.h>
#include <unistd.h>
static int s = -1, result = -1;
static struct sockaddr_in address = {AF_INET};
static int work(void *unused) {
    s = socket(AF_INET, SOCK_STREAM, 0);
    result = connect(s, (void *)&address, sizeof address);
    _exit(0);
}
int main(void) {
    int l = socket(AF_INET, SOCK_STREAM, 0), flags[] = {CLONE_VM | CLONE_VFORK, CLONE_FILES, CLONE_VM | CLONE_FILES, CLONE_VM | CLONE_FILES | CLONE_FS};
    socklen_t length = sizeof address;
    address.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
    bind(l, (void *)&address, length);
    listen(l, 10);
    getsockname(l, (void *)&address, &length);
    for (int i = 0; i < 4; i++) {
        result = -1;
        int pid = clone(work, malloc(1 << 16) + (1 << 16), flags[i] | SIGCHLD, 0), status;
        waitpid(pid, &status, 0);
        int a = accept(l, 0, 0);
        printf("%d %d %d\n", status, flags[i] & CLONE_VM ? result : 0, a >= 0);
    }
}"#;
    let program = fixture.compile("sharing", source, &["-w"]);
    let outcome = fixture.run(&[program]);
    assert_eq!(outcome.stdout, "0 0 1\n".repeat(4), "{outcome:?}");
}

#[test]
fn a_crowd_that_waits_costs_next_to_nothing() {
    let fixture = governed(all());
    let code = r#"
import socket, sys, threading
l = socket.socket(); l.bind(("127.0.0.1", 0)); l.listen(1)
threading.stack_size(65536)
for _ in range(500): threading.Thread(target=l.accept, daemon=True).start()
print("ready", flush=True); sys.stdin.readline()
import os; os._exit(0)
"#;
    let mut command = fixture.callgate();
    command.args(["/usr/bin/python3", "-c", code]).stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
    let mut child = command.spawn().unwrap();
    child.stdout.as_mut().unwrap().read_exact(&mut [0; 6]).unwrap();
    let supervisor = std::fs::read_to_string(format!("/proc/{0}/task/{0}/children", child.id())).unwrap();
    let supervisor = supervisor.trim().to_owned();
    let tasks = format!("/proc/{supervisor}/task");
    eventually("all of them wait", || std::fs::read_dir(&tasks).unwrap().count() > 500);
    let ticks = || {
        let stat = std::fs::read_to_string(format!("/proc/{supervisor}/stat")).unwrap();
        let fields: Vec<&str> = stat.rsplit_once(')').unwrap().1.split_whitespace().collect();
        fields[11].parse::<u64>().unwrap() + fields[12].parse::<u64>().unwrap()
    };
    // At first they are looked at often.
    std::thread::sleep(Duration::from_millis(1500));
    let (before, start) = (ticks(), Instant::now());
    std::thread::sleep(Duration::from_secs(2));
    let share = (ticks() - before) as f64 / 100.0 / start.elapsed().as_secs_f64();
    assert!(share < 0.15, "{share} of a processor");
    drop(child.stdin.take());
    finish(child);
}

#[test]
fn a_crowd_that_waits_with_much_to_send_does_not_take_all_memory() {
    let fixture = governed(all());
    let code = r#"
import os, socket, sys, threading
much = bytes(1 << 20)
pairs = [socket.socketpair() for _ in range(2000)]
threading.stack_size(65536)
for a, _ in pairs: threading.Thread(target=a.sendmsg, args=([much],), daemon=True).start()
print("ready", flush=True); sys.stdin.readline()
# All of it arrives all the same.
for a, b in pairs[:100] + pairs[-100:]:
    got = 0
    while got < len(much): got += len(b.recv(1 << 20))
print("all there", flush=True); os._exit(0)
"#;
    let mut command = Command::new("bash");
    command.args(["-c", "ulimit -n 20000; exec \"$@\"", "bash", CALLGATE, "--policy"]).arg(fixture.policy());
    command.args(["/usr/bin/python3", "-c", code]).stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
    let mut child = command.spawn().unwrap();
    child.stdout.as_mut().unwrap().read_exact(&mut [0; 6]).unwrap();
    let supervisor = std::fs::read_to_string(format!("/proc/{0}/task/{0}/children", child.id())).unwrap();
    let tasks = format!("/proc/{}/task", supervisor.trim());
    eventually("all of them wait", || std::fs::read_dir(&tasks).unwrap().count() > 2000);
    let status = std::fs::read_to_string(format!("/proc/{}/status", supervisor.trim())).unwrap();
    let resident = status.lines().find_map(|line| line.strip_prefix("VmRSS:")).unwrap();
    let kilobytes: u64 = resident.trim().trim_end_matches(" kB").parse().unwrap();
    assert!(kilobytes < 350_000, "{kilobytes} kB");
    drop(child.stdin.take());
    let outcome = finish(child);
    assert_eq!(outcome.stdout, "all there\n", "{outcome:?}");
}

/// It stays in the queue, where poll(2) sees it.
#[test]
fn a_connection_is_not_lost_to_one_who_has_no_descriptor_left() {
    let code = r#"
import errno, os, resource, select, socket
listener = socket.socket(); listener.bind(("127.0.0.1", 0)); listener.listen(50)
client = socket.create_connection(listener.getsockname())
_, most = resource.getrlimit(resource.RLIMIT_NOFILE)
resource.setrlimit(resource.RLIMIT_NOFILE, (40, most))
full = []
while True:
    try: full.append(os.dup(0))
    except OSError: break
try: listener.accept(); print("accepted")
except OSError as error: print(errno.errorcode[error.errno])
poll = select.poll(); poll.register(listener, select.POLLIN)
os.close(full.pop())
print("still there", len(poll.poll(5000)))
high = full.pop(); os.dup2(high, 39); os.close(high); resource.setrlimit(resource.RLIMIT_NOFILE, (39, most))
listener.settimeout(5); listener.accept()[0].close(); client.close()
print("accepted beside a high number")
"#;
    let expected = "EMFILE\nstill there 1\naccepted beside a high number\n";
    for command in [&mut Command::new("/usr/bin/python3"), governed(all()).callgate().arg("/usr/bin/python3")] {
        let outcome = run(command.args(["-c", code]));
        assert_eq!((outcome.code(), outcome.stdout.as_str()), (0, expected), "{outcome:?}");
    }
}

/// As a rule a connection to this machine does not wait, and nobody is woken to receive others meanwhile.
#[test]
fn a_crowd_whose_connections_wait_unexpectedly_holds_up_nobody() {
    let code = r#"
import os, signal, socket, struct, time
listener = socket.socket(socket.AF_UNIX); listener.bind("full"); listener.listen(0)
first = socket.socket(socket.AF_UNIX); first.connect("full")
crowd = []
for _ in range(150):
    pid = os.fork()
    if pid == 0:
        while True:
            try:
                s = socket.socket(socket.AF_UNIX)
                s.setsockopt(socket.SOL_SOCKET, socket.SO_SNDTIMEO, struct.pack("ll", 0, 20000))
                s.connect("full")
            except OSError: s.close()
    crowd.append(pid)
took = []
for _ in range(31):
    begun = time.monotonic()
    s = socket.socket(socket.AF_INET, socket.SOCK_DGRAM); s.connect(("127.0.0.1", 9)); s.close()
    took.append(time.monotonic() - begun)
    time.sleep(0.02)
for pid in crowd: os.kill(pid, signal.SIGKILL)
for pid in crowd: os.waitpid(pid, 0)
print(sorted(took)[15])
"#;
    let fixture =
        governed(json!({ "outbound": [{ "to": "127.0.0.1" }, { "unix": "/**" }], "inbound": [{ "unix": "/**" }] }));
    let outcome = run(fixture.callgate().args(["/usr/bin/python3", "-c", code]).current_dir(fixture.path("")));
    assert_eq!(outcome.code(), 0, "{outcome:?}");
    let median: f64 = outcome.stdout.trim().parse().unwrap();
    // Where each of them is waited for, before the next is received, it is about half a second on an idle machine.
    assert!(median < 0.2, "{median} s");
}

#[test]
fn who_closes_a_connection_has_closed_it() {
    let fixture = governed(all());
    let program = fixture.compile("closed_at_once", include_str!("programs/closed_at_once.c"), &[]);
    for command in [&mut Command::new("env"), &mut fixture.callgate()] {
        let outcome = run(command.arg(&program));
        assert_eq!((outcome.code(), outcome.stdout.as_str()), (0, "EPIPE 100, ECONNRESET 0\n"), "{outcome:?}");
    }
}
