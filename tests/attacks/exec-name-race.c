/* The path's bytes stay as they are, and what they name is exchanged between the check and the use.
 *
 * An enforcer that resolves a name (readlink, stat, open) and then lets the kernel resolve it again looks at one file, and
 * the kernel executes another: the classic time-of-check race of access(2), and of execveat(2) for descriptors.
 *
 *   exec-name-race MODE ALLOWED DENIED MARKER DIR ROUNDS [SECONDS]
 * symlink       DIR/link points to the allowed program or to the denied one
 * rename        DIR/way/NAME, and the directory DIR/way is exchanged (RENAME_EXCHANGE)
 * chdir         ./NAME, and another thread changes the shared working directory
 * dirfd         execveat(fd, NAME), and another thread puts another directory at fd (dup2)
 * fd            execveat(fd, "", AT_EMPTY_PATH), and another thread puts another file at fd
 * procfd        execve("/proc/self/fd/N"), the same
 * script        DIR/listed is a listed script, and its #! line changes by RENAME_EXCHANGE with another
 * script-write  the same, and it changes by write(2)
 * NAME is the allowed program's; in the wrong place it is a copy of the denied one. */
#include "attack.h"
#include <pthread.h>

static const char *mode, *name, *dir, *link_path, *spare, *listed;
static const char *good_text, *evil_text;
static int good = -1, evil = -1, fd = -1; /* descriptors: of a directory, or of a file */
static _Atomic int round_now, started, done;
static int is(const char *m) { return !strcmp(mode, m); }
static const char *allowed, *denied;

static void put(int wrong) {
    if (is("symlink")) {
        unlink(spare);
        if (!symlink(wrong ? denied : allowed, spare)) rename(spare, link_path);
    } else if (is("rename") || is("script")) {
        static int wrong_now; /* each call exchanges, so that two calls come back to where they began */
        const char *a = is("script") ? listed : join(dir, "way");
        if (wrong != wrong_now && !renameat2(AT_FDCWD, a, AT_FDCWD, spare, RENAME_EXCHANGE)) wrong_now = wrong;
        if (a != listed) free((char *)a);
    } else if (is("chdir")) { if (fchdir(wrong ? evil : good)) _exit(REFUSED); }
    else if (is("script-write")) {
        int out = open(listed, O_WRONLY | O_CLOEXEC);
        if (out >= 0 && pwrite(out, wrong ? evil_text : good_text, strlen(evil_text), 0) < 0) _exit(REFUSED);
        if (out >= 0) close(out);
    } else dup3(wrong ? evil : good, fd, 0);
}

static void *flipper(void *unused) {
    (void)unused;
    int round = round_now;
    unsigned n = (unsigned)round;
    if (round % 2 == 0) { started = round; spin_ns(moment_of(round)); put(1); return NULL; }
    for (; round_now == round && !done; n = n * 1103515245 + 12345) {
        put(1);
        started = round;
        spin_ns(n >> 8 & 8191);
        put(0);
        spin_ns(n >> 12 & 8191);
    }
    return NULL;
}

static void attempt(void) {
    char way[PATH_MAX], *argv[] = { way, (char *)attack_marker, NULL };
    while (started != round_now) __asm__ volatile("pause");
    if (is("symlink")) snprintf(way, sizeof way, "%s", link_path);
    else if (is("rename")) snprintf(way, sizeof way, "%s/way/%s", dir, name);
    else if (is("chdir")) snprintf(way, sizeof way, "./%s", name);
    else if (is("dirfd")) snprintf(way, sizeof way, "%s", name);
    else if (is("procfd")) snprintf(way, sizeof way, "/proc/self/fd/%d", fd);
    else if (is("fd")) way[0] = 0;
    else snprintf(way, sizeof way, "%s", listed);
    if (is("dirfd") || is("fd")) syscall(SYS_execveat, fd, way, argv, environ, is("fd") ? AT_EMPTY_PATH : 0);
    else execve(way, argv, environ);
    syscall(SYS_exit_group, REFUSED);
}

int main(int argc, char **argv) {
    if (argc < 7) skip("usage: MODE ALLOWED DENIED MARKER DIR ROUNDS [SECONDS]");
    mode = argv[1], allowed = argv[2], denied = argv[3], dir = argv[5];
    use_marker(argv[4]);
    int rounds = atoi(argv[6]), seconds = argc > 7 ? atoi(argv[7]) : 3;
    bound((unsigned)seconds + 2);
    name = base_of(allowed);
    char good_dir[PATH_MAX], text[2 * PATH_MAX];
    snprintf(good_dir, sizeof good_dir, "%.*s", (int)(name - allowed - 1), allowed);
    const char *evil_dir = join(dir, "evil");
    mkdir(evil_dir, 0755);
    copy_to(denied, join(evil_dir, name));
    link_path = join(dir, "link"), listed = join(dir, "listed");
    spare = is("rename") ? evil_dir : is("script") ? join(dir, "unlisted") : join(dir, "spare");
    if (is("rename")) {
        const char *way = join(dir, "way");
        mkdir(way, 0755);
        if (symlink(allowed, join(way, name))) skip("symlink: %s", strerror(errno));
    }
    int files = is("fd") || is("procfd");
    good = open(files ? allowed : good_dir, O_PATH), evil = open(files ? denied : evil_dir, O_PATH);
    if (good < 0 || evil < 0) skip("open: %s", strerror(errno));
    fd = dup(good);
    size_t width = strlen(allowed) > strlen(denied) ? strlen(allowed) : strlen(denied);
    snprintf(text, sizeof text, "#!%-*s\n", (int)width, allowed), good_text = strdup(text);
    snprintf(text, sizeof text, "#!%-*s\n", (int)width, denied), evil_text = strdup(text);
    if (is("script") || is("script-write")) write_file(listed, good_text);
    if (is("script")) write_file(spare, evil_text);

    struct tally tally = { 0 };
    int in_caller = is("chdir") || is("dirfd") || files; /* what is exchanged belongs to the caller's process */
    int64_t until = now_ns() + seconds * 1000000000LL;
    for (int round = 1; round <= rounds && now_ns() < until && !marker_exists(); round++) {
        pthread_t thread;
        put(0);
        round_now = round;
        pid_t pid;
        if (!in_caller) {
            _Atomic int *flag = &started;
            pthread_create(&thread, NULL, flipper, NULL);
            while (*flag != round) __asm__ volatile("pause");
        }
        if (!(pid = fork_bounded())) {
            if (in_caller) pthread_create(&thread, NULL, flipper, NULL);
            attempt();
        }
        count(&tally, reap(pid));
        round_now = -1;
        if (!in_caller) pthread_join(thread, NULL);
    }
    conclude(&tally, mode);
}
