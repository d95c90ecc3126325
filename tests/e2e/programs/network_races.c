// Makes a call whenever its arguments look harmless, while another hand changes them all the time. Prints how often
// something forbidden was reached. Without a supervisor that is the number of times that a check before the call was wrong.
#define _GNU_SOURCE
#include <arpa/inet.h>
#include <errno.h>
#include <fcntl.h>
#include <pthread.h>
#include <signal.h>
#include <stddef.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/time.h>
#include <sys/un.h>
#include <time.h>
#include <unistd.h>

static struct shared {
    struct sockaddr_in address;
    struct sockaddr_un path;
    struct msghdr message;
} *m;
static int good, bad, slot = 100, harmless, forbidden;
static struct sockaddr_in to[2];
static char mode[32];

static double now(void) {
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return t.tv_sec + t.tv_nsec / 1e9;
}

static void nothing(int signal) { (void)signal; }

// One change back and forth.
static void flip(int memory) {
    for (int i = 0; i < 2; i++) {
        if (!strcmp(mode, "memfile")) pwrite(memory, &to[i].sin_port, 2, (off_t)&m->address.sin_port);
        else if (!strncmp(mode, "dup2", 4)) dup2(i ? harmless : forbidden, slot);
        else if (!strcmp(mode, "addrform")) setsockopt(slot, IPPROTO_IPV6, 1 /* IPV6_ADDRFORM */, &(int){AF_INET}, 4);
        else if (!strcmp(mode, "pointer")) *(void *volatile *)&m->message.msg_name = &to[i];
        else if (!strcmp(mode, "path")) memcpy(m->path.sun_path, i ? "allowed/s.sock" : "refused/s.sock", 7);
        else if (strstr(mode, "link")) renameat2(AT_FDCWD, "way", AT_FDCWD, "other", RENAME_EXCHANGE);
        else *(volatile unsigned short *)&m->address.sin_port = to[i].sin_port;
        for (volatile int pause = 0; pause < 200; pause++) ;
    }
}
static void *flipping(void *unused) {
    int memory = open("/proc/self/mem", O_RDWR);
    for (;;) flip(memory);
}

static int looks_good(void) {
    char target[32] = {0};
    if (!strcmp(mode, "pointer")) return *(void *volatile *)&m->message.msg_name == &to[1];
    if (!strcmp(mode, "path")) return ((volatile char *)m->path.sun_path)[0] == 'a';
    if (strstr(mode, "link")) return readlink("way", target, sizeof target) > 0 && target[0] == 'a';
    if (!strncmp(mode, "dup2", 4)) {
        struct stat one, two;
        return !fstat(slot, &one) && !fstat(harmless, &two) && one.st_ino == two.st_ino;
    }
    return *(volatile unsigned short *)&m->address.sin_port == to[1].sin_port;
}

static int tcp(void) { return socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0); }
static int is_connected_to_bad(int fd) {
    struct sockaddr_in peer = {0};
    socklen_t length = sizeof peer;
    return !getpeername(fd, (void *)&peer, &length) && peer.sin_port == to[0].sin_port;
}

// Makes the call; whether something forbidden was reached that this program can see.
static int attempt(void) {
    static int u = -1;
    if (u < 0) u = socket(AF_INET, SOCK_DGRAM, 0);
    int reached = 0, fd;
    struct iovec part = {"x", 1};
    if (!strcmp(mode, "addrform")) {
        // AF_UNSPEC is no address on an IPv6 socket, and AF_INET on one that has become of IPv4.
        struct sockaddr_in6 good = {.sin6_family = AF_INET6, .sin6_port = to[1].sin_port};
        struct sockaddr_in unspec = to[0];
        unspec.sin_family = AF_UNSPEC;
        inet_pton(AF_INET6, "::ffff:127.0.0.1", &good.sin6_addr);
        fd = socket(AF_INET6, SOCK_DGRAM, 0);
        connect(fd, (void *)&good, sizeof good);
        dup2(fd, slot);
        for (int i = 0; i < 5; i++) sendto(slot, "x", 1, 0, (void *)&unspec, sizeof unspec);
        close(fd);
    } else if (!strcmp(mode, "sendto")) {
        sendto(u, "x", 1, 0, (void *)&m->address, sizeof m->address);
    } else if (!strcmp(mode, "pointer")) {
        m->message.msg_namelen = sizeof to[0], m->message.msg_iov = &part, m->message.msg_iovlen = 1;
        sendmsg(u, &m->message, 0);
    } else if (!strcmp(mode, "second")) {
        struct mmsghdr two[2] = {{{&to[1], sizeof to[1], &part, 1}}, {{&m->address, sizeof m->address, &part, 1}}};
        sendmmsg(u, two, 2, 0);
    } else if (!strcmp(mode, "fastopen")) {
        fd = tcp();
        sendto(fd, "x", 1, MSG_FASTOPEN, (void *)&m->address, sizeof m->address);
        reached = is_connected_to_bad(fd);
        close(fd);
    } else if (!strcmp(mode, "dup2-connect")) {
        connect(slot, (void *)&to[1], sizeof to[1]);
        struct sockaddr_in peer;
        socklen_t length = sizeof peer;
        reached = !getpeername(forbidden, (void *)&peer, &length);
        if (reached) {
            fd = tcp();
            dup2(fd, forbidden);
            close(fd);
        }
    } else if (!strcmp(mode, "dup2-listen")) {
        listen(slot, 1);
        int listens = 0;
        socklen_t length = sizeof listens;
        getsockopt(forbidden, SOL_SOCKET, SO_ACCEPTCONN, &listens, &length);
        reached = listens;
        if (reached) {
            fd = tcp();
            dup2(fd, forbidden);
            close(fd);
        }
    } else if (!strcmp(mode, "path") || !strcmp(mode, "link-connect")) {
        fd = socket(AF_UNIX, SOCK_STREAM, 0);
        struct sockaddr_un way = {AF_UNIX, "way/s.sock"}, peer = {0};
        struct sockaddr_un *where = mode[0] == 'p' ? &m->path : &way;
        connect(fd, (void *)where, sizeof *where);
        socklen_t length = sizeof peer;
        reached = !getpeername(fd, (void *)&peer, &length) && strstr(peer.sun_path, "refused");
        close(fd);
    } else if (!strcmp(mode, "link-bind")) {
        fd = socket(AF_UNIX, SOCK_STREAM, 0);
        struct sockaddr_un way = {AF_UNIX, "way/b.sock"};
        bind(fd, (void *)&way, sizeof way);
        struct stat st;
        reached = !stat("refused/b.sock", &st);
        unlink("allowed/b.sock"), unlink("refused/b.sock");
        close(fd);
    } else {
        fd = tcp();
        connect(fd, (void *)&m->address, sizeof m->address);
        reached = is_connected_to_bad(fd);
        close(fd);
    }
    return reached;
}

int main(int count, char **arguments) {
    strcpy(mode, arguments[1]);
    double seconds = atof(arguments[4]);
    m = mmap(0, sizeof *m, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
    for (int i = 0; i < 2; i++)
        to[i] = (struct sockaddr_in){AF_INET, htons(atoi(arguments[2 + i])), {htonl(INADDR_LOOPBACK)}};
    m->address = to[1];
    m->path = (struct sockaddr_un){AF_UNIX, "allowed/s.sock"};
    m->message.msg_name = &to[1];
    harmless = socket(AF_INET, !strcmp(mode, "dup2-listen") ? SOCK_STREAM : SOCK_DGRAM, 0);
    forbidden = tcp();
    if (!strcmp(mode, "dup2-listen")) bind(harmless, (void *)&to[1], sizeof to[1]);
    dup2(harmless, slot);
    if (strstr(mode, "link")) symlink("allowed", "way"), symlink("refused", "other");
    int parent = getpid();
    if (!strcmp(mode, "process")) {
        if (!fork()) {
            prctl(PR_SET_PDEATHSIG, SIGKILL);
            while (getppid() == parent) flip(-1);
            _exit(0);
        }
    } else {
        pthread_t t;
        pthread_create(&t, 0, flipping, 0);
    }
    if (getenv("STORM_US")) {
        long us = atol(getenv("STORM_US"));
        sigaction(SIGALRM, &(struct sigaction){.sa_handler = nothing, .sa_flags = SA_RESTART}, 0);
        setitimer(ITIMER_REAL, &(struct itimerval){{0, us}, {0, us}}, 0);
    }
    long rounds = 0, reached = 0;
    for (double end = now() + seconds; now() < end && rounds < 20000;) {
        for (int tries = 0; !looks_good() && tries < 1000000; tries++) ;
        // Nobody who looks before the call looks at the very last moment.
        for (volatile int pause = 0; pause < 300; pause++) ;
        reached += attempt();
        rounds++;
    }
    printf("%ld %ld\n", rounds, reached);
    fflush(stdout);
    _exit(0);
}
