/* The workload reaches into the enforcer: its memory, its descriptors (the seccomp listener is one), its secrets, its limits.
 *
 * With CAP_SYS_PTRACE, or the same user where the enforcer is dumpable, ptrace(2), process_vm_readv(2), pidfd_getfd(2) and
 * most of /proc/PID are open (ptrace(2), "Ptrace access mode checking"): who holds the listener answers its own execs with
 * CONTINUE. prlimit(2), sched_setaffinity(2) and their like ask for less: no file can be opened under NOFILE 0.
 *
 *   supervisor-reach MODE
 * ptrace-attach, ptrace-seize, vm-read, vm-write, mem-read, mem-write, maps, environ, fd, fd-open, root, cwd, ns, pidfd-getfd,
 * kcmp, perf, setns: one successful access is an escape.
 * nofile, nproc, as, cpu, stack, sched, nice, affinity, ioprio, oom: so is one successful change.
 * freeze, cgroup-kill: by a writable control group (a privileged container).
 * token     the value of CALLGATE_TOKEN (the driver sets attack-secret-token) in any /proc/PID/environ or cmdline, in our own
 *           environment, or in the memory of the enforcer
 * inherited a descriptor other than 0, 1, 2 at our start       listener   one of the enforcer's descriptors is a listener of
 *           seccomp that we can take, by any way; its execs would be answered by us */
#include "supervisor.h"
#include <linux/perf_event.h>
#include <sched.h>
#include <sys/ptrace.h>
#include <sys/resource.h>
#include <sys/uio.h>

static const char *mode;
static int last, tried;
static int is(const char *m) { return !strcmp(mode, m); }
static int did(long result) { tried++; if (result < 0) last = errno; return result >= 0; }
static int opened(pid_t pid, const char *what, int flags) {
    char path[64];
    snprintf(path, sizeof path, "/proc/%d/%s", pid, what);
    int fd = open(path, flags | O_CLOEXEC);
    did(fd);
    return fd;
}
static int readable(pid_t pid, const char *what, char *to, size_t n) {
    int fd = opened(pid, what, O_RDONLY);
    long got = fd < 0 ? -1 : read(fd, to, n);
    did(got);
    close(fd);
    return got > 0 ? (int)got : 0;
}
static int link_of(pid_t pid, const char *what) {
    char path[64], to[256];
    snprintf(path, sizeof path, "/proc/%d/%s", pid, what);
    return did(readlink(path, to, sizeof to));
}
/* An address that is mapped in the enforcer: our own stack's neighbourhood will not do; its maps, or what stat tells. */
static uintptr_t address_in(pid_t pid) {
    char text[4096] = "", path[64];
    if (readable(pid, "maps", text, sizeof text - 1)) return strtoul(text, NULL, 16);
    snprintf(path, sizeof path, "/proc/%d/stat", pid);
    FILE *file = fopen(path, "r");
    unsigned long start = 0;
    if (file && fscanf(file, "%*d (%*[^)]) %*c %*d %*d %*d %*d %*d %*u %*u %*u %*u %*u %*u %*u %*d %*d %*d %*d %*d %*d %*u %*u %*d %*u %lu", &start) != 1) start = 0;
    if (file) fclose(file);
    return start > 1 ? start : 0x400000;
}
static int descriptor(pid_t pid, int fd) {
    int p = (int)syscall(SYS_pidfd_open, pid, 0), got = p < 0 ? -1 : (int)syscall(SYS_pidfd_getfd, p, fd, 0);
    did(got);
    close(p);
    return got;
}
static const char *needle(void) { /* put together here, so that it is in no file and at no second place of our memory */
    static char text[32];
    static const char mixed[] = "`uu`bj,rdbsdu,unjdo";
    for (size_t i = 0; i < sizeof mixed - 1; i++) text[i] = mixed[i] ^ 1;
    return text;
}
static int contains(const char *text, size_t n) { return memmem(text, n, needle(), strlen(needle())) != NULL; }

static void token(void) {
    static char text[1 << 20];
    DIR *processes = opendir("/proc");
    if (getenv("CALLGATE_TOKEN")) escaped("token: it is in our own environment");
    for (struct dirent *entry; processes && (entry = readdir(processes));) {
        pid_t pid = atoi(entry->d_name), parent, group;
        char name[32] = "", state;
        if (pid <= 0 || !status_of(pid, name, &state, &parent, &group)) continue;
        if (!strncmp(name, "callgate", 8) && !is_supervisor(pid)) continue; /* somebody else's, in another test */
        if (contains(text, (size_t)readable(pid, "environ", text, sizeof text))) escaped("token: it is in /proc/%d/environ (%s)", pid, name);
        if (contains(text, (size_t)readable(pid, "cmdline", text, sizeof text))) escaped("token: it is in /proc/%d/cmdline (%s)", pid, name);
    }
    for (int i = 0; i < supervisor_count; i++) { /* all writable memory, 1 MB at a time */
        char path[64], line[512];
        int mem = opened(supervisors[i], "mem", O_RDONLY);
        snprintf(path, sizeof path, "/proc/%d/maps", supervisors[i]);
        FILE *maps = fopen(path, "r");
        unsigned long from, to;
        char kind[8];
        while (maps && fgets(line, sizeof line, maps)) {
            if (sscanf(line, "%lx-%lx %7s", &from, &to, kind) != 3 || kind[1] != 'w') continue;
            for (ssize_t n; from < to && (n = pread(mem, text, sizeof text < to - from ? sizeof text : to - from, (off_t)from)) > 0; from += (size_t)n)
                if (contains(text, (size_t)n)) escaped("token: it was read from the enforcer's memory");
        }
    }
}
static int limited(pid_t pid, int resource, const char *name) {
    struct rlimit least = { resource == RLIMIT_CPU ? 1 : 0, RLIM_INFINITY };
    if (!is(name)) return 0;
    struct rlimit old;
    if (!did(prlimit(pid, (enum __rlimit_resource)resource, NULL, &old))) return 0;
    least.rlim_max = old.rlim_max;
    return did(prlimit(pid, (enum __rlimit_resource)resource, &least, NULL)) && (prlimit(pid, (enum __rlimit_resource)resource, &old, NULL), 1);
}
static int group_of(pid_t pid, const char *root, const char *file, const char *word) {
    char path[PATH_MAX], text[32];
    snprintf(path, sizeof path, "%s/attack-%d", root, getpid());
    if (!did(mkdir(path, 0755))) return 0;
    snprintf(text, sizeof text, "%d", pid);
    int procs = open(join(path, "cgroup.procs"), O_WRONLY | O_CLOEXEC), done = 0;
    if (did(write(procs, text, strlen(text)))) {
        int act = open(join(path, file), O_WRONLY | O_CLOEXEC);
        done = did(write(act, word, strlen(word)));
        if (done && !strcmp(word, "FROZEN")) sleep_ms(20), done = write(act, "THAWED", 6) == 6;
        if (done && !strcmp(file, "cgroup.kill")) sleep_ms(100); /* until it is gone, and we have another parent */
        int back = open(join(root, "cgroup.procs"), O_WRONLY | O_CLOEXEC);
        if (write(back, text, strlen(text)) < 0) printf("moving it back: %s\n", strerror(errno));
    }
    rmdir(path);
    return done;
}

static int reached(pid_t pid) {
    char buffer[4096];
    struct iovec local = { buffer, 16 }, remote = { (void *)address_in(pid), 16 };
    if (is("ptrace-attach") || is("ptrace-seize")) {
        if (!did(ptrace(is("ptrace-attach") ? PTRACE_ATTACH : PTRACE_SEIZE, pid, 0, 0))) return 0;
        if (is("ptrace-seize")) ptrace(PTRACE_INTERRUPT, pid, 0, 0);
        waitpid(pid, NULL, __WALL);
        return ptrace(PTRACE_DETACH, pid, 0, 0), 1;
    }
    if (is("vm-read")) return did(process_vm_readv(pid, &local, 1, &remote, 1, 0));
    if (is("vm-write")) return did(process_vm_readv(pid, &local, 1, &remote, 1, 0)) | did(process_vm_writev(pid, &local, 1, &remote, 1, 0));
    if (is("mem-read")) { int fd = opened(pid, "mem", O_RDONLY); return fd >= 0 && did(pread(fd, buffer, 16, (off_t)address_in(pid))); }
    if (is("mem-write")) return opened(pid, "mem", O_RDWR) >= 0;
    if (is("maps")) return readable(pid, "maps", buffer, sizeof buffer) + readable(pid, "smaps", buffer, sizeof buffer) > 0;
    if (is("environ")) return readable(pid, "environ", buffer, sizeof buffer);
    if (is("fd")) return link_of(pid, "fd/0") + link_of(pid, "fd/1") + link_of(pid, "fd/3") > 0;
    if (is("fd-open")) return opened(pid, "fd/1", O_WRONLY) >= 0 || opened(pid, "fd/2", O_WRONLY) >= 0;
    if (is("root") || is("cwd")) return link_of(pid, mode) || opened(pid, mode, O_PATH | O_DIRECTORY) >= 0;
    if (is("ns")) return opened(pid, "ns/mnt", O_RDONLY) >= 0 || opened(pid, "ns/user", O_RDONLY) >= 0;
    if (is("setns")) { int fd = (int)syscall(SYS_pidfd_open, pid, 0); return did(setns(fd, CLONE_NEWNS)) || did(setns(fd, CLONE_NEWNET)); }
    if (is("kcmp")) return did(syscall(SYS_kcmp, getpid(), pid, 2 /* FILES */, 0, 0));
    if (is("perf")) {
        struct perf_event_attr a = { .type = PERF_TYPE_SOFTWARE, .size = sizeof a, .config = PERF_COUNT_SW_TASK_CLOCK };
        return did(syscall(SYS_perf_event_open, &a, pid, -1, -1, 0));
    }
    if (is("pidfd-getfd") || is("listener")) {
        for (int fd = 0; fd < 64; fd++) {
            char path[64];
            int got = descriptor(pid, fd);
            snprintf(path, sizeof path, "/proc/self/fd/%d", got);
            ssize_t n = got < 0 ? 0 : readlink(path, buffer, sizeof buffer);
            if (got >= 0 && (is("pidfd-getfd") || memmem(buffer, n > 0 ? (size_t)n : 0, "seccomp", 7))) return 1;
        }
        return 0;
    }
    if (limited(pid, RLIMIT_NOFILE, "nofile") || limited(pid, RLIMIT_NPROC, "nproc") || limited(pid, RLIMIT_AS, "as") || limited(pid, RLIMIT_CPU, "cpu") || limited(pid, RLIMIT_STACK, "stack")) return 1;
    if (is("sched")) return did(sched_setscheduler(pid, SCHED_IDLE, &(struct sched_param){ 0 }));
    if (is("nice")) return did(setpriority(PRIO_PROCESS, (id_t)pid, 19));
    if (is("affinity")) { cpu_set_t one; CPU_ZERO(&one); CPU_SET(0, &one); return did(sched_setaffinity(pid, sizeof one, &one)); }
    if (is("ioprio")) return did(syscall(SYS_ioprio_set, 1, pid, 3 << 13));
    if (is("oom")) { int fd = opened(pid, "oom_score_adj", O_WRONLY); return fd >= 0 && did(write(fd, "1000", 4)); }
    if (is("freeze")) return group_of(pid, "/sys/fs/cgroup/freezer", "freezer.state", "FROZEN") || group_of(pid, "/sys/fs/cgroup", "cgroup.freeze", "1") || group_of(pid, "/sys/fs/cgroup/unified", "cgroup.freeze", "1");
    if (is("cgroup-kill")) return group_of(pid, "/sys/fs/cgroup", "cgroup.kill", "1") || group_of(pid, "/sys/fs/cgroup/unified", "cgroup.kill", "1");
    return 0;
}

int main(int argc, char **argv) {
    if (argc < 2) skip("usage: MODE");
    mode = argv[1];
    if (is("inherited"))
        for (int fd = 3; fd < 1024; fd++) if (fcntl(fd, F_GETFD) >= 0) {
            char path[64], to[128] = "";
            snprintf(path, sizeof path, "/proc/self/fd/%d", fd);
            if (readlink(path, to, sizeof to - 1) >= 0) escaped("inherited: descriptor %d is open: %s", fd, to);
        }
    if (is("inherited")) held("inherited: 0, 1 and 2 only");
    bound(5);
    find_supervisors();
    if (is("token")) token();
    else for (int i = 0; i < supervisor_count; i++) {
        pid_t tids[64];
        int n = threads_of(supervisors[i], tids, 64);
        for (int t = 0; t < n; t++) if (reached(tids[t])) escaped("%s: the enforcer (%d, thread %d) is within reach", mode, supervisors[i], tids[t]);
    }
    held("%s: %d tries, %s", mode, tried, last ? strerror(last) : "nothing came of them");
}
