/* A thread that shares less with its process than an enforcer thinks.
 *
 * unshare(2) gives one thread a working directory, a root (CLONE_FS) or a table of descriptors (CLONE_FILES) of its own.
 * An enforcer that looks at /proc/TGID/cwd, /proc/TGID/root or /proc/TGID/fd sees the leader's, where the same name or
 * number leads to the allowed program; the kernel uses the thread's, where it leads to the denied one.
 *
 *   exec-split-thread MODE ALLOWED DENIED MARKER DIR
 * cwd     execve("./NAME") from a thread that has changed its own working directory
 * root    execve(ALLOWED) from a thread that has changed its own root (needs root)
 * dirfd   execveat(7, NAME) and fd: execveat(7, "", AT_EMPTY_PATH) from a thread whose descriptor 7 is its own
 * procfd  execve("/proc/self/fd/7"): self is the process, and so the leader's table; tried with /proc/thread-self too */
#include "attack.h"
#include <pthread.h>
#include <sched.h>

static const char *mode, *allowed, *denied, *name, *evil;
static int is(const char *m) { return !strcmp(mode, m); }

static void make_parents(char *path) {
    for (char *slash = path + 1; (slash = strchr(slash, '/')); *slash++ = '/') { *slash = 0; mkdir(path, 0755); }
}

static void *thread(void *unused) {
    (void)unused;
    char *argv[] = { (char *)allowed, (char *)attack_marker, NULL };
    if (unshare(is("cwd") || is("root") ? CLONE_FS : CLONE_FILES)) _exit(SKIPPED);
    if (is("cwd")) {
        char way[PATH_MAX];
        snprintf(way, sizeof way, "./%s", name);
        if (chdir(evil)) _exit(SKIPPED);
        execve(way, argv, environ);
    } else if (is("root")) {
        if (chroot(evil)) _exit(SKIPPED);
        execve(allowed, argv, environ);
    } else {
        int fd = open(is("dirfd") ? evil : denied, O_PATH);
        dup2(fd, 7);
        if (is("dirfd")) syscall(SYS_execveat, 7, name, argv, environ, 0);
        else if (is("fd")) syscall(SYS_execveat, 7, "", argv, environ, AT_EMPTY_PATH);
        else execve("/proc/thread-self/fd/7", argv, environ);
    }
    _exit(REFUSED);
}

int main(int argc, char **argv) {
    if (argc < 6) skip("usage: MODE ALLOWED DENIED MARKER DIR");
    mode = argv[1], allowed = argv[2], denied = argv[3];
    use_marker(argv[4]);
    bound(5);
    name = base_of(allowed), evil = join(argv[5], "evil");
    mkdir(evil, 0755);
    char good[PATH_MAX], inside[2 * PATH_MAX];
    snprintf(good, sizeof good, "%.*s", (int)(name - allowed - 1), allowed);
    copy_to(denied, join(evil, name));
    if (is("root")) { /* the marker's path must lead to the same directory inside: the attack's own DIR is the new root */
        if (geteuid()) skip("chroot needs root");
        snprintf(inside, sizeof inside, "%s%s", evil, allowed);
        make_parents(inside);
        copy_to(denied, inside);
        use_marker("/marker");
    }
    pid_t pid = fork_bounded();
    if (pid == 0) {
        pthread_t other;
        if (chdir(good)) _exit(SKIPPED);
        dup2(open(is("dirfd") ? good : allowed, O_PATH), 7);
        pthread_create(&other, NULL, thread, NULL);
        pthread_join(other, NULL);
        _exit(REFUSED);
    }
    int status = reap(pid);
    if (is("root")) { /* the denied program wrote inside the new root */
        attack_marker = argv[4];
        if (!access(join(evil, "marker"), F_OK) && !rename(join(evil, "marker"), attack_marker)) escaped("root: the denied program ran");
    }
    if (WIFEXITED(status) && WEXITSTATUS(status) == SKIPPED) held("%s: the thread could not be prepared", mode);
    conclude_attempt(status, mode);
}
