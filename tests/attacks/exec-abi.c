/* The denied program through another entry of the kernel.
 *
 * A filter that compares numbers without seccomp_data.arch mistakes other tables for its own (seccomp(2), "must check arch"):
 * i386 numbers by `int $0x80` and SYSENTER from 64-bit code, x32 numbers (bit 30). The kernel takes 32 bits of rax, whatever
 * the upper half says.
 *
 *   exec-abi MODE DENIED MARKER
 * i386, i386-execveat   int $0x80, numbers 11 and 358           sysenter   the same table by SYSENTER (Intel)
 * x32, x32-execveat     0x40000000 | 520, | 545                 x32-plain  0x40000000 | 59
 * high, negative        rax = 1 << 32 | 59, -1 << 32 | 59       unknown    3,000 numbers that do not exist, and then execve */
#include "attack.h"

static char *low; /* memory below 4 GB: strings, and 32-bit arrays of pointers */

static int64_t enter_32(long number, long b, long c, long d, long s) {
    int64_t result;
    register long r8 __asm__("r8") = 0, r9 __asm__("r9") = 0, r10 __asm__("r10") = 0, r11 __asm__("r11") = 0;
    __asm__ volatile("push %%rdi\n xor %%edi, %%edi\n int $0x80\n pop %%rdi" : "=a"(result), "+r"(r8), "+r"(r9), "+r"(r10), "+r"(r11) : "a"(number), "b"(b), "c"(c), "d"(d), "S"(s) : "memory");
    return result;
}
static long enter_64(long number, long a, long b, long c, long d, long e) {
    long result;
    register long r10 __asm__("r10") = d, r8 __asm__("r8") = e;
    __asm__ volatile("syscall" : "=a"(result) : "a"(number), "D"(a), "S"(b), "d"(c), "r"(r10), "r"(r8) : "rcx", "r11", "memory");
    return result;
}
static void sysenter(long b, long c, long d) { /* it does not come back to 64-bit code; an exec need not */
    __asm__ volatile("mov %%rbx, %%rbx\n mov %3, %%rsp\n mov %%rsp, %%rbp\n xor %%esi, %%esi\n xor %%edi, %%edi\n sysenter"
                     : : "a"(11L), "b"(b), "c"(c), "r"(low + 3072), "d"(d) : "memory");
}

int main(int argc, char **argv) {
    if (argc < 4) skip("usage: MODE DENIED MARKER");
    const char *mode = argv[1], *denied = argv[2];
    use_marker(argv[3]);
    bound(5);
    low = mmap(NULL, 8192, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_32BIT, -1, 0);
    if (low == MAP_FAILED) skip("mmap: %s", strerror(errno));
    char *path = strcpy(low, denied), *marker = strcpy(low + 1024, argv[3]), *setting = low + 4096;
    sprintf(setting, "ATTACK_MARKER=%s", argv[3]);
    uint32_t *argv_32 = (uint32_t *)(void *)(low + 2048), *env_32 = argv_32 + 4;
    argv_32[0] = (uint32_t)(uintptr_t)path, argv_32[1] = (uint32_t)(uintptr_t)marker, env_32[0] = (uint32_t)(uintptr_t)setting;
    char *argv_64[] = { path, marker, NULL };
    long p = (long)path, a = (long)argv_64, e = (long)environ, a32 = (long)argv_32, e32 = (long)env_32;
    int64_t *result = shared_page(4096);

    pid_t pid = fork_bounded();
    if (pid == 0) {
        if (!strcmp(mode, "i386")) *result = enter_32(11, p, a32, e32, 0);
        else if (!strcmp(mode, "i386-execveat")) *result = enter_32(358, -100, p, a32, e32);
        else if (!strcmp(mode, "sysenter")) sysenter(p, a32, e32);
        else if (!strcmp(mode, "x32")) *result = enter_64(0x40000000 | 520, p, a32, e32, 0, 0);
        else if (!strcmp(mode, "x32-execveat")) *result = enter_64(0x40000000 | 545, -100, p, a32, e32, 0);
        else if (!strcmp(mode, "x32-plain")) *result = enter_64(0x40000000 | 59, p, a, e, 0, 0);
        else if (!strcmp(mode, "high")) *result = enter_64(1L << 32 | 59, p, a, e, 0, 0);
        else if (!strcmp(mode, "negative")) *result = enter_64((long)0xffffffff0000003bUL, p, a, e, 0, 0);
        else if (!strcmp(mode, "unknown")) {
            for (long n = 0; n < 1000; n++) {
                enter_64(1000 + n, p, a, e, 0, 0);
                enter_64(0x3ffffc00 + n, p, a, e, 0, 0);
                enter_64(-1 - n, p, a, e, 0, 0);
            }
            *result = enter_64(59, p, a, e, 0, 0);
        }
        _exit(REFUSED);
    }
    int status = reap(pid);
    if (!marker_exists() && *result == -ENOSYS && !strncmp(mode, "x32", 3)) skip("%s: this kernel has no x32 calls, or they are refused as such", mode);
    if (WIFSIGNALED(status) && WTERMSIG(status) == SIGILL) skip("%s: this processor has no such entry from 64-bit code", mode);
    if (!marker_exists()) printf("the call returned %lld\n", (long long)*result);
    conclude_attempt(status, mode);
}
