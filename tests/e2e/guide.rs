//! The guide of the SDK, from nothing to enforced: every step of it, as it is written.

use std::fs;
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, Instant};

use tempfile::TempDir;

use crate::harness::{CALLGATE, repository, run_within};

const FIVE_MINUTES: Duration = Duration::from_secs(300);

/// What the guide has its reader do.
#[derive(Debug, PartialEq, Eq)]
enum Step {
    /// To write a file.
    Write { file: String, content: String },
    /// To run a command, which prints these lines, in this order.
    Run { command: String, prints: Vec<String> },
}

/// A block is a file's if the paragraph before it ends in the file's name and a colon.
fn steps(markdown: &str) -> Vec<Step> {
    let (mut steps, mut lines, mut before) = (Vec::new(), markdown.lines(), "");
    while let Some(line) = lines.next() {
        if let Some(language) = line.strip_prefix("```") {
            let block: Vec<&str> = lines.by_ref().take_while(|line| *line != "```").collect();
            let named = before.strip_suffix("`:").and_then(|rest| rest.rsplit('`').next());
            match (language, named) {
                ("console", _) => steps.extend(commands(&block)),
                (_, Some(file)) => steps.push(Step::Write { file: file.to_owned(), content: block.join("\n") + "\n" }),
                _ => {}
            }
        } else if !line.is_empty() {
            before = line;
        }
    }
    steps
}

fn commands(block: &[&str]) -> Vec<Step> {
    let mut steps = Vec::new();
    for line in block {
        match (line.strip_prefix("$ "), steps.last_mut()) {
            (Some(command), _) => steps.push(Step::Run { command: command.to_owned(), prints: Vec::new() }),
            (None, Some(Step::Run { prints, .. })) if *line != "…" => prints.push((*line).to_owned()),
            _ => {}
        }
    }
    steps
}

#[test]
fn every_step_of_the_guide_does_what_it_says_within_five_minutes() {
    let guide = fs::read_to_string(repository("sdk/README.md")).unwrap();
    let steps = steps(&guide);
    let place = TempDir::with_prefix("callgate-test-").unwrap();
    symlink(repository(""), place.path().join("callgate")).unwrap();
    let mut directory = place.path().to_owned();
    let begin = Instant::now();
    let mut denied = false;
    for step in &steps {
        match step {
            Step::Write { file, content } => fs::write(directory.join(file), content).unwrap(),
            Step::Run { command, prints } => {
                let (said, at) = shell(command, &directory);
                let mut rest = said.as_str();
                for line in prints {
                    let Some(found) = rest.find(line) else { panic!("$ {command}\nlacks {line:?} in\n{said}") };
                    rest = &rest[found + line.len()..];
                }
                // The versions that are here already.
                if command.starts_with("callgatectl plugin new") {
                    fs::copy(repository("Cargo.lock"), at.join("no-miners/Cargo.lock")).unwrap();
                }
                denied |= command.starts_with("callgate --policy") && said.contains("Permission denied");
                directory = at;
            }
        }
    }
    assert!(denied, "the guide ends in no denial: {steps:?}");
    // Mostly cargo's, which compiles the SDK for the first time.
    println!("from nothing to enforced: {:?}", begin.elapsed());
    assert!(begin.elapsed() < FIVE_MINUTES, "{:?}", begin.elapsed());
}

/// What a command prints, to either stream, and the directory that the shell is in afterwards.
fn shell(command: &str, directory: &Path) -> (String, PathBuf) {
    let programs = Path::new(CALLGATE).parent().unwrap().display();
    let path = format!("{programs}:{}", std::env::var("PATH").unwrap());
    let mut bash = Command::new("bash");
    bash.args(["-c", &format!("exec 2>&1; {command}\necho; pwd")]).current_dir(directory).env("PATH", path);
    // Where the build script has built the built-in plugin: most of what a plugin needs is compiled there already.
    bash.env("CARGO_TARGET_DIR", Path::new(env!("OUT_DIR")).join("wasm"));
    let said = run_within(&mut bash, FIVE_MINUTES).stdout;
    let (said, at) = said.trim_end().rsplit_once('\n').unwrap();
    (said.to_owned(), at.into())
}

#[test]
fn blocks_are_steps_if_they_are_commands_or_have_a_files_name() {
    let text = "Write `a/b.rs`:\n\n```rust\nx\n\ny\n```\n\n```console\n$ one\nsaid\n…\nmore\n$ two\n```\n\nAn example:\n\n```rust\nz\n```\n";
    let run = |command: &str, prints: &[&str]| Step::Run {
        command: command.to_owned(),
        prints: prints.iter().map(|line| (*line).to_owned()).collect(),
    };
    let file = Step::Write { file: "a/b.rs".to_owned(), content: "x\n\ny\n".to_owned() };
    assert_eq!(steps(text), [file, run("one", &["said", "more"]), run("two", &[])]);
}
