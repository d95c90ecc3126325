//! What a review of reloading, of kept callers and of the relay found.

use std::fs;
use std::io::{BufRead, BufReader};
use std::os::unix::fs::{PermissionsExt, chown};
use std::path::Path;
use std::process::{Command, Stdio};

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use serde_json::json;

use crate::harness::{CALLGATE, Fixture, eventually, finish, run};
use crate::network::governed;
use crate::plugins::hostile;
use crate::reload::{OBEDIENT, Workload, write};

/// A plugin that is asked about these kinds of event and goes round in circles at the second.
fn spinning(kinds: u32) -> Fixture {
    let configure = format!("(i32.store16 (i32.const 0x204) (i32.const {kinds}))");
    let fixture = Fixture::new(json!({
        "plugins": [{ "name": "spinning", "path": "spinning.wasm", "deadline_ms": 30_000 }],
        "default": "allow",
    }));
    fs::write(fixture.path("spinning.wasm"), hostile("", &configure, "(loop $forever (br $forever))")).unwrap();
    fixture
}

/// Bits of `event-kinds` in `sdk/wit/policy.wit`.
const EXEC: u32 = 1;
const CONNECT: u32 = 1 << 2;

/// The supervisor, which is the guardian's only child.
fn supervisor_of(guardian: u32) -> u32 {
    let children = fs::read_to_string(format!("/proc/{guardian}/task/{guardian}/children")).unwrap();
    children.trim().parse().unwrap()
}

/// What these files of a process's threads hold, of those threads that are called so.
fn of_threads(process: u32, called: &str, file: &str) -> Vec<String> {
    let tasks = fs::read_dir(format!("/proc/{process}/task")).unwrap();
    let tasks = tasks.map(|task| task.unwrap().path());
    let is_called = |task: &Path| fs::read_to_string(task.join("comm")).is_ok_and(|name| name.trim() == called);
    tasks.filter(|task| is_called(task)).filter_map(|task| fs::read_to_string(task.join(file)).ok()).collect()
}

/// Waits until the plugin of [`spinning`] does so: one of the threads has taken time.
fn spins(supervisor: u32) {
    let took = |stat: &String| stat.rsplit(") ").next().unwrap().split(' ').nth(11).unwrap().parse::<u32>().unwrap();
    eventually("a plugin spins", || of_threads(supervisor, "callgate-call", "stat").iter().any(|stat| took(stat) > 10));
}

#[test]
fn what_the_supervisor_connects_for_the_workload_gives_no_orders() {
    let fixture = governed(json!({ "outbound": [{ "unix_abstract": "**" }] }));
    write(&fixture, "free.json", &["/**"]);
    // Without the capability the kernel lets nobody say for whom the supervisor sends.
    for bounds in ["-sys_admin", "+sys_admin"] {
        let mut command = Command::new("setpriv");
        command.args([&format!("--bounding-set={bounds}"), CALLGATE, "--policy"]).arg(fixture.policy());
        let line = format!("{CALLGATE} reload --pid $PPID --policy {}", fixture.path("free.json").display());
        let outcome = run(command.args(["/bin/bash", "-c", &line]));
        assert_eq!(outcome.code(), 125, "{outcome:?}");
        assert!(!outcome.stdout.contains("in force"), "{outcome:?}");
        assert!(fixture.records().iter().all(|record| record["event"] != "policy-reloaded"), "{outcome:?}");
    }
    assert!(!fixture.records_of("denied").is_empty());
}

#[test]
fn orders_and_signals_do_not_wait_for_each_other() {
    let fixture = spinning(EXEC);
    write(&fixture, "other.json", &["/**"]);
    let line = "trap 'exit 3' TERM; /bin/true & echo ready; wait";
    let mut command = fixture.callgate();
    let mut child = command.args(["/bin/bash", "-c", line]).stdout(Stdio::piped()).spawn().unwrap();
    let mut said = String::new();
    BufReader::new(child.stdout.take().unwrap()).read_line(&mut said).unwrap();
    let supervisor = supervisor_of(child.id());
    spins(supervisor);
    let mut order = Command::new(CALLGATE);
    order.args(["reload", "--pid", &supervisor.to_string(), "--policy"]).arg(fixture.path("other.json"));
    let mut order = order.stdout(Stdio::null()).stderr(Stdio::null()).spawn().unwrap();
    let futex = format!("{} ", nix::libc::SYS_futex);
    eventually("the order waits for the plugin", || {
        of_threads(supervisor, "callgate-contro", "syscall").iter().any(|call| call.starts_with(&futex))
    });
    for signal in [Signal::SIGHUP, Signal::SIGTERM] {
        kill(Pid::from_raw(child.id() as i32), signal).unwrap();
    }
    assert_eq!(finish(child).code(), 3, "the command was told before the plugin's deadline");
    kill(Pid::from_raw(supervisor as i32), Signal::SIGKILL).unwrap();
    order.wait().unwrap();
}

/// A policy that allows all stands where the workload may not write; but it may say that this is the policy.
#[test]
fn a_link_to_what_it_cannot_write_is_not_believed_where_the_workload_can_make_it() {
    read_only_mount("-sys_admin,-dac_read_search", "may have made the link");
}

#[test]
fn a_read_only_mount_tells_nothing_where_the_workload_can_open_files_by_their_handles() {
    read_only_mount("-sys_admin", "may open files by their handles");
}

fn read_only_mount(bounds: &str, why: &str) {
    let fixture = Fixture::allowing(&["/bin/bash", "/bin/ln"]);
    fs::create_dir(fixture.path("volume")).unwrap();
    write(&fixture, "volume/free.json", &["/**"]);
    let volume = fixture.path("volume");
    let script = format!(
        "mount --bind -o ro {0} {0}; exec setpriv --bounding-set={bounds} {CALLGATE} --policy {1} \"$@\"",
        volume.display(),
        fixture.policy().display()
    );
    let mut command = Command::new("unshare");
    command.args(["--mount", "--propagation=slave", "bash", "-c", &script, "-"]);
    let mut workload = Workload::start(&mut command);
    assert!(workload.runs(&format!("ln -sf volume/free.json {}", fixture.policy().display())));
    let outcome = run(Command::new(CALLGATE).args(["reload", "--pid", &workload.pid()]));
    assert!(outcome.stderr.contains(why), "{outcome:?}");
    assert!(!workload.runs("ls /"));
    workload.end();
}

#[test]
fn who_may_be_any_group_or_mount_anything_could_have_written_the_policy() {
    for (capability, why) in [("setgid", "stands above file permissions"), ("sys_admin", "may mount file systems")] {
        let fixture = Fixture::allowing(&["/bin/bash"]);
        chown(fixture.policy(), None, Some(4242)).unwrap();
        fs::set_permissions(fixture.policy(), PermissionsExt::from_mode(0o664)).unwrap();
        fs::write(fixture.path("records"), "").unwrap();
        chown(fixture.path("records"), Some(1000), None).unwrap();
        let mut command = Command::new("setpriv");
        command.args(["--reuid=1000", "--regid=1000", "--clear-groups"]);
        command.args([&format!("--inh-caps=+{capability}"), &format!("--ambient-caps=+{capability}")]);
        command.args([CALLGATE, "--policy"]).arg(fixture.policy());
        let workload = Workload::start(&mut command);
        let outcome = run(Command::new(CALLGATE).args(["reload", "--pid", &workload.pid()]));
        assert!(outcome.stderr.contains(why), "{capability}: {outcome:?}");
        workload.end();
    }
}

#[test]
fn a_terminal_in_the_place_of_the_policy_does_not_become_the_supervisors() {
    let fixture = Fixture::allowing(&["/**"]);
    fs::create_dir(fixture.path("pts")).unwrap();
    let script = format!(
        "mount --bind /dev/pts {}; exec {CALLGATE} --policy {} \"$@\"",
        fixture.path("pts").display(),
        fixture.policy().display()
    );
    let program = "import os, sys\n\
        policy, (master, slave) = sys.argv[1], os.openpty()\n\
        os.remove(policy)\n\
        os.symlink(os.ttyname(slave)[len('/dev/'):], policy)\n\
        print('ready', flush=True)\n\
        sys.stdin.read()";
    let mut command = Command::new("unshare");
    command.args(["--mount", "--propagation=slave", "bash", "-c", &script, "-", "/usr/bin/python3", "-c", program]);
    command.arg(fixture.policy()).stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
    let mut child = command.spawn().unwrap();
    let mut said = String::new();
    BufReader::new(child.stdout.as_mut().unwrap()).read_line(&mut said).unwrap();
    assert_eq!(said, "ready\n");
    let supervisor = supervisor_of(child.id());
    let outcome = run(Command::new(CALLGATE).args(["reload", "--pid", &supervisor.to_string()]));
    assert_eq!(outcome.code(), 125, "{outcome:?}");
    let stat = fs::read_to_string(format!("/proc/{supervisor}/stat")).unwrap();
    assert_eq!(stat.rsplit(") ").next().unwrap().split(' ').nth(4), Some("0"), "its terminal: {stat}");
    drop(child.stdin.take());
    assert_eq!(finish(child).code(), 0);
}

#[test]
fn a_program_cannot_pass_itself_off_as_another() {
    let fixture = Fixture::new(json!({}));
    let program = fixture.compile("masquerade", include_str!("programs/masquerade.c"), &[]);
    write(&fixture, "policy.json", &[program.to_str().unwrap()]);
    let outcome = fixture.run(&[program.to_str().unwrap(), "/usr/bin/env", "/bin/ls"]);
    assert!(outcome.stderr.contains("PR_SET_MM_MAP: Operation not permitted"), "{outcome:?}");
    let ls = fixture.records_of("denied").into_iter().find(|record| record["event"] == "exec").unwrap();
    assert_eq!(ls["subject"]["executable"], program.to_str().unwrap());
}

/// A caller's call that is started again and again, while the first is still being decided on.
#[test]
fn calls_that_a_signal_has_ended_are_not_waited_for() {
    let fixture = spinning(CONNECT);
    let older = fixture.compile("older", include_str!("programs/older_kernel.c"), &[]);
    let storm = fixture.compile("storm", include_str!("programs/storm.c"), &[]);
    let mut command = Command::new(older);
    command.args([CALLGATE, "--policy"]).arg(fixture.policy()).arg(storm).stdout(Stdio::piped());
    let mut child = command.spawn().unwrap();
    let mut said = String::new();
    BufReader::new(child.stdout.take().unwrap()).read_line(&mut said).unwrap();
    assert_eq!(said, "now\n");
    let threads = of_threads(supervisor_of(child.id()), "callgate-call", "comm").len();
    kill(Pid::from_raw(child.id() as i32), Signal::SIGKILL).unwrap();
    child.wait().unwrap();
    assert!(threads < 30, "{threads} threads wait for one caller");
}

/// An operator has handed over a stricter policy than the one that the file has, and the workload wants that one back. Where
/// there is Landlock it may send no such signal at all.
#[test]
fn the_workload_has_no_policy_read_again_where_callgate_is_the_first_process() {
    let fixture = Fixture::allowing(&["/bin/bash", "/bin/ls"]);
    write(&fixture, "stricter.json", &["/bin/bash"]);
    for name in ["records", "heard"] {
        fs::write(fixture.path(name), "").unwrap();
        chown(fixture.path(name), Some(1000), None).unwrap();
    }
    let heard = || fs::read_to_string(fixture.path("heard")).unwrap() == "heard\n";
    let mut command = Command::new("unshare");
    command.args(["--pid", "--fork", "--mount-proc", "--kill-child", "setpriv"]);
    let without_landlock = fixture.compile("no_landlock", include_str!("programs/older_kernel.c"), &["-DNO_LANDLOCK"]);
    command.args(["--reuid=1000", "--regid=1000", "--clear-groups"]).arg(without_landlock);
    command.args([CALLGATE, "--policy"]).arg(fixture.policy());
    let trap = format!("trap 'echo heard >{}' HUP; {OBEDIENT}", fixture.path("heard").display());
    let mut workload = Workload::start_line(&mut command, &trap);
    let reloaded = || fixture.records().iter().filter(|record| record["event"] == "policy-reloaded").count();
    let first = workload.pid();
    let inside = |arguments: &[&str]| {
        let mut command = Command::new("nsenter");
        run(command.args(["--target", &first, "--pid", "--mount"]).args(arguments))
    };
    let stricter = fixture.path("stricter.json");
    let outcome = inside(&[CALLGATE, "reload", "--pid", "1", "--policy", stricter.to_str().unwrap()]);
    assert_eq!(outcome.code(), 0, "{outcome:?}");
    assert!(!workload.runs("ls /"));
    assert!(workload.runs("kill -HUP 1"));
    // The shell does what the trap says between two lines.
    assert!((0..10_000).any(|_| workload.runs("true") && heard()), "the command is not told instead");
    eventually("nothing is read", || of_threads(first.parse().unwrap(), "callgate-reload", "comm").is_empty());
    assert!(!workload.runs("ls /"));
    // From outside of the namespace it is an order.
    kill(Pid::from_raw(first.parse().unwrap()), Signal::SIGHUP).unwrap();
    eventually("the policy is read again", || reloaded() == 2);
    assert!(workload.runs("ls /"));
    workload.end();
}

#[test]
fn a_signal_that_comes_of_input_is_no_order() {
    let fixture = Fixture::allowing(&["/**"]);
    let program = "import fcntl, os, signal, sys\n\
        supervisor = os.getppid()\n\
        status = dict(line.split(':\\t') for line in open(f'/proc/{supervisor}/status') if ':\\t' in line)\n\
        heard = []\n\
        signal.signal(signal.SIGHUP, lambda *_: heard.append(1))\n\
        r, w = os.pipe()\n\
        fcntl.fcntl(r, fcntl.F_SETOWN, int(status['PPid']))\n\
        fcntl.fcntl(r, 10, signal.SIGHUP)\n\
        fcntl.fcntl(r, fcntl.F_SETFL, os.O_ASYNC)\n\
        os.write(w, b'x')\n\
        while not heard: signal.sigtimedwait([], 0.01)";
    let outcome = fixture.run(&["/usr/bin/python3", "-c", program]);
    assert_eq!(outcome.code(), 0, "{outcome:?}");
    assert!(!outcome.stderr.contains("policy"), "nothing is read: {outcome:?}");
}

/// The workload may exchange what is in `/dev`.
#[test]
fn the_word_that_orders_begin_with_comes_from_the_kernel() {
    let fixture = Fixture::allowing(&["/bin/bash"]);
    let script =
        format!("mount --bind /dev/null /dev/urandom; exec {CALLGATE} --policy {} \"$@\"", fixture.policy().display());
    let mut command = Command::new("unshare");
    command.args(["--mount", "--propagation=slave", "bash", "-c", &script, "-"]);
    let mut workload = Workload::start(&mut command);
    write(&fixture, "other.json", &["/bin/ls"]);
    let policy = fixture.path("other.json");
    let outcome = run(Command::new(CALLGATE).args(["reload", "--pid", &workload.pid(), "--policy"]).arg(policy));
    assert_eq!(outcome.code(), 0, "{outcome:?}");
    assert!(workload.runs("ls /"));
    workload.end();
}
