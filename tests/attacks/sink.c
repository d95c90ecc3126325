/* The other side of the network attacks, started outside the enforcer: it notices what the workload may not reach.
 *
 *   sink ALLOWED_PORT DENIED_PORT MARKER DIR [knock]
 * Listens on 127.0.0.1, TCP, UDP and UDP-Lite, both ports, and on the sockets allowed.sock, denied.sock (stream), allowed.dgram,
 * denied.dgram in DIR and attack-DENIED_PORT (abstract, stream). Whatever arrives at a denied one is a line in MARKER.
 * With `knock` it leaves ALLOWED_PORT free, and connects to it from 127.0.0.2 again and again: a peer that is not allowed.
 * Prints `ready`, and ends when it is killed, or after 120 seconds. */
#include "attack.h"
#include <arpa/inet.h>
#include <poll.h>
#include <stddef.h>
#include <sys/socket.h>
#include <sys/un.h>

enum { MOST = 16 };
static struct pollfd polled[MOST];
static struct { const char *what; int stream, denied; } kind[MOST];
static int number;

static void serve(const char *what, int family, int type, int protocol, int denied, const struct sockaddr *address, socklen_t length) {
    int fd = socket(family, type | SOCK_NONBLOCK | SOCK_CLOEXEC, protocol), one = 1;
    if (fd < 0 && protocol) return; /* this kernel has no UDP-Lite */
    setsockopt(fd, SOL_SOCKET, SO_REUSEADDR, &one, sizeof one);
    if (fd < 0 || bind(fd, address, length) || (type == SOCK_STREAM && listen(fd, 1024))) {
        printf("sink: %s: %s\n", what, strerror(errno));
        exit(1);
    }
    polled[number].fd = fd, polled[number].events = POLLIN;
    kind[number].what = what, kind[number].stream = type == SOCK_STREAM, kind[number++].denied = denied;
}
static void serve_port(int port, int denied) {
    struct sockaddr_in in = { .sin_family = AF_INET, .sin_port = htons((uint16_t)port), .sin_addr = { htonl(INADDR_LOOPBACK) } };
    serve("tcp", AF_INET, SOCK_STREAM, 0, denied, (void *)&in, sizeof in);
    serve("udp", AF_INET, SOCK_DGRAM, 0, denied, (void *)&in, sizeof in);
    serve("udplite", AF_INET, SOCK_DGRAM, IPPROTO_UDPLITE, denied, (void *)&in, sizeof in);
}
static void serve_unix(const char *what, const char *path, int type, int denied) {
    struct sockaddr_un un = { .sun_family = AF_UNIX };
    int abstract = *path == '@';
    snprintf(un.sun_path, sizeof un.sun_path, "%s", path);
    if (abstract) un.sun_path[0] = 0; else unlink(path);
    serve(what, AF_UNIX, type, 0, denied, (void *)&un, (socklen_t)(offsetof(struct sockaddr_un, sun_path) + strlen(path) + !abstract));
    if (!abstract) chmod(path, 0777);
}
static void note(const char *what) {
    int fd = open(attack_marker, O_WRONLY | O_CREAT | O_APPEND | O_CLOEXEC, 0666);
    if (fd >= 0) dprintf(fd, "denied %s reached\n", what), close(fd);
}
static void knock(int port) {
    struct sockaddr_in from = { .sin_family = AF_INET, .sin_addr = { htonl(INADDR_LOOPBACK + 1) } };
    struct sockaddr_in to = { .sin_family = AF_INET, .sin_port = htons((uint16_t)port), .sin_addr = { htonl(INADDR_LOOPBACK) } };
    struct linger hard = { 1, 0 };
    int fd = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0);
    setsockopt(fd, SOL_SOCKET, SO_LINGER, &hard, sizeof hard);
    if (!bind(fd, (void *)&from, sizeof from) && !connect(fd, (void *)&to, sizeof to) && send(fd, "knock", 5, MSG_NOSIGNAL) == 5) sleep_ms(50);
    close(fd);
}

int main(int argc, char **argv) {
    if (argc < 5) skip("usage: ALLOWED_PORT DENIED_PORT MARKER DIR [knock]");
    attack_marker = argv[3];
    alarm(120);
    char abstract[64];
    snprintf(abstract, sizeof abstract, "@attack-%s", argv[2]);
    if (argc < 6) serve_port(atoi(argv[1]), 0);
    serve_port(atoi(argv[2]), 1);
    serve_unix("allowed.sock", join(argv[4], "allowed.sock"), SOCK_STREAM, 0);
    serve_unix("allowed.dgram", join(argv[4], "allowed.dgram"), SOCK_DGRAM, 0);
    serve_unix("denied.sock", join(argv[4], "denied.sock"), SOCK_STREAM, 1);
    serve_unix("denied.dgram", join(argv[4], "denied.dgram"), SOCK_DGRAM, 1);
    serve_unix("abstract", abstract, SOCK_STREAM, 1);
    printf("ready\n");
    fflush(stdout);
    for (;;) {
        int some = poll(polled, (nfds_t)number, argc > 5 ? 5 : -1);
        if (argc > 5) knock(atoi(argv[1]));
        for (int i = 0; some > 0 && i < number; i++) {
            char buffer[2048];
            if (!polled[i].revents) continue;
            for (int n = 0; n < 64; n++) {
                int got = kind[i].stream ? accept4(polled[i].fd, NULL, NULL, SOCK_CLOEXEC) : (int)recv(polled[i].fd, buffer, sizeof buffer, 0);
                if (got < 0) break;
                if (kind[i].stream) close(got);
                if (kind[i].denied) note(kind[i].what);
            }
        }
    }
}
