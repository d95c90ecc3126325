/* The denied port by another way than a plain connect. No race: each is one attempt, and the sink notices what arrives.
 *
 * Who governs connect(2) has not governed sendto, sendmsg, sendmmsg and its later messages, TCP fast open (MSG_FASTOPEN
 * connects within a send, tcp(7)), datagrams to AF_UNSPEC (udp takes them as AF_INET), v4-mapped addresses (ipv6(7)), raw
 * and packet sockets, io_uring (io_uring_enter(2) makes calls that seccomp never sees), MPTCP, socketcall by int $0x80, and
 * the thread whose table of descriptors is its own (unshare(2)).
 *
 *   net-odd MODE ALLOWED_PORT DENIED_PORT MARKER */
#include "attack.h"
#include <arpa/inet.h>
#include <linux/io_uring.h>
#include <linux/vm_sockets.h>
#include <net/if.h>
#include <netpacket/packet.h>
#include <netinet/ip.h>
#include <netinet/tcp.h>
#include <netinet/udp.h>
#include <pthread.h>
#include <sched.h>
#include <sys/socket.h>

static struct sockaddr_in good, bad;
static struct sockaddr_in6 mapped = { .sin6_family = AF_INET6 };
static struct iovec data = { "x", 1 };
static int last_error;

static int new(int family, int type, int protocol) {
    int fd = socket(family, type | SOCK_CLOEXEC, protocol);
    if (fd >= 0) return fd;
    if (errno == EPERM || errno == EACCES) held("socket: %s", strerror(errno));
    skip("socket: %s", strerror(errno));
}
static void result(long n) { if (n < 0) last_error = errno; }
static int tcp(void) { return new(AF_INET, SOCK_STREAM, 0); }
static int udp(void) { return new(AF_INET, SOCK_DGRAM, 0); }
static void link_to(int fd, void *address, socklen_t length) { result(connect(fd, address, length)); result(send(fd, "x", 1, MSG_NOSIGNAL)); }
static void message(int fd, int flags, void *address, socklen_t length) {
    struct msghdr m = { .msg_name = address, .msg_namelen = length, .msg_iov = &data, .msg_iovlen = 1 };
    result(sendmsg(fd, &m, flags | MSG_NOSIGNAL));
}
static void messages(int fd, int flags, struct sockaddr_in *a, struct sockaddr_in *b) {
    struct mmsghdr m[2] = { { .msg_hdr = { .msg_name = a, .msg_namelen = sizeof *a, .msg_iov = &data, .msg_iovlen = 1 } },
                            { .msg_hdr = { .msg_name = b, .msg_namelen = sizeof *b, .msg_iov = &data, .msg_iovlen = 1 } } };
    result(sendmmsg(fd, m, b ? 2 : 1, flags | MSG_NOSIGNAL));
}
static void to(int fd, int flags, void *address, socklen_t length) { result(sendto(fd, "x", 1, flags | MSG_NOSIGNAL, address, length)); }

static void by_connect(void) { link_to(tcp(), &bad, sizeof bad); }
static void by_udp_connect(void) { link_to(udp(), &bad, sizeof bad); }
static void by_sendto(void) { to(udp(), 0, &bad, sizeof bad); }
static void by_sendmsg(void) { message(udp(), 0, &bad, sizeof bad); }
static void by_second(void) { messages(udp(), 0, &good, &bad); }
static void by_fastopen(void) { to(tcp(), MSG_FASTOPEN, &bad, sizeof bad); }
static void by_fastopen_sendmsg(void) { message(tcp(), MSG_FASTOPEN, &bad, sizeof bad); }
static void by_fastopen_sendmmsg(void) { messages(tcp(), MSG_FASTOPEN, &bad, NULL); }
static void by_fastopen_connect(void) {
    int fd = tcp(), one = 1;
    setsockopt(fd, IPPROTO_TCP, TCP_FASTOPEN_CONNECT, &one, sizeof one);
    link_to(fd, &bad, sizeof bad);
}
static void by_unspec(void) { bad.sin_family = AF_UNSPEC; to(udp(), 0, &bad, sizeof bad); message(udp(), 0, &bad, sizeof bad); }
static void by_unspec_second(void) { bad.sin_family = AF_UNSPEC; messages(udp(), 0, &good, &bad); }
static void by_mapped(void) { link_to(new(AF_INET6, SOCK_STREAM, 0), &mapped, sizeof mapped); }
static void by_mapped_udp(void) { to(new(AF_INET6, SOCK_DGRAM, 0), 0, &mapped, sizeof mapped); }
static void by_inet_on_inet6(void) {
    int fd = new(AF_INET6, SOCK_DGRAM, 0);
    to(fd, 0, &bad, sizeof bad);
    link_to(fd, &bad, sizeof bad);
}
static void by_any(void) { bad.sin_addr.s_addr = 0; link_to(tcp(), &bad, sizeof bad); } /* 0.0.0.0 is this machine */
static void by_any6(void) { memset(&mapped.sin6_addr, 0, 10); mapped.sin6_addr.s6_addr[12] = 0, mapped.sin6_addr.s6_addr[15] = 0; link_to(new(AF_INET6, SOCK_STREAM, 0), &mapped, sizeof mapped); }
static void by_long(void) { struct sockaddr_storage s = { 0 }; memcpy(&s, &bad, sizeof bad); link_to(tcp(), &s, sizeof s); to(udp(), 0, &s, sizeof s); }
static void by_override(void) { int fd = udp(); result(connect(fd, (void *)&good, sizeof good)); to(fd, 0, &bad, sizeof bad); message(fd, 0, &bad, sizeof bad); }
static void by_again(void) {
    int fd = tcp();
    struct sockaddr none = { .sa_family = AF_UNSPEC };
    result(connect(fd, (void *)&good, sizeof good));
    result(connect(fd, &none, sizeof none));
    link_to(fd, &bad, sizeof bad);
}
static void by_again_udp(void) { int fd = udp(); result(connect(fd, (void *)&good, sizeof good)); link_to(fd, &bad, sizeof bad); }
static void by_mptcp(void) { link_to(new(AF_INET, SOCK_STREAM, 262), &bad, sizeof bad); }
static void by_udplite(void) { to(new(AF_INET, SOCK_DGRAM, IPPROTO_UDPLITE), 0, &bad, sizeof bad); }
static void by_sctp(void) { link_to(new(AF_INET, SOCK_STREAM, IPPROTO_SCTP), &bad, sizeof bad); }
static void by_repair(void) { /* no handshake: the connection is declared (CAP_NET_ADMIN) */
    int fd = tcp(), one = 1;
    struct sockaddr_in peer = { 0 };
    socklen_t n = sizeof peer;
    if (setsockopt(fd, IPPROTO_TCP, TCP_REPAIR, &one, sizeof one)) held("TCP_REPAIR: %s", strerror(errno));
    result(connect(fd, (void *)&bad, sizeof bad));
    if (!getpeername(fd, (void *)&peer, &n) && peer.sin_port == bad.sin_port) escaped("repair: the socket is connected to the denied port");
}

struct packet { struct iphdr ip; struct udphdr udp; char data; } __attribute__((packed));
static struct packet packet(void) {
    struct packet p = { .ip = { .ihl = 5, .version = 4, .tot_len = htons(sizeof p), .ttl = 64, .protocol = IPPROTO_UDP, .saddr = htonl(INADDR_LOOPBACK), .daddr = htonl(INADDR_LOOPBACK) },
                        .udp = { .source = htons(9), .dest = bad.sin_port, .len = htons(9) }, .data = 'x' };
    const uint8_t *bytes = (const uint8_t *)&p;
    uint32_t sum = 0;
    for (int i = 0; i < 20; i += 2) sum += (uint32_t)(bytes[i] << 8 | bytes[i + 1]);
    p.ip.check = htons((uint16_t)~(sum + (sum >> 16)));
    return p;
}
static void by_raw(void) { struct packet p = packet(); struct sockaddr_in a = good; a.sin_port = 0; result(sendto(new(AF_INET, SOCK_RAW, IPPROTO_RAW), &p, sizeof p, 0, (void *)&a, sizeof a)); }
static void by_raw_udp(void) { struct packet p = packet(); struct sockaddr_in a = good; result(sendto(new(AF_INET, SOCK_RAW, IPPROTO_UDP), &p.udp, 9, 0, (void *)&a, sizeof a)); }
static void by_packet(void) { /* the receiving side drops such a frame as a martian; that it went out is enough */
    struct packet p = packet();
    struct sockaddr_ll a = { .sll_family = AF_PACKET, .sll_protocol = htons(0x0800), .sll_ifindex = (int)if_nametoindex("lo"), .sll_halen = 6 };
    if (sendto(new(AF_PACKET, SOCK_DGRAM, htons(0x0800)), &p, sizeof p, 0, (void *)&a, sizeof a) < 0) held("sendto: %s", strerror(errno));
    escaped("packet: a frame of our making went out on lo");
}
static void by_vsock(void) { /* to this machine itself: what counts is whether the kernel's transport was asked */
    struct sockaddr_vm a = { .svm_family = AF_VSOCK, .svm_cid = VMADDR_CID_LOCAL, .svm_port = 1 };
    if (connect(new(AF_VSOCK, SOCK_STREAM | SOCK_NONBLOCK, 0), (void *)&a, sizeof a) && (errno == EACCES || errno == EPERM)) held("vsock: %s", strerror(errno));
    escaped("vsock: a connect reached the transport");
}

/* int $0x80: the address lies below 4 GB. */
static long enter_32(long number, long b, long c, long d, long s, long di) {
    long result;
    __asm__ volatile("int $0x80" : "=a"(result) : "a"(number), "b"(b), "c"(c), "d"(d), "S"(s), "D"(di) : "r8", "r9", "r10", "r11", "memory");
    return result;
}
static char *low(void) { char *p = mmap(NULL, 4096, 3, MAP_PRIVATE | MAP_ANONYMOUS | MAP_32BIT, -1, 0); memcpy(p, &bad, sizeof bad); return p; }
static void by_i386(void) { last_error = (int)-enter_32(362, tcp(), (long)low(), sizeof bad, 0, 0); }
static void by_i386_sendmsg(void) { /* sendto has six arguments: through socketcall it needs no ebp */
    char *p = low();
    uint32_t *a = (uint32_t *)(void *)(p + 64);
    a[0] = (uint32_t)udp(), a[1] = (uint32_t)(uintptr_t)p, a[2] = 1, a[3] = 0, a[4] = a[1], a[5] = sizeof bad;
    last_error = (int)-enter_32(102, 11 /* SYS_SENDTO */, (long)a, 0, 0, 0);
}
static void by_socketcall(void) {
    char *p = low();
    uint32_t *a = (uint32_t *)(void *)(p + 64);
    a[0] = (uint32_t)tcp(), a[1] = (uint32_t)(uintptr_t)p, a[2] = sizeof bad;
    last_error = (int)-enter_32(102, 3 /* SYS_CONNECT */, (long)a, 0, 0, 0);
}
static void ring(int operation, int fd) {
    struct io_uring_params p = { 0 };
    int r = (int)syscall(SYS_io_uring_setup, 4, &p);
    if (r < 0) { if (errno == ENOSYS) skip("no io_uring"); held("io_uring_setup: %s", strerror(errno)); }
    char *q = mmap(NULL, 65536, PROT_READ | PROT_WRITE, MAP_SHARED, r, IORING_OFF_SQ_RING);
    struct io_uring_sqe *e = mmap(NULL, 65536, PROT_READ | PROT_WRITE, MAP_SHARED, r, (off_t)IORING_OFF_SQES);
    if (q == MAP_FAILED || (void *)e == MAP_FAILED) skip("mapping the ring: %s", strerror(errno));
    struct msghdr m = { .msg_name = &bad, .msg_namelen = sizeof bad, .msg_iov = &data, .msg_iovlen = 1 };
    memset(e, 0, sizeof *e);
    e->opcode = (uint8_t)operation, e->fd = fd;
    if (operation == IORING_OP_CONNECT) e->addr = (uintptr_t)&bad, e->off = sizeof bad;
    else e->addr = (uintptr_t)&m, e->len = 1;
    *(uint32_t *)(void *)(q + p.sq_off.array) = 0;
    __atomic_store_n((uint32_t *)(void *)(q + p.sq_off.tail), 1, __ATOMIC_RELEASE);
    result(syscall(SYS_io_uring_enter, r, 1, 1, IORING_ENTER_GETEVENTS, NULL, 0));
}
static void by_ring(void) { ring(IORING_OP_CONNECT, tcp()); }
static void by_ring_send(void) { ring(IORING_OP_SENDMSG, udp()); }

static void by_passed(void) { /* the socket was made by another process, and comes by SCM_RIGHTS */
    int pair[2];
    char room[CMSG_SPACE(sizeof(int))] __attribute__((aligned(8))) = { 0 };
    struct msghdr m = { .msg_iov = &data, .msg_iovlen = 1, .msg_control = room, .msg_controllen = sizeof room };
    data.iov_base = (char[1]){ 'x' };
    if (socketpair(AF_UNIX, SOCK_STREAM, 0, pair)) held("socketpair: %s", strerror(errno));
    if (fork_bounded() == 0) {
        *CMSG_FIRSTHDR(&m) = (struct cmsghdr){ .cmsg_len = CMSG_LEN(sizeof(int)), .cmsg_level = SOL_SOCKET, .cmsg_type = SCM_RIGHTS };
        memcpy(CMSG_DATA(CMSG_FIRSTHDR(&m)), &(int){ tcp() }, sizeof(int));
        _exit(sendmsg(pair[0], &m, 0) != 1);
    }
    int fd = -1;
    if (recvmsg(pair[1], &m, 0) == 1 && CMSG_FIRSTHDR(&m)) memcpy(&fd, CMSG_DATA(CMSG_FIRSTHDR(&m)), sizeof fd);
    if (fd < 0) held("the socket did not come: %s", strerror(errno));
    link_to(fd, &bad, sizeof bad);
}
static void by_secret(void) { /* the address in memory that only the kernel can read for the caller */
    int fd = (int)syscall(447 /* memfd_secret */, 0);
    if (fd < 0 || ftruncate(fd, 4096)) skip("memfd_secret: %s", strerror(errno));
    void *page = mmap(NULL, 4096, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
    if (page == MAP_FAILED) skip("memfd_secret: %s", strerror(errno));
    memcpy(page, &bad, sizeof bad);
    link_to(tcp(), page, sizeof bad);
    to(udp(), 0, page, sizeof bad);
}
static void by_edge(void) {
    char *pages = mmap(NULL, 8192, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    mprotect(pages + 4096, 4096, PROT_NONE);
    memcpy(pages + 4096 - sizeof bad, &bad, sizeof bad);
    link_to(tcp(), pages + 4096 - sizeof bad, sizeof bad);
}
static void *own_table(void *at) {
    if (unshare(CLONE_FILES)) held("unshare: %s", strerror(errno));
    int fd = (int)(intptr_t)at;
    dup2(tcp(), fd);
    link_to(fd, &bad, sizeof bad);
    return NULL;
}
static void by_table(void) { /* the leader's descriptor of that number is connected to the allowed port */
    pthread_t thread;
    int fd = tcp();
    result(connect(fd, (void *)&good, sizeof good));
    pthread_create(&thread, NULL, own_table, (void *)(intptr_t)fd);
    pthread_join(thread, NULL);
}

int main(int argc, char **argv) {
    static const struct { const char *name; void (*run)(void); } modes[] = {
        { "connect", by_connect }, { "udp", by_udp_connect }, { "sendto", by_sendto }, { "sendmsg", by_sendmsg }, { "second", by_second },
        { "fastopen", by_fastopen }, { "fastopen-sendmsg", by_fastopen_sendmsg }, { "fastopen-sendmmsg", by_fastopen_sendmmsg },
        { "fastopen-connect", by_fastopen_connect }, { "unspec", by_unspec }, { "unspec-second", by_unspec_second }, { "mapped", by_mapped },
        { "mapped-udp", by_mapped_udp }, { "inet-on-inet6", by_inet_on_inet6 }, { "any", by_any }, { "any6", by_any6 }, { "long", by_long },
        { "override", by_override }, { "again", by_again }, { "again-udp", by_again_udp }, { "mptcp", by_mptcp }, { "udplite", by_udplite },
        { "sctp", by_sctp }, { "repair", by_repair }, { "raw", by_raw }, { "raw-udp", by_raw_udp }, { "packet", by_packet }, { "vsock", by_vsock },
        { "i386", by_i386 }, { "i386-sendto", by_i386_sendmsg }, { "socketcall", by_socketcall }, { "io-uring", by_ring },
        { "io-uring-send", by_ring_send }, { "passed", by_passed }, { "secret", by_secret }, { "page-end", by_edge }, { "table", by_table } };
    if (argc < 5) skip("usage: MODE ALLOWED_PORT DENIED_PORT MARKER");
    attack_marker = argv[4];
    bound(5);
    good = bad = (struct sockaddr_in){ .sin_family = AF_INET, .sin_port = htons((uint16_t)atoi(argv[2])), .sin_addr = { htonl(INADDR_LOOPBACK) } };
    bad.sin_port = mapped.sin6_port = htons((uint16_t)atoi(argv[3]));
    memcpy(&mapped.sin6_addr, (uint8_t[16]){ [10] = 255, 255, 127, 0, 0, 1 }, 16);
    for (size_t i = 0; i < sizeof modes / sizeof *modes; i++) {
        if (strcmp(modes[i].name, argv[1])) continue;
        modes[i].run();
        if (marker_appears(200)) escaped("%s: the denied port was reached", argv[1]);
        held("%s: %s", argv[1], last_error ? strerror(last_error) : "nothing arrived");
    }
    skip("no mode %s", argv[1]);
}
