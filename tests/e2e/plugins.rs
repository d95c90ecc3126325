//! Plugins that the executable does not know: what they may decide, and what they cannot break.

use std::fs::{self, File};
use std::io::Write;
use std::path::Path;
use std::process::{Command, Stdio};
use std::sync::OnceLock;

use serde_json::{Value, json};
use sha2::{Digest, Sha256};

use crate::harness::{CALLGATE, Fixture, Outcome, repository, run};

#[path = "../../plugins/component.rs"]
pub(crate) mod component;

/// The plugin in `tests/plugins/house-rules`, built once.
pub(crate) fn house_rules() -> &'static [u8] {
    static COMPONENT: OnceLock<Vec<u8>> = OnceLock::new();
    COMPONENT.get_or_init(|| {
        // Where the build script has built the built-in one: where the standard library must be built too, it is there.
        let target = Path::new(env!("OUT_DIR")).join("wasm");
        component::build(&repository(""), "house-rules", &target).unwrap()
    })
}

fn sha256(bytes: &[u8]) -> String {
    Sha256::digest(bytes).iter().map(|byte| format!("{byte:02x}")).collect()
}

/// A policy with these plugins, and the file of the house rules beside it. What `allowlist` allows is all of the system.
fn with(plugins: Value, more: Value) -> Fixture {
    let mut policy = json!({ "plugins": plugins });
    policy.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
    let fixture = Fixture::new(policy);
    fs::write(fixture.path("house-rules.wasm"), house_rules()).unwrap();
    fixture
}

fn allowlist() -> Value {
    json!({ "name": "allowlist", "config": { "allow_executables": ["/bin/", "/usr/bin/"] } })
}

fn house(config: Value) -> Value {
    json!({ "name": "house", "path": "house-rules.wasm", "config": config })
}

#[test]
fn a_log_that_nobody_reads_holds_nobody_up() {
    let fixture = with(json!([house(json!({ "log_at": "talk" })), allowlist()]), json!({}));
    let (reader, mut writer) = std::io::pipe().unwrap();
    let size = nix::fcntl::fcntl(&writer, nix::fcntl::FcntlArg::F_SETPIPE_SZ(4096)).unwrap();
    writer.write_all(&vec![b'x'; size as usize]).unwrap();
    let mut command = fixture.callgate();
    command.args(["/bin/bash", "-c", "for n in $(seq 300); do /bin/echo talk; done"]);
    let mut child = command.stdout(Stdio::piped()).stderr(writer).spawn().unwrap();
    drop(command);
    assert_eq!(crate::harness::wait(&mut child).code(), Some(0));
    let done = std::io::read_to_string(child.stdout.take().unwrap()).unwrap();
    assert_eq!(done, "talk\n".repeat(300));
    drop(reader);
}

/// The end of the workload waits for what was said before.
#[test]
fn what_a_plugin_says_last_is_read_by_who_reads_late() {
    let fixture = with(json!([house(json!({ "log_at": "talk" })), allowlist()]), json!({}));
    let (reader, writer) = std::io::pipe().unwrap();
    let mut command = fixture.callgate();
    command.args(["/bin/bash", "-c", "for n in $(seq 20); do /bin/echo talk; done"]);
    let mut child = command.stdout(Stdio::null()).stderr(writer).spawn().unwrap();
    drop(command);
    crate::harness::wait(&mut child);
    let said = std::io::read_to_string(File::from(std::os::fd::OwnedFd::from(reader))).unwrap();
    assert_eq!(said.lines().filter(|line| line.contains("log: ")).count(), 20, "{said}");
    assert!(said.lines().all(|line| line.starts_with("callgate: warning: ")), "{said}");
}

#[test]
fn a_plugin_that_was_compiled_apart_decides_by_its_path() {
    let mut plugin = house(json!({ "argument": "--evil" }));
    plugin["sha256"] = sha256(house_rules()).into();
    let fixture = with(json!([plugin, allowlist()]), json!({}));
    let outcome = fixture.bash("/bin/echo good; /bin/echo --evil; echo $?");
    assert_eq!(outcome.stdout, "good\n126\n", "{outcome:?}");
    let [record] = &fixture.records()[..] else { panic!("{:?}", fixture.records()) };
    assert_eq!(
        (&record["plugin"], &record["rule"], &record["hint"], &record["errno"]["name"]),
        (&json!("house"), &json!("argument"), &json!("ask the landlord"), &json!("EACCES"))
    );
}

#[test]
fn a_plugin_alone_replaces_the_built_in_one() {
    let fixture = with(json!([house(json!({ "allow": true, "file": "/bin/ls" }))]), json!({}));
    let outcome = fixture.bash("/usr/bin/id -u; /usr/bin/ls; echo $?");
    assert_eq!(outcome.stdout, "0\n126\n", "the file is denied by whatever name: {outcome:?}");
}

#[test]
fn the_built_in_plugin_is_a_component_like_any_other_and_may_stand_there_twice() {
    let fixture = Fixture::new(json!({ "plugins": [
        { "name": "by-path", "path": "allowlist.wasm", "config": { "allow_executables": ["/bin/", "/usr/bin/"] } },
        { "name": "again", "builtin": "allowlist", "config": { "deny_executables": ["/bin/ls"] } },
    ] }));
    fs::write(fixture.path("allowlist.wasm"), callgate::plugin::builtin::ALLOWLIST_COMPONENT).unwrap();
    fs::copy("/bin/true", fixture.path("true")).unwrap();
    let outcome = fixture.bash(&format!("/bin/echo on; /bin/ls; echo $?; {}; echo $?", fixture.path("true").display()));
    assert_eq!(outcome.stdout, "on\n126\n126\n", "{outcome:?}");
    let by: Vec<Value> = fixture.records().iter().map(|record| record["plugin"].clone()).collect();
    assert_eq!(by, ["again", "by-path"]);
}

#[test]
fn the_first_denial_counts_and_the_rest_is_not_asked() {
    for (first, second, by) in [
        (house(json!({ "argument": "x" })), allowlist(), "house"),
        (allowlist(), house(json!({ "argument": "x" })), "allowlist"),
    ] {
        let mut plugins = [first, second];
        for plugin in &mut plugins {
            if plugin["name"] == "allowlist" {
                plugin["config"]["deny_executables"] = json!(["/bin/echo"]);
            }
        }
        let fixture = with(json!(plugins), json!({}));
        assert_eq!(fixture.bash("/bin/echo x; echo $?").stdout, "126\n");
        let [record] = &fixture.records()[..] else { panic!("{:?}", fixture.records()) };
        assert_eq!(record["plugin"], by);
    }
}

#[test]
fn where_all_abstain_the_default_decides() {
    for (default, code, output) in [("deny", 126, ""), ("allow", 0, "good\n126\n")] {
        let fixture = with(json!([house(json!({ "argument": "--evil" }))]), json!({ "default": default }));
        let outcome = fixture.bash("/bin/echo good; /bin/echo --evil; echo $?");
        assert_eq!((outcome.code(), outcome.stdout.as_str()), (code, output), "{default}: {outcome:?}");
        let by = if default == "deny" { ("callgate", "default") } else { ("house", "argument") };
        let record = &fixture.records()[0];
        assert_eq!((record["plugin"].as_str().unwrap(), record["rule"].as_str().unwrap()), by);
    }
}

#[test]
fn what_no_plugin_asked_to_see_is_free_and_a_file_without_a_path_is_not() {
    let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let script = format!(
        "import os, socket\nsocket.create_connection(('127.0.0.1', {})); print('connected')\n\
         fd = os.memfd_create('x'); os.write(fd, open('/bin/true', 'rb').read())\n\
         try: os.execve(fd, ['true'], {{}})\nexcept PermissionError as e: print(e.strerror)",
        listener.local_addr().unwrap().port()
    );
    let fixture = with(json!([house(json!({ "allow": true }))]), json!({}));
    let outcome = fixture.run(&["/usr/bin/python3", "-c", &script]);
    assert_eq!(outcome.stdout, "connected\nPermission denied\n", "{outcome:?}");
    let [record] = &fixture.records()[..] else { panic!("{:?}", fixture.records()) };
    assert_eq!((&record["event"], &record["rule"]), (&json!("exec-fileless"), &json!("default")));

    let fixture = with(json!([house(json!({ "connections": true }))]), json!({}));
    let outcome = fixture.run(&["/usr/bin/python3", "-c", &script]);
    assert!(outcome.stderr.contains("Operation not permitted") && outcome.stdout.is_empty(), "{outcome:?}");
}

#[test]
fn a_plugin_in_dry_run_denies_nothing_and_says_what_it_would_have() {
    let mut plugin = house(json!({ "argument": "--evil" }));
    plugin["mode"] = "dry-run".into();
    let fixture = with(json!([plugin, allowlist()]), json!({}));
    assert_eq!(fixture.bash("/bin/echo --evil").stdout, "--evil\n");
    let [record] = &fixture.records()[..] else { panic!("{:?}", fixture.records()) };
    assert_eq!((&record["outcome"], &record["plugin"]), (&json!("allowed"), &json!("allowlist")));
    assert_eq!(
        (&record["candidates"][0]["plugin"], &record["candidates"][0]["rule"]),
        (&json!("house"), &json!("argument"))
    );
}

#[test]
fn facts_are_those_of_the_event() {
    let digest = sha256(&fs::read("/bin/echo").unwrap());
    for (config, line, output) in [
        (
            json!({ "sha256": digest }),
            "cp /bin/echo $D/other; /bin/true; $D/other x; echo $?; /bin/echo; echo $?",
            "126\n126\n",
        ),
        (json!({ "below": "/usr/bin/make" }), "echo 'a:; @echo made' | make -f - || echo $?", "2\n"),
        (json!({ "variable": "LD_PRELOAD" }), "/bin/echo a; LD_PRELOAD=/x /bin/echo b; echo $?", "a\n126\n"),
    ] {
        let mut all = allowlist();
        all["config"]["allow_executables"] = json!(["/**"]);
        let fixture = with(json!([house(config.clone()), all]), json!({}));
        let mut command = fixture.callgate();
        let outcome = run(command.env("D", fixture.path("")).args(["/bin/bash", "-c", line]));
        assert!(outcome.stdout.ends_with(output), "{config}: {outcome:?}");
    }
}

/// Who mounts a program over another, in mounts of its own, or has no file any more, may call it what it likes.
#[test]
fn a_process_passes_for_no_other_by_the_name_of_what_it_runs() {
    let memfd = "import os; m = os.memfd_create('env'); os.write(m, open('/bin/bash', 'rb').read()); \
                 os.execve(m, ['bash', '-c', '/bin/true; exit'], {})";
    for (line, seen) in [
        ("/usr/bin/env /bin/true".to_owned(), "/usr/bin/env"),
        (
            "unshare -m bash -c 'mount --bind $D/env /usr/bin/env; /usr/bin/env -c \"/bin/true; exit\"'".to_owned(),
            "(unreachable)/usr/bin/env",
        ),
        (
            "unshare -rm bash -c 'mount --bind $D/env /usr/bin/env; /usr/bin/env -c \"/bin/true; exit\"'".to_owned(),
            "(unreachable)/usr/bin/env",
        ),
        ("$D/env -c 'rm $D/env; /bin/true; exit'".to_owned(), "(unreachable)$D/env (deleted)"),
        (format!("/usr/bin/python3 -c \"{memfd}\""), "(unreachable)/memfd:env (deleted)"),
    ] {
        // Other files than those of the list are allowed by their digest.
        let digest = sha256(&fs::read("/bin/bash").unwrap());
        let mut all = allowlist();
        all["config"]["allow_executables"] = json!(["/**", format!("sha256:{digest}")]);
        let fixture =
            with(json!([house(json!({ "by": "/usr/bin/env" })), all]), json!({ "audit": { "decisions": "all" } }));
        fs::copy("/bin/bash", fixture.path("env")).unwrap();
        let directory = fixture.path("").display().to_string().trim_end_matches('/').to_owned();
        let mut command = fixture.callgate();
        let outcome = run(command.env("D", &directory).args(["/bin/bash", "-c", &line]));
        let [record] = &fixture
            .records()
            .into_iter()
            .filter(|record| record["file"]["path"] == "/usr/bin/true")
            .collect::<Vec<_>>()[..]
        else {
            panic!("{line}: {outcome:?} {:?}", fixture.records())
        };
        let is_it = seen == "/usr/bin/env";
        assert_eq!(record["subject"]["executable"], seen.replace("$D", &directory), "{line}: {record}");
        assert_eq!(record["outcome"], if is_it { "denied" } else { "allowed" }, "{line}: {record}");
    }
}

#[test]
fn a_variable_that_cannot_be_looked_for_is_not_taken_for_none() {
    let long = "import os; v = {'A%d' % n: 'x' * 1000 for n in range(100)}; \
                os.execve('/bin/echo', ['echo', 'long'], {**v, 'LD_PRELOAD': '/x'})";
    let plugin = house(json!({ "variable": "LD_PRELOAD" }));
    let fixture = with(json!([plugin.clone(), allowlist()]), json!({}));
    let outcome = fixture.run(&["/usr/bin/python3", "-c", long]);
    assert!(outcome.stdout.is_empty() && outcome.stderr.contains("Permission denied"), "{outcome:?}");
    let [record] = &fixture.records()[..] else { panic!("{:?}", fixture.records()) };
    let failure = &record["failures"][0];
    assert_eq!((&failure["plugin"], &failure["kind"]), (&json!("house"), &json!("facts")), "{record}");

    // What it remembers, it keeps: it has failed, but it is sound.
    let mut counting = plugin;
    (counting["config"]["most"], counting["on_failure"]) = (json!(2), json!("abstain"));
    let fixture = with(json!([counting, allowlist()]), json!({}));
    let outcome = fixture.run(&["/usr/bin/python3", "-c", long]);
    assert_eq!(outcome.stdout, "long\n", "{outcome:?}");
    let then = "import subprocess, sys; subprocess.call(['/bin/echo', 'on'], env={'A': 'x' * 70000}); \
                subprocess.call(['/bin/echo', 'more'])";
    let outcome = fixture.run(&["/usr/bin/python3", "-c", then]);
    assert!(outcome.stdout == "on\n" && outcome.stderr.contains("Permission denied"), "{outcome:?}");
}

#[test]
fn the_environment_of_who_connects_is_that_of_its_start() {
    let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let connect = format!(
        "import socket\ntry: socket.create_connection(('127.0.0.1', {})); print('connected')\n\
         except PermissionError: print('refused')",
        listener.local_addr().unwrap().port()
    );
    let fixture = with(json!([house(json!({ "connections": true, "variable": "SECRET" }))]), json!({}));
    for (name, said) in [("SECRET", "refused\n"), ("OTHER", "connected\n")] {
        let mut command = fixture.callgate();
        let outcome = run(command.env(name, "x").args(["/usr/bin/python3", "-c", &connect]));
        assert_eq!(outcome.stdout, said, "{outcome:?}");
    }
}

#[test]
fn a_plugin_chooses_the_errno_and_remembers_what_it_has_seen() {
    let fixture = with(json!([house(json!({ "most": 3, "errno": libc::EMFILE })), allowlist()]), json!({}));
    let outcome = fixture.bash("for n in 1 2 3; do /bin/echo $n; done");
    assert_eq!(outcome.stdout, "1\n2\n");
    assert!(outcome.stderr.contains("Too many open files"), "{outcome:?}");
    assert_eq!(fixture.records()[0]["errno"]["name"], "EMFILE");
}

#[test]
fn a_panic_is_recorded_with_its_message_and_a_fresh_instance_goes_on() {
    let config = json!({ "panic_at": "fire", "log_at": "count" });
    let fixture = with(json!([house(config), allowlist()]), json!({}));
    let outcome = fixture.bash("/bin/echo count; /bin/echo fire; echo $?; /bin/echo count");
    assert_eq!(outcome.stdout, "count\n126\ncount\n");
    let failure = &fixture.records()[0]["failures"][0];
    assert_eq!((&failure["plugin"], &failure["kind"]), (&json!("house"), &json!("panic")));
    let message = failure["message"].as_str().unwrap();
    assert!(message.contains("the house is on fire") && message.contains("house-rules/src/lib.rs:"), "{failure}");
    assert!(!outcome.stderr.contains('\x1b'), "colours for a pipe: {outcome:?}");
    // The plugin's own log, and that of the crates `log` and `tracing`.
    for count in ["number 2 is", "number 1 is", "log: 2", "log: 1", "tracing number=2", "tracing number=1"] {
        let line = outcome.stderr.lines().find(|line| line.contains(count));
        assert!(line.is_some_and(|line| line.contains("warning") && line.contains("house")), "{count}: {outcome:?}");
    }
}

#[test]
fn a_configuration_that_a_plugin_refuses_is_explained_in_the_policy() {
    for (config, part, hint) in [
        (json!({ "argumnt": "x" }), "there is no key \"argumnt\" here", "did you mean \"argument\"?"),
        (json!({ "argument": "" }), "an empty argument", "name one"),
        (json!({ "most": -1 }), "a number from 0 to", "not -1"),
        (json!({ "file": "/no/such/file" }), "there is no", ""),
    ] {
        let fixture = with(json!([house(config), allowlist()]), json!({}));
        let outcome = fixture.run(&["/bin/true"]);
        assert_eq!(outcome.code(), 125);
        assert!(outcome.stderr.contains("policy.json:1:") && outcome.stderr.contains('^'), "{}", outcome.stderr);
        assert!(outcome.stderr.contains(&format!("plugin \"house\": {part}")), "{}", outcome.stderr);
        assert!(outcome.stderr.contains(hint), "{}", outcome.stderr);
    }
}

/// The plugin of `tests/plugins/hostile.wat`, with these in their places.
pub fn hostile(declarations: &str, configure: &str, decide: &str) -> Vec<u8> {
    hostile_in_realloc(declarations, "", configure, decide)
}

fn hostile_in_realloc(declarations: &str, realloc: &str, configure: &str, decide: &str) -> Vec<u8> {
    let wat = fs::read_to_string(repository("tests/plugins/hostile.wat")).unwrap();
    let wat = wat.replace("(; declarations ;)", declarations).replace("(; configure ;)", configure);
    let wat = wat.replace("(; realloc ;)", realloc);
    let mut module = wat::parse_str(wat.replace("(; decide ;)", decide)).unwrap();
    let mut resolve = wit_parser::Resolve::default();
    let (package, _) = resolve.push_dir(repository("sdk/wit")).unwrap();
    let world = resolve.select_world(&[package], Some("plugin")).unwrap();
    wit_component::embed_component_metadata(&mut module, &resolve, world, wit_component::StringEncoding::UTF8).unwrap();
    wit_component::ComponentEncoder::default().module(&module).unwrap().validate(true).encode().unwrap()
}

/// Runs three programs, with a plugin that does harm at the second.
fn with_hostile(component: &[u8], on_failure: &str) -> (Fixture, Outcome) {
    let plugin = json!({
        "name": "hostile", "path": "hostile.wasm", "on_failure": on_failure, "deadline_ms": 100, "memory_mib": 8
    });
    let fixture = Fixture::new(json!({ "plugins": [plugin, allowlist()] }));
    fs::write(fixture.path("hostile.wasm"), component).unwrap();
    let outcome = fixture.bash("/bin/echo 2; echo $?; /bin/echo 3; echo $?");
    (fixture, outcome)
}

#[test]
fn whatever_a_plugin_does_the_workload_lives_on_and_the_record_names_it() {
    let abstain = "(return (i32.const 0x300))";
    let deny = |with: &str| format!("{with} (return (i32.const 0x400))");
    let many = "(local.set $event (i32.const 0)) (loop $again CALL \
                (local.set $event (i32.add (local.get $event) (i32.const 1))) \
                (br_if $again (i32.lt_u (local.get $event) (i32.const 100000))))";
    let cases: &[(&str, &str, &str, &str)] = &[
        ("trap", "", "unreachable", "trap"),
        ("division by zero", "", "(drop (i32.div_u (i32.const 1) (i32.const 0)))", "trap"),
        ("out of its memory", "", "(drop (i32.load (i32.const 0x7fffffff)))", "trap"),
        ("loop", "", "(loop $forever (br $forever))", "deadline"),
        (
            "recursion",
            "(func $deep (param i32) (result i32) (i32.add (call $deep (local.get 0)) (call $deep (local.get 0))))",
            "(drop (call $deep (i32.const 0)))",
            "stack",
        ),
        ("memory", "", "(drop (memory.grow (i32.const 1000)))", "memory"),
        ("memory bit by bit", "", "(loop $more (drop (memory.grow (i32.const 1))) (br $more))", "memory"),
        ("table", "", "(drop (table.grow $table (ref.null func) (i32.const 1000000)))", "memory"),
        ("errno 0", "", &deny("(i32.store8 (i32.const 0x420) (i32.const 1))"), "answer"),
        (
            "errno 512",
            "",
            &deny("(i32.store8 (i32.const 0x420) (i32.const 1)) (i32.store16 (i32.const 0x422) (i32.const 512))"),
            "answer",
        ),
        (
            "no verdict of the interface",
            "",
            "(i32.store8 (i32.const 0x400) (i32.const 9)) (return (i32.const 0x400))",
            "answer",
        ),
        ("not aligned", "", "(return (i32.const 0x301))", "answer"),
        ("outside of the memory", "", "(return (i32.const 0x7ffffff0))", "answer"),
        ("text outside of the memory", "", &deny("(i32.store (i32.const 0x404) (i32.const 0x7ffffff0))"), "answer"),
        ("not UTF-8", "", &deny("(i32.store8 (i32.const 0x500) (i32.const 0xff))"), "answer"),
        (
            "huge text",
            "",
            &deny(
                "(drop (memory.grow (i32.const 80))) (i32.store (i32.const 0x404) (i32.const 0x10000)) \
            (i32.store (i32.const 0x408) (i32.const 0x400000))",
            ),
            "answer",
        ),
        ("facts", "", &many.replace("CALL", "(call $ancestors (i32.const 0x600))"), "facts"),
        (
            "huge log",
            "",
            &format!(
                "(drop (memory.grow (i32.const 80))) {}",
                "(call $log (i32.const 0) (i32.const 0x10000) (i32.const 0x400000))"
            ),
            "answer",
        ),
        (
            "flood of log",
            "",
            &(many.replace("CALL", "(call $log (i32.const 0) (i32.const 0x500) (i32.const 1))") + abstain),
            "",
        ),
    ];
    // While the host writes an answer into the plugin's memory, it calls the plugin for a place.
    let wild = "(global.set $wild (i32.const 1)) (call $ancestors (i32.const 0x600))";
    let in_realloc = [
        ("a place outside of the memory", "(return (i32.const 0x7ffffff0))", "answer"),
        ("a place that is not aligned", "(return (i32.const 0x10001))", "answer"),
        ("no place", "unreachable", "trap"),
        ("no end of looking for a place", "(loop $forever (br $forever))", "deadline"),
        ("a question instead of a place", "(call $ancestors (i32.const 0x600))", "trap"),
    ];
    let in_decide =
        cases.iter().map(|(what, declarations, decide, kind)| (*what, hostile(declarations, "", decide), *kind));
    let in_realloc = in_realloc.map(|(what, realloc, kind)| (what, hostile_in_realloc("", realloc, "", wild), kind));
    for (what, component, kind) in in_decide.chain(in_realloc) {
        for (on_failure, second) in [("deny", "126"), ("abstain", "2\n0")] {
            let (fixture, outcome) = with_hostile(&component, on_failure);
            let fails = !kind.is_empty();
            let second = if fails { second } else { "2\n0" };
            assert_eq!(outcome.stdout, format!("{second}\n3\n0\n"), "{what}: {outcome:?}");
            assert!(outcome.stderr.len() < 20_000, "{what}: {} bytes of log", outcome.stderr.len());
            let records = fixture.records();
            assert_eq!(records.len(), usize::from(fails), "{what}: {records:?}");
            if let Some(record) = records.first() {
                let failure = &record["failures"][0];
                assert_eq!(
                    (&failure["plugin"], &failure["kind"]),
                    (&json!("hostile"), &json!(kind)),
                    "{what}: {failure}"
                );
                let by = if on_failure == "deny" { "hostile" } else { "allowlist" };
                assert_eq!(record["plugin"], by, "{what}");
            }
        }
    }
}

#[test]
fn a_plugin_that_does_not_start_is_a_mistake_in_the_policy() {
    let cases: &[(&str, Vec<u8>, &str)] = &[
        ("start traps", hostile("(func $bad unreachable) (start $bad)", "", ""), "does not start"),
        (
            "start loops",
            hostile("(func $bad (loop $f (br $f))) (start $bad)", "", ""),
            "did not answer in time (deadline)",
        ),
        ("configure traps", hostile("", "unreachable", ""), "does not start"),
        ("takes too much memory", hostile("(memory $big 1000)", "", ""), "memory"),
        ("a table too large", hostile("(table $big 1000000 funcref)", "", ""), "table"),
        ("says nonsense", hostile("", "(return (i32.const 0x7ffffff0))", ""), "does not start"),
        ("configure loops", hostile("", "(loop $f (br $f))", ""), "did not answer in time (deadline)"),
        ("takes too much memory in 64 bits", hostile("(memory $big i64 1000)", "", ""), "memory"),
        ("many instances", with_instances(&hostile("", "", ""), "(module)", 100), "does not start"),
        ("many memories", with_instances(&hostile("", "", ""), "(module (memory 1))", 20), "does not start"),
        ("many tables", with_instances(&hostile("", "", ""), "(module (table 1 funcref))", 30), "does not start"),
    ];
    for (what, component, part) in cases {
        let (_, outcome) = with_hostile(component, "abstain");
        assert_eq!((outcome.code(), outcome.stdout.as_str()), (125, ""), "{what}: {outcome:?}");
        assert!(outcome.stderr.contains("plugin \"hostile\"") && outcome.stderr.contains(part), "{what}: {outcome:?}");
        assert!(outcome.stderr.contains("policy.json:1:") && outcome.stderr.contains('^'), "{what}: {outcome:?}");
    }
}

/// The component with so many instances of a core module behind its own: two sections more (component model, Binary.md).
fn with_instances(component: &[u8], module: &str, count: u8) -> Vec<u8> {
    let mut sections = &component[8..];
    let mut modules = 0;
    while let [id, rest @ ..] = sections {
        modules += u8::from(*id == 1);
        let digits = rest.iter().take_while(|byte| **byte & 0x80 != 0).count() + 1;
        let size = rest[..digits].iter().rev().fold(0, |size, byte| size << 7 | usize::from(byte & 0x7f));
        sections = &rest[digits + size..];
    }
    let section = |id: u8, content: Vec<u8>| {
        let size = [content.len() as u8 & 0x7f | 0x80, (content.len() >> 7) as u8];
        [&[id], &size[..], &content].concat()
    };
    let instances = [vec![count], [0, modules, 0].repeat(count.into())].concat();
    [component, &section(1, wat::parse_str(module).unwrap()), &section(2, instances)].concat()
}

#[test]
fn a_plugin_that_looks_up_paths_without_end_takes_neither_the_memory_nor_the_time_of_others() {
    // Every path another one: a counter, seven bits of it in a byte, since the rest would be no UTF-8.
    let fresh = "(drop (memory.grow (i32.const 20))) (loop $again \
        (local.set $n (i32.add (local.get $n) (i32.const 1))) \
        (i32.store8 (i32.const 0x28000) (i32.and (local.get $n) (i32.const 0x7f))) \
        (i32.store8 (i32.const 0x28001) (i32.and (i32.shr_u (local.get $n) (i32.const 7)) (i32.const 0x7f))) \
        (i32.store8 (i32.const 0x28002) (i32.and (i32.shr_u (local.get $n) (i32.const 14)) (i32.const 0x7f))) \
        (call $canonical_path (i32.const 0x28000) (i32.const LENGTH) (i32.const 0x600)) (br $again))";
    for (length, part) in [("900000", "(deadline)"), ("4000", "looks up more paths")] {
        let component = hostile("", &fresh.replace("LENGTH", length), "");
        let plugin = json!({ "name": "hostile", "path": "hostile.wasm", "memory_mib": 8 });
        let fixture = Fixture::new(json!({ "plugins": [plugin, allowlist()] }));
        fs::write(fixture.path("hostile.wasm"), component).unwrap();
        let measure = "import resource, subprocess, sys\nsubprocess.run(sys.argv[1:])\n\
                       print(resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss // 1024)";
        let mut command = std::process::Command::new("/usr/bin/python3");
        command.args(["-c", measure, crate::harness::CALLGATE, "--policy"]).arg(fixture.policy()).arg("/bin/true");
        let outcome = run(&mut command);
        let mebibytes: u64 = outcome.stdout.trim().parse().unwrap();
        assert!(outcome.stderr.contains(part), "{length}: {outcome:?}");
        assert!(mebibytes < 400, "{length}: {mebibytes} MiB");
    }
}

#[test]
fn a_plugin_imports_nothing_but_the_interface() {
    for (import, part) in [
        (r#"(import "wasi:cli/environment@0.2.0" (instance))"#, "imports wasi:cli/environment@0.2.0"),
        (r#"(import "callgate:policy/host@0.2.0" (instance))"#, "imports callgate:policy/host@0.2.0"),
        (r#"(import "anything" (func))"#, "imports anything"),
        (r#"(import "callgate:policy/host@0.1.0" (instance (export "exit" (func))))"#, "is no plugin of"),
        ("", "is no plugin of"),
    ] {
        let component = wat::parse_str(format!("(component {import})")).unwrap();
        let (_, outcome) = with_hostile(&component, "abstain");
        assert_eq!(outcome.code(), 125, "{outcome:?}");
        assert!(outcome.stderr.contains(part), "{part}: {}", outcome.stderr);
    }
}

#[test]
fn a_file_that_is_not_the_one_that_the_policy_means_is_refused() {
    let mut plugin = house(json!({}));
    plugin["sha256"] = "00".repeat(32).into();
    let fixture = with(json!([plugin, allowlist()]), json!({}));
    let outcome = fixture.run(&["/bin/true"]);
    assert_eq!(outcome.code(), 125);
    assert!(outcome.stderr.contains(&format!("if this is the plugin you mean, write \"{}\"", sha256(house_rules()))));
}

#[test]
fn compiled_plugins_are_believed_only_where_the_workload_cannot_write() {
    let fixture = with(json!([allowlist(), house(json!({ "argument": "--evil" }))]), json!({}));
    let cache = fixture.path("cache");
    let compiled =
        run(Command::new(CALLGATE).args(["compile", "--policy"]).arg(fixture.policy()).arg("--cache").arg(&cache));
    assert_eq!(compiled.code(), 0, "{compiled:?}");
    let file = cache.join(format!("{}.cwasm", sha256(house_rules())));
    assert_eq!(compiled.stdout, format!("{}\n", file.display()));

    let start = |of_user: bool| {
        let mut command = Command::new(if of_user { "setpriv" } else { "env" });
        if of_user {
            command.args(["--reuid=1000", "--regid=1000", "--clear-groups"]);
        }
        command.arg(CALLGATE).arg("--policy").arg(fixture.policy()).arg("--cache").arg(&cache).arg("true");
        run(command.env("CALLGATE_LOG", "info"))
    };
    std::fs::File::create(fixture.path("records")).unwrap();
    std::os::unix::fs::chown(fixture.path("records"), Some(1000), None).unwrap();
    let not_used = |outcome: &Outcome| outcome.stderr.contains("is not used");
    // Root can write everywhere. A user cannot write what is root's.
    let (by_root, by_user) = (start(false), start(true));
    assert_eq!((by_root.code(), by_user.code()), (0, 0), "{by_root:?} {by_user:?}");
    assert!(by_root.stderr.contains("stands above file permissions") && not_used(&by_root), "{by_root:?}");
    assert!(!not_used(&by_user), "{by_user:?}");
    // That it was used shows where it is no code.
    let code = std::fs::read(&file).unwrap();
    std::fs::write(&file, b"nonsense").unwrap();
    let outcome = start(true);
    assert_eq!(outcome.code(), 0, "{outcome:?}");
    assert!(not_used(&outcome), "{outcome:?}");
    std::fs::write(&file, code).unwrap();
    assert!(!not_used(&start(true)));
    std::fs::set_permissions(&cache, std::os::unix::fs::PermissionsExt::from_mode(0o777)).unwrap();
    let outcome = start(true);
    assert!(outcome.stderr.contains("may write it"), "{outcome:?}");
}
