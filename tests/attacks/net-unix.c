/* AF_UNIX: names in a file system that the workload can change, and names outside it.
 *
 * unix(7): a path is resolved at the connect, so a symbolic link that changes leads the kernel elsewhere than the check;
 * abstract names are in no file system; datagrams name their receiver in each send. The policy allows allowed.sock and
 * allowed.dgram in DIR. The sink listens on denied.sock, denied.dgram, and the abstract name attack-PORT.
 *
 *   net-unix MODE DENIED_PORT MARKER DIR ROUNDS
 * connect, sendto, sendmsg   the denied ones as they are     abstract   attack-PORT       relative, dots   by other paths
 * link       DIR/link is a symbolic link to denied.sock      replace    allowed.sock becomes a link to denied.sock
 * bytes      the path's bytes are flipped by a thread
 * flip       DIR/link is flipped between both while it is connected     flip-send  the same, for datagrams
 * chdir      ./x.sock, and a thread changes the working directory       thread-cwd a thread's own working directory (CLONE_FS) */
#include "attack.h"
#include <pthread.h>
#include <sched.h>
#include <stddef.h>
#include <sys/socket.h>
#include <sys/un.h>

static const char *mode, *dir;
static struct sockaddr_un name = { .sun_family = AF_UNIX };
static int rounds, yes, no, good_dir, evil_dir;
static _Atomic int done, started;
static int is(const char *m) { return !strcmp(mode, m); }
static void set(const char *path) { snprintf(name.sun_path, sizeof name.sun_path, "%s", path); }
static socklen_t length(void) { return (socklen_t)(offsetof(struct sockaddr_un, sun_path) + strlen(name.sun_path) + 1); }

static void attempt(int datagram, socklen_t n) {
    int fd = socket(AF_UNIX, (datagram ? SOCK_DGRAM : SOCK_STREAM) | SOCK_CLOEXEC, 0);
    struct iovec data = { "x", 1 };
    struct msghdr m = { .msg_name = &name, .msg_namelen = n, .msg_iov = &data, .msg_iovlen = 1 };
    if (fd < 0) held("socket: %s", strerror(errno));
    long result = is("sendmsg") ? sendmsg(fd, &m, MSG_DONTWAIT) : datagram ? sendto(fd, "x", 1, MSG_DONTWAIT, (void *)&name, n) : connect(fd, (void *)&name, n);
    if (result < 0) no++; else yes++;
    if (result < 0 && rounds == 1) printf("%s: %s\n", mode, strerror(errno));
    close(fd);
}
static void put(int wrong) {
    if (is("chdir")) { if (fchdir(wrong ? evil_dir : good_dir)) _exit(REFUSED); return; }
    if (is("bytes")) { memcpy(name.sun_path + strlen(dir) + 1, wrong ? "denied.sock\0" : "allowed.sock", 13 - !wrong); return; }
    const char *suffix = is("flip-send") ? "dgram" : "sock";
    char target[PATH_MAX], spare[PATH_MAX], link[PATH_MAX];
    snprintf(target, sizeof target, "%s/%s.%s", dir, wrong ? "denied" : "allowed", suffix);
    snprintf(spare, sizeof spare, "%s/spare", dir);
    snprintf(link, sizeof link, "%s/link", dir);
    unlink(spare);
    if (!symlink(target, spare)) rename(spare, link);
}
static void *flipper(void *unused) {
    (void)unused;
    for (unsigned n = 1; !done; n = n * 1103515245 + 12345) { put(1); started = 1; spin_ns(n >> 8 & 8191); put(0); spin_ns(n >> 12 & 16383); }
    return NULL;
}
static void *own_directory(void *unused) {
    (void)unused;
    if (unshare(CLONE_FS)) held("unshare: %s", strerror(errno));
    if (!fchdir(evil_dir)) attempt(0, length());
    return NULL;
}

int main(int argc, char **argv) {
    if (argc < 6) skip("usage: MODE DENIED_PORT MARKER DIR ROUNDS");
    mode = argv[1], attack_marker = argv[3], dir = argv[4], rounds = 1;
    bound(5);
    const char *stream = join(dir, "denied.sock"), *datagram = join(dir, "denied.dgram"), *allowed = join(dir, "allowed.sock"), *link = join(dir, "link");
    pthread_t thread;
    if (is("connect")) { set(stream); attempt(0, length()); }
    else if (is("sendto") || is("sendmsg")) { set(datagram); attempt(1, length()); }
    else if (is("abstract")) {
        int n = snprintf(name.sun_path + 1, sizeof name.sun_path - 1, "attack-%s", argv[2]);
        attempt(0, (socklen_t)(offsetof(struct sockaddr_un, sun_path) + 1 + (size_t)n));
    } else if (is("relative")) { if (!chdir(dir)) { set("denied.sock"); attempt(0, length()); } }
    else if (is("dots")) { mkdir(join(dir, "x"), 0755); set(join(dir, "x/../denied.sock")); attempt(0, length()); set(join("/proc/self/root", stream)); attempt(0, length()); }
    else if (is("link")) { if (symlink(stream, link)) skip("symlink"); set(link); attempt(0, length()); }
    else if (is("replace")) { if (unlink(allowed) || symlink(stream, allowed)) skip("symlink"); set(allowed); attempt(0, length()); }
    else {
        rounds = atoi(argv[5]);
        const char *good = join(dir, "good"), *evil = join(dir, "evil");
        mkdir(good, 0755);
        mkdir(evil, 0755);
        if (symlink(allowed, join(good, "x.sock")) || symlink(stream, join(evil, "x.sock"))) skip("symlink");
        good_dir = open(good, O_PATH | O_CLOEXEC), evil_dir = open(evil, O_PATH | O_CLOEXEC);
        set(is("bytes") ? allowed : is("chdir") || is("thread-cwd") ? "./x.sock" : link);
        if (is("thread-cwd")) {
            if (fchdir(good_dir)) skip("chdir");
            rounds = 1;
            pthread_create(&thread, NULL, own_directory, NULL);
            pthread_join(thread, NULL);
        } else {
            put(0);
            pthread_create(&thread, NULL, flipper, NULL);
            while (!started) {}
            int64_t start = now_ns(), until = start + 2000000000LL;
            for (int i = 0; goes_on(i, rounds, start, until) && (i % 16 || !marker_exists()); i++) { spin_ns(i * 37 % 7000); attempt(is("flip-send"), is("bytes") ? sizeof name : length()); }
            done = 1;
        }
    }
    if (marker_appears(200)) escaped("%s: a denied socket was reached", mode);
    held("%s: done %d times, refused %d times%s", mode, yes, no, rounds > 1 && !yes ? " (vacuous: nothing was ever allowed)" : "");
}
