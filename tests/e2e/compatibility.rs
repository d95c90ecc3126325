//! Components that were compiled against released versions of the interface load in today's host, are told the same as then, and
//! are understood as then.

use std::fs;
use std::path::PathBuf;
use std::process::Command;

use serde_json::{Value, json};

use crate::harness::{Fixture, repository, run};

/// The directories in `tests/components`, one for each version.
fn versions() -> Vec<PathBuf> {
    let entries = fs::read_dir(repository("tests/components")).unwrap().map(|entry| entry.unwrap().path());
    let versions: Vec<PathBuf> = entries.filter(|path| path.is_dir()).collect();
    assert!(!versions.is_empty());
    versions
}

#[test]
fn a_component_of_a_released_interface_is_told_everything_and_understood() {
    for version in versions() {
        let component = version.join("witness.wasm");
        let mut command = Command::new(env!("CARGO_BIN_EXE_callgatectl"));
        command.args(["plugin", "run", "--json", "--config", r#"{"allow": ["/listed"]}"#]);
        let outcome = run(command.arg(&component).arg(version.join("events.json")));
        let expected = fs::read_to_string(version.join("verdicts.json")).unwrap();
        let (said, expected) = (lines(&outcome.stdout), lines(&expected));
        assert_eq!(said.len(), expected.len(), "{outcome:?}");
        for (said, expected) in said.iter().zip(&expected) {
            // What later versions of the tool say beside it is no matter.
            for (key, value) in expected.as_object().unwrap() {
                assert_eq!(&said[key], value, "{}: {key} of {expected}", version.display());
            }
        }
        let mut kinds: Vec<&str> = expected.iter().map(|verdict| verdict["event"].as_str().unwrap()).collect();
        kinds.dedup();
        assert!(kinds.len() >= 9, "{kinds:?}");
    }
}

#[test]
fn a_component_of_a_released_interface_governs_real_programs() {
    for version in versions() {
        let config = json!({ "allow": ["/usr/bin/bash", "/usr/bin/python3.11", "/usr/bin/true"] });
        let plugin = json!({ "name": "old", "path": "witness.wasm", "config": config });
        let fixture = Fixture::new(json!({ "plugins": [plugin] }));
        fs::copy(version.join("witness.wasm"), fixture.path("witness.wasm")).unwrap();
        let outcome = fixture.bash(
            "/bin/true; echo $?; WITNESS=here /bin/echo no; /bin/echo panic; (: > /dev/tcp/127.0.0.1/9) || echo no",
        );
        assert_eq!(outcome.stdout, "0\nno\n", "{outcome:?}");
        assert!(outcome.stderr.contains("Protocol error"), "errno 71: {outcome:?}");
        let records = fixture.records();
        let of =
            |rule: &str| records.iter().find(|record| record["rule"] == rule).unwrap_or_else(|| panic!("{records:?}"));
        let hint = of("witness.exec")["hint"].as_str().unwrap().to_owned();
        for told in [r#"Some("here")"#, "/usr/bin/bash", "Ok(\"", "Stream::"] {
            assert!(hint.contains(told), "{told}: {hint}");
        }
        of("witness.socket");
        let failure = records.iter().find(|record| record["failures"].is_array()).unwrap();
        assert_eq!(failure["failures"][0]["kind"], "panic", "{failure}");
    }
}

#[test]
fn a_configuration_is_refused_by_an_old_component_as_by_a_new_one() {
    for version in versions() {
        let plugin = json!({ "name": "old", "path": "witness.wasm", "config": { "allow": ["/x", ""] } });
        let fixture = Fixture::new(json!({ "plugins": [plugin] }));
        fs::copy(version.join("witness.wasm"), fixture.path("witness.wasm")).unwrap();
        let outcome = fixture.run(&["/bin/true"]);
        assert_eq!(outcome.code(), 125);
        for part in ["plugin \"old\": an empty path", "help: \"/bin/ls\"", "^^"] {
            assert!(outcome.stderr.contains(part), "{part}: {}", outcome.stderr);
        }
    }
}

fn lines(text: &str) -> Vec<Value> {
    text.lines().map(|line| serde_json::from_str(line).unwrap_or_else(|e| panic!("{e}: {line}"))).collect()
}
