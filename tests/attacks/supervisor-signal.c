/* The workload kills or stops the enforcer: with it goes the audit log, and where a dead enforcer means an open door, all.
 *
 * A root workload may signal every process that it can name (kill(2)), and there are many ways beside kill: an owner for
 * SIGIO (fcntl(2) F_SETOWN, F_SETSIG), a limit of CPU time, pidfd_send_signal(2), the process group, everybody.
 *
 *   supervisor-signal MODE
 * kill, tkill, tgkill, sigqueue, tgsigqueue, pidfd    each with KILL, STOP, SEGV, USR1, HUP and a real-time signal
 * fcntl, fcntl-thread, ioctl, sigio                   SIGIO to an owner that is not ours (sigio: without F_SETSIG)
 * group     kill(-PGRP): only where the enforcer leads a group of its own (the driver sees to it)
 * all       kill(-1): only in a pid namespace of its own, where the enforcer is not the init process
 * i386      kill by int $0x80                         io  SIGIO with F_SETSIG SIGKILL on a socket, by its group
 * It escapes when the enforcer is gone or stopped afterwards, and we are not. */
#include "supervisor.h"
#include <sys/ioctl.h>
#include <sys/socket.h>

static const char *mode;
static int is(const char *m) { return !strcmp(mode, m); }

static void check(const char *how) {
    for (int i = 0; i < supervisor_count; i++) {
        char name[32], state = 'X';
        pid_t parent, group;
        int there = status_of(supervisors[i], name, &state, &parent, &group);
        if (there && !strchr("TtZX", state)) continue;
        if (there && strchr("Tt", state)) kill(supervisors[i], SIGCONT);
        escaped("%s: %s: the enforcer (%d) is %s", mode, how, supervisors[i], there && strchr("Tt", state) ? "stopped" : "dead");
    }
}
static void own_io(pid_t target, int command, int signal) {
    int pair[2];
    struct f_owner_ex owner = { F_OWNER_TID, target };
    if (socketpair(AF_UNIX, SOCK_STREAM, 0, pair)) held("socketpair: %s", strerror(errno));
    if (is("ioctl")) { if (ioctl(pair[0], FIOSETOWN, &target)) printf("FIOSETOWN: %s\n", strerror(errno)); }
    else if (command == F_SETOWN_EX) { if (fcntl(pair[0], F_SETOWN_EX, &owner)) printf("F_SETOWN_EX: %s\n", strerror(errno)); }
    else if (fcntl(pair[0], F_SETOWN, target)) printf("F_SETOWN: %s\n", strerror(errno));
    if (!is("sigio") && fcntl(pair[0], F_SETSIG, signal)) printf("F_SETSIG: %s\n", strerror(errno)); /* without it: SIGIO, which ends who does not expect it */
    if (fcntl(pair[0], F_SETFL, O_ASYNC)) printf("O_ASYNC: %s\n", strerror(errno));
    if (write(pair[1], "x", 1) < 0) printf("write: %s\n", strerror(errno));
    close(pair[0]);
    close(pair[1]);
}

static int send_one(pid_t pid, pid_t tid, int signal) {
    siginfo_t info = { .si_signo = signal, .si_code = SI_QUEUE };
    if (is("kill")) return kill(pid, signal);
    if (is("tkill")) return (int)syscall(SYS_tkill, tid, signal);
    if (is("tgkill")) return (int)syscall(SYS_tgkill, pid, tid, signal);
    if (is("sigqueue")) return (int)syscall(SYS_rt_sigqueueinfo, pid, signal, &info);
    if (is("tgsigqueue")) return (int)syscall(SYS_rt_tgsigqueueinfo, pid, tid, signal, &info);
    if (is("fcntl") || is("ioctl") || is("sigio")) { own_io(pid, F_SETOWN, signal); return 0; }
    if (is("io")) { own_io(-getpgid(pid), F_SETOWN, signal); return 0; }
    if (is("fcntl-thread")) { own_io(tid, F_SETOWN_EX, signal); return 0; }
    if (is("i386")) {
        long result;
        __asm__ volatile("int $0x80" : "=a"(result) : "a"(37L), "b"((long)pid), "c"((long)signal) : "r8", "r9", "r10", "r11", "memory");
        errno = result < 0 ? (int)-result : 0;
        return result < 0 ? -1 : 0;
    }
    if (is("pidfd")) {
        int fd = (int)syscall(SYS_pidfd_open, pid, 0), result = (int)syscall(SYS_pidfd_send_signal, fd, signal, NULL, 0);
        int error = errno;
        close(fd);
        errno = error;
        return result;
    }
    if (is("group")) return kill(-getpgid(pid), signal);
    if (is("all")) return kill(-1, signal);
    skip("no mode %s", mode);
}

int main(int argc, char **argv) {
    if (argc < 2) skip("usage: MODE");
    mode = argv[1];
    bound(5);
    sigset_t every;
    sigfillset(&every);
    sigdelset(&every, SIGALRM);
    sigprocmask(SIG_SETMASK, &every, NULL);
    find_supervisors();
    if (is("all")) {
        struct stat space;
        if (stat("/proc/self/ns/pid", &space) || space.st_ino == 0xEFFFFFFC) skip("kill(-1) is tried in a pid namespace of its own only");
        if (is_supervisor(1)) printf("the enforcer is the init process, which kill(-1) leaves out\n");
    }
    if (is("group") || is("io")) {
        if (getpgid(supervisors[0]) != supervisors[0]) skip("the enforcer does not lead a process group of its own");
        setpgid(0, 0); /* we are not to die with it */
        supervisor_count = 1; /* a launcher above it may share the workload's group, which kill(0) reaches by right */
    }
    int signals[] = { SIGUSR1, SIGHUP, SIGRTMIN + 3, SIGSEGV, SIGSTOP, SIGKILL }, refused = 0, passed = 0, last = 0;
    for (int s = 0; s < 6; s++)
        for (int i = 0; i < supervisor_count; i++) {
            pid_t tids[64];
            char what[64];
            int by_thread = is("tkill") || is("tgkill") || is("tgsigqueue") || is("fcntl-thread"), n = by_thread ? threads_of(supervisors[i], tids, 64) : 1;
            if (is("all") && signals[s] == SIGSTOP) continue;
            for (int t = 0; t < n; t++) {
                if (send_one(supervisors[i], by_thread ? tids[t] : supervisors[i], signals[s])) refused++, last = errno; else passed++;
            }
            sleep_ms(20);
            snprintf(what, sizeof what, "signal %d", signals[s]);
            check(what);
        }
    sleep_ms(100);
    check("in the end");
    held("%s: %d refused (%s), %d without effect", mode, refused, refused ? strerror(last) : "-", passed);
}
