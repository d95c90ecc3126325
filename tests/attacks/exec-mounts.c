/* The listed path stays, and another file appears under it: mounts, roots and namespaces.
 *
 * An enforcer that compares the path as a string, or resolves it in its own root and mount namespace, sees the listed
 * program; the kernel resolves it in the caller's (mount(2), chroot(2), pivot_root(2), mount_namespaces(7)). An unprivileged
 * user gets all of this in a user namespace (user_namespaces(7)).
 *
 *   exec-mounts MODE ALLOWED DENIED MARKER DIR [expendable]
 * As root: bind, bind-dir, move, tree (open_tree, move_mount), tmpfs, overlay: in a mount namespace of its own; chroot, pivot,
 * chroot-out (a denied path relative to a directory outside), setns (a namespace that a child has prepared), pidns (with a
 * /proc of its own), loader (the denied program over ld.so, the allowed one is run), loader-chroot.
 * As anybody: userns (and bind), userns-chroot, binfmt (binfmt_misc of the user namespace names the denied program as
 * interpreter of the allowed one). With `expendable` on the command line the mount namespace that all this runs in may be
 * spoiled: here (bind without a new namespace), procless (nothing at /proc), proc-fake (a /proc that lies). */
#include "attack.h"
#include <sched.h>
#include <sys/mount.h>

static const char *allowed, *denied, *dir, *root, *evil, *parent, *loader = "/lib64/ld-linux-x86-64.so.2";

static void need(int failed, const char *what) {
    if (failed) { dprintf(2, "%s: %s\n", what, strerror(errno)); _exit(errno == ENOENT || errno == ENODEV ? SKIPPED : REFUSED); }
}
static void space(int flags) {
    need(unshare(CLONE_NEWNS | flags), "unshare");
    need(mount(NULL, "/", NULL, MS_REC | MS_PRIVATE, NULL), "private");
}
static void bind_over(const char *what, const char *where) { need(mount(what, where, NULL, MS_BIND | MS_REC, NULL), "bind"); }
static void run(const char *path) {
    char *argv[] = { (char *)path, (char *)attack_marker, NULL };
    execve(path, argv, environ);
    _exit(REFUSED);
}
static const char *in_root(const char *path) { /* the path below the new root, with its directories */
    char *whole = (char *)join(root, path);
    for (char *slash = whole + 1; (slash = strchr(slash, '/')); *slash++ = '/') { *slash = 0; mkdir(whole, 0755); }
    return whole;
}
static void new_root(void) { copy_to(denied, in_root(allowed)); use_marker("/marker"); }

static void bind_file(void) { space(0); bind_over(denied, allowed); run(allowed); }
static void bind_dir(void) { space(0); bind_over(evil, parent); run(allowed); }
static void move(void) {
    space(0);
    mkdir(root, 0755);
    bind_over(evil, root);
    need(mount(root, parent, NULL, MS_MOVE, NULL), "move");
    run(allowed);
}
static void tree(void) {
    space(0);
    int fd = (int)syscall(428 /* open_tree */, AT_FDCWD, denied, 1 /* CLONE */);
    need(fd < 0, "open_tree");
    need((int)syscall(429 /* move_mount */, fd, "", AT_FDCWD, allowed, 4 /* F_EMPTY_PATH */), "move_mount");
    run(allowed);
}
static void tmpfs(void) {
    int fd = open(denied, O_RDONLY);
    char source[64];
    space(0);
    need(mount("none", parent, "tmpfs", 0, NULL), "tmpfs");
    snprintf(source, sizeof source, "/proc/self/fd/%d", fd);
    copy_to(source, allowed);
    run(allowed);
}
static void overlay(void) {
    char options[2 * PATH_MAX];
    space(0);
    snprintf(options, sizeof options, "lowerdir=%s:%s", evil, parent);
    need(mount("none", parent, "overlay", 0, options), "overlay");
    run(allowed);
}
static void chroot_in(void) { new_root(); need(chroot(root), "chroot"); run(allowed); }
static void chroot_out(void) {
    char path[PATH_MAX];
    in_root("/x");
    need(chdir("/"), "chdir");
    need(chroot(root), "chroot"); /* the working directory is still outside */
    snprintf(path, sizeof path, ".%s", attack_marker);
    use_marker(strdup(path));
    snprintf(path, sizeof path, ".%s", denied);
    run(path);
}
static void pivot(void) {
    space(0);
    new_root();
    bind_over(root, root);
    need(chdir(root), "chdir");
    need((int)syscall(SYS_pivot_root, ".", "."), "pivot_root");
    need(umount2(".", MNT_DETACH), "umount");
    run(allowed);
}
static void enter(void) {
    int ready[2];
    char c, path[64];
    need(pipe(ready), "pipe");
    pid_t pid = fork_bounded();
    if (pid == 0) { space(0); bind_over(denied, allowed); need(write(ready[1], "x", 1) != 1, "write"); pause(); }
    close(ready[1]);
    if (read(ready[0], &c, 1) != 1) _exit(REFUSED);
    snprintf(path, sizeof path, "/proc/%d/ns/mnt", pid);
    need(setns(open(path, O_RDONLY | O_CLOEXEC), CLONE_NEWNS), "setns");
    run(allowed);
}
static void pid_space(void) {
    space(CLONE_NEWPID);
    pid_t pid = fork_bounded();
    if (pid == 0) { need(mount("none", "/proc", "proc", 0, NULL), "proc"); bind_over(denied, allowed); run(allowed); }
    reap(pid);
    _exit(REFUSED);
}
static void over_loader(void) { space(0); bind_over(denied, realpath(loader, NULL)); run(allowed); }
static void loader_chroot(void) {
    space(0);
    close(open(in_root(allowed), O_CREAT | O_WRONLY, 0755));
    bind_over(allowed, in_root(allowed));
    copy_to(denied, in_root(loader));
    use_marker("/marker");
    need(chroot(root), "chroot");
    run(allowed);
}
static void user_bind(void) { space(CLONE_NEWUSER); bind_over(denied, allowed); run(allowed); }
static void user_chroot(void) { need(unshare(CLONE_NEWUSER), "unshare"); chroot_in(); }
static void map(const char *file, const char *text) {
    int fd = open(file, O_WRONLY | O_CLOEXEC);
    need(fd < 0 || write(fd, text, strlen(text)) < 0, file);
    close(fd);
}
static void binfmt(void) {
    unsigned char entry[8];
    char line[PATH_MAX], *to = line;
    int fd = open(allowed, O_RDONLY | O_CLOEXEC);
    unsigned user = geteuid(), group = getegid();
    need(pread(fd, entry, 8, 24) != 8, "read"); /* e_entry tells the allowed program from all others */
    space(CLONE_NEWUSER);
    map("/proc/self/setgroups", "deny");
    snprintf(line, sizeof line, "0 %u 1", user);
    map("/proc/self/uid_map", line);
    snprintf(line, sizeof line, "0 %u 1", group);
    map("/proc/self/gid_map", line);
    mkdir(root, 0755);
    need(mount("none", root, "binfmt_misc", 0, NULL), "binfmt_misc");
    to += sprintf(to, ":attack:M:24:");
    for (int i = 0; i < 8; i++) to += sprintf(to, "\\x%02x", entry[i]);
    sprintf(to, "::%s:", denied);
    fd = open(join(root, "register"), O_WRONLY | O_CLOEXEC);
    need(fd < 0 || write(fd, line, strlen(line)) < 0, "register");
    run(allowed);
}
static void here(void) { bind_over(denied, allowed); run(allowed); }
static void procless(void) { need(mount("none", "/proc", "tmpfs", 0, NULL), "tmpfs"); run(denied); }
static void proc_fake(void) { /* our own entry: exe leads to the allowed program, memory holds its path wherever it is looked for */
    char me[64];
    need(mount("none", "/proc", "tmpfs", 0, NULL), "tmpfs");
    snprintf(me, sizeof me, "/proc/%d", getpid());
    mkdir(me, 0755);
    need(symlink(allowed, join(me, "exe")) || symlink("/", join(me, "root")) || symlink("/", join(me, "cwd")) || symlink(me, "/proc/self"), "symlink");
    int fd = open(join(me, "mem"), O_RDWR | O_CREAT | O_CLOEXEC, 0666);
    need(fd < 0 || pwrite(fd, allowed, strlen(allowed) + 1, (off_t)(uintptr_t)denied) < 0, "mem");
    mkdir(join(me, "task"), 0755);
    need(symlink(me, join(me, join("task", base_of(me)))), "symlink");
    run(denied);
}

int main(int argc, char **argv) {
    static const struct { const char *name; void (*run)(void); int spoils; } modes[] = {
        { "bind", bind_file, 0 }, { "bind-dir", bind_dir, 0 }, { "move", move, 0 }, { "tree", tree, 0 }, { "tmpfs", tmpfs, 0 }, { "overlay", overlay, 0 },
        { "chroot", chroot_in, 0 }, { "chroot-out", chroot_out, 0 }, { "pivot", pivot, 0 }, { "setns", enter, 0 }, { "pidns", pid_space, 0 },
        { "loader", over_loader, 0 }, { "loader-chroot", loader_chroot, 0 }, { "userns", user_bind, 0 }, { "userns-chroot", user_chroot, 0 },
        { "binfmt", binfmt, 0 }, { "here", here, 1 }, { "procless", procless, 1 }, { "proc-fake", proc_fake, 1 } };
    if (argc < 6) skip("usage: MODE ALLOWED DENIED MARKER DIR [expendable]");
    allowed = argv[2], denied = argv[3], dir = argv[5];
    use_marker(argv[4]);
    bound(5);
    root = join(dir, "root"), evil = join(dir, "evil");
    char above[PATH_MAX];
    snprintf(above, sizeof above, "%.*s", (int)(base_of(allowed) - 1 - allowed), allowed);
    parent = above;
    mkdir(evil, 0755);
    mkdir(root, 0755);
    copy_to(denied, join(evil, base_of(allowed)));
    for (size_t i = 0; i < sizeof modes / sizeof *modes; i++) {
        if (strcmp(modes[i].name, argv[1])) continue;
        if (modes[i].spoils && argc < 7) skip("%s spoils the mount namespace: give it one of its own, and say expendable", argv[1]);
        pid_t pid = fork_bounded();
        if (pid == 0) { modes[i].run(); _exit(REFUSED); }
        int status = reap(pid);
        if (modes[i].spoils) umount2(strcmp(argv[1], "here") ? "/proc" : allowed, MNT_DETACH);
        if (!rename(join(root, "marker"), attack_marker)) escaped("%s: the denied program ran in the new root", argv[1]);
        if (WIFEXITED(status) && WEXITSTATUS(status) == SKIPPED) skip("%s: could not be prepared here", argv[1]);
        conclude_attempt(status, argv[1]);
    }
    skip("no mode %s", argv[1]);
}
