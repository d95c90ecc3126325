/* The workload installs a seccomp filter of its own, and then runs the denied program.
 *
 * Of several filters the strictest action counts (seccomp(2)), but among equal actions the newest filter's: a workload that
 * gets a listener of its own answers its execs itself. The kernel gives EBUSY where there is a listener already, unless
 * the enforcer's was closed or is installed in another way.
 *
 *   exec-filter MODE DENIED MARKER
 * allow, log      everything            errno0   connect and execve "succeed", later filters are asked too
 * notif           USER_NOTIF for execve, without a listener
 * trace           TRACE for execve, and a tracer of the workload lets it go on
 * listener        USER_NOTIF for execve, with a listener, and a process of the workload that answers CONTINUE */
#include "attack.h"
#include <linux/filter.h>
#include <linux/seccomp.h>
#include <sched.h>
#include <sys/ioctl.h>
#include <sys/ptrace.h>

static const char *mode, *denied;
static _Atomic int listener = -1;
static int *note; /* the error of the installation, shared with the parent */

static long install(unsigned action, unsigned flags) {
    struct sock_filter code[] = { BPF_STMT(BPF_LD | BPF_W | BPF_ABS, 0), BPF_JUMP(BPF_JMP | BPF_JEQ | BPF_K, SYS_execve, 0, 1),
                                  BPF_STMT(BPF_RET | BPF_K, action), BPF_STMT(BPF_RET | BPF_K, SECCOMP_RET_ALLOW) };
    struct sock_fprog program = { 4, code };
    prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0);
    long result = syscall(SYS_seccomp, SECCOMP_SET_MODE_FILTER, flags, &program);
    *note = result < 0 ? errno : 0;
    return result;
}

static int child(void *unused) {
    char *argv[] = { (char *)denied, (char *)attack_marker, NULL };
    (void)unused;
    alarm(5);
    if (!strcmp(mode, "allow")) install(SECCOMP_RET_ALLOW, 0);
    else if (!strcmp(mode, "log")) install(SECCOMP_RET_LOG, 0);
    else if (!strcmp(mode, "errno0")) install(SECCOMP_RET_ERRNO, 0);
    else if (!strcmp(mode, "notif")) install(SECCOMP_RET_USER_NOTIF, 0);
    else if (!strcmp(mode, "listener")) listener = (int)install(SECCOMP_RET_USER_NOTIF, SECCOMP_FILTER_FLAG_NEW_LISTENER);
    else if (!strcmp(mode, "trace")) {
        if (ptrace(PTRACE_TRACEME, 0, 0, 0)) *note = errno;
        raise(SIGSTOP);
        install(SECCOMP_RET_TRACE, 0);
    }
    execve(denied, argv, environ);
    syscall(SYS_execveat, AT_FDCWD, denied, argv, environ, 0);
    _exit(REFUSED);
}

int main(int argc, char **argv) {
    if (argc < 4) skip("usage: MODE DENIED MARKER");
    mode = argv[1], denied = argv[2];
    use_marker(argv[3]);
    bound(5);
    note = shared_page(4096);
    static char stack[65536] __attribute__((aligned(16)));
    pid_t pid = clone(child, stack + sizeof stack, SIGCHLD | CLONE_FILES | (strcmp(mode, "listener") ? 0 : CLONE_VM), NULL);
    int status = 0;
    if (!strcmp(mode, "listener")) {
        struct seccomp_notif q;
        for (int i = 0; i < 1000 && listener < 0 && waitpid(pid, &status, WNOHANG) == 0; i++) sleep_ms(1);
        memset(&q, 0, sizeof q);
        while (listener >= 0 && !ioctl(listener, SECCOMP_IOCTL_NOTIF_RECV, &q)) {
            struct seccomp_notif_resp answer = { .id = q.id, .flags = SECCOMP_USER_NOTIF_FLAG_CONTINUE };
            ioctl(listener, SECCOMP_IOCTL_NOTIF_SEND, &answer);
            memset(&q, 0, sizeof q);
            if (marker_appears(1000)) break;
        }
    } else if (!strcmp(mode, "trace")) {
        reap(pid);
        ptrace(PTRACE_SETOPTIONS, pid, 0, PTRACE_O_TRACESECCOMP);
        do ptrace(PTRACE_CONT, pid, 0, 0); while (waitpid(pid, &status, __WALL) == pid && WIFSTOPPED(status));
    } else status = reap(pid);
    printf("installing the filter: %s\n", *note ? strerror(*note) : "done");
    conclude_attempt(status, mode);
}
