//! What plugins ask for may be in the workload's hands, which then keeps it: a page, a file, its attributes. Whoever is asked
//! about waits, and nobody else.

use std::fs;
use std::io::{BufRead, BufReader};
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use serde_json::{Value, json};

use crate::harness::{CALLGATE, Fixture, finish, repository};
use crate::plugins::house_rules;

/// A policy that asks for a fact and allows everything else, and the program that keeps facts.
fn asking(rule: Value) -> (Fixture, String) {
    let mut config = json!({ "allow": true });
    config.as_object_mut().unwrap().extend(rule.as_object().unwrap().clone());
    let plugin = json!({ "name": "house", "path": "house-rules.wasm", "config": config, "deadline_ms": 5000 });
    let fixture = Fixture::new(json!({ "plugins": [plugin] }));
    fs::write(fixture.path("house-rules.wasm"), house_rules()).unwrap();
    let source = fs::read_to_string(repository("tests/e2e/programs/held_facts.c")).unwrap();
    let program = fixture.compile("held_facts", &source, &[]).display().to_string();
    (fixture, program)
}

/// The rule of the house by which its plugin asks for what is held in this mode.
fn rule(mode: &str) -> Value {
    match mode {
        "environment" => json!({ "variable": "LD_PRELOAD" }),
        "digest" | "overlay" => json!({ "sha256": "0".repeat(64) }),
        "stream" => json!({ "terminal": 0 }),
        _ => json!({ "below": "/nowhere" }),
    }
}

/// How many threads of the supervisor are sent for facts.
fn errands(guardian: u32) -> usize {
    let children = fs::read_to_string(format!("/proc/{guardian}/task/{guardian}/children")).unwrap_or_default();
    let Some(supervisor) = children.split_whitespace().next() else { return 0 };
    let Ok(tasks) = fs::read_dir(format!("/proc/{supervisor}/task")) else { return 0 };
    let name = |task: &Path| fs::read_to_string(task.join("comm")).unwrap_or_default();
    tasks.filter(|task| task.as_ref().is_ok_and(|task| name(&task.path()).trim() == "callgate-errand")).count()
}

fn start(command: &mut Command) -> (Child, String) {
    let mut child = command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
    let mut said = String::new();
    let mut lines = BufReader::new(child.stdout.take().unwrap());
    while !said.contains("slowest") && !said.contains("skipped") && lines.read_line(&mut said).unwrap() > 0 {}
    (child, said)
}

#[test]
fn facts_that_a_caller_keeps_hold_up_nobody_else() {
    for mode in ["environment", "digest", "overlay", "stream", "executable"] {
        let (fixture, program) = asking(rule(mode));
        let begun = Instant::now();
        let mut command = fixture.callgate();
        let (mut child, said) = start(command.args([&program, mode, "/bin/true"]).arg(fixture.path("")));
        if said.starts_with("skipped") {
            eprintln!("{mode}: {said}");
            finish(child);
            continue;
        }
        let sent = errands(child.id());
        let took = begun.elapsed();
        drop(child.stdin.take());
        let outcome = finish(child);
        eprintln!("{mode}: {} and {sent} threads, {took:?}", said.trim());
        assert!(outcome.status.success() && said.contains("slowest"), "{mode}: {said}{outcome:?}");
        assert!(took < Duration::from_secs(20), "{mode}: {took:?}");
        let number =
            |after: &str| said.rsplit(after).next().unwrap().split(' ').next().unwrap().parse::<u64>().unwrap();
        assert!(number("slowest ") < 5000, "{mode}: {said}");
        // A machine that is so busy that a thread does not get its turn in time may refuse some.
        assert!(number("; ") <= 10, "{mode}: {said}");
        match mode {
            "stream" => assert!(sent <= 1, "{sent} threads"),
            "executable" => assert!(sent <= 1 && said.starts_with("ran\n"), "{sent} threads: {said}"),
            // Digests that are expected are taken by who has received the call.
            "digest" | "overlay" => assert!(sent <= 32, "{mode}: {sent} threads"),
            _ => assert!((1..=32).contains(&sent), "{mode}: {sent} threads"),
        }
        if mode == "environment" {
            let failed = fixture.records_of("denied");
            assert!(!failed.is_empty(), "{:?}", fixture.records());
            let failure = &failed[0]["failures"][0];
            assert_eq!((&failure["plugin"], &failure["kind"]), (&json!("house"), &json!("facts")), "{failure}");
            assert!(failure["message"].as_str().unwrap().contains("LD_PRELOAD"), "{failure}");
        }
    }
}

#[test]
fn the_first_process_of_a_namespace_ends_with_its_command_whatever_is_held() {
    for mode in ["environment", "digest"] {
        let (fixture, program) = asking(rule(mode));
        let begun = Instant::now();
        let mut command = Command::new("unshare");
        command.args(["--pid", "--fork", "--mount-proc", "--kill-child", CALLGATE, "--policy"]).arg(fixture.policy());
        let (child, said) = start(command.args([&program, mode, "/bin/true"]).arg(fixture.path("")).arg("leave"));
        let outcome = finish(child);
        assert_eq!(outcome.code(), 0, "{mode}: {said}{outcome:?}");
        assert!(begun.elapsed() < Duration::from_secs(30), "{mode}: {:?}", begun.elapsed());
    }
}

/// The digest of each of these takes a second.
#[test]
fn digests_of_large_files_hold_up_only_who_runs_them() {
    const LARGE: u64 = 511 << 20;
    const FILES: usize = 6;
    let allow = ["/bin/bash", "/bin/true", "/usr/bin/touch", &format!("sha256:{}", "0".repeat(64))];
    let fixture = Fixture::allowing(&allow);
    let make = |name: &str, length: u64| {
        fs::File::create(fixture.path(name)).unwrap().set_len(length).unwrap();
        fs::set_permissions(fixture.path(name), std::os::unix::fs::PermissionsExt::from_mode(0o755)).unwrap();
    };
    make("small", 1);
    (0..FILES).for_each(|n| make(&format!("large-{n}"), LARGE));
    // That a small one is asked for tells that others will be.
    let script = r#"
./small 2>/dev/null
for n in 0 1 2 3 4 5; do (./large-$n 2>/dev/null; touch done-$n) & done
for n in 1 2 3 4 5 6 7 8 9 10; do /bin/true; done
all=(done-*); [ -e done-5 ] || [ -e "${all[3]}" ] && echo late || echo meanwhile
wait
"#;
    let mut command = fixture.callgate();
    let outcome = crate::harness::run(command.args(["bash", "-c", script]).current_dir(fixture.path("")));
    assert_eq!((outcome.code(), outcome.stdout.as_str()), (0, "meanwhile\n"), "{outcome:?}");
    assert_eq!(fixture.records_of("denied").len(), FILES + 1);
}
