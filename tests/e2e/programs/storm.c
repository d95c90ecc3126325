/* storm: connects twice, and signals come all the time. Says so after 300 of them. */
#define _GNU_SOURCE
#include <arpa/inet.h>
#include <signal.h>
#include <sys/socket.h>
#include <sys/time.h>
#include <unistd.h>

static void handle(int s) {
    static int handled;
    (void)s;
    if (++handled == 300 && write(1, "now\n", 4) != 4) _exit(1);
}

int main(void) {
    struct sockaddr_in here = { .sin_family = AF_INET, .sin_port = htons(9), .sin_addr.s_addr = htonl(INADDR_LOOPBACK) };
    struct sigaction action = { .sa_handler = handle, .sa_flags = SA_RESTART };
    connect(socket(AF_INET, SOCK_DGRAM, 0), (void *)&here, sizeof here);
    sigaction(SIGALRM, &action, NULL);
    setitimer(ITIMER_REAL, &(struct itimerval){ { 0, 2000 }, { 0, 2000 } }, NULL);
    connect(socket(AF_INET, SOCK_DGRAM, 0), (void *)&here, sizeof here);
    return 0;
}
