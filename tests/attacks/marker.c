/* The denied program. It appends a line to the file named by ATTACK_MARKER, or else by its first argument: whoever finds
 * the file knows that it ran. It uses no library, so that it also works as an ELF interpreter and in an empty root.
 *
 *   gcc -O1 -Wall -Wextra -ffreestanding -fno-stack-protector -nostdlib -static-pie -o denied marker.c */
#include <stddef.h>

static long call(long number, long a, long b, long c, long d) {
    long result;
    register long fourth __asm__("r10") = d;
    __asm__ volatile("syscall" : "=a"(result) : "a"(number), "D"(a), "S"(b), "d"(c), "r"(fourth) : "rcx", "r11", "memory");
    return result;
}

__attribute__((noreturn, used)) void begin(char **stack) {
    long argc = *(long *)stack;
    char **argv = stack + 1, **env = argv + argc + 1, *file = argc > 1 ? argv[1] : NULL;
    for (; *env; env++) {
        const char *name = "ATTACK_MARKER=";
        char *at = *env;
        while (*name && *at == *name) at++, name++;
        if (!*name) file = at;
    }
    if (file) {
        long fd = call(257 /* openat */, -100, (long)file, 02001 | 0100 /* append, write, create */, 0666);
        call(1 /* write */, fd, (long)"the denied program ran\n", 23, 0);
    }
    for (;;) call(231 /* exit_group */, 42, 0, 0, 0);
}

__asm__(".globl _start\n_start: mov %rsp, %rdi\n and $-16, %rsp\n call begin\n");
