//! `callgatectl`: from an empty directory to a plugin that denies, is tested, measured, signed and shipped.

use std::fs;
use std::io::{BufRead, BufReader, Write};
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use serde_json::{Value, json};
use tempfile::TempDir;

use crate::harness::{CALLGATE, Fixture, Outcome, finish, repository, run, run_within};
use crate::plugins::house_rules;

const CALLGATECTL: &str = env!("CARGO_BIN_EXE_callgatectl");

/// A directory, in which every command is run.
struct Desk(TempDir);

impl Desk {
    /// With the plugin `house-rules.wasm`.
    fn new() -> Self {
        let desk = Self::empty();
        desk.write("house-rules.wasm", house_rules());
        desk
    }

    fn empty() -> Self {
        Self(TempDir::with_prefix("callgate-test-").unwrap())
    }

    fn path(&self, name: &str) -> PathBuf {
        self.0.path().join(name)
    }

    fn write(&self, name: &str, content: impl AsRef<[u8]>) {
        fs::write(self.path(name), content).unwrap();
    }

    fn command(&self, arguments: &[&str]) -> Command {
        let mut command = Command::new(CALLGATECTL);
        command.arg("plugin").args(arguments).current_dir(&self.0);
        // Where the build script has built the built-in plugin: most of what a plugin needs is compiled there already.
        command.env("CARGO_TARGET_DIR", Path::new(env!("OUT_DIR")).join("wasm"));
        // Nobody's credentials.
        command.env("DOCKER_CONFIG", self.0.path().join("nowhere"));
        command
    }

    fn ctl(&self, arguments: &[&str]) -> Outcome {
        // An engine for JavaScript takes half a minute to compile, on a machine that does nothing else.
        run_within(&mut self.command(arguments), Duration::from_secs(300))
    }

    /// Runs it, and returns its output; it must end well.
    fn good(&self, arguments: &[&str]) -> String {
        let outcome = self.ctl(arguments);
        assert_eq!(outcome.code(), 0, "{arguments:?}: {outcome:?}");
        outcome.stdout
    }

    /// Runs it, and returns what it complains of; it must fail in this way.
    fn bad(&self, status: i32, arguments: &[&str]) -> String {
        let outcome = self.ctl(arguments);
        assert_eq!(outcome.code(), status, "{arguments:?}: {outcome:?}");
        assert!(!outcome.stderr.contains("panicked"), "{outcome:?}");
        outcome.stderr
    }
}

fn json_of(text: &str) -> Value {
    serde_json::from_str(text).unwrap_or_else(|e| panic!("{e}: {text}"))
}

#[test]
fn a_new_plugin_builds_passes_its_tests_and_denies_something_at_once() {
    let desk = Desk::empty();
    desk.good(&["new", "first-rule", "--sdk", repository("sdk").to_str().unwrap()]);
    // The versions that are built here, so that nothing is fetched.
    fs::copy(repository("Cargo.lock"), desk.path("first-rule/Cargo.lock")).unwrap();
    assert_eq!(desk.good(&["build", "first-rule"]), "first-rule/first-rule.wasm\n");
    let report = desk.good(&["test", "first-rule/first-rule.wasm"]);
    assert!(report.ends_with("2 passed, 0 failed\n"), "{report}");

    let policy = desk.path("first-rule/policy.json");
    let outcome =
        run(Command::new(CALLGATE).arg("--policy").arg(policy).args(["bash", "-c", "whoami; echo $?; id -u"]));
    assert!(outcome.stderr.contains("Permission denied"), "{outcome:?}");
    assert_eq!(outcome.stdout, "126\n0\n", "{outcome:?}");
}

#[test]
fn new_writes_over_nothing_and_takes_no_name_that_cargo_would_refuse() {
    let desk = Desk::empty();
    for name in ["No", "fn", "a/b", "callgate-sdk"] {
        assert!(desk.bad(1, &["new", name]).contains("cannot be a plugin's name"), "{name}");
    }
    fs::create_dir(desk.path("mine")).unwrap();
    desk.write("mine/notes", "");
    assert!(desk.bad(1, &["new", "mine"]).contains("mine is not empty"));
    assert!(desk.bad(1, &["new", "other", "--sdk", "/nowhere"]).contains("/nowhere"));
    assert!(!desk.path("other").exists());
    desk.write("Cargo.toml", "[workspace]");
    desk.good(&["new", "inner"]);
    let manifest = fs::read_to_string(desk.path("inner/Cargo.toml")).unwrap();
    assert!(manifest.contains("\n[workspace]\n") && manifest.contains("callgate-sdk = \"0.1\""), "{manifest}");
}

#[test]
fn what_cannot_be_built_is_named() {
    let desk = Desk::empty();
    assert!(desk.bad(1, &["build", "."]).contains("no crate in ."));
    desk.write("Cargo.toml", "[workspace]\nmembers = []\n");
    assert!(desk.bad(1, &["build"]).contains("Cargo.toml has no package"));
    desk.write("Cargo.toml", "[package]\nname = \n");
    assert!(desk.bad(1, &["build"]).contains("Cargo.toml"));
}

#[test]
fn inspect_says_what_a_component_is() {
    let desk = Desk::new();
    let found = json_of(&desk.good(&["inspect", "house-rules.wasm", "--json", "--config", r#"{"connections": true}"#]));
    assert_eq!(
        (&found["name"], &found["version"], &found["loads"]),
        (&json!("house-rules"), &json!("1.2.3"), &json!(true))
    );
    assert_eq!(found["subscriptions"], json!(["connect"]));
    assert_eq!(found["size"], house_rules().len());
    assert!(found["imports"].as_array().unwrap().contains(&json!("callgate:policy/host@0.1.0")), "{found}");
    let sha256 = run(Command::new("sha256sum").arg(desk.path("house-rules.wasm"))).stdout;
    assert!(sha256.starts_with(found["sha256"].as_str().unwrap()), "{found}");

    let text = desk.good(&["inspect", "house-rules.wasm"]);
    for part in ["loads here:     yes", "name:           house-rules", "give one with --config", "ms"] {
        assert!(text.contains(part), "{part:?} is not in {text}");
    }
}

#[test]
fn check_says_why_a_component_does_not_load() {
    let desk = Desk::new();
    assert_eq!(desk.good(&["check", "house-rules.wasm"]), "");
    let module = wat::parse_str("(module)").unwrap();
    desk.write("module.wasm", module);
    let stranger = wat::parse_str(r#"(component (import "wasi:cli/environment@0.2.0" (instance)))"#).unwrap();
    desk.write("stranger.wasm", stranger);
    desk.write("empty.wasm", wat::parse_str("(component)").unwrap());
    desk.write("text.wasm", "hello");
    for (file, part) in [
        ("module.wasm", "module.wasm: a core module, not a component"),
        ("stranger.wasm", "stranger.wasm imports wasi:cli/environment@0.2.0"),
        ("empty.wasm", "empty.wasm is no plugin of callgate:policy@0.1"),
        ("text.wasm", "text.wasm: not webassembly"),
        ("nowhere.wasm", "cannot read nowhere.wasm"),
    ] {
        let said = desk.bad(1, &["check", file]);
        assert!(said.contains(part), "{file}: {said}");
    }
    let found = desk.ctl(&["inspect", "stranger.wasm", "--json"]);
    assert_eq!(found.code(), 1);
    assert_eq!(json_of(&found.stdout)["imports"], json!(["wasi:cli/environment@0.2.0"]));
    let said = desk.bad(1, &["check", "house-rules.wasm", "--config", r#"{"most": "many"}"#]);
    assert!(said.contains("--config:1:10") && said.contains('^'), "{said}");
    desk.write("config.json", "{\n  \"argumen\": \"x\"\n}");
    let said = desk.bad(1, &["check", "house-rules.wasm", "--config", "config.json"]);
    assert!(said.contains("config.json:2:3") && said.contains("did you mean \"argument\"?"), "{said}");
}

#[test]
fn run_prints_a_verdict_for_each_event() {
    let desk = Desk::new();
    desk.write(
        "events.json",
        r#"{"event": "exec", "file": {"path": "/bin/ls"}}
           {"event": "exec", "file": {"path": "/bin/ls"}, "arguments": ["ls", "--evil"],
            "facts": {"ancestors": [{"executable": "/usr/sbin/nginx"}]}}
           {"event": "connect", "address": {"family": "ipv4", "ip": "192.0.2.1", "port": 1}}"#,
    );
    let config = r#"{"argument": "--evil", "errno": 2}"#;
    let text = desk.good(&["run", "house-rules.wasm", "events.json", "--config", config]);
    let lines: Vec<&str> = text.lines().collect();
    assert_eq!(lines.len(), 3, "{text}");
    assert!(lines[0].starts_with("line 1: exec of /bin/ls by bash[100] (uid 0): abstain ("), "{text}");
    assert!(lines[1].starts_with("line 2: exec of /bin/ls by bash[100] (uid 0): deny [argument]: number 2"), "{text}");
    assert!(lines[1].contains("; to allow it, ask the landlord (") && lines[1].ends_with(" µs)"), "{text}");
    assert!(lines[2].contains("abstain: it did not subscribe"), "{text}");

    let json = desk.good(&["run", "house-rules.wasm", "events.json", "--json", "--config", config]);
    let lines: Vec<Value> = json.lines().map(json_of).collect();
    assert_eq!((&lines[1]["verdict"], &lines[1]["errno"], &lines[1]["line"]), (&json!("deny"), &json!(2), &json!(2)));
    assert!(lines[1]["took_us"].as_f64().unwrap() > 0.0, "{json}");

    let config = r#"{"below": "/usr/sbin/nginx"}"#;
    let text = desk.good(&["run", "house-rules.wasm", "events.json", "--config", config]);
    assert!(text.lines().nth(1).unwrap().contains("deny [below]"), "the plugin can ask for facts: {text}");
}

#[test]
fn run_fails_if_the_plugin_does() {
    let desk = Desk::new();
    let mut child = desk
        .command(&["run", "house-rules.wasm", "-", "--config", r#"{"panic_at": "now"}"#])
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    let event = r#"{"event": "exec", "file": {"path": "/bin/ls"}, "arguments": ["now"]}"#;
    child.stdin.take().unwrap().write_all(event.as_bytes()).unwrap();
    let outcome = finish(child);
    assert_eq!(outcome.code(), 1, "{outcome:?}");
    assert!(outcome.stdout.contains("fail [panic]: panicked at ") && outcome.stdout.contains("the house is on fire"));
}

#[test]
fn records_of_the_enforcer_are_taken_as_they_are() {
    let fixture = Fixture::new(json!({
        "allow_executables": ["/bin/", "/usr/bin/"], "deny_executables": ["/bin/ls"], "network": {},
        "audit": { "decisions": "all" }
    }));
    let script =
        "/bin/echo hello; /bin/ls; /usr/bin/python3 -c 'import ctypes; ctypes.CDLL(None).syscall(425, 1, 0)'; :";
    let outcome = fixture.bash(script);
    assert_eq!(outcome.code(), 0, "{outcome:?}");
    let decisions = fixture.records().iter().filter(|record| record["event"] != "call").count();
    assert!(decisions < fixture.records().len(), "a call was to be refused: {:?}", fixture.records());

    let desk = Desk::new();
    let records = fixture.path("records");
    let config = r#"{"below": "/usr/bin/bash", "argument": "hello"}"#;
    let arguments = ["run", "house-rules.wasm", records.to_str().unwrap(), "--json", "--config", config];
    let outcome = desk.ctl(&arguments);
    assert_eq!(outcome.code(), 0, "{outcome:?}");
    assert!(outcome.stderr.contains("1 records are not about events"), "{outcome:?}");
    let lines: Vec<Value> = outcome.stdout.lines().map(json_of).collect();
    assert_eq!(lines.len(), decisions, "{outcome:?}");
    let rules: Vec<&Value> = lines.iter().filter(|line| line["verdict"] == "deny").map(|line| &line["rule"]).collect();
    assert!(rules.contains(&&json!("argument")) && rules.contains(&&json!("below")), "{outcome:?}");
}

#[test]
fn a_mistake_in_an_event_has_its_file_line_and_column() {
    let desk = Desk::new();
    for (text, place, part) in [
        ("{\"event\": \"exec\",\n \"fil\": {}}", "events.json:1:1", "the key \"file\" is missing"),
        (
            "{\"event\": \"exec\", \"file\": {\"path\": \"/x\"}}\n{\"event\": \"exce\"}",
            "events.json:2:11",
            "is not one of the words",
        ),
        (
            "{\"event\": \"exec\", \"file\": {\"path\": \"/x\"},\n\"argumets\": []}",
            "events.json:2:1",
            "did you mean \"arguments\"",
        ),
        ("{\"event\": \"exec\", \"file\": {\"path\": \"/x\"}}\n{\"event\": ", "events.json:2:1", "the text ends"),
        ("[]", "events.json:1:1", "an event is an object"),
    ] {
        desk.write("events.json", text);
        let said = desk.bad(1, &["run", "house-rules.wasm", "events.json"]);
        assert!(said.contains(place) && said.contains(part) && said.contains('^'), "{text}: {said}");
    }
    desk.write("events.json", b"{\"event\": \"\xff\"}");
    assert!(desk.bad(1, &["run", "house-rules.wasm", "events.json"]).contains("events.json:1:12"));
    desk.write("events.json", "");
    assert!(desk.bad(1, &["run", "house-rules.wasm", "events.json"]).contains("no event in events.json"));
}

/// Cases of which the second fails.
fn cases(desk: &Desk) {
    let exec = |argument: &str, expect: Value| json!({ "event": "exec", "file": { "path": "/bin/x" }, "arguments": ["x", argument], "expect": expect });
    let cases = json!({ "cases": [
        { "name": "an argument is denied", "config": { "argument": "no", "errno": 7 }, "events": [
            exec("yes", json!({ "verdict": "abstain" })),
            exec("no", json!({ "verdict": "deny", "rule": "argument", "errno": 7, "reason": "number 2 breaks" })),
        ] },
        { "name": "this is wrong", "config": { "allow": true }, "events": [exec("no", json!({ "verdict": "deny" }))] },
        { "name": "a plugin may fail", "config": { "panic_at": "no" }, "events": [
            exec("no", json!({ "verdict": "fail", "rule": "panic", "reason": "on fire" })),
        ] },
        { "name": "each case has an instance of its own", "config": { "most": 1 }, "events": [
            exec("a", json!({ "verdict": "abstain" })), exec("b", json!({ "verdict": "deny", "rule": "most", "errno": 13 })),
        ] },
    ] });
    desk.write("cases.json", serde_json::to_string_pretty(&cases).unwrap());
}

#[test]
fn test_compares_verdicts_with_what_they_should_be() {
    let desk = Desk::new();
    cases(&desk);
    let outcome = desk.ctl(&["test", "house-rules.wasm"]);
    assert_eq!(outcome.code(), 1, "{outcome:?}");
    assert!(outcome.stdout.contains("FAILED this is wrong\n       event 1 (exec): expected deny, got allow [guest]\n"));
    assert!(outcome.stdout.ends_with("3 passed, 1 failed\n"), "{outcome:?}");

    let tap = desk.ctl(&["test", "house-rules.wasm", "cases.json", "--format", "tap"]).stdout;
    assert!(tap.starts_with("TAP version 14\n1..4\nok 1 - an argument is denied\nnot ok 2 - this is wrong\n"), "{tap}");
    let json = json_of(&desk.ctl(&["test", "house-rules.wasm", "--format", "json"]).stdout);
    assert_eq!((&json["passed"], &json["failed"]), (&json!(3), &json!(1)));
    let junit = desk.ctl(&["test", "house-rules.wasm", "--format", "junit"]).stdout;
    let read = "import sys, xml.etree.ElementTree as e\n\
                print([(c.get('name'), len(c)) for c in e.fromstring(sys.argv[1].encode()).iter('testcase')][1])";
    assert_eq!(run(Command::new("python3").args(["-c", read, &junit])).stdout, "('this is wrong', 1)\n", "{junit}");
}

#[test]
fn a_mistake_in_the_cases_has_its_place() {
    let desk = Desk::new();
    for (text, place, part) in [
        (r#"{"cases": []}"#, "1:11", "no case"),
        (r#"{"cases": [{"name": "a", "events": []}]}"#, "1:36", "no event"),
        (r#"{"cases": [{"name": "a", "evens": []}]}"#, "1:26", "did you mean \"events\""),
        (
            r#"{"cases": [{"name": "a", "events": [{"event": "socket", "family": 2, "type": 1, "typ": 1}]}]}"#,
            "1:81",
            "there is no key",
        ),
        (
            r#"{"cases": [{"name": "a", "events": [{"event": "socket", "family": 2, "type": 1, "expect": {"verdict": "no"}}]}]}"#,
            "1:103",
            "is not one of the words",
        ),
        (r#"{"cases": [{"name": "a", "events": [{}], "deadline_ms": 0}]}"#, "1:57", "deadline of 0 ms"),
    ] {
        desk.write("cases.json", text);
        let said = desk.bad(1, &["test", "house-rules.wasm"]);
        assert!(said.contains(&format!("cases.json:{place}")) && said.contains(part), "{text}: {said}");
    }
    let wrong = r#"{"cases": [{"name": "a", "config": {"argument": ""}, "events": [{"event": "exec", "file": {"path": "/x"}}]}]}"#;
    desk.write("cases.json", wrong);
    let outcome = desk.ctl(&["test", "house-rules.wasm"]);
    assert!(outcome.stdout.contains("refuses its configuration at 1:49: an empty argument"), "{outcome:?}");
}

#[test]
fn bench_measures_and_fails_beyond_a_limit() {
    let desk = Desk::new();
    let bench = |more: &[&str]| {
        let mut arguments = vec!["bench", "house-rules.wasm", "--seconds", "0.05", "--json"];
        arguments.extend(more);
        desk.ctl(&arguments)
    };
    let outcome = bench(&["--max-p99-us", "1000000", "--max-memory-mib", "16"]);
    assert_eq!(outcome.code(), 0, "{outcome:?}");
    let measured = json_of(&outcome.stdout);
    let number = |key: &str| measured[key].as_f64().unwrap();
    assert!(number("decisions") > 10.0 && number("p50_us") > 0.0 && number("memory_kib") >= 64.0, "{measured}");
    assert!(number("p50_us") <= number("p99_us") && number("p99_us") <= number("max_us"), "{measured}");

    let outcome = bench(&["--max-p99-us", "0.001"]);
    assert_eq!(outcome.code(), 1, "{outcome:?}");
    assert!(json_of(&outcome.stdout)["exceeded"][0].as_str().unwrap().contains("the limit is 0.001 µs"), "{outcome:?}");
    let outcome = bench(&["--max-memory-mib", "1"]);
    assert_eq!(outcome.code(), 1, "{outcome:?}");
    desk.write("event.json", r#"{"event": "exec", "file": {"path": "/x"}, "arguments": ["now"]}"#);
    let outcome = bench(&["--events", "event.json", "--config", r#"{"panic_at": "now"}"#]);
    assert!(outcome.code() == 1 && outcome.stdout.contains("the plugin failed"), "{outcome:?}");
    desk.write("event.json", r#"{"event": "socket", "family": 1, "type": 1}"#);
    assert!(bench(&["--events", "event.json"]).stderr.contains("no event that house-rules.wasm subscribes to"));
}

#[test]
fn a_signature_fits_one_file_and_one_key_here_and_in_openssl() {
    let desk = Desk::new();
    desk.good(&["keygen", "mine"]);
    desk.good(&["keygen", "other"]);
    assert_eq!(fs::metadata(desk.path("mine.key")).unwrap().permissions().mode() & 0o777, 0o600);
    assert!(desk.bad(1, &["keygen", "mine"]).contains("cannot write mine.key"), "a key is never overwritten");
    assert_eq!(desk.good(&["sign", "house-rules.wasm", "--key", "mine.key"]), "house-rules.wasm.sig\n");
    desk.good(&["verify", "house-rules.wasm", "--key", "mine.pub"]);
    let openssl = |arguments: &[&str]| run(Command::new("openssl").args(arguments).current_dir(&desk.0));
    let verify =
        ["pkeyutl", "-verify", "-rawin", "-pubin", "-inkey", "mine.pub", "-in", "house-rules.wasm", "-sigfile"];
    let outcome = openssl(&[&verify[..], &["house-rules.wasm.sig"]].concat());
    assert_eq!(outcome.code(), 0, "{outcome:?}");

    assert_eq!(openssl(&["genpkey", "-algorithm", "ed25519", "-out", "ssl.key"]).code(), 0);
    assert_eq!(openssl(&["pkey", "-in", "ssl.key", "-pubout", "-out", "ssl.pub"]).code(), 0);
    desk.good(&["sign", "house-rules.wasm", "--key", "ssl.key", "--signature", "ssl.sig"]);
    desk.good(&["verify", "house-rules.wasm", "--key", "ssl.pub", "--signature", "ssl.sig"]);
    let outcome =
        openssl(&["pkeyutl", "-sign", "-rawin", "-inkey", "mine.key", "-in", "house-rules.wasm", "-out", "b.sig"]);
    assert_eq!(outcome.code(), 0, "{outcome:?}");
    assert_eq!(fs::read(desk.path("b.sig")).unwrap(), fs::read(desk.path("house-rules.wasm.sig")).unwrap());

    assert!(desk.bad(1, &["verify", "house-rules.wasm", "--key", "other.pub"]).contains("not signed by other.pub"));
    let mut changed = house_rules().to_vec();
    *changed.last_mut().unwrap() ^= 1;
    desk.write("house-rules.wasm", changed);
    assert!(desk.bad(1, &["verify", "house-rules.wasm", "--key", "mine.pub"]).contains("is not signed by mine.pub"));
    desk.write("house-rules.wasm.sig", "short");
    assert!(desk.bad(1, &["verify", "house-rules.wasm", "--key", "mine.pub"]).contains("5 bytes instead of 64"));
    assert!(desk.bad(1, &["sign", "house-rules.wasm", "--key", "mine.pub"]).contains("mine.pub is no private key"));
    assert!(desk.bad(1, &["verify", "house-rules.wasm", "--key", "mine.key"]).contains("mine.key is no public key"));
}

/// A real registry on loopback.
struct Registry {
    process: Child,
    address: String,
    storage: TempDir,
}

impl Registry {
    fn start() -> Self {
        Self::with(json!({}))
    }

    /// With more in its configuration.
    fn with(more: Value) -> Self {
        let storage = TempDir::with_prefix("callgate-test-").unwrap();
        let mut config = json!({
            "version": "0.1",
            "storage": { "filesystem": { "rootdirectory": storage.path() }, "delete": { "enabled": true } },
            "http": { "addr": "127.0.0.1:0" },
            "log": { "level": "info", "formatter": "json" },
        });
        config.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
        // JSON is YAML.
        fs::write(storage.path().join("config.yml"), config.to_string()).unwrap();
        let mut process = Command::new("docker-registry")
            .arg("serve")
            .arg(storage.path().join("config.yml"))
            .env("OTEL_TRACES_EXPORTER", "none")
            .stdout(Stdio::null())
            .stderr(Stdio::piped())
            .spawn()
            .unwrap();
        let mut log = BufReader::new(process.stderr.take().unwrap());
        let address = loop {
            let mut line = String::new();
            assert_ne!(log.read_line(&mut line).unwrap(), 0, "the registry has ended");
            if let Some((_, address)) = line.split_once("listening on ") {
                break address.split('"').next().unwrap().trim().to_owned();
            }
        };
        std::thread::spawn(move || std::io::copy(&mut log, &mut std::io::sink()));
        Self { process, address, storage }
    }

    /// The file in which a blob is stored.
    fn blob(&self, digest: &str) -> PathBuf {
        let hex = digest.strip_prefix("sha256:").unwrap();
        self.storage.path().join("docker/registry/v2/blobs/sha256").join(&hex[..2]).join(hex).join("data")
    }
}

impl Drop for Registry {
    fn drop(&mut self) {
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}

#[test]
fn a_plugin_comes_back_from_a_registry_as_it_went_or_not_at_all() {
    let desk = Desk::new();
    let registry = Registry::start();
    let name = format!("{}/rules/house:1.2.3", registry.address);
    let pushed = desk.good(&["push", &name, "house-rules.wasm", "--plain-http"]);
    let (repository, digest) = pushed.trim().split_once('@').unwrap();
    assert_eq!(repository, format!("{}/rules/house", registry.address));
    for reference in [name.as_str(), pushed.trim()] {
        assert_eq!(desk.good(&["pull", reference, "-o", "back.wasm", "--plain-http"]).trim(), digest);
        assert_eq!(fs::read(desk.path("back.wasm")).unwrap(), house_rules());
        fs::remove_file(desk.path("back.wasm")).unwrap();
    }
    assert_eq!(
        desk.good(&["push", &name, "house-rules.wasm", "--plain-http"]),
        pushed,
        "the same file is the same artifact"
    );

    // What other tools see.
    let manifest = json_of(&fs::read_to_string(registry.blob(digest)).unwrap());
    assert_eq!(manifest["mediaType"], "application/vnd.oci.image.manifest.v1+json");
    assert_eq!(manifest["config"]["mediaType"], "application/vnd.wasm.config.v0+json");
    assert_eq!(manifest["layers"][0]["mediaType"], "application/wasm");
    let config = json_of(&fs::read_to_string(registry.blob(manifest["config"]["digest"].as_str().unwrap())).unwrap());
    let layer = manifest["layers"][0]["digest"].as_str().unwrap();
    assert_eq!((&config["architecture"], &config["layerDigests"]), (&json!("wasm"), &json!([layer])));
    assert_eq!(config["component"]["exports"], json!(["callgate:policy/policy@0.1.0"]));

    // A registry that somebody has been at.
    let mut changed = house_rules().to_vec();
    changed[100] ^= 1;
    fs::write(registry.blob(layer), changed).unwrap();
    let said = desk.bad(1, &["pull", &name, "-o", "back.wasm", "--plain-http"]);
    assert!(said.contains(layer) && !desk.path("back.wasm").exists(), "{said}");
    let mut other = manifest;
    other["annotations"] = json!({});
    fs::write(registry.blob(digest), other.to_string()).unwrap();
    let said = desk.bad(1, &["pull", pushed.trim(), "-o", "back.wasm", "--plain-http"]);
    assert!(said.contains(digest) && !desk.path("back.wasm").exists(), "{said}");
}

#[test]
fn a_registry_with_a_password_takes_that_of_docker_login() {
    let desk = Desk::new();
    // `open sesame`, as `htpasswd -B` writes it.
    desk.write("htpasswd", "open:$2b$05$abcdefghijklmnopqrstuuKcS.CYWVYVaLiiCKrrc0A5s3mGesJ9O\n");
    let registry =
        Registry::with(json!({ "auth": { "htpasswd": { "realm": "test", "path": desk.path("htpasswd") } } }));
    let name = format!("{}/house:1", registry.address);
    let push = |login: &str| {
        // base64 of `open:sesame` and `open:barley`
        let config = json!({ "auths": { &registry.address: { "auth": login } } });
        desk.write("config.json", config.to_string());
        run(desk.command(&["push", &name, "house-rules.wasm", "--plain-http"]).env("DOCKER_CONFIG", desk.0.path()))
    };
    assert_eq!(push("b3BlbjpzZXNhbWU=").code(), 0);
    let refused = push("b3BlbjpiYXJsZXk=");
    assert!(refused.code() == 1 && refused.stderr.contains("cannot push to"), "{refused:?}");
    let said = desk.bad(1, &["pull", &name, "-o", "back.wasm", "--plain-http"]);
    assert!(said.contains(&format!("cannot pull {name}")) && !desk.path("back.wasm").exists(), "{said}");
}

#[test]
fn what_is_no_plugin_is_neither_pushed_nor_pulled() {
    let desk = Desk::new();
    let registry = Registry::start();
    desk.write("empty.wasm", wat::parse_str("(component)").unwrap());
    let name = format!("{}/x:1", registry.address);
    assert!(desk.bad(1, &["push", &name, "empty.wasm", "--plain-http"]).contains("empty.wasm is no plugin"));
    assert!(desk.bad(1, &["pull", &name, "-o", "x.wasm", "--plain-http"]).contains(&format!("cannot pull {name}")));
    assert!(desk.bad(1, &["push", "a b", "house-rules.wasm"]).contains("\"a b\" names nothing in a registry"));
    // Nobody listens there.
    let said = desk.bad(1, &["push", "127.0.0.1:1/x:1", "house-rules.wasm", "--plain-http"]);
    assert!(said.contains("cannot push to 127.0.0.1:1/x:1"), "{said}");
}

#[test]
fn an_archive_holds_the_same_artifact_and_is_not_believed() {
    let desk = Desk::new();
    let digest = desk.good(&["save", "house-rules.wasm", "-o", "rules.tar", "--name", "house:1.2.3"]);
    assert_eq!(desk.good(&["load", "rules.tar", "-o", "back.wasm"]), digest);
    assert_eq!(fs::read(desk.path("back.wasm")).unwrap(), house_rules());
    assert_eq!(desk.good(&["load", "rules.tar", "-o", "back.wasm", "--name", "house:1.2.3"]), digest);
    let said = desk.bad(1, &["load", "rules.tar", "-o", "back.wasm", "--name", "mouse"]);
    assert!(said.contains("which one is meant? It has house:1.2.3"), "{said}");

    // Unpacked, changed and packed again, as other tools write it.
    let tar = |arguments: &[&str]| {
        let outcome = run(Command::new("tar").args(arguments).current_dir(&desk.0));
        assert_eq!(outcome.code(), 0, "{outcome:?}");
    };
    fs::create_dir(desk.path("layout")).unwrap();
    tar(&["-xf", "rules.tar", "-C", "layout"]);
    tar(&["-cf", "again.tar", "-C", "layout", "."]);
    assert_eq!(desk.good(&["load", "again.tar", "-o", "again.wasm"]), digest);
    let index = json_of(&fs::read_to_string(desk.path("layout/index.json")).unwrap());
    assert_eq!(index["manifests"][0]["digest"], digest.trim());
    let manifest = desk.path("layout/blobs").join(digest.trim().replace(':', "/"));
    let layer = json_of(&fs::read_to_string(&manifest).unwrap())["layers"][0]["digest"].as_str().unwrap().to_owned();
    desk.write(&format!("layout/blobs/{}", layer.replace(':', "/")), "something else");
    tar(&["-cf", "changed.tar", "-C", "layout", "."]);
    let said = desk.bad(1, &["load", "changed.tar", "-o", "changed.wasm"]);
    assert!(said.contains(&layer) && !desk.path("changed.wasm").exists(), "{said}");
    desk.write("noise.tar", "noise");
    assert!(desk.bad(1, &["load", "noise.tar", "-o", "x.wasm"]).contains("cannot load noise.tar"));
}

#[test]
fn arguments_that_make_no_sense_are_said_to_and_end_with_2() {
    let desk = Desk::empty();
    for (arguments, part) in [
        (&["frob"][..], "there is no subcommand \"frob\""),
        (&[], "there is no subcommand"),
        (&["run"], "it takes FILE.wasm"),
        (&["run", "x.wasm", "y", "z"], "it takes FILE.wasm"),
        (&["run", "x.wasm", "--frob"], "there is no option --frob"),
        (&["run", "x.wasm", "-x"], "there is no option -x"),
        (&["run", "x.wasm", "--json=1"], "json"),
        (&["run", "x.wasm", "--config"], "config"),
        (&["run", "x.wasm", "--deadline-ms", "0"], "--deadline-ms is \"0\"; it takes 1 to 60000"),
        (&["check", "x.wasm", "--memory-mib", "4097"], "it takes 1 to 4096"),
        (&["test", "x.wasm", "--format", "yaml"], "it takes text, json, tap or junit"),
        (&["bench", "x.wasm", "--seconds", "ten"], "--seconds is \"ten\""),
        (&["sign", "x.wasm"], "--key is missing"),
        (&["pull", "x/y:1"], "--output is missing"),
        (&["sign", "x", "--key", "a", "--key", "b"], "--key is there twice"),
    ] {
        let said = desk.bad(2, arguments);
        assert!(said.starts_with("callgatectl: ") && said.contains(part), "{arguments:?}: {said}");
    }
    for arguments in [&["--help"][..], &["plugin", "--help"], &["plugin", "test", "--help"], &["--version"]] {
        let outcome = run(Command::new(CALLGATECTL).args(arguments));
        assert_eq!((outcome.code(), outcome.stderr.as_str()), (0, ""), "{arguments:?}: {outcome:?}");
    }
    assert_eq!(run(Command::new(CALLGATECTL).arg("frob")).code(), 2);
    let help = run(Command::new(CALLGATECTL).args(["plugin", "--help"])).stdout;
    for line in help.lines().filter_map(|line| line.strip_prefix("  plugin ")) {
        let word = line.split(' ').next().unwrap();
        assert!(desk.good(&[word, "--help"]).contains(&format!("Usage: callgatectl plugin {word}")), "{word}");
    }
}

#[test]
fn a_plugin_in_c_decides_like_any_other_and_gets_nothing_of_wasi() {
    if !Path::new("/usr/include/wasm32-wasi/stdio.h").exists()
        || run(Command::new("clang").arg("--version")).code() != 0
    {
        eprintln!("skipped: there is no clang, or no wasi-libc");
        return;
    }
    let desk = Desk::empty();
    let source = repository("plugins/languages/c");
    desk.good(&["wit", "--c", "bindings"]);
    let mut clang = Command::new("clang");
    clang
        .args(["--target=wasm32-wasi", "-mexec-model=reactor", "-O2", "-Wall", "-Werror", "-Ibindings"])
        .current_dir(&desk.0);
    clang.arg(source.join("quota.c")).args([
        "bindings/plugin.c",
        "bindings/plugin_component_type.o",
        "-Wl,--strip-debug",
    ]);
    let outcome = run(clang.args(["-o", "quota.module.wasm"]));
    assert_eq!(outcome.code(), 0, "{outcome:?}");
    let module = fs::read(desk.path("quota.module.wasm")).unwrap();
    assert!(module.windows(22).any(|it| it == b"wasi_snapshot_preview1"), "the module was to want WASI");
    desk.good(&["componentize", "quota.module.wasm", "-o", "quota.wasm"]);

    let found = json_of(&desk.good(&["inspect", "quota.wasm", "--json", "--config", "3"]));
    assert_eq!(
        found["imports"].as_array().unwrap().iter().filter(|it| it.as_str().unwrap().contains("wasi")).count(),
        0
    );
    assert_eq!((&found["name"], &found["subscriptions"]), (&json!("quota"), &json!(["exec"])));
    desk.good(&["test", "quota.wasm", source.join("cases.json").to_str().unwrap()]);
    let said = desk.bad(1, &["check", "quota.wasm", "--config", "\"many\""]);
    assert!(said.contains("takes a number of programs") && said.contains("write \"config\": 100"), "{said}");

    let plugin = json!({ "name": "quota", "path": desk.path("quota.wasm"), "config": 3 });
    let fixture = Fixture::new(json!({ "default": "allow", "plugins": [plugin] }));
    let outcome = fixture.bash("/bin/echo 1; /bin/echo 2; /bin/echo 3; :");
    assert_eq!(outcome.stdout, "1\n2\n", "{outcome:?}");
    assert!(outcome.stderr.contains("Resource temporarily unavailable"), "{outcome:?}");
}

#[test]
fn a_plugin_in_javascript_decides_like_any_other() {
    let source = repository("plugins/languages/javascript");
    if !source.join("node_modules/@bytecodealliance/componentize-js").exists() {
        eprintln!("skipped: `npm install` in {} would take 400 MB", source.display());
        return;
    }
    let desk = Desk::empty();
    let mut node = Command::new("node");
    let outcome = run_within(node.arg(source.join("build.mjs")).current_dir(&desk.0), Duration::from_secs(300));
    assert_eq!(outcome.code(), 0, "{outcome:?}");
    let found = json_of(&desk.good(&["inspect", "no-words.wasm", "--json", "--memory-mib", "64"]));
    let imports = found["imports"].as_array().unwrap();
    assert!(imports.iter().all(|it| it.as_str().unwrap().starts_with("callgate:policy/")), "{found}");
    desk.good(&["test", "no-words.wasm", source.join("cases.json").to_str().unwrap()]);
}
