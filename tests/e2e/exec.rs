//! Which programs run: lists of paths, directories, globs and digests against real programs, and every way to begin one.

use std::fs;
use std::os::unix::fs::{PermissionsExt, symlink};
use std::path::Path;
use std::process::Command;

use serde_json::{Value, json};

use crate::harness::{CALLGATE, Fixture, Outcome, run};

/// Begins a program in the way that its first argument names, and says with which errno that failed.
const HOW: &str = r#"
#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <pthread.h>
#include <sched.h>
#include <spawn.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <unistd.h>
static char **rest, *path;
extern char **environ;
static int at(int fd, const char *name, int flags) { return syscall(SYS_execveat, fd, name, rest, environ, flags); }
static void *in_thread(void *arg) { (void)arg; execv(path, rest); return (void *)(long)errno; }
static int child(void *arg) { (void)arg; execv(path, rest); _exit(100 + errno); }
static int waited(pid_t pid) { int s; while (waitpid(pid, &s, 0) < 0 && errno == EINTR) {} exit(WIFEXITED(s) ? WEXITSTATUS(s) : 200 + WTERMSIG(s)); }
static int copy_to(int to) {
    char data[65536]; ssize_t n; int from = open(path, O_RDONLY);
    while ((n = read(from, data, sizeof data)) > 0) if (write(to, data, n) != n) exit(99);
    close(from); return to;
}
static char *dup_dir(void) { char *d = strdup(path); *strrchr(d, '/') = 0; return d; }
int main(int argc, char **argv) {
    const char *how = argv[1]; char name[64]; char *base; int fd; pid_t pid; void *result;
    (void)argc; path = argv[2]; rest = argv + 2;
    if (!strcmp(how, "path")) execv(path, rest);
    else if (!strcmp(how, "relative")) { if (chdir(dup_dir())) return 98; execv(strrchr(path, '/') + 1, rest); }
    else if (!strcmp(how, "dirfd")) at(open(dup_dir(), O_PATH), strrchr(path, '/') + 1, 0);
    else if (!strcmp(how, "fexecve")) fexecve(open(path, O_RDONLY), rest, environ);
    else if (!strcmp(how, "empty-path")) at(open(path, O_PATH), "", AT_EMPTY_PATH);
    else if (!strcmp(how, "proc-fd")) { snprintf(name, sizeof name, "/proc/self/fd/%d", open(path, O_RDONLY)); execv(name, rest); }
    else if (!strcmp(how, "dev-fd")) { snprintf(name, sizeof name, "/dev/fd/%d", open(path, O_PATH)); execv(name, rest); }
    else if (!strcmp(how, "thread-self")) { snprintf(name, sizeof name, "/proc/thread-self/fd/%d", open(path, O_PATH)); execv(name, rest); }
    else if (!strcmp(how, "proc-root")) { base = malloc(strlen(path) + 32); sprintf(base, "/proc/self/root%s", path); execv(base, rest); }
    else if (!strcmp(how, "memfd")) { fd = copy_to(memfd_create("program", MFD_CLOEXEC)); at(fd, "", AT_EMPTY_PATH); }
    else if (!strcmp(how, "memfd-proc")) { fd = copy_to(memfd_create("program", MFD_CLOEXEC)); snprintf(name, sizeof name, "/proc/self/fd/%d", fd); execv(name, rest); }
    else if (!strcmp(how, "deleted")) {
        char copy[] = "/tmp/callgate-XXXXXX"; fd = copy_to(mkstemp(copy)); fchmod(fd, 0755); close(fd);
        fd = open(copy, O_PATH); unlink(copy); at(fd, "", AT_EMPTY_PATH);
    }
    else if (!strcmp(how, "tmpfile")) {
        fd = copy_to(open("/tmp", O_TMPFILE | O_RDWR, 0755)); snprintf(name, sizeof name, "/proc/self/fd/%d", fd);
        int again = open(name, O_RDONLY); close(fd); at(again, "", AT_EMPTY_PATH);
    }
    else if (!strcmp(how, "thread")) { pthread_t id; pthread_create(&id, NULL, in_thread, NULL); pthread_join(id, &result); errno = (int)(long)result; }
    else if (!strcmp(how, "spawn")) { if (!(errno = posix_spawn(&pid, path, NULL, NULL, rest, environ))) waited(pid); }
    else if (!strcmp(how, "vfork")) { if (!(pid = vfork())) { execv(path, rest); _exit(100 + errno); } waited(pid); }
    else if (!strcmp(how, "clone-vm")) { char *stack = malloc(65536); waited(clone(child, stack + 65536, CLONE_VM | SIGCHLD, NULL)); }
    else if (!strcmp(how, "no-argv")) { char *none[] = { NULL }; execve(path, none, environ); }
    else if (!strcmp(how, "null-argv")) syscall(SYS_execve, path, NULL, NULL);
    else if (!strcmp(how, "undumpable")) { prctl(PR_SET_DUMPABLE, 0); execv(path, rest); }
    else if (!strcmp(how, "check")) { if (at(AT_FDCWD, path, 0x10000) == 0) { puts("may be run"); return 0; } }
    else if (!strcmp(how, "no-follow")) at(AT_FDCWD, path, AT_SYMLINK_NOFOLLOW);
    else if (!strcmp(how, "longest") || !strcmp(how, "too-long")) { /* PATH_MAX counts the NUL */
        size_t length = 4095 + !strcmp(how, "too-long"); char *l = malloc(length + 1); memset(l, '/', length); l[length] = 0;
        memcpy(l + length - strlen(path), path, strlen(path)); execv(l, rest);
    }
    else if (!strcmp(how, "page-end")) {
        char *page = mmap(NULL, 8192, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0); munmap(page + 4096, 4096);
        char *end = page + 4096 - strlen(path) - 1; strcpy(end, path); execv(end, rest);
    }
    else if (!strcmp(how, "unterminated")) {
        char *page = mmap(NULL, 8192, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0); munmap(page + 4096, 4096);
        char *end = page + 4096 - strlen(path); memcpy(end, path, strlen(path)); execv(end, rest);
    }
    else if (!strcmp(how, "across")) {
        char *pages = mmap(NULL, 8192, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
        strcpy(pages + 4092, path); execv(pages + 4092, rest);
    }
    else return 97;
    printf("%s\n", strerrorname_np(errno)); return 100;
}
"#;

/// What [`HOW`] begins: says that it ran.
const RAN: &str = r#"#include <stdio.h>
int main(int argc, char **argv) { printf("ran with %d\n", argc > 0 && argv[argc - 1] ? argc : 0); return 0; }"#;

/// The ways that end in a file with a path.
const WAYS: &[&str] = &[
    "path",
    "relative",
    "dirfd",
    "fexecve",
    "empty-path",
    "proc-fd",
    "dev-fd",
    "thread-self",
    "proc-root",
    "thread",
    "spawn",
    "vfork",
    "clone-vm",
    "no-argv",
    "null-argv",
    "undumpable",
    "no-follow",
    "longest",
    "page-end",
    "across",
];
/// The ways that end in a file that has none.
const FILELESS: &[&str] = &["memfd", "memfd-proc", "deleted", "tmpfile"];

fn which(name: &str) -> String {
    let found = run(Command::new("bash").args(["-c", &format!("command -v {name}")]));
    assert_eq!(found.code(), 0, "{name} is not installed");
    found.stdout.trim().to_owned()
}

fn text(path: impl AsRef<Path>) -> String {
    path.as_ref().to_str().unwrap().to_owned()
}

/// Writes an executable file.
fn script(path: &Path, content: impl AsRef<[u8]>) {
    fs::write(path, content).unwrap();
    fs::set_permissions(path, fs::Permissions::from_mode(0o755)).unwrap();
}

/// A fixture whose policy can name files of its own directory.
fn with(policy: impl FnOnce(&Fixture) -> Value) -> Fixture {
    let fixture = Fixture::allowing(&[]);
    let mut policy = policy(&fixture);
    policy["audit"] = json!({ "sinks": [format!("file:{}", text(fixture.path("records")))] });
    fs::write(fixture.policy(), policy.to_string()).unwrap();
    fixture
}

/// With the system's own programs first.
fn plain(fixture: &Fixture) -> Command {
    let mut command = fixture.callgate();
    command.env("PATH", "/usr/sbin:/usr/bin:/sbin:/bin");
    command
}

fn sha256(path: &Path) -> String {
    format!("sha256:{}", &run(Command::new("sha256sum").arg(path)).stdout[..64])
}

fn why(outcome: &Outcome, fixture: &Fixture) -> String {
    format!("{outcome:?} {:#?}", fixture.records())
}

#[test]
fn a_whole_compile_runs_by_directories_and_globs_and_its_product_only_if_listed() {
    for (product, code) in [(true, 0), (false, 126)] {
        let fixture = with(|fixture| {
            let mut list = vec![
                json!("/bin/bash"),
                json!("/usr/bin/*gcc*"),
                json!("/usr/bin/*-as"),
                json!("/usr/bin/*-ld"),
                json!("/usr/bin/*-ld.bfd"),
                json!("/usr/lib/gcc/"),
            ];
            list.extend(product.then(|| json!(text(fixture.path("made/")) + "/")));
            json!({ "allow_executables": list })
        });
        fs::create_dir(fixture.path("made")).unwrap();
        fs::write(fixture.path("a.c"), RAN).unwrap();
        let (source, program) = (text(fixture.path("a.c")), text(fixture.path("made/a")));
        let outcome = fixture.bash(&format!("gcc -o {program} {source} && {program}; exit $?"));
        assert_eq!(outcome.code(), code, "{}", why(&outcome, &fixture));
        assert_eq!(outcome.stdout, if product { "ran with 1\n" } else { "" });
        assert_eq!(fixture.records_of("denied").len(), usize::from(!product));
    }
}

#[test]
fn a_compiler_whose_assembler_is_denied_says_so() {
    let policy = json!({ "allow_executables": ["/usr/"], "deny_executables": ["/usr/bin/as"] });
    let fixture = Fixture::new(policy);
    fs::write(fixture.path("a.c"), RAN).unwrap();
    let outcome = run(fixture.callgate().arg("gcc").arg("-o").arg(fixture.path("a")).arg(fixture.path("a.c")));
    assert_ne!(outcome.code(), 0);
    assert!(outcome.stderr.contains("Permission denied"), "{outcome:?}");
    assert_eq!(fixture.records()[0]["rule"], "executables.denied");
}

#[test]
fn build_and_version_control_tools_run_what_is_listed_and_fail_at_what_is_not() {
    let git = which("git");
    let git_core = run(Command::new("git").arg("--exec-path")).stdout.trim().to_owned() + "/";
    let fixture = Fixture::allowing(&[&git, &git_core, "/bin/bash", "/usr/bin/make", "/bin/dash", "/usr/bin/touch"]);
    let directory = text(fixture.path("work"));
    fs::create_dir(&directory).unwrap();
    fs::write(fixture.path("work/Makefile"), "good:\n\ttouch made; echo ok\nbad:\n\twhoami;\n").unwrap();
    let outcome = fixture.bash(&format!(
        "cd {directory} && export HOME={directory} && git init -q . && git add Makefile \
         && git -c user.name=a -c user.email=b@c commit -qm one && git log --format=%s && make good && ! make bad"
    ));
    assert_eq!(outcome.code(), 0, "{}", why(&outcome, &fixture));
    assert!(outcome.stdout.starts_with("one\n") && outcome.stdout.contains("\nok\n"), "{outcome:?}");
    assert!(fixture.path("work/made").exists() && outcome.stderr.contains("whoami: Permission denied"), "{outcome:?}");
}

#[test]
fn a_denied_exec_is_a_permission_denied_to_whatever_program_tries_it() {
    let list = ["/bin/bash", "/bin/dash", "/usr/bin/env", "/usr/bin/xargs", "/usr/bin/find", "/usr/bin/script"];
    let fixture = Fixture::allowing(&[&list[..], &["/usr/bin/python3", "/usr/bin/perl"]].concat());
    for (command, code, said) in [
        (&["bash", "-c", "whoami"][..], 126, "whoami: Permission denied"),
        (&["dash", "-c", "whoami"], 126, "whoami: Permission denied"),
        (&["env", "whoami"], 126, "whoami': Permission denied"),
        (&["bash", "-c", "echo | xargs whoami"], 126, "whoami: Permission denied"),
        (&["find", "/etc/hostname", "-exec", "whoami", ";"], 0, "whoami\u{2019}: Permission denied"),
        (&["script", "-qec", "whoami", "/dev/null"], 126, "whoami: Permission denied"),
        (&["python3", "-c", "import subprocess; subprocess.run(['whoami'])"], 1, "PermissionError: [Errno 13]"),
        (&["python3", "-c", "import os; os.execv('/usr/bin/whoami', ['w'])"], 1, "PermissionError: [Errno 13]"),
        (&["perl", "-e", "exec('/usr/bin/whoami') or die $!"], 13, "Permission denied"),
        (&["whoami"], 126, "whoami: Permission denied"),
    ] {
        let outcome = run(plain(&fixture).env("LC_ALL", "C.UTF-8").args(command));
        let all = format!("{}{}", outcome.stdout, outcome.stderr).replace(['\u{2018}', '\u{2019}'], "'");
        assert!(all.contains(&said.replace('\u{2019}', "'")), "{command:?}: {outcome:?}");
        assert_eq!(outcome.code(), code, "{command:?}: {outcome:?}");
        assert!(!all.contains("root"), "{command:?}: {outcome:?}");
    }
    for record in fixture.records() {
        assert_eq!((&record["event"], &record["errno"]["name"]), (&json!("exec"), &json!("EACCES")), "{record}");
        assert_eq!(record["file"]["path"], "/usr/bin/whoami", "{record}");
    }
}

#[test]
fn programs_that_start_others_work_when_those_are_listed() {
    let fixture = Fixture::allowing(&["/usr/bin/", "/bin/", "/usr/sbin/"]);
    for (command, expected) in [
        (&["dash", "-c", "id -un | cat"][..], "root\n"),
        (&["env", "-i", "/usr/bin/printf", "%s", "x"], "x"),
        (&["bash", "-c", "seq 50 | xargs -n1 -P8 echo | sort -n | tail -1"], "50\n"),
        (&["find", "/etc/hostname", "-exec", "basename", "{}", ";"], "hostname\n"),
        (&["script", "-qec", "id -un", "/dev/null"], "root\r\n"),
        (&["python3", "-c", "import subprocess as s; print(s.check_output(['id','-un'],text=True),end='')"], "root\n"),
        (
            &["python3", "-c", "import subprocess as s; s.run('id -un; exit 3', shell=True, preexec_fn=lambda: None)"],
            "root\n",
        ),
        (
            &[
                "python3",
                "-c",
                "import multiprocessing as m; m.set_start_method('spawn'); print(m.Pool(2).map(abs,[-1]))",
            ],
            "[1]\n",
        ),
        (&["timeout", "5", "nice", "setsid", "-w", "echo", "deep"], "deep\n"),
        (&["bash", "-c", "coproc cat; echo hi >&${COPROC[1]}; read -u ${COPROC[0]} x; echo $x"], "hi\n"),
        (&["perl", "-e", "print `id -un`"], "root\n"),
    ] {
        let outcome = run(plain(&fixture).args(command));
        assert_eq!((outcome.code(), outcome.stdout.as_str()), (0, expected), "{command:?}: {outcome:?}");
    }
    assert_eq!(fixture.records(), Vec::<Value>::new());
}

#[test]
fn one_file_is_one_file_whatever_link_names_it() {
    let awk = fs::canonicalize("/usr/bin/awk").unwrap();
    for listed in ["/bin/ls", "/usr/bin/ls", "/usr/bin/awk", "/etc/alternatives/awk", &text(&awk)] {
        let fixture = Fixture::allowing(&["/bin/bash", listed]);
        symlink("/bin/ls", fixture.path("list")).unwrap();
        symlink("/etc/alternatives/awk", fixture.path("awk")).unwrap();
        let own = [text(fixture.path("list")), text(fixture.path("awk"))];
        let (ls, awks) =
            (["/bin/ls", "/usr/bin/ls", &own[0]], ["/usr/bin/awk", "/etc/alternatives/awk", &text(&awk), &own[1]]);
        for (aliases, runs, arguments) in
            [(&ls[..], listed.ends_with("ls"), "/"), (&awks[..], !listed.ends_with("ls"), "'BEGIN { print 1 }'")]
        {
            for alias in aliases {
                let outcome = fixture.bash(&format!("{alias} {arguments}; exit $?"));
                assert_eq!(
                    outcome.code(),
                    if runs { 0 } else { 126 },
                    "{listed}: {alias}: {}",
                    why(&outcome, &fixture)
                );
            }
        }
    }
}

#[test]
fn a_hard_link_and_a_copy_are_other_files_and_a_digest_knows_both() {
    let fixture = Fixture::allowing(&["/bin/bash", "/usr/bin/id"]);
    let (link, copy) = (fixture.path("link"), fixture.path("copy"));
    fs::copy("/usr/bin/id", &copy).unwrap();
    fs::hard_link(&copy, &link).unwrap();
    for path in [&link, &copy] {
        assert_eq!(fixture.bash(&format!("{}; exit $?", text(path))).code(), 126);
    }
    let by_digest = Fixture::allowing(&["/bin/bash", &sha256(Path::new("/usr/bin/id"))]);
    for path in [&link, &copy, Path::new("/usr/bin/id")] {
        assert_eq!(by_digest.bash(&format!("{} -un", text(path))).stdout, "root\n");
    }
}

#[test]
fn a_directory_or_glob_covers_what_is_made_later_and_a_link_out_of_it_nothing() {
    let fixture = with(|fixture| {
        let (directory, glob) = (text(fixture.path("app")) + "/", text(fixture.path("srv")) + "/*/run");
        json!({ "allow_executables": ["/bin/bash", directory, glob] })
    });
    let ran = fixture.compile("ran", RAN, &[]);
    for directory in ["app/deep", "srv/a/b", "application"] {
        fs::create_dir_all(fixture.path(directory)).unwrap();
    }
    let copies = ["app/x", "app/deep/y", "srv/a/run", "srv/a/b/run", "application/x"];
    for name in copies {
        fs::copy(&ran, fixture.path(name)).unwrap();
    }
    symlink("/usr/bin/id", fixture.path("app/id")).unwrap();
    let expected = [0, 0, 0, 126, 126, 126];
    for (name, code) in copies.into_iter().chain(["app/id"]).zip(expected) {
        let outcome = fixture.bash(&format!("{}; exit $?", text(fixture.path(name))));
        assert_eq!(outcome.code(), code, "{name}: {}", why(&outcome, &fixture));
    }
}

#[test]
fn a_digest_allows_the_content_and_nothing_that_is_made_of_it() {
    let fixture = with(|fixture| {
        let program = fixture.compile("program", RAN, &[]);
        json!({ "allow_executables": ["/bin/bash", sha256(&program)] })
    });
    let program = text(fixture.path("program"));
    assert_eq!(fixture.bash(&program).stdout, "ran with 1\n");
    assert_eq!(fixture.bash(&format!("cd /; echo x >> {program}; {program}; exit $?")).code(), 126);
    assert_eq!(fixture.records()[0]["rule"], "executables.not-listed");
    let denies = Fixture::new(json!({ "deny_executables": [sha256(Path::new(&program))] }));
    assert_eq!(denies.bash(&format!("{program}; exit $?")).code(), 126);
    assert_eq!(denies.bash("id -un").stdout, "root\n");
}

#[test]
fn a_file_too_large_to_be_digested_is_denied_at_once() {
    let fixture =
        Fixture::allowing(&["/bin/bash", "/usr/bin/truncate", "/usr/bin/chmod", &sha256(Path::new("/bin/true"))]);
    let huge = text(fixture.path("huge"));
    let begun = std::time::Instant::now();
    let outcome = fixture.bash(&format!("truncate -s 1T {huge}; chmod +x {huge}; {huge}; exit $?"));
    assert_eq!(outcome.code(), 126, "{}", why(&outcome, &fixture));
    assert!(begun.elapsed().as_secs() < 5);
}

#[test]
fn a_script_needs_itself_and_each_of_its_interpreters() {
    for (listed, runs) in [(&["script"][..], false), (&["dash"], false), (&["script", "dash"], true)] {
        let fixture = with(|fixture| {
            let names = listed.iter().map(|name| match *name {
                "script" => text(fixture.path("script")),
                name => format!("/bin/{name}"),
            });
            json!({ "allow_executables": names.chain(["/bin/bash".to_owned()]).collect::<Vec<_>>() })
        });
        script(&fixture.path("script"), "#!/bin/dash\necho \"$0 $1\"\n");
        let path = text(fixture.path("script"));
        let outcome = fixture.bash(&format!("{path} x; exit $?"));
        assert_eq!(outcome.code(), if runs { 0 } else { 126 }, "{listed:?}: {}", why(&outcome, &fixture));
        assert_eq!(outcome.stdout, if runs { format!("{path} x\n") } else { String::new() });
    }
}

#[test]
fn env_in_a_first_line_is_an_exec_of_its_own() {
    let list = |python: bool| {
        let fixture = with(|fixture| {
            let mut list = vec!["/bin/bash".to_owned(), "/usr/bin/env".to_owned(), text(fixture.path("s"))];
            list.extend(python.then(|| "/usr/bin/python3".to_owned()));
            json!({ "allow_executables": list })
        });
        script(&fixture.path("s"), "#!/usr/bin/env python3\nimport sys; print(sys.argv[1])\n");
        let outcome = run(plain(&fixture).arg(fixture.path("s")).arg("hello"));
        (outcome, fixture)
    };
    assert_eq!(list(true).0.stdout, "hello\n");
    let (outcome, fixture) = list(false);
    assert_eq!(outcome.code(), 126, "{outcome:?}");
    assert!(fixture.records()[0]["file"]["path"].as_str().unwrap().contains("/python3"));
}

/// What a first line does must be the same with us as without.
#[test]
fn first_lines_are_read_as_the_kernel_reads_them() {
    let long = |length: usize| format!("#!{}/bin/dash", "/".repeat(length - 2 - 9));
    let lines: Vec<Vec<u8>> = vec![
        b"#!/bin/dash\necho a\n".into(),
        b"#!/bin/dash -e\nfalse\necho not here\n".into(),
        b"#! \t /bin/dash \t -e \t \nfalse\n".into(),
        b"#!/bin/echo one two  three \nx".into(),
        b"#!/bin/echo one".into(),
        b"#!/bin/echo".into(),
        b"#!/bin/echo \0 one\n".into(),
        b"#!/bin/echo\0one\n".into(),
        b"#!/bin/echo a\0b\n".into(),
        b"#!/bin/dash\r\necho a\n".into(),
        b"#!\n".into(),
        b"#!".into(),
        b"#! \n".into(),
        b"#".into(),
        b"".into(),
        b"#!bin/dash\n".into(),
        b"#!relative\n".into(),
        b"#!/no/such\n".into(),
        b"#!/etc\n".into(),
        b"#!/etc/passwd\n".into(),
        (long(253) + "\necho a\n").into(),
        (long(254) + "\necho a\n").into(),
        (long(255) + "\necho a\n").into(),
        (long(256) + "\necho a\n").into(),
        (long(257) + "\necho a\n").into(),
        format!("#!/bin/echo {}\n", "x".repeat(241)).into(),
        format!("#!/bin/echo {}\n", "x".repeat(242)).into(),
        format!("#!/bin/echo {}\n", "x".repeat(243)).into(),
        format!("#!/bin/echo {}\n", "x".repeat(244)).into(),
        format!("#!/bin/echo {}\n", "x".repeat(245)).into(),
        format!("#!/bin/echo {}\n", "x".repeat(600)).into(),
        format!("#!{}", " ".repeat(300)).into(),
        format!("#!{}/bin/dash\n", " ".repeat(240)).into(),
        format!("#!{}/bin/dash\n", " ".repeat(246)).into(),
        b"\x7fELF".into(),
        b"plain text\n".into(),
    ];
    let fixture = Fixture::new(json!({ "allow_executables": ["/**"] }));
    let how = fixture.compile("how", HOW, &[]);
    fs::write(fixture.path("relative"), "").unwrap();
    for line in lines {
        script(&fixture.path("s"), &line);
        for way in ["path", "fexecve", "dirfd", "relative", "no-argv"] {
            let arguments = [text(&how), way.to_owned(), text(fixture.path("s")), "1".into(), "2".into()];
            let bare = run(Command::new(&arguments[0]).args(&arguments[1..]));
            let ours = fixture.run(&arguments);
            let shown = String::from_utf8_lossy(&line).into_owned();
            assert_eq!(
                (ours.status, ours.stdout, ours.stderr),
                (bare.status, bare.stdout, bare.stderr),
                "{way}: {shown:?}"
            );
        }
    }
    assert_eq!(fixture.records(), Vec::<Value>::new());
}

#[test]
fn interpreters_of_interpreters_are_followed_as_far_as_the_kernel_does() {
    let fixture = Fixture::new(json!({ "allow_executables": ["/**"] }));
    let how = text(fixture.compile("how", HOW, &[]));
    script(&fixture.path("i0"), "#!/bin/echo\n");
    for level in 1..8 {
        script(
            &fixture.path(&format!("i{level}")),
            format!("#!{} {level}\n", text(fixture.path(&format!("i{}", level - 1)))),
        );
    }
    let mut ran = 0;
    for level in 0..8 {
        let path = text(fixture.path(&format!("i{level}")));
        let bare = run(Command::new(&how).args(["path", &path]));
        let ours = fixture.run(&[&how, "path", &path]);
        assert_eq!((ours.code(), &ours.stdout), (bare.code(), &bare.stdout), "{level}: {}", why(&ours, &fixture));
        ran += i32::from(bare.code() == 0);
    }
    assert!((4..8).contains(&ran), "{ran}");
    // Each of them has to be listed.
    let list: Vec<String> = [0, 2].map(|level| text(fixture.path(&format!("i{level}")))).into();
    let denied = Fixture::new(json!({ "allow_executables": [list[0], list[1], how, "/bin/echo"] }));
    assert_eq!(denied.run(&[&how, "path", &list[1]]).stdout, "EACCES\n");
    assert!(denied.records()[0]["reason"].as_str().unwrap().contains("/i1, which interprets it"));
}

#[test]
fn every_way_to_a_file_with_a_path_ends_in_the_same_decision() {
    let list = |listed: &str| {
        with(|fixture| {
            let (how, _) = (fixture.compile("how", HOW, &[]), fixture.compile("ran", RAN, &[]));
            json!({ "allow_executables": [how, fixture.path(listed)] })
        })
    };
    let (allows, denies) = (list("ran"), list("how"));
    for way in WAYS {
        let outcome = allows.run(&[allows.path("how"), way.into(), allows.path("ran")]);
        assert!(outcome.code() == 0 && outcome.stdout.starts_with("ran with "), "{way}: {}", why(&outcome, &allows));
        let outcome = denies.run(&[denies.path("how"), way.into(), denies.path("ran")]);
        let record = denies.records().pop().unwrap_or_else(|| panic!("{way}: {outcome:?}"));
        assert!(outcome.stdout == "EACCES\n" || outcome.code() == 100 + 13, "{way}: {outcome:?}");
        assert_eq!(record["file"]["path"], text(denies.path("ran")), "{way}");
    }
    assert_eq!(allows.records(), Vec::<Value>::new());
    assert_eq!(denies.records().len(), WAYS.len());
}

#[test]
fn a_script_through_a_descriptor_reads_it_there() {
    let fixture = Fixture::new(json!({ "allow_executables": ["/**"] }));
    let how = fixture.compile("how", HOW, &[]);
    script(&fixture.path("s"), "#!/bin/dash\necho \"$# $1\"\n");
    for way in WAYS.iter().filter(|way| !way.ends_with("-argv")) {
        let arguments = [how.clone(), way.into(), fixture.path("s"), "x".into()];
        let bare = run(Command::new(&arguments[0]).args(&arguments[1..]));
        let ours = fixture.run(&arguments);
        assert_eq!((ours.code(), &ours.stdout), (bare.code(), &bare.stdout), "{way}: {}", why(&ours, &fixture));
    }
    assert_eq!(fixture.records(), Vec::<Value>::new());
}

#[test]
fn a_file_without_a_path_is_an_event_of_its_own_and_runs_only_by_its_digest() {
    let fixture = with(|fixture| {
        fixture.compile("ran", RAN, &[]);
        json!({ "allow_executables": ["/**", fixture.compile("how", HOW, &[])] })
    });
    let command = |fixture: &Fixture, way: &str| [fixture.path("how"), way.into(), fixture.path("ran")];
    for way in FILELESS {
        let bare = run(Command::new(fixture.path("how")).args(&command(&fixture, way)[1..]));
        assert_eq!(bare.stdout, "ran with 1\n", "{way}");
        let outcome = fixture.run(&command(&fixture, way));
        assert_eq!(outcome.stdout, "EACCES\n", "{way}: {}", why(&outcome, &fixture));
        let record = fixture.records().pop().unwrap();
        assert_eq!((&record["event"], &record["rule"]), (&json!("exec-fileless"), &json!("executables.no-path")));
    }
    let by_digest = with(|fixture| {
        let ran = fixture.compile("ran", RAN, &[]);
        json!({ "allow_executables": ["/**", fixture.compile("how", HOW, &[]), sha256(&ran)] })
    });
    for way in FILELESS {
        let outcome = by_digest.run(&command(&by_digest, way));
        assert_eq!(outcome.stdout, "ran with 1\n", "{way}: {}", why(&outcome, &by_digest));
    }
}

#[test]
fn a_dynamic_loader_runs_another_program_only_if_it_is_listed_itself() {
    let loader = text(fs::canonicalize("/lib64/ld-linux-x86-64.so.2").unwrap());
    for (listed, code) in [("/usr/", 126), ("/lib64/ld-linux-x86-64.so.2", 0)] {
        let fixture = Fixture::allowing(&["/bin/bash", listed]);
        for called in [loader.as_str(), "/lib64/ld-linux-x86-64.so.2"] {
            let outcome = fixture.bash(&format!("{called} /usr/bin/id -un; exit $?"));
            assert_eq!(outcome.code(), code, "{listed} {called}: {}", why(&outcome, &fixture));
        }
        if code != 0 {
            assert_eq!(fixture.records()[0]["rule"], "executables.loader");
        }
    }
}

#[test]
fn a_foreign_elf_interpreter_is_denied_unless_it_is_listed() {
    for (listed, code) in [(false, 126), (true, 0)] {
        let fixture = with(|fixture| {
            let loader = fixture.path("ld-own.so");
            fs::copy(fs::canonicalize("/lib64/ld-linux-x86-64.so.2").unwrap(), &loader).unwrap();
            let flag = format!("-Wl,--dynamic-linker={}", text(&loader));
            let mut list = vec![json!("/bin/bash"), json!(fixture.compile("program", RAN, &[&flag]))];
            list.extend(listed.then(|| json!(loader)));
            json!({ "allow_executables": list })
        });
        let outcome = fixture.bash(&format!("{}; exit $?", text(fixture.path("program"))));
        assert_eq!(outcome.code(), code, "{}", why(&outcome, &fixture));
        if !listed {
            assert_eq!(fixture.records()[0]["rule"], "executables.elf-interpreter");
        }
    }
}

#[test]
fn static_programs_of_both_kinds_run() {
    let fixture = with(|fixture| {
        let plain = fixture.compile("static", RAN, &["-static", "-no-pie"]);
        json!({ "allow_executables": [plain, fixture.compile("static-pie", RAN, &["-static-pie"])] })
    });
    for name in ["static", "static-pie"] {
        let outcome = fixture.run(&[fixture.path(name)]);
        assert_eq!(outcome.stdout, "ran with 1\n", "{name}: {}", why(&outcome, &fixture));
    }
}

const UNSHARE: &[(&str, &[&str])] = &[
    ("user and mount", &["unshare", "-rm"]),
    ("mount", &["unshare", "-m"]),
    ("pid", &["unshare", "-pf"]),
    ("pid with its own /proc", &["unshare", "-pf", "--mount-proc"]),
    ("everything", &["unshare", "-rmpfuin", "--mount-proc"]),
    ("a pid namespace in another", &["unshare", "-pf", "unshare", "-pf", "--mount-proc"]),
    ("a root of its own", &["chroot", "/"]),
];

#[test]
fn new_namespaces_change_nothing_about_what_runs() {
    let fixture = Fixture::new(json!({ "allow_executables": ["/**"], "deny_executables": ["/usr/bin/whoami"] }));
    let how = text(fixture.compile("how", HOW, &[]));
    for (name, before) in UNSHARE {
        for way in WAYS {
            let run = |program: &str| fixture.run(&[before, &[how.as_str(), way, program][..]].concat());
            let allowed = run("/usr/bin/true");
            assert_eq!(allowed.code(), 0, "{name}, {way}: {}", why(&allowed, &fixture));
            let denied = run("/usr/bin/whoami");
            assert!(
                denied.stdout == "EACCES\n" || denied.code() == 100 + 13,
                "{name}, {way}: {}",
                why(&denied, &fixture)
            );
        }
    }
    for record in fixture.records() {
        assert_eq!(record["file"]["path"], "/usr/bin/whoami");
    }
}

#[test]
fn a_new_root_or_mount_makes_no_other_file_the_listed_one() {
    let fixture = with(|fixture| {
        fixture.compile("ran", RAN, &["-static"]);
        json!({ "allow_executables": ["/bin/bash", "/usr/bin/", "/usr/sbin/chroot", "/usr/sbin/pivot_root"] })
    });
    let (ran, jail) = (text(fixture.path("ran")), text(fixture.path("jail")));
    fs::create_dir_all(fixture.path("jail/usr/bin")).unwrap();
    fs::create_dir_all(fixture.path("jail/old")).unwrap();
    fs::copy(&ran, fixture.path("jail/usr/bin/id")).unwrap();
    for (line, what) in [
        (format!("chroot {jail} /usr/bin/id"), "chroot"),
        (format!("unshare -m bash -c 'mount --bind {ran} /usr/bin/id; /usr/bin/id'"), "a file mounted over it"),
        (
            format!("unshare -m bash -c 'mount --bind {jail}/usr/bin /usr/bin; /usr/bin/id'"),
            "a directory mounted over it",
        ),
        (format!("unshare -rm bash -c 'mount --bind {ran} /usr/bin/id; /usr/bin/id'"), "the same in a user namespace"),
        (
            format!(
                "unshare -m bash -c 'mount -t tmpfs t /mnt; cp {ran} /mnt/id; mount --bind /mnt /usr/bin; /usr/bin/id'"
            ),
            "a file system mounted over it",
        ),
        (
            format!("unshare -m bash -c 'mount --bind {jail} {jail}; cd {jail}; pivot_root . old; exec /usr/bin/id'"),
            "pivot_root",
        ),
    ] {
        let bare = run(Command::new("bash").args(["-c", &line]));
        assert_eq!(bare.stdout, "ran with 1\n", "{what}: {bare:?}");
        let outcome = fixture.bash(&line);
        assert_eq!(outcome.stdout, "", "{what}: {}", why(&outcome, &fixture));
        let record = fixture.records().pop().unwrap();
        assert!(record["outcome"] == "denied", "{what}: {record}");
    }
}

#[test]
fn a_sandbox_made_by_bubblewrap_runs_what_is_listed() {
    let fixture = Fixture::allowing(&["/usr/bin/bwrap", "/bin/bash", "/usr/bin/id"]);
    let command = ["bwrap", "--ro-bind", "/", "/", "--dev", "/dev", "--proc", "/proc", "--unshare-all", "bash", "-c"];
    let outcome = fixture.run(&[&command[..], &["id -u; whoami"]].concat());
    assert_eq!(outcome.stdout, "0\n", "{}", why(&outcome, &fixture));
    assert!(outcome.stderr.contains("whoami: Permission denied"), "{outcome:?}");
}

#[test]
fn a_set_user_id_program_gains_nothing() {
    let source = "#include <stdio.h>\n#include <unistd.h>\nint main(void) { printf(\"%d\\n\", geteuid()); }";
    let fixture = Fixture::new(json!({ "allow_executables": ["/**"] }));
    let program = fixture.compile("who", source, &[]);
    fs::set_permissions(&program, fs::Permissions::from_mode(0o4755)).unwrap();
    let bare = run(Command::new("setpriv").args(["--reuid=1234", "--clear-groups"]).arg(&program));
    assert_eq!(bare.stdout, "0\n", "{bare:?}");
    let ours = run(fixture.callgate().args(["setpriv", "--reuid=1234", "--clear-groups"]).arg(&program));
    assert_eq!(ours.stdout, "1234\n", "{}", why(&ours, &fixture));
}

#[test]
fn who_asks_whether_a_file_may_be_run_is_told_what_would_be_decided() {
    let policy = json!({ "allow_executables": ["/**"], "deny_executables": ["/usr/bin/whoami"] });
    let fixture = Fixture::new(policy);
    let how = fixture.compile("how", HOW, &[]);
    script(&fixture.path("script"), "#!/usr/bin/missing\n");
    script(&fixture.path("denied"), "#!/usr/bin/whoami\n");
    fs::write(fixture.path("plain"), "").unwrap();
    let bare = |program: &str| run(Command::new(&how).args(["check", program])).stdout;
    let under = |program: &str| fixture.run(&[text(&how), "check".into(), program.into()]).stdout;
    // EINVAL before Linux 6.14.
    let known = bare("/usr/bin/true");
    assert!(["may be run\n", "EINVAL\n"].contains(&known.as_str()), "{known}");
    for program in
        ["/usr/bin/true", "/usr/bin/missing", "/usr/bin", &text(fixture.path("script")), &text(fixture.path("plain"))]
    {
        assert_eq!(under(program), bare(program), "{program}");
    }
    assert!(fixture.records_of("denied").is_empty());
    for program in ["/usr/bin/whoami", &text(fixture.path("denied"))] {
        assert_eq!(under(program), "EACCES\n", "{program}");
    }
    let denied = fixture.records_of("denied");
    assert!(denied.iter().all(|record| record["event"] == "exec"), "{denied:?}");
    assert_eq!(denied.len(), 2, "{denied:?}");
}

/// Prints the errno of execs that fail. Its argument is a directory that the test has filled.
const FAILING: &str = r#"
#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <unistd.h>
extern char **environ;
static char *arguments[] = { "name", NULL };
static void at(const char *what, int fd, const char *path, char **argv, int flags) {
    fflush(stdout);
    if (!fork()) {
        syscall(SYS_execveat, fd, path, argv, environ, flags);
        printf("%s: %s\n", what, strerrorname_np(errno)); fflush(stdout); _exit(0);
    }
    int status; wait(&status);
    if (status) printf("%s: status %d\n", what, status);
}
static void plain(const char *path) { at(path, AT_FDCWD, path, arguments, 0); }
int main(int argc, char **argv) {
    if (argc < 2 || chdir(argv[1])) return 1;
    char *long_path = malloc(5001); memset(long_path, '/', 5000); strcpy(long_path + 4990, "fine");
    char long_name[300]; memset(long_name, 'x', 299); long_name[299] = 0;
    char *huge = malloc(200001); memset(huge, 'x', 200000); huge[200000] = 0;
    char *much[2000]; for (int i = 0; i < 1999; i++) much[i] = huge + 90000; much[1999] = NULL;
    char *too_large[] = { "name", huge, NULL }, *bad_argument[] = { "name", (char *)8, NULL };
    const char *names[] = { "missing", "missing/more", "fine/more", "fine/", "./fine/.", "plain", "directory", "directory/", "loop",
        "dangling", "fifo", "text", "empty", "truncated", "foreign", "no-interpreter", "directory-interpreter",
        "plain-interpreter", "no-loader", "private/fine", "private/missing", "private/../fine", "unreadable/fine", "unreadable/missing",
        "to-private", "unreadable-script", "private-script", "others", "busy", "nosuid/", "/proc/self/fd/99", "/proc/self/cmdline", "/dev/null", "noexec/fine",
        "noexec/script", "", "/", ".", "..", "/proc/1/root/bin/true", "/proc/1/exe", "/proc/1/cwd/bin/true" };
    int busy = open("busy", O_WRONLY);
    for (unsigned i = 0; i < sizeof names / sizeof *names; i++) plain(names[i]);
    close(busy);
    at("a long path", AT_FDCWD, long_path, arguments, 0);
    at("a long name", AT_FDCWD, long_name, arguments, 0);
    at("a large argument", AT_FDCWD, "fine", too_large, 0);
    at("large arguments", AT_FDCWD, "fine", much, 0);
    at("a bad path", AT_FDCWD, (char *)8, arguments, 0);
    at("a kernel path", AT_FDCWD, (char *)0xffffffff81000000, arguments, 0);
    at("bad arguments", AT_FDCWD, "fine", (char **)8, 0);
    at("a bad argument", AT_FDCWD, "fine", bad_argument, 0);
    at("a bad argument of a missing program", AT_FDCWD, "missing", bad_argument, 0);
    at("an unknown flag", AT_FDCWD, "fine", arguments, 0x40000);
    at("a link not followed", AT_FDCWD, "link", arguments, AT_SYMLINK_NOFOLLOW);
    at("a bad descriptor", 99, "fine", arguments, 0);
    at("a bad descriptor itself", 99, "", arguments, AT_EMPTY_PATH);
    at("no descriptor", AT_FDCWD, "", arguments, AT_EMPTY_PATH);
    at("a file as directory", open("fine", O_RDONLY), "fine", arguments, 0);
    at("a directory itself", open("directory", O_RDONLY), "", arguments, AT_EMPTY_PATH);
    at("a script that closes", open("script", O_RDONLY | O_CLOEXEC), "", arguments, AT_EMPTY_PATH);
    at("an empty path", open("fine", O_RDONLY), "", arguments, 0);
    return 0;
}
"#;

/// Fills a directory for [`FAILING`]; `noexec` in it is to be mounted.
fn fill(fixture: &Fixture) -> String {
    let at = |name: &str| fixture.path(&format!("cases/{name}"));
    for directory in ["", "directory", "private", "unreadable", "nosuid", "noexec"] {
        fs::create_dir(at(directory)).unwrap();
    }
    let mode = |name: &str, mode: u32| fs::set_permissions(at(name), fs::Permissions::from_mode(mode)).unwrap();
    let fine = fixture.compile("fine", RAN, &[]);
    for name in ["fine", "private/fine", "unreadable/fine", "busy", "others", "plain"] {
        fs::copy(&fine, at(name)).unwrap();
    }
    for (name, content) in [
        ("text", "just text\n"),
        ("empty", ""),
        ("truncated", "\x7fELF\x02\x01\x01"),
        ("script", "#!/bin/dash\n"),
        ("unreadable-script", "#!/bin/dash\n"),
        ("private-script", "#!private/fine\n"),
        ("no-interpreter", "#!/no/such\n"),
        ("directory-interpreter", "#!/etc\n"),
        ("plain-interpreter", "#!plain\n"),
    ] {
        script(&at(name), content);
    }
    let mut foreign = fs::read(&fine).unwrap();
    foreign[18] = 40; // EM_ARM
    script(&at("foreign"), foreign);
    let loader = fixture.compile("no-loader", RAN, &["-Wl,--dynamic-linker=/no/such/loader"]);
    fs::rename(loader, at("no-loader")).unwrap();
    for (target, name) in [("loop", "loop"), ("/no/such", "dangling"), ("fine", "link"), ("private/fine", "to-private")]
    {
        symlink(target, at(name)).unwrap();
    }
    assert_eq!(run(Command::new("mkfifo").arg("-m755").arg(at("fifo"))).code(), 0);
    for (name, bits) in [("plain", 0o644), ("others", 0o700), ("unreadable-script", 0o711)] {
        mode(name, bits);
    }
    for (name, bits) in [("private", 0o700), ("unreadable", 0o711), ("busy", 0o777)] {
        mode(name, bits);
    }
    text(at(""))
}

#[test]
fn an_exec_that_fails_fails_with_the_same_errno_as_without_us() {
    let fixture = Fixture::new(json!({ "allow_executables": ["/**"] }));
    let failing = text(fixture.compile("failing", FAILING, &[]));
    let cases = fill(&fixture);
    let policy = text(fixture.policy());
    // The supervisor that is no root writes its records there.
    fs::set_permissions(fixture.path(""), fs::Permissions::from_mode(0o777)).unwrap();
    let noexec = format!(
        "mount -t tmpfs -o noexec,mode=755 t {cases}/noexec && cp {cases}/fine {cases}/script {cases}/noexec && exec "
    );
    let user = "setpriv --reuid=1234 --regid=1234 --clear-groups --no-new-privs";
    let user_with_groups = "setpriv --reuid=1234 --regid=1234 --groups=77 --no-new-privs";
    let root_without = "setpriv --bounding-set=-all --no-new-privs --inh-caps=-all";
    for (name, before, command) in [
        ("root", "", ""),
        ("another user", "", user),
        ("another user with groups", "", user_with_groups),
        ("root without capabilities", "", root_without),
        ("a supervisor that is no root", user, ""),
    ] {
        let line = |with: &str| run(Command::new("unshare").args(["-m", "bash", "-c", &format!("{noexec}{with}")]));
        let _ = fs::remove_file(fixture.path("records"));
        let bare = line(&format!("{before} {command} {failing} {cases}"));
        let ours = line(&format!("{before} {CALLGATE} --policy {policy} {command} {failing} {cases}"));
        let expected: Vec<&str> = bare.stdout.lines().collect();
        let found: Vec<&str> = ours.stdout.lines().collect();
        assert!(expected.len() > 50, "{bare:?}");
        // Where the supervisor may not read a script, its interpreter could not either.
        let known = |bare: &str| bare == "unreadable-script: status 512" && name.starts_with("a supervisor");
        let pairs = expected.iter().zip(&found);
        let differ: Vec<_> = pairs.filter(|(bare, ours)| bare != ours && !known(bare)).collect();
        assert_eq!((differ, found.len()), (vec![], expected.len()), "{name} (bare, ours): {}", ours.stderr);
    }
}

#[test]
fn a_program_that_the_supervisor_may_not_read_is_refused_and_not_killed() {
    let fixture = Fixture::new(json!({ "allow_executables": ["/**"] }));
    let program = fixture.compile("program", RAN, &[]);
    let how = text(fixture.compile("how", HOW, &[]));
    fs::set_permissions(&program, fs::Permissions::from_mode(0o711)).unwrap();
    fs::set_permissions(fixture.path(""), fs::Permissions::from_mode(0o777)).unwrap();
    let user = ["--reuid=1234", "--regid=1234", "--clear-groups", CALLGATE, "--policy"];
    let outcome = run(Command::new("setpriv").args(user).arg(fixture.policy()).args([&how, "path", &text(&program)]));
    assert_eq!(outcome.stdout, "EACCES\n", "{}", why(&outcome, &fixture));
    assert_eq!(fixture.records()[0]["rule"], "unreadable");
    let as_root = run(fixture.callgate().arg("setpriv").args(&user[..3]).args([&how, "path", &text(&program)]));
    assert_eq!(as_root.stdout, "ran with 1\n", "{}", why(&as_root, &fixture));
}

/// A container's root is an overlay, on which a file's numbers in `/proc/PID/maps` may not be those of stat(2).
#[test]
fn programs_run_on_a_root_that_is_an_overlay() {
    let fixture = Fixture::allowing(&["/bin/bash", "/bin/ls"]);
    let at = text(fixture.path("overlay"));
    fs::create_dir(&at).unwrap();
    // The records and the policy, through the overlay, are the fixture's own.
    let line = format!(
        "mount -t tmpfs t {at} && mkdir {at}/upper {at}/work {at}/root \
         && mount -t overlay -o lowerdir=/,upperdir={at}/upper,workdir={at}/work o {at}/root \
         && mount --rbind /proc {at}/root/proc && mount --rbind /dev {at}/root/dev \
         && mkdir -p {at}/root/$(dirname {CALLGATE}) && cp -n {CALLGATE} {at}/root/$(dirname {CALLGATE}); cd / \
         && exec chroot {at}/root {CALLGATE} --policy {} bash -c 'ls -d /etc; cp /bin/ls /bin/own; /bin/own; whoami'",
        text(fixture.policy()),
    );
    let outcome = run(Command::new("unshare").args(["-m", "bash", "-c", &line]));
    assert_eq!(outcome.stdout, "/etc\n", "{outcome:?}");
    for denied in ["cp", "own", "whoami"] {
        assert!(outcome.stderr.contains(denied), "{outcome:?}");
    }
}

/// A denial never hides that there is nothing to run, and is told before what only the kernel's attempt would find out.
#[test]
fn a_denial_comes_after_what_the_path_says_and_before_what_the_content_says() {
    let fixture = with(|fixture| json!({ "allow_executables": [fixture.compile("failing", FAILING, &[])] }));
    let cases = fill(&fixture);
    let outcome = fixture.run(&[text(fixture.path("failing")), cases]);
    let errno = |what: &str| {
        let line = outcome.stdout.lines().find(|line| line.starts_with(&format!("{what}: ")));
        line.unwrap_or_else(|| panic!("{what}: {outcome:?}")).rsplit(' ').next().unwrap().to_owned()
    };
    for (what, expected) in [
        ("missing", "ENOENT"),
        ("fine/more", "ENOTDIR"),
        ("loop", "ELOOP"),
        ("a long path", "ENAMETOOLONG"),
        ("a bad path", "EFAULT"),
        ("a bad argument", "EFAULT"),
        ("no-interpreter", "ENOENT"),
        ("busy", "EACCES"),
        ("text", "EACCES"),
        ("large arguments", "EACCES"),
        ("directory", "EACCES"),
    ] {
        assert_eq!(errno(what), expected, "{what}");
    }
}

/// Whatever the hint of a denial says, doing it allows the exec.
#[test]
fn the_hint_of_a_denial_allows_it() {
    let fixture = with(|fixture| {
        fixture.compile("how", HOW, &[]);
        let loader = fixture.path("ld-own.so");
        fs::copy(fs::canonicalize("/lib64/ld-linux-x86-64.so.2").unwrap(), &loader).unwrap();
        fixture.compile("foreign", RAN, &[&format!("-Wl,--dynamic-linker={}", text(&loader))]);
        fixture.compile("ran", RAN, &[]);
        script(&fixture.path("script"), "#!/usr/bin/env dash\necho ran\n");
        json!({ "allow_executables": [] })
    });
    let how = text(fixture.path("how"));
    for command in [
        &[&how, "path", "/bin/whoami"][..],
        &[&text(fixture.path("foreign"))],
        &[&text(fixture.path("script"))],
        &["/lib64/ld-linux-x86-64.so.2", "/bin/true"],
        &[&how, "memfd", &text(fixture.path("ran"))],
        &[&how, "deleted", &text(fixture.path("script"))],
    ] {
        let mut list: Vec<String> = vec![];
        for round in 0.. {
            assert!(round < 6, "{command:?}: {list:?}");
            let policy = json!({
                "allow_executables": list,
                "audit": { "sinks": [format!("file:{}", text(fixture.path("records")))] },
            });
            fs::write(fixture.policy(), policy.to_string()).unwrap();
            let _ = fs::remove_file(fixture.path("records"));
            let outcome = fixture.run(command);
            let Some(record) = fixture.records().pop() else {
                assert_eq!(outcome.code(), 0, "{command:?}: {outcome:?}");
                break;
            };
            let hint = record["hint"].as_str().unwrap_or_else(|| panic!("{record}"));
            let entry = hint.split('"').nth(1).unwrap_or_else(|| panic!("{hint}"));
            assert!(!list.iter().any(|listed| listed == entry), "{command:?}: {hint} a second time");
            list.push(entry.to_owned());
        }
    }
}

#[test]
fn programs_under_strace_and_gdb_run_as_the_list_says() {
    let policy = json!({ "allow_executables": ["/**"], "deny_executables": ["/usr/bin/whoami"] });
    let fixture = Fixture::new(policy);
    let trace = text(fixture.path("trace"));
    let line = "for i in 1 2 3 4 5 6 7 8; do /bin/echo ran & done; wait; ls -d /etc; /usr/bin/whoami; exit 0";
    let failing = "/etc/hostname; /no/such; exec 3</etc/hostname; echo done";
    for (command, expected, times) in [
        (vec!["strace", "-o", &trace, "/bin/echo", "ran"], "ran", 1),
        (vec!["strace", "-f", "-o", &trace, "bash", "-c", line], "ran", 8),
        (vec!["strace", "-f", "-e", "trace=execve", "--seccomp-bpf", "-o", &trace, "bash", "-c", line], "ran", 8),
        (vec!["strace", "-f", "-o", &trace, "bash", "-c", failing], "done", 1),
        (vec!["gdb", "-nx", "-batch", "-ex", "run", "--args", "/bin/echo", "ran"], "ran", 1),
        (vec!["gdb", "-nx", "-batch", "-ex", "break main", "-ex", "run", "-ex", "c", "--args", &trace, "x"], "", 0),
        (
            vec!["bash", "-c", "sleep 60 & p=$!; strace -o /dev/null -p $p & sleep 0.2; kill $p; wait; echo done"],
            "done",
            1,
        ),
    ] {
        let outcome = run(plain(&fixture).args(&command));
        let found = outcome.stdout.lines().filter(|line| *line == expected).count();
        assert_eq!(found, times, "{command:?}: {}", why(&outcome, &fixture));
        assert!(!outcome.stdout.contains("root"), "{command:?}: {outcome:?}");
    }
    for record in fixture.records() {
        assert_eq!(record["rule"], "executables.denied", "{record}");
    }
}

#[test]
fn a_denied_file_that_nobody_may_execute_is_recorded_and_fails_as_without_us() {
    let fixture = Fixture::allowing(&[]);
    let (plain, script) = (fixture.path("plain"), fixture.path("script"));
    fs::write(&plain, "#!/bin/bash\n").unwrap();
    fs::write(&script, format!("#!{}\n", plain.display())).unwrap();
    fs::set_permissions(&script, fs::Permissions::from_mode(0o755)).unwrap();
    for (allowed, denied) in [(json!([]), 3), (json!([&plain, &script]), 0)] {
        let mut list = vec![json!("/bin/bash"), json!(format!("sha256:{}", "0".repeat(64)))];
        list.extend(allowed.as_array().unwrap().clone());
        let _ = fs::remove_file(fixture.path("records"));
        let records = format!("file:{}", fixture.path("records").display());
        let policy = json!({ "allow_executables": list, "audit": { "sinks": [records] } });
        fs::write(fixture.policy(), policy.to_string()).unwrap();
        // What waits for a reader is not read, although a digest would tell whether it is listed.
        let line = format!("for f in {} {} /proc/kmsg; do (exec $f); echo $?; done", plain.display(), script.display());
        let outcome = fixture.bash(&line);
        assert_eq!(outcome.stdout, "126\n126\n126\n", "{outcome:?}");
        assert!(!outcome.stderr.contains("not permitted"), "{outcome:?}");
        let records = fixture.records();
        let files: Vec<_> = records.iter().map(|record| record["file"]["path"].as_str().unwrap()).collect();
        let expected = [plain.to_str().unwrap(), script.to_str().unwrap(), "/proc/kmsg"];
        assert_eq!(files, if denied == 3 { &expected[..] } else { &expected[2..] });
        assert!(records.iter().all(|record| record["errno"]["name"] == "EACCES"), "{records:?}");
    }
}
