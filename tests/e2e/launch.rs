//! The wrapper as an entrypoint: what the command finds, the signals that it gets, what it leaves behind, how it all ends.

use std::fs;
use std::io::{BufRead, BufReader, Read, Write};
use std::os::unix::process::{CommandExt, ExitStatusExt};
use std::path::Path;
use std::process::{Command, Stdio};
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::{Duration, Instant};

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

use crate::harness::{CALLGATE, Fixture, Lines, eventually, finish, run, wait, with_default_signals};
use crate::plugins::hostile;

/// Everything may run.
pub fn free() -> Fixture {
    Fixture::allowing(&["/"])
}

/// Children of a process.
pub fn children(pid: u32) -> Vec<u32> {
    let list = fs::read_to_string(format!("/proc/{pid}/task/{pid}/children")).unwrap_or_default();
    list.split_whitespace().map(|pid| pid.parse().unwrap()).collect()
}

/// Processes whose environment says `variable`.
pub fn marked(variable: &str) -> Vec<u32> {
    let is_marked = |pid: &u32| {
        let environment = fs::read(format!("/proc/{pid}/environ")).unwrap_or_default();
        environment.split(|byte| *byte == 0).any(|entry| entry == variable.as_bytes())
    };
    let pids = fs::read_dir("/proc").unwrap().flatten().filter_map(|e| e.file_name().to_str()?.parse().ok());
    pids.filter(is_marked).collect()
}

/// A variable that no other run has.
pub fn mark() -> String {
    static NEXT: AtomicU32 = AtomicU32::new(0);
    format!("MARK=callgate-test-{}-{}", std::process::id(), NEXT.fetch_add(1, Ordering::SeqCst))
}

/// Puts a command into a pid namespace of its own, whose first process it is. It leads a session there, as a container
/// runtime has it.
pub fn contained(command: &Command) -> Command {
    let mut contained = Command::new("unshare");
    contained.args(["--pid", "--fork", "--kill-child", "--mount-proc", "setsid"]).arg(command.get_program());
    contained.args(command.get_args());
    contained
}

/// Writes into the file that its first argument names what a program finds when it begins.
const PROBE: &str = r#"
#define _GNU_SOURCE
#include <dirent.h>
#include <fcntl.h>
#include <sched.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/prctl.h>
#include <sys/resource.h>
#include <sys/time.h>
#include <unistd.h>
static void dump(FILE *out, const char *name) {
    char path[64], buffer[65536];
    snprintf(path, sizeof path, "/proc/self/%s", name);
    int fd = open(path, O_RDONLY);
    ssize_t n = read(fd, buffer, sizeof buffer);
    close(fd);
    fprintf(out, "%s: ", name);
    for (ssize_t i = 0; i < n; i++) fprintf(out, "%02x", (unsigned char)buffer[i]);
    fprintf(out, "\n");
}
int main(int argc, char **argv) {
    char open_before[256] = {0}, cwd[4096], line[256];
    for (int fd = 0; fd < 256; fd++) open_before[fd] = fcntl(fd, F_GETFD) != -1;
    FILE *out = fopen(argv[1], "w");
    for (int fd = 0; fd < 256; fd++) {
        char path[64], target[4096] = {0};
        if (!open_before[fd]) continue;
        snprintf(path, sizeof path, "/proc/self/fd/%d", fd);
        readlink(path, target, sizeof target - 1);
        fprintf(out, "fd %d: %s flags %o\n", fd, target, fcntl(fd, F_GETFL));
    }
    dump(out, "cmdline"); dump(out, "environ");
    fprintf(out, "cwd: %s\n", getcwd(cwd, sizeof cwd));
    FILE *status = fopen("/proc/self/status", "r");
    while (fgets(line, sizeof line, status))
        if ((!strncmp(line, "Sig", 3) && line[3] != 'Q') || !strncmp(line, "Shd", 3) || !strncmp(line, "Umask", 5) || !strncmp(line, "Groups", 6))
            fputs(line, out);
    for (int i = 0; i < RLIM_NLIMITS; i++) {
        struct rlimit limit;
        getrlimit(i, &limit);
        fprintf(out, "limit %d: %lu %lu\n", i, limit.rlim_cur, limit.rlim_max);
    }
    struct itimerval timer;
    getitimer(ITIMER_REAL, &timer);
    fprintf(out, "alarm: %d\n", timer.it_value.tv_sec > 900);
    fprintf(out, "nice: %d policy: %d\n", getpriority(PRIO_PROCESS, 0), sched_getscheduler(0));
    char adjustment[32] = {0};
    read(open("/proc/self/oom_score_adj", O_RDONLY), adjustment, 31);
    fprintf(out, "oom: %s", adjustment);
    int death = 0, reaper = 0;
    prctl(PR_GET_PDEATHSIG, &death); prctl(PR_GET_CHILD_SUBREAPER, &reaper);
    fprintf(out, "dumpable: %d death: %d reaper: %d timers: %ld\n", prctl(PR_GET_DUMPABLE), death, reaper, (long)prctl(PR_GET_TIMERSLACK));
    fprintf(out, "same session as asked: %d group: %d\n", getsid(0) == atoi(getenv("SID") ?: "0"), getpgrp() == atoi(getenv("PGID") ?: "0"));
    return 0;
}
"#;

/// Makes its surroundings odd, as its first argument says, and runs the rest in them.
const ODD: &str = r#"
#define _GNU_SOURCE
#include <fcntl.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/resource.h>
#include <sys/stat.h>
#include <sys/time.h>
#include <unistd.h>
int main(int argc, char **argv) {
    static char session[32], group[32];
    snprintf(session, 32, "SID=%d", getsid(0));
    snprintf(group, 32, "PGID=%d", getpgrp());
    char *plain[] = {session, group, NULL};
    char *odd[] = {"A=1", "A=2", "EMPTY=", "", "no equals sign", "=begins", "BAD=\xff\xfe\x80", session, group, "LAST=\n", NULL};
    for (char *how = argv[1]; *how; how++) switch (*how) {
        case '0': close(0); break;
        case '1': close(1); break;
        case '2': close(2); break;
        case 'f': for (int fd = 3; fd < 10; fd++) dup2(open("/dev/zero", O_RDWR), fd); dup2(3, 200); break;
        case 'u': umask(027); break;
        case 'c': chdir("/usr/share"); break;
        case 'b': { sigset_t set; sigemptyset(&set); sigaddset(&set, SIGUSR2); sigaddset(&set, SIGTERM);
                    sigaddset(&set, SIGRTMIN + 5); sigprocmask(SIG_BLOCK, &set, NULL); break; }
        case 'i': signal(SIGHUP, SIG_IGN); signal(SIGPIPE, SIG_IGN); signal(SIGCHLD, SIG_IGN); signal(SIGSEGV, SIG_IGN);
                  signal(SIGTSTP, SIG_IGN); signal(SIGXFSZ, SIG_IGN); break;
        case 'l': { struct rlimit limit = {77, 99}; setrlimit(RLIMIT_NOFILE, &limit);
                    limit.rlim_cur = 0; limit.rlim_max = 0; setrlimit(RLIMIT_CORE, &limit); break; }
        case 'n': nice(7); break;
        case 't': { struct itimerval timer = {{0, 0}, {1000, 0}}; setitimer(ITIMER_REAL, &timer, NULL); break; }
    }
    int oddly = strchr(argv[1], 'e') != NULL;
    execve(argv[2], argv + 2, oddly ? odd : plain);
    return 99;
}
"#;

#[test]
fn a_limit_of_file_sizes_is_the_commands_and_does_not_end_the_supervisor() {
    let fixture = Fixture::allowing(&["/bin/bash", "/usr/bin/head"]);
    let limited = |limit: &str, line: &str| {
        let mut command = Command::new("bash");
        command.args(["-c", &format!("ulimit -f {limit}; exec \"$@\""), "bash", CALLGATE, "--policy"]);
        run(command.arg(fixture.policy()).args(["/bin/bash", "-c", line]))
    };
    for limit in ["0", "8"] {
        let line = format!("ulimit -f; head -c 100000 /dev/zero > {}; echo $?", fixture.path("much").display());
        assert_eq!(limited(limit, &line).stdout, format!("{limit}\n153\n"), "SIGXFSZ ends head");
    }
    // An audit log that may not grow ends nothing either, and everything is decided as before.
    let outcome = limited("8", "for i in {1..40}; do /bin/ls /; done 2>/dev/null; echo $?; head -c 0; echo $?");
    assert_eq!((outcome.code(), outcome.stdout.as_str()), (0, "126\n0\n"), "{outcome:?}");
    let length = fs::metadata(fixture.path("records")).unwrap().len();
    assert!((4096..=8192).contains(&length), "{length}");
}

#[test]
fn the_command_finds_everything_as_it_would_without_us() {
    let fixture = free();
    let (probe, odd) = (fixture.compile("probe", PROBE, &["-w"]), fixture.compile("odd", ODD, &["-w"]));
    let policy = fixture.policy();
    let found = fixture.path("found");
    let arguments = ["", "a b", "--policy", "\u{fffd}\n"];
    for how in
        ["-", "0", "1", "2", "01", "012", "02f", "f", "u", "c", "b", "i", "l", "n", "t", "e", "fucbilnte", "012fe"]
    {
        let mut seen = Vec::new();
        for wrapped in [false, true] {
            let _ = fs::remove_file(&found);
            let mut command = Command::new(&odd);
            command.arg(how);
            if wrapped {
                command.args([Path::new(CALLGATE), Path::new("--policy"), &policy]);
            }
            let outcome = run(command.arg(&probe).arg(&found).args(arguments));
            assert_eq!(outcome.code(), 0, "{how}: {outcome:?}");
            let text = fs::read_to_string(&found).unwrap();
            let line = |line: &str| match (line.find("pipe:"), line.strip_prefix("SigIgn:\t")) {
                // Pipes have other numbers each time.
                (Some(at), _) => line[..at].to_owned(),
                // Signals 32 and 33 are glibc's own: its posix_spawn(3) has a child ignore them, its threads handle them.
                (_, Some(ignored)) => {
                    format!("ignored: {:x}", u64::from_str_radix(ignored, 16).unwrap() & !(0b11 << 31))
                }
                _ => line.to_owned(),
            };
            seen.push(text.lines().map(line).collect::<Vec<_>>());
        }
        assert_eq!(seen[1], seen[0], "{how}");
    }
}

#[test]
fn a_command_is_looked_for_as_execvp_does() {
    let fixture = free();
    let (first, second, here) = (fixture.path("first"), fixture.path("second"), fixture.path("here"));
    for directory in [&first, &second, &here] {
        fs::create_dir(directory).unwrap();
    }
    let put = |path: &Path, text: &str, mode: u32| {
        fs::write(path, text).unwrap();
        fs::set_permissions(path, std::os::unix::fs::PermissionsExt::from_mode(mode)).unwrap();
    };
    put(&first.join("tool"), "#!/bin/sh\necho wrong\n", 0o644);
    put(&second.join("tool"), "#!/bin/sh\necho second $0\n", 0o755);
    put(&here.join("local"), "#!/bin/sh\necho local\n", 0o755);
    put(&first.join("closed"), "#!/bin/sh\n", 0o644);
    put(&second.join("no-interpreter"), "#!/no/such/shell\n", 0o755);
    put(&second.join("plain"), "echo run by a shell\n", 0o755);
    put(&second.join("empty"), "", 0o755);
    let path = format!("/no/such/directory:{}:{}", first.display(), second.display());
    let in_path = |path: Option<&str>, name: &str| {
        let mut command = fixture.callgate();
        command.env_clear().current_dir(&here).arg(name);
        if let Some(path) = path {
            command.env("PATH", path);
        }
        run(&mut command)
    };
    // What may not be run is passed over.
    assert_eq!(in_path(Some(&path), "tool").stdout, format!("second {}\n", second.join("tool").display()));
    let status = |path: Option<&str>, name: &str| in_path(path, name).code();
    assert_eq!((status(Some(&path), "closed"), status(Some(&path), "missing")), (126, 127));
    assert_eq!(status(Some(&path), "no-interpreter"), 127);
    // An empty entry is the working directory; a name with a slash is a path; without PATH there is a default.
    for path in ["/nowhere:", ":/nowhere", "", "/nowhere::/nowhere"] {
        assert_eq!(in_path(Some(path), "local").stdout, "local\n", "{path:?}");
    }
    assert_eq!(status(Some("/nowhere"), "local"), 127);
    assert_eq!(in_path(Some("/nowhere"), "./local").stdout, "local\n");
    assert_eq!(status(None, "true"), 0);
    assert_eq!(status(None, ""), 127);
    // A script without `#!`, which a shell would run itself: see sys::process.
    for name in ["plain", "empty"] {
        let outcome = in_path(Some(&path), name);
        assert_eq!((outcome.code(), outcome.stdout.as_str()), (126, ""), "{outcome:?}");
        assert!(outcome.stderr.contains("Exec format error"), "{outcome:?}");
    }
    assert_eq!(status(None, second.to_str().unwrap()), 126);
    let long = "x".repeat(5000);
    assert!(in_path(None, &format!("/{long}")).stderr.contains("File name too long"));
}

/// Says which signals it gets, until SIGUSR2.
const COUNTER: &str = r#"
#define _GNU_SOURCE
#include <signal.h>
#include <stdio.h>
int main(void) {
    sigset_t all;
    sigfillset(&all);
    sigprocmask(SIG_SETMASK, &all, NULL);
    setbuf(stdout, NULL);
    puts("ready");
    for (;;) {
        siginfo_t info;
        int signal = sigwaitinfo(&all, &info);
        if (signal == SIGUSR2) return 5;
        printf("%d %d\n", signal, info.si_code == SI_QUEUE ? info.si_value.sival_int : 0);
    }
}
"#;

#[test]
fn every_signal_to_callgate_reaches_the_command_exactly_once() {
    let fixture = Fixture::new(serde_json::json!({ "allow_executables": ["/"], "sighup": "pass-on" }));
    let counter = fixture.compile("counter", COUNTER, &[]);
    for first in [false, true] {
        let mut command = fixture.callgate();
        command.arg(&counter);
        if first {
            command = contained(&command);
        }
        let mut child = command.stdin(Stdio::null()).stdout(Stdio::piped()).spawn().unwrap();
        let mut lines = Lines::of(child.stdout.take().unwrap());
        assert_eq!(lines.next().unwrap(), "ready");
        let target = if first { children(child.id())[0] } else { child.id() };
        for number in
            [1, 2, 3, 6, 8, 10, 13, 14, 15, 16, 18, 20, 21, 22, 23, 24, 25, 26, 27, 28, 29, 30, 31, 34, 40, 64]
        {
            for value in [0, 7] {
                let queue =
                    format!("import ctypes; ctypes.CDLL(None).sigqueue({target}, {number}, ctypes.c_void_p({value}))");
                let sent = match value {
                    0 => run(Command::new("kill").args([format!("-{number}"), target.to_string()])),
                    _ => run(Command::new("python3").args(["-c", &queue])),
                };
                assert_eq!(sent.code(), 0, "{sent:?}");
                assert_eq!(lines.next().unwrap(), format!("{number} {value}"), "as pid 1: {first}");
            }
        }
        run(Command::new("kill").args(["-USR2", &target.to_string()]));
        assert_eq!(lines.next(), None, "as pid 1: {first}");
        assert_eq!(wait(&mut child).code(), Some(5));
    }
}

#[test]
fn a_command_that_traps_its_end_decides_on_the_status_itself() {
    let fixture = free();
    let waiting = "trap 'exit 3' TERM; echo ready; while :; do sleep 0.05; done";
    for first in [false, true] {
        let mut command = fixture.callgate();
        command.args(["bash", "-c", waiting]);
        if first {
            command = contained(&command);
        }
        let mut child = command.stdin(Stdio::null()).stdout(Stdio::piped()).spawn().unwrap();
        let mut lines = Lines::of(child.stdout.take().unwrap());
        assert_eq!(lines.next().unwrap(), "ready");
        let target = if first { children(child.id())[0] } else { child.id() };
        kill(Pid::from_raw(target as i32), Signal::SIGTERM).unwrap();
        assert_eq!(wait(&mut child).code(), Some(3));
    }
}

#[test]
fn a_time_limit_set_from_outside_ends_the_command() {
    let fixture = free();
    let mark = mark();
    let run_with = |limiter: &[&str]| {
        let mut command = Command::new(limiter[0]);
        command.args(&limiter[1..]).arg(CALLGATE).arg("--policy").arg(fixture.policy()).args(["sleep", "1000"]);
        command.env("MARK", &mark[5..]);
        run(&mut command)
    };
    assert_eq!(run_with(&["timeout", "0.2"]).code(), 124);
    assert_eq!(run_with(&["timeout", "-s", "KILL", "0.2"]).status.code(), None);
    // An alarm survives an exec, so it is the command's.
    let alarm = "use Time::HiRes 'ualarm'; ualarm 200000; exec @ARGV";
    assert_eq!(run_with(&["perl", "-e", alarm]).code(), 128 + libc::SIGALRM);
    eventually("nothing is left", || marked(&mark).is_empty());
}

#[test]
fn an_ignored_hang_up_stays_ignored() {
    let fixture = free();
    let mut command = Command::new("nohup");
    command.args([CALLGATE, "--policy"]).arg(fixture.policy()).args(["bash", "-c", "echo ready; read x; echo went on"]);
    command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
    let mut child = command.spawn().unwrap();
    let mut output = BufReader::new(child.stdout.take().unwrap());
    let mut line = String::new();
    output.read_line(&mut line).unwrap();
    kill(Pid::from_raw(child.id() as i32), Signal::SIGHUP).unwrap();
    child.stdin.take().unwrap().write_all(b"x\n").unwrap();
    output.read_line(&mut line).unwrap();
    assert_eq!(line, "ready\nwent on\n");
    assert_eq!(wait(&mut child).code(), Some(0));
}

#[test]
fn children_that_callgate_had_before_do_not_disturb_it() {
    let fixture = free();
    let script = format!(
        "sleep 0.02 & sleep 0.1 & exec {CALLGATE} --policy {} bash -c 'sleep 0.2; exit 4'",
        fixture.policy().display()
    );
    assert_eq!(run(Command::new("bash").args(["-c", &script])).code(), 4);
}

const ORPHANS: &str = r#"
import os, sys
parent = os.getppid() if len(sys.argv) < 2 else int(sys.argv[1])
for _ in range(1000):
    middle = os.fork()
    if middle == 0:
        os.fork()
        os._exit(0)
    os.waitpid(middle, 0)
def states():
    for name in os.listdir("/proc"):
        try:
            if name.isdigit():
                fields = open(f"/proc/{name}/stat").read().rsplit(")", 1)[1].split()
                if int(fields[1]) == parent:
                    yield fields[0]
        except OSError:
            pass
while list(states()) != ["R"]:
    pass
"#;

#[test]
fn orphans_are_reaped_while_the_command_runs() {
    let fixture = free();
    let mut command = fixture.callgate();
    command.args(["python3", "-c", ORPHANS]);
    assert_eq!(run(&mut command).code(), 0);
    assert_eq!(run(&mut contained(&command)).code(), 0);
}

#[test]
fn a_container_ends_with_its_command() {
    let fixture = free();
    let mark = mark();
    let mut command = fixture.callgate();
    command.args(["bash", "-c", "setsid sleep 1000 & sleep 1000 & exit 6"]);
    assert_eq!(run(contained(&command).env("MARK", &mark[5..])).code(), 6);
    assert_eq!(marked(&mark), [0_u32; 0]);
}

#[test]
fn what_outlives_the_command_lives_on_under_supervision_and_nothing_waits_for_it() {
    // Records go where they go by default: what waits for the end of standard error does not wait for the supervisor.
    for sink in ["stderr", "file"] {
        let mut policy =
            serde_json::json!({ "allow_executables": ["/usr/bin/bash", "/usr/bin/sleep", "/usr/bin/mkfifo"] });
        if sink == "stderr" {
            policy["audit"] = serde_json::json!({ "sinks": ["stderr"] });
        }
        let fixture = Fixture::new(policy);
        let (fifo, after, mark) = (fixture.path("fifo"), fixture.path("after"), mark());
        let daemon =
            format!("read x <{fifo}; whoami; echo $? >{after}", fifo = fifo.display(), after = after.display());
        let line = format!("mkfifo {}; bash -c '{daemon}' >/dev/null 2>&1 & echo hello; exit 9", fifo.display());
        let outcome = run(fixture.callgate().env("MARK", &mark[5..]).args(["bash", "-c", &line]));
        assert_eq!((outcome.code(), outcome.stdout.as_str()), (9, "hello\n"));
        eventually("the fifo is there", || fifo.exists());
        fs::write(&fifo, "go\n").unwrap();
        eventually("the daemon has tried", || fs::read_to_string(&after).is_ok_and(|text| text == "126\n"));
        if sink == "file" {
            eventually("its attempt is recorded", || fixture.records_of("denied").len() == 1);
        }
        eventually("nothing is left", || marked(&mark).is_empty());
    }
}

#[test]
fn what_the_command_closes_is_not_kept_open_by_us() {
    let fixture = free();
    let (reader, writer) = std::io::pipe().unwrap();
    let line = "exec 3>&- >&-; read x; exit 8";
    // The shell puts the pipe at number 3, for callgate and for the command.
    let script =
        format!("exec 3>&2 2>/dev/null; exec {CALLGATE} --policy {} bash -c '{line}'", fixture.policy().display());
    let mut command = Command::new("bash");
    command.args(["-c", &script]).stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(writer);
    let mut child = command.spawn().unwrap();
    drop(command);
    let mut text = String::new();
    child.stdout.take().unwrap().read_to_string(&mut text).unwrap();
    { reader }.read_to_string(&mut text).unwrap();
    // Both have ended, and the command still runs.
    assert_eq!((text.as_str(), child.try_wait().unwrap()), ("", None));
    child.stdin.take().unwrap().write_all(b"x\n").unwrap();
    assert_eq!(wait(&mut child).code(), Some(8));
}

/// A tree of processes of which some have left the group, the session, their parents.
const TREE: &str = r#"
#include <signal.h>
#include <unistd.h>
int main(void) {
    for (int i = 0; i < 4; i++) {
        if (fork() == 0) {
            if (i & 1) setsid();
            if (i & 2) signal(SIGHUP, SIG_IGN), signal(SIGTERM, SIG_IGN);
            if (fork() == 0 && fork() != 0 && i == 3) _exit(0);
            break;
        }
    }
    write(1, "x", 1);
    for (;;) pause();
}
"#;

#[test]
fn nothing_survives_the_death_of_supervisor_or_guardian_whenever_it_comes() {
    let fixture = free();
    let tree = fixture.compile("tree", TREE, &[]);
    let begun = Instant::now();
    let mut started = 0;
    for round in 0..300_u64 {
        let mark = mark();
        let mut command = fixture.callgate();
        command.arg(&tree).env("MARK", &mark[5..]).stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::null());
        let mut child = command.spawn().unwrap();
        let moment = Duration::from_micros(round * 7919 % 14_000);
        let at = Instant::now() + moment;
        while Instant::now() < at {
            std::hint::spin_loop();
        }
        let guardian = round % 2 == 0;
        let victim = if guardian { Some(child.id()) } else { children(child.id()).first().copied() };
        match victim {
            Some(victim) => kill(Pid::from_raw(victim as i32), Signal::SIGKILL).unwrap(),
            // There is no supervisor yet: the guardian is all there is.
            None => child.kill().unwrap(),
        }
        let status = wait(&mut child);
        let ended_as_it_should =
            if guardian || victim.is_none() { status.code().is_none() } else { status.code() == Some(125) };
        assert!(ended_as_it_should, "round {round}: {status:?}");
        eventually("nothing is left", || marked(&mark).is_empty());
        let mut output = String::new();
        child.stdout.take().unwrap().read_to_string(&mut output).unwrap();
        started += u32::from(!output.is_empty());
        if begun.elapsed() > Duration::from_secs(15) {
            break;
        }
    }
    // The moments are spread over the start and after.
    assert!(started > 3, "{started}");
}

#[test]
fn nothing_survives_even_if_it_forks_all_the_time() {
    let fixture = free();
    let chain = "#include <unistd.h>\nint main(void) { if (fork()) fork(); write(1, \"x\", 1); for (;;) if (fork() > 0) _exit(0); }";
    let chain = fixture.compile("chain", chain, &[]);
    for guardian in [false, true] {
        let mark = mark();
        let mut command = fixture.callgate();
        // The command stays, what it has started runs away from its end.
        command.args(["bash", "-c", &format!("{} & wait; sleep 1000", chain.display())]);
        command.env("MARK", &mark[5..]).stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::null());
        let mut child = command.spawn().unwrap();
        child.stdout.as_mut().unwrap().read_exact(&mut [0; 3]).unwrap();
        let victim = if guardian { child.id() } else { children(child.id())[0] };
        kill(Pid::from_raw(victim as i32), Signal::SIGKILL).unwrap();
        wait(&mut child);
        eventually("nothing is left", || marked(&mark).is_empty());
    }
}

#[test]
fn a_group_that_is_killed_as_a_whole_is_gone_as_a_whole() {
    let fixture = free();
    let mark = mark();
    let mut command = fixture.callgate();
    command.args(["bash", "-c", "echo ready; sleep 1000"]).env("MARK", &mark[5..]);
    let mut child = command.process_group(0).stdin(Stdio::null()).stdout(Stdio::piped()).spawn().unwrap();
    child.stdout.as_mut().unwrap().read_exact(&mut [0; 6]).unwrap();
    kill(Pid::from_raw(-(child.id() as i32)), Signal::SIGKILL).unwrap();
    assert_eq!(wait(&mut child).code(), None);
    eventually("nothing is left", || marked(&mark).is_empty());
}

#[test]
fn an_idle_supervisor_sleeps() {
    let fixture = free();
    for first in [false, true] {
        let mut command = fixture.callgate();
        command.args(["bash", "-c", "echo ready; read x"]);
        if first {
            command = contained(&command);
        }
        let mut child = command.stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().unwrap();
        child.stdout.as_mut().unwrap().read_exact(&mut [0; 6]).unwrap();
        let supervisor = children(child.id())[0];
        let main_switches = || switches(supervisor, supervisor);
        eventually("it sleeps", || {
            let before = main_switches();
            std::thread::sleep(Duration::from_millis(300));
            main_switches() == before
        });
        drop(child.stdin.take());
        finish(child);
    }
}

/// How often a thread has gone to sleep.
fn switches(pid: u32, tid: u32) -> u64 {
    let status = fs::read_to_string(format!("/proc/{pid}/task/{tid}/status")).unwrap();
    let line = status.lines().find_map(|line| line.strip_prefix("voluntary_ctxt_switches:"));
    line.unwrap().trim().parse().unwrap()
}

#[test]
fn why_a_command_cannot_be_run_is_said_as_bash_says_it() {
    let fixture = free();
    let script = |name: &str, first: &str| {
        fs::write(fixture.path(name), format!("{first}\necho hello\n")).unwrap();
        let mode = std::os::unix::fs::PermissionsExt::from_mode(0o755);
        fs::set_permissions(fixture.path(name), mode).unwrap();
        fixture.path(name).display().to_string()
    };
    let absent = script("absent", "#! /no/such/interpreter -x");
    let odd = script("odd", "#!/etc/passwd/x");
    let main = "int main(void) { return 0; }";
    let foreign = fixture.compile("foreign", main, &["-Wl,--dynamic-linker=/no/such/loader"]).display().to_string();
    for (command, says, code) in [
        ("/usr/bin/whoami/x", "Not a directory", 126),
        (absent.as_str(), "/no/such/interpreter: bad interpreter: No such file or directory", 127),
        (&odd, "/etc/passwd/x: bad interpreter: Not a directory", 126),
        (&foreign, "cannot execute: required file not found", 127),
        ("/no/such/command", "No such file or directory", 127),
        ("no-such-command", "command not found", 127),
        ("", "command not found", 127),
        ("/etc/passwd", "Permission denied", 126),
    ] {
        let outcome = fixture.run(&[command]);
        assert_eq!(outcome.stderr, format!("callgate: {command}: {says}\n"));
        assert_eq!(outcome.code(), code, "{command}");
    }
    let mut found = fixture.callgate();
    found.arg("absent").env("PATH", format!("/usr/bin/whoami:{}", fixture.path("").display()));
    let outcome = run(&mut found);
    let says = "callgate: absent: /no/such/interpreter: bad interpreter: No such file or directory\n";
    assert_eq!((outcome.stderr.as_str(), outcome.code()), (says, 127));
}

#[test]
fn what_we_say_on_standard_error_is_said_in_one_piece() {
    let denied = Fixture::new(serde_json::json!({ "allow_executables": [], "audit": { "sinks": ["stderr"] } }));
    let mistaken = Fixture::allowing(&["bin/ls"]);
    for (fixture, policy, pieces) in
        [(&denied, denied.policy(), 2), (&mistaken, mistaken.policy(), 1), (&mistaken, mistaken.path("absent"), 1)]
    {
        // A socket that keeps what was written apart.
        let (ours, theirs) = std::os::unix::net::UnixDatagram::pair().unwrap();
        let mut command = Command::new(CALLGATE);
        command.env("CALLGATE_LOG", "error").arg("--policy").arg(&policy).arg("/usr/bin/whoami");
        let theirs = std::os::fd::OwnedFd::from(theirs);
        let mut child = command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(theirs).spawn().unwrap();
        drop(command);
        wait(&mut child);
        ours.set_nonblocking(true).unwrap();
        let mut said = Vec::new();
        let mut buffer = [0; 65536];
        while let Ok(length) = ours.recv(&mut buffer) {
            said.push(String::from_utf8_lossy(&buffer[..length]).into_owned());
        }
        assert_eq!(said.len(), pieces, "{}: {said:?}", fixture.policy().display());
        assert!(said.iter().all(|piece| piece.ends_with('\n')), "{said:?}");
    }
}

#[test]
fn callgate_under_callgate_says_that_there_is_another_above() {
    let fixture = free();
    let mut command = fixture.callgate();
    command.arg(CALLGATE).arg("--policy").arg(fixture.policy()).arg("true");
    for mut command in [contained(&command), command] {
        let outcome = run(&mut command);
        assert_eq!(outcome.code(), 125, "{outcome:?}");
        assert!(outcome.stderr.contains("another supervisor is above already"), "{outcome:?}");
    }
}

/// Children that run a program, every other one from a second thread, and are killed meanwhile.
const STRUCK: &str = r#"
#include <pthread.h>
#include <signal.h>
#include <stdlib.h>
#include <sys/wait.h>
#include <unistd.h>
static void *runs(void *unused) { execl("/bin/true", "true", NULL); return unused; }
int main(int argc, char **argv) {
    int number = atoi(argv[1]), rounds = argc > 2 ? atoi(argv[2]) : 0;
    for (int i = 0; i < rounds; i++) {
        pid_t child = fork();
        if (!child) {
            pthread_t thread;
            if (i % 2) { pthread_create(&thread, NULL, runs, NULL); pthread_join(thread, NULL); }
            runs(NULL);
            _exit(98);
        }
        usleep(i * 37 % 1500);
        kill(child, number);
        int status;
        alarm(20);
        if (waitpid(child, &status, 0) != child || (WIFEXITED(status) && WEXITSTATUS(status))) return 3;
    }
    return 0;
}
"#;

#[test]
fn real_time_signals_end_processes_as_others_do() {
    let fixture = Fixture::new(serde_json::json!({ "allow_executables": ["/"] }));
    for number in [34, 40, 64] {
        let line = format!("kill -{number} $$");
        for first in [false, true] {
            let mut command = fixture.callgate();
            command.args(["bash", "-c", &line]);
            let outcome = run(&mut if first { contained(&command) } else { command });
            assert_eq!(outcome.code(), 128 + number, "first: {first}: {outcome:?}");
        }
    }
    // Orphans, of which the last goes when the command has gone.
    let orphans =
        "(setsid bash -c 'kill -40 $$' &); (setsid bash -c 'sleep 0.3; kill -41 $$' &); (setsid sleep 0.4 &); exit 5";
    let begun = Instant::now();
    let outcome = fixture.bash(orphans);
    assert_eq!(outcome.code(), 5, "{outcome:?}");
    let pids = || run(Command::new("pgrep").args(["-f", fixture.policy().to_str().unwrap()])).stdout;
    eventually("nothing is left", || pids().is_empty());
    assert!(begun.elapsed() < Duration::from_secs(20), "{:?}", begun.elapsed());
    let struck = fixture.compile("struck", STRUCK, &[]);
    for number in ["9", "40"] {
        let outcome = fixture.run(&[struck.to_str().unwrap(), number, "300"]);
        assert_eq!(outcome.code(), 0, "{number}: {outcome:?}");
    }
}

#[test]
fn a_group_that_is_stopped_and_continued_goes_on() {
    let fixture = Fixture::new(serde_json::json!({ "allow_executables": ["/"] }));
    for _ in 0..5 {
        let mut command = fixture.callgate();
        command.args(["bash", "-c", "echo ready; read -r; exit 6"]).process_group(0);
        let mut child = command.stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().unwrap();
        child.stdout.as_mut().unwrap().read_exact(&mut [0; 6]).unwrap();
        let group = Pid::from_raw(-(child.id() as i32));
        let is = |states: &str| {
            let stat = fs::read_to_string(format!("/proc/{}/stat", child.id())).unwrap();
            states.contains(stat.rsplit_once(')').unwrap().1.trim_start().chars().next().unwrap())
        };
        kill(group, Signal::SIGSTOP).unwrap();
        eventually("callgate is stopped", || is("T"));
        // Time for what is said of the command's stop to arrive.
        std::thread::sleep(Duration::from_millis(30));
        kill(group, Signal::SIGCONT).unwrap();
        drop(child.stdin.take());
        assert_eq!(finish(child).code(), 6);
    }
}

/// A policy with a plugin that does not come to an end of `start`, or not soon.
fn loading(start: &str) -> Fixture {
    let plugins = serde_json::json!([{ "name": "slow", "path": "slow.wasm" }]);
    let audit = serde_json::json!({ "sinks": ["stderr"] });
    let fixture = Fixture::new(serde_json::json!({ "plugins": plugins, "default": "allow", "audit": audit }));
    fs::write(fixture.path("slow.wasm"), hostile(&format!("(func $slow {start}) (start $slow)"), "", "")).unwrap();
    fixture
}

/// Goes on loading for a good while.
const LONG: &str = "(local $n i32) (loop $on (br_if $on (i32.ne (i32.const 300000000) \
                    (local.tee $n (i32.add (local.get $n) (i32.const 1))))))";

/// Starts callgate in a group of its own, and waits until the process is there that loads the plugins.
fn begun(fixture: &Fixture, command: &[&str]) -> (std::process::Child, u32) {
    let mut callgate = with_default_signals(fixture.callgate().args(command));
    callgate.process_group(0).stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
    let child = callgate.spawn().unwrap();
    eventually("the supervisor is there", || !children(child.id()).is_empty());
    let supervisor = children(child.id())[0];
    (child, supervisor)
}

#[test]
fn while_plugins_are_loaded_a_signal_does_what_it_does_to_any_process_that_begins() {
    for signal in [Signal::SIGTERM, Signal::SIGINT, Signal::SIGHUP, Signal::SIGUSR1, Signal::SIGKILL] {
        let fixture = loading("(loop $forever (br $forever))");
        let (mut child, supervisor) = begun(&fixture, &["true"]);
        kill(Pid::from_raw(child.id() as i32), signal).unwrap();
        assert_eq!(wait(&mut child).signal(), Some(signal as i32));
        // Whose child it is then may reap it late.
        let status = || fs::read_to_string(format!("/proc/{supervisor}/status")).unwrap_or_default();
        eventually("nothing is left", || status().is_empty() || status().contains("State:\tZ"));
    }
}

#[test]
fn who_loads_the_plugins_can_be_killed_and_that_is_said() {
    let fixture = loading("(loop $forever (br $forever))");
    let (child, supervisor) = begun(&fixture, &["true"]);
    kill(Pid::from_raw(supervisor as i32), Signal::SIGKILL).unwrap();
    let outcome = finish(child);
    assert_eq!(outcome.code(), 125);
    assert_eq!(outcome.stderr, "callgate: the supervisor was killed by SIGKILL; the command was not started\n");
}

#[test]
fn a_command_does_not_begin_while_callgate_is_stopped() {
    let fixture = loading(LONG);
    let begins = fixture.path("begun");
    let (child, supervisor) = begun(&fixture, &["touch", begins.to_str().unwrap()]);
    kill(Pid::from_raw(child.id() as i32), Signal::SIGSTOP).unwrap();
    eventually("the command's process is there", || !children(supervisor).is_empty());
    std::thread::sleep(Duration::from_millis(200));
    assert!(!begins.exists(), "it has begun");
    kill(Pid::from_raw(child.id() as i32), Signal::SIGCONT).unwrap();
    let outcome = finish(child);
    assert_eq!(outcome.code(), 0, "{outcome:?}");
    assert!(begins.exists());
}

#[test]
fn who_is_stopped_with_its_group_while_it_loads_goes_on_with_callgate() {
    let fixture = loading(LONG);
    let (child, _) = begun(&fixture, &["bash", "-c", "exit 7"]);
    let own = Pid::from_raw(child.id() as i32);
    kill(Pid::from_raw(-own.as_raw()), Signal::SIGSTOP).unwrap();
    std::thread::sleep(Duration::from_millis(20));
    kill(own, Signal::SIGCONT).unwrap();
    assert_eq!(finish(child).code(), 7);
}

#[test]
fn a_time_limit_goes_on_while_plugins_are_loaded() {
    let fixture = loading(LONG);
    let run_it =
        "import os, signal, sys; signal.setitimer(signal.ITIMER_REAL, 1000); os.execv(sys.argv[1], sys.argv[1:])";
    let left = "import signal; print(signal.getitimer(signal.ITIMER_REAL)[0])";
    let began = Instant::now();
    let policy = fixture.policy();
    let outcome = run(Command::new("python3")
        .args(["-c", run_it, CALLGATE, "--policy", policy.to_str().unwrap()])
        .args(["python3", "-c", left]));
    let (took, left) = (began.elapsed().as_secs_f64(), outcome.stdout.trim().parse::<f64>().unwrap());
    assert!((took / 4.0..=took).contains(&(1000.0 - left)), "{left} s are left of 1000 after {took} s");
}

#[test]
fn a_mistake_in_the_policy_ends_nothing_that_was_there_before() {
    let line = format!("sleep 1000 >/dev/null 2>&1 & echo $!; exec {CALLGATE} --policy /nonexistent true");
    let outcome = run(Command::new("sh").args(["-c", &line]));
    assert_eq!(outcome.code(), 125);
    let sleeping = Pid::from_raw(outcome.stdout.trim().parse().unwrap());
    assert!(kill(sleeping, None).is_ok(), "it was killed");
    kill(sleeping, Signal::SIGKILL).unwrap();
}

#[test]
fn a_policy_may_be_named_by_a_descriptor_of_the_process_that_becomes_callgate() {
    let fixture = free();
    for _ in 0..20 {
        let line =
            format!("exec 7<{}; exec {CALLGATE} --policy /proc/$$/fd/7 echo ran", fixture.policy().to_str().unwrap());
        let outcome = run(Command::new("bash").args(["-c", &line]));
        assert_eq!((outcome.code(), outcome.stdout.as_str()), (0, "ran\n"), "{outcome:?}");
    }
}

#[test]
fn a_signal_at_any_moment_of_the_start_ends_it_all_without_a_word() {
    let fixture = free();
    for (round, signal) in (0..120).zip([Signal::SIGINT, Signal::SIGTERM].into_iter().cycle()) {
        let mut callgate = with_default_signals(fixture.callgate().args(["sleep", "1000"]));
        callgate.process_group(0);
        let child = callgate.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
        std::thread::sleep(Duration::from_micros(100 * (round / 2)));
        // To the whole group, as a terminal sends it, or to callgate alone.
        let whom = child.id() as i32 * if round % 4 < 2 { -1 } else { 1 };
        kill(Pid::from_raw(whom), signal).unwrap();
        let outcome = finish(child);
        let status = outcome.status.signal().or_else(|| outcome.status.code().map(|code| code - 128));
        assert_eq!((status, outcome.stderr.as_str()), (Some(signal as i32), ""), "round {round}: {outcome:?}");
    }
}

#[test]
fn a_stop_at_any_moment_of_the_start_can_be_ended() {
    let fixture = free();
    for round in 0..60 {
        let mut callgate = fixture.callgate();
        callgate.args(["bash", "-c", "exit 7"]).process_group(0);
        let child = callgate.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
        std::thread::sleep(Duration::from_micros(200 * round));
        let group = Pid::from_raw(-(child.id() as i32));
        let _ = kill(group, Signal::SIGSTOP);
        std::thread::sleep(Duration::from_millis(5));
        let _ = kill(group, Signal::SIGCONT);
        let outcome = finish(child);
        assert_eq!(outcome.code(), 7, "round {round}: {outcome:?}");
    }
}

#[test]
fn nothing_that_is_opened_while_the_table_is_shared_stays_with_the_command() {
    let fixture = free();
    let listed = |which: u32, callgate: &[&str]| {
        let mut strace = Command::new("strace");
        strace.args(["-f", "-qq", "-o", "/dev/null", "-e", "trace=openat", "-e"]);
        strace.arg(format!("inject=openat:delay_exit=60000:when={which}")).args(callgate);
        run(strace.args(["ls", "/proc/self/fd"])).stdout
    };
    let policy = fixture.policy();
    let without = listed(1, &[]);
    // One open after the other takes so long that the command gets its table meanwhile.
    for which in 1..25 {
        assert_eq!(listed(which, &[CALLGATE, "--policy", policy.to_str().unwrap()]), without, "{which}");
    }
}

#[test]
fn compiling_takes_no_more_processes_than_running_does() {
    let least = |policy: &Path| {
        let works = |most: &u32| {
            let mut callgate = Command::new("setpriv");
            callgate.args([
                "--reuid",
                "64321",
                "--regid",
                "64321",
                "--clear-groups",
                "prlimit",
                &format!("--nproc={most}"),
            ]);
            run(callgate.arg(CALLGATE).arg("--policy").arg(policy).arg("true")).status.code() == Some(0)
        };
        (1..60).find(works).expect("it starts with sixty processes")
    };
    let audit = serde_json::json!({ "sinks": ["stderr"] });
    let without = Fixture::new(serde_json::json!({ "allow_executables": ["/"], "audit": audit }));
    let with = loading("");
    assert_eq!(least(&with.policy()), least(&without.policy()));
}
