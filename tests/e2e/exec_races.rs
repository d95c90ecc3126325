//! Races for what runs: whatever is changed between the decision and the exec, nothing begins to run that was not decided.
//!
//! Each race is first run without us, where the program that is to be denied does run.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::process::Command;
use std::time::{Duration, Instant};

use serde_json::{Value, json};

use crate::harness::{Fixture, Outcome, run};

/// Leaves a mark in a file, if it is the program that must not run.
const PROGRAM: &str = r#"
#include <fcntl.h>
#include <string.h>
#include <unistd.h>
int main(int argc, char **argv) {
    (void)argc; (void)argv;
    if (EVIL) { int f = open(HITS, O_WRONLY | O_APPEND | O_CREAT, 0666); if (write(f, "x", 1)) {} }
    return 0;
}
"#;

/// As a dynamic loader: with no library, and no memory but its stack.
const LOADER: &str = r#"
#include <fcntl.h>
#include <sys/syscall.h>
static long call(long n, long a, long b, long c) {
    long result; register long d __asm__("r10") = 0666;
    __asm__ volatile("syscall" : "=a"(result) : "a"(n), "D"(a), "S"(b), "d"(c), "r"(d) : "rcx", "r11", "memory");
    return result;
}
void _start(void) {
    if (EVIL) { long f = call(SYS_open, (long)HITS, O_WRONLY | O_APPEND | O_CREAT, 0666); call(SYS_write, f, (long)"x", 1); }
    call(SYS_exit_group, 0, 0, 0); __builtin_unreachable();
}
"#;

/// Runs `good` again and again while something is flipped between it and `evil`. Prints how often each outcome came.
const RACE: &str = r##"
#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <pthread.h>
#include <sched.h>
#include <signal.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/mount.h>
#include <sys/syscall.h>
#include <sys/uio.h>
#include <sys/wait.h>
#include <unistd.h>
extern char **environ;
static const char *mode; static struct { atomic_int stop; atomic_int child; char path[32]; } *shared;
static char path[32] = "./good", argument[32] = "good"; static char *arguments[] = { "name", argument, NULL }; static int fd, good_fd, evil_fd;
static int is(const char *name) { return !strcmp(mode, name); }
static void point(const char *at) { symlink(at, "link.new"); rename("link.new", "link"); }
static void flip_once(int evil) {
    const char *now = evil ? "evil" : "good";
    if (is("thread") || is("vm")) memcpy(path + 2, now, 4);
    else if (is("shared")) memcpy(shared->path + 2, now, 4);
    else if (is("argument")) memcpy(argument, now, 4);
    else if (is("symlink") || is("directory-link")) point(is("symlink") ? now : evil ? "evil-dir" : "good-dir");
    else if (is("rename") || is("descriptor-path")) renameat2(AT_FDCWD, "x", AT_FDCWD, "y", RENAME_EXCHANGE);
    else if (is("directory")) renameat2(AT_FDCWD, "good-dir", AT_FDCWD, "evil-dir", RENAME_EXCHANGE);
    else if (is("script")) renameat2(AT_FDCWD, "script", AT_FDCWD, "script2", RENAME_EXCHANGE);
    else if (is("first-line")) { int f = open("script", O_WRONLY); if (pwrite(f, evil ? "#!evil" : "#!good", 6, 0)) {} close(f); for (volatile int i = 0; i < 3000; i++) {} }
    else if (is("loader")) renameat2(AT_FDCWD, "loader", AT_FDCWD, "loader2", RENAME_EXCHANGE);
    else if (is("cwd")) { if (chdir(evil ? "../evil-dir" : "../good-dir")) {} }
    else if (is("descriptor")) dup2(evil ? evil_fd : good_fd, fd);
    else if (is("mount")) { if (evil) { if (mount("evil", "x", NULL, MS_BIND, NULL)) {} } else umount2("x", MNT_DETACH); }
    else if (is("content")) { int f = open("x", O_WRONLY); if (f >= 0) { if (pwrite(f, evil ? "1" : "0", 1, lseek(f, 0, SEEK_END) - 1)) {} close(f); } for (volatile int i = 0; i < 3000; i++) {} }
}
static void write_there(void) { /* into the memory of the child, by its number */
    static int now, memory = -1; int child = shared->child;
    if (!child) return;
    if (is("vmwrite")) {
        for (int evil = 0; evil < 2; evil++) {
            struct iovec ours = { evil ? "evil" : "good", 4 }, theirs = { path + 2, 4 };
            process_vm_writev(child, &ours, 1, &theirs, 1, 0);
        }
        return;
    }
    if (child != now) { char name[64]; close(memory); snprintf(name, sizeof name, "/proc/%d/mem", child); memory = open(name, O_RDWR); now = child; }
    if (pwrite(memory, "evil", 4, (off_t)(path + 2)) + pwrite(memory, "good", 4, (off_t)(path + 2))) {}
}
static void *flip(void *arg) {
    if (is("directory") || is("mount")) sched_yield();
    for (int evil = 1; !shared->stop; evil = !evil) { if (is("mem") || is("vmwrite")) write_there(); else flip_once(evil); }
    return arg;
}
static int flipping(void *arg) { flip(arg); _exit(0); }
static int begin(void *arg) {
    (void)arg; shared->child = getpid();
    if (is("descriptor")) syscall(SYS_execveat, fd, "", arguments, environ, AT_EMPTY_PATH);
    else if (is("descriptor-path")) { char name[64]; snprintf(name, sizeof name, "/proc/self/fd/%d/x", fd); execve(name, arguments, environ); }
    else if (is("script") || is("first-line")) execve("./script", arguments, environ);
    else if (is("loader")) execve("./program", arguments, environ);
    else if (is("rename") || is("content") || is("mount")) execve("./x", arguments, environ);
    else if (is("symlink")) execve("./link", arguments, environ);
    else if (is("directory")) execve("./good-dir/x", arguments, environ);
    else if (is("directory-link")) execve("./link/x", arguments, environ);
    else if (is("cwd")) execve("./x", arguments, environ);
    else execve(is("shared") ? shared->path : path, arguments, environ);
    _exit(100 + (errno == EACCES ? 0 : errno == EINTR ? 1 : 2));
}
int main(int argc, char **argv) {
    int rounds = atoi(argv[2]), ran = 0, denied = 0, killed = 0, other = 0, flags = SIGCHLD; pthread_t thread; pid_t flipper = 0; (void)argc;
    mode = argv[1]; if (chdir(argv[3])) return 2;
    shared = mmap(NULL, 4096, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0); strcpy(shared->path, "./good");
    good_fd = open("good", O_PATH); evil_fd = open("evil", O_PATH); fd = is("descriptor-path") ? open(".", O_PATH) : dup(good_fd);
    if (is("cwd")) { if (chdir("good-dir")) return 2; }
    if (is("mount")) { if (unshare(CLONE_NEWNS) || mount(NULL, "/", NULL, MS_REC | MS_PRIVATE, NULL)) { perror("mount"); return 2; } }
    char *stack = malloc(1 << 16), *flip_stack = malloc(1 << 16);
    if (is("mem") || is("vmwrite") || is("shared")) { if (!(flipper = fork())) flipping(NULL); }
    else if (is("vm")) flipper = clone(flipping, flip_stack + (1 << 16), CLONE_VM | SIGCHLD, NULL);
    else pthread_create(&thread, NULL, flip, NULL);
    if (is("thread") || is("vm") || is("argument")) flags |= CLONE_VM | CLONE_VFORK;
    if (is("cwd")) flags |= CLONE_VM | CLONE_VFORK | CLONE_FS;
    if (is("descriptor")) flags |= CLONE_VM | CLONE_VFORK | CLONE_FILES;
    for (int i = 0; i < rounds; i++) {
        int status; pid_t pid = clone(begin, stack + (1 << 16), flags, NULL);
        if (pid < 0 || waitpid(pid, &status, 0) != pid) { perror("child"); return 2; }
        shared->child = 0;
        if (WIFSIGNALED(status)) killed++; else if (WEXITSTATUS(status) == 0) ran++; else if (WEXITSTATUS(status) == 100) denied++; else other++;
    }
    shared->stop = 1;
    if (flipper) waitpid(flipper, NULL, 0); else pthread_join(thread, NULL);
    printf("ran %d denied %d killed %d other %d\n", ran, denied, killed, other);
    return 0;
}
"##;

fn text(path: impl AsRef<Path>) -> String {
    path.as_ref().to_str().unwrap().to_owned()
}

/// A directory with everything that is flipped, and a policy that allows `good` in it.
fn prepared(list: &[&str]) -> Fixture {
    let fixture = Fixture::allowing(&[]);
    let hits = format!("-DHITS=\"{}\"", text(fixture.path("hits")));
    for (name, evil) in [("good", 0), ("evil", 1)] {
        let defines = [&format!("-DEVIL={evil}"), &hits, "-static"];
        let program = fixture.compile(name, PROGRAM, &defines.map(AsRef::as_ref));
        fs::create_dir(fixture.path(&format!("{name}-dir"))).unwrap();
        fs::copy(&program, fixture.path(&format!("{name}-dir/x"))).unwrap();
        let loader = ["-shared", "-fPIC", "-nostdlib", "-Wl,-e,_start"];
        let loader = [&loader[..], &[defines[0], defines[1]]].concat();
        fixture.compile(if evil == 0 { "loader" } else { "loader2" }, LOADER, &loader);
        let script = fixture.path(if evil == 0 { "script" } else { "script2" });
        fs::write(&script, format!("#!{name}\n")).unwrap();
        fs::set_permissions(&script, fs::Permissions::from_mode(0o755)).unwrap();
    }
    let loader = format!("-Wl,--dynamic-linker={}", text(fixture.path("loader")));
    fixture.compile("program", PROGRAM, &["-DEVIL=0", &hits, &loader]);
    fs::copy(fixture.path("good"), fixture.path("x")).unwrap();
    fs::copy(fixture.path("evil"), fixture.path("y")).unwrap();
    fixture.compile("race", RACE, &[]);
    let digest = |name: &str| {
        let sum = run(Command::new("sha256sum").arg(fixture.path(name)));
        format!("sha256:{}", &sum.stdout[..64])
    };
    let entries: Vec<String> = list
        .iter()
        .map(|entry| match entry.strip_prefix("sha256:") {
            Some(name) => digest(name),
            None if entry.starts_with('/') => (*entry).to_owned(),
            None => text(fixture.path(entry)),
        })
        .collect();
    let policy = json!({
        "allow_executables": entries,
        "audit": { "sinks": [format!("file:{}", text(fixture.path("records")))] },
    });
    fs::write(fixture.policy(), policy.to_string()).unwrap();
    fixture
}

fn count(outcome: &Outcome, what: &str) -> usize {
    let mut words = outcome.stdout.split_whitespace();
    words.find(|word| *word == what).unwrap_or_else(|| panic!("{outcome:?}"));
    words.next().unwrap().parse().unwrap()
}

fn hits(fixture: &Fixture) -> usize {
    fs::read(fixture.path("hits")).map_or(0, |hits| hits.len())
}

/// Runs a race without us, where it is won, and with us, where it must not be.
fn race(mode: &str, rounds: u32, list: &[&str]) {
    let fixture = prepared(&[&["race"], list].concat());
    let command = |rounds: u32| [text(fixture.path("race")), mode.into(), rounds.to_string(), text(fixture.path(""))];
    let mut won = 0;
    for _ in 0..5 {
        let arguments = command(rounds);
        run(Command::new(&arguments[0]).args(&arguments[1..]));
        won = hits(&fixture);
        if won > 0 {
            break;
        }
    }
    assert!(won > 0, "{mode}: the race is no race");
    let _ = fs::remove_file(fixture.path("hits"));
    // It may have ended with things exchanged.
    let fixture = prepared(&[&["race"], list].concat());
    let command = [text(fixture.path("race")), mode.into(), rounds.to_string(), text(fixture.path(""))];
    let outcome = fixture.run(&command);
    assert_eq!(outcome.code(), 0, "{mode}: {outcome:?}");
    assert_eq!(hits(&fixture), 0, "{mode}: {outcome:?}");
    assert!(count(&outcome, "ran") > 0, "{mode}: {outcome:?}");
    assert_eq!(fixture.records_of("killed").len(), count(&outcome, "killed"), "{mode}: {outcome:?}");
    eprintln!("{mode}: without us {won} of {rounds}; with us none: {}", outcome.stdout.trim());
}

#[test]
fn a_path_flipped_by_a_thread_runs_nothing_else() {
    race("thread", 1200, &["good"]);
}

#[test]
fn a_path_flipped_by_a_process_that_shares_the_memory_runs_nothing_else() {
    race("vm", 1200, &["good"]);
}

#[test]
fn a_path_flipped_in_shared_memory_runs_nothing_else() {
    race("shared", 1200, &["good"]);
}

#[test]
fn a_path_flipped_through_proc_mem_runs_nothing_else() {
    race("mem", 1200, &["good"]);
}

#[test]
fn a_path_flipped_by_process_vm_writev_runs_nothing_else() {
    race("vmwrite", 1200, &["good"]);
}

#[test]
fn a_flipped_symbolic_link_runs_nothing_else() {
    race("symlink", 1200, &["good"]);
    race("directory-link", 600, &["good-dir/"]);
}

#[test]
fn files_that_change_places_run_only_if_their_content_is_allowed() {
    race("rename", 1200, &["sha256:good"]);
    race("descriptor-path", 600, &["sha256:good"]);
}

#[test]
fn directories_that_change_places_run_nothing_else() {
    race("directory", 1200, &["sha256:good"]);
}

#[test]
fn a_working_directory_changed_by_a_thread_runs_nothing_else() {
    race("cwd", 1200, &["good-dir/x"]);
}

#[test]
fn a_descriptor_flipped_by_a_thread_runs_nothing_else() {
    race("descriptor", 1200, &["good"]);
}

#[test]
fn a_mount_that_comes_and_goes_runs_nothing_else() {
    race("mount", 1200, &["x"]);
}

#[test]
fn a_script_whose_interpreter_changes_runs_no_other() {
    race("script", 1200, &["script", "script2", "good"]);
    race("first-line", 600, &["script", "good"]);
}

#[test]
fn a_loader_that_is_exchanged_runs_only_if_it_is_allowed() {
    race("loader", 1200, &["program", "sha256:loader"]);
}

/// What is recorded as allowed are the arguments that the program gets.
#[test]
fn flipped_arguments_are_those_that_were_decided_on() {
    let say = r#"#include <stdio.h>
        int main(int argc, char **argv) { (void)argc; FILE *f = fopen(HITS, "a"); fprintf(f, "%c", argv[1][0]); return 0; }"#;
    let fixture = prepared(&[]);
    let hits_flag = format!("-DHITS=\"{}\"", text(fixture.path("hits")));
    fixture.compile("good", say, &[&hits_flag]);
    let policy = json!({
        "allow_executables": ["/**"],
        "audit": { "decisions": "all", "sinks": [format!("file:{}", text(fixture.path("records")))] },
    });
    fs::write(fixture.policy(), policy.to_string()).unwrap();
    let outcome = fixture.run(&[text(fixture.path("race")), "argument".into(), "1500".into(), text(fixture.path(""))]);
    assert_eq!(outcome.code(), 0, "{outcome:?}");
    let said = fs::read_to_string(fixture.path("hits")).unwrap();
    let records = fixture.records();
    let decided = |argument: &str, outcome: &str| {
        records.iter().filter(|record| record["arguments"][1] == argument && record["outcome"] == outcome).count()
    };
    assert!(count(&outcome, "killed") > 0, "nothing was flipped in time: {outcome:?}");
    for argument in ["good", "evil"] {
        // One that was killed has been recorded as allowed before.
        let expected = decided(argument, "allowed") - decided(argument, "killed");
        assert_eq!(said.matches(&argument[..1]).count(), expected, "{argument}: {outcome:?}");
    }
}

/// Storms: of signals, stops and kills, at callers whose execs are decided.
const STORM: &str = r#"
#define _GNU_SOURCE
#include <errno.h>
#include <pthread.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/time.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>
extern char **environ;
static char *arguments[] = { "name", NULL }; static const char *mode;
static int is(const char *name) { return !strcmp(mode, name); }
static void handler(int n) { (void)n; }
static void nap(long ns) { struct timespec t = { 0, ns }; nanosleep(&t, NULL); }
static void *exec_thread(void *path) { execve(path, arguments, environ); return (void *)(long)errno; }
static void under_signals(const char *good, const char *evil) {
    struct sigaction action = { .sa_handler = handler, .sa_flags = SA_RESTART }; sigaction(SIGALRM, &action, NULL);
    struct itimerval every = { { 0, 150 }, { 0, 150 } }; setitimer(ITIMER_REAL, &every, NULL);
    for (int i = 0; i < 300; i++) {
        execve("/missing/program", arguments, environ); if (errno != ENOENT) _exit(10);
        execve(evil, arguments, environ); if (errno != EACCES) _exit(errno == EINTR ? 12 : 11);
        execve("/etc/hostname", arguments, environ); if (errno != EACCES) _exit(13);
    }
    struct itimerval none = { { 0, 0 }, { 0, 0 } }; signal(SIGALRM, SIG_IGN); (void)none;
    execve(good, arguments, environ); _exit(14);
}
int main(int argc, char **argv) {
    int rounds = atoi(argv[2]), status, ran = 0, killed = 0, failed = 0; char *good = argv[3], *evil = argv[4]; (void)argc;
    mode = argv[1]; srand(1);
    if (is("together")) {
        int gate[2]; if (pipe(gate)) return 2;
        for (int i = 0; i < rounds; i++) if (!fork()) { char c; close(gate[1]); if (read(gate[0], &c, 1)) {} execve(good, arguments, environ); _exit(1); }
        close(gate[1]);
        for (int i = 0; i < rounds; i++) { wait(&status); if (status) failed++; else ran++; }
    } else for (int i = 0; i < rounds; i++) {
        pid_t pid = fork();
        if (!pid) {
            if (is("signals")) under_signals(good, evil);
            if (is("threads") || is("kill-threads")) {
                pthread_t threads[4]; void *result;
                for (int t = 0; t < 4; t++) pthread_create(&threads[t], NULL, exec_thread, t == 3 ? evil : good);
                if (i % 2) execve(good, arguments, environ);
                for (int t = 0; t < 4; t++) pthread_join(threads[t], &result);
                _exit(1);
            }
            execve(good, arguments, environ); _exit(1);
        }
        if (is("stop")) for (int s = 0; s < 10; s++) { kill(pid, SIGSTOP); nap(rand() % 100000); kill(pid, SIGCONT); }
        if (is("kill") || is("kill-threads")) { nap(rand() % 600000); kill(pid, SIGKILL); }
        if (waitpid(pid, &status, 0) != pid) { perror("waitpid"); return 2; }
        if (WIFSIGNALED(status)) killed++; else if (status) { fprintf(stderr, "status %x\n", status); failed++; } else ran++;
    }
    if (waitpid(-1, &status, WNOHANG) != -1 || errno != ECHILD) { fprintf(stderr, "somebody is left\n"); return 2; }
    printf("ran %d killed %d failed %d\n", ran, killed, failed);
    return 0;
}
"#;

fn storm(mode: &str, rounds: u32) -> Outcome {
    let fixture = prepared(&["storm", "good"]);
    let storm = text(fixture.compile("storm", STORM, &[]));
    let command = [storm, mode.into(), rounds.to_string(), text(fixture.path("good")), text(fixture.path("evil"))];
    let outcome = fixture.run(&command);
    assert_eq!(outcome.code(), 0, "{mode}: {outcome:?}");
    assert_eq!(count(&outcome, "failed"), 0, "{mode}: {outcome:?}");
    assert_eq!(hits(&fixture), 0, "{mode}: {outcome:?}");
    assert_eq!(fixture.records_of("killed"), Vec::<Value>::new(), "{mode}");
    outcome
}

#[test]
fn signals_interrupt_no_exec() {
    assert_eq!(count(&storm("signals", 10), "ran"), 10);
}

#[test]
fn stopping_and_continuing_a_caller_loses_no_exec() {
    assert_eq!(count(&storm("stop", 300), "ran"), 300);
}

#[test]
fn a_caller_killed_at_any_moment_is_gone_and_reaped() {
    let outcome = storm("kill", 1500);
    assert!(count(&outcome, "ran") > 0 && count(&outcome, "killed") > 0, "{outcome:?}");
    let outcome = storm("kill-threads", 500);
    assert!(count(&outcome, "killed") > 0, "{outcome:?}");
}

#[test]
fn threads_that_exec_at_the_same_time_run_one_of_their_programs() {
    assert_eq!(count(&storm("threads", 500), "ran"), 500);
}

#[test]
fn many_execs_at_once_all_run() {
    assert_eq!(count(&storm("together", 200), "ran"), 200);
}

/// Callers whose exec can't even be looked up: their file system does not answer, or their memory is not there.
const HELD: &str = r#"
#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <linux/userfaultfd.h>
#include <sched.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <sys/mount.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <unistd.h>
extern char **environ;
int main(int argc, char **argv) {
    char *arguments[] = { "name", NULL }, options[64], path[4200]; int status, held = 20, rounds = 200; pid_t pids[20]; char *page = NULL; (void)argc;
    if (!strcmp(argv[1], "fuse")) {
        int fuse = open("/dev/fuse", O_RDWR); if (fuse < 0) { puts("skipped: no /dev/fuse"); return 0; }
        snprintf(options, sizeof options, "fd=%d,rootmode=40000,user_id=0,group_id=0", fuse);
        if (unshare(CLONE_NEWNS) || mount(NULL, "/", NULL, MS_REC | MS_PRIVATE, NULL) || mount("held", argv[2], "fuse", 0, options)) { printf("skipped: %s\n", strerror(errno)); return 0; }
        snprintf(path, sizeof path, "%s/program", argv[2]);
    } else {
        int fault = syscall(SYS_userfaultfd, O_CLOEXEC); struct uffdio_api api = { .api = UFFD_API };
        if (fault < 0 || ioctl(fault, UFFDIO_API, &api)) { puts("skipped: no userfaultfd"); return 0; }
        page = mmap(NULL, 4096, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
        struct uffdio_register all = { .range = { (unsigned long)page, 4096 }, .mode = UFFDIO_REGISTER_MODE_MISSING };
        if (ioctl(fault, UFFDIO_REGISTER, &all)) { puts("skipped: no userfaultfd"); return 0; }
    }
    for (int i = 0; i < held; i++) {
        if (page) { char *stack = malloc(65536); (void)stack; pids[i] = syscall(SYS_clone, CLONE_VM | CLONE_VFORK * 0 | SIGCHLD, stack + 60000, 0, 0, 0); }
        else pids[i] = fork();
        if (!pids[i]) { syscall(SYS_execve, page ? page : path, arguments, environ); syscall(SYS_exit, 1); }
    }
    for (int i = 0; i < rounds; i++) {
        pid_t pid = fork(); if (!pid) { execve(argv[3], arguments, environ); _exit(1); }
        waitpid(pid, &status, 0); if (status) { printf("failed %x\n", status); return 1; }
    }
    for (int i = 0; i < held; i++) { kill(pids[i], SIGKILL); if (waitpid(pids[i], &status, 0) != pids[i]) return 3; }
    printf("all ran\n");
    return 0;
}
"#;

#[test]
fn a_caller_that_is_held_holds_up_nobody_else() {
    for mode in ["memory", "fuse"] {
        let fixture = prepared(&["held", "good"]);
        let held = text(fixture.compile("held", HELD, &[]));
        fs::create_dir(fixture.path("mounted")).unwrap();
        let begun = Instant::now();
        let outcome = fixture.run(&[held, mode.into(), text(fixture.path("mounted")), text(fixture.path("good"))]);
        assert!(outcome.stdout == "all ran\n" || outcome.stdout.starts_with("skipped"), "{mode}: {outcome:?}");
        assert!(begun.elapsed() < Duration::from_secs(10), "{mode}: {:?}", begun.elapsed());
    }
}

/// A tracer, whose tracee's path another process flips.
const TRACER: &str = r#"
#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <pthread.h>
#include <signal.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/ptrace.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>
extern char **environ;
static const char *mode; static struct { atomic_int stop, going; char path[32]; } *shared; static char *arguments[] = { "name", NULL };
static int is(const char *name) { return !strcmp(mode, name); }
static void *burns(void *unused) { for (volatile long i = 0;; i++) {} return unused; }
static void tracee(int begin) { /* its tracer may be gone before it has begun */
    char byte; sigset_t all; sigfillset(&all); pthread_t thread;
    if (is("busy")) for (int i = 0; i < 3; i++) pthread_create(&thread, NULL, burns, NULL);
    if (is("blocked")) sigprocmask(SIG_BLOCK, &all, NULL);
    if (is("traceme") || is("busy") || is("blocked") || is("vfork")) ptrace(PTRACE_TRACEME, 0, 0, 0); else if (read(begin, &byte, 1) != 1) _exit(0);
    shared->going = 1; execve(shared->path, arguments, environ); _exit(errno == EACCES ? 0 : 100 + errno);
}
static void tracer(void) {
    int begin[2], status; if (pipe(begin)) _exit(9);
    pid_t pid = is("vfork") ? vfork() : fork(); if (!pid) { if (!is("vfork")) close(begin[1]); tracee(begin[0]); }
    if (is("seize") || is("killed") || is("sibling")) ptrace(PTRACE_SEIZE, pid, 0, 0);
    if (is("events")) ptrace(PTRACE_SEIZE, pid, 0, PTRACE_O_TRACEEXEC);
    if (write(begin[1], "x", 1)) {}
    while (waitpid(pid, &status, __WALL) == pid) {
        if (!WIFSTOPPED(status)) _exit(WIFEXITED(status) ? WEXITSTATUS(status) : 99);
        int signal = WSTOPSIG(status), event = status >> 16; ptrace(PTRACE_CONT, pid, 0, event || signal == SIGTRAP ? 0 : signal);
    }
    _exit(8);
}
static void *traces(void *unused) { tracer(); return unused; }
/* The process of the tracer is ended by an exec of its other thread. */
static void sibling(void) {
    pthread_t thread; long spin = rand() % 300000;
    shared->going = 0; pthread_create(&thread, NULL, traces, NULL);
    while (!shared->going) {} while (spin--) __asm__ volatile("");
    execve("./good", arguments, environ); _exit(7);
}
int main(int argc, char **argv) {
    int rounds = atoi(argv[2]), ran = 0, killed = 0, refused = 0, other = 0, status; (void)argc; mode = argv[1]; srand(1);
    if (chdir(argv[3]) || prctl(PR_SET_CHILD_SUBREAPER, 1)) return 2;
    shared = mmap(NULL, 4096, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0); strcpy(shared->path, "./good");
    pid_t flipper = fork(); if (!flipper) { while (!shared->stop) { memcpy(shared->path + 2, "evil", 4); __asm__ volatile("" ::: "memory"); memcpy(shared->path + 2, "good", 4); __asm__ volatile("" ::: "memory"); } _exit(0); }
    for (int i = 0; i < rounds; i++) {
        int seed = rand(); pid_t pid = fork(); if (!pid) { srand(seed); if (is("sibling")) sibling(); tracer(); }
        if (is("killed")) { struct timespec t = { 0, rand() % 1500000 }; nanosleep(&t, NULL); kill(pid, SIGKILL); }
        if (waitpid(pid, &status, 0) != pid) return 3;
        if (WIFSIGNALED(status)) other++; else if (WEXITSTATUS(status) == 0) ran++; else if (WEXITSTATUS(status) == 99) killed++; else if (WEXITSTATUS(status) == 100 + EPERM) refused++; else other++;
    }
    shared->stop = 1; while (wait(NULL) > 0) {}
    printf("ran %d killed %d refused %d other %d\n", ran, killed, refused, other);
    return 0;
}
"#;

#[test]
fn a_traced_caller_runs_nothing_else_whatever_its_tracer_does() {
    for (mode, rounds) in
        [("seize", 400), ("events", 400), ("traceme", 400), ("vfork", 400), ("killed", 800), ("blocked", 50)]
            .into_iter()
            .chain([("busy", 400), ("sibling", 800)])
    {
        let fixture = prepared(&["good", "tracer"]);
        let tracer = text(fixture.compile("tracer", TRACER, &[]));
        let command = [tracer, mode.into(), rounds.to_string(), text(fixture.path(""))];
        let bare = run(Command::new(&command[0]).args(&command[1..]));
        assert!(hits(&fixture) > 0, "{mode}: the race is no race: {bare:?}");
        let _ = fs::remove_file(fixture.path("hits"));
        let outcome = fixture.run(&command);
        assert_eq!((outcome.code(), hits(&fixture)), (0, 0), "{mode}: {outcome:?}");
        // One that blocks the signal by which it would stop is refused.
        let refused = count(&outcome, "refused") > 0;
        assert_eq!(refused, mode == "blocked", "{mode}: {outcome:?} {:?}", fixture.records().last());
        assert!(mode == "blocked" || count(&outcome, "killed") + count(&outcome, "other") > 0, "{mode}: {outcome:?}");
        eprintln!("{mode}: {}", outcome.stdout.trim());
    }
}
