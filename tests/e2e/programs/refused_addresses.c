// Calls with addresses that the kernel refuses on such a socket, each of which prints how it failed. A row more is a test more.
#define _GNU_SOURCE
#include <arpa/inet.h>
#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <string.h>
#include <sys/socket.h>
#include <unistd.h>

struct kind { const char *name; int family, type; };
static const struct kind kinds[] = {
    {"tcp", AF_INET, SOCK_STREAM}, {"udp", AF_INET, SOCK_DGRAM},
    {"tcp6", AF_INET6, SOCK_STREAM}, {"udp6", AF_INET6, SOCK_DGRAM},
    {"unix stream", AF_UNIX, SOCK_STREAM}, {"unix datagram", AF_UNIX, SOCK_DGRAM}, {"unix seqpacket", AF_UNIX, SOCK_SEQPACKET},
};

struct address { int family; int length; const char *name; };
static const struct address to_ip[] = {
    {AF_UNIX, 2}, {AF_UNIX, 16}, {AF_UNIX, 110, "/tmp"}, {AF_NETLINK, 12}, {AF_NETLINK, 16}, {99, 2}, {99, 15}, {99, 16}, {99, 28},
    {99, 128}, {99, 129}, {99, 1}, {99, 0}, {99, -1},
};
static const struct address to_ipv4[] = {{AF_INET6, 2}, {AF_INET6, 15}, {AF_INET6, 16}, {AF_INET6, 23}, {AF_INET6, 28}, {AF_INET6, 128}};
static const struct address to_unix[] = {
    {AF_UNIX, -1}, {AF_UNIX, 0}, {AF_UNIX, 1}, {AF_UNIX, 2}, {AF_UNIX, 111, "/tmp/none"}, {AF_UNIX, 111}, {AF_UNIX, 128, "none"},
    {AF_UNIX, 129}, {AF_INET, 2}, {AF_INET, 16}, {AF_INET6, 28}, {99, 3, "x"}, {99, 110, "/tmp"}, {99, 111},
};

static const char *name;
static const struct address *address;
static char bytes[256];
static void say(const char *call, long result) {
    printf("%s: %s of family %d, length %d: %s\n", name, call, address->family, address->length,
           result < 0 ? strerrorname_np(errno) : "no error");
}

enum { CONNECT, BIND, SENDTO, FAST_OPEN, SENDMSG, SENDMMSG, CALLS };
static void call(int which, int s) {
    struct iovec part = {"x", 1};
    struct mmsghdr m = {{bytes, address->length, &part, 1}};
    switch (which) {
    case CONNECT: say("connect", connect(s, (void *)bytes, address->length)); break;
    case BIND: say("bind", bind(s, (void *)bytes, address->length)); break;
    case SENDTO: say("sendto", sendto(s, "x", 1, MSG_NOSIGNAL, (void *)bytes, address->length)); break;
    case FAST_OPEN: say("fast open", sendto(s, "x", 1, MSG_NOSIGNAL | MSG_FASTOPEN, (void *)bytes, address->length)); break;
    case SENDMSG: say("sendmsg", sendmsg(s, &m.msg_hdr, MSG_NOSIGNAL)); break;
    case SENDMMSG: say("sendmmsg", sendmmsg(s, &m, 1, MSG_NOSIGNAL)); break;
    }
}

static void prepare(const struct address *a) {
    address = a;
    memset(bytes, 0, sizeof bytes);
    *(unsigned short *)bytes = a->family;
    if (a->name) strcpy(bytes + 2, a->name);
}

static void rows(const struct kind *kind, const struct address *a, int count) {
    for (; count--; a++)
        for (int which = 0; which < CALLS; which++) {
            if (which == BIND && kind->family == AF_UNIX && a->family == AF_UNIX && a->length == 2) continue; // which binds
            prepare(a);
            name = kind->name;
            int s = socket(kind->family, kind->type, 0);
            call(which, s);
            close(s);
        }
}
#define ROWS(kind, table) rows(kind, table, sizeof table / sizeof *table)

static void fresh(void) {
    for (const struct kind *kind = kinds; kind < kinds + sizeof kinds / sizeof *kinds; kind++) {
        if (kind->family == AF_UNIX) ROWS(kind, to_unix);
        else ROWS(kind, to_ip);
        if (kind->family == AF_INET) ROWS(kind, to_ipv4);
    }
}

// Sockets that listen, are connected, or have a connection for whoever accepts it.
static void used(void) {
    struct sockaddr_in own = {AF_INET};
    socklen_t length = sizeof own, negative = -1;
    own.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
    int l = socket(AF_INET, SOCK_STREAM | SOCK_NONBLOCK, 0), s = socket(AF_INET, SOCK_STREAM, 0);
    bind(l, (void *)&own, length);
    listen(l, 9);
    getsockname(l, (void *)&own, &length);
    connect(s, (void *)&own, length);
    int u = socket(AF_INET, SOCK_DGRAM, 0);
    connect(u, (void *)&own, length);
    for (int i = 0; i < 4; i++) {
        const struct address of[] = {{AF_INET6, 28}, {AF_INET6, 16}, {99, 16}, {AF_UNIX, 110}};
        for (int which = 0; which < CALLS; which++) {
            prepare(&of[i]);
            name = "listening", call(which, l);
            name = "connected", call(which, s);
            name = "connected udp", call(which, u);
        }
    }
    // The connection is lost by that.
    const struct address none = {AF_INET, -1};
    prepare(&none);
    name = "listening", say("accept", accept(l, (void *)bytes, &negative));
    say("accept once more", accept(l, 0, 0));
    connect(socket(AF_INET, SOCK_STREAM, 0), (void *)&own, sizeof own);
    say("accept4", accept4(l, (void *)bytes, &negative, SOCK_CLOEXEC));
    connect(socket(AF_INET, SOCK_STREAM, 0), (void *)&own, sizeof own);
    say("accept without an address", accept(l, 0, &negative) < 0 ? -1 : 0);
}

int main(int count, char **arguments) {
    if (!strcmp(arguments[1], "fresh")) fresh();
    else used();
    return 0;
}
