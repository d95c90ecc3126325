/* What is kept of a thread must not outlive what the thread is. Each mode makes a call, so that the supervisor knows the
 * thread, lets it become something else, and makes the call again, from the same place of another memory. The program is
 * linked to fixed addresses, so that the old memory, which stays alive where that can be had, has another port in that place.
 *
 *   renewed vfork|thread|number ROUNDS PROGRAM
 * PROGRAM: this one, by another path. Prints how often the port was not the one that the memory has.
 */
#define _GNU_SOURCE
#include <arpa/inet.h>
#include <errno.h>
#include <linux/sched.h>
#include <pthread.h>
#include <sched.h>
#include <signal.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <unistd.h>

static struct sockaddr_in to;
static char *program;

/* Whether a call leads to the port that is written in `to`. */
static int leads_astray(int port) {
    to = (struct sockaddr_in){ .sin_family = AF_INET, .sin_port = htons(port), .sin_addr.s_addr = htonl(INADDR_LOOPBACK) };
    struct sockaddr_in peer = { 0 };
    socklen_t length = sizeof peer;
    int s = socket(AF_INET, SOCK_DGRAM | SOCK_CLOEXEC, 0);
    int wrong = connect(s, (void *)&to, sizeof to) || getpeername(s, (void *)&peer, &length) || peer.sin_port != htons(port);
    close(s);
    return wrong;
}

static void become_another(int port) {
    char number[16];
    snprintf(number, sizeof number, "%d", port);
    execl(program, program, "again", number, NULL);
    _exit(99);
}

static int status_of(pid_t pid) {
    int status;
    while (waitpid(pid, &status, __WALL) < 0 && errno == EINTR) {}
    return WIFEXITED(status) ? WEXITSTATUS(status) : 98;
}

/* A child that shares the memory makes a call, and then another program has its number. */
static int by_vfork(int round) {
    int wrong = leads_astray(2000 + round);
    pid_t pid = vfork();
    if (!pid) {
        if (leads_astray(2000 + round)) _exit(97);
        to.sin_port = htons(1); /* what the parent has there, if that is what is read */
        become_another(3000 + round);
    }
    return wrong || status_of(pid);
}

/* Until the other program has ended, which holds the pipe's other end. */
static int keeps_memory(void *arg) {
    int *ends = arg, byte;
    close(ends[1]);
    return (int)read(ends[0], &byte, 1);
}

static void *executes(void *port) { become_another((int)(long)port); return NULL; }

/* A thread that is not the leader becomes it, and another program; a process that shared the memory keeps the old one. */
static int by_thread(int round) {
    pid_t pid = fork();
    if (!pid) {
        static char stack[65536];
        if (leads_astray(2000 + round)) _exit(96);
        int ends[2];
        if (pipe(ends) || clone(keeps_memory, stack + sizeof stack, CLONE_VM, ends) < 0) _exit(95);
        pthread_t thread;
        pthread_create(&thread, NULL, executes, (void *)(long)(3000 + round));
        for (;;) leads_astray(2000 + round);
    }
    return status_of(pid);
}

static pid_t fork_as(pid_t number) {
    struct clone_args args = { .exit_signal = SIGCHLD, .set_tid = number ? (uint64_t)&number : 0, .set_tid_size = number ? 1 : 0 };
    return (pid_t)syscall(SYS_clone3, &args, sizeof args);
}

/* One process after the other has the same number. */
static int by_number(int round) {
    static pid_t number;
    pid_t pid = fork_as(number);
    if (pid < 0) { perror("clone3"); exit(2); }
    if (!pid) _exit(leads_astray(2000 + round));
    number = pid;
    return status_of(pid);
}

int main(int argc, char **argv) {
    if (argc == 3) return leads_astray(atoi(argv[2]));
    if (argc != 4) return 2;
    program = argv[3];
    int (*once)(int) = !strcmp(argv[1], "vfork") ? by_vfork : !strcmp(argv[1], "thread") ? by_thread : by_number;
    int wrong = 0;
    for (int round = 0; round < atoi(argv[2]); round++) wrong += once(round % 900) != 0;
    printf("%d\n", wrong);
    return 0;
}
