// A long list of network calls, each of which prints what it returned. Under a policy that allows all of it the output
// must be the same as without one.
#define _GNU_SOURCE
#include <arpa/inet.h>
#include <errno.h>
#include <fcntl.h>
#include <linux/errqueue.h>
#include <netinet/tcp.h>
#include <netinet/udp.h>
#include <poll.h>
#include <pthread.h>
#include <signal.h>
#include <stddef.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/time.h>
#include <sys/un.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

#ifndef SO_PEERPIDFD
#define SO_PEERPIDFD 77
#endif
#ifndef UDP_SEGMENT
#define UDP_SEGMENT 103
#endif

static const char *topic;
static void say(const char *what, long result) {
    int error = errno;
    if (result < 0) printf("%s: %s: %s\n", topic, what, strerrorname_np(error));
    else printf("%s: %s: %ld\n", topic, what, result);
}
#define TRY(call) (errno = 0, say(#call, (long)(call)))
#define IS(what, condition) printf("%s: %s: %s\n", topic, what, (condition) ? "yes" : "no")
#define BAD ((void *)8)

static double now(void) {
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return t.tv_sec + t.tv_nsec / 1e9;
}

static struct sockaddr_in v4(int port) {
    struct sockaddr_in a = {.sin_family = AF_INET, .sin_port = htons(port)};
    a.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
    return a;
}
static struct sockaddr_in own(int fd) {
    struct sockaddr_in a;
    socklen_t l = sizeof a;
    getsockname(fd, (void *)&a, &l);
    return a;
}
static int listening(int backlog) {
    int fd = socket(AF_INET, SOCK_STREAM, 0);
    struct sockaddr_in a = v4(0);
    bind(fd, (void *)&a, sizeof a);
    listen(fd, backlog);
    return fd;
}
#define ADDR(a) (struct sockaddr *)&a, sizeof a

// A port that nobody listens on.
static struct sockaddr_in closed(void) {
    int fd = listening(1);
    struct sockaddr_in a = own(fd);
    close(fd);
    return a;
}
static void limit(int fd, int option, int ms) {
    struct timeval t = {ms / 1000, ms % 1000 * 1000};
    setsockopt(fd, SOL_SOCKET, option, &t, sizeof t);
}

static int in_a_child(int (*work)(void)) {
    fflush(stdout);
    int status, pid = fork();
    if (!pid) { int code = work(); fflush(stdout); _exit(code); }
    waitpid(pid, &status, 0);
    return WIFSIGNALED(status) ? 1000 + WTERMSIG(status) : WEXITSTATUS(status);
}

static volatile int handled;
static void on_signal(int n) { (void)n; handled++; }
static void handle(int number, int flags) {
    struct sigaction a = {.sa_handler = on_signal, .sa_flags = flags};
    sigaction(number, &a, 0);
}
static void every(int ms) {
    struct itimerval t = {{ms / 1000, ms % 1000 * 1000}, {ms / 1000, ms % 1000 * 1000}};
    setitimer(ITIMER_REAL, &t, 0);
}

static void connects(void) {
    topic = "connect";
    int l = listening(8), c;
    struct sockaddr_in open = own(l), none = closed();
    c = socket(AF_INET, SOCK_STREAM, 0);
    TRY(connect(c, ADDR(open)));
    TRY(connect(c, ADDR(open)));
    TRY(fcntl(c, F_GETFL) & O_NONBLOCK);
    close(c);
    c = socket(AF_INET, SOCK_STREAM, 0);
    TRY(connect(c, ADDR(none)));
    TRY(connect(c, ADDR(open)));
    close(c);
    c = socket(AF_INET, SOCK_STREAM | SOCK_NONBLOCK, 0);
    TRY(connect(c, ADDR(open)));
    struct pollfd p = {c, POLLOUT, 0};
    TRY(poll(&p, 1, 5000));
    TRY(connect(c, ADDR(open)));
    TRY(connect(c, ADDR(open)));
    close(c);
    c = socket(AF_INET, SOCK_STREAM | SOCK_NONBLOCK, 0);
    TRY(connect(c, ADDR(none)));
    p.fd = c;
    poll(&p, 1, 5000);
    int error = 0;
    socklen_t length = sizeof error;
    getsockopt(c, SOL_SOCKET, SO_ERROR, &error, &length);
    printf("SO_ERROR %s\n", strerrorname_np(error));
    close(c);
    c = socket(AF_INET, SOCK_STREAM, 0);
    TRY(connect(c, (void *)&open, 4));
    TRY(connect(c, (void *)&open, 1));
    TRY(connect(c, (void *)&open, 0));
    TRY(connect(c, (void *)&open, -1));
    TRY(connect(c, (void *)&open, 129));
    TRY(connect(c, BAD, sizeof open));
    TRY(connect(-1, ADDR(open)));
    TRY(connect(0, ADDR(open)));
    struct sockaddr_in6 six = {.sin6_family = AF_INET6, .sin6_port = open.sin_port, .sin6_addr = in6addr_loopback};
    TRY(connect(c, ADDR(six)));
    struct sockaddr unspec = {.sa_family = AF_UNSPEC};
    TRY(connect(c, ADDR(unspec)));
    TRY(connect(c, ADDR(open)));
    TRY(connect(c, ADDR(unspec)));
    close(c);
    c = socket(AF_INET6, SOCK_STREAM, 0);
    TRY(connect(c, ADDR(open)));
    TRY(connect(c, ADDR(six)));
    struct sockaddr_in6 mapped = {.sin6_family = AF_INET6, .sin6_port = open.sin_port};
    inet_pton(AF_INET6, "::ffff:127.0.0.1", &mapped.sin6_addr);
    TRY(connect(c, (void *)&mapped, 24));
    TRY(connect(c, ADDR(mapped)));
    close(c);
    c = socket(AF_INET, SOCK_DGRAM, 0);
    TRY(connect(c, ADDR(none)));
    TRY(send(c, "x", 1, 0));
    usleep(1000);
    TRY(send(c, "x", 1, 0));
    TRY(connect(c, ADDR(unspec)));
    TRY(send(c, "x", 1, 0));
    close(c);
    close(l);
}

// A listener whose queue is full: connections to it wait.
static int full(int *fill, int *count, struct sockaddr_in *a) {
    int l = listening(0);
    *a = own(l);
    for (*count = 0; *count < 4; ++*count) {
        fill[*count] = socket(AF_INET, SOCK_STREAM | SOCK_NONBLOCK, 0);
        connect(fill[*count], (void *)a, sizeof *a);
        usleep(2000);
    }
    return l;
}

static void waits(void) {
    topic = "wait";
    int fill[8], count, c;
    struct sockaddr_in a;
    int l = full(fill, &count, &a);
    c = socket(AF_INET, SOCK_STREAM, 0);
    limit(c, SO_SNDTIMEO, 150);
    double start = now();
    TRY(connect(c, ADDR(a)));
    IS("waited for its time", now() - start > 0.14 && now() - start < 1);
    TRY(connect(c, ADDR(a)));
    close(c);
    c = socket(AF_INET, SOCK_STREAM | SOCK_NONBLOCK, 0);
    TRY(connect(c, ADDR(a)));
    TRY(connect(c, ADDR(a)));
    TRY(fcntl(c, F_SETFL, 0));
    limit(c, SO_SNDTIMEO, 50);
    TRY(connect(c, ADDR(a)));
    close(c);
    // Interrupted by a signal, with and without SA_RESTART, and with a time limit.
    handle(SIGALRM, 0);
    c = socket(AF_INET, SOCK_STREAM, 0);
    every(60);
    handled = 0;
    TRY(connect(c, ADDR(a)));
    every(0);
    IS("handled once", handled == 1);
    close(c);
    handle(SIGALRM, SA_RESTART);
    c = socket(AF_INET, SOCK_STREAM, 0);
    limit(c, SO_SNDTIMEO, 400);
    every(60);
    handled = 0;
    TRY(connect(c, ADDR(a)));
    every(0);
    IS("handled once", handled == 1);
    close(c);
    for (int i = 0; i < count; i++) close(fill[i]);
    close(l);

    // accept
    l = listening(8);
    limit(l, SO_RCVTIMEO, 100);
    start = now();
    TRY(accept(l, 0, 0));
    IS("waited for its time", now() - start > 0.09 && now() - start < 1);
    every(30);
    TRY(accept(l, 0, 0));
    every(0);
    limit(l, SO_RCVTIMEO, 0);
    handle(SIGALRM, 0);
    every(30);
    TRY(accept(l, 0, 0));
    every(0);
    fcntl(l, F_SETFL, O_NONBLOCK);
    TRY(accept(l, 0, 0));
    TRY(fcntl(l, F_GETFL) & O_NONBLOCK);
    fcntl(l, F_SETFL, 0);
    TRY(fcntl(l, F_GETFL) & O_NONBLOCK);
    TRY(accept(-1, 0, 0));
    TRY(accept(0, 0, 0));
    a = own(l);
    c = socket(AF_INET, SOCK_STREAM, 0);
    connect(c, ADDR(a));
    struct sockaddr_in peer, mine = own(c);
    socklen_t length = sizeof peer;
    int s = accept4(l, (void *)&peer, &length, SOCK_NONBLOCK | SOCK_CLOEXEC);
    IS("accepted", s >= 0);
    TRY(length);
    IS("the peer's address", !memcmp(&peer, &mine, 8));
    TRY(fcntl(s, F_GETFL) & O_NONBLOCK);
    TRY(fcntl(s, F_GETFD));
    close(s);
    close(c);
    c = socket(AF_INET, SOCK_STREAM, 0);
    connect(c, ADDR(a));
    length = 4;
    memset(&peer, 0x55, sizeof peer);
    s = accept(l, (void *)&peer, &length);
    TRY(length);
    IS("no more than there was room for", peer.sin_addr.s_addr == 0x55555555);
    TRY(fcntl(s, F_GETFL) & O_NONBLOCK);
    TRY(fcntl(s, F_GETFD));
    TRY(accept(c, 0, 0));
    TRY(accept4(l, 0, 0, 1));
    close(s);
    close(c);
    close(l);
    int u = socket(AF_INET, SOCK_DGRAM, 0);
    TRY(accept(u, 0, 0));
    close(u);
}

// A timer fires all the time, and a call with SA_RESTART goes on until what it waits for comes.
static void *later(void *argument) {
    struct sockaddr_in *a = argument;
    sigset_t all;
    sigfillset(&all);
    pthread_sigmask(SIG_SETMASK, &all, 0);
    usleep(150000);
    int c = socket(AF_INET, SOCK_STREAM, 0);
    connect(c, (void *)a, sizeof *a);
    usleep(20000);
    close(c);
    return 0;
}
static void *drain(void *argument) {
    int fd = *(int *)argument;
    sigset_t all;
    sigfillset(&all);
    pthread_sigmask(SIG_SETMASK, &all, 0);
    static char buffer[1 << 16];
    long total = 0, n;
    usleep(100000);
    while ((n = read(fd, buffer, sizeof buffer)) > 0) total += n;
    return (void *)total;
}
static void timers(void) {
    topic = "timer";
    handle(SIGALRM, SA_RESTART);
    int l = listening(8);
    struct sockaddr_in a = own(l);
    pthread_t t;
    handled = 0;
    pthread_create(&t, 0, later, &a);
    every(10);
    int s = accept(l, 0, 0);
    every(0);
    IS("accepted", s >= 0);
    IS("the timer was served all the time", handled >= 8);
    pthread_join(t, 0);
    close(s);

    int pair[2];
    socketpair(AF_UNIX, SOCK_STREAM, 0, pair);
    static char big[4 << 20];
    pthread_create(&t, 0, drain, &pair[1]);
    long sent = 0, n = 0;
    every(10);
    handled = 0;
    while (sent < (long)sizeof big && (n = send(pair[0], big + sent, sizeof big - sent, 0)) > 0) sent += n;
    every(0);
    IS("all was sent, in as many parts as it took", sent == sizeof big);
    close(pair[0]);
    void *total;
    pthread_join(t, &total);
    TRY((long)total);
    close(pair[1]);
    close(l);
}

static void *take_all(void *argument) {
    int s = accept(*(int *)argument, 0, 0);
    char *buffer = malloc(1 << 20);
    long n, total = 0;
    unsigned sum = 1;
    while ((n = read(s, buffer, 1 << 20)) > 0)
        for (long i = 0; i < n; i++, total++) sum = sum * 31 + (unsigned char)buffer[i];
    close(s);
    free(buffer);
    printf("stream: got %ld, sum %u\n", total, sum);
    return 0;
}
static void streams(void) {
    topic = "stream";
    int l = listening(8);
    struct sockaddr_in a = own(l);
    size_t size = 10 << 20;
    unsigned char *big = malloc(size);
    for (size_t i = 0; i < size; i++) big[i] = i * 7 + (i >> 10);
    for (int way = 0; way < 3; way++) {
        pthread_t t;
        pthread_create(&t, 0, take_all, &l);
        int c = socket(AF_INET, SOCK_STREAM, 0);
        TRY(connect(c, ADDR(a)));
        struct iovec parts[3] = {{big, 100}, {big + 100, size - 300}, {big + size - 200, 200}};
        struct msghdr m = {.msg_iov = parts, .msg_iovlen = 3};
        struct mmsghdr mm[2] = {{m, 0}, {m, 0}};
        if (way == 0) TRY(sendmsg(c, &m, 0));
        if (way == 1) TRY(sendto(c, big, size, 0, ADDR(a)));
        if (way == 2) {
            TRY(sendmmsg(c, mm, 2, 0));
            printf("%u %u\n", mm[0].msg_len, mm[1].msg_len);
        }
        close(c);
        pthread_join(t, 0);
    }
    // What does not fit is sent in part.
    int pair[2];
    socketpair(AF_UNIX, SOCK_STREAM | SOCK_NONBLOCK, 0, pair);
    struct iovec parts[2] = {{big, size / 2}, {big, size / 2}};
    struct msghdr m = {.msg_iov = parts, .msg_iovlen = 2};
    TRY(sendmsg(pair[0], &m, 0));
    TRY(sendmsg(pair[0], &m, 0));
    close(pair[0]);
    close(pair[1]);
    socketpair(AF_UNIX, SOCK_STREAM, 0, pair);
    TRY(sendmsg(pair[0], &m, MSG_DONTWAIT));
    limit(pair[0], SO_SNDTIMEO, 50);
    TRY(sendmsg(pair[0], &m, 0));
    close(pair[0]);
    close(pair[1]);
    socketpair(AF_UNIX, SOCK_STREAM, 0, pair);
    limit(pair[0], SO_SNDTIMEO, 50);
    TRY(sendmsg(pair[0], &m, 0));
    TRY(sendmsg(pair[0], &m, 0));
    close(pair[0]);
    close(pair[1]);
    // Zero bytes; bad pointers; too many parts.
    socketpair(AF_UNIX, SOCK_STREAM, 0, pair);
    TRY(sendto(pair[0], big, 0, 0, 0, 0));
    TRY(sendto(pair[0], BAD, 5, 0, 0, 0));
    struct msghdr none = {0};
    TRY(sendmsg(pair[0], &none, 0));
    TRY(sendmsg(pair[0], BAD, 0));
    none.msg_iov = BAD, none.msg_iovlen = 1;
    TRY(sendmsg(pair[0], &none, 0));
    none.msg_iovlen = 1025;
    TRY(sendmsg(pair[0], &none, 0));
    struct iovec bad = {BAD, 4}, negative = {big, -1};
    none.msg_iov = &bad, none.msg_iovlen = 1;
    TRY(sendmsg(pair[0], &none, 0));
    none.msg_iov = &negative;
    TRY(sendmsg(pair[0], &none, 0));
    struct sockaddr_un nowhere = {AF_UNIX, "/nonexistent/socket"};
    TRY(sendto(pair[0], "x", 1, 0, ADDR(nowhere)));
    struct msghdr named = {.msg_name = &nowhere, .msg_namelen = sizeof nowhere};
    TRY(sendmsg(pair[0], &named, 0));
    named.msg_namelen = 500;
    TRY(sendmsg(pair[0], &named, 0));
    named.msg_namelen = -1;
    TRY(sendmsg(pair[0], &named, 0));
    named.msg_name = 0;
    TRY(sendmsg(pair[0], &named, 0));
    close(pair[0]);
    close(pair[1]);
    int c = socket(AF_INET, SOCK_STREAM, 0);
    signal(SIGPIPE, SIG_IGN);
    TRY(sendto(c, "x", 1, 0, ADDR(a)));
    TRY(sendmsg(c, &m, 0));
    signal(SIGPIPE, SIG_DFL);
    close(c);
    close(l);
    free(big);
}

static int pipe_kills(void) {
    int pair[2];
    socketpair(AF_UNIX, SOCK_STREAM, 0, pair);
    close(pair[1]);
    struct iovec part = {"x", 1};
    struct msghdr m = {.msg_iov = &part, .msg_iovlen = 1};
    topic = "pipe";
    TRY(sendmsg(pair[0], &m, MSG_NOSIGNAL));
    fflush(stdout);
    sendmsg(pair[0], &m, 0);
    return 7;
}
static int pipe_is_handled(void) {
    handle(SIGPIPE, 0);
    int l = listening(1), c = socket(AF_INET, SOCK_STREAM, 0), pair[2];
    struct sockaddr_in a = own(l);
    connect(c, ADDR(a));
    shutdown(c, SHUT_WR);
    struct iovec part = {"x", 1};
    struct msghdr m = {.msg_iov = &part, .msg_iovlen = 1};
    handled = 0;
    TRY(sendmsg(c, &m, 0));
    TRY(handled);
    TRY(sendto(c, "x", 1, 0, ADDR(a)));
    TRY(handled);
    socketpair(AF_UNIX, SOCK_SEQPACKET, 0, pair);
    close(pair[1]);
    TRY(sendmsg(pair[0], &m, 0));
    TRY(handled);
    close(pair[0]);
    socketpair(AF_UNIX, SOCK_DGRAM, 0, pair);
    close(pair[1]);
    TRY(sendmsg(pair[0], &m, 0));
    TRY(handled);
    return 3;
}

static void datagrams(void) {
    topic = "datagram";
    static char big[1 << 21];
    int r = socket(AF_INET, SOCK_DGRAM, 0), s = socket(AF_INET, SOCK_DGRAM, 0);
    struct sockaddr_in a = v4(0), from;
    bind(r, ADDR(a));
    a = own(r);
    limit(r, SO_RCVTIMEO, 2000);
    socklen_t length = sizeof from;
    TRY(sendto(s, "hello", 5, 0, ADDR(a)));
    TRY(recvfrom(r, big, sizeof big, 0, (void *)&from, &length));
    struct sockaddr_in mine = own(s);
    IS("from the sender's own port", from.sin_port == mine.sin_port);
    TRY(sendto(s, big, 0, 0, ADDR(a)));
    TRY(recv(r, big, sizeof big, 0));
    TRY(sendto(s, big, 65507, 0, ADDR(a)));
    TRY(recv(r, big, sizeof big, 0));
    TRY(sendto(s, big, 65508, 0, ADDR(a)));
    TRY(sendto(s, big, 1 << 21, 0, ADDR(a)));
    TRY(sendto(s, "x", 1, 0, (void *)&a, 4));
    TRY(sendto(s, "x", 1, 0, BAD, sizeof a));
    TRY(sendto(s, "x", 1, 0, (void *)&a, 129));
    TRY(sendto(s, "x", 1, 0, (void *)&a, 0));
    TRY(sendto(s, BAD, 1, 0, ADDR(a)));
    TRY(sendto(-1, "x", 1, 0, ADDR(a)));
    TRY(sendto(0, "x", 1, 0, ADDR(a)));
    TRY(sendto(s, "x", 1, MSG_OOB, ADDR(a)));
    struct sockaddr_in unspec = a, zero = a;
    unspec.sin_family = AF_UNSPEC;
    TRY(sendto(s, "y", 1, 0, ADDR(unspec)));
    TRY(recv(r, big, sizeof big, 0));
    zero.sin_port = 0;
    TRY(sendto(s, "y", 1, 0, ADDR(zero)));
    // Corked into one.
    TRY(sendto(s, "ab", 2, MSG_MORE, ADDR(a)));
    TRY(sendto(s, "cd", 2, 0, ADDR(a)));
    TRY(recv(r, big, sizeof big, 0));
    // Several, one of which is bad.
    struct iovec one = {"12345", 5}, bad = {BAD, 5}, two = {"12", 2};
    struct mmsghdr m[4] = {{{.msg_name = &a, .msg_namelen = sizeof a, .msg_iov = &one, .msg_iovlen = 1}, 77}};
    m[1] = m[2] = m[3] = m[0];
    m[1].msg_hdr.msg_iov = &two;
    m[2].msg_hdr.msg_iov = &bad;
    TRY(sendmmsg(s, m, 4, 0));
    printf("%u %u %u %u\n", m[0].msg_len, m[1].msg_len, m[2].msg_len, m[3].msg_len);
    TRY(recv(r, big, sizeof big, 0));
    TRY(recv(r, big, sizeof big, 0));
    TRY(sendmmsg(s, m + 2, 2, 0));
    TRY(sendmmsg(s, m, 0, 0));
    TRY(sendmmsg(-1, m, 0, 0));
    TRY(sendmmsg(s, BAD, 1, 0));
    // Segmentation by a control message.
    char control[CMSG_SPACE(2)] = {0};
    struct msghdr g = {.msg_name = &a, .msg_namelen = sizeof a, .msg_iov = &one, .msg_iovlen = 1};
    g.msg_control = control, g.msg_controllen = sizeof control;
    struct cmsghdr *c = CMSG_FIRSTHDR(&g);
    c->cmsg_level = SOL_UDP, c->cmsg_type = UDP_SEGMENT, c->cmsg_len = CMSG_LEN(2);
    *(unsigned short *)CMSG_DATA(c) = 2;
    TRY(sendmsg(s, &g, 0));
    TRY(recv(r, big, sizeof big, 0));
    TRY(recv(r, big, sizeof big, 0));
    TRY(recv(r, big, sizeof big, 0));
    c->cmsg_len = 3;
    TRY(sendmsg(s, &g, 0));
    c->cmsg_len = 4000;
    TRY(sendmsg(s, &g, 0));
    g.msg_control = BAD;
    TRY(sendmsg(s, &g, 0));
    g.msg_controllen = 1 << 24;
    TRY(sendmsg(s, &g, 0));
    // UDP-Lite, and v6 to v4.
    int lite = socket(AF_INET, SOCK_DGRAM, 136);
    if (lite >= 0) close(lite);
    int six = socket(AF_INET6, SOCK_DGRAM, 0);
    struct sockaddr_in6 mapped = {.sin6_family = AF_INET6, .sin6_port = a.sin_port};
    inet_pton(AF_INET6, "::ffff:127.0.0.1", &mapped.sin6_addr);
    TRY(sendto(six, "6", 1, 0, ADDR(mapped)));
    TRY(recv(r, big, sizeof big, 0));
    TRY(sendto(six, "6", 1, 0, ADDR(a)));
    TRY(recv(r, big, sizeof big, 0));
    close(six);
    close(r);
    close(s);
    // A sender waits for a receiver whose queue is full.
    struct sockaddr_un name = {AF_UNIX, "datagram.sock"};
    unlink(name.sun_path);
    r = socket(AF_UNIX, SOCK_DGRAM, 0), s = socket(AF_UNIX, SOCK_DGRAM, 0);
    TRY(bind(r, ADDR(name)));
    limit(s, SO_SNDTIMEO, 60);
    long count = 0;
    while (sendto(s, "x", 1, MSG_DONTWAIT, ADDR(name)) == 1) count++;
    TRY(count);
    double start = now();
    TRY(sendto(s, "x", 1, 0, ADDR(name)));
    IS("waited for its time", now() - start > 0.05 && now() - start < 1);
    handle(SIGALRM, 0);
    limit(s, SO_SNDTIMEO, 0);
    every(40);
    TRY(sendto(s, "x", 1, 0, ADDR(name)));
    every(0);
    TRY(sendto(s, big, 1 << 19, 0, ADDR(name)));
    close(r);
    TRY(sendto(s, "x", 1, 0, ADDR(name)));
    unlink(name.sun_path);
    TRY(sendto(s, "x", 1, 0, ADDR(name)));
    close(s);
}

static void special(void) {
    topic = "special";
    int l = listening(8), c = socket(AF_INET, SOCK_STREAM, 0);
    struct sockaddr_in a = own(l);
    connect(c, ADDR(a));
    int s = accept(l, 0, 0);
    char buffer[64];
    struct iovec part = {"abc", 3};
    struct msghdr m = {.msg_iov = &part, .msg_iovlen = 1};
    TRY(sendmsg(c, &m, MSG_OOB));
    struct pollfd p = {s, POLLPRI, 0};
    poll(&p, 1, 2000);
    TRY(recv(s, buffer, 8, MSG_OOB));
    TRY(buffer[0]);
    TRY(recv(s, buffer, 8, 0));
    TRY(sendmsg(c, &m, MSG_MORE));
    TRY(sendmsg(c, &m, 0));
    TRY(recv(s, buffer, 6, MSG_WAITALL));
    // Ignored without the option; with it, the end of it is told.
    TRY(sendmsg(c, &m, MSG_ZEROCOPY));
    int one = 1;
    TRY(setsockopt(c, SOL_SOCKET, SO_ZEROCOPY, &one, sizeof one));
    TRY(sendmsg(c, &m, MSG_ZEROCOPY));
    TRY(recv(s, buffer, 6, MSG_WAITALL));
    p.fd = c, p.events = 0;
    poll(&p, 1, 2000);
    char control[256];
    struct msghdr e = {.msg_control = control, .msg_controllen = sizeof control};
    TRY(recvmsg(c, &e, MSG_ERRQUEUE));
    struct cmsghdr *h = CMSG_FIRSTHDR(&e);
    if (h) {
        struct sock_extended_err *x = (void *)CMSG_DATA(h);
        printf("%u %u %u\n", x->ee_origin, x->ee_info, x->ee_data);
    }
    close(c), close(s);
    // Data in the SYN, or in place of it.
    c = socket(AF_INET, SOCK_STREAM, 0);
    TRY(sendto(c, "fast", 4, MSG_FASTOPEN, ADDR(a)));
    s = accept(l, 0, 0);
    TRY(recv(s, buffer, 4, MSG_WAITALL));
    TRY(sendto(c, "fast", 4, MSG_FASTOPEN, ADDR(a)));
    close(c), close(s);
    c = socket(AF_INET, SOCK_STREAM | SOCK_NONBLOCK, 0);
    m.msg_name = &a, m.msg_namelen = sizeof a;
    TRY(sendmsg(c, &m, MSG_FASTOPEN));
    close(c);
    c = socket(AF_INET, SOCK_STREAM, 0);
    struct sockaddr_in none = closed();
    TRY(sendto(c, "fast", 4, MSG_FASTOPEN, ADDR(none)));
    TRY(sendto(c, "fast", 4, MSG_FASTOPEN, 0, 0));
    close(c), close(l);
    // Multipath TCP.
    c = socket(AF_INET, SOCK_STREAM, 262);
    IS("mptcp", c >= 0);
    l = listening(1);
    a = own(l);
    TRY(connect(c, ADDR(a)));
    close(c), close(l);
}

static void binds(void) {
    topic = "bind";
    int a = socket(AF_INET, SOCK_STREAM, 0), b = socket(AF_INET, SOCK_STREAM, 0);
    struct sockaddr_in address = v4(0);
    TRY(bind(a, ADDR(address)));
    TRY(bind(a, ADDR(address)));
    address = own(a);
    TRY(bind(b, ADDR(address)));
    TRY(listen(a, 5));
    TRY(listen(a, 6));
    TRY(bind(b, (void *)&address, 8));
    TRY(bind(b, BAD, sizeof address));
    TRY(bind(-1, ADDR(address)));
    TRY(bind(0, ADDR(address)));
    TRY(listen(-1, 1));
    TRY(listen(0, 1));
    struct sockaddr_in6 six = {.sin6_family = AF_INET6};
    TRY(bind(b, ADDR(six)));
    address.sin_port = 0;
    address.sin_family = AF_UNSPEC;
    TRY(bind(b, ADDR(address)));
    address.sin_addr.s_addr = 0;
    TRY(bind(b, ADDR(address)));
    address.sin_family = AF_INET;
    inet_pton(AF_INET, "192.0.2.1", &address.sin_addr);
    int c = socket(AF_INET, SOCK_STREAM, 0);
    TRY(bind(c, ADDR(address)));
    TRY(listen(c, 1));
    struct sockaddr_in chosen = own(c);
    IS("a port was chosen", chosen.sin_port != 0);
    int d = socket(AF_INET, SOCK_DGRAM, 0);
    TRY(listen(d, 1));
    close(a), close(b), close(c), close(d);
}
static int as_nobody(void) {
    if (setgid(65534) || setuid(65534)) return 1;
    topic = "nobody";
    int a = socket(AF_INET, SOCK_STREAM, 0);
    struct sockaddr_in address = v4(777);
    TRY(bind(a, ADDR(address)));
    address.sin_port = 0;
    TRY(bind(a, ADDR(address)));
    TRY(listen(a, 1));
    struct sockaddr_un path = {AF_UNIX, "nobody.sock"}, hidden = {AF_UNIX, "hidden/server.sock"};
    struct sockaddr_un closed = {AF_UNIX, "closed.sock"}, open = {AF_UNIX, "open.sock"};
    int u = socket(AF_UNIX, SOCK_STREAM, 0);
    TRY(bind(u, ADDR(path)));
    TRY(connect(u, ADDR(hidden)));
    TRY(connect(u, ADDR(closed)));
    TRY(connect(u, ADDR(open)));
    struct sockaddr_un inside = {AF_UNIX, "hidden/other.sock"};
    int w = socket(AF_UNIX, SOCK_STREAM, 0);
    TRY(bind(w, ADDR(inside)));
    int g = socket(AF_UNIX, SOCK_DGRAM, 0);
    TRY(sendto(g, "x", 1, 0, ADDR(hidden)));
    return 0;
}

static void show_name(const char *what, int fd, int (*ask)(int, struct sockaddr *, socklen_t *)) {
    struct sockaddr_un name;
    memset(&name, 'z', sizeof name);
    socklen_t length = sizeof name;
    ask(fd, (void *)&name, &length);
    printf("%s: length %u %.*s\n", what, length, (int)length - 2 > 0 ? (int)length - 2 : 0,
           name.sun_path[0] ? name.sun_path : "@");
}
static int unix_listening(const char *path, int kind, int backlog) {
    struct sockaddr_un name = {.sun_family = AF_UNIX};
    strcpy(name.sun_path, path);
    int fd = socket(AF_UNIX, kind, 0);
    umask(0);
    TRY(bind(fd, (void *)&name, offsetof(struct sockaddr_un, sun_path) + strlen(path) + 1));
    listen(fd, backlog);
    return fd;
}
static void credentials(const char *what, int fd, pid_t expected) {
    struct ucred c = {0};
    socklen_t length = sizeof c;
    TRY(getsockopt(fd, SOL_SOCKET, SO_PEERCRED, &c, &length));
    printf("%s: the expected process %s, uid %u, gid %u\n", what, c.pid == expected ? "yes" : "no", c.uid, c.gid);
}
static void unix_paths(void) {
    topic = "unix";
    mkdir("hidden", 0700);
    mkdir("sub", 0755);
    symlink("sub", "link");
    symlink("sub/real.sock", "name.sock");
    int l = unix_listening("sub/real.sock", SOCK_STREAM, 8);
    show_name("listener", l, getsockname);
    struct stat st;
    stat("sub/real.sock", &st);
    printf("mode %o\n", st.st_mode);
    const char *ways[] = {"sub/real.sock", "link/real.sock", "name.sock", "./sub/../sub//real.sock", "sub/none.sock",
                          "sub", "sub/real.sock/", "none/x.sock", ""};
    for (unsigned i = 0; i < sizeof ways / sizeof *ways; i++) {
        struct sockaddr_un name = {.sun_family = AF_UNIX};
        strcpy(name.sun_path, ways[i]);
        int c = socket(AF_UNIX, SOCK_STREAM, 0);
        printf("%s ", ways[i]);
        TRY(connect(c, (void *)&name, offsetof(struct sockaddr_un, sun_path) + strlen(ways[i]) + 1));
        if (i == 0) {
            TRY(connect(c, ADDR(name)));
            show_name("client's own", c, getsockname);
            show_name("client's peer", c, getpeername);
            credentials("client's peer", c, getpid());
        }
        int s = fcntl(l, F_SETFL, O_NONBLOCK) ? -1 : accept(l, 0, 0);
        if (i == 0) {
            show_name("server's own", s, getsockname);
            show_name("server's peer", s, getpeername);
            credentials("server's peer", s, getpid());
        }
        close(c), close(s);
    }
    // A path that fills the address, without a NUL at its end.
    struct sockaddr_un longest = {.sun_family = AF_UNIX};
    memset(longest.sun_path, 'l', sizeof longest.sun_path);
    int c = socket(AF_UNIX, SOCK_STREAM, 0);
    TRY(bind(c, ADDR(longest)));
    show_name("longest", c, getsockname);
    unlink(longest.sun_path);
    close(c);
    // A stale socket file, a plain file.
    close(l);
    c = socket(AF_UNIX, SOCK_STREAM, 0);
    struct sockaddr_un name = {AF_UNIX, "sub/real.sock"};
    TRY(connect(c, ADDR(name)));
    TRY(bind(c, ADDR(name)));
    close(open("plain", O_CREAT | O_WRONLY, 0600));
    strcpy(name.sun_path, "plain");
    TRY(connect(c, ADDR(name)));
    TRY(bind(c, ADDR(name)));
    strcpy(name.sun_path, "none/x");
    TRY(bind(c, ADDR(name)));
    strcpy(name.sun_path, "plain/x");
    TRY(bind(c, ADDR(name)));
    strcpy(name.sun_path, "name.sock");
    TRY(bind(c, ADDR(name)));
    symlink("sub/dangling-target", "dangling");
    strcpy(name.sun_path, "dangling");
    TRY(bind(c, ADDR(name)));
    TRY(connect(c, ADDR(name)));
    strcpy(name.sun_path, "sub/.");
    TRY(bind(c, ADDR(name)));
    strcpy(name.sun_path, "sub/x/");
    TRY(bind(c, ADDR(name)));
    strcpy(name.sun_path, "..");
    TRY(bind(c, ADDR(name)));
    close(c);
    // Of its own family's other kinds.
    l = unix_listening("datagram-kind.sock", SOCK_DGRAM, 8);
    c = socket(AF_UNIX, SOCK_STREAM, 0);
    strcpy(name.sun_path, "datagram-kind.sock");
    TRY(connect(c, ADDR(name)));
    close(c), close(l);
    // Abstract, and chosen by the kernel.
    struct sockaddr_un abstract = {.sun_family = AF_UNIX};
    sprintf(abstract.sun_path + 1, "callgate-matrix-%d", getpid());
    socklen_t length = offsetof(struct sockaddr_un, sun_path) + 1 + strlen(abstract.sun_path + 1);
    l = socket(AF_UNIX, SOCK_SEQPACKET, 0), c = socket(AF_UNIX, SOCK_SEQPACKET, 0);
    TRY(bind(l, (void *)&abstract, length));
    TRY(listen(l, 1));
    TRY(bind(c, (void *)&abstract, 2));
    TRY(connect(c, (void *)&abstract, length));
    TRY(connect(c, (void *)&abstract, length));
    TRY(connect(c, (void *)&abstract, length - 1));
    int s = accept(l, 0, 0);
    IS("accepted", s >= 0);
    IS("a name was chosen", ({ struct sockaddr_un n; socklen_t k = sizeof n; getsockname(c, (void *)&n, &k); k == 8; }));
    struct sockaddr_un nowhere = {AF_UNIX, "/nonexistent"};
    struct iovec part = {"x", 1};
    struct msghdr m = {.msg_iov = &part, .msg_iovlen = 1, .msg_name = &nowhere, .msg_namelen = sizeof nowhere};
    TRY(sendmsg(c, &m, 0));
    close(l), close(c), close(s);
    // A full backlog.
    l = unix_listening("sub/full.sock", SOCK_STREAM, 0);
    strcpy(name.sun_path, "sub/full.sock");
    int fill[8], n = 0;
    do fill[n] = socket(AF_UNIX, SOCK_STREAM | SOCK_NONBLOCK, 0);
    while (connect(fill[n], ADDR(name)) == 0 && ++n < 8);
    TRY(n);
    TRY(connect(fill[n], ADDR(name)));
    c = socket(AF_UNIX, SOCK_STREAM, 0);
    limit(c, SO_SNDTIMEO, 60);
    TRY(connect(c, ADDR(name)));
    handle(SIGALRM, 0);
    limit(c, SO_SNDTIMEO, 0);
    every(40);
    TRY(connect(c, ADDR(name)));
    every(0);
    close(l);
    TRY(connect(c, ADDR(name)));
    close(c);
    for (int i = 0; i <= n; i++) close(fill[i]);
    // For the child of another user.
    chmod(".", 0777);
    unix_listening("hidden/server.sock", SOCK_STREAM, 8);
    unix_listening("closed.sock", SOCK_STREAM, 8);
    chmod("closed.sock", 0700);
    unix_listening("open.sock", SOCK_STREAM, 8);
}

static int passed_ino(int fd) {
    struct stat s;
    return fstat(fd, &s) ? -1 : (int)(s.st_ino % 100000);
}
static void ancillary(void) {
    topic = "ancillary";
    for (int kind = SOCK_STREAM; kind <= SOCK_SEQPACKET; kind += kind == SOCK_STREAM ? 1 : 3) {
        int pair[2], one = 1, files[3] = {open("plain", O_RDONLY), open("/dev/null", O_RDWR), dup(1)};
        socketpair(AF_UNIX, kind, 0, pair);
        setsockopt(pair[1], SOL_SOCKET, SO_PASSCRED, &one, sizeof one);
        char control[CMSG_SPACE(sizeof files) + CMSG_SPACE(sizeof(struct ucred))] = {0}, got[512], byte;
        struct iovec part = {"p", 1}, in = {&byte, 1};
        struct msghdr m = {.msg_iov = &part, .msg_iovlen = 1, .msg_control = control};
        struct ucred claim = {getpid(), getuid(), getgid()};
        for (int way = 0; way < 7; way++) {
            m.msg_controllen = sizeof control;
            struct cmsghdr *h = CMSG_FIRSTHDR(&m);
            h->cmsg_level = SOL_SOCKET, h->cmsg_type = SCM_RIGHTS, h->cmsg_len = CMSG_LEN(sizeof files);
            memcpy(CMSG_DATA(h), files, sizeof files);
            struct cmsghdr *k = (void *)(control + CMSG_SPACE(sizeof files));
            k->cmsg_level = SOL_SOCKET, k->cmsg_type = SCM_CREDENTIALS, k->cmsg_len = CMSG_LEN(sizeof claim);
            claim = (struct ucred){way == 4 ? 1 : getpid(), way == 5 ? 4242 : getuid(), getgid()};
            memcpy(CMSG_DATA(k), &claim, sizeof claim);
            if (way == 1) m.msg_controllen = 0;
            if (way == 2) m.msg_controllen = CMSG_SPACE(sizeof files);
            if (way == 3) *(int *)CMSG_DATA(h) = 999;
            if (way == 6) h->cmsg_len = 5;
            TRY(sendmsg(pair[0], &m, MSG_DONTWAIT));
            struct msghdr r = {.msg_iov = &in, .msg_iovlen = 1, .msg_control = got, .msg_controllen = sizeof got};
            long n = recvmsg(pair[1], &r, MSG_DONTWAIT);
            say("recvmsg", n);
            for (h = n < 0 ? 0 : CMSG_FIRSTHDR(&r); h; h = CMSG_NXTHDR(&r, h)) {
                if (h->cmsg_type == SCM_CREDENTIALS) {
                    struct ucred *c = (void *)CMSG_DATA(h);
                    printf("from the expected process: %s, %u %u\n", c->pid == claim.pid || way == 5 ? "yes" : "no",
                           c->uid, c->gid);
                } else {
                    int count = (h->cmsg_len - CMSG_LEN(0)) / 4;
                    printf("%d descriptors, the right ones:", count);
                    for (int i = 0; i < count; i++) {
                        int fd = ((int *)CMSG_DATA(h))[i];
                        printf(" %s", passed_ino(fd) == passed_ino(files[i]) ? "yes" : "no");
                        close(fd);
                    }
                    puts("");
                }
            }
        }
        for (int i = 0; i < 3; i++) close(files[i]);
        close(pair[0]), close(pair[1]);
    }
}

int main(int count, char **arguments) {
    alarm(0);
    setvbuf(stdout, 0, _IOLBF, 1 << 16);
    void (*topics[])(void) = {connects, waits, timers, streams, datagrams, special, binds, unix_paths, ancillary};
    for (unsigned i = 0; i < sizeof topics / sizeof *topics; i++) {
        if (count > 1 && atoi(arguments[1]) != (int)i) continue;
        topics[i]();
        fflush(stdout);
    }
    if (count > 1) return 0;
    printf("pipe: ended with %d\n", in_a_child(pipe_kills));
    printf("pipe: ended with %d\n", in_a_child(pipe_is_handled));
    printf("nobody: ended with %d\n", in_a_child(as_nobody));
    return 0;
}
