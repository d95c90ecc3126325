/* interrupted MODE: makes a call twice, and a signal comes during the second, which takes long to be decided on. Exit 0 and
 * `right`, or 1 and what was wrong. -eintr: the handler is installed without SA_RESTART, and the program makes it again. */
#define _GNU_SOURCE
#include <arpa/inet.h>
#include <errno.h>
#include <poll.h>
#include <pthread.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/time.h>
#include <unistd.h>

static struct sockaddr_in here = { .sin_family = AF_INET };
static const char *mode;
static int handled, other = -1;
static int is(const char *m) { return !strncmp(mode, m, strlen(m)); }
static void wrong(const char *what) { printf("wrong: %s: %s: %s (%d signals)\n", mode, what, strerror(errno), handled); fflush(stdout); _exit(1); }
static void handle(int s) {
    (void)s;
    handled++;
    if (other >= 0 && send(other, "other", 5, 0) != 5) wrong("send of the handler");
}
static int new(int type) {
    int fd = socket(AF_INET, type, 0), one = 1;
    if (fd < 0 || setsockopt(fd, SOL_SOCKET, SO_REUSEADDR, &one, sizeof one)) wrong("socket");
    return fd;
}
/* One on a port of its own, which `here` becomes. */
static int server(int type) {
    int fd = new(type);
    socklen_t length = sizeof here;
    here.sin_port = 0, here.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
    if (bind(fd, (void *)&here, sizeof here) || getsockname(fd, (void *)&here, &length)) wrong("bind of the server");
    if (type == SOCK_STREAM && listen(fd, 16)) wrong("listen");
    return fd;
}
static void soon(void) {
    struct sigaction action = { .sa_handler = handle, .sa_flags = strstr(mode, "-eintr") ? 0 : SA_RESTART };
    sigaction(SIGALRM, &action, NULL);
    setitimer(ITIMER_REAL, &(struct itimerval){ { 0, 0 }, { 0, 40000 } }, NULL);
}
static long again(long result) { return result < 0 && errno == EINTR && strstr(mode, "-eintr"); }
static char got[256];
static void receive(int fd) {
    struct pollfd p = { fd, POLLIN, 0 };
    char part[64];
    long n;
    while (poll(&p, 1, 100) > 0 && (n = recv(fd, part, sizeof part - 1, 0)) > 0) {
        part[n] = 0;
        strcat(strcat(got, part), " ");
    }
}
static void expect(const char *what) { if (strcmp(got, what)) { errno = 0; printf("received %s\n", got); wrong("not what was sent"); } }
static void *clients(void *unused) {
    (void)unused;
    for (int i = 0; i < 2; i++) {
        char c;
        int fd = new(SOCK_STREAM);
        struct pollfd p = { fd, POLLIN, 0 };
        if (connect(fd, (void *)&here, sizeof here)) wrong("client's connect");
        if (poll(&p, 1, 20000) != 1 || read(fd, &c, 1) != 1) wrong("connection lost");
        close(fd);
    }
    return NULL;
}

int main(int argc, char **argv) {
    if (argc < 2) return 2;
    mode = argv[1];
    if (is("send") || is("handler") || is("changed")) {
        int to = server(SOCK_DGRAM), from = new(SOCK_DGRAM);
        struct mmsghdr messages[3] = { 0 };
        struct iovec parts[3] = { { "1", 1 }, { "2", 1 }, { "3", 1 } };
        for (int i = 0; i < 3; i++) messages[i].msg_hdr = (struct msghdr){ .msg_name = &here, .msg_namelen = sizeof here, .msg_iov = parts + i, .msg_iovlen = 1 };
        long sent;
        if (sendto(from, "0", 1, 0, (void *)&here, sizeof here) != 1) wrong("first send");
        if (is("handler")) {
            other = new(SOCK_DGRAM);
            if (connect(other, (void *)&here, sizeof here)) wrong("connect of the handler's socket");
        }
        soon();
        if (is("sendmmsg")) {
            /* Fewer, and then the rest, would be right too. */
            for (unsigned done = 0; done < 3; done += (unsigned)sent) {
                while (again(sent = sendmmsg(from, messages + done, 3 - done, 0))) {}
                if (sent < 1) wrong("sendmmsg");
            }
            for (int i = 0; i < 3; i++) if (messages[i].msg_len != 1) wrong("length of a message");
            receive(to);
            expect("0 1 2 3 ");
        } else if (is("sendmsg")) {
            while (again(sent = sendmsg(from, &messages[0].msg_hdr, 0))) {}
            if (sent != 1) wrong("sendmsg");
            receive(to);
            expect("0 1 ");
        } else {
            sent = sendto(from, "1", 1, 0, (void *)&here, sizeof here);
            if (is("changed") && again(sent)) { /* another message in between: what was not heard is forgotten */
                if (sendto(from, "x", 1, 0, (void *)&here, sizeof here) != 1) wrong("another send");
                if (sendto(from, "1", 1, 0, (void *)&here, sizeof here) != 1) wrong("the send again");
                if (sendto(from, "1", 1, 0, (void *)&here, sizeof here) != 1) wrong("the send once more");
                receive(to);
                if (strcmp(got, "0 x 1 1 ")) expect("0 1 x 1 1 ");
            } else {
                while (again(sent)) sent = sendto(from, "1", 1, 0, (void *)&here, sizeof here);
                if (sent != 1) wrong("sendto");
                receive(to);
                char *handlers = strstr(got, "other ");
                if (handlers) memmove(handlers, handlers + 6, strlen(handlers + 6) + 1);
                expect("0 1 ");
            }
        }
    } else if (is("connect") || is("nonblock")) {
        int listening = server(SOCK_STREAM), first = new(SOCK_STREAM), second = new(SOCK_STREAM | (is("nonblock") ? SOCK_NONBLOCK : 0));
        long result;
        if (connect(first, (void *)&here, sizeof here)) wrong("first connect");
        soon();
        while (again(result = connect(second, (void *)&here, sizeof here))) {}
        if (is("nonblock") ? result && errno != EINPROGRESS : result) wrong("connect");
        for (int i = 0; i < 2; i++) {
            struct pollfd p = { listening, POLLIN, 0 };
            if (poll(&p, 1, 20000) != 1 || accept(listening, NULL, NULL) < 0) wrong("accept");
        }
    } else if (is("bind")) {
        int first = server(SOCK_STREAM), second = new(SOCK_STREAM);
        long result;
        here.sin_port = 0;
        soon();
        while (again(result = bind(second, (void *)&here, sizeof here))) {}
        if (result) wrong("bind");
        close(first);
    } else if (is("accept")) {
        int listening = server(SOCK_STREAM);
        pthread_t thread;
        sigset_t alarm;
        sigemptyset(&alarm), sigaddset(&alarm, SIGALRM);
        pthread_sigmask(SIG_BLOCK, &alarm, NULL);
        pthread_create(&thread, NULL, clients, NULL);
        pthread_sigmask(SIG_UNBLOCK, &alarm, NULL);
        for (int i = 0; i < 2; i++) {
            struct sockaddr_in peer = { 0 };
            socklen_t length = sizeof peer;
            int fd;
            if (i == 1) soon();
            while (again(fd = accept(listening, (void *)&peer, &length))) {}
            if (fd < 0) wrong("accept");
            if (peer.sin_addr.s_addr != here.sin_addr.s_addr) wrong("the peer's address");
            if (write(fd, "x", 1) != 1) wrong("write");
            close(fd);
        }
        pthread_join(thread, NULL);
    } else return 2;
    printf("right: %s (%d signals)\n", mode, handled);
    return 0;
}
