/* The allowed program: does nothing. With ATTACK_REPORT in the environment it writes there who it runs as, and its
 * arguments. Must be linked dynamically, so that it has an ELF interpreter to be attacked through.
 *
 *   gcc -O1 -Wall -Wextra -o allowed allowed.c */
#include <stdio.h>
#include <stdlib.h>
#include <unistd.h>

int main(int argc, char **argv) {
    const char *report = getenv("ATTACK_REPORT");
    FILE *file = report ? fopen(report, "a") : NULL;
    if (!file) return 0;
    fprintf(file, "uid %d euid %d", getuid(), geteuid());
    for (int i = 1; i < argc; i++) fprintf(file, " %s", argv[i]);
    fprintf(file, "\n");
    return fclose(file) != 0;
}
