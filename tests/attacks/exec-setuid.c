/* A set-user-ID program gives its caller the rights of its owner: the ordinary way from a listed program to root.
 *
 * Under no_new_privs (prctl(2)), which an unprivileged filter needs anyway, execve(2) ignores the bit and file capabilities.
 * A wrapper that installs its filter by CAP_SYS_ADMIN, without no_new_privs, leaves sudo and its like working; and a
 * set-user-ID program under an enforcer is a privileged program with a hostile filter.
 *
 *   exec-setuid ALLOWED MARKER         as root: the allowed program is made set-user-ID for a moment, and run as nobody */
#include "attack.h"

int main(int argc, char **argv) {
    if (argc < 3) skip("usage: ALLOWED MARKER");
    attack_marker = argv[2];
    bound(5);
    struct stat before;
    if (geteuid()) skip("needs root to prepare the set-user-ID program");
    if (stat(argv[1], &before) || chmod(argv[1], 04755)) held("chmod: %s", strerror(errno));
    int report[2];
    if (pipe(report)) skip("pipe: %s", strerror(errno));
    pid_t pid = fork_bounded();
    if (pid == 0) {
        char name[64];
        snprintf(name, sizeof name, "/proc/self/fd/%d", report[1]);
        setenv("ATTACK_REPORT", name, 1);
        fchmod(report[1], 0666);
        if (syscall(SYS_setresuid, 65534, 65534, 65534)) _exit(REFUSED);
        execl(argv[1], argv[1], (char *)NULL);
        _exit(REFUSED);
    }
    int status = reap(pid);
    chmod(argv[1], before.st_mode & 07777);
    close(report[1]);
    char text[200] = "";
    if (read(report[0], text, sizeof text - 1) <= 0) held("it did not run as another user (status %d)", status);
    text[strcspn(text, "\n")] = 0;
    if (strstr(text, "euid 0")) escaped("a set-user-ID program got its owner's rights: %s", text);
    held("it ran as %s", text);
}
