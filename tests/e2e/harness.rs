//! Running the built executable, and looking at what it did.

use std::collections::HashMap;
use std::ffi::OsStr;
use std::fs;
use std::io::{self, BufRead, BufReader, Read, Write};
use std::path::{Path, PathBuf};
use std::process::{self, Child, Command, ExitStatus, Stdio};
use std::sync::{Mutex, Once, PoisonError, mpsc};
use std::thread::{self, ThreadId};
use std::time::{Duration, Instant};

use serde_json::{Value, json};
use tempfile::TempDir;

/// The executable under test.
pub const CALLGATE: &str = env!("CARGO_BIN_EXE_callgate");
/// No command of a test needs so long; one that does hangs.
const PATIENCE: Duration = Duration::from_secs(60);
/// No test needs so long, and those that wait for a turn of theirs do not either.
const LONGEST: Duration = Duration::from_secs(900);

/// A policy in a directory of its own, whose records go to a file beside it.
pub struct Fixture {
    directory: TempDir,
}

impl Fixture {
    /// With this policy; unless it says where records go, they go to the file.
    pub fn new(mut policy: Value) -> Self {
        watch();
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
    watch();
    command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
    finish_within(command.spawn().unwrap_or_else(|e| panic!("{command:?}: {e}")), patience)
}

/// The same command with signals as they are by default: who started the tests may ignore some, as `nohup` and a shell's `&` do.
pub fn with_default_signals(command: &Command) -> Command {
    let mut env = Command::new("env");
    env.arg("--default-signal=HUP,INT,QUIT,TERM").arg(command.get_program()).args(command.get_args());
    env
}

/// Waits for a child with piped output to its end.
pub fn finish(child: Child) -> Outcome {
    finish_within(child, PATIENCE)
}

fn finish_within(mut child: Child, patience: Duration) -> Outcome {
    let reader = |stream: Option<Box<dyn Read + Send>>| {
        let (done, text_of) = mpsc::channel();
        thread::spawn(move || {
            let mut text = Vec::new();
            if let Some(mut stream) = stream {
                stream.read_to_end(&mut text).unwrap();
            }
            let _ = done.send(String::from_utf8_lossy(&text).into_owned());
        });
        // Who has inherited the stream may hold it open after the child has ended.
        move || text_of.recv_timeout(patience).unwrap_or_else(|e| panic!("its output does not end: {e}"))
    };
    let stdout = reader(child.stdout.take().map(|stream| Box::new(stream) as _));
    let stderr = reader(child.stderr.take().map(|stream| Box::new(stream) as _));
    let status = wait_within(&mut child, patience);
    Outcome { status, stdout: stdout(), stderr: stderr() }
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

/// What a command writes, line by line; a test that waits too long for one fails. `None` at its end.
pub struct Lines(mpsc::Receiver<String>);

impl Lines {
    pub fn of(stream: impl Read + Send + 'static) -> Self {
        let (line, lines) = mpsc::channel();
        thread::spawn(move || {
            BufReader::new(stream).lines().map_while(Result::ok).try_for_each(|read| line.send(read).ok())
        });
        Self(lines)
    }
}

impl Iterator for Lines {
    type Item = String;

    fn next(&mut self) -> Option<String> {
        match self.0.recv_timeout(PATIENCE) {
            Ok(line) => Some(line),
            Err(mpsc::RecvTimeoutError::Disconnected) => None,
            Err(mpsc::RecvTimeoutError::Timeout) => panic!("no line and no end after {PATIENCE:?}"),
        }
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

/// Ends the whole run, and says what hangs, if the test that calls this takes longer than any test may: what a test waits for
/// without a bound of its own (a line of output, a thread) would otherwise hold up everybody who waits for the tests.
pub fn watch() {
    static STARTED: Mutex<Option<HashMap<ThreadId, (String, Instant)>>> = Mutex::new(None);
    static WATCHER: Once = Once::new();
    struct Watched;
    impl Drop for Watched {
        fn drop(&mut self) {
            let mut started = STARTED.lock().unwrap_or_else(PoisonError::into_inner);
            started.get_or_insert_default().remove(&thread::current().id());
        }
    }
    thread_local! {
        static WATCHED: Watched = {
            // A test's thread has the test's name, and ends with it.
            let thread = thread::current();
            if let Some(name) = thread.name().filter(|name| *name != "main") {
                let mut started = STARTED.lock().unwrap_or_else(PoisonError::into_inner);
                started.get_or_insert_default().insert(thread.id(), (name.to_owned(), Instant::now()));
            }
            Watched
        };
    }
    WATCHED.with(|_| ());
    WATCHER.call_once(|| {
        thread::spawn(|| {
            loop {
                thread::sleep(Duration::from_secs(1));
                let mut started = STARTED.lock().unwrap_or_else(PoisonError::into_inner);
                let late =
                    started.get_or_insert_default().values().find(|(_, since)| since.elapsed() > LONGEST).cloned();
                drop(started);
                if let Some((name, _)) = late {
                    // Not by eprintln!(), which the test that called first would keep for itself.
                    let _ = writeln!(io::stderr(), "{name} hangs; the processes:\n{}", processes());
                    process::exit(101);
                }
            }
        });
    });
}

/// What runs, and where in the kernel each of its threads waits.
fn processes() -> String {
    let listed = Command::new("ps").args(["-eLo", "pid,ppid,lwp,stat,etimes,wchan:24,comm,args"]).output();
    let listed = listed.map_or_else(|e| e.to_string(), |output| String::from_utf8_lossy(&output.stdout).into_owned());
    listed.lines().filter(|line| !line.contains(" [")).take(400).map(|line| format!("{line:.240}\n")).collect()
}

/// A file of the repository.
pub fn repository(path: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).parent().unwrap().join(path)
}
