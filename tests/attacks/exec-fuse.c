/* A file system of the workload's own answers late, or differently each time (FUSE, /dev/fuse).
 *
 * userfaultfd holds only readers that say they can wait; a page of a FUSE file holds every reader of it, /proc/PID/mem
 * too, and a path in a FUSE mount holds whoever looks it up (stat, open). An enforcer that touches either in its only
 * thread stands still for everybody while the file system's server, a process of the workload, keeps silent.
 *
 *   exec-fuse MODE ALLOWED DENIED MARKER DIR     needs root and /dev/fuse, and works in a mount namespace of its own
 * stall-page    the path of an exec lies in a page that never comes; another process wants to run the allowed program
 * stall-argv    the same, for the page of argv                stall-lookup   an exec of a file whose lookup is never answered
 * page          the page reads ALLOWED at first, is dropped (FUSE_NOTIFY_INVAL_INODE), and reads DENIED (and reverse) */
#include "attack.h"
#include <linux/fuse.h>
#include <sched.h>
#include <sys/mount.h>

enum { HOLDERS = 64 }; /* callers that are held at once: a pool of threads is used up too */
static const char *mode, *allowed, *denied;
static int device;
static struct { _Atomic int reads, first, held; } *shared;
static int is(const char *m) { return !strcmp(mode, m); }

static void reply(uint64_t id, int error, const void *data, size_t n) {
    char buffer[8192];
    struct fuse_out_header head = { .len = (uint32_t)(sizeof head + n), .error = error, .unique = id };
    memcpy(buffer, &head, sizeof head);
    if (n) memcpy(buffer + sizeof head, data, n);
    if (write(device, buffer, head.len) < 0 && errno != ENOENT) _exit(1);
}
static struct fuse_attr attributes(uint64_t node) {
    return (struct fuse_attr){ .ino = node, .size = 4096, .blocks = 8, .mode = node == 1 ? S_IFDIR | 0755 : S_IFREG | 0755, .nlink = 1, .blksize = 4096 };
}
static void invalidate(void) {
    struct { struct fuse_out_header head; struct fuse_notify_inval_inode_out what; } n = { { sizeof n, FUSE_NOTIFY_INVAL_INODE, 0 }, { 2, 0, 0 } };
    if (write(device, &n, sizeof n) < 0) _exit(1);
}
static void serve(void) { /* one directory (1) with one file (2) called x, and a name called late that is never answered */
    static char request[FUSE_MIN_READ_BUFFER + 131072];
    while (read(device, request, sizeof request) > 0) {
        struct fuse_in_header *in = (void *)request;
        char *body = request + sizeof *in;
        if (in->opcode == FUSE_INIT) {
            struct fuse_init_out out = { .major = 7, .minor = 31, .max_readahead = 0, .max_write = 4096 };
            reply(in->unique, 0, &out, sizeof out);
        } else if (in->opcode == FUSE_LOOKUP) {
            if (!strcmp(body, "late")) { shared->held++; continue; }
            struct fuse_entry_out out = { .nodeid = 2, .attr = attributes(2) };
            reply(in->unique, strcmp(body, "x") ? -ENOENT : 0, &out, strcmp(body, "x") ? 0 : sizeof out);
        } else if (in->opcode == FUSE_GETATTR) {
            struct fuse_attr_out out = { .attr = attributes(in->nodeid) };
            reply(in->unique, 0, &out, sizeof out);
        } else if (in->opcode == FUSE_OPEN || in->opcode == FUSE_OPENDIR) {
            struct fuse_open_out out = { .fh = 1 };
            reply(in->unique, 0, &out, sizeof out);
        } else if (in->opcode == FUSE_READ) {
            if (!is("page")) { shared->held++; continue; }
            char page[4096] = "";
            strcpy(page, (shared->reads++ + shared->first) % 2 ? denied : allowed);
            reply(in->unique, 0, page, sizeof page);
            if (shared->reads == 1) { spin_ns(20000); invalidate(); }
        } else if (in->opcode != FUSE_FORGET && in->opcode != FUSE_INTERRUPT && in->opcode != FUSE_BATCH_FORGET) reply(in->unique, -ENOSYS, NULL, 0);
    }
    _exit(0);
}

int main(int argc, char **argv) {
    if (argc < 6) skip("usage: MODE ALLOWED DENIED MARKER DIR");
    mode = argv[1], allowed = argv[2], denied = argv[3];
    use_marker(argv[4]);
    bound(4);
    shared = shared_page(4096);
    const char *point = join(argv[5], "fuse");
    char options[128];
    mkdir(point, 0755);
    device = open("/dev/fuse", O_RDWR | O_CLOEXEC);
    if (device < 0) skip("/dev/fuse: %s", strerror(errno));
    if (unshare(CLONE_NEWNS) || mount(NULL, "/", NULL, MS_REC | MS_PRIVATE, NULL)) held("a mount namespace: %s", strerror(errno));
    snprintf(options, sizeof options, "fd=%d,rootmode=40000,user_id=0,group_id=0,allow_other", device);
    if (mount("attack", point, "fuse", MS_NOSUID | MS_NODEV, options)) held("mount: %s", strerror(errno));
    pid_t server = fork_bounded();
    if (server == 0) serve();
    int file = open(join(point, "x"), O_RDONLY | O_CLOEXEC), status = 0;
    if (file < 0) skip("opening a file of our file system: %s", strerror(errno));
    char *page = mmap(NULL, 4096, PROT_READ, MAP_PRIVATE, file, 0);
    for (int attempt = 0; attempt < (is("page") ? 50 : 1) && !marker_exists(); attempt++) {
        char *words[] = { (char *)allowed, (char *)attack_marker, NULL };
        if (is("page")) { invalidate(); madvise(page, 4096, MADV_DONTNEED); }
        shared->reads = 0;
        shared->first = attempt;
        pid_t pid = 1;
        for (int i = 0; i < (is("page") ? 1 : HOLDERS) && pid; i++) pid = fork_bounded();
        if (pid == 0) {
            close(device); /* else its own silence would keep the connection, and itself, alive for ever */
            if (is("stall-argv")) execve(denied, (char **)(void *)page, environ);
            else execve(is("stall-lookup") ? join(point, "late") : page, words, environ);
            _exit(REFUSED);
        }
        if (is("page")) { status = reap(pid); continue; }
        sleep_ms(200);
        pid_t innocent = fork_bounded();
        if (innocent == 0) { execl(allowed, allowed, (char *)NULL); _exit(REFUSED); }
        int went_on = 0, held_now;
        for (int ms = 0; ms < 2000 && !went_on; ms += 10, sleep_ms(10)) went_on = waitpid(innocent, &status, WNOHANG) == innocent;
        held_now = shared->held;
        kill(server, SIGKILL); /* the last holders of the device: everything that waits gets ENOTCONN */
        close(device);
        if (went_on) held("%s: another process went on (status %d) while our silence holds %d requests", mode, status, held_now);
        escaped("%s: an unanswered request stopped the enforcer for another process", mode);
    }
    conclude_attempt(status, mode);
}
