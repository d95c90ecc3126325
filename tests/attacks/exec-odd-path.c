/* The path lies where an enforcer cannot read it, or reads only part of it.
 *
 * Who reads a fixed number of bytes, or to the end of a page, or gives up and lets the kernel "find out by itself", checks
 * another string than the kernel uses. memfd_secret(2) is the sharpest: neither process_vm_readv nor /proc/PID/mem can read
 * such a page, the kernel on the caller's behalf can.
 *
 *   exec-odd-path MODE ALLOWED DENIED MARKER
 * page-end   the denied path ends with the last readable byte       secret   it lies in memfd_secret memory
 * crossing   ALLOWED fills a page to its end and goes on in the next one: ALLOWEDx (root: writes beside ALLOWED)
 * long       4,095 bytes of slashes and the denied path             many     60,000 arguments
 * readless   in memory that only the kernel's own copy can read: PROT_EXEC without PROT_READ
 * malformed  pointers that lead nowhere, strings and arrays without an end, and then the denied program */
#include "attack.h"

static const char *allowed, *denied;
static char *argv_plain[3];

/* Two pages, the second one unreadable: the string ends exactly at the edge. */
static char *at_edge(const char *bytes, size_t n, int second) {
    char *pages = mmap(NULL, 8192, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    mprotect(pages + 4096, 4096, second);
    return memcpy(pages + 4096 - n, bytes, n);
}

static void page_end(void) { execve(at_edge(denied, strlen(denied) + 1, PROT_NONE), argv_plain, environ); }

static void secret(void) {
    int fd = (int)syscall(447 /* memfd_secret */, 0);
    if (fd < 0 || ftruncate(fd, 4096)) _exit(SKIPPED);
    char *page = mmap(NULL, 4096, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
    if (page == MAP_FAILED) _exit(SKIPPED);
    execve(strcpy(page, denied), argv_plain, environ);
}

static void crossing(void) {
    char longer[PATH_MAX];
    snprintf(longer, sizeof longer, "%sx", allowed);
    int out = open(longer, O_WRONLY | O_CREAT | O_TRUNC | O_CLOEXEC, 0755);
    if (out < 0) _exit(SKIPPED);
    copy_to_fd(denied, out);
    close(out);
    char *path = at_edge(allowed, strlen(allowed), PROT_READ | PROT_WRITE);
    strcpy(path + strlen(allowed), "x");
    pid_t pid = fork();
    if (pid == 0) { execve(path, argv_plain, environ); _exit(REFUSED); }
    reap(pid);
    unlink(longer);
}

static void long_path(void) {
    static char path[PATH_MAX];
    size_t n = strlen(denied);
    memset(path, '/', sizeof path);
    memcpy(path + PATH_MAX - 1 - n, denied, n + 1);
    execve(path, argv_plain, environ);
}

static void many(void) {
    static char *argv[60002];
    for (int i = 0; i < 60000; i++) argv[i] = "x";
    execve(denied, argv, environ);
}

static void readless(void) {
    char *page = mmap(NULL, 4096, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    strcpy(page, denied);
    mprotect(page, 4096, PROT_EXEC);
    execve(page, argv_plain, environ);
}

static void malformed(void) {
    char *none = NULL, *wild[] = { (char *)8, NULL }, **open_array = (char **)(void *)at_edge((char *)&none, 0, PROT_NONE);
    static char longer[2 * PATH_MAX];
    memset(longer, '/', sizeof longer - 1);
    open_array[-1] = argv_plain[0]; /* an array that runs into the unreadable page */
    const char *paths[] = { NULL, (char *)1, (char *)-1L, (char *)(1L << 63), (char *)0x7ffffffff000, at_edge("/bin/x", 6, PROT_NONE), longer, "" };
    for (size_t i = 0; i < sizeof paths / sizeof *paths; i++) syscall(SYS_execve, paths[i], argv_plain, environ);
    for (size_t i = 0; i < sizeof paths / sizeof *paths; i++) syscall(SYS_execveat, AT_FDCWD, paths[i], argv_plain, environ, -1);
    syscall(SYS_execve, allowed, wild, environ);
    syscall(SYS_execve, allowed, (char *)1, environ);
    syscall(SYS_execve, allowed, open_array - 1, environ);
    syscall(SYS_execve, allowed, argv_plain, wild);
    syscall(SYS_execveat, 12345, "x", argv_plain, environ, 0);
    syscall(SYS_execveat, -1, "", argv_plain, environ, AT_EMPTY_PATH);
    execve(denied, argv_plain, environ);
}

int main(int argc, char **argv) {
    static const struct { const char *name; void (*run)(void); } modes[] = {
        { "page-end", page_end }, { "secret", secret }, { "crossing", crossing }, { "long", long_path }, { "many", many },
        { "readless", readless }, { "malformed", malformed } };
    if (argc < 5) skip("usage: MODE ALLOWED DENIED MARKER");
    allowed = argv[2], denied = argv[3], argv_plain[0] = argv[3], argv_plain[1] = argv[4];
    use_marker(argv[4]);
    bound(5);
    for (size_t i = 0; i < sizeof modes / sizeof *modes; i++) {
        if (strcmp(modes[i].name, argv[1])) continue;
        pid_t pid = fork_bounded();
        if (pid == 0) { modes[i].run(); _exit(REFUSED); }
        int status = reap(pid);
        if (WIFEXITED(status) && WEXITSTATUS(status) == SKIPPED) skip("%s: could not be prepared here", argv[1]);
        conclude_attempt(status, argv[1]);
    }
    skip("no mode %s", argv[1]);
}
