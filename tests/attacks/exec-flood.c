/* The enforcer is made busy, or its callers die under its hands, and the denied program is tried all the while.
 *
 * An enforcer that lets a call pass when it is late, out of descriptors, or confused about whom it speaks to (pid reuse, a
 * notification whose caller has died, the leader's id that another thread takes over at an exec), loses here.
 *
 *   exec-flood MODE ALLOWED DENIED MARKER SECONDS
 * execs     24 processes run the allowed program without end     threads   8 threads of one process exec at once, one of them
 * kill      callers are killed at random moments of their exec             the denied program
 * exit      the leader has exited when a thread execs            bad       notifications with bad arguments, 24 processes
 * forks     200 processes are born and die                       vfork     as execs, by vfork: the parent hangs with the child */
#include "attack.h"
#include <pthread.h>
#include <sched.h>

static const char *allowed, *denied;
static const char *mode;
static int is(const char *m) { return !strcmp(mode, m); }

static void *exec_thread(void *path) {
    char *argv[] = { path, (char *)attack_marker, NULL };
    execve(path, argv, environ);
    return NULL;
}
static void from_threads(int which) {
    pthread_t thread[8];
    for (int i = 0; i < 8; i++) pthread_create(&thread[i], NULL, exec_thread, (void *)(i == which % 8 ? denied : allowed));
    for (int i = 0; i < 8; i++) pthread_join(thread[i], NULL);
    _exit(REFUSED);
}
static void *after_the_leader(void *path) {
    sleep_ms(2);
    exec_thread(path);
    syscall(SYS_exit_group, REFUSED);
    return NULL;
}

/* One step of a busy process. */
static void step(unsigned n) {
    char *argv[] = { (char *)allowed, NULL };
    if (is("bad")) { syscall(SYS_execve, (long)n, argv, environ); syscall(SYS_execveat, -1, "", argv, environ, AT_EMPTY_PATH); return; }
    pid_t pid = is("vfork") ? (pid_t)syscall(SYS_clone, CLONE_VFORK | SIGCHLD, 0, 0, 0, 0) : fork();
    if (pid == 0) {
        if (is("forks")) { for (int i = 0; i < 3; i++) if (fork() == 0) break; _exit(0); }
        execve(allowed, argv, environ);
        _exit(REFUSED);
    }
    if (is("kill")) { spin_ns(n % 700 * 1000); kill(pid, SIGKILL); }
    reap(pid);
}

int main(int argc, char **argv) {
    if (argc < 6) skip("usage: MODE ALLOWED DENIED MARKER SECONDS");
    mode = argv[1], allowed = argv[2], denied = argv[3];
    use_marker(argv[4]);
    int seconds = atoi(argv[5]), busy = is("execs") || is("bad") || is("vfork") ? 24 : is("kill") || is("forks") ? 6 : 0;
    bound((unsigned)seconds + 3);
    signal(SIGCHLD, SIG_DFL);
    int64_t until = now_ns() + seconds * 1000000000LL;
    for (int i = 0; i < busy; i++) {
        if (fork_bounded()) continue;
        for (unsigned n = (unsigned)i; now_ns() < until; n = n * 1103515245 + 12345) step(n >> 8);
        _exit(0);
    }
    struct tally tally = { 0 };
    for (int round = 0; now_ns() < until && !marker_exists(); round++) {
        pid_t pid = fork_bounded();
        if (pid == 0) {
            pthread_t thread;
            if (is("threads")) from_threads(round);
            if (is("exit")) {
                pthread_create(&thread, NULL, after_the_leader, (void *)(round % 2 ? denied : allowed));
                syscall(SYS_exit, 0);
            }
            exec_thread((void *)(round % 2 ? denied : allowed));
            _exit(REFUSED);
        }
        if (is("kill") && round % 4 == 3) { spin_ns(moment_of(round)); kill(pid, SIGKILL); }
        count(&tally, reap(pid));
    }
    if (!marker_exists()) { /* afterwards everything is as before */
        int after = try_exec(allowed);
        printf("afterwards the allowed program %s\n", WIFEXITED(after) && WEXITSTATUS(after) == 0 ? "runs" : "does not run");
        try_exec(denied);
    }
    conclude(&tally, mode);
}
