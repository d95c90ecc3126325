/* A connection that is closed as soon as it is accepted has been closed in order when its peer sends: the second message gets
 * EPIPE. Where somebody else still has the connection open, the first one finds it so, and what is thrown away unread is
 * answered with a reset. Prints how often which errno came. */
#include <arpa/inet.h>
#include <errno.h>
#include <stdio.h>
#include <sys/socket.h>
#include <unistd.h>

int main(void) {
    struct sockaddr_in address = { .sin_family = AF_INET, .sin_addr.s_addr = htonl(INADDR_LOOPBACK) };
    socklen_t length = sizeof address;
    int listener = socket(AF_INET, SOCK_STREAM, 0), pipes = 0, resets = 0;
    if (bind(listener, (void *)&address, sizeof address) || listen(listener, 5) || getsockname(listener, (void *)&address, &length)) return 2;
    for (int i = 0; i < 100; i++) {
        int client = socket(AF_INET, SOCK_STREAM, 0);
        if (connect(client, (void *)&address, sizeof address)) return 3;
        int accepted = accept(listener, NULL, NULL);
        if (accepted < 0) return 4;
        close(accepted);
        if (send(client, "x", 1, 0) != 1) return 5;
        usleep(1000);
        if (send(client, "x", 1, MSG_NOSIGNAL) >= 0) return 6;
        if (errno == EPIPE) pipes++;
        if (errno == ECONNRESET) resets++;
        close(client);
    }
    printf("EPIPE %d, ECONNRESET %d\n", pipes, resets);
    return 0;
}
