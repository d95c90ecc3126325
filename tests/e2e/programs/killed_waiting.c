/* Waits for a connection that never comes. A child sends it a signal that it handles, and kills it as many microseconds after
 * the supervisor may have noticed as the argument says. */
#include <netinet/in.h>
#include <signal.h>
#include <stdlib.h>
#include <sys/socket.h>
#include <time.h>
#include <unistd.h>

static void handled(int signal) { (void)signal; }

static void pause_us(long us) {
    struct timespec now, until;
    clock_gettime(CLOCK_MONOTONIC, &until);
    do clock_gettime(CLOCK_MONOTONIC, &now);
    while ((now.tv_sec - until.tv_sec) * 1000000 + (now.tv_nsec - until.tv_nsec) / 1000 < us);
}

int main(int argc, char **argv) {
    struct sockaddr_in address = { .sin_family = AF_INET, .sin_addr = { htonl(INADDR_LOOPBACK) } };
    int listening = socket(AF_INET, SOCK_STREAM, 0);
    signal(SIGUSR1, handled);
    if (bind(listening, (void *)&address, sizeof address) || listen(listening, 1)) return 1;
    if (fork() == 0) {
        pause_us(5000);
        kill(getppid(), SIGUSR1);
        pause_us(argc > 1 ? atoi(argv[1]) : 0);
        kill(getppid(), SIGKILL);
        return 0;
    }
    for (;;) accept(listening, NULL, NULL);
}
