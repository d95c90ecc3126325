//! The README's commands do what it says.

use std::fs;
use std::os::unix::fs::symlink;
use std::path::Path;
use std::process::Command;

use tempfile::TempDir;

use crate::harness::{CALLGATE, repository, run};

/// A command of a `console` block, and lines that it must print, in this order, to either stream.
struct Example {
    command: String,
    prints: Vec<String>,
}

fn examples(markdown: &str) -> Vec<Example> {
    let mut examples: Vec<Example> = Vec::new();
    let mut inside = false;
    for line in markdown.lines() {
        match line.strip_prefix("$ ") {
            _ if line.starts_with("```") => inside = line == "```console",
            Some(command) if inside => examples.push(Example { command: command.to_owned(), prints: Vec::new() }),
            None if inside && line != "…" => examples.last_mut().unwrap().prints.push(line.to_owned()),
            _ => {}
        }
    }
    examples
}

#[test]
fn every_command_of_the_readme_prints_what_it_says() {
    let text = fs::read_to_string(repository("README.md")).unwrap();
    let examples = examples(&text);
    assert!(examples.len() >= 5, "the README's examples are not found");
    let place = TempDir::new().unwrap();
    symlink(repository("policies"), place.path().join("policies")).unwrap();
    let directory = Path::new(CALLGATE).parent().unwrap().display();
    let path = format!("{directory}:{}", std::env::var("PATH").unwrap());
    for Example { command, prints } in examples {
        let at = if command.starts_with("make ") { repository("") } else { place.path().to_owned() };
        let mut bash = Command::new("bash");
        bash.args(["-c", &format!("exec 2>&1; {command}")]).current_dir(at).env("PATH", &path);
        // `make` shows what is built: the executable under test, which cargo would make anew with other features.
        let outcome = run(bash.env("CARGO", "true"));
        let mut output = outcome.stdout.as_str();
        for line in prints {
            let Some(found) = output.find(&line) else { panic!("$ {command}\nlacks {line:?} in\n{}", outcome.stdout) };
            output = &output[found + line.len()..];
        }
        if command.starts_with("make ") {
            assert_eq!(outcome.code(), 0, "{outcome:?}");
        }
    }
}
