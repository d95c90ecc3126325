/* Three threads, none of them the leader, execute the same program at once, and that does the same, as often as the argument
 * says: each exec has to see the two other threads off. */
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <unistd.h>

static char *self, left[16];
static pthread_barrier_t together;

static void *go(void *unused) {
    char *argv[] = { self, left, NULL };
    pthread_barrier_wait(&together);
    execv(self, argv);
    return unused;
}

int main(int argc, char **argv) {
    int rounds = argc > 1 ? atoi(argv[1]) : 0;
    if (rounds == 0) return 42;
    self = argv[0];
    snprintf(left, sizeof left, "%d", rounds - 1);
    pthread_barrier_init(&together, NULL, 3);
    for (int i = 0; i < 3; i++) {
        pthread_t thread;
        pthread_create(&thread, NULL, go, NULL);
    }
    for (;;) pause();
}
