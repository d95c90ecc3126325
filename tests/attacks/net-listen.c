/* A port is opened that the policy does not allow, or a peer is let in that it does not.
 *
 * listen(2) without bind takes a free port by itself. bind and listen are races like connect; listen names only a
 * descriptor, whose socket another thread exchanges (dup2), or whose number means another socket in a thread with a table
 * of its own (CLONE_FILES). Needs no sink, but for `accept`: there the sink knocks from 127.0.0.2.
 *
 *   net-listen MODE ALLOWED_PORT DENIED_PORT ROUNDS
 * bind, bind-udp, any6   the denied port (any6: [::], which takes IPv4 too)    zero  listen on port 0, a free one    any  0.0.0.0
 * unbound, mptcp, i386, io-uring   listen without bind; a denied bind by other ways
 * race, race-udp, race-shared      the port is flipped by a thread, by a process
 * swap              the descriptor of a listen changes: bound to the allowed port, or not bound at all
 * table             a thread with its own table of descriptors
 * accept, accept-read   a peer from 127.0.0.2 (the policy allows 127.0.0.1 only), by accept4 on a non-blocking or a blocking socket */
#include "attack.h"
#include <arpa/inet.h>
#include <linux/io_uring.h>
#include <pthread.h>
#include <sched.h>
#include <sys/socket.h>

static const char *mode;
static struct sockaddr_in own, *at = &own;
static uint16_t good, bad;
static int fd_now = 40, rounds, bound_fd, free_fd;
static _Atomic int done, started;
static int is(const char *m) { return !strcmp(mode, m); }

static int new(int family, int type, int protocol) {
    int fd = socket(family, type | SOCK_CLOEXEC, protocol), one = 1;
    if (fd < 0) held("socket: %s", strerror(errno));
    setsockopt(fd, SOL_SOCKET, SO_REUSEADDR, &one, sizeof one);
    return fd;
}
static int port_of(int fd) {
    struct sockaddr_in6 a = { 0 };
    socklen_t n = sizeof a;
    getsockname(fd, (void *)&a, &n);
    return a.sin6_port;
}
static int listens(int fd) {
    int yes = 0;
    socklen_t n = sizeof yes;
    return !getsockopt(fd, SOL_SOCKET, SO_ACCEPTCONN, &yes, &n) && yes;
}
static void judge(int fd, const char *error) {
    if (listens(fd) && port_of(fd) != good) escaped("%s: listening on port %d", mode, ntohs((uint16_t)port_of(fd)));
    if (port_of(fd) && port_of(fd) != good && !is("zero")) escaped("%s: bound to port %d", mode, ntohs((uint16_t)port_of(fd)));
    if (error) held("%s: %s", mode, error);
}

static void *flipper(void *unused) {
    (void)unused;
    for (unsigned n = 1; !done; n = n * 1103515245 + 12345) {
        *(volatile uint16_t *)&at->sin_port = bad;
        started = 1;
        spin_ns(n >> 8 & 2047);
        *(volatile uint16_t *)&at->sin_port = good;
        spin_ns(n >> 12 & 4095);
    }
    return NULL;
}
static void race(int type) {
    pthread_t thread;
    int yes = 0, no = 0;
    if (is("race-shared")) {
        at = shared_page(4096);
        *at = own;
        if (!fork_bounded()) flipper(NULL);
    } else {
        pthread_create(&thread, NULL, flipper, NULL);
        while (!started) {}
    }
    int64_t start = now_ns(), until = start + 2000000000LL;
    for (int i = 0; goes_on(i, rounds, start, until); i++) {
        int fd = new(AF_INET, type, 0);
        spin_ns(i * 37 % 3000);
        if (bind(fd, (void *)at, sizeof *at)) no++; else yes++;
        judge(fd, NULL);
        close(fd);
    }
    held("%s: bound %d times, refused %d times%s", mode, yes, no, yes ? "" : " (vacuous: nothing was ever allowed)");
}

static void *exchanger(void *unused) {
    (void)unused;
    while (!done) { dup3(free_fd, fd_now, O_CLOEXEC); started = 1; spin_ns(2000); dup3(bound_fd, fd_now, O_CLOEXEC); spin_ns(3000); }
    return NULL;
}
static void swap(void) {
    pthread_t thread;
    int yes = 0, no = 0;
    bound_fd = new(AF_INET, SOCK_STREAM, 0), free_fd = new(AF_INET, SOCK_STREAM, 0);
    if (bind(bound_fd, (void *)&own, sizeof own)) held("binding the allowed port: %s", strerror(errno));
    pthread_create(&thread, NULL, exchanger, NULL);
    while (!started) {}
    int64_t start = now_ns(), until = start + 2000000000LL;
    for (int i = 0; goes_on(i, rounds * 5, start, until); i++) {
        spin_ns(i * 37 % 5000);
        if (listen(fd_now, 1)) no++; else yes++;
        judge(free_fd, NULL);
    }
    held("%s: done %d times, refused %d times", mode, yes, no);
}
static void *own_table(void *fd) {
    if (unshare(CLONE_FILES)) held("unshare: %s", strerror(errno));
    dup3(new(AF_INET, SOCK_STREAM, 0), (int)(intptr_t)fd, O_CLOEXEC);
    int result = listen((int)(intptr_t)fd, 1);
    judge((int)(intptr_t)fd, result ? strerror(errno) : "listening on the allowed port");
    return NULL;
}
static void ring_bind(void) { /* Linux 6.11 */
    struct io_uring_params p = { 0 };
    int r = (int)syscall(SYS_io_uring_setup, 4, &p), fd = new(AF_INET, SOCK_STREAM, 0);
    if (r < 0) held("io_uring_setup: %s", strerror(errno));
    char *q = mmap(NULL, 65536, PROT_READ | PROT_WRITE, MAP_SHARED, r, IORING_OFF_SQ_RING);
    struct io_uring_sqe *e = mmap(NULL, 65536, PROT_READ | PROT_WRITE, MAP_SHARED, r, (off_t)IORING_OFF_SQES);
    own.sin_port = bad;
    memset(e, 0, sizeof *e);
    e->opcode = 56 /* IORING_OP_BIND */, e->fd = fd, e->addr = (uintptr_t)&own, e->off = sizeof own;
    *(uint32_t *)(void *)(q + p.sq_off.array) = 0;
    __atomic_store_n((uint32_t *)(void *)(q + p.sq_off.tail), 1, __ATOMIC_RELEASE);
    syscall(SYS_io_uring_enter, r, 1, 1, IORING_ENTER_GETEVENTS, NULL, 0);
    judge(fd, "nothing happened");
}
static void accept_foreign(void) {
    int fd = new(AF_INET, SOCK_STREAM, 0), tries = 0;
    if (bind(fd, (void *)&own, sizeof own) || listen(fd, 16) || fcntl(fd, F_SETFL, is("accept") ? O_NONBLOCK : 0)) held("listening on the allowed port: %s", strerror(errno));
    for (int64_t until = now_ns() + 1500000000LL; now_ns() < until; tries++) {
        struct sockaddr_in peer = { 0 };
        socklen_t n = sizeof peer;
        int got = accept4(fd, (void *)&peer, &n, SOCK_NONBLOCK | SOCK_CLOEXEC);
        if (got < 0) { printf("accept: %s\n", strerror(errno)); sleep_ms(20); continue; }
        n = sizeof peer;
        getpeername(got, (void *)&peer, &n);
        if (peer.sin_addr.s_addr == htonl(INADDR_LOOPBACK + 1)) escaped("%s: a peer from 127.0.0.2 was let in", mode);
        close(got);
    }
    held("%s: %d tries", mode, tries);
}

int main(int argc, char **argv) {
    if (argc < 5) skip("usage: MODE ALLOWED_PORT DENIED_PORT ROUNDS");
    mode = argv[1], good = htons((uint16_t)atoi(argv[2])), bad = htons((uint16_t)atoi(argv[3])), rounds = atoi(argv[4]);
    bound(3);
    own = (struct sockaddr_in){ .sin_family = AF_INET, .sin_port = good, .sin_addr = { htonl(INADDR_LOOPBACK) } };
    int fd = -1, result = 0;
    if (is("race") || is("race-shared")) race(SOCK_STREAM);
    if (is("race-udp")) race(SOCK_DGRAM);
    if (is("swap")) swap();
    if (is("io-uring")) ring_bind();
    if (is("accept") || is("accept-read")) accept_foreign();
    if (is("table")) {
        pthread_t thread;
        fd = new(AF_INET, SOCK_STREAM, 0);
        if (bind(fd, (void *)&own, sizeof own)) held("binding the allowed port: %s", strerror(errno));
        pthread_create(&thread, NULL, own_table, (void *)(intptr_t)fd);
        pthread_join(thread, NULL);
    }
    if (is("bind") || is("bind-udp") || is("zero") || is("any")) {
        own.sin_port = is("zero") ? 0 : bad;
        if (is("any")) own.sin_addr.s_addr = 0;
        fd = new(AF_INET, is("bind-udp") ? SOCK_DGRAM : SOCK_STREAM, 0);
        result = bind(fd, (void *)&own, sizeof own);
        if (is("zero")) result = listen(fd, 1); /* a client may take a free port; a server may not */
    } else if (is("any6")) {
        struct sockaddr_in6 six = { .sin6_family = AF_INET6, .sin6_port = bad };
        fd = new(AF_INET6, SOCK_STREAM, 0);
        result = bind(fd, (void *)&six, sizeof six);
    } else if (is("unbound")) result = listen(fd = new(AF_INET, SOCK_STREAM, 0), 1);
    else if (is("mptcp")) result = listen(fd = new(AF_INET, SOCK_STREAM, 262), 1);
    else if (is("i386")) {
        long answer;
        fd = new(AF_INET, SOCK_STREAM, 0);
        __asm__ volatile("int $0x80" : "=a"(answer) : "a"(363L), "b"((long)fd), "c"(1L) : "r8", "r9", "r10", "r11", "memory");
        errno = (int)-answer, result = answer < 0;
    }
    if (fd < 0) skip("no mode %s", mode);
    judge(fd, result ? strerror(errno) : "no error, and no port");
    held("%s", mode);
}
