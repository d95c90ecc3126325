/* Calls from a thread that is replaced by another program in the midst of it.
 *
 *   replaced TRIES OTHER
 * A process connects a socket, while another thread of it runs OTHER, so that OTHER has the number of the one that called. Others
 * run programs all the time, so that decisions have to wait for each other. Prints how many of the sockets, of which the parent
 * has a copy, were connected in the end.
 */
#define _GNU_SOURCE
#include <arpa/inet.h>
#include <netinet/in.h>
#include <pthread.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/prctl.h>
#include <sys/socket.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

enum { CROWD = 6 };
static volatile int go;
static const char *other;

static long now(void) { struct timespec t; clock_gettime(CLOCK_MONOTONIC, &t); return t.tv_sec * 1000000000L + t.tv_nsec; }

static void *run(void *unused) {
    char *argv[] = { (char *)other, NULL }, *env[] = { NULL };
    while (!go) {}
    execve(other, argv, env);
    return unused;
}

static void crowd(int number) {
    char text[64], *argv[] = { "denied", text, NULL }, *env[] = { NULL };
    prctl(PR_SET_PDEATHSIG, SIGKILL);
    for (unsigned i = 0;; i++) {
        snprintf(text, sizeof text, "%d-%u", number, i);
        execve("/usr/bin/whoami", argv, env);
        usleep(200);
    }
}

static void try(int s, int port) {
    pthread_t thread;
    struct sockaddr_in to = { .sin_family = AF_INET, .sin_port = htons(port), .sin_addr.s_addr = htonl(INADDR_LOOPBACK) };
    long wait = rand() % 60000;
    pthread_create(&thread, NULL, run, NULL);
    usleep(500);
    go = 1;
    for (long begun = now(); now() - begun < wait;) {}
    connect(s, (void *)&to, sizeof to);
    for (;;) pause();
}

int main(int argc, char **argv) {
    int tries = argc > 2 ? atoi(argv[1]) : 0, connected = 0, status;
    pid_t others[CROWD];
    other = argv[2];
    for (int i = 0; i < CROWD; i++) if (!(others[i] = fork())) crowd(i);
    for (int t = 0; t < tries; t++) {
        struct sockaddr_in peer;
        socklen_t length = sizeof peer;
        int s = socket(AF_INET, SOCK_DGRAM, 0);
        pid_t pid = fork();
        if (!pid) { srand(t); try(s, 1000 + t); }
        for (int k = 0; k < 200 && pid; k++) { if (waitpid(pid, &status, WNOHANG) == pid) pid = 0; else usleep(1000); }
        if (pid) { kill(pid, SIGKILL); waitpid(pid, &status, 0); }
        if (!getpeername(s, (void *)&peer, &length)) connected++;
        close(s);
    }
    for (int i = 0; i < CROWD; i++) kill(others[i], SIGKILL);
    printf("%d\n", connected);
    return 0;
}
