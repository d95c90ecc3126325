/* Callers of whom a plugin wants to know something that they keep: a FUSE server of their own never answers.
 *
 *   held_facts MODE GOOD DIR [leave]     needs root and /dev/fuse, and works in a mount namespace of its own
 * environment   the environment of the new program lies in a page that never comes
 * digest        the program is a file, and who serves it does not say more of it at some point
 * overlay       the same, with an overlay between
 * stream        standard input is a file whose attributes are not told
 * executable    an ancestor runs a file whose attributes are not told
 * Meanwhile somebody else runs GOOD, and is timed. Goes on at the end of standard input. With "leave" the server stays. */
#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <linux/fuse.h>
#include <sched.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/mount.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

enum { HELD = 24, ROUNDS = 30, SIZE = 1 << 20, FIRST = 10 };
extern char **environ;
static const char *mode;
static int device, own;
static struct stat self;
static volatile sig_atomic_t silent;
static struct { volatile int held, asked[HELD]; } *shared;
static int is(const char *name) { return !strcmp(mode, name); }
static void fall_silent(int signal) { (void)signal; silent = 1; }

static void reply(uint64_t id, int error, const void *data, size_t n) {
    static char buffer[200000];
    struct fuse_out_header head = { .len = (uint32_t)(sizeof head + n), .error = error, .unique = id };
    memcpy(buffer, &head, sizeof head);
    if (n) memcpy(buffer + sizeof head, data, n);
    if (write(device, buffer, head.len) < 0 && errno != ENOENT) _exit(1);
}
static struct fuse_attr attributes(uint64_t node) {
    uint64_t size = is("executable") ? (uint64_t)self.st_size : SIZE;
    return (struct fuse_attr){ .ino = node, .size = size, .blocks = 8, .mode = node == 1 ? S_IFDIR | 0755 : S_IFREG | 0755, .nlink = 1, .blksize = 4096 };
}
static void serve(void) { /* a directory (1) of files that are called by numbers */
    static char request[FUSE_MIN_READ_BUFFER + 131072], content[131072];
    signal(SIGUSR1, fall_silent);
    alarm(50);
    for (;;) {
        ssize_t got = read(device, request, sizeof request);
        if (got < 0 && errno == EINTR) continue;
        if (got <= 0) _exit(0);
        struct fuse_in_header *in = (void *)request;
        char *body = request + sizeof *in;
        struct fuse_read_in *part = (void *)body;
        if (in->opcode == FUSE_INIT) {
            struct fuse_init_out out = { .major = 7, .minor = 31, .max_readahead = 0, .max_write = 4096 };
            reply(in->unique, 0, &out, sizeof out);
        } else if (in->opcode == FUSE_LOOKUP) {
            uint64_t node = FIRST + strtoul(body, NULL, 10);
            struct fuse_entry_out out = { .nodeid = node, .attr = attributes(node) };
            reply(in->unique, 0, &out, sizeof out);
        } else if (in->opcode == FUSE_GETATTR) {
            struct fuse_attr_out out = { .attr = attributes(in->nodeid) };
            if (silent) shared->held++; else reply(in->unique, 0, &out, sizeof out);
        } else if (in->opcode == FUSE_OPEN || in->opcode == FUSE_OPENDIR) {
            struct fuse_open_out out = { .fh = 1 };
            reply(in->unique, 0, &out, sizeof out);
        } else if (in->opcode == FUSE_STATFS) { /* to find the file, and then for its digest */
            struct fuse_statfs_out out = { .st = { .bsize = 4096, .namelen = 255 } };
            if (is("digest") && in->nodeid >= FIRST && shared->asked[in->nodeid - FIRST]++) shared->held++; else reply(in->unique, 0, &out, sizeof out);
        } else if (in->opcode == FUSE_READ) {
            if (is("environment") || (is("overlay") && part->offset)) { shared->held++; continue; }
            ssize_t n = part->size;
            if (is("executable")) n = pread(own, content, part->size, part->offset);
            reply(in->unique, 0, content, n);
        } else if (in->opcode != FUSE_FORGET && in->opcode != FUSE_INTERRUPT && in->opcode != FUSE_BATCH_FORGET) reply(in->unique, -ENOSYS, NULL, 0);
    }
}
static int skip(const char *what) { printf("skipped: %s: %s\n", what, strerror(errno)); return 0; }
static long milliseconds(void) { struct timespec now; clock_gettime(CLOCK_MONOTONIC, &now); return now.tv_sec * 1000 + now.tv_nsec / 1000000; }
static void nap(long ms) { struct timespec pause = { ms / 1000, ms % 1000 * 1000000 }; nanosleep(&pause, NULL); }
static int runs(char **arguments) { /* to its end */
    int status;
    pid_t pid = fork();
    if (!pid) { execve(arguments[0], arguments, environ); _exit(100); }
    return waitpid(pid, &status, 0) == pid && !status;
}

int main(int argc, char **argv) {
    char path[4000], other[4200], options[9000], pid_text[16], *good[] = { argv[2], NULL };
    pid_t pids[HELD];
    mode = argv[1];
    if (is("parent")) { /* run from the file system: a shell is to run something when its parent runs another file of it */
        int begin[2], ready[2];
        if (pipe(begin) || pipe(ready)) return 1;
        snprintf(options, sizeof options, "echo; exec >&2; read go; for n in 1 2 3; do %s || exit 1; done; exit 0", argv[2]);
        char *shell[] = { "/bin/sh", "-c", options, NULL }, *next[] = { argv[4], "silencer", argv[2], argv[3], NULL };
        if (!fork()) { dup2(begin[0], 0), dup2(ready[1], 1); close(begin[1]), close(ready[1]); execve(shell[0], shell, environ); _exit(1); }
        close(ready[1]);
        if (read(ready[0], options, 1) != 1) return 1;
        dup2(begin[1], 9);
        execve(next[0], next, environ);
        return 1;
    }
    if (is("silencer")) {
        int status;
        kill(atoi(argv[3]), SIGUSR1), nap(50);
        if (write(9, "\n", 1) != 1 || wait(&status) < 0 || status) return 1;
        return puts("ran") < 0;
    }
    shared = mmap(NULL, sizeof *shared, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
    own = open("/proc/self/exe", O_RDONLY | O_CLOEXEC);
    fstat(own, &self);
    if ((device = open("/dev/fuse", O_RDWR | O_CLOEXEC)) < 0) return skip("/dev/fuse");
    if (unshare(CLONE_NEWNS) || mount(NULL, "/", NULL, MS_REC | MS_PRIVATE, NULL)) return skip("a mount namespace");
    snprintf(path, sizeof path, "%s/fuse", argv[3]);
    snprintf(other, sizeof other, "%s/other", argv[3]);
    mkdir(path, 0755), mkdir(other, 0755);
    snprintf(options, sizeof options, "fd=%d,rootmode=40000,user_id=0,group_id=0,allow_other", device);
    if (mount("held", path, "fuse", 0, options)) return skip("a mount");
    pid_t server = fork();
    if (!server) serve();
    close(device);
    if (is("overlay")) {
        snprintf(options, sizeof options, "lowerdir=%s:%s", path, other);
        snprintf(other, sizeof other, "%s/over", argv[3]);
        mkdir(other, 0755);
        if (mount("held", other, "overlay", MS_RDONLY, options)) return skip("an overlay");
        strcpy(path, other);
    }
    if (is("executable")) {
        snprintf(pid_text, sizeof pid_text, "%d", server);
        strcat(strcpy(other, path), "/1");
        strcat(path, "/0");
        char *arguments[] = { path, "parent", argv[2], pid_text, other, NULL };
        if (!runs(arguments)) printf("the descendants were held\n");
    }
    strcat(strcpy(other, path), "/0");
    int file = is("executable") ? -1 : open(other, O_RDONLY | O_CLOEXEC);
    char *page = mmap(NULL, 4096, PROT_READ, MAP_PRIVATE, file, 0);
    if (is("stream")) kill(server, SIGUSR1), nap(50);
    for (int i = 0; i < HELD && !is("executable"); i++) {
        if ((pids[i] = fork())) continue;
        char *arguments[] = { argv[2], NULL };
        snprintf(other, sizeof other, "%s/%d", path, i);
        if (is("stream")) dup2(file, 0), execve(argv[2], arguments, environ);
        else if (is("environment")) execve(argv[2], arguments, (char **)(void *)page);
        else execve(other, arguments, environ);
        _exit(0);
    }
    for (int waited = 0; !shared->held && waited < 5000 && !is("executable") && !is("stream"); waited += 5) nap(5);
    long slowest = 0, begun = milliseconds();
    int refused = 0;
    for (int i = 0; i < ROUNDS; i++) {
        long before = milliseconds();
        refused += !runs(good);
        long took = milliseconds() - before;
        if (took > slowest) slowest = took;
    }
    printf("slowest %ld of %ld ms; %d refused, %d requests held\n", slowest, milliseconds() - begun, refused, shared->held);
    fflush(stdout);
    if (argc > 4) _exit(0);
    while (getchar() != EOF) {}
    for (int i = 0; i < HELD && !is("executable"); i++) kill(pids[i], SIGKILL);
    kill(server, SIGKILL);
    while (wait(NULL) > 0) {}
    return 0;
}
