//! Attacks on the supervisor from inside: as root and as an ordinary user, where it is the first process and where not.

use std::process::Command;

use crate::harness::{CALLGATE, Fixture, Outcome, run};
use crate::launch::{contained, free, mark};

/// Tries everything that a process can do to another. Prints what succeeded, and then what the supervisor is.
const ATTACKS: &str = r#"
import ctypes, fcntl, os, resource, signal, subprocess, sys
libc = ctypes.CDLL(None, use_errno=True)
def call(number, *arguments):
    result = libc.syscall(number, *[ctypes.c_long(a) if isinstance(a, int) else a for a in arguments])
    if result < 0:
        raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()))
    return result
supervisor = os.getppid() if len(sys.argv) < 3 else int(sys.argv[2])
first = supervisor == 1
def stat(pid):
    return open(f"/proc/{pid}/stat").read().rsplit(")", 1)[1].split()
guardian = None if first else int(stat(supervisor)[1])
for number in [2, 11, 15, 29, 34]:
    signal.signal(number, signal.SIG_IGN)  # what callgate gets is passed on
succeeded = []
def attack(name, work):
    try:
        work()
        succeeded.append(name)
    except (OSError, PermissionError, ProcessLookupError):
        pass
for victim in filter(None, [supervisor, guardian]):
    threads = [int(tid) for tid in os.listdir(f"/proc/{victim}/task")]
    for number in [9, 19, 15, 2, 11, 34]:
        attack(f"kill {number}", lambda: os.kill(victim, number))
        if victim == supervisor:
            attack(f"killpg {number}", lambda: os.killpg(victim, number))
        attack(f"pidfd {number}", lambda: signal.pidfd_send_signal(os.pidfd_open(victim), number))
        attack(f"proc fd {number}", lambda: signal.pidfd_send_signal(os.open(f"/proc/{victim}", os.O_RDONLY), number))
        info = (ctypes.c_int * 32)(number, 0, -1)
        attack(f"sigqueue {number}", lambda: call(129, victim, number, info))
        for tid in threads:
            attack(f"kill thread {number}", lambda: os.kill(tid, number))
            attack(f"tkill {number}", lambda: call(200, tid, number))
            attack(f"tgkill {number}", lambda: call(234, victim, tid, number))
            attack(f"tgsigqueue {number}", lambda: call(297, victim, tid, number, info))
    def io_signal(number):
        reader, writer = os.pipe()
        fcntl.fcntl(reader, fcntl.F_SETOWN, victim)
        fcntl.fcntl(reader, 10, number)
        fcntl.fcntl(reader, fcntl.F_SETFL, fcntl.fcntl(reader, fcntl.F_GETFL) | os.O_ASYNC)
        os.write(writer, b"x")
    attack("signal by I/O", lambda: io_signal(9))
    if first:
        succeeded.clear()  # the kernel drops them
    attack("default signal by I/O", lambda: io_signal(0))
    succeeded[:] = [name for name in succeeded if name != "default signal by I/O"]  # blocked
    buffer = ctypes.create_string_buffer(64)
    class Vec(ctypes.Structure):
        _fields_ = [("base", ctypes.c_void_p), ("length", ctypes.c_size_t)]
    local, remote = Vec(ctypes.addressof(buffer), 64), Vec(0x400000, 64)
    for request, name in [(16, "attach"), (0x4206, "seize")]:
        attack(f"ptrace {name}", lambda: call(101, request, victim, 0, 0))
        attack(f"ptrace {name} thread", lambda: call(101, request, threads[-1], 0, 0))
    attack("process_vm_readv", lambda: call(310, victim, ctypes.byref(local), 1, ctypes.byref(remote), 1, 0))
    attack("process_vm_writev", lambda: call(311, victim, ctypes.byref(local), 1, ctypes.byref(remote), 1, 0))
    for fd in range(20):
        attack("pidfd_getfd", lambda: call(438, os.pidfd_open(victim), fd, 0))
    for name in ["mem", "environ", "maps", "smaps", "auxv", "stack", "syscall", "pagemap", "io", f"task/{threads[-1]}/mem",
                 f"task/{threads[-1]}/environ", "personality", "wchan_", "timerslack_ns"]:
        attack(f"read {name}", lambda: os.read(os.open(f"/proc/{victim}/{name}", os.O_RDONLY), 64)[0])
        if name == "mem":
            attack("write mem", lambda: os.open(f"/proc/{victim}/mem", os.O_RDWR))
    for name in ["exe", "cwd", "root", "fd/0", "fd/2", "ns/mnt", "ns/pid", f"task/{threads[-1]}/root"]:
        attack(f"open {name}", lambda: os.open(f"/proc/{victim}/{name}", os.O_RDONLY))
        attack(f"readlink {name}", lambda: os.readlink(f"/proc/{victim}/{name}"))
    for name in ["map_files"]:
        attack(f"list {name}", lambda: os.listdir(f"/proc/{victim}/{name}"))
    attack("kcmp", lambda: call(312, os.getpid(), victim, 2, 0, 0))
    attack("setns", lambda: call(308, os.pidfd_open(victim), 0x00020000))
    attack("process_madvise", lambda: call(440, os.pidfd_open(victim), ctypes.byref(remote), 1, 20, 0))
    attack("process_mrelease", lambda: call(448, os.pidfd_open(victim), 0))
    attack("prlimit", lambda: resource.prlimit(victim, resource.RLIMIT_NOFILE, (1, 1)))
    attack("prlimit cpu", lambda: resource.prlimit(victim, resource.RLIMIT_CPU, (1, 1)))
    attack("prlimit thread", lambda: resource.prlimit(threads[-1], resource.RLIMIT_NOFILE, (1, 1)))
    attack("nice", lambda: os.setpriority(os.PRIO_PROCESS, victim, 19))
    attack("nice of a thread", lambda: os.setpriority(os.PRIO_PROCESS, threads[-1], 19))
    if victim == supervisor:
        attack("nice of the group", lambda: os.setpriority(os.PRIO_PGRP, os.getpgid(victim), 19))
    attack("nice of the user", lambda: os.setpriority(os.PRIO_USER, os.getuid(), 19))
    attack("ioprio", lambda: call(251, 1, victim, 3 << 13))
    if victim == supervisor:
        attack("ioprio of the group", lambda: call(251, 2, os.getpgid(victim), 3 << 13))
    attack("ioprio of the user", lambda: call(251, 3, os.getuid(), 3 << 13))
    for tid in threads:
        attack("affinity", lambda: os.sched_setaffinity(tid, [0]))
        attack("scheduler", lambda: os.sched_setscheduler(tid, os.SCHED_IDLE, os.sched_param(0)))
        attack("parameters", lambda: os.sched_setparam(tid, os.sched_param(0)))
        attributes = (ctypes.c_int * 12)(48, 5)
        attack("attributes", lambda: call(314, tid, attributes, 0))
    one = (ctypes.c_ulong * 1)(1)
    attack("migrate_pages", lambda: call(256, victim, 64, one, one))
    attack("move_pages", lambda: call(279, victim, 1, one, one, (ctypes.c_int * 1)(), 4))
    attack("affinity to none", lambda: os.sched_setaffinity(victim, [0]))
if os.getuid() == 0 and int([l for l in open("/proc/self/status") if l.startswith("CapEff")][0].split()[1], 16) >> 21 & 1:
    # From Linux 6.15 on CAP_SYS_ADMIN lets anything be read that is kept in the memory map, save the memory itself
    # (may_access_mm, kernel/fork.c). What the environment was has been overwritten there. See `guarantees`.
    readable = ("read auxv", "read environ", "read maps", "read smaps", "read pagemap", "read task/", "read timerslack_ns",
                "list map_files")
    succeeded = [name for name in succeeded if not name.startswith(readable)]
print("succeeded:", sorted(set(succeeded)))
# It lives, runs, is not traced, and has what it had.
for victim in filter(None, [supervisor, guardian]):
    fields = stat(victim)
    status = dict(line.split(":\t", 1) for line in open(f"/proc/{victim}/status").read().splitlines() if ":\t" in line)
    print("state:", fields[0] in "SRD", "nice:", fields[16], "policy:", fields[38], "tracer:", status["TracerPid"])
    print("all processors:", os.sched_getaffinity(victim) == os.sched_getaffinity(0))
try:
    subprocess.run(["/usr/bin/whoami"])
except PermissionError:
    print("whoami: denied")
# Nor does anybody find the token.
secret = sys.argv[1].encode()[::-1]
for name in map(str, filter(None, [supervisor, guardian, os.getpid()])):
    for file in ["environ", "cmdline", "comm"]:
        try:
            if secret in open(f"/proc/{name}/{file}", "rb").read():
                print("found the token in", name, file)
        except OSError:
            pass
"#;

/// Under which rights callgate and its command run.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Rights {
    /// Every capability.
    Root,
    /// What a container runtime leaves to root by default.
    Container,
    RootThenUser,
    User,
}

const AS_USER: [&str; 6] = ["setpriv", "--reuid=1000", "--regid=1000", "--clear-groups", "--inh-caps=-all", "--"];

const IN_CONTAINER: [&str; 3] = [
    "setpriv",
    "--bounding-set=-all,+chown,+dac_override,+fowner,+fsetid,+kill,+setgid,+setuid,+setpcap,+net_bind_service,+net_raw,\
     +sys_chroot,+mknod,+audit_write,+setfcap",
    "--",
];

fn attacked(rights: Rights, first: bool) -> Outcome {
    let executables = ["/usr/bin/python3*", "/usr/bin/setpriv", "/usr/lib/", "/usr/local/bin/python3*", "/root/"];
    let fixture =
        Fixture::new(serde_json::json!({ "allow_executables": executables, "audit": { "sinks": ["stderr"] } }));
    // The token, as the environment has it; the attacker knows it backwards, so that it does not find itself.
    let token = mark();
    let backwards: String = token.chars().rev().collect();
    let mut words: Vec<String> = Vec::new();
    if first {
        words.extend(["unshare", "--pid", "--fork", "--kill-child", "--mount-proc", "setsid"].map(str::to_owned));
    }
    match rights {
        Rights::User => words.extend(AS_USER.map(str::to_owned)),
        Rights::Container => words.extend(IN_CONTAINER.map(str::to_owned)),
        Rights::Root | Rights::RootThenUser => {}
    }
    words.extend([CALLGATE.to_owned(), "--policy".to_owned(), fixture.policy().to_str().unwrap().to_owned()]);
    if rights == Rights::RootThenUser {
        words.extend(AS_USER.map(str::to_owned));
    }
    words.extend(["/usr/bin/python3", "-c", ATTACKS, &backwards].map(str::to_owned));
    if first {
        words.push("1".to_owned());
    }
    run(Command::new("env").arg(format!("CALLGATE_TOKEN={token}")).args(words))
}

fn holds_out(rights: Rights, first: bool) {
    let outcome = attacked(rights, first);
    let what = format!("{rights:?}, first: {first}: {outcome:?}");
    assert_eq!(outcome.code(), 0, "{what}");
    let processes = if first { 1 } else { 2 };
    let nice = run(&mut Command::new("nice")).stdout;
    let intact = format!("state: True nice: {} policy: 0 tracer: 0\nall processors: True\n", nice.trim());
    let intact = intact.repeat(processes);
    assert_eq!(outcome.stdout, format!("succeeded: []\n{intact}whoami: denied\n"), "{what}");
}

/// What stands in front of callgate keeps its own environment.
#[test]
fn a_token_that_is_somewhere_else_as_well_is_said_to_be() {
    let fixture = Fixture::allowing(&["/usr/bin/true"]);
    let under = |shell: &str| {
        let mut command = Command::new("sh");
        command.args(["-c", shell, "-", CALLGATE]).arg(fixture.policy()).env("CALLGATE_TOKEN", "secret");
        run(&mut command)
    };
    let kept = under(r#""$1" --policy "$2" true; :"#);
    assert_eq!(kept.code(), 0, "{kept:?}");
    assert!(kept.stderr.contains("CALLGATE_TOKEN") && kept.stderr.contains("exec callgate"), "{kept:?}");
    let given_up = under(r#"exec env -u A "$1" --policy "$2" true"#);
    assert_eq!((given_up.code(), given_up.stderr.as_str()), (0, ""), "{given_up:?}");
}

#[test]
fn nothing_reaches_the_supervisor_from_inside() {
    for rights in [Rights::Root, Rights::Container, Rights::RootThenUser, Rights::User] {
        holds_out(rights, false);
    }
}

#[test]
fn nor_where_it_is_the_first_process() {
    for rights in [Rights::Root, Rights::Container, Rights::RootThenUser, Rights::User] {
        holds_out(rights, true);
    }
}

#[test]
fn a_signal_to_everybody_reaches_everybody_but_us() {
    let fixture = free();
    // In a pid namespace, so that everybody is nobody else; bash is its first process.
    let line = "sleep 1000 & sleep 1001 & setsid sleep 1002 & kill -9 -1; echo $?; wait; pgrep -c sleep; \
        kill -0 -1; echo nobody $?; setpriv --reuid 1000 --clear-groups --regid 1000 bash -c 'kill -9 -1; echo $?'; exit 3";
    let callgate = fixture.callgate();
    let mut inner = vec![callgate.get_program().to_owned()];
    inner.extend(callgate.get_args().map(ToOwned::to_owned));
    let words: Vec<String> = inner.iter().map(|word| word.to_str().unwrap().to_owned()).collect();
    let script = format!("{} bash -c \"$0\"; echo status $?", words.join(" "));
    let mut command = Command::new("unshare");
    command.args(["--pid", "--fork", "--kill-child", "--mount-proc", "bash", "-c", &script, line]);
    let outcome = run(&mut command);
    assert_eq!(outcome.stdout, "0\n0\nnobody 1\n1\nstatus 3\n", "{outcome:?}");
}

#[test]
fn signals_inside_the_workload_are_as_they_were() {
    let fixture = free();
    let program = r#"
import os, signal, subprocess
def started(*extra):
    child = subprocess.Popen(["/usr/bin/cat"], stdin=subprocess.PIPE, **dict(extra))
    return child
child = started(); os.kill(child.pid, 15); assert child.wait() == -15
child = started(); signal.pidfd_send_signal(os.pidfd_open(child.pid), 15); assert child.wait() == -15
child = started(("start_new_session", True)); os.killpg(child.pid, 15); assert child.wait() == -15
child = started(); pidfd = os.pidfd_open(child.pid); child.kill(); child.wait()
try:
    signal.pidfd_send_signal(pidfd, 15)
    raise SystemExit("a dead process got a signal")
except ProcessLookupError:
    pass
for work in [lambda: os.kill(child.pid, 0), lambda: os.kill(4000000, 9)]:
    try:
        work()
        raise SystemExit("nobody got a signal")
    except ProcessLookupError:
        pass
child = started(); os.setpriority(os.PRIO_PROCESS, child.pid, 5); assert os.getpriority(os.PRIO_PROCESS, child.pid) == 5
os.sched_setaffinity(child.pid, os.sched_getaffinity(0)); child.kill(); child.wait()
os.setpriority(os.PRIO_PROCESS, 0, 3); os.setpriority(os.PRIO_PGRP, 0, 4); assert os.getpriority(os.PRIO_PROCESS, 0) == 4
"#;
    let mut command = fixture.callgate();
    command.args(["/usr/bin/python3", "-c", program]);
    let outcome = run(&mut command);
    assert_eq!(outcome.code(), 0, "{outcome:?}");
    let outcome = run(&mut contained(&command));
    assert_eq!(outcome.code(), 0, "{outcome:?}");
}

#[test]
fn a_descriptor_exchanged_in_flight_does_not_send_a_signal_to_the_supervisor() {
    let fixture = free();
    let race = r#"
#define _GNU_SOURCE
#include <pthread.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/syscall.h>
#include <unistd.h>
static int harmless, theirs, slot = 100;
static volatile int over;
static void *exchange(void *unused) {
    while (!over) { dup2(theirs, slot); dup2(harmless, slot); }
    return NULL;
}
int main(void) {
    pthread_t thread;
    int passed = 0;
    harmless = syscall(SYS_pidfd_open, getpid(), 0);
    theirs = syscall(SYS_pidfd_open, getppid(), 0);
    signal(SIGSTOP, SIG_IGN); signal(SIGUSR1, SIG_IGN);
    dup2(harmless, slot);
    pthread_create(&thread, NULL, exchange, NULL);
    for (int i = 0; i < 20000; i++) {
        /* A signal that stops, if it goes the wrong way; to ourselves it is one that does nothing. */
        if (syscall(SYS_pidfd_send_signal, slot, i % 50 == 0 ? SIGUSR1 : SIGCONT, NULL, 0) == 0) passed++;
    }
    over = 1;
    pthread_join(thread, NULL);
    printf("%d\n", passed > 100 && kill(getpid(), 0) == 0);
    return 0;
}
"#;
    let race = fixture.compile("race", race, &["-w"]);
    let outcome = run(fixture.callgate().arg(race));
    assert_eq!((outcome.code(), outcome.stdout.as_str()), (0, "1\n"), "{outcome:?}");
}

#[test]
fn an_empty_root_is_enough() {
    let executables = ["/command"];
    let fixture =
        Fixture::new(serde_json::json!({ "allow_executables": executables, "audit": { "sinks": ["stderr"] } }));
    let source = "#include <errno.h>\n#include <unistd.h>\nint main(int n, char **v) {\n\
        if (n > 1) { execl(\"/other\", \"other\", (char *)0); return errno == EACCES ? 42 : 43; }\n\
        return write(1, \"runs\\n\", 5) == 5 ? 7 : 1; }";
    let command = fixture.compile("command", source, &["-static"]);
    let root = fixture.path("root");
    std::fs::create_dir(&root).unwrap();
    std::fs::copy(&command, root.join("command")).unwrap();
    std::fs::copy(&command, root.join("other")).unwrap();
    std::fs::copy(crate::harness::CALLGATE, root.join("callgate")).unwrap();
    std::fs::copy(fixture.policy(), root.join("policy.json")).unwrap();
    let inside = |before: &[&str], command: &[&str]| {
        let mut all = Command::new(before[0]);
        all.args(&before[1..]).arg("chroot").arg(&root).args(["/callgate", "--policy", "/policy.json"]).args(command);
        run(&mut all)
    };
    let first = ["unshare", "--pid", "--fork", "--kill-child"];
    let user = ["setpriv", "--reuid=1000", "--regid=1000", "--clear-groups", "unshare", "--user", "--map-root-user"];
    let user_first = [&user[..], &["--pid", "--fork"]].concat();
    for before in [&["env"][..], &first, &user_first] {
        let outcome = inside(before, &["/command"]);
        assert_eq!((outcome.code(), outcome.stdout.as_str()), (7, "runs\n"), "{before:?}: {outcome:?}");
        let outcome = inside(before, &["/command", "x"]);
        assert_eq!(outcome.code(), 42, "{before:?}: {outcome:?}");
        assert!(outcome.stderr.contains("/other"), "{before:?}: {outcome:?}");
        assert_eq!(inside(before, &["/missing"]).code(), 127, "{before:?}");
    }
    // Where there is no /proc and none may be mounted, it says so, and starts nothing.
    let outcome = inside(&user, &["/command"]);
    assert_eq!((outcome.code(), outcome.stdout.as_str()), (125, ""), "{outcome:?}");
    assert!(outcome.stderr.contains("there is no /proc"), "{outcome:?}");
}

/// What somebody in a container can do to a process beside it, of the same user.
const OUTSIDER: &str = r#"
import ctypes, os, signal
victim = int(open(os.environ["VICTIM"]).read())
libc = ctypes.CDLL(None, use_errno=True)
def attempt(name, work):
    try: print(name, "yes" if work() else "no")
    except OSError: print(name, "no")
attempt("write", lambda: open(f"/proc/{victim}/mem", "r+b", 0).fileno() > 0)
attempt("descriptor", lambda: libc.syscall(438, os.pidfd_open(victim), 0, 0) >= 0)
attempt("trace", lambda: libc.ptrace(0x4206, victim, 0, 0) == 0)
attempt("signal", lambda: os.kill(victim, 0) is None)
child = os.fork()
if child == 0: signal.pause()
attempt("its own", lambda: libc.ptrace(0x4206, child, 0, 0) == 0 and os.kill(child, 9) is None)
"#;

#[test]
fn processes_that_come_from_outside_are_out_of_the_workloads_reach() {
    let fixture = Fixture::allowing(&["/"]);
    let victim = fixture.path("victim");
    let outsider = |wrapped: bool| {
        let callgate = format!("{CALLGATE} --policy {} ", fixture.policy().display());
        let line = format!(
            "sleep 100 & echo $! >{}; exec {}python3 -c \"$1\"",
            victim.display(),
            if wrapped { &callgate } else { "" }
        );
        let mut command = Command::new("unshare");
        command.args(["--pid", "--fork", "--kill-child", "--mount-proc", "bash", "-c", &line, "-", OUTSIDER]);
        let outcome = run(command.env("VICTIM", &victim));
        assert_eq!(outcome.code(), 0, "{outcome:?}");
        outcome.stdout
    };
    assert_eq!(outsider(false), "write yes\ndescriptor yes\ntrace yes\nsignal yes\nits own yes\n");
    assert_eq!(outsider(true), "write no\ndescriptor no\ntrace no\nsignal no\nits own yes\n");
}
