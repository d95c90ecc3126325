//! The wrapper's command line, and the scenario that the project was made for.

use std::process::Command;

use serde_json::json;

use crate::harness::{CALLGATE, Fixture, run};

const BASH_AND_LS: &[&str] = &["/bin/bash", "/bin/ls"];

#[test]
fn what_is_listed_runs_and_what_is_not_is_denied_as_a_shell_says_it() {
    let fixture = Fixture::allowing(BASH_AND_LS);
    let outcome = fixture.bash("ls / && whoami; echo $?");
    assert_eq!(outcome.code(), 0);
    assert!(outcome.stdout.contains("etc\n") && outcome.stdout.ends_with("\n126\n"), "{outcome:?}");
    assert!(outcome.stderr.contains("whoami: Permission denied"), "{outcome:?}");
    let records = fixture.records();
    assert_eq!(records.len(), 1, "{records:?}");
    assert_eq!(records[0]["outcome"], "denied");
    assert_eq!(records[0]["errno"]["name"], "EACCES");
}

#[test]
fn a_dry_run_blocks_nothing_and_records_what_it_would_have() {
    for (flag, variable) in [(Some("--dry-run"), None), (None, Some("dry-run"))] {
        let fixture = Fixture::allowing(BASH_AND_LS);
        let mut command = fixture.callgate();
        command.args(flag).args(["bash", "-c", "whoami"]);
        if let Some(mode) = variable {
            command.env("CALLGATE_MODE", mode);
        }
        let outcome = run(&mut command);
        assert_eq!((outcome.code(), outcome.stdout.as_str()), (0, "root\n"));
        let records = fixture.records();
        assert_eq!(records.len(), 1, "{records:?}");
        assert_eq!((&records[0]["outcome"], &records[0]["mode"]), (&json!("would-deny"), &json!("dry-run")));
    }
}

#[test]
fn a_locked_mode_is_not_loosened_from_outside() {
    let policy = json!({ "allow_executables": BASH_AND_LS, "mode": "enforce", "lock_mode": true });
    let fixture = Fixture::new(policy);
    for flag in [None, Some("--dry-run")] {
        let mut command = fixture.callgate();
        let outcome = run(command.env("CALLGATE_MODE", "dry-run").args(flag).args(["bash", "-c", "whoami"]));
        assert_eq!(outcome.code(), 126);
        assert!(outcome.stderr.contains("the policy locks it"), "{outcome:?}");
    }
}

#[test]
fn the_command_may_follow_run_or_stand_alone_and_keeps_its_own_options() {
    let fixture = Fixture::allowing(&["/bin/echo", "/bin/bash"]);
    for before in [&["run", "--"][..], &["run"], &["--"], &[]] {
        let outcome = run(fixture.callgate().args(before).args(["echo", "--policy", "x", "--", "run"]));
        assert_eq!(outcome.stdout, "--policy x -- run\n", "{before:?}: {outcome:?}");
    }
}

#[test]
fn the_environment_names_the_policy_unless_a_flag_does() {
    let (allows, denies) = (Fixture::allowing(&["/bin/echo"]), Fixture::allowing(&["/bin/false"]));
    let by_environment = run(Command::new(CALLGATE).env("CALLGATE_POLICY", allows.policy()).args(["echo", "hello"]));
    assert_eq!(by_environment.stdout, "hello\n");
    let by_flag = run(denies.callgate().env("CALLGATE_POLICY", allows.policy()).args(["echo", "hello"]));
    assert_eq!((by_flag.code(), by_flag.stdout.as_str()), (126, ""));
}

#[test]
fn exit_statuses_are_those_of_a_shell_and_ours_is_125() {
    let fixture = Fixture::allowing(&["/bin/bash"]);
    for (line, code) in [("exit 7", 7), ("kill -TERM $$", 128 + 15), ("kill -KILL $$", 128 + 9)] {
        assert_eq!(fixture.bash(line).code(), code, "{line}");
    }
    assert_eq!(fixture.run(&["/bin/true"]).code(), 126);
    assert_eq!(fixture.run(&["no-such-command"]).code(), 127);
    assert_eq!(fixture.run(&["/no/such/command"]).code(), 127);
    for arguments in [&["--no-such-option"][..], &[], &["--policy", "/no/such/policy", "true"], &["check", "x"]] {
        let outcome = run(Command::new(CALLGATE).args(arguments));
        assert_eq!(outcome.code(), 125, "{arguments:?}: {outcome:?}");
        assert!(outcome.stderr.starts_with("callgate: "), "{arguments:?}: {outcome:?}");
    }
}

#[test]
fn the_command_gets_its_environment_but_nothing_of_ours() {
    let fixture = Fixture::allowing(&["/usr/bin/env", "/bin/bash", "/bin/cat"]);
    let mut command = fixture.callgate();
    command.env_clear().env("A", "1").env("CALLGATE_TOKEN", "secret").env("B", "2").env("CALLGATE_LOG", "info");
    let outcome = run(command.arg("/usr/bin/env"));
    assert_eq!(outcome.stdout, "A=1\nB=2\n", "{outcome:?}");
}

#[test]
fn a_mistake_is_shown_with_a_caret_and_nothing_is_started() {
    for (policy, place, part) in [
        (r#"{"allow_executables": ["bin/ls"]}"#, "policy.json:1:24", "neither an absolute path"),
        (
            r#"{"allow_executables": [], "network": {"outbound": [{"to": "10.0.0.0/33"}]}}"#,
            "policy.json:1:59",
            "10.0.0.0/33",
        ),
        (r#"{"plugins": [{"name": "allowlist", "config": {"alow": 1}}]}"#, "policy.json:1:47", "there is no key"),
        (r#"{"plugins": [{"name": "mine", "path": "nosuch.wasm"}]}"#, "policy.json:1:39", "No such file"),
    ] {
        let fixture = Fixture::allowing(&[]);
        std::fs::write(fixture.policy(), policy).unwrap();
        let outcome = run(fixture.callgate().args(["touch"]).arg(fixture.path("started")));
        assert_eq!(outcome.code(), 125);
        assert!(outcome.stderr.contains(place) && outcome.stderr.contains(part), "{}", outcome.stderr);
        assert!(outcome.stderr.lines().any(|line| line.contains("^")), "{}", outcome.stderr);
        assert!(!fixture.path("started").exists());
    }
}

#[test]
fn a_mistake_on_the_command_line_is_said_once_and_first() {
    let help = "try callgate --help";
    for (arguments, says) in [
        (&["-x"][..], "invalid option '-x'"),
        (&["reload", "--pid", "abc"], "--pid takes the number of a process, not \"abc\""),
        (&["--policy"], "missing argument for option '--policy'"),
        (&["--policy", "", "true"], "--policy is empty; it takes a path"),
        (&["--cache=", "true"], "--cache is empty; it takes a path"),
        (&["check", "x"], "check takes no argument \"x\"; name the policy with --policy"),
        (&[], "there is no command to run"),
    ] {
        let outcome = run(Command::new(CALLGATE).args(arguments));
        assert_eq!((outcome.code(), outcome.stderr), (125, format!("callgate: {says}\n{help}\n")));
    }
}

#[test]
fn a_word_that_is_neither_a_subcommand_nor_a_command_leads_to_the_help() {
    assert!(!std::path::Path::new("/etc/callgate/policy.json").exists(), "this needs a machine without a policy");
    let hint = "there is no command \"help\" either; try callgate --help";
    let says = |arguments: &[&str]| run(Command::new(CALLGATE).args(arguments)).stderr;
    assert!(says(&["help"]).contains(hint));
    for other in [&["true"][..], &["--policy", "/no/such/policy", "help"], &["/help"]] {
        assert!(!says(other).contains("--help"), "{other:?}");
    }
}

#[test]
fn a_variable_of_ours_that_means_nothing_is_a_mistake() {
    let fixture = Fixture::allowing(&["/bin/true"]);
    for (name, value, good) in [
        ("CALLGATE_MODE", "foo", false),
        ("CALLGATE_LOG", "foo", false),
        ("CALLGATE_LOG", "warn,foo", false),
        ("CALLGATE_LOG", "", true),
        ("CALLGATE_LOG", "DEBUG", true),
        ("CALLGATE_LOG", "off", true),
        ("CALLGATE_LOG", "warn,callgate=info", true),
    ] {
        let outcome = run(fixture.callgate().env(name, value).arg("true"));
        assert_eq!(outcome.code(), if good { 0 } else { 125 }, "{name}={value}: {outcome:?}");
        assert_eq!(outcome.stderr.contains(&format!("{name} is {value:?}; it takes")), !good, "{outcome:?}");
    }
}

#[test]
fn a_policy_from_a_pipe_is_refused_with_the_reason() {
    let line = format!("{CALLGATE} --policy <(echo '{{}}') true");
    let outcome = run(Command::new("bash").args(["-c", &line]));
    assert_eq!(outcome.code(), 125);
    assert!(outcome.stderr.contains("but a pipe") && outcome.stderr.contains("write it to a file"), "{outcome:?}");
}
