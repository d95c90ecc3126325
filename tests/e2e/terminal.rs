//! On a terminal: job control, its signals, its size, as without us.

use std::fs::File;
use std::io::{Read, Write};
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use std::sync::{Arc, Condvar, Mutex};
use std::time::{Duration, Instant};

use nix::pty::openpty;
use nix::unistd::ttyname;

use crate::harness::{CALLGATE, Fixture, eventually, run, wait, watch};
use crate::launch::{children, free};

/// Says that it has begun, and sleeps, as one program: between the two there is no exec in which a key might be lost.
const SLEEPER: &str = r#"perl -e '$| = 1; print "begun\n"; sleep 1000'"#;
const PATIENCE: Duration = Duration::from_secs(10);

/// A terminal with a program in a session of its own on it, and what has appeared there.
struct Terminal {
    keyboard: File,
    screen: Arc<(Mutex<String>, Condvar)>,
    seen: usize,
    name: PathBuf,
    program: Child,
}

impl Terminal {
    /// Starts a program that leads the session.
    fn start(command: &Command) -> Self {
        watch();
        let pty = openpty(None, None).unwrap();
        let name = ttyname(&pty.slave).unwrap();
        // Whoever runs the tests in the background ignores some of these.
        let mut leader = Command::new("env");
        leader
            .args(["--default-signal=INT,QUIT,HUP", "setsid", "--ctty"])
            .arg(command.get_program())
            .args(command.get_args());
        leader.env("PS1", "<prompt>").env("TERM", "dumb").env_remove("PROMPT_COMMAND");
        let stream = || Stdio::from(pty.slave.try_clone().unwrap());
        let program = leader.stdin(stream()).stdout(stream()).stderr(stream()).spawn().unwrap();
        let screen = Arc::new((Mutex::new(String::new()), Condvar::new()));
        let (mut master, theirs) = (File::from(pty.master.try_clone().unwrap()), Arc::clone(&screen));
        std::thread::spawn(move || {
            let mut part = [0; 4096];
            while let Ok(length @ 1..) = master.read(&mut part) {
                let Ok(mut screen) = theirs.0.lock() else { return };
                screen.push_str(&String::from_utf8_lossy(&part[..length]));
                drop(screen);
                theirs.1.notify_all();
            }
        });
        Self { keyboard: File::from(pty.master), screen, seen: 0, name, program }
    }

    fn types(&mut self, keys: &str) {
        self.keyboard.write_all(keys.as_bytes()).unwrap();
    }

    /// Waits until a text appears, and returns what came before it.
    fn shows(&mut self, text: &str) -> String {
        let deadline = Instant::now() + PATIENCE;
        let mut screen = self.screen.0.lock().unwrap();
        loop {
            if let Some(at) = screen[self.seen..].find(text) {
                let before = screen[self.seen..self.seen + at].to_owned();
                self.seen += at + text.len();
                return before;
            }
            let left = deadline.saturating_duration_since(Instant::now());
            assert!(!left.is_zero(), "{text:?} does not appear after {:?}; all: {screen}", &screen[self.seen..]);
            screen = self.screen.1.wait_timeout(screen, left).unwrap().0;
        }
    }

    /// Types a line at the prompt; what it prints up to the next prompt.
    fn line(&mut self, line: &str) -> String {
        self.types(&format!("{line}\n"));
        self.shows(line); // the echo
        self.shows("<prompt>")
    }

    /// Types a line whose program says that it has begun.
    fn begin(&mut self, line: &str) {
        self.types(&format!("{line}\n"));
        self.shows(line);
        self.shows("begun\r\n");
    }

    fn everything(&self) -> String {
        self.screen.0.lock().unwrap().clone()
    }
}

impl Drop for Terminal {
    fn drop(&mut self) {
        let _ = self.program.kill();
        // What a test that failed has left there. As long as nobody has waited for it, the leader's number is not another's.
        for process in std::fs::read_dir("/proc").unwrap().flatten() {
            let stat = std::fs::read_to_string(process.path().join("stat")).unwrap_or_default();
            let session = stat.rsplit_once(')').and_then(|(_, rest)| rest.split_whitespace().nth(3));
            if session == Some(&self.program.id().to_string()) {
                let pid = process.file_name().to_str().unwrap().parse().unwrap();
                let _ = nix::sys::signal::kill(nix::unistd::Pid::from_raw(pid), nix::sys::signal::Signal::SIGKILL);
            }
        }
        let _ = self.program.wait();
    }
}

fn bash(wrapped: Option<&Fixture>) -> Command {
    let mut command = wrapped.map_or_else(|| Command::new("bash"), |fixture| with(fixture, &["bash"]));
    command.args(["--norc", "--noprofile", "--noediting", "-i"]);
    command
}

fn with(fixture: &Fixture, command: &[&str]) -> Command {
    let mut wrapped = fixture.callgate();
    wrapped.args(command);
    wrapped
}

/// As the first process of a pid namespace, with the terminal, as container runtimes have it.
fn contained(command: &Command) -> Command {
    let mut contained = Command::new("unshare");
    contained.args(["--pid", "--fork", "--kill-child", "--mount-proc", "setsid", "--ctty"]);
    contained.arg(command.get_program()).args(command.get_args());
    contained
}

/// What an interactive shell must be able to do.
fn has_job_control(terminal: &mut Terminal) {
    let greeting = terminal.shows("<prompt>");
    assert!(!greeting.contains("job control") && !greeting.contains("terminal process group"), "{greeting}");
    assert!(terminal.line("tty").contains("/dev/pts/"), "{}", terminal.everything());
    // Ctrl-C.
    terminal.begin(SLEEPER);
    terminal.types("\x03");
    terminal.shows("<prompt>");
    assert!(terminal.line("echo $?").contains("130"), "{}", terminal.everything());
    // Ctrl-Z and back.
    terminal.begin("bash -c 'echo begun; read x; echo got $x; exit 7'");
    terminal.types("\x1a");
    terminal.shows("Stopped");
    terminal.shows("<prompt>");
    assert!(terminal.line("jobs").contains("Stopped"), "{}", terminal.everything());
    terminal.types("fg\n");
    terminal.shows("exit 7'");
    terminal.types("hello\n");
    terminal.shows("got hello");
    terminal.shows("<prompt>");
    assert!(terminal.line("echo $?").contains('7'), "{}", terminal.everything());
    // In the background it may not read.
    terminal.types("cat &\n");
    terminal.shows("<prompt>");
    let seen = terminal.line("sleep 0.1; jobs; kill %1; fg; echo over");
    assert!(seen.contains("Stopped") && seen.contains("over"), "{seen}");
    // Quit.
    terminal.line("ulimit -c 0");
    terminal.begin(SLEEPER);
    terminal.types("\x1c");
    terminal.shows("<prompt>");
    assert!(terminal.line("echo $?").contains("131"), "{}", terminal.everything());
    terminal.types("exit 5\n");
}

#[test]
fn a_shell_without_us_passes_the_same_test() {
    let mut terminal = Terminal::start(&bash(None));
    has_job_control(&mut terminal);
    assert_eq!(wait(&mut terminal.program).code(), Some(5));
}

#[test]
fn an_interactive_shell_under_callgate_controls_its_jobs() {
    let fixture = free();
    let mut terminal = Terminal::start(&bash(Some(&fixture)));
    has_job_control(&mut terminal);
    assert_eq!(wait(&mut terminal.program).code(), Some(5));
}

#[test]
fn so_does_one_in_a_container_with_a_terminal() {
    let fixture = free();
    let mut terminal = Terminal::start(&contained(&bash(Some(&fixture))));
    has_job_control(&mut terminal);
    assert_eq!(wait(&mut terminal.program).code(), Some(5));
}

#[test]
fn so_does_one_that_is_started_from_a_shell() {
    let fixture = free();
    let mut terminal = Terminal::start(&bash(None));
    terminal.shows("<prompt>");
    let command = format!("{CALLGATE} --policy {} bash --norc --noprofile --noediting -i", fixture.policy().display());
    terminal.types(&format!("{command}\n"));
    terminal.shows(&command);
    has_job_control(&mut terminal);
    terminal.shows("<prompt>");
    assert!(terminal.line("echo $?").contains('5'), "{}", terminal.everything());
}

#[test]
fn a_shell_can_stop_and_continue_callgate_as_it_would_the_command() {
    let fixture = free();
    let mut terminal = Terminal::start(&bash(None));
    terminal.shows("<prompt>");
    terminal.line(&format!("cg='{CALLGATE} --policy {}'", fixture.policy().display()));
    // It says when it goes on: a key that comes before a shell has made it do so is lost, also without us.
    let reader = "#include <signal.h>\n#include <stdio.h>\n#include <unistd.h>\n\
        static void on(int signal) { write(1, \"went on\\n\", 8); }\n\
        int main(void) { char x[99]; signal(SIGCONT, on); write(1, \"begun\\n\", 6); scanf(\"%98s\", x); printf(\"got %s\\n\", x); return 7; }";
    let reader = fixture.compile("reader", reader, &["-w"]);
    terminal.begin(&format!("$cg {}", reader.display()));
    // While callgate itself goes on, a key stops it at once, and the command perhaps later: see SECURITY.md.
    let callgate = children(terminal.program.id())[0];
    let has_gone_on = || {
        let status = std::fs::read_to_string(format!("/proc/{callgate}/status")).unwrap();
        let blocked = status.lines().find_map(|line| line.strip_prefix("SigBlk:\t")).unwrap();
        u64::from_str_radix(blocked, 16).unwrap() & 1 << (libc::SIGTSTP - 1) != 0
    };
    for round in 0..30 {
        eventually("callgate has gone on", has_gone_on);
        terminal.types("\x1a");
        terminal.shows("Stopped  ");
        terminal.shows("<prompt>");
        assert!(terminal.line("jobs").contains("Stopped  "), "{round}: {}", terminal.everything());
        assert!(terminal.line("jobs -s").contains("reader"), "{round}: {}", terminal.everything());
        terminal.types("fg\n");
        terminal.shows("reader\r\n");
        terminal.shows("went on\r\n");
    }
    terminal.types("hello\n");
    terminal.shows("got hello");
    terminal.shows("<prompt>");
    assert!(terminal.line("echo $?").contains('7'), "{}", terminal.everything());
    // In the background, by bg and from the beginning.
    terminal.begin(
        "$cg bash -c 'trap \"echo went on\" CONT; echo begun; while [ ! -e $0 ]; do sleep 0.02; done' /tmp/no-such",
    );
    terminal.types("\x1a");
    terminal.shows("Stopped");
    terminal.shows("<prompt>");
    // Before the prompt or after it.
    if !terminal.line("bg").contains("went on") {
        terminal.shows("went on");
    }
    assert!(terminal.line("jobs -r").contains("Running"), "{}", terminal.everything());
    let seen = terminal.line("kill %%; wait %%; echo status $?");
    assert!(seen.contains("status 143"), "{seen}");
    terminal.line("$cg cat &");
    let seen = terminal.line("until jobs -ls | grep cat; do sleep 0.02; done; kill -9 %%; wait; echo over");
    assert!(seen.contains("tty input") && seen.contains("over"), "{seen}");
    terminal.line("stty tostop; $cg echo to the terminal &");
    let seen =
        terminal.line("until jobs -ls | grep terminal; do sleep 0.02; done; kill %%; kill -CONT %%; wait; echo over");
    assert!(seen.contains("tty output") && seen.contains("over"), "{seen}");
    terminal.line("stty -tostop");
    // A pipeline of which it is a part.
    terminal.begin(&format!("$cg {} | $cg cat | cat", reader.display()));
    terminal.types("\x1a");
    terminal.shows("Stopped");
    terminal.shows("<prompt>");
    terminal.types("fg\n");
    terminal.shows("went on\r\n");
    terminal.types("\x03");
    terminal.shows("<prompt>");
    let seen = terminal.line("echo $?; jobs; echo over");
    assert!(seen.contains("130") && !seen.contains("Stopped"), "{seen}");
    // Stopped by its number, and only callgate continued.
    terminal.line(&format!("$cg {SLEEPER} & p=$!"));
    terminal.line("state() { cut -d' ' -f3 /proc/$(pgrep -x perl -P $(pgrep -P $p))/stat 2>&1; }");
    terminal.line("until [ \"$(state)\" = S ]; do sleep 0.02; done");
    terminal.line("kill -TSTP $p; until jobs -s | grep perl; do sleep 0.02; done");
    let seen = terminal.line("state; kill -CONT $p; until [ $(state) = S ]; do sleep 0.02; done; echo sleeping");
    assert!(seen.contains("T\r\n") && seen.contains("sleeping"), "{seen}");
    let seen = terminal.line("until jobs -r | grep perl; do sleep 0.02; done; kill $p; wait $p; echo status $?");
    assert!(seen.contains("status 143"), "{seen}");
}

#[test]
fn keys_that_stop_do_nothing_where_nobody_could_continue() {
    let fixture = free();
    let read = ["bash", "-c", "echo begun; read x; echo got $x"];
    for inside in [false, true] {
        let mut command = with(&fixture, &read);
        if inside {
            command = contained(&command);
        }
        let mut terminal = Terminal::start(&command);
        terminal.shows("begun");
        terminal.types("\x1a");
        terminal.shows("^Z");
        terminal.types("hello\n");
        terminal.shows("got hello");
        assert_eq!(wait(&mut terminal.program).code(), Some(0));
    }
}

#[test]
fn a_change_of_the_windows_size_is_noticed() {
    let fixture = free();
    let watch = ["bash", "-c", "trap 'stty size; exit 3' WINCH; echo begun; while :; do sleep 0.02; done"];
    for inside in [false, true] {
        let mut command = with(&fixture, &watch);
        if inside {
            command = contained(&command);
        }
        let mut terminal = Terminal::start(&command);
        terminal.shows("begun");
        let resized = run(Command::new("stty").arg("-F").arg(&terminal.name).args(["rows", "33", "cols", "111"]));
        assert_eq!(resized.code(), 0, "{resized:?}");
        terminal.shows("33 111");
        assert_eq!(wait(&mut terminal.program).code(), Some(3));
    }
}

#[test]
fn a_terminal_that_is_hung_up_ends_the_command() {
    let fixture = free();
    for inside in [false, true] {
        let heard = fixture.path(if inside { "inside" } else { "outside" });
        let line =
            format!("trap 'echo yes >{}; exit 3' HUP; echo begun; while :; do sleep 0.02; done", heard.display());
        let mut command = with(&fixture, &["bash", "-c", &line]);
        if inside {
            command = contained(&command);
        }
        let mut terminal = Terminal::start(&command);
        terminal.shows("begun");
        let hang_up = "import fcntl, os, sys; fcntl.ioctl(os.open(sys.argv[1], os.O_RDWR | os.O_NOCTTY), 0x5437)"; // TIOCVHANGUP
        let hung = run(Command::new("python3").args(["-c", hang_up]).arg(&terminal.name));
        assert_eq!(hung.code(), 0, "{hung:?}");
        assert_eq!(wait(&mut terminal.program).code(), Some(3));
        assert!(heard.exists());
    }
}

#[test]
fn what_a_program_asks_about_its_terminal_is_answered_as_without_us() {
    let fixture = free();
    // Relative: process ids differ.
    let probe = r#"
import os
tty = os.open("/dev/tty", os.O_RDWR)
print("foreground", os.tcgetpgrp(tty) == os.getpgrp(), "ttyname", os.ttyname(0) == os.ttyname(2), flush=True)
print("group led by session leader", os.getpgrp() == os.getsid(0), flush=True)
import getpass
print("password", getpass.getpass("Enter: "), flush=True)
"#;
    let mut seen = Vec::new();
    for command in [Command::new("python3"), with(&fixture, &["python3"]), contained(&with(&fixture, &["python3"]))] {
        let mut command = command;
        command.args(["-c", probe]);
        let mut terminal = Terminal::start(&command);
        let before = terminal.shows("Enter: ");
        terminal.types("secret\n");
        seen.push(before + &terminal.shows("password secret"));
        assert_eq!(wait(&mut terminal.program).code(), Some(0));
    }
    assert!(seen[0].contains("foreground True") && !seen[0].contains("secret"), "{}", seen[0]);
    assert_eq!(seen[1], seen[0]);
    assert_eq!(seen[2], seen[0]);
}

#[test]
fn raw_mode_works_and_records_do_not_step_down_the_screen() {
    let fixture = Fixture::new(serde_json::json!({
        "allow_executables": ["/usr/bin/bash", "/usr/bin/stty", "/usr/bin/head", "/usr/bin/od"],
        "audit": { "sinks": ["stderr"] },
    }));
    let line = "stty raw -echo; echo begun; head -c 3 | od -An -tx1; whoami; head -c 1; stty sane; echo over";
    let mut terminal = Terminal::start(&with(&fixture, &["bash", "-c", line]));
    terminal.shows("begun\n");
    terminal.types("\x03\x1a\r");
    terminal.shows("03 1a 0d");
    let seen = terminal.shows("Permission denied");
    let seen = seen
        + &{
            terminal.types("x");
            terminal.shows("over")
        };
    let record = seen.lines().find(|line| line.contains("callgate") && line.contains("whoami"));
    assert!(record.is_some_and(|_| seen.contains("\r\n")), "{seen:?}");
}

#[test]
fn programs_that_make_terminals_of_their_own_work() {
    let fixture = free();
    let inner = format!("{CALLGATE} --policy {} bash -c 'tty; exit 4'", fixture.policy().display());
    let outcome = run(Command::new("script").args(["--return", "--quiet", "--command", &inner, "/dev/null"]));
    assert_eq!(outcome.code(), 4, "{outcome:?}");
    assert!(outcome.stdout.contains("/dev/pts/"), "{outcome:?}");
    let outcome = fixture.run(&["script", "--return", "--quiet", "--command", "tty; exit 4", "/dev/null"]);
    assert_eq!(outcome.code(), 4, "{outcome:?}");
    assert!(outcome.stdout.contains("/dev/pts/"), "{outcome:?}");
    let outcome = fixture.run(&["setsid", "--wait", "bash", "-c", "exit 6"]);
    assert_eq!(outcome.code(), 6, "{outcome:?}");
}

#[test]
fn the_supervisor_holds_no_terminal_signals() {
    // Ctrl-C reaches the command once, although two processes of ours are about.
    let fixture = free();
    let count = "import signal, time, sys\nn = 0\ndef got(*_):\n    global n\n    n += 1\nsignal.signal(signal.SIGINT, got)\n\
        print('begun', flush=True)\nwhile n == 0: time.sleep(0.01)\ntime.sleep(0.2)\nprint('count', n, flush=True)";
    for inside in [false, true] {
        let mut command = with(&fixture, &["python3", "-c", count]);
        if inside {
            command = contained(&command);
        }
        let mut terminal = Terminal::start(&command);
        terminal.shows("begun");
        terminal.types("\x03");
        terminal.shows("count 1\r\n");
        assert!(inside || children(terminal.program.id()).len() <= 1);
        assert_eq!(wait(&mut terminal.program).code(), Some(0));
    }
}
