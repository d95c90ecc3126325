//! Real containers (podman and crun), under podman's default seccomp profile and under one with Docker's rules.

use std::fs;
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};

use serde_json::{Value, json};
use tempfile::TempDir;

use crate::harness::{CALLGATE, Outcome, eventually, finish, records_among, repository, run};

/// A root directory for containers, with callgate as `/callgate`.
struct Image {
    root: TempDir,
}

impl Image {
    /// With these programs, and this policy where callgate looks for it.
    fn new(policy: &Value, programs: &[&str]) -> Self {
        let root = TempDir::with_prefix("callgate-image-").unwrap();
        let image = Self { root };
        let made = run(Command::new(repository("tests/containers/rootfs"))
            .arg(image.root.path())
            .arg(format!("{CALLGATE}=/callgate"))
            .args(programs));
        assert!(made.status.success(), "{made:?}");
        fs::create_dir_all(image.path("etc/callgate")).unwrap();
        fs::write(image.path("etc/callgate/policy.json"), policy.to_string()).unwrap();
        image
    }

    fn path(&self, name: &str) -> PathBuf {
        self.root.path().join(name)
    }

    fn command(&self, options: &[&str], entrypoint: &[&str]) -> Command {
        let mut command = Command::new(repository("tests/containers/run"));
        command.args(options).arg(self.root.path()).arg("--").args(entrypoint);
        command
    }

    fn run(&self, options: &[&str], entrypoint: &[&str]) -> Outcome {
        run(&mut self.command(options, entrypoint))
    }
}

const CONFIGURATIONS: &[&[&str]] = &[
    &["--profile", "podman"],
    &["--profile", "podman", "--user", "1000"],
    &["--profile", "podman", "--cap-add", "SYS_PTRACE", "--read-only"],
    &["--profile", "docker"],
    &["--profile", "docker", "--user", "1000", "--read-only"],
    &["--profile", "docker", "--cap-add", "SYS_PTRACE"],
];

#[test]
fn an_allowlist_holds_in_every_kind_of_container() {
    let image = Image::new(&json!({ "allow_executables": ["/bin/bash", "/bin/ls"] }), &["bash", "ls", "whoami"]);
    for options in CONFIGURATIONS {
        let outcome = image.run(options, &["/callgate", "bash", "-c", "ls /; whoami; echo $?; exit 3"]);
        assert_eq!(outcome.code(), 3, "{options:?}: {outcome:?}");
        assert!(outcome.stdout.contains("callgate\n") && outcome.stdout.ends_with("126\n"), "{options:?}: {outcome:?}");
        assert!(outcome.stderr.contains("whoami: Permission denied"), "{options:?}: {outcome:?}");
        let records = records_among(&outcome.stderr);
        assert_eq!(records.len(), 1, "{options:?}: {outcome:?}");
        assert_eq!(records[0]["rule"], "executables.not-listed", "{options:?}");
    }
}

#[test]
fn network_rules_hold_or_the_command_is_not_started() {
    let policy = json!({
        "allow_executables": ["/bin/bash"],
        "network": { "outbound": [{ "to": "127.0.0.1", "ports": 7, "protocol": "tcp" }] }
    });
    let image = Image::new(&policy, &["bash"]);
    let line = "for port in 7 8; do (: </dev/tcp/127.0.0.1/$port) 2>&1 | sed -n '1s/.*: //p'; done";
    let line = line.replace(" | sed -n '1s/.*: //p'", "");
    for options in CONFIGURATIONS {
        let outcome = image.run(options, &["/callgate", "bash", "-c", &line]);
        if options.contains(&"docker") && !options.contains(&"--cap-add") {
            assert_eq!((outcome.code(), outcome.stdout.as_str()), (125, ""), "{options:?}: {outcome:?}");
            assert!(outcome.stderr.contains("pidfd_getfd"), "{options:?}: {outcome:?}");
            continue;
        }
        assert!(outcome.stdout.contains("/7: Connection refused"), "{options:?}: {outcome:?}");
        assert!(outcome.stdout.contains("/8: Operation not permitted"), "{options:?}: {outcome:?}");
        assert_eq!(records_among(&outcome.stderr).len(), 1, "{options:?}: {outcome:?}");
    }
}

#[test]
fn a_container_with_nothing_but_callgate_a_policy_and_the_command_works() {
    let fixture = crate::harness::Fixture::allowing(&[]);
    let source = r#"
        #include <errno.h>
        #include <stdio.h>
        #include <unistd.h>
        int main(int n, char **v) {
            if (n > 1) { execl(v[1], v[1], NULL); printf("%d\n", errno); return 5; }
            puts("hello");
            return 4;
        }"#;
    let program = fixture.compile("command", source, &["-static"]);
    let (allowed, denied) = (format!("{}=/command", program.display()), format!("{}=/other", program.display()));
    let image = Image::new(&json!({ "allow_executables": ["/command"] }), &[&allowed, &denied]);
    for options in CONFIGURATIONS {
        let outcome = image.run(options, &["/callgate", "/command", "/command"]);
        assert_eq!((outcome.code(), outcome.stdout.as_str()), (4, "hello\n"), "{options:?}: {outcome:?}");
        let outcome = image.run(options, &["/callgate", "/command", "/other"]);
        assert_eq!((outcome.code(), outcome.stdout.as_str()), (5, "13\n"), "{options:?}: {outcome:?}");
    }
}

#[test]
fn as_the_first_process_it_reaps_orphans_and_forwards_signals() {
    let image = Image::new(&json!({ "allow_executables": ["/bin/bash", "/bin/sleep"] }), &["bash", "sleep"]);
    // Each subshell leaves an orphan behind; afterwards none may be left, dead or alive.
    let orphans = "for i in $(seq 300); do (sleep 0 &) ; done".replace("$(seq 300)", "{1..300}");
    let count = "while set -- /proc/[0-9]*; [ $# -gt 2 ]; do :; done; echo $#";
    let outcome = image.run(&[], &["/callgate", "bash", "-c", &format!("{orphans}; {count}")]);
    assert_eq!((outcome.code(), outcome.stdout.as_str()), (0, "2\n"), "{outcome:?}");

    let trap = "trap 'exit 9' TERM; echo ready; while :; do sleep 0.05; done";
    let mut child = started(image.command(&[], &["/callgate", "bash", "-c", trap]));
    let mut line = String::new();
    std::io::BufRead::read_line(&mut std::io::BufReader::new(child.stdout.as_mut().unwrap()), &mut line).unwrap();
    assert_eq!(line, "ready\n");
    nix::sys::signal::kill(nix::unistd::Pid::from_raw(child.id() as i32), nix::sys::signal::SIGTERM).unwrap();
    assert_eq!(finish(child).code(), 9);
}

/// The scenario that the project was made for: a web application that exposes a shell, and three lines of a Dockerfile.
#[test]
fn a_shell_in_a_browser_is_confined() {
    let policy = json!({ "allow_executables": ["/usr/bin/shellinaboxd", "/bin/bash", "/bin/ls", "/bin/cat"] });
    let pam = TempDir::new().unwrap();
    fs::write(
        pam.path().join("pam"),
        "auth required pam_permit.so\naccount required pam_permit.so\nsession required pam_permit.so\n",
    )
    .unwrap();
    let pam = format!("{}=/etc/pam.d/shellinabox", pam.path().join("pam").display());
    let permit = "/usr/lib/x86_64-linux-gnu/security/pam_permit.so";
    let image = Image::new(&policy, &["shellinaboxd", "bash", "ls", "cat", "whoami", &pam, permit]);
    let port = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
    let (number, service) = (port.to_string(), format!("/:{}:{}:/:/bin/bash", 0, 0));
    let options = ["--network=host", "--profile", "docker", "--cap-add", "SYS_PTRACE"];
    let entrypoint =
        ["/callgate", "shellinaboxd", "--disable-ssl", "--localhost-only", "--port", &number, "--service", &service];
    let mut server = started(image.command(&options, &entrypoint));
    eventually("the web application listens", || std::net::TcpStream::connect(("127.0.0.1", port)).is_ok());
    let outcome = run(Command::new(repository("tests/containers/shellinabox_client.py"))
        .arg(format!("http://127.0.0.1:{port}/"))
        .args(["ls /", "whoami", "exit"]));
    let _ = nix::sys::signal::kill(nix::unistd::Pid::from_raw(server.id() as i32), nix::sys::signal::SIGTERM);
    assert!(outcome.stdout.contains("callgate") && outcome.stdout.contains("etc"), "{outcome:?}");
    assert!(outcome.stdout.contains("whoami: Permission denied"), "{outcome:?}");
    let _ = crate::harness::wait(&mut server);
    let log = finish(server);
    assert!(records_among(&log.stderr).iter().any(|record| record["file"]["path"] == "/usr/bin/whoami"), "{log:?}");
}

fn started(mut command: Command) -> Child {
    command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap()
}
