/* Finds the enforcer from inside the workload, as an attacker would: the ancestors whose name is callgate, and processes of
 * that name which are children or siblings of one of them. Nothing else is ever a target: who runs these programs without
 * an enforcer, or beside other tests, must come to no harm. */
#ifndef SUPERVISOR_H
#define SUPERVISOR_H
#include "attack.h"
#include <dirent.h>

static pid_t supervisors[16];
static int supervisor_count;

static inline int status_of(pid_t pid, char *name, char *state, pid_t *parent, pid_t *group) {
    char path[64], line[512];
    snprintf(path, sizeof path, "/proc/%d/stat", pid);
    int fd = open(path, O_RDONLY | O_CLOEXEC);
    ssize_t n = fd < 0 ? -1 : read(fd, line, sizeof line - 1);
    if (fd >= 0) close(fd);
    if (n <= 0) return 0;
    line[n] = 0;
    char *open_at = strchr(line, '('), *close_at = strrchr(line, ')');
    if (!open_at || !close_at) return 0;
    snprintf(name, 32, "%.*s", (int)(close_at - open_at - 1), open_at + 1);
    return sscanf(close_at + 2, "%c %d %d", state, parent, group) == 3;
}
static inline int is_supervisor(pid_t pid) {
    for (int i = 0; i < supervisor_count; i++) if (supervisors[i] == pid) return 1;
    return 0;
}
static inline void find_supervisors(void) {
    char name[32], state;
    pid_t parent, group, beside = 0;
    for (pid_t pid = getppid(); pid > 0 && supervisor_count < 8 && status_of(pid, name, &state, &parent, &group); pid = parent)
        if (!strncmp(name, "callgate", 8)) { supervisors[supervisor_count++] = pid; beside = parent; }
    if (!supervisor_count) skip("no process named callgate above this one");
    int above = supervisor_count;
    DIR *processes = opendir("/proc");
    for (struct dirent *entry; processes && (entry = readdir(processes)) && supervisor_count < 16;) {
        pid_t pid = atoi(entry->d_name);
        if (pid <= 0 || is_supervisor(pid) || !status_of(pid, name, &state, &parent, &group) || strncmp(name, "callgate", 8)) continue;
        int ours = parent == beside && group == getpgrp();
        for (int i = 0; i < above; i++) ours |= parent == supervisors[i];
        if (ours) supervisors[supervisor_count++] = pid;
    }
    if (processes) closedir(processes);
}
/* The threads of a process; its own id where they cannot be listed. */
static inline int threads_of(pid_t pid, pid_t *tids, int most) {
    char path[64];
    int n = 0;
    snprintf(path, sizeof path, "/proc/%d/task", pid);
    DIR *tasks = opendir(path);
    for (struct dirent *entry; tasks && (entry = readdir(tasks)) && n < most;) if (atoi(entry->d_name) > 0) tids[n++] = atoi(entry->d_name);
    if (tasks) closedir(tasks);
    if (!n) tids[n++] = pid;
    return n;
}
#endif
