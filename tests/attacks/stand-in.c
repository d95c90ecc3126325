/* A careless enforcer, to show that the supervisor-* attacks work where nothing holds them: its name is callgate, it keeps
 * CALLGATE_TOKEN in its environment and its memory, holds a seccomp listener, leaks descriptor 5 to the workload, and enforces nothing.
 *
 *   CALLGATE_TOKEN=attack-secret-token stand-in PROGRAM [ARG ...]
 * It leads a process group of its own. A guard above it survives the attack, and exits as the program does. */
#include "attack.h"
#include <linux/filter.h>
#include <linux/seccomp.h>

int main(int argc, char **argv) {
    if (argc < 2) skip("usage: PROGRAM [ARG ...]");
    prctl(PR_SET_NAME, "callgate");
    prctl(PR_SET_CHILD_SUBREAPER, 1);
    pid_t stand_in = fork();
    if (stand_in == 0) {
        setpgid(0, 0);
        char *token = getenv("CALLGATE_TOKEN") ? strdup(getenv("CALLGATE_TOKEN")) : NULL;
        struct sock_filter code = BPF_STMT(BPF_RET | BPF_K, SECCOMP_RET_ALLOW);
        struct sock_fprog program = { 1, &code };
        prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0);
        if (syscall(SYS_seccomp, SECCOMP_SET_MODE_FILTER, SECCOMP_FILTER_FLAG_NEW_LISTENER, &program) < 0) _exit(SKIPPED);
        pid_t workload = fork();
        if (workload == 0) {
            setpgid(0, 0);
            unsetenv("CALLGATE_TOKEN");
            dup2(2, 5);
            execv(argv[1], argv + 1);
            _exit(127);
        }
        int status = reap(workload);
        free(token);
        _exit(WIFEXITED(status) ? WEXITSTATUS(status) : 128 + WTERMSIG(status));
    }
    prctl(PR_SET_NAME, "guard");
    sigset_t every;
    sigfillset(&every);
    sigprocmask(SIG_BLOCK, &every, NULL);
    int result = HELD;
    for (int status; ; ) {
        pid_t pid = wait(&status);
        if (pid < 0) return result;
        int code = WIFEXITED(status) ? WEXITSTATUS(status) : 128 + WTERMSIG(status);
        if (pid != stand_in || WIFEXITED(status)) result = code; /* the workload's own status, when it has become ours */
    }
}
