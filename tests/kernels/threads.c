/* What older kernels make hard, run with and without callgate: calls of threads, and calls that a signal interrupts.
 *
 *   threads MODE PORT [ROUNDS]
 * nonleader    a thread that is not the leader connects       leaderless  the same, and the leader has ended
 * own-table    a thread with descriptors of its own connects  exec        such a thread runs /bin/true
 * bind connect udp sendto sendmsg stream accept spawn   ROUNDS of the call while signals (SA_RESTART) come all the time
 * pidfd-self   a process sends itself a signal by its descriptor   sigpipe  a stream whose reader is gone
 * unix-bind    a socket with a relative path
 * Exit 0 and `right: …`, or 1 and `wrong: …` if a signal or a thread was noticed in more than one of 100 rounds: now and then
 * a kernel before 5.19 takes an answer and drops it (SECURITY.md, `restart-free`). */
#define _GNU_SOURCE
#include <arpa/inet.h>
#include <errno.h>
#include <poll.h>
#include <pthread.h>
#include <sched.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/syscall.h>
#include <sys/time.h>
#include <sys/un.h>
#include <sys/wait.h>
#include <unistd.h>

static struct sockaddr_in here;
static int port, rounds, wrong;
static char said[160] = "nothing";
static const char *mode;
static int is(const char *m) { return !strcmp(mode, m); }
static void bad(const char *what, int round) { if (!wrong++) snprintf(said, sizeof said, "%s in round %d: %s", what, round, strerror(errno)); }
__attribute__((noreturn)) static void end(void) {
    int noticed = wrong * 100 > rounds;
    printf("%s: %s: %d of %d rounds: %s\n", noticed ? "wrong" : "right", mode, wrong, rounds, said);
    fflush(stdout);
    _exit(noticed);
}
static int new(int type) {
    int fd = socket(AF_INET, type | SOCK_CLOEXEC, 0), one = 1;
    if (fd < 0) bad("socket", 0);
    setsockopt(fd, SOL_SOCKET, SO_REUSEADDR, &one, sizeof one);
    return fd;
}
static int server(int type) {
    int fd = new(type);
    if (bind(fd, (void *)&here, sizeof here)) bad("bind of the server", 0);
    if (type == SOCK_STREAM && listen(fd, 128)) bad("listen", 0);
    return fd;
}
static volatile int handled;
static void nothing(int s) { (void)s; }
static void counts(int s) { (void)s; if (++handled > 20) end(); }
static void storm(void) {
    struct sigaction action = { .sa_handler = nothing, .sa_flags = SA_RESTART };
    long us = getenv("STORM_US") ? atol(getenv("STORM_US")) : 15000;
    sigaction(SIGALRM, &action, NULL);
    setitimer(ITIMER_REAL, &(struct itimerval){ { 0, us }, { 0, us } }, NULL);
}
static void calm(void) { setitimer(ITIMER_REAL, &(struct itimerval){ 0 }, NULL); }

static void *connects(void *arg) {
    if (is("own-table")) { /* the socket is made here, where the leader cannot see it */
        if (unshare(CLONE_FILES)) bad("unshare", 0);
    }
    if (is("leaderless")) sleep(1);
    int fd = arg ? *(int *)arg : new(SOCK_STREAM);
    if (is("own-table")) { int other = dup2(fd, 77); fd = other; }
    if (connect(fd, (void *)&here, sizeof here)) bad("connect", 1);
    if (is("leaderless")) end();
    return NULL;
}
static void *execs(void *arg) {
    char *argv[] = { "/bin/true", NULL };
    (void)arg;
    execv(argv[0], argv);
    bad("exec", 1);
    end();
}
static void *client(void *unused) {
    sigset_t all;
    (void)unused;
    sigfillset(&all);
    pthread_sigmask(SIG_BLOCK, &all, NULL);
    for (int i = 0; i < rounds; i++) {
        int fd = new(SOCK_STREAM), n;
        char c = 0;
        usleep(2000);
        if (connect(fd, (void *)&here, sizeof here)) { bad("client's connect", i); break; }
        struct pollfd p = { fd, POLLIN, 0 };
        if (poll(&p, 1, 3000) != 1) { bad("no answer from who accepts", i); break; }
        else if ((n = (int)read(fd, &c, 1)) != 1) { if (n == 0) errno = 0; bad("connection lost", i); }
        close(fd);
    }
    end();
}

int main(int argc, char **argv) {
    if (argc < 3) return 2;
    mode = argv[1], port = atoi(argv[2]), rounds = argc > 3 ? atoi(argv[3]) : 1;
    here = (struct sockaddr_in){ .sin_family = AF_INET, .sin_port = htons((uint16_t)port), .sin_addr = { htonl(INADDR_LOOPBACK) } };
    pthread_t thread;
    strcpy(said, "as without callgate");
    if (is("nonleader") || is("own-table") || is("leaderless")) {
        server(SOCK_STREAM);
        pthread_create(&thread, NULL, connects, NULL);
        if (is("leaderless")) pthread_exit(NULL);
        pthread_join(thread, NULL);
    } else if (is("exec")) {
        pthread_create(&thread, NULL, execs, NULL);
        pthread_join(thread, NULL);
    } else if (is("pidfd-self")) {
        struct sigaction action = { .sa_handler = counts, .sa_flags = SA_RESTART };
        sigaction(SIGUSR1, &action, NULL);
        int fd = (int)syscall(SYS_pidfd_open, getpid(), 0);
        if (syscall(SYS_pidfd_send_signal, fd, SIGUSR1, NULL, 0)) bad("pidfd_send_signal", 1);
        usleep(100000);
        errno = 0;
        if (handled != 1) bad("the signal came another number of times", handled);
    } else if (is("sigpipe")) {
        struct sigaction action = { .sa_handler = counts, .sa_flags = SA_RESTART };
        int pair[2];
        sigaction(SIGPIPE, &action, NULL);
        socketpair(AF_UNIX, SOCK_STREAM, 0, pair);
        close(pair[1]);
        struct iovec part = { "x", 1 };
        struct msghdr message = { .msg_iov = &part, .msg_iovlen = 1 };
        if (sendmsg(pair[0], &message, 0) != -1 || errno != EPIPE) bad("sendmsg", 1);
        usleep(100000);
        errno = 0;
        if (handled != 1) bad("SIGPIPE came another number of times", handled);
    } else if (is("unix-bind")) {
        char directory[] = "/tmp/threads-XXXXXX";
        struct sockaddr_un un = { AF_UNIX, "socket" };
        int fd = socket(AF_UNIX, SOCK_STREAM, 0), other = socket(AF_UNIX, SOCK_STREAM, 0);
        if (!mkdtemp(directory) || chdir(directory)) bad("mkdtemp", 1);
        if (bind(fd, (void *)&un, sizeof un) || listen(fd, 1)) bad("bind", 1);
        if (access("socket", F_OK)) bad("access", 1);
        if (connect(other, (void *)&un, sizeof un)) bad("connect", 1);
    } else if (is("bind")) {
        storm();
        for (int i = 0; i < rounds; i++) {
            int fd = new(SOCK_STREAM);
            if (bind(fd, (void *)&here, sizeof here)) bad("bind", i);
            close(fd);
        }
    } else if (is("connect")) {
        int listening = server(SOCK_STREAM);
        storm();
        for (int i = 0; i < rounds; i++) {
            int fd = new(SOCK_STREAM);
            if (connect(fd, (void *)&here, sizeof here)) bad("connect", i);
            close(fd);
            calm();
            close(accept(listening, NULL, NULL));
            storm();
        }
    } else if (is("udp")) {
        int fd = new(SOCK_DGRAM);
        storm();
        for (int i = 0; i < rounds; i++) if (connect(fd, (void *)&here, sizeof here)) bad("connect", i);
    } else if (is("sendto") || is("sendmsg")) {
        int from = new(SOCK_DGRAM), to = server(SOCK_DGRAM);
        storm();
        for (int i = 0; i < rounds; i++) {
            char data[16];
            int got, n = snprintf(data, sizeof data, "%d", i), count = 0;
            struct iovec part = { data, (size_t)n };
            struct msghdr message = { .msg_name = &here, .msg_namelen = sizeof here, .msg_iov = &part, .msg_iovlen = 1 };
            long sent = is("sendto") ? sendto(from, data, (size_t)n, 0, (void *)&here, sizeof here) : sendmsg(from, &message, 0);
            if (sent != n) bad("send", i);
            struct pollfd p = { to, POLLIN, 0 };
            while (poll(&p, 1, count ? 1 : 2000) < 0) {}
            while ((got = (int)recv(to, data, sizeof data, MSG_DONTWAIT)) > 0) count++;
            errno = 0;
            if (count != 1) { bad(count > 1 ? "datagram came twice" : "datagram lost", i); }
        }
    } else if (is("stream")) { /* large messages into a stream whose reader is slow: every byte must come once */
        int pair[2], status;
        socketpair(AF_UNIX, SOCK_STREAM, 0, pair);
        static unsigned char block[300000];
        pid_t pid = fork();
        if (pid == 0) {
            unsigned long at = 0, n;
            long got;
            close(pair[0]);
            while ((got = read(pair[1], block, 20000)) > 0) {
                for (n = 0; n < (unsigned long)got; n++, at++) if (block[n] != (unsigned char)(at * 2654435761u >> 24)) _exit(1);
                usleep(3000);
            }
            _exit(0);
        }
        close(pair[1]);
        storm();
        unsigned long at = 0;
        for (int i = 0; i < rounds; i++) {
            for (unsigned long n = 0; n < sizeof block; n++) block[n] = (unsigned char)((at + n) * 2654435761u >> 24);
            for (unsigned long done = 0; done < sizeof block;) {
                struct iovec part = { block + done, sizeof block - done };
                struct msghdr message = { .msg_iov = &part, .msg_iovlen = 1 };
                long sent = sendmsg(pair[0], &message, MSG_NOSIGNAL);
                if (sent < 0) { bad("sendmsg", i); break; }
                done += (unsigned long)sent;
            }
            at += sizeof block;
        }
        calm();
        close(pair[0]);
        waitpid(pid, &status, 0);
        errno = 0;
        if (status) bad("bytes came twice or are missing", rounds);
    } else if (is("accept")) {
        int listening = server(SOCK_STREAM);
        pthread_create(&thread, NULL, client, NULL); /* it ends the process */
        storm();
        for (int i = 0;; i++) {
            int fd = accept(listening, NULL, NULL);
            if (fd < 0) { bad("accept", i); continue; }
            if (write(fd, "x", 1) != 1) bad("write", i);
            close(fd);
        }
    } else if (is("spawn")) {
        storm();
        for (volatile int i = 0; i < rounds / 5; i++) { /* an exec under its own storm, which ends it if it comes afterwards */
            int status = 0;
            pid_t pid = fork();
            if (pid == 0) {
                storm();
                execl("/bin/true", "/bin/true", NULL);
                _exit(100);
            }
            while (waitpid(pid, &status, 0) < 0) {}
            if (status && !(WIFSIGNALED(status) && WTERMSIG(status) == SIGALRM)) bad("status of a stormed exec", i);
        }
    } else return 2;
    calm();
    end();
}
