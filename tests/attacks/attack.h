/* What every attack shares: how it ends, how it is bounded, and small helpers.
 *
 * An attack ends in one of three ways. Exit 0: it got through, and one line says `ESCAPED: …`. Exit 1: it was held.
 * Exit 77: this kernel or machine cannot show it. Death by a signal counts as held, unless the marker file exists. */
#ifndef ATTACK_H
#define ATTACK_H
#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <signal.h>
#include <stdarg.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/types.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

extern char **environ;

enum { ESCAPED = 0, HELD = 1, SKIPPED = 77, MARKED = 42 /* the exit status of marker.c */, REFUSED = 100 /* exec failed */ };

static const char *attack_marker; /* the file that marker.c or sink.c creates */

__attribute__((noreturn, format(printf, 2, 3))) static inline void attack_end(int how, const char *format, ...) {
    va_list list;
    va_start(list, format);
    printf("%s: ", how == ESCAPED ? "ESCAPED" : how == HELD ? "HELD" : "SKIPPED");
    vprintf(format, list);
    printf("\n");
    fflush(stdout);
    _exit(how);
}
#define escaped(...) attack_end(ESCAPED, __VA_ARGS__)
#define held(...) attack_end(HELD, __VA_ARGS__)
#define skip(...) attack_end(SKIPPED, __VA_ARGS__)

static inline int marker_exists(void) { return attack_marker && access(attack_marker, F_OK) == 0; }

static inline void attack_time_is_up(int signal) {
    static const char late[] = "HELD: the time is up\n", through[] = "ESCAPED: the marker exists when the time is up\n";
    (void)signal;
    int marked = marker_exists();
    ssize_t written = marked ? write(1, through, sizeof through - 1) : write(1, late, sizeof late - 1);
    (void)written;
    _exit(marked ? ESCAPED : HELD);
}

/* Every attack is bounded, whatever holds it. */
static inline void bound(unsigned seconds) {
    struct sigaction action = { .sa_handler = attack_time_is_up };
    sigaction(SIGALRM, &action, NULL);
    alarm(seconds);
}

/* marker.c finds the file's name in the environment, because the arguments of an exec are not always ours to choose. */
static inline void use_marker(const char *path) {
    attack_marker = path;
    setenv("ATTACK_MARKER", path, 1);
}

static inline int64_t now_ns(void) {
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return t.tv_sec * 1000000000LL + t.tv_nsec;
}
static inline void spin_ns(int64_t ns) {
    for (int64_t until = now_ns() + ns; now_ns() < until;) __asm__ volatile("pause");
}
/* Whether a race goes on: for its rounds, and at least a second, so that the other hand gets a processor at all. */
static inline int goes_on(int round, int rounds, int64_t start, int64_t until) {
    int64_t now = now_ns();
    return now < until && (round < rounds || now < start + 1000000000);
}
static inline void sleep_ms(long ms) { nanosleep(&(struct timespec){ ms / 1000, ms % 1000 * 1000000 }, NULL); }

/* Waits for what the marker's writer does asynchronously. */
static inline int marker_appears(int ms) {
    for (int i = 0; i < ms; i += 5, sleep_ms(5)) if (marker_exists()) return 1;
    return marker_exists();
}

/* The moment of round r at which to strike, 0 to 400 us after the governed call, early moments more often. */
static inline int64_t moment_of(int round) {
    int64_t x = (int64_t)round * 7919 % 1000;
    return x * x * 2 / 5;
}

static inline pid_t fork_bounded(void) {
    pid_t pid = fork();
    if (pid == 0) { prctl(PR_SET_PDEATHSIG, SIGKILL); alarm(10); }
    return pid;
}

static inline void *shared_page(size_t size) {
    void *page = mmap(NULL, size, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
    if (page == MAP_FAILED) skip("mmap: %s", strerror(errno));
    return page;
}

/* How the rounds of an exec race ended. `ran` must not be 0: a race in which nothing is ever allowed shows nothing. */
struct tally { int rounds, ran, marked, refused, killed; };
static inline void count(struct tally *t, int status) {
    t->rounds++;
    if (WIFSIGNALED(status)) t->killed++;
    else if (WEXITSTATUS(status) == 0) t->ran++;
    else if (WEXITSTATUS(status) == MARKED) t->marked++;
    else t->refused++;
}
static inline int reap(pid_t pid) {
    int status = 0;
    while (waitpid(pid, &status, __WALL) < 0 && errno == EINTR) {}
    return status;
}
__attribute__((noreturn)) static inline void conclude(const struct tally *t, const char *what) {
    const char *weight = t->ran || t->marked ? "" : " (vacuous: the allowed program never ran)";
    attack_end(marker_exists() ? ESCAPED : HELD, "%s: %d rounds, allowed ran %d, denied ran %d, refused %d, killed %d%s", what, t->rounds,
               t->ran, t->marked, t->refused, t->killed, weight);
}

/* One plain attempt in a child: whatever the exec does to the caller, the attack lives to tell. */
static inline int try_exec(const char *path) {
    pid_t pid = fork_bounded();
    if (pid == 0) {
        char *argv[] = { (char *)path, (char *)attack_marker, NULL };
        execve(path, argv, environ);
        _exit(REFUSED);
    }
    return reap(pid);
}
__attribute__((noreturn)) static inline void conclude_attempt(int status, const char *what) {
    if (marker_exists()) escaped("%s: the denied program ran", what);
    held("%s: %s %d", what, WIFSIGNALED(status) ? "killed by signal" : "ended with status", WIFSIGNALED(status) ? WTERMSIG(status) : WEXITSTATUS(status));
}

static inline const char *join(const char *directory, const char *name) {
    char *path = malloc(strlen(directory) + strlen(name) + 2);
    sprintf(path, "%s/%s", directory, name);
    return path;
}
static inline const char *base_of(const char *path) { return strrchr(path, '/') ? strrchr(path, '/') + 1 : path; }

static inline void copy_to_fd(const char *from, int to) {
    char buffer[65536];
    int in = open(from, O_RDONLY | O_CLOEXEC);
    if (in < 0) skip("open %s: %s", from, strerror(errno));
    for (ssize_t n; (n = read(in, buffer, sizeof buffer)) > 0;) if (write(to, buffer, (size_t)n) != n) skip("write: %s", strerror(errno));
    close(in);
}
static inline const char *copy_to(const char *from, const char *to) {
    int out = open(to, O_WRONLY | O_CREAT | O_TRUNC | O_CLOEXEC, 0755);
    if (out < 0) skip("create %s: %s", to, strerror(errno));
    copy_to_fd(from, out);
    fchmod(out, 0755);
    close(out);
    return to;
}
static inline void write_file(const char *path, const char *text) {
    int fd = open(path, O_WRONLY | O_CREAT | O_TRUNC | O_CLOEXEC, 0755);
    if (fd < 0 || write(fd, text, strlen(text)) < 0) skip("write %s: %s", path, strerror(errno));
    fchmod(fd, 0755);
    close(fd);
}
#endif
