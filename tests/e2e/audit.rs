//! The audit log: what is in a record, where records go, and what a bad sink does to the workload.

use std::fs::{self, File};
use std::io::{BufRead, BufReader, Read, Write};
use std::os::fd::{AsRawFd, OwnedFd};
use std::os::unix::net::{UnixDatagram, UnixListener};
use std::process::{Command, Stdio};
use std::time::Instant;

use serde_json::{Value, json};

use crate::harness::{CALLGATE, Fixture, Lines, Outcome, eventually, finish, records_among, run, wait};
use crate::launch::children;

/// Allows bash, with this audit section.
fn auditing(audit: Value) -> Fixture {
    Fixture::new(json!({ "allow_executables": ["/bin/bash", "/bin/true"], "audit": audit }))
}

#[test]
fn a_record_says_who_did_what_under_whom_and_what_would_allow_it() {
    let fixture = auditing(json!({}));
    fixture.bash("cd /usr; (bash -c '/bin/ls --all /; true'); true");
    let records = fixture.records();
    let [record] = records.as_slice() else { panic!("{records:?}") };
    assert_eq!(record["schema"], "callgate.record/1");
    assert_eq!((&record["record"], &record["mode"]), (&json!(1), &json!("enforce")));
    assert!(record["time"].as_str().unwrap().ends_with('Z'));
    assert_eq!((&record["event"], &record["requested"]), (&json!("exec"), &json!("/bin/ls")));
    assert_eq!(record["file"]["path"], "/usr/bin/ls");
    assert_eq!(record["arguments"], json!(["/bin/ls", "--all", "/"]));
    assert_eq!(record["directory"], "/usr");
    assert_eq!((&record["subject"]["executable"], &record["subject"]["uid"]), (&json!("/usr/bin/bash"), &json!(0)));
    let ancestors = record["ancestors"].as_array().unwrap();
    assert_eq!(ancestors.last().unwrap()["executable"], "/usr/bin/bash", "{ancestors:?}");
    assert_eq!(record["subject"]["parent"], ancestors[0]["pid"]);
    assert_eq!((&record["verdict"], &record["outcome"]), (&json!("deny"), &json!("denied")));
    assert_eq!((&record["plugin"], &record["rule"]), (&json!("allowlist"), &json!("executables.not-listed")));
    assert_eq!(record["hint"], r#"add "/usr/bin/ls" to allow_executables"#);
    assert_eq!(record["errno"], json!({ "number": 13, "name": "EACCES" }));
    assert!(record["took_us"].as_f64().unwrap() > 0.0);
}

#[test]
fn allowed_calls_are_recorded_on_request_and_records_are_numbered() {
    let fixture = auditing(json!({ "decisions": "all" }));
    fixture.bash("/bin/true; /bin/false; /bin/true");
    let records = fixture.records();
    let outcomes: Vec<_> = records.iter().map(|record| record["outcome"].as_str().unwrap()).collect();
    assert_eq!(outcomes, ["allowed", "allowed", "denied", "allowed"]);
    for (index, record) in records.iter().enumerate() {
        assert_eq!((&record["record"], &record["sequence"]), (&json!(index + 1), &json!(index + 1)));
    }
    assert_eq!(records[0]["rule"], "executables.listed");
}

#[test]
fn by_default_records_go_to_standard_error_and_never_to_standard_output() {
    let fixture = auditing(json!({ "sinks": ["stderr"] }));
    let outcome = fixture.bash("/bin/false; echo out");
    assert_eq!(outcome.stdout, "out\n");
    assert_eq!(outcome.stderr.lines().filter(|line| line.starts_with(r#"{"schema""#)).count(), 1, "{outcome:?}");
}

#[test]
fn on_a_terminal_a_person_reads_one_line_with_a_hint() {
    let fixture = auditing(json!({ "sinks": ["stderr"] }));
    // script(1) gives the command a terminal.
    let line = format!("{} -p {} bash -c /bin/false", CALLGATE, fixture.policy().display());
    let outcome = run(std::process::Command::new("script").args(["-qec", &line, "/dev/null"]));
    let told =
        outcome.stdout.lines().find(|line| line.starts_with("callgate: ")).unwrap_or_else(|| panic!("{outcome:?}"));
    assert!(told.contains("denied") && told.contains("exec of /usr/bin/false by bash["), "{told:?}");
    assert!(told.contains(r#"to allow it, add "/usr/bin/false" to allow_executables"#), "{told:?}");
    assert!(!outcome.stdout.contains("schema"), "{outcome:?}");
}

#[test]
fn every_sink_gets_every_record() {
    let fixture = auditing(json!({}));
    let (stream, datagram) = (fixture.path("stream"), fixture.path("datagram"));
    let listener = UnixListener::bind(&stream).unwrap();
    let socket = UnixDatagram::bind(&datagram).unwrap();
    let (mut from_fd, to_fd) = std::io::pipe().unwrap();
    nix::fcntl::fcntl(&to_fd, nix::fcntl::FcntlArg::F_SETFD(nix::fcntl::FdFlag::empty())).unwrap();
    let number = to_fd.as_raw_fd();
    let policy = json!({
        "allow_executables": ["/bin/bash", "/bin/ls"],
        "audit": { "sinks": [
            format!("file:{}", fixture.path("a").display()),
            { "to": format!("file:{}", fixture.path("b").display()), "format": "text" },
            format!("unix:{}", stream.display()), format!("unix:{}", datagram.display()), format!("fd:{number}")
        ]}
    });
    fs::write(fixture.policy(), policy.to_string()).unwrap();
    let outcome = fixture.bash(&format!("/bin/false; ls /proc/self/fd/{number}"));
    assert!(outcome.stderr.contains("No such file"), "the workload has the sink's descriptor: {outcome:?}");
    drop(to_fd);
    let expected = fs::read_to_string(fixture.path("a")).unwrap();
    assert_eq!(expected.lines().count(), 1, "{expected}");
    assert!(fs::read_to_string(fixture.path("b")).unwrap().starts_with("callgate: denied exec of /usr/bin/false"));
    let mut line = String::new();
    BufReader::new(listener.accept().unwrap().0).read_line(&mut line).unwrap();
    assert_eq!(line, expected);
    let mut buffer = [0; 65536];
    let length = socket.recv(&mut buffer).unwrap();
    assert_eq!(buffer[..length], *expected.trim_end().as_bytes());
    let mut text = String::new();
    from_fd.read_to_string(&mut text).unwrap();
    assert_eq!(text, expected);
}

#[test]
fn a_file_of_records_is_for_its_owner_and_is_never_reached_through_a_link() {
    let fixture = auditing(json!({}));
    fixture.bash("/bin/false");
    let mode = std::os::unix::fs::PermissionsExt::mode(&fs::metadata(fixture.path("records")).unwrap().permissions());
    assert_eq!(mode & 0o777, 0o600);
    fs::rename(fixture.path("records"), fixture.path("elsewhere")).unwrap();
    std::os::unix::fs::symlink("elsewhere", fixture.path("records")).unwrap();
    let outcome = fixture.bash("true");
    assert_eq!(outcome.code(), 125);
    assert!(outcome.stderr.contains("cannot open the audit sink file:"), "{outcome:?}");
}

/// A collector that takes a connection and never reads.
fn stuck(fixture: &Fixture) -> UnixListener {
    UnixListener::bind(fixture.path("stuck")).unwrap()
}

fn denials(count: usize) -> String {
    // Long arguments fill the socket's buffer soon.
    format!("x={}; for ((i = 0; i < {count}; i++)); do /bin/false $x; done 2>/dev/null", "y".repeat(4000))
}

#[test]
fn a_stuck_sink_stops_nothing_and_what_was_lost_is_counted() {
    let fixture = auditing(json!({}));
    let _listener = stuck(&fixture);
    let policy = json!({
        "allow_executables": ["/bin/bash"],
        "audit": { "queue": 10, "sinks": [
            format!("unix:{}", fixture.path("stuck").display()),
            format!("file:{}", fixture.path("records").display())
        ]}
    });
    fs::write(fixture.policy(), policy.to_string()).unwrap();
    assert_eq!(fixture.bash(&format!("{}; exit 3", denials(200))).code(), 3);
    let records = fixture.records();
    let last = records.last().unwrap();
    assert_eq!(last["event"], "records-lost", "{last}");
    let lost = last["lost"].as_object().unwrap();
    let lost_by_file = lost.get(&format!("file:{}", fixture.path("records").display())).and_then(Value::as_u64);
    let lost_by_stuck = lost[&format!("unix:{}", fixture.path("stuck").display())].as_u64().unwrap();
    assert!(lost_by_stuck > 100, "{last}");
    assert_eq!(records.len() as u64 - 1 + lost_by_file.unwrap_or(0), 200);
}

#[test]
fn a_policy_can_ask_that_calls_wait_for_their_records() {
    let fixture = auditing(json!({}));
    let listener = stuck(&fixture);
    let policy = json!({
        "allow_executables": ["/bin/bash"],
        "audit": { "queue": 1, "when_full": "block", "sinks": [format!("unix:{}", fixture.path("stuck").display())] }
    });
    fs::write(fixture.policy(), policy.to_string()).unwrap();
    let mut command = fixture.callgate();
    command.args(["bash", "-c", &denials(200)]);
    let child = command.stdout(std::process::Stdio::null()).stderr(std::process::Stdio::piped()).spawn().unwrap();
    let stream = BufReader::new(listener.accept().unwrap().0);
    // Whatever was read so far, the command cannot be further ahead than queue and socket hold; in the end all is there.
    let records: Vec<Value> = stream.lines().map(|line| serde_json::from_str(&line.unwrap()).unwrap()).collect();
    assert_eq!(records.len(), 200);
    assert!(records.iter().enumerate().all(|(index, record)| record["record"] == json!(index + 1)));
    finish(child);
}

#[test]
fn a_broken_sink_stops_nothing() {
    let fixture = auditing(json!({ "sinks": ["unix:/no/such/socket", "file:/dev/full"] }));
    let started = Instant::now();
    let outcome = fixture.bash("/bin/false; exit 4");
    assert_eq!(outcome.code(), 4);
    assert!(started.elapsed().as_secs() < 10);
    let missing = auditing(json!({ "sinks": ["file:/no/such/directory/log"] }));
    assert_eq!(missing.bash("true").code(), 125);
    let missing = auditing(json!({ "sinks": ["fd:77"] }));
    assert_eq!(missing.bash("true").code(), 125);
}

/// What a run says on standard error after denials, which its own commands don't.
fn said(outcome: &Outcome) -> Vec<&str> {
    outcome.stderr.lines().filter(|line| line.starts_with("callgate: warning: ") && line.contains("record")).collect()
}

#[test]
fn what_the_only_sink_has_lost_is_said_on_standard_error_with_the_reason() {
    let full = Fixture::new(json!({ "allow_executables": [] }));
    let absent = format!("unix:{}", full.path("nobody").display());
    for (sink, why) in [(absent.as_str(), "No such file or directory"), ("file:/dev/full", "No space left on device")] {
        let fixture = auditing(json!({ "sinks": [sink] }));
        let outcome = fixture.bash(&format!("{}; echo finished; exit 3", denials(30)));
        assert_eq!((outcome.code(), outcome.stdout.as_str()), (3, "finished\n"));
        let expected = [
            format!("callgate: warning: a record cannot be written to {sink} ({why}); what is lost is counted"),
            format!("callgate: warning: 30 records did not reach {sink} ({why})"),
        ];
        assert_eq!(said(&outcome), expected);
    }
    // A sink that works gives no cause to say anything.
    let fixture = auditing(json!({}));
    assert_eq!(said(&fixture.bash(&denials(30))), [""; 0]);
}

#[test]
fn what_still_waits_for_a_sink_at_the_end_counts_as_lost() {
    let (reader, writer) = std::io::pipe().unwrap();
    nix::fcntl::fcntl(&writer, nix::fcntl::FcntlArg::F_SETFD(nix::fcntl::FdFlag::empty())).unwrap();
    let sink = format!("fd:{}", writer.as_raw_fd());
    for when_full in ["drop", "block"] {
        // Nobody reads the pipe, and the queue has room for all.
        let fixture = auditing(json!({ "sinks": [sink, "stderr"], "when_full": when_full }));
        let outcome = fixture.bash(&format!("{}; exit 3", denials(40)));
        assert_eq!(outcome.code(), 3);
        let records = records_among(&outcome.stderr);
        let (last, denied) = records.split_last().unwrap();
        assert_eq!((denied.len(), &last["event"]), (40, &json!("records-lost")), "{when_full}: {last}");
        let lost = last["lost"][&sink].as_u64().unwrap();
        assert!(lost > 10 && last["lost"].as_object().unwrap().len() == 1, "{last}");
        assert_eq!(
            said(&outcome),
            [format!("callgate: warning: {lost} records did not reach {sink} (nobody took them in time)")]
        );
    }
    drop((reader, writer));
}

#[test]
fn a_standard_error_that_is_the_lossy_sink_is_told_nothing_more() {
    let fixture = auditing(json!({ "sinks": ["stderr"] }));
    let full = File::options().write(true).open("/dev/full").unwrap();
    let line = format!("{}; exit 3", denials(30));
    let mut child = fixture.callgate().args(["bash", "-c", &line]).stderr(full).spawn().unwrap();
    assert_eq!(wait(&mut child).code(), Some(3));
    // An unread one: neither the command nor our end waits for it for long.
    let (_reader, writer) = std::io::pipe().unwrap();
    let line = format!("{}; exit 5", denials(100));
    let mut command = fixture.callgate();
    let mut child = command.args(["bash", "-c", &line]).stderr(OwnedFd::from(writer)).spawn().unwrap();
    assert_eq!(wait(&mut child).code(), Some(5));
}

#[test]
fn what_was_lost_while_the_command_ran_is_said_although_something_lives_on() {
    let fixture = Fixture::new(json!({
        "allow_executables": ["/bin/bash"], "audit": { "sinks": ["file:/dev/full"] }
    }));
    let (reader, _writer) = std::io::pipe().unwrap();
    let mut command = fixture.callgate();
    command.args(["bash", "-c", &format!("exec 4<&0; read x <&4 >/dev/null 2>&1 & {}; exit 3", denials(5))]);
    command.stdin(reader).stdout(Stdio::piped()).stderr(Stdio::piped());
    let outcome = finish(command.spawn().unwrap());
    assert_eq!(outcome.code(), 3);
    assert!(outcome.stderr.contains("5 records did not reach file:/dev/full"), "{outcome:?}");
}

#[test]
fn a_line_that_was_torn_takes_no_other_with_it() {
    let fixture = auditing(json!({}));
    let line = "for ((i = 0; i < 20; i++)); do /bin/false; done 2>/dev/null; echo tried; read x; /bin/false; exit 0";
    // A file of 4 KiB is full in the midst of a record.
    let script = format!("ulimit -S -f 4; exec {CALLGATE} -p {} bash -c '{line}'", fixture.policy().display());
    let mut command = Command::new("bash");
    command.args(["-c", &script]).stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::null());
    let mut child = command.spawn().unwrap();
    assert_eq!(Lines::of(child.stdout.take().unwrap()).next().as_deref(), Some("tried"));
    let file = fixture.path("records");
    eventually("the file is full", || fs::metadata(&file).is_ok_and(|metadata| metadata.len() == 4096));
    let torn = fs::read_to_string(&file).unwrap().lines().count();
    for process in [child.id(), children(child.id())[0]] {
        let raised = run(Command::new("prlimit").args(["--fsize=unlimited", "--pid", &process.to_string()]));
        assert_eq!(raised.code(), 0, "{raised:?}");
    }
    child.stdin.take().unwrap().write_all(b"x\n").unwrap();
    assert_eq!(wait(&mut child).code(), Some(0));
    let text = fs::read_to_string(&file).unwrap();
    let lines: Vec<&str> = text.lines().collect();
    let unreadable: Vec<usize> =
        (0..lines.len()).filter(|at| serde_json::from_str::<Value>(lines[*at]).is_err()).collect();
    assert_eq!(unreadable, [torn - 1], "{text}");
    let last = |lines: &[&str]| serde_json::from_str::<Value>(lines.last().unwrap()).unwrap();
    let lost = last(&lines);
    assert_eq!(lost["event"], "records-lost", "{text}");
    // 21 denials: all that are not there whole, and no other, are lost.
    assert_eq!(lost["lost"][format!("file:{}", file.display())], 21 - (lines.len() - 2), "{text}");

    // Nor where who tore it is no more.
    let cut = text.trim_end();
    fs::write(&file, &cut[..cut.len() - 10]).unwrap();
    fixture.bash("/bin/false");
    let text = fs::read_to_string(&file).unwrap();
    assert_eq!(last(&text.lines().collect::<Vec<_>>())["outcome"], "denied", "{text}");
}

#[test]
fn a_sink_that_cannot_be_opened_is_shown_in_the_policy_with_a_hint() {
    let fixture = Fixture::allowing(&["/bin/touch"]);
    std::os::unix::fs::symlink("elsewhere", fixture.path("link")).unwrap();
    let link = format!("file:{}", fixture.path("link").display());
    let _listener = UnixListener::bind(fixture.path("socket")).unwrap();
    let socket = format!("file:{}", fixture.path("socket").display());
    for (sink, message, hint) in [
        ("fd:0", "the command's standard input", "fd:3"),
        ("fd:1", "the command's standard output", "write \"stderr\""),
        ("fd:2", "the command's standard error", "write \"stderr\""),
        ("fd:77", "fd:77 is not an open descriptor", "77>>FILE"),
        ("file:/no/such/directory/log", "No such file or directory", "make the directory /no/such/directory first"),
        ("file:/dev/stdout", "symbolic links are not followed", "never mixed into the command's standard output"),
        ("file:/dev/stderr", "symbolic links are not followed", "write \"stderr\""),
        ("file:/dev/fd/7", "", "write \"fd:7\""),
        (&link, "symbolic links are not followed", "name the file that it leads to"),
        (&socket, "No such device or address", "for a socket write \"unix:"),
    ] {
        for long in [false, true] {
            let written = if long { json!({ "to": sink, "format": "json" }) } else { json!(sink) };
            let policy = json!({ "allow_executables": ["/bin/touch"], "audit": { "sinks": ["stderr", written] } });
            let text = policy.to_string();
            fs::write(fixture.policy(), &text).unwrap();
            let outcome = run(fixture.callgate().arg("touch").arg(fixture.path("started")));
            assert_eq!(outcome.code(), 125, "{sink}: {outcome:?}");
            let place = format!("policy.json:1:{}", text.find(&json!(sink).to_string()).unwrap() + 1);
            for part in [message, hint, &place, "^^^"] {
                assert!(outcome.stderr.contains(part), "{sink}: no {part:?} in {}", outcome.stderr);
            }
            assert!(!fixture.path("started").exists());
        }
    }
}

#[test]
fn a_descriptor_of_our_own_is_no_sink() {
    for number in 3..20 {
        let fixture = auditing(json!({ "sinks": [format!("fd:{number}")] }));
        let mut command = Command::new("python3");
        let close = "import os, sys; os.closerange(3, 256); os.execv(sys.argv[1], sys.argv[1:])";
        command.args(["-c", close, CALLGATE, "-p"]).arg(fixture.policy()).arg("true");
        let outcome = run(&mut command);
        assert_eq!(outcome.code(), 125, "{number}: {outcome:?}");
        assert!(outcome.stderr.contains("is not an open descriptor"), "{outcome:?}");
    }
}

#[test]
fn a_shared_standard_error_that_was_made_non_blocking_loses_no_record() {
    let fixture = auditing(json!({ "sinks": ["stderr"] }));
    let (reader, writer) = std::io::pipe().unwrap();
    let mut command = fixture.callgate();
    let make = "import fcntl, os; fcntl.fcntl(2, fcntl.F_SETFL, os.O_NONBLOCK | os.O_WRONLY)";
    let policy = json!({
        "allow_executables": ["/bin/bash", "/usr/bin/"], "deny_executables": ["/bin/false"], "audit": { "sinks": ["stderr"] }
    });
    fs::write(fixture.policy(), policy.to_string()).unwrap();
    let python = "/usr/bin/python3";
    command.args(["bash", "-c", &format!("{python} -c '{make}'; exec 3>&2; exec 2>/dev/null; {}", denials(100))]);
    let mut child = command.stdout(std::process::Stdio::null()).stderr(writer).spawn().unwrap();
    drop(command);
    let text = std::io::read_to_string(File::from(std::os::fd::OwnedFd::from(reader))).unwrap();
    wait(&mut child);
    assert_eq!(text.lines().filter(|line| line.contains(r#""outcome":"denied""#)).count(), 100);
}

/// Terminals obey also what JSON need not escape: the C1 set, DEL, and what turns the direction of the text.
#[test]
fn no_name_of_a_file_or_an_argument_makes_a_terminal_that_shows_the_log_do_anything() {
    const TRICK: &str = "\u{9b}2J\x7f\u{202e}gpj\u{2066}\x1b]0;x\x07\r\u{2028}";
    let fixture = Fixture::allowing(&["/bin/bash"]);
    let program = fixture.path(TRICK);
    fs::copy("/bin/true", &program).unwrap();
    for format in ["json", "text"] {
        let policy = json!({
            "allow_executables": ["/bin/bash"],
            "audit": { "sinks": [{ "to": "stderr", "format": format }] },
        });
        fs::write(fixture.policy(), policy.to_string()).unwrap();
        // bash's own complaint is not ours.
        let outcome = run(fixture
            .callgate()
            .args(["/bin/bash", "-c", "(exec \"$1\" \"$1\") 2>/dev/null; exit 0", "bash"])
            .arg(&program));
        assert_eq!(outcome.code(), 0, "{outcome:?}");
        let line = outcome.stderr.strip_suffix('\n').unwrap();
        let shown = |c: char| {
            !c.is_control() && !('\u{2028}'..='\u{202e}').contains(&c) && !('\u{2066}'..='\u{2069}').contains(&c)
        };
        assert!(line.chars().all(shown), "{format}: {line:?}");
        if format == "json" {
            let record: Value = serde_json::from_str(line).unwrap();
            assert_eq!(record["file"]["path"], program.to_str().unwrap());
            assert_eq!(record["arguments"][0], program.to_str().unwrap());
        }
    }
}

#[test]
fn a_fifo_without_a_reader_is_a_mistake_and_not_waited_for() {
    let fixture = Fixture::allowing(&["/bin/true"]);
    let fifo = fixture.path("fifo");
    nix::unistd::mkfifo(&fifo, nix::sys::stat::Mode::from_bits_truncate(0o600)).unwrap();
    let policy =
        json!({ "allow_executables": ["/bin/true"], "audit": { "sinks": [format!("file:{}", fifo.display())] } });
    fs::write(fixture.policy(), policy.to_string()).unwrap();
    let outcome = fixture.run(&["/bin/true"]);
    assert_eq!(outcome.code(), 125, "{outcome:?}");
    assert!(outcome.stderr.contains("has to have a reader") && outcome.stderr.contains('^'), "{outcome:?}");
}
