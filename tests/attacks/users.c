/* The workload becomes a user or a group that the policy does not allow.
 *
 * Besides setuid(2) there are seven calls, 16-bit and 32-bit forms of each for i386, lists of groups that are read from
 * memory (setgroups(2): a race like any other), and user namespaces, whose inside numbers mean other users outside.
 *
 *   users MODE ROUNDS      the policy allows uid 0 and gid 0; all need root
 * setuid, setreuid, setresuid, setfsuid, setgid, setregid, setresgid, setfsgid, setgroups: to 65534
 * effective    only the effective one (setresuid(-1, 65534, -1))       high     the number with garbage in the upper half
 * i386, i386-16, i386-groups   by int $0x80        groups-race   the list's entry is flipped between 0 and 65534
 * groups-second  the second entry of the list      thread        the raw call, for one thread only
 * userns-map     a user namespace that a helper outside maps 65534 into (uid_map), and there setresuid */
#include "attack.h"
#include <grp.h>
#include <pthread.h>
#include <sched.h>
#include <sys/fsuid.h>

enum { OTHER = 65534 };
static const char *mode;
static int last;
static int is(const char *m) { return !strcmp(mode, m); }
static long call(long number, long a, long b, long c) { long result = syscall(number, a, b, c); if (result < 0) last = errno; return result; }
static long enter_32(long number, long b, long c) {
    long result;
    __asm__ volatile("int $0x80" : "=a"(result) : "a"(number), "b"(b), "c"(c), "d"(0L) : "r8", "r9", "r10", "r11", "memory");
    if (result < 0) last = (int)-result;
    return result;
}

/* What the kernel thinks that this thread is, whatever the calls have returned. */
static void judge(void) {
    unsigned ids[3], more[3];
    gid_t groups[64];
    syscall(SYS_getresuid, &ids[0], &ids[1], &ids[2]);
    syscall(SYS_getresgid, &more[0], &more[1], &more[2]);
    for (int i = 0; i < 3; i++) if (ids[i] == OTHER || more[i] == OTHER) escaped("%s: uid %u %u %u, gid %u %u %u", mode, ids[0], ids[1], ids[2], more[0], more[1], more[2]);
    if (syscall(SYS_setfsuid, -1) == OTHER || syscall(SYS_setfsgid, -1) == OTHER) escaped("%s: the file system's uid or gid", mode);
    int n = getgroups(64, groups);
    for (int i = 0; i < n; i++) if (groups[i] == OTHER) escaped("%s: group %u", mode, groups[i]);
}
static gid_t list[4];
static void *flipper(void *unused) {
    (void)unused;
    for (unsigned n = 1;; n = n * 1103515245 + 12345) {
        *(volatile gid_t *)list = OTHER;
        spin_ns(n >> 8 & 2047);
        *(volatile gid_t *)list = 0;
        spin_ns(n >> 12 & 4095);
    }
    return NULL;
}
static void map(const char *file, const char *text) {
    int fd = open(file, O_WRONLY | O_CLOEXEC);
    if (fd < 0 || write(fd, text, strlen(text)) < 0) printf("%s: %s\n", file, strerror(errno));
    close(fd);
}
static void *alone(void *unused) {
    (void)unused;
    call(SYS_setresuid, OTHER, OTHER, OTHER);
    judge();
    return NULL;
}

int main(int argc, char **argv) {
    if (argc < 3) skip("usage: MODE ROUNDS");
    mode = argv[1];
    bound(5);
    if (geteuid()) skip("needs root");
    setgroups(0, NULL); /* not that we are in it already */
    pthread_t thread;
    gid_t *low = mmap(NULL, 4096, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_32BIT, -1, 0);
    int tries = 1, done = 0;
    low[0] = OTHER;
    if (is("setuid")) call(SYS_setuid, OTHER, 0, 0);
    else if (is("setreuid")) call(SYS_setreuid, OTHER, OTHER, 0);
    else if (is("setresuid")) call(SYS_setresuid, OTHER, OTHER, OTHER);
    else if (is("effective")) call(SYS_setresuid, -1, OTHER, -1);
    else if (is("high")) call(SYS_setuid, 7L << 32 | OTHER, 0, 0);
    else if (is("setfsuid")) call(SYS_setfsuid, OTHER, 0, 0);
    else if (is("setgid")) call(SYS_setgid, OTHER, 0, 0);
    else if (is("setregid")) call(SYS_setregid, OTHER, OTHER, 0);
    else if (is("setresgid")) call(SYS_setresgid, OTHER, OTHER, OTHER);
    else if (is("setfsgid")) call(SYS_setfsgid, OTHER, 0, 0);
    else if (is("setgroups")) call(SYS_setgroups, 1, (long)low, 0);
    else if (is("groups-second")) { low[0] = 0, low[1] = OTHER; call(SYS_setgroups, 2, (long)low, 0); }
    else if (is("i386")) enter_32(213 /* setuid32 */, OTHER, 0);
    else if (is("i386-16")) enter_32(23 /* setuid, 16 bits */, OTHER, 0);
    else if (is("i386-groups")) enter_32(206 /* setgroups32 */, 1, (long)low);
    else if (is("thread")) { pthread_create(&thread, NULL, alone, NULL); pthread_join(thread, NULL); }
    else if (is("groups-race")) {
        pthread_create(&thread, NULL, flipper, NULL);
        int64_t start = now_ns(), until = start + 2000000000LL;
        for (tries = 0; goes_on(tries, atoi(argv[2]), start, until); tries++) {
            spin_ns(tries * 37 % 3000);
            if (syscall(SYS_setgroups, 1, list) == 0) done++;
            judge();
        }
    } else if (is("userns-map")) {
        char line[64], c;
        int ready[2], go[2];
        unsigned uid;
        if (pipe(ready) || pipe(go)) skip("pipe");
        pid_t pid = fork_bounded();
        if (pid == 0) { /* root outside writes the map of a whole range */
            if (read(ready[0], &c, 1) != 1) _exit(1);
            snprintf(line, sizeof line, "/proc/%d/uid_map", getppid());
            map(line, "0 0 65535");
            _exit(write(go[1], "x", 1) < 0);
        }
        if (unshare(CLONE_NEWUSER)) held("unshare: %s", strerror(errno));
        if (write(ready[1], "x", 1) < 0 || read(go[0], &c, 1) != 1) held("the helper is gone");
        uid = (unsigned)syscall(SYS_getuid);
        if (uid == OTHER) held("userns-map: no map");
        call(SYS_setresuid, OTHER, OTHER, OTHER);
        if ((uid = (unsigned)syscall(SYS_getuid)) == OTHER) escaped("userns-map: uid %u, inside and outside", uid);
        held("userns-map: %s", strerror(last)); /* the gid is not mapped, and reads 65534 for that */
    } else skip("no mode %s", mode);
    judge();
    held("%s: %d tries, %d done, %s", mode, tries, done, last ? strerror(last) : "without effect");
}
