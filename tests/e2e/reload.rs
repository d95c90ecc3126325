//! Another policy for a workload that runs.

use std::fs;
use std::io::{BufRead, BufReader, Write};
use std::os::unix::fs::{MetadataExt, PermissionsExt, chown, symlink};
use std::path::Path;
use std::process::{Child, ChildStdin, ChildStdout, Command, Stdio};
use std::time::{Duration, Instant};

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use serde_json::json;

use crate::harness::{CALLGATE, Fixture, Outcome, eventually, finish, run, with_default_signals};

/// A workload that does what it is told: each word is a program to be run, and it says whether that went well.
pub struct Workload {
    child: Child,
    input: ChildStdin,
    output: BufReader<ChildStdout>,
}

pub const OBEDIENT: &str =
    r#"while read -r line; do if $line >/dev/null 2>&1; then echo ran; else echo failed; fi; done"#;

impl Workload {
    pub fn start(command: &mut Command) -> Self {
        Self::start_line(command, OBEDIENT)
    }

    pub fn start_line(command: &mut Command, line: &str) -> Self {
        command.args(["/bin/bash", "-c", line]);
        command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
        let mut child = command.spawn().unwrap();
        let (input, output) = (child.stdin.take().unwrap(), BufReader::new(child.stdout.take().unwrap()));
        let mut workload = Self { child, input, output };
        assert!(workload.runs("true"), "a builtin of bash");
        workload
    }

    pub fn runs(&mut self, line: &str) -> bool {
        writeln!(self.input, "{line}").unwrap();
        let mut said = String::new();
        self.output.read_line(&mut said).unwrap();
        assert!(matches!(said.as_str(), "ran\n" | "failed\n"), "{said:?}");
        said == "ran\n"
    }

    pub fn reload(&self, policy: &Path) -> Outcome {
        self.reload_by(CALLGATE, policy)
    }

    fn reload_by(&self, program: &str, policy: &Path) -> Outcome {
        run(Command::new(program).args(["reload", "--pid", &self.pid(), "--policy"]).arg(policy))
    }

    /// The supervisor, which is the guardian's only child.
    pub fn pid(&self) -> String {
        let children = fs::read_to_string(format!("/proc/{0}/task/{0}/children", self.child.id())).unwrap();
        children.trim().to_owned()
    }

    fn hang_up(&self) {
        kill(Pid::from_raw(self.child.id() as i32), Signal::SIGHUP).unwrap();
    }

    pub fn end(self) -> Outcome {
        drop(self.input);
        let outcome = finish(self.child);
        assert_eq!(outcome.code(), 0, "{outcome:?}");
        outcome
    }
}

const WITH_LS: &[&str] = &["/bin/bash", "/bin/ls"];
const WITHOUT: &[&str] = &["/bin/bash"];

pub fn write(fixture: &Fixture, name: &str, allowed: &[&str]) {
    let audit = json!({ "sinks": [format!("file:{}", fixture.path("records").display())] });
    fs::write(fixture.path(name), json!({ "allow_executables": allowed, "audit": audit }).to_string()).unwrap();
}

/// The command runs as a user who cannot write the policy, with a policy that allows `ls`.
fn as_user(fixture: &Fixture) -> Command {
    fs::set_permissions(fixture.path(""), PermissionsExt::from_mode(0o755)).unwrap();
    fs::write(fixture.path("records"), "").unwrap();
    chown(fixture.path("records"), Some(1000), None).unwrap();
    let mut command = Command::new("setpriv");
    command.args(["--reuid=1000", "--regid=1000", "--clear-groups", CALLGATE, "--policy"]).arg(fixture.policy());
    command
}

#[test]
fn a_policy_that_is_handed_over_decides_from_then_on() {
    let fixture = Fixture::allowing(WITH_LS);
    let mut workload = Workload::start(&mut fixture.callgate());
    assert!(workload.runs("ls /"));
    write(&fixture, "other.json", WITHOUT);
    let outcome = workload.reload(&fixture.path("other.json"));
    assert_eq!(outcome.code(), 0, "{outcome:?}");
    assert!(outcome.stdout.contains("other.json is in force"), "{outcome:?}");
    assert!(!workload.runs("ls /"));
    let outcome = workload.reload_by(env!("CARGO_BIN_EXE_callgatectl"), &fixture.policy());
    assert_eq!(outcome.code(), 0, "{outcome:?}");
    assert!(workload.runs("ls /"));
    workload.end();
    let records = fixture.records();
    let events: Vec<_> = records.iter().map(|record| record["event"].as_str().unwrap()).collect();
    assert_eq!(events, ["policy-reloaded", "exec", "policy-reloaded"]);
    assert_eq!(records[0]["policy"], fixture.path("other.json").to_str().unwrap());
    assert_eq!(records[1]["sequence"], 3, "the order of decisions goes on");
}

#[test]
fn a_hang_up_has_the_policy_read_again() {
    let fixture = Fixture::allowing(WITH_LS);
    let mut workload = Workload::start(&mut as_user(&fixture));
    assert!(workload.runs("ls /"));
    write(&fixture, "policy.json", WITHOUT);
    workload.hang_up();
    eventually("the new policy is in force", || !fixture.records().is_empty());
    assert!(!workload.runs("ls /"));
    write(&fixture, "policy.json", WITH_LS);
    let outcome = run(Command::new(CALLGATE).args(["reload", "--pid", &workload.pid()]));
    assert_eq!(outcome.code(), 0, "{outcome:?}");
    assert!(workload.runs("ls /"));
    workload.end();
}

#[test]
fn what_the_workload_could_have_written_is_not_believed() {
    let mistrusted = |why: &str, prepare: &dyn Fn(&Fixture), command: &dyn Fn(&Fixture) -> Command| {
        let fixture = Fixture::allowing(WITHOUT);
        prepare(&fixture);
        let mut workload = Workload::start(&mut command(&fixture));
        let other = fixture.path("other.json");
        write(&fixture, "other.json", WITH_LS);
        let owner = fs::metadata(fixture.policy()).unwrap().uid();
        let mode = fs::metadata(fixture.policy()).unwrap().permissions();
        chown(&other, Some(owner), None).unwrap();
        fs::set_permissions(&other, mode).unwrap();
        if fixture.policy().is_symlink() {
            fs::remove_file(fixture.policy()).unwrap();
            symlink("other.json", fixture.policy()).unwrap();
        } else {
            fs::rename(&other, fixture.policy()).unwrap();
        }
        let outcome = run(Command::new(CALLGATE).args(["reload", "--pid", &workload.pid()]));
        assert_eq!(outcome.code(), 125, "{why}: {outcome:?}");
        assert!(outcome.stderr.contains(why), "{why}: {outcome:?}");
        assert!(!workload.runs("ls /"), "{why}");
        let outcome = workload.end();
        assert!(outcome.stderr.contains("the policy stays as it was"), "{outcome:?}");
    };
    let nothing = |_: &Fixture| {};
    let policy = |mode: u32| {
        move |fixture: &Fixture| fs::set_permissions(fixture.policy(), PermissionsExt::from_mode(mode)).unwrap()
    };
    mistrusted("stands above file permissions", &nothing, &Fixture::callgate);
    mistrusted("may write it", &policy(0o666), &as_user);
    mistrusted("runs as its owner", &|fixture| chown(fixture.policy(), Some(1000), None).unwrap(), &as_user);
    mistrusted("may have made the link", &link_the_policy, &as_user);
    mistrusted("may write it", &nothing, &|fixture| {
        let command = as_user(fixture);
        fs::set_permissions(fixture.path(""), PermissionsExt::from_mode(0o777)).unwrap();
        command
    });
}

fn link_the_policy(fixture: &Fixture) {
    fs::rename(fixture.policy(), fixture.path("first.json")).unwrap();
    symlink("first.json", fixture.policy()).unwrap();
}

#[test]
fn on_a_read_only_mount_links_are_followed_as_kubernetes_makes_them() {
    let fixture = Fixture::allowing(WITH_LS);
    let (inside, outside) = (fixture.path("etc"), fixture.path("volume"));
    for directory in [&inside, &outside.join("1"), &outside.join("2")] {
        fs::create_dir_all(directory).unwrap();
    }
    fs::copy(fixture.policy(), outside.join("1/policy.json")).unwrap();
    write(&fixture, "volume/2/policy.json", WITHOUT);
    symlink("1", outside.join("..data")).unwrap();
    symlink("..data/policy.json", outside.join("policy.json")).unwrap();
    let script = format!(
        "mount --bind -o ro {} {}; exec setpriv --bounding-set=-sys_admin,-dac_read_search {CALLGATE} --policy {}/policy.json \"$@\"",
        outside.display(),
        inside.display(),
        inside.display()
    );
    let mut command = Command::new("unshare");
    command.args(["--mount", "--propagation=slave", "bash", "-c", &script, "-"]);
    let mut workload = Workload::start(&mut command);
    assert!(workload.runs("ls /"));
    symlink("2", outside.join("..data_new")).unwrap();
    fs::rename(outside.join("..data_new"), outside.join("..data")).unwrap();
    workload.hang_up();
    eventually("the new policy is in force", || !fixture.records().is_empty());
    assert!(!workload.runs("ls /"));
    workload.end();
}

#[test]
fn a_policy_that_is_not_all_well_changes_nothing() {
    let fixture = Fixture::allowing(WITH_LS);
    let mut workload = Workload::start(&mut fixture.callgate());
    let records = format!("file:{}", fixture.path("records").display());
    let audit = json!({ "sinks": [records] });
    let plugins =
        json!([{ "name": "allowlist", "config": { "allow_executables": [] } }, { "name": "a", "path": "none" }]);
    for (policy, why) in [
        (json!({ "allow_executabels": [], "audit": audit }), "did you mean"),
        (json!({ "allow_executables": ["relative"], "audit": audit }), "relative"),
        (json!({ "plugins": plugins, "audit": audit }), "No such file"),
        (json!({ "allow_executables": [], "network": {}, "audit": audit }), "the filter"),
        (json!({ "allow_executables": [] }), "the audit log cannot be changed"),
        (json!({ "allow_executables": [], "audit": { "sinks": [records], "decisions": "all" } }), "the audit log"),
    ] {
        fs::write(fixture.path("other.json"), policy.to_string()).unwrap();
        let outcome = workload.reload(&fixture.path("other.json"));
        let why = if why == "the filter" { "filter was not made for" } else { why };
        assert_eq!(outcome.code(), 125, "{why}: {outcome:?}");
        assert!(outcome.stderr.contains(why), "{why}: {outcome:?}");
        assert!(workload.runs("ls /"), "{why}");
    }
    workload.end();
    assert!(fixture.records().is_empty());
}

#[test]
fn a_dry_run_becomes_an_enforcement() {
    let fixture = Fixture::new(json!({ "allow_executables": WITHOUT, "mode": "dry-run" }));
    let mut workload = Workload::start(&mut fixture.callgate());
    assert!(workload.runs("ls /"));
    write(&fixture, "other.json", WITHOUT);
    assert_eq!(workload.reload(&fixture.path("other.json")).code(), 0);
    assert!(!workload.runs("ls /"));
    workload.end();
    let outcomes: Vec<_> = fixture.records().iter().map(|record| record["outcome"].clone()).collect();
    assert_eq!(outcomes, [json!("would-deny"), json!(null), json!("denied")]);
}

#[test]
fn the_workload_gives_no_orders() {
    let fixture = Fixture::new(json!({ "deny_executables": ["/bin/ls"] }));
    fs::write(fixture.path("free.json"), r#"{"deny_executables": []}"#).unwrap();
    let policy = fixture.path("free.json");
    let line = format!(
        "{CALLGATE} reload --policy {0}; {CALLGATE} reload --pid $PPID --policy {0}; kill -HUP $PPID; ls /",
        policy.display()
    );
    let outcome = fixture.bash(&line);
    assert_eq!(outcome.stdout, "", "{outcome:?}");
    assert!(outcome.stderr.contains("a process of the workload may not do that"), "{outcome:?}");
    assert!(outcome.stderr.contains("Operation not permitted"), "{outcome:?}");
    assert_eq!(fixture.records_of("denied").len(), 2, "the signal, and ls: {outcome:?}");
}

/// Takes names of supervisors: its own, which is not one, and those of other processes. Nobody is answered there. At the
/// name of process 1, which is outside of the workload, it does what its argument says.
const IMPOSTOR: &str = r#"
import os, signal, socket, sys
namespace, kept = os.stat("/proc/self/ns/pid").st_ino, []
def sequenced(): return socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
for pid in range(1, 200):
    name, taken = f"\0callgate/control/{namespace}/{pid}", sequenced()
    try: taken.bind(name)
    except OSError: continue # the supervisor's
    kept.append(taken)
    how = sys.argv[1] if pid == 1 else ("deaf", "full", "silent")[pid % 3]
    if pid == os.getpid(): how = "silent"
    if how == "deaf": continue
    taken.listen(0 if how == "full" else 100)
    while how == "full":
        kept.append(sequenced()); kept[-1].setblocking(False)
        if kept[-1].connect_ex(name): break
print("ready", flush=True)
signal.pause()
"#;

#[test]
fn the_supervisor_is_found_among_processes_of_the_workload_that_pass_themselves_off_as_one() {
    for how in ["deaf", "full", "silent"] {
        let fixture = Fixture::allowing(&["/usr/bin/python3"]);
        write(&fixture, "other.json", WITHOUT);
        fs::write(fixture.path("impostor.py"), IMPOSTOR).unwrap();
        // In a pid namespace of its own, for there are other supervisors here; it ends with its first process.
        let line = "mkfifo said; $0 --policy policy.json /usr/bin/python3 impostor.py $1 > said & read -r _ < said
            $0 reload --policy other.json";
        let mut command = Command::new("unshare");
        command.args(["--pid", "--fork", "--mount-proc", "--kill-child", "bash", "-c", line, CALLGATE, how]);
        let begun = Instant::now();
        let outcome = run(command.current_dir(fixture.path("")));
        assert!(outcome.stdout.contains("other.json is in force"), "{how}: {outcome:?}");
        assert!(begun.elapsed() < Duration::from_secs(20), "{how}: {:?}", begun.elapsed());
    }
}

#[test]
fn a_policy_can_leave_hang_ups_to_the_command() {
    let fixture = Fixture::new(json!({ "deny_executables": ["/bin/ls"], "sighup": "pass-on" }));
    let mut command = fixture.callgate();
    command.args(["/bin/bash", "-c", "trap 'echo heard; exit 3' HUP; echo ready; while :; do sleep 0.05; done"]);
    let mut child = with_default_signals(&command).stdout(Stdio::piped()).spawn().unwrap();
    let mut output = BufReader::new(child.stdout.take().unwrap());
    let mut line = String::new();
    output.read_line(&mut line).unwrap();
    kill(Pid::from_raw(child.id() as i32), Signal::SIGHUP).unwrap();
    output.read_line(&mut line).unwrap();
    assert_eq!(line, "ready\nheard\n");
    assert_eq!(finish(child).code(), 3);
}

#[test]
fn under_load_no_verdict_is_lost_or_wrong() {
    let fixture = Fixture::allowing(&["/bin/bash", "/bin/ls", "/usr/bin/true"]);
    for (name, allowed) in [("with.json", "/bin/ls"), ("without.json", "/usr/bin/id")] {
        write(&fixture, name, &["/bin/bash", "/usr/bin/true", allowed]);
    }
    // Beside it, what both policies allow, and what neither does.
    let busy = "while :; do /usr/bin/true || echo wrong; /usr/bin/whoami 2>/dev/null && echo wrong; done";
    let line = format!("for _ in 1 2 3; do ({busy}) >&2 & done; {OBEDIENT}; kill $(jobs -p)");
    let mut workload = Workload::start_line(&mut fixture.callgate(), &line);
    for round in 0..60 {
        let (name, ls) = if round % 2 == 0 { ("without.json", false) } else { ("with.json", true) };
        let outcome = workload.reload(&fixture.path(name));
        assert_eq!(outcome.code(), 0, "{round}: {outcome:?}");
        assert_eq!(workload.runs("/bin/ls /"), ls, "{round}");
        assert_eq!(workload.runs("/usr/bin/id"), !ls, "{round}");
    }
    let outcome = workload.end();
    assert!(!outcome.stderr.contains("wrong"), "{outcome:?}");
    let records = fixture.records();
    assert_eq!(records.iter().filter(|record| record["event"] == "policy-reloaded").count(), 60);
    let denied = |path: &str| records.iter().filter(|record| record["file"]["path"] == path).count();
    assert_eq!((denied("/usr/bin/ls"), denied("/usr/bin/id"), denied("/usr/bin/true")), (30, 30, 0));
    assert!(denied("/usr/bin/whoami") > 60);
}
