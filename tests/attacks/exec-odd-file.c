/* Denied code under another kind of name. No race: each is one attempt.
 *
 * An enforcer that compares strings is passed by every other way to name a file: execveat(2), memfd_create(2), /proc/PID/fd,
 * links; one that compares only the program is passed by interpreters: ld.so(8) runs any program as its argument, execve(2)
 * runs what the #! line names.
 *
 *   exec-odd-file MODE ALLOWED DENIED MARKER DIR */
#include "attack.h"
#include <elf.h>

#ifndef AT_EXECVE_CHECK
#define AT_EXECVE_CHECK 0x10000
#endif
static const char *allowed, *denied, *dir;
static char *arguments[4];
static void at(int fd, const char *path, int flags) { syscall(SYS_execveat, fd, path, arguments, environ, flags); }
static void run(const char *path) { execve(path, arguments, environ); }
static void run_fd(const char *format, int fd) {
    char path[64];
    snprintf(path, sizeof path, format, fd);
    run(path);
}
static int copy_in_memory(const char *name) {
    int fd = memfd_create(name, 0);
    copy_to_fd(denied, fd);
    return fd;
}
/* The allowed program, with another ELF interpreter. */
static void with_interpreter(const char *to, const char *interpreter) {
    copy_to(allowed, to);
    int fd = open(to, O_RDWR | O_CLOEXEC);
    Elf64_Ehdr head;
    Elf64_Phdr part;
    if (pread(fd, &head, sizeof head, 0) != sizeof head) _exit(SKIPPED);
    for (int i = 0; i < head.e_phnum; i++) {
        off_t place = (off_t)(head.e_phoff + (size_t)i * sizeof part), end = lseek(fd, 0, SEEK_END);
        if (pread(fd, &part, sizeof part, place) != sizeof part || part.p_type != PT_INTERP) continue;
        part.p_offset = (Elf64_Off)end, part.p_filesz = part.p_memsz = strlen(interpreter) + 1;
        if (pwrite(fd, interpreter, part.p_filesz, end) < 0 || pwrite(fd, &part, sizeof part, place) < 0) _exit(SKIPPED);
        close(fd);
        return;
    }
    _exit(SKIPPED); /* linked statically */
}
static void script(const char *path, const char *interpreter) {
    char line[PATH_MAX];
    snprintf(line, sizeof line, "#!%s\n", interpreter);
    write_file(path, line);
}

static void plain(void) { run(denied); }
static void memfd_exec(void) { at(copy_in_memory("x"), "", AT_EMPTY_PATH); }
static void memfd_proc(void) { run_fd("/proc/self/fd/%d", copy_in_memory("x")); }
static void memfd_dev(void) { run_fd("/dev/fd/%d", copy_in_memory("x")); }
static void memfd_named(void) { at(copy_in_memory(allowed + 1), "", AT_EMPTY_PATH); } /* /proc/PID/exe: "/memfd:ALLOWED (deleted)" */
static void deleted(void) { /* /proc/PID/exe: "ALLOWED (deleted)" of a directory that looks alike */
    const char *copy = copy_to(denied, join(dir, base_of(allowed)));
    int fd = open(copy, O_RDONLY | O_CLOEXEC);
    unlink(copy);
    at(fd, "", AT_EMPTY_PATH);
}
static void path_fd(void) { at(open(denied, O_PATH), "", AT_EMPTY_PATH); }
static void path_proc(void) { run_fd("/proc/thread-self/fd/%d", open(denied, O_PATH)); }
static void dirfd_relative(void) {
    char parent[PATH_MAX];
    snprintf(parent, sizeof parent, "%.*s", (int)(base_of(denied) - denied), denied);
    at(open(parent, O_PATH), base_of(denied), 0);
}
static void dirfd_ignored(void) { at(open(allowed, O_PATH), denied, 0); }    /* an absolute path makes the descriptor void */
static void empty_flag_full_path(void) { at(open(allowed, O_PATH), denied, AT_EMPTY_PATH); }
static void proc_root(void) { run(join("/proc/self/root", denied)); }
static void proc_cwd(void) { if (!chdir("/")) run(join("/proc/self/cwd", denied)); }
static void parent_of_allowed(void) {
    char path[2 * PATH_MAX];
    snprintf(path, sizeof path, "%.*s./../../../../../../../..%s", (int)(base_of(allowed) - allowed), allowed, denied);
    run(path);
}
static void loader(void) {
    arguments[0] = "ld.so", arguments[1] = (char *)denied;
    run("/lib64/ld-linux-x86-64.so.2");
}
static void loader_argv0(void) {
    char *argv[] = { (char *)allowed, "--argv0", (char *)allowed, (char *)denied, NULL };
    execve("/lib64/ld-linux-x86-64.so.2", argv, environ);
}
static void script_unlisted(void) { script(join(dir, "script"), denied); run(join(dir, "script")); }
static void script_listed(void) { script(join(dir, "listed"), denied); run(join(dir, "listed")); }
static void script_nested(void) {
    script(join(dir, "inner"), denied);
    script(join(dir, "listed"), join(dir, "inner"));
    run(join(dir, "listed"));
}
static void script_loader(void) { /* #! passes one argument: the loader runs the denied program */
    char line[PATH_MAX];
    snprintf(line, sizeof line, "#!/lib64/ld-linux-x86-64.so.2 %s\n", denied);
    write_file(join(dir, "listed"), line);
    run(join(dir, "listed"));
}
static void script_memfd(void) {
    char line[PATH_MAX];
    int fd = memfd_create("script", 0);
    if (write(fd, line, (size_t)snprintf(line, sizeof line, "#!%s\n", denied)) > 0) run_fd("/proc/self/fd/%d", fd);
}
static void script_relative(void) { /* the #! line's path is relative to the caller's directory */
    copy_to(denied, join(dir, "here"));
    script(join(dir, "listed"), "here");
    if (!chdir(dir)) run(join(dir, "listed"));
}
static void interpreter_unlisted(void) { with_interpreter(join(dir, "crafted"), denied); run(join(dir, "crafted")); }
static void interpreter_listed(void) { with_interpreter(join(dir, "listed"), denied); run(join(dir, "listed")); }
static void symbolic(void) { if (!symlink(denied, join(dir, base_of(allowed)))) run(join(dir, base_of(allowed))); }
static void hard(void) {
    if (linkat(AT_FDCWD, denied, AT_FDCWD, join(dir, base_of(allowed)), 0)) _exit(SKIPPED);
    run(join(dir, base_of(allowed)));
}
static void copied(void) { run(copy_to(denied, join(dir, base_of(allowed)))); }
static void no_arguments(void) { syscall(SYS_execve, denied, NULL, environ); }
static void lying_argv(void) { arguments[0] = (char *)allowed; run(denied); }
static void check_flag(void) { at(AT_FDCWD, allowed, AT_EXECVE_CHECK); run(denied); } /* a check that executes nothing */

static const struct { const char *name; void (*run)(void); } modes[] = {
    { "plain", plain }, { "memfd", memfd_exec }, { "memfd-proc", memfd_proc }, { "memfd-dev", memfd_dev }, { "memfd-named", memfd_named },
    { "deleted", deleted }, { "path-fd", path_fd }, { "path-proc", path_proc }, { "dirfd", dirfd_relative }, { "dirfd-ignored", dirfd_ignored },
    { "empty-flag", empty_flag_full_path }, { "proc-root", proc_root }, { "proc-cwd", proc_cwd },
    { "allowed-dots", parent_of_allowed }, { "loader", loader }, { "loader-argv0", loader_argv0 },
    { "script", script_unlisted }, { "script-listed", script_listed }, { "script-nested", script_nested }, { "script-loader", script_loader },
    { "script-memfd", script_memfd }, { "script-relative", script_relative }, { "interpreter", interpreter_unlisted },
    { "interpreter-listed", interpreter_listed }, { "symlink", symbolic }, { "hardlink", hard }, { "copy", copied },
    { "no-arguments", no_arguments }, { "lying-argv", lying_argv }, { "check-flag", check_flag } };

int main(int argc, char **argv) {
    if (argc < 6) skip("usage: MODE ALLOWED DENIED MARKER DIR");
    allowed = argv[2], denied = argv[3], dir = argv[5];
    use_marker(argv[4]);
    bound(5);
    for (size_t i = 0; i < sizeof modes / sizeof *modes; i++) {
        if (strcmp(modes[i].name, argv[1])) continue;
        pid_t pid = fork_bounded();
        if (pid == 0) {
            arguments[0] = (char *)denied, arguments[1] = (char *)attack_marker;
            modes[i].run();
            _exit(REFUSED);
        }
        int status = reap(pid);
        if (WIFEXITED(status) && WEXITSTATUS(status) == SKIPPED) skip("%s: could not be prepared here", argv[1]);
        conclude_attempt(status, argv[1]);
    }
    skip("no mode %s", argv[1]);
}
