/* The program is the allowed one, and its arguments change after they were read.
 *
 * argv is an array of pointers to strings: each pointer and each string is read by the kernel after an enforcer that
 * CONTINUEs has read it (seccomp_unotify(2)). Where a rule, or the audit log, goes by the arguments ("git status, but not
 * git push"), what runs is not what was judged. By hand, or for a driver that reads the audit log: the allowed program
 * writes the arguments that it got to MARKER. No record must say `innocent` where the file says `guilty`.
 *
 *   exec-argv MODE ALLOWED MARKER ROUNDS [SECONDS]      MODE is string or pointer */
#include "attack.h"
#include <pthread.h>

static char word[64] __attribute__((aligned(8)));
static char *words[4];
static int pointer;
static _Atomic int started;

static void *flipper(void *unused) {
    static char good[] = "innocent", bad[] = "guilty!!";
    (void)unused;
    for (unsigned n = 1;; n = n * 1103515245 + 12345) {
        if (pointer) *(char *volatile *)&words[1] = bad; else *(volatile uint64_t *)word = *(uint64_t *)(void *)bad;
        started = 1;
        spin_ns(n >> 8 & 8191);
        if (pointer) *(char *volatile *)&words[1] = good; else *(volatile uint64_t *)word = *(uint64_t *)(void *)good;
        spin_ns(n >> 12 & 8191);
    }
    return NULL;
}

int main(int argc, char **argv) {
    if (argc < 5) skip("usage: MODE ALLOWED MARKER ROUNDS [SECONDS]");
    int rounds = atoi(argv[4]), seconds = argc > 5 ? atoi(argv[5]) : 3;
    bound((unsigned)seconds + 2);
    pointer = !strcmp(argv[1], "pointer");
    setenv("ATTACK_REPORT", argv[3], 1);
    words[0] = argv[2], words[1] = strcpy(word, "innocent"), words[2] = malloc(16);
    struct tally tally = { 0 };
    int64_t until = now_ns() + seconds * 1000000000LL;
    for (int round = 1; round <= rounds && now_ns() < until; round++) {
        sprintf(words[2], "%d", round);
        pid_t pid = fork_bounded();
        if (pid == 0) {
            pthread_t thread;
            pthread_create(&thread, NULL, flipper, NULL);
            while (!started) {}
            execv(words[0], words);
            _exit(REFUSED);
        }
        count(&tally, reap(pid));
    }
    printf("%d rounds, ran %d, refused %d, killed %d\n", tally.rounds, tally.ran, tally.refused, tally.killed);
    FILE *file = fopen(argv[3], "r");
    char line[200];
    while (file && fgets(line, sizeof line, file)) if (strstr(line, "guilty")) escaped("%s: the program got other arguments than at first: %s", argv[1], strtok(line, "\n"));
    held("%s: the arguments stayed", argv[1]);
}
