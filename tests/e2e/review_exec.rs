//! What an attacker with fresh eyes tried against execs and the supervisor.

use std::fs;

use crate::harness::{Fixture, repository};

use serde_json::json;

fn program(fixture: &Fixture, name: &str) -> String {
    let source = fs::read_to_string(repository(&format!("tests/e2e/programs/{name}.c"))).unwrap();
    fixture.compile(name, &source, &["-pthread"]).display().to_string()
}

/// A fixture that allows a program of `programs/`, which lies in the fixture's own directory.
fn allowing(name: &str, more: &[&str]) -> (Fixture, String) {
    let fixture = Fixture::allowing(&[]);
    let program = program(&fixture, name);
    let allowed: Vec<&str> = [program.as_str()].iter().chain(more).copied().collect();
    let records = format!("file:{}", fixture.path("records").display());
    let policy = json!({ "allow_executables": allowed, "audit": { "sinks": [records] } });
    fs::write(fixture.policy(), policy.to_string()).unwrap();
    (fixture, program)
}

#[test]
fn threads_of_the_command_that_execute_at_once_hold_nobody_up() {
    let (fixture, program) = allowing("exec_at_once", &[]);
    let outcome = fixture.run(&[program.as_str(), "300"]);
    assert_eq!(outcome.code(), 42, "{outcome:?}");
}
