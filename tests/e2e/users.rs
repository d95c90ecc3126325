//! Who processes may be: the users and groups that they run as and switch to.

use std::fs;
use std::process::Command;

use serde_json::{Value, json};

use crate::harness::{Fixture, Outcome, run};

/// Makes one change, as its arguments name it, and says how that went. `in:` before it: in a user namespace whose user 0
/// is the caller. `thread:` before it: on one thread only.
const CHANGE: &str = r#"
#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <grp.h>
#include <pthread.h>
#include <sched.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/fsuid.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <unistd.h>
static char **word; static long a, b, c;
static void put(const char *path, const char *text) { int f = open(path, O_WRONLY); if (write(f, text, strlen(text)) < 0) perror(path); close(f); }
static int change(void) {
    const char *call = *word;
    if (!strcmp(call, "setuid")) return setuid(a);
    if (!strcmp(call, "setgid")) return setgid(a);
    if (!strcmp(call, "setreuid")) return setreuid(a, b);
    if (!strcmp(call, "setregid")) return setregid(a, b);
    if (!strcmp(call, "setresuid")) return setresuid(a, b, c);
    if (!strcmp(call, "setresgid")) return setresgid(a, b, c);
    if (!strcmp(call, "seteuid")) return seteuid(a);
    if (!strcmp(call, "setfsuid")) { setfsuid(a); return setfsuid(-1) == (int)a ? 0 : (errno = EPERM, -1); }
    if (!strcmp(call, "setfsgid")) { setfsgid(a); return setfsgid(-1) == (int)a ? 0 : (errno = EPERM, -1); }
    if (!strcmp(call, "raw-setuid")) return syscall(SYS_setuid, a | 0x700000000);
    if (!strcmp(call, "setgroups")) { gid_t list[3]; int n = 0; for (char **w = word + 1; *w && n < 3; w++) list[n++] = atol(*w); return setgroups(n, list); }
    if (!strcmp(call, "bad-setgroups")) return syscall(SYS_setgroups, 2, 8);
    if (!strcmp(call, "many-setgroups")) return syscall(SYS_setgroups, 70000, 8);
    exit(99);
}
static void *on_thread(void *result) { *(int *)result = change() ? errno : 0; return NULL; }
int main(int argc, char **argv) {
    (void)argc; int result = 0, in_thread = 0; word = argv + 1;
    for (;; word++) {
        if (!strcmp(*word, "in:")) {
            char map[64]; int uid = geteuid(), gid = getegid();
            if (unshare(CLONE_NEWUSER)) { perror("unshare"); return 98; }
            snprintf(map, sizeof map, "0 %d 1", uid); put("/proc/self/uid_map", map);
            put("/proc/self/setgroups", "deny");
            snprintf(map, sizeof map, "0 %d 1", gid); put("/proc/self/gid_map", map);
        } else if (!strcmp(*word, "mapped:")) { /* several users, mapped by a parent outside */
            int ready[2], go[2]; char byte; if (pipe(ready) || pipe(go)) return 97;
            pid_t pid = fork();
            if (pid) {
                char path[64]; int status; close(ready[1]); if (read(ready[0], &byte, 1)) {}
                snprintf(path, sizeof path, "/proc/%d/uid_map", pid); put(path, "0 1000 3\n10 2000 1");
                snprintf(path, sizeof path, "/proc/%d/gid_map", pid); put(path, "0 1000 3\n10 2000 1");
                close(go[1]); waitpid(pid, &status, 0); return WEXITSTATUS(status);
            }
            close(go[1]); if (unshare(CLONE_NEWUSER)) { perror("unshare"); return 98; }
            close(ready[1]); if (read(go[0], &byte, 1)) {}
        } else if (!strcmp(*word, "thread:")) in_thread = 1;
        else if (!strcmp(*word, "then:")) word++, result = 0;
        else break;
    }
    for (;;) {
        a = word[1] ? atol(word[1]) : 0; b = word[1] && word[2] ? atol(word[2]) : 0; c = word[1] && word[2] && word[3] ? atol(word[3]) : 0;
        if (in_thread) { pthread_t id; pthread_create(&id, NULL, on_thread, &result); pthread_join(id, NULL); }
        else result = change() ? errno : 0;
        printf("%s\n", result ? strerrorname_np(result) : "ok");
        while (*word && strcmp(*word, "then:")) word++;
        if (!*word) break;
        word++;
    }
    return 0;
}
"#;

/// A policy on users for any program, and the program that makes changes.
fn fixture(users: Value) -> Fixture {
    let fixture = Fixture::new(json!({ "allow_executables": ["/**"], "users": users }));
    fixture.compile("change", CHANGE, &[]);
    fixture
}

fn change(fixture: &Fixture, change: &str) -> Outcome {
    let program = fixture.path("change").to_str().unwrap().to_owned();
    let words = std::iter::once(program.as_str()).chain(change.split_whitespace()).collect::<Vec<_>>();
    run(fixture.callgate().args(words))
}

#[test]
fn each_call_that_changes_the_user_is_decided_by_all_its_ids() {
    let fixture = fixture(json!({ "uids": [0, "1000-1999"], "gids": [0, 50, "100-200"] }));
    for (allowed, denied) in [
        ("setuid 1000", "setuid 2000"),
        ("setgid 150", "setgid 51"),
        ("setreuid 1000 1999", "setreuid 1000 999"),
        ("setreuid -1 1000", "setreuid 77 -1"),
        ("setregid 100 50", "setregid 100 201"),
        ("setresuid 1000 1001 0", "setresuid 1000 1001 5"),
        ("setresgid 50 100 200", "setresgid 50 99 200"),
        ("seteuid 1500", "seteuid 2500"),
        ("setfsuid 1000", "setfsuid 65534"),
        ("setfsgid 100", "setfsgid 65534"),
        ("raw-setuid 1000", "raw-setuid 4000"),
        ("setgroups 50 100", "setgroups 50 7"),
        ("setgroups", "setgroups 1"),
        ("thread: setuid 1000", "thread: setuid 3"),
    ] {
        let outcome = change(&fixture, allowed);
        assert_eq!(outcome.stdout, "ok\n", "{allowed}: {outcome:?} {:?}", fixture.records());
        let before = fixture.records().len();
        let outcome = change(&fixture, denied);
        assert_eq!(outcome.stdout, "EPERM\n", "{denied}: {outcome:?}");
        let records = fixture.records();
        assert!(records.len() > before, "{denied}");
        let record = records.last().unwrap();
        assert_eq!((&record["event"], &record["errno"]["name"]), (&json!("credentials"), &json!("EPERM")), "{record}");
        assert!(record["hint"].as_str().unwrap().contains("to users."), "{record}");
    }
}

#[test]
fn what_the_kernel_would_refuse_it_refuses_itself() {
    let fixture = fixture(json!({ "uids": [0, 1000], "gids": [0, 1000] }));
    for case in ["setuid -1", "setresuid -1 -1 -1", "bad-setgroups", "many-setgroups", "setuid 1000 then: setuid 0"] {
        let bare = run(Command::new(fixture.path("change")).args(case.split_whitespace()));
        let ours = change(&fixture, case);
        assert_eq!((ours.code(), ours.stdout), (bare.code(), bare.stdout), "{case}: {}", ours.stderr);
    }
    assert_eq!(fixture.records(), Vec::<Value>::new());
}

#[test]
fn programs_that_change_the_user_work_as_far_as_they_are_allowed() {
    let python = |call: &str| format!("import os; os.{call}; print(os.getuid(), os.getgid())");
    let (listed, other, group) = (python("setuid(1234)"), python("setuid(1235)"), python("setgroups([99])"));
    let fixture = fixture(json!({ "uids": [0, 1234, 65534], "gids": [0, 1234, 65534] }));
    let nobody = ["--reuid=65534", "--regid=65534", "--clear-groups"];
    for (command, expected, said) in [
        (vec!["/usr/bin/python3", "-c", &listed], Some("1234 0\n"), ""),
        (vec!["/usr/bin/python3", "-c", &other], None, "PermissionError: [Errno 1]"),
        (vec!["/usr/bin/python3", "-c", &group], None, "PermissionError: [Errno 1]"),
        ([&["setpriv"], &nobody[..], &["id", "-u"]].concat(), Some("65534\n"), ""),
        (vec!["setpriv", "--reuid=77", "id", "-u"], None, "Operation not permitted"),
        (vec!["setpriv", "--reuid=1234", "--regid=77", "--clear-groups", "id"], None, "Operation not permitted"),
        (vec!["runuser", "-u", "nobody", "--", "id", "-u"], Some("65534\n"), ""),
        (vec!["runuser", "-u", "daemon", "--", "id", "-u"], None, "Operation not permitted"),
        (vec!["su", "-s", "/bin/sh", "nobody", "-c", "id -u"], Some("65534\n"), ""),
        (vec!["su", "-s", "/bin/sh", "daemon", "-c", "id -u"], None, "Operation not permitted"),
        (vec!["chroot", "--userspec=1234:1234", "/", "id", "-u"], Some("1234\n"), ""),
        (vec!["chroot", "--userspec=1:1234", "/", "id", "-u"], None, "Operation not permitted"),
    ] {
        let before = fixture.records().len();
        let outcome = fixture.run(&command);
        match expected {
            Some(expected) => assert_eq!(outcome.stdout, expected, "{command:?}: {outcome:?}"),
            None => {
                assert!(outcome.stdout.is_empty() && outcome.stderr.contains(said), "{command:?}: {outcome:?}");
                assert!(fixture.records().len() > before, "{command:?}");
            }
        }
    }
}

#[test]
fn a_command_of_a_user_who_is_not_listed_does_not_run() {
    let fixture = fixture(json!({ "uids": [1234] }));
    let outcome = fixture.run(&["id"]);
    assert_eq!((outcome.code(), outcome.stdout.as_str()), (126, ""), "{outcome:?}");
    let record = &fixture.records()[0];
    assert_eq!((&record["event"], &record["rule"]), (&json!("exec"), &json!("users.user-not-listed")));
    assert_eq!((&record["subject"]["uid"], &record["errno"]["name"]), (&json!(0), &json!("EACCES")));
}

#[test]
fn without_a_section_users_are_not_governed() {
    let fixture = Fixture::allowing(&["/**"]);
    fixture.compile("change", CHANGE, &[]);
    assert_eq!(change(&fixture, "setgroups 7 then: setresgid 7 8 9 then: setresuid 7 8 9").stdout, "ok\nok\nok\n");
}

/// Ids in the arguments are those of the caller's user namespace; the policy's are those of the supervisor's.
#[test]
fn in_a_user_namespace_an_id_means_whom_it_is_mapped_to() {
    let fixture = fixture(json!({ "uids": [0, 1000, 1001], "gids": [0, 1000, 1001] }));
    for (case, expected) in [
        // User 0 of the namespace is user 0 outside.
        ("in: setuid 0", "ok\n"),
        ("in: setuid 1", "EINVAL\n"),
        ("in: setuid 1000", "EINVAL\n"),
        // 0 to 2 are 1000 to 1002, of which the last is not listed, and 10 is 2000.
        ("mapped: setresuid 0 1 0", "ok\n"),
        ("mapped: setresuid 0 2 0", "EPERM\n"),
        ("mapped: setuid 10", "EPERM\n"),
        ("mapped: setuid 1000", "EINVAL\n"),
        ("mapped: setgid 1", "ok\n"),
        ("mapped: setgid 2", "EPERM\n"),
        ("mapped: setgroups 0 1", "ok\n"),
        ("mapped: setgroups 0 2", "EPERM\n"),
        ("mapped: setgroups 0 1000", "EINVAL\n"),
    ] {
        let outcome = change(&fixture, case);
        assert_eq!(outcome.stdout, expected, "{case}: {outcome:?} {:#?}", fixture.records().last());
        let bare = run(Command::new(fixture.path("change")).args(case.split_whitespace()));
        assert_eq!(bare.stdout, if expected == "EPERM\n" { "ok\n" } else { expected }, "{case}: {bare:?}");
    }
    let denied: Vec<Value> = fixture
        .records()
        .into_iter()
        .flat_map(|record| record["uids"].as_array().cloned().unwrap_or_default())
        .collect();
    assert_eq!(denied, [1000, 1002, 1000, 2000].map(|id| json!(id)), "{:#?}", fixture.records());
}

#[test]
fn every_thread_whose_user_the_library_changes_is_decided_on() {
    let source = r#"
        #include <errno.h>
        #include <pthread.h>
        #include <stdio.h>
        #include <sys/syscall.h>
        #include <unistd.h>
        static pthread_barrier_t ready, done; static long uids[8];
        static void *wait_for_it(void *n) { pthread_barrier_wait(&ready); pthread_barrier_wait(&done); uids[(long)n] = syscall(SYS_geteuid); return NULL; }
        int main(void) {
            pthread_t threads[8]; pthread_barrier_init(&ready, NULL, 9); pthread_barrier_init(&done, NULL, 9);
            for (long i = 0; i < 8; i++) pthread_create(&threads[i], NULL, wait_for_it, (void *)i);
            pthread_barrier_wait(&ready); int result = setuid(1234) ? errno : 0; pthread_barrier_wait(&done);
            for (int i = 0; i < 8; i++) { pthread_join(threads[i], NULL); printf("%ld ", uids[i]); }
            printf("%d\n", result);
        }"#;
    let policy =
        json!({ "allow_executables": ["/**"], "users": { "uids": [0, 1234] }, "audit": { "decisions": "all" } });
    let fixture = Fixture::new(policy);
    let program = fixture.compile("threads", source, &[]);
    assert_eq!(fixture.run(&[&program]).stdout, "1234 ".repeat(8) + "0\n");
    let changes = fixture.records().into_iter().filter(|record| record["event"] == "credentials").count();
    assert_eq!(changes, 9);
}

/// setgroups(2) takes its list from memory.
#[test]
fn a_list_of_groups_flipped_by_a_thread_gives_no_other_groups() {
    let source = r#"
        #define _GNU_SOURCE
        #include <pthread.h>
        #include <stdio.h>
        #include <stdlib.h>
        #include <sys/syscall.h>
        #include <sys/wait.h>
        #include <unistd.h>
        static volatile gid_t list[1] = { 50 }; static volatile int stop;
        static void *flip(void *arg) { while (!stop) { list[0] = 7; list[0] = 50; } return arg; }
        int main(int argc, char **argv) {
            int rounds = atoi(argv[1]), evil = 0, good = 0, killed = 0, denied = 0; (void)argc;
            for (int i = 0; i < rounds; i++) {
                int status; pid_t pid = fork();
                if (!pid) {
                    pthread_t id; pthread_create(&id, NULL, flip, NULL); usleep(50);
                    for (int t = 0; t < 10; t++) {
                        gid_t now[4]; int failed = syscall(SYS_setgroups, 1, list);
                        if (failed) continue;
                        if (getgroups(4, now) == 1 && now[0] == 7) _exit(7);
                        t = 100;
                    }
                    _exit(list[0] ? 0 : 1);
                }
                waitpid(pid, &status, 0);
                if (WIFSIGNALED(status)) killed++; else if (WEXITSTATUS(status) == 7) evil++; else if (status) denied++; else good++;
            }
            printf("evil %d good %d killed %d denied %d\n", evil, good, killed, denied);
            return 0;
        }"#;
    let fixture = Fixture::new(json!({ "allow_executables": ["/**"], "users": { "gids": [0, 50] } }));
    let program = fixture.compile("groups", source, &[]).to_str().unwrap().to_owned();
    let bare = run(Command::new(&program).arg("500"));
    assert!(!bare.stdout.starts_with("evil 0 "), "the race is no race: {bare:?}");
    let outcome = fixture.run(&[&program, "1000"]);
    assert!(outcome.stdout.starts_with("evil 0 good "), "{outcome:?}");
    assert!(!outcome.stdout.contains("good 0") && !outcome.stdout.contains("killed 0"), "{outcome:?}");
}

#[test]
fn the_hint_of_a_denial_allows_it() {
    let fixture = fixture(json!({}));
    for case in ["setresuid 5 6 7", "setresgid 5 6 7", "setgroups 5 6", "setuid 1234"] {
        let mut users = json!({ "uids": [0], "gids": [0] });
        for round in 0.. {
            assert!(round < 5, "{case}: {users}");
            let policy = json!({
                "allow_executables": ["/**"],
                "users": users,
                "audit": { "sinks": [format!("file:{}", fixture.path("records").display())] },
            });
            fs::write(fixture.policy(), policy.to_string()).unwrap();
            let _ = fs::remove_file(fixture.path("records"));
            let outcome = change(&fixture, case);
            let Some(record) = fixture.records().pop() else {
                assert_eq!(outcome.stdout, "ok\n");
                break;
            };
            let hint = record["hint"].as_str().unwrap().to_owned();
            let words: Vec<&str> = hint.split_whitespace().collect();
            let ["add", id, "to", list] = words[..] else { panic!("{hint}") };
            users[list.strip_prefix("users.").unwrap()].as_array_mut().unwrap().push(id.parse::<u32>().unwrap().into());
        }
    }
}
