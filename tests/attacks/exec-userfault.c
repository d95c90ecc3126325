/* The page with the path is registered with userfaultfd(2): each reader is held in its fault, and gets what we like.
 *
 * The first reader (the enforcer) gets the page with the allowed path. Then the page is taken away again (MADV_DONTNEED),
 * the kernel faults in its turn and gets the denied path (every other attempt the other way round). No race is left to
 * chance. In mode `stall` the fault is never answered, and an innocent process wants to run the allowed program meanwhile:
 * an enforcer that reads in its only thread is stopped for everybody (it escapes only where there is an enforcer).
 *
 *   exec-userfault MODE ALLOWED DENIED MARKER     MODE is path, argv (the same trick with the page of argv) or stall */
#include "attack.h"
#include <linux/userfaultfd.h>
#include <pthread.h>
#include <sys/ioctl.h>

static const char *mode, *allowed, *denied;
static int uffd;
static char *page;
static _Atomic int faults;
static int attempt;
static int is(const char *m) { return !strcmp(mode, m); }

static void serve(const char *path) {
    static char content[4096] __attribute__((aligned(4096)));
    memset(content, 0, sizeof content);
    if (is("argv")) { char *const words[] = { (char *)path, NULL }; memcpy(content, words, sizeof words); }
    else strcpy(content, path);
    struct uffdio_copy copy = { .dst = (uintptr_t)page, .src = (uintptr_t)content, .len = 4096 };
    ioctl(uffd, UFFDIO_COPY, &copy);
}

static void *handler(void *unused) {
    struct uffd_msg message;
    (void)unused;
    while (read(uffd, &message, sizeof message) == sizeof message) {
        if (message.event != UFFD_EVENT_PAGEFAULT) continue;
        if (is("stall")) { faults = 1; pause(); }
        serve((faults++ + attempt) % 2 ? denied : allowed);
        if (faults == 1) { spin_ns(20000); madvise(page, 4096, MADV_DONTNEED); }
    }
    return NULL;
}

static void caller(void) {
    pthread_t thread;
    struct uffdio_api api = { .api = UFFD_API };
    uffd = (int)syscall(SYS_userfaultfd, O_CLOEXEC);
    if (uffd < 0) _exit(errno == EPERM || errno == EACCES ? MARKED : SKIPPED);
    if (ioctl(uffd, UFFDIO_API, &api)) _exit(SKIPPED);
    page = mmap(NULL, 4096, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    struct uffdio_register range = { .range = { (uintptr_t)page, 4096 }, .mode = UFFDIO_REGISTER_MODE_MISSING };
    if (ioctl(uffd, UFFDIO_REGISTER, &range)) _exit(SKIPPED);
    pthread_create(&thread, NULL, handler, NULL);
    char *argv[] = { (char *)allowed, (char *)attack_marker, NULL };
    if (is("argv")) execve(denied, (char **)(void *)page, environ);
    else execve(page, argv, environ);
    _exit(REFUSED);
}

int main(int argc, char **argv) {
    if (argc < 5) skip("usage: MODE ALLOWED DENIED MARKER");
    mode = argv[1], allowed = argv[2], denied = argv[3];
    use_marker(argv[4]);
    bound(5);
    int status = 0, no = 0;
    for (; attempt < (is("stall") ? 1 : 50) && !marker_exists(); attempt++) {
        pid_t pid = fork_bounded();
        if (pid == 0) caller();
        if (is("stall")) {
            sleep_ms(200);
            pid_t innocent = fork_bounded();
            if (innocent == 0) { execl(allowed, allowed, (char *)NULL); _exit(REFUSED); }
            for (int ms = 0; ms < 2000; ms += 10, sleep_ms(10)) if (waitpid(innocent, &status, WNOHANG) == innocent) { no = 1; break; }
            kill(pid, SIGKILL);
            kill(innocent, SIGKILL);
            reap(pid);
            if (!no) escaped("stall: a page held in its fault stopped the enforcer for another process");
            held("stall: another process went on (status %d)", status);
        }
        status = reap(pid);
        if (!marker_exists() && WIFEXITED(status) && WEXITSTATUS(status) == MARKED) held("userfaultfd(2) is refused");
        if (WIFEXITED(status) && WEXITSTATUS(status) == SKIPPED) skip("userfaultfd is not available");
    }
    conclude_attempt(status, mode);
}
