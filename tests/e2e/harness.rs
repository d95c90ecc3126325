//! Running the built executable, and looking at what it did.

use std::ffi::OsStr;
use std::fs;
use std::io::Read;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use serde_json::{Value, json};
use tempfile::TempDir;

/// The executable under test.
pub const CALLGATE: &str = env!("CARGO_BIN_EXE_callgate");
/// No test needs so long; one that does hangs.
const PATIENCE: Duration = Duration::from_secs(60);

/// A policy in a directory of its own, whose records go to a file beside it.
pub struct Fixture {
    directory: TempDir,
}

impl Fixture {
    /// With this policy; unless it says where records go, they go to the file.
    pub fn new(mut policy: Value) -> Self {
        let directory = TempDir::with_prefix("callgate-test-").unwrap();
        // Other users must be able to run what a test puts there.
        let open = std::os::unix::fs::PermissionsExt::from_mode(0o755);
        fs::set_permissions(directory.path(), open).unwrap();
        let records = format!("file:{}", directory.path().join("records").display());
        let audit = policy.as_object_mut().unwrap().entry("audit").or_insert_with(|| json!({}));
        audit.as_object_mut().unwrap().entry("sinks").or_insert_with(|| json!([records]));
        fs::write(directory.path().join("policy.json"), policy.to_string()).unwrap();
        Self { directory }
    }

    /// With the default plugin and this list of executables.
    pub fn allowing(executables: &[&str]) -> Self {
        Self::new(json!({ "allow_executables": executables }))
    }

    /// A path in the directory.
    pub fn path(&self, name: &str) -> PathBuf {
        self.directory.path().join(name)
    }

    /// The policy's file.
    pub fn policy(&self) -> PathBuf {
        self.path("policy.json")
    }

    /// `callgate --policy …`, for a command and more options to be added.
    pub fn callgate(&self) -> Command {
        let mut command = Command::new(CALLGATE);
        command.arg("--policy").arg(self.policy());
        command
    }

    /// Runs a command under the policy.
    pub fn run<S: AsRef<OsStr>>(&self, command: &[S]) -> Outcome {
        run(self.callgate().args(command))
    }

    /// Runs a line of bash under the policy; bash has to be allowed.
    pub fn bash(&self, line: &str) -> Outcome {
        self.run(&["/bin/bash", "-c", line])
    }

    /// What the audit log says, record by record.
    pub fn records(&self) -> Vec<Value> {
        let text = fs::read_to_string(self.path("records")).unwrap_or_default();
        text.lines().map(|line| serde_json::from_str(line).unwrap_or_else(|e| panic!("{e}: {line}"))).collect()
    }

    /// Records with this outcome.
    pub fn records_of(&self, outcome: &str) -> Vec<Value> {
        self.records().into_iter().filter(|record| record["outcome"] == outcome).collect()
    }

    /// Compiles a C program into the directory.
    pub fn compile(&self, name: &str, source: &str, flags: &[&str]) -> PathBuf {
        let (c, program) = (self.path(&format!("{name}.c")), self.path(name));
        fs::write(&c, source).unwrap();
        let compiled = run(Command::new("gcc").args(["-O1", "-pthread", "-o"]).arg(&program).arg(&c).args(flags));
        assert!(compiled.status.success(), "{}", compiled.stderr);
        program
    }
}

/// What a command did.
#[derive(Debug)]
pub struct Outcome {
    pub status: ExitStatus,
    pub stdout: String,
    pub stderr: String,
}

impl Outcome {
    /// The exit code; a test whose command was killed by a signal fails here.
    pub fn code(&self) -> i32 {
        self.status.code().unwrap_or_else(|| panic!("ended by a signal: {self:?}"))
    }
}

/// Records that went to standard error. What programs write there in pieces may stand before a record on its line.
pub fn records_among(text: &str) -> Vec<Value> {
    let starts = text.match_indices(r#"{"schema""#).map(|(at, _)| at);
    starts.map(|at| serde_json::Deserializer::from_str(&text[at..]).into_iter().next().unwrap().unwrap()).collect()
}

/// Runs a command to its end, without standard input, and kills it if that takes too long.
pub fn run(command: &mut Command) -> Outcome {
    run_within(command, PATIENCE)
}

/// The same for a command that may take longer, such as a compiler on a busy machine.
pub fn run_within(command: &mut Command, patience: Duration) -> Outcome {
    command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
    finish_within(command.spawn().unwrap_or_else(|e| panic!("{command:?}: {e}")), patience)
}

/// Waits for a child with piped output to its end.
pub fn finish(child: Child) -> Outcome {
    finish_within(child, PATIENCE)
}

fn finish_within(mut child: Child, patience: Duration) -> Outcome {
    let reader = |stream: Option<Box<dyn Read + Send>>| {
        thread::spawn(move || {
            let mut text = Vec::new();
            if let Some(mut stream) = stream {
                stream.read_to_end(&mut text).unwrap();
            }
            String::from_utf8_lossy(&text).into_owned()
        })
    };
    let stdout = reader(child.stdout.take().map(|stream| Box::new(stream) as _));
    let stderr = reader(child.stderr.take().map(|stream| Box::new(stream) as _));
    let status = wait_within(&mut child, patience);
    Outcome { status, stdout: stdout.join().unwrap(), stderr: stderr.join().unwrap() }
}

/// Waits for a child, and kills it if that takes too long.
pub fn wait(child: &mut Child) -> ExitStatus {
    wait_within(child, PATIENCE)
}

fn wait_within(child: &mut Child, patience: Duration) -> ExitStatus {
    let deadline = Instant::now() + patience;
    loop {
        if let Some(status) = child.try_wait().unwrap() {
            return status;
        }
        if Instant::now() > deadline {
            let _ = child.kill();
            panic!("still running after {patience:?}");
        }
        thread::sleep(Duration::from_millis(2));
    }
}

/// Waits until something is so.
pub fn eventually(what: &str, condition: impl Fn() -> bool) {
    let deadline = Instant::now() + PATIENCE;
    while !condition() {
        assert!(Instant::now() < deadline, "never happened: {what}");
        thread::sleep(Duration::from_millis(5));
    }
}

/// A file of the repository.
pub fn repository(path: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).parent().unwrap().join(path)
}
