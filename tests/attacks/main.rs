//! The attacks of this folder, each first without us, where it must get through, and then under callgate, where it must not.
//!
//! A target of its own, and one attack at a time: races want the processors for themselves.
#![allow(clippy::unwrap_used, missing_docs, unreachable_pub)]

#[path = "../e2e/harness.rs"]
#[allow(dead_code)]
mod harness;

use std::collections::HashMap;
use std::fs;
use std::io::{BufRead, BufReader};
use std::net::TcpListener;
use std::os::unix::fs::PermissionsExt;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use serde::Deserialize;
use serde_json::{Value, json};
use tempfile::TempDir;

use harness::{CALLGATE, Fixture, repository, run};

#[derive(Deserialize)]
struct Attack {
    name: String,
    source: String,
    args: Vec<String>,
    needs_root: bool,
    policy: Policy,
    bare: Bare,
    sink: Option<Sink>,
    #[serde(default)]
    stand_in: bool,
    #[serde(default)]
    pid_namespace: bool,
    #[serde(default)]
    mount_namespace: bool,
}

#[derive(Deserialize, PartialEq, Clone, Copy, Debug)]
#[serde(rename_all = "kebab-case")]
enum Policy {
    Exec,
    Network,
    Users,
    None,
}

#[derive(Deserialize, PartialEq, Clone, Copy, Debug)]
#[serde(rename_all = "kebab-case")]
enum Bare {
    Escapes,
    NotApplicable,
}

#[derive(Deserialize, PartialEq, Clone, Copy)]
#[serde(rename_all = "kebab-case")]
enum Sink {
    Listen,
    Knock,
}

/// How an attack went.
#[derive(PartialEq, Clone, Copy, Debug)]
enum Ending {
    Escaped,
    Held,
    Skipped,
    Hung,
}

/// Every attack ends within five seconds by itself.
const PATIENCE: Duration = Duration::from_secs(15);

#[test]
fn programs_that_are_denied_do_not_run() {
    attack(Policy::Exec, |_| true);
}

#[test]
fn addresses_that_are_denied_are_not_reached() {
    attack(Policy::Network, |_| true);
}

#[test]
fn users_that_are_denied_are_not_become() {
    attack(Policy::Users, |_| true);
}

#[test]
fn the_supervisor_is_out_of_reach() {
    attack(Policy::None, |attack| !BEYOND_US.iter().any(|(name, _)| *name == attack.name));
}

/// What root with every capability on a machine of its own can do to any process. SECURITY.md says so.
const BEYOND_US: &[(&str, &str)] = &[
    ("supervisor-reach/maps", "CAP_SYS_ADMIN opens every process's maps"),
    ("supervisor-reach/environ", "the same; what it finds there has been overwritten, as supervisor-reach/token shows"),
    ("supervisor-reach/perf", "CAP_SYS_ADMIN may count any process's events"),
    ("supervisor-reach/oom", "root may make any process the first to go; then the workload ends too"),
    ("supervisor-reach/freeze", "a writable cgroup file system freezes any process; calls then wait"),
    ("supervisor-reach/cgroup-kill", "or kills it; then the workload ends too"),
];

fn attack(policy: Policy, wanted: impl Fn(&Attack) -> bool) {
    static TURN: Mutex<()> = Mutex::new(());
    let _turn = TURN.lock().unwrap_or_else(PoisonError::into_inner);
    let text = fs::read_to_string(repository("tests/attacks/attacks.json")).unwrap();
    let attacks: Vec<Attack> = serde_json::from_str(&text).unwrap();
    let programs = Programs::compile();
    let mut failures = Vec::new();
    let mut tried = 0;
    for attack in attacks.iter().filter(|attack| attack.policy == policy && wanted(attack)) {
        if attack.bare == Bare::Escapes {
            let (ending, said) = attempt(attack, &programs, false);
            if ending != Ending::Escaped {
                failures.push(format!("{} shows nothing: bare it {ending:?}: {said}", attack.name));
            }
        }
        let (ending, said) = attempt(attack, &programs, true);
        if ending == Ending::Escaped || ending == Ending::Hung {
            failures.push(format!("{} {ending:?} under callgate: {said}", attack.name));
        }
        tried += 1;
    }
    assert!(tried > 10, "the attacks are not found");
    assert!(failures.is_empty(), "{}", failures.join("\n"));
}

/// Runs an attack once, bare or under callgate. What it said is for whoever reads a failure.
fn attempt(attack: &Attack, programs: &Programs, confined: bool) -> (Ending, String) {
    let place = TempDir::with_prefix("callgate-attack-").unwrap();
    let directory = place.path();
    fs::set_permissions(directory, fs::Permissions::from_mode(0o777)).unwrap();
    let marker = directory.join("marker");
    let (allowed_port, denied_port) = two_free_ports();
    let program = programs.path(attack.source.trim_end_matches(".c"));
    let words: HashMap<&str, String> = HashMap::from([
        ("{ALLOWED}", programs.path("allowed").display().to_string()),
        ("{DENIED}", programs.path("denied").display().to_string()),
        ("{MARKER}", marker.display().to_string()),
        ("{DIR}", directory.display().to_string()),
        ("{ROUNDS}", "2000".to_owned()),
        ("{ALLOWED_PORT}", allowed_port.to_string()),
        ("{DENIED_PORT}", denied_port.to_string()),
    ]);
    let arguments = attack.args.iter().map(|word| words.get(word.as_str()).unwrap_or(word).clone());
    let fixture = Fixture::new(policy(attack.policy, programs, &program, directory, allowed_port));
    // Whoever runs the tests may have left descriptors open, which would be taken for leaked ones.
    let close = r#"for fd in /proc/self/fd/*; do [ ${fd##*/} -le 2 ] || eval "exec ${fd##*/}>&-"; done; exec "$@""#;
    let mut line: Vec<String> = ["bash", "-c", close, "bash"].map(str::to_owned).to_vec();
    if attack.pid_namespace {
        line.extend(["unshare", "-pf", "--mount-proc", "sh", "-c", r#""$@"; exit $?"#, "sh"].map(str::to_owned));
    }
    if attack.mount_namespace {
        line.extend(["unshare", "-m"].map(str::to_owned));
    }
    if confined {
        line.extend([CALLGATE.to_owned(), "--policy".to_owned(), fixture.policy().display().to_string()]);
    } else if attack.stand_in {
        line.push(programs.path("stand-in").display().to_string());
    }
    line.push(program.display().to_string());
    line.extend(arguments);

    let sink = attack.sink.map(|kind| start_sink(kind, programs, allowed_port, denied_port, &marker, directory));
    let output = fixture.path("output");
    let file = fs::File::create(&output).unwrap();
    let mut command = Command::new(&line[0]);
    command.args(&line[1..]).stdin(Stdio::null()).stdout(file.try_clone().unwrap()).stderr(file).process_group(0);
    match attack.stand_in {
        true => command.env("CALLGATE_TOKEN", "attack-secret-token"),
        false => command.env_remove("CALLGATE_TOKEN"),
    };
    let mut child = command.spawn().unwrap();
    let ended = wait(&mut child);
    if let Some(mut sink) = sink {
        sink.kill().unwrap();
        sink.wait().unwrap();
    }
    let said = fs::read_to_string(&output).unwrap_or_default();
    let said = said.lines().rev().take(8).collect::<Vec<_>>().join(" | ");
    let ending = match ended {
        _ if marker.exists() => Ending::Escaped,
        None => Ending::Hung,
        Some(Some(0)) => Ending::Escaped,
        Some(Some(77)) => Ending::Skipped,
        Some(_) => Ending::Held,
    };
    if confined && !gone(&fixture.policy()) {
        return (Ending::Hung, format!("a supervisor is left behind; {said}"));
    }
    assert!(!attack.needs_root || nix::unistd::geteuid().is_root(), "these tests need root");
    (ending, said)
}

fn policy(kind: Policy, programs: &Programs, program: &Path, directory: &Path, port: u16) -> Value {
    let unix = |name: &str| directory.join(name);
    let mut policy = json!({ "allow_executables": [program, programs.path("allowed"), directory.join("listed")] });
    match kind {
        Policy::Network => {
            policy["network"] = json!({
                "outbound": [
                    { "unix": unix("allowed.sock") }, { "unix": unix("allowed.dgram") },
                    { "to": "127.0.0.1", "ports": port, "protocol": "tcp" },
                    { "to": "127.0.0.1", "ports": port, "protocol": "udp" }
                ],
                "inbound": [
                    { "on": "127.0.0.1", "ports": port, "protocol": "tcp", "from": "127.0.0.1" },
                    { "on": "127.0.0.1", "ports": port, "protocol": "udp" }
                ]
            });
        }
        Policy::Users => policy["users"] = json!({ "uids": [0], "gids": [0] }),
        Policy::Exec | Policy::None => {}
    }
    policy
}

/// The exit code, `Some(None)` for a signal, `None` if it never ended.
fn wait(child: &mut Child) -> Option<Option<i32>> {
    let deadline = Instant::now() + PATIENCE;
    while Instant::now() < deadline {
        if let Some(status) = child.try_wait().unwrap() {
            return Some(status.code());
        }
        std::thread::sleep(Duration::from_millis(2));
    }
    let group = nix::unistd::Pid::from_raw(child.id() as i32);
    let _ = nix::sys::signal::killpg(group, nix::sys::signal::SIGKILL);
    let _ = child.wait();
    None
}

/// Whether no process is left that was started with this policy.
fn gone(policy: &Path) -> bool {
    let name = policy.display().to_string();
    let deadline = Instant::now() + Duration::from_secs(5);
    while Instant::now() < deadline {
        let left = fs::read_dir("/proc").unwrap().flatten().any(|process| {
            let line = fs::read(process.path().join("cmdline")).unwrap_or_default();
            String::from_utf8_lossy(&line).contains(&name)
        });
        if !left {
            return true;
        }
        std::thread::sleep(Duration::from_millis(5));
    }
    false
}

fn start_sink(kind: Sink, programs: &Programs, allowed: u16, denied: u16, marker: &Path, directory: &Path) -> Child {
    let mut command = Command::new(programs.path("sink"));
    command.arg(allowed.to_string()).arg(denied.to_string()).arg(marker).arg(directory);
    if kind == Sink::Knock {
        command.arg("knock");
    }
    let mut sink = command.stdout(Stdio::piped()).spawn().unwrap();
    let mut line = String::new();
    BufReader::new(sink.stdout.as_mut().unwrap()).read_line(&mut line).unwrap();
    assert_eq!(line, "ready\n");
    sink
}

fn two_free_ports() -> (u16, u16) {
    let (one, other) = (TcpListener::bind("127.0.0.1:0").unwrap(), TcpListener::bind("127.0.0.1:0").unwrap());
    (one.local_addr().unwrap().port(), other.local_addr().unwrap().port())
}

/// The compiled programs.
struct Programs(TempDir);

impl Programs {
    fn compile() -> Self {
        let directory = TempDir::with_prefix("callgate-attacks-").unwrap();
        fs::set_permissions(directory.path(), fs::Permissions::from_mode(0o755)).unwrap();
        let programs = Self(directory);
        for file in fs::read_dir(repository("tests/attacks")).unwrap().flatten() {
            let (source, name) = (file.path(), file.file_name().into_string().unwrap());
            let Some(name) = name.strip_suffix(".c") else { continue };
            let mut gcc = Command::new("gcc");
            gcc.args(["-std=c11", "-O1", "-Wall", "-Wextra", "-Werror"]);
            if name == "marker" {
                gcc.args(["-ffreestanding", "-fno-stack-protector", "-nostdlib", "-static-pie"]);
                gcc.arg("-o").arg(programs.path("denied")).arg(source);
            } else {
                gcc.arg("-pthread").arg("-o").arg(programs.path(name)).arg(source);
            }
            let compiled = run(&mut gcc);
            assert!(compiled.status.success(), "{}", compiled.stderr);
        }
        programs
    }

    fn path(&self, name: &str) -> PathBuf {
        self.0.path().join(name)
    }
}
