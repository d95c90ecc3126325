//! When the supervisor runs out of something: descriptors, threads, memory. Governed calls then fail or wait, none gets
//! through undecided, and when there is enough again all is as before.

use std::collections::BTreeSet;
use std::fs;
use std::io::Write;
use std::net::TcpListener;
use std::path::Path;
use std::process::{Child, ChildStdin, Command, Stdio};

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use serde_json::json;

use crate::harness::{Fixture, Lines, eventually, finish, run};
use crate::network::governed;

/// The processes of callgate that a process has become and started.
fn supervisors(of: u32) -> Vec<u32> {
    let children = fs::read_to_string(format!("/proc/{of}/task/{of}/children")).unwrap_or_default();
    let children = children.split_whitespace().map(|pid| pid.parse().unwrap());
    [of].into_iter()
        .chain(children)
        .filter(|pid| fs::read_link(format!("/proc/{pid}/exe")).is_ok_and(is_callgate))
        .collect()
}

fn is_callgate(exe: impl AsRef<Path>) -> bool {
    exe.as_ref().file_name().is_some_and(|name| name == "callgate")
}

/// Tries, for each line that it reads, everything that the policy denies and something that it allows, and says how the
/// latter went. Exits with 1 when something denied has happened.
const ATTEMPTS: &str = r#"
import ctypes, os, socket, sys
evil, good, script, port = sys.argv[1], sys.argv[2], sys.argv[3], int(sys.argv[4])
def run(*command):
    pid = os.fork()
    if pid == 0:
        try:
            os.execv(command[0], command)
        except OSError as e:
            os._exit(100 + min(e.errno, 100))
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
def connect(address):
    try:
        with socket.socket() as s:
            s.settimeout(5)
            s.connect(address)
        return True
    except OSError:
        return False
memfd = os.memfd_create("evil")
os.write(memfd, open(evil, "rb").read())
print("ready", flush=True)
for line in sys.stdin:
    for command in [(evil,), (script,), ("/lib64/ld-linux-x86-64.so.2", evil), ("/proc/self/fd/%d" % memfd,)]:
        if run(*command) in (0, 42):
            print("escaped:", command, flush=True)
    if connect(("127.0.0.1", port)):
        print("escaped: the denied port", flush=True)
    print("good" if run(good) == 42 else "refused", flush=True)
"#;

/// [`ATTEMPTS`] under way, under a policy.
struct Attempts {
    fixture: Fixture,
    _denied: TcpListener,
    child: Child,
    tell: ChildStdin,
    said: Lines,
    supervisors: Vec<u32>,
}

impl Attempts {
    fn begin() -> Self {
        let denied = TcpListener::bind("127.0.0.1:0").unwrap();
        let fixture = governed(json!({ "outbound": [{ "to": "127.0.0.2" }] }));
        let source = "int main(void) { return 42; }";
        let (evil, good) = (fixture.compile("evil", source, &[]), fixture.compile("good", source, &[]));
        let script = fixture.path("script");
        fs::write(&script, format!("#!{}\n", evil.display())).unwrap();
        fs::set_permissions(&script, std::os::unix::fs::PermissionsExt::from_mode(0o755)).unwrap();
        let policy = json!({
            "allow_executables": [&good, "/usr/bin/python3", &script],
            "network": { "outbound": [{ "to": "127.0.0.2" }] },
            "audit": { "sinks": [format!("file:{}", fixture.path("records").display())] },
        });
        fs::write(fixture.policy(), policy.to_string()).unwrap();
        let port = denied.local_addr().unwrap().port().to_string();
        let mut command = fixture.callgate();
        command.args(["/usr/bin/python3", "-c", ATTEMPTS]).args([&evil, &good, &script]).arg(port);
        let mut child = command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
        let (tell, mut said) = (child.stdin.take().unwrap(), Lines::of(child.stdout.take().unwrap()));
        assert_eq!(said.next().as_deref(), Some("ready"));
        let supervisors = supervisors(child.id());
        assert!(!supervisors.is_empty());
        Self { fixture, _denied: denied, child, tell, said, supervisors }
    }

    /// Has everything tried once; whether what is allowed went well.
    fn all(&mut self) -> bool {
        writeln!(self.tell, "go").unwrap();
        match self.said.next().unwrap().as_str() {
            "good" => true,
            "refused" => false,
            other => panic!("{other}"),
        }
    }

    fn end(self) {
        drop(self.tell);
        assert_eq!(finish(self.child).code(), 0);
    }
}

#[test]
fn without_descriptors_calls_fail_and_with_them_they_work_again() {
    let mut attempts = Attempts::begin();
    let pids = attempts.supervisors.clone();
    let limit = |most: usize| {
        for pid in &pids {
            // The soft limit only.
            let status = Command::new("prlimit").args([format!("--pid={pid}"), format!("--nofile={most}:")]).status();
            assert!(status.unwrap().success());
        }
    };
    let open = |pid: &u32| fs::read_dir(format!("/proc/{pid}/fd")).unwrap().count();
    let used = pids.iter().map(open).max().unwrap();
    let (mut good, mut refused) = (0, 0);
    for more in 0..24 {
        limit(used + more);
        if attempts.all() { good += 1 } else { refused += 1 }
    }
    assert!(good > 0 && refused > 0, "{good} were good, {refused} refused: nothing was tried");
    limit(1024);
    assert!(attempts.all());
    // What is not known for want of descriptors is not held against the program.
    let by_rules = attempts.fixture.records().into_iter().filter(|record| record["plugin"] == "allowlist");
    let good = by_rules.filter(|record| record["requested"].as_str().is_some_and(|path| path.ends_with("/good")));
    assert_eq!(good.collect::<Vec<_>>(), Vec::<serde_json::Value>::new());
    let after = pids.iter().map(open).max().unwrap();
    assert!(after <= used + 4, "{used} descriptors before, {after} after");
    attempts.end();
}

/// Without something the supervisor cannot know what it is asked for; then it says no, and writes that down.
#[test]
fn where_the_machine_has_no_files_or_memory_left_calls_fail_and_are_recorded() {
    const OPENING: &str = "openat,openat2,pidfd_open,pidfd_getfd,dup,fcntl";
    let mut attempts = Attempts::begin();
    let supervisor = attempts.supervisors.last().unwrap().to_string();
    let sets = [(OPENING, "ENFILE"), (OPENING, "ENOMEM"), ("clone,clone3", "EAGAIN"), ("pread64", "ENOMEM")];
    for (calls, error) in sets {
        let (mut good, mut refused, mut seen) = (0, 0, BTreeSet::new());
        // Each step of what is done for a call once, also those after it was let go.
        for first in (1..=24).chain([27, 30, 35, 40]) {
            let before = attempts.fixture.records().len();
            let inject = format!("inject={calls}:error={error}:when={first}+");
            let mut strace = Command::new("strace");
            strace.args(["-f", "-o", "/dev/null", "-e", &format!("trace={calls}"), "-e", &inject, "-p", &supervisor]);
            let mut strace = strace.stdin(Stdio::null()).stderr(Stdio::piped()).spawn().unwrap();
            let mut said = Lines::of(strace.stderr.take().unwrap());
            assert!(said.any(|line| line.contains("attached")), "strace does not attach");
            let went_well = attempts.all();
            kill(Pid::from_raw(strace.id() as i32), Signal::SIGTERM).unwrap();
            said.for_each(drop);
            strace.wait().unwrap();
            if went_well {
                good += 1;
                continue;
            }
            refused += 1;
            // Memory that cannot be read has no other error than memory that is not there.
            let may_be_its_own = calls == "pread64";
            // It is written by another thread, and on a busy machine some time later.
            eventually("a record", || may_be_its_own || attempts.fixture.records().len() > before);
            let records = attempts.fixture.records();
            let rules: BTreeSet<_> = records[before..].iter().map(|record| record["rule"].to_string()).collect();
            let for_want = ["caller-unreadable", "supervisor-exhausted", "unverifiable", "not-what-was-decided"];
            let is_recorded = rules.iter().any(|rule| for_want.contains(&rule.trim_matches('"')));
            assert!(is_recorded || may_be_its_own, "{calls} {error} from the {first}th: {rules:?}");
            seen.extend(rules);
        }
        eprintln!("{calls} {error}: {good} went well, {refused} were refused: {seen:?}");
        assert!(calls.starts_with("clone") || refused > 0, "{calls}: nothing was tried");
        assert!(attempts.all(), "{calls} {error}: it does not recover");
    }
    attempts.end();
}

/// More callers that wait than the supervisor has threads for.
const CROWD: &str = r#"
#define _GNU_SOURCE
#include <arpa/inet.h>
#include <errno.h>
#include <pthread.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/socket.h>
#include <sys/wait.h>
#include <unistd.h>
enum { CROWD = 5500 };
static int listening;
static atomic_int refused, begun, other;
static void *waits(void *unused) {
    begun++;
    if (accept(listening, NULL, NULL) < 0) { if (errno == ENOBUFS) refused++; else other = errno; }
    return unused;
}
int main(int argc, char **argv) {
    struct sockaddr_in here = { .sin_family = AF_INET, .sin_addr = { htonl(INADDR_LOOPBACK) } }, there;
    socklen_t length = sizeof here;
    pthread_attr_t small;
    pthread_t thread;
    (void)argc;
    listening = socket(AF_INET, SOCK_STREAM, 0);
    if (bind(listening, (void *)&here, sizeof here) || listen(listening, 128) || getsockname(listening, (void *)&here, &length)) return 2;
    there = here, there.sin_addr.s_addr = htonl(INADDR_LOOPBACK + 1);
    pthread_attr_init(&small);
    pthread_attr_setstacksize(&small, 16384 + 4096);
    alarm(50);
    for (int i = 0; i < CROWD; i++) if (pthread_create(&thread, &small, waits, NULL)) return printf("skipped: only %d threads\n", i), 0;
    while (!refused || begun < CROWD) usleep(1000);
    /* Others are not held up, nor let through. */
    for (int i = 0; i < 20; i++) {
        int fd = socket(AF_INET, SOCK_DGRAM, 0), status;
        if (connect(fd, (void *)&here, sizeof here)) return perror("connect"), 3;
        if (!connect(fd, (void *)&there, sizeof there) || errno != EPERM) return perror("denied connect"), 4;
        close(fd);
        if (!vfork()) { execl(argv[1], argv[1], NULL); _exit(1); }
        if (wait(&status) < 0 || status) return 5;
        if (!vfork()) { execl(argv[2], argv[2], NULL); _exit(errno == EACCES ? 7 : 8); }
        if (wait(&status) < 0 || WEXITSTATUS(status) != 7) return 6;
    }
    printf("%d were refused, %d failed otherwise\n", (int)refused, (int)other);
    fflush(stdout);
    _exit(0);
}
"#;

#[test]
fn more_callers_than_threads_hold_up_nobody_and_are_told_why() {
    let fixture = Fixture::new(json!({
        "allow_executables": ["/bin/true", "/usr/bin/"],
        "network": {
            "outbound": [{ "to": "127.0.0.1" }],
            "inbound": [{ "on": "127.0.0.1", "protocol": "tcp", "from": "127.0.0.1" }, { "protocol": "udp" }],
        },
    }));
    let crowd = fixture.compile("crowd", CROWD, &[]);
    let text = fs::read_to_string(fixture.policy()).unwrap();
    fs::write(fixture.policy(), text.replace("/usr/bin/", &crowd.display().to_string())).unwrap();
    let outcome = run(fixture.callgate().arg(&crowd).args(["/bin/true", "/bin/ls"]));
    assert_eq!(outcome.code(), 0, "{outcome:?}");
    if outcome.stdout.starts_with("skipped") {
        return;
    }
    assert!(outcome.stdout.contains(" 0 failed otherwise"), "{outcome:?}");
    assert!(outcome.stderr.contains("calls wait already: more are refused (ENOBUFS)"), "{outcome:?}");
}

/// Processes that all the time try to run something that is denied, with as many arguments as are copied, none of which is
/// text: in a record each byte is three, or six.
const FLOOD: &str = r#"
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/wait.h>
#include <unistd.h>
int main(int argc, char **argv) {
    static char argument[65000];
    char *arguments[] = { argument, NULL };
    int crowd = atoi(argv[1]), rounds = atoi(argv[2]);
    (void)argc;
    memset(argument, 1, sizeof argument - 1);
    for (int i = 0; i < crowd; i++) if (!fork()) { for (int n = 0; n < rounds; n++) execv(argv[3], arguments); _exit(0); }
    while (wait(NULL) > 0) {}
    FILE *said = fopen(argv[4], "w");
    fprintf(said, "done\n");
    fclose(said);
    getchar();
    return 0;
}
"#;

#[test]
fn a_flood_of_long_records_that_nobody_reads_takes_little_memory() {
    let fixture = Fixture::new(json!({ "allow_executables": [] }));
    let flood = fixture.compile("flood", FLOOD, &[]);
    let fifo = fixture.path("records");
    nix::unistd::mkfifo(&fifo, nix::sys::stat::Mode::from_bits_truncate(0o600)).unwrap();
    // Open at both ends, and never read.
    let _open = fs::File::options().read(true).write(true).open(&fifo).unwrap();
    let policy = json!({ "allow_executables": [&flood], "audit": { "sinks": [format!("file:{}", fifo.display())] } });
    fs::write(fixture.policy(), policy.to_string()).unwrap();
    let mut command = fixture.callgate();
    command.arg(&flood).args(["200", "30", "/bin/ls"]).arg(fixture.path("done"));
    let mut child = command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
    eventually("all of them have tried", || fixture.path("done").exists());
    let most = supervisors(child.id()).iter().map(peak_kib).max().unwrap();
    drop(child.stdin.take());
    assert_eq!(finish(child).code(), 0);
    assert!(most < 400 << 10, "the supervisor took {most} KiB");
    eprintln!("{most} KiB at the most");
}

/// `VmHWM` of proc_pid_status(5): the most memory that a process has had.
fn peak_kib(pid: &u32) -> u64 {
    let status = fs::read_to_string(format!("/proc/{pid}/status")).unwrap();
    let line = status.lines().find(|line| line.starts_with("VmHWM")).unwrap();
    line.split_whitespace().nth(1).unwrap().parse().unwrap()
}
