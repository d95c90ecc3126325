/* The workload traces itself: the call that was checked is not the call that is made, or the enforcer cannot trace.
 *
 * ptrace(2) lets a tracer change a call's number and arguments at syscall-enter-stops and at PTRACE_EVENT_SECCOMP stops;
 * before Linux 4.8 seccomp had already had its say by then (seccomp(2), NOTES). And a thread has one tracer: where the
 * workload is first, an enforcer that wants to verify an exec by ptrace fails, and must not let it pass.
 *
 *   exec-ptrace MODE ALLOWED DENIED MARKER ROUNDS [SECONDS]
 * number      getppid becomes an execve of the denied program at its syscall-enter-stop     sysemu   by PTRACE_SYSEMU
 * path        an execve of the allowed program gets the denied path there
 * event       getppid becomes execve at the stop that SECCOMP_RET_TRACE of the workload's own filter makes
 * traced      the caller is traced already (and continued by its tracer), and a third process flips the path
 * seize       a third process seizes the caller while its exec is being checked, and the path is flipped
 * deaf        as traced, but the caller was seized, and a filter of the tracer's lets its PTRACE_INTERRUPT succeed undone
 * code        likewise, and a thread of the tracer's rewrites the code of its vdso, with which it could be made to interrupt */
#include "attack.h"
#include <pthread.h>
#include <sys/auxv.h>
#include <linux/filter.h>
#include <linux/seccomp.h>
#include <sys/ptrace.h>
#include <sys/user.h>

struct stage { _Atomic int round, flipping, done, seized; _Atomic pid_t caller; char path[PATH_MAX] __attribute__((aligned(8))); };
static struct stage *stage;
static const char *mode, *allowed, *denied;
static int is(const char *m) { return !strcmp(mode, m); }

static void own_filter(void) { /* getppid: RET_TRACE */
    struct sock_filter code[] = { BPF_STMT(BPF_LD | BPF_W | BPF_ABS, 0), BPF_JUMP(BPF_JMP | BPF_JEQ | BPF_K, SYS_getppid, 0, 1),
                                  BPF_STMT(BPF_RET | BPF_K, SECCOMP_RET_TRACE), BPF_STMT(BPF_RET | BPF_K, SECCOMP_RET_ALLOW) };
    struct sock_fprog program = { 4, code };
    prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0);
    if (syscall(SYS_seccomp, SECCOMP_SET_MODE_FILTER, 0, &program)) _exit(SKIPPED);
}

static void deaf_filter(void) { /* ptrace(PTRACE_INTERRUPT, …): done, says the kernel */
    struct sock_filter code[] = { BPF_STMT(BPF_LD | BPF_W | BPF_ABS, 0), BPF_JUMP(BPF_JMP | BPF_JEQ | BPF_K, SYS_ptrace, 0, 3),
                                  BPF_STMT(BPF_LD | BPF_W | BPF_ABS, 16), BPF_JUMP(BPF_JMP | BPF_JEQ | BPF_K, PTRACE_INTERRUPT, 0, 1),
                                  BPF_STMT(BPF_RET | BPF_K, SECCOMP_RET_ERRNO), BPF_STMT(BPF_RET | BPF_K, SECCOMP_RET_ALLOW) };
    struct sock_fprog program = { 6, code };
    prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0);
    if (syscall(SYS_seccomp, SECCOMP_SET_MODE_FILTER, 0, &program)) skip("no filter of one's own");
}

/* Where there is a `syscall` there is at times a jump to code that makes another, harmless one, and goes on as if that had
 * been the call. */
static void *rewriter(void *at) {
    volatile uint16_t *code = at;
    for (unsigned n = 1; !stage->done; n = n * 1103515245 + 12345) {
        *code = 0x050f; /* syscall */
        spin_ns(n >> 8 & 65535);
        *code = 0x10eb; /* jmp +16 */
        spin_ns(n >> 8 & 65535);
    }
    return NULL;
}

static void rewrite_code(void) {
    static const unsigned char harmless[] = { 0xb8, SYS_sched_yield, 0, 0, 0, 0x0f, 0x05, 0xeb, 0xfe };
    unsigned char *vdso = (unsigned char *)getauxval(AT_SYSINFO_EHDR);
    pthread_t thread;
    size_t at = 0;
    if (!vdso || mprotect(vdso, 8192, PROT_READ | PROT_WRITE | PROT_EXEC)) skip("the vdso cannot be rewritten");
    while (at < 8000 && (vdso[at] != 0x0f || vdso[at + 1] != 0x05)) at++;
    memset(vdso + at + 2, 0x90, 16);
    memcpy(vdso + at + 18, harmless, sizeof harmless);
    pthread_create(&thread, NULL, rewriter, vdso + at);
}

/* One tracee, whose getppid (or execve of the allowed program) is turned into the denied exec. */
static int turn(void) {
    char *argv[] = { (char *)denied, (char *)attack_marker, NULL };
    int status, turned = 0;
    pid_t pid = fork_bounded();
    if (pid == 0) {
        if (is("event")) own_filter();
        if (ptrace(PTRACE_TRACEME, 0, 0, 0)) _exit(SKIPPED);
        raise(SIGSTOP);
        if (is("path")) execve(allowed, argv, environ);
        else syscall(SYS_getppid, denied, argv, environ);
        syscall(SYS_exit_group, REFUSED);
    }
    reap(pid);
    ptrace(PTRACE_SETOPTIONS, pid, 0, PTRACE_O_TRACESYSGOOD | PTRACE_O_TRACESECCOMP | PTRACE_O_EXITKILL);
    int how = is("event") ? PTRACE_CONT : is("sysemu") ? PTRACE_SYSEMU : PTRACE_SYSCALL;
    for (;;) {
        if (ptrace((enum __ptrace_request)how, pid, 0, 0)) return 0;
        waitpid(pid, &status, __WALL);
        if (!WIFSTOPPED(status)) return status;
        struct user_regs_struct r;
        ptrace(PTRACE_GETREGS, pid, 0, &r);
        if (turned) { how = PTRACE_CONT; continue; }
        if (is("path") ? r.orig_rax != SYS_execve : r.orig_rax != SYS_getppid) continue;
        turned = 1;
        if (is("path")) r.rdi = (uintptr_t)denied;
        else if (is("sysemu")) r.rax = SYS_execve, r.rip -= 2; /* not made; made again as another call */
        else r.orig_rax = SYS_execve;
        ptrace(PTRACE_SETREGS, pid, 0, &r);
        how = PTRACE_CONT;
    }
}

static void flipper(void) {
    for (int seen = 0; !stage->done;) {
        int round = stage->round;
        if (!round || round == seen) continue;
        seen = round;
        if (round % 2) { spin_ns(moment_of(round)); strcpy(stage->path, denied); }
        for (unsigned n = (unsigned)round; stage->round == round && round % 2 == 0; n = n * 1103515245 + 12345) {
            strcpy(stage->path, denied);
            stage->flipping = round;
            spin_ns(n >> 8 & 8191);
            strcpy(stage->path, allowed);
            spin_ns(n >> 12 & 8191);
        }
    }
}

static void seizer(void) { /* takes the caller, lets it go on, gives it back */
    while (!stage->done) {
        pid_t pid = stage->caller;
        int status;
        if (!pid || ptrace(PTRACE_SEIZE, pid, 0, PTRACE_O_TRACEEXEC)) continue;
        for (int64_t until = now_ns() + 2000000; now_ns() < until && stage->caller == pid;)
            if (waitpid(pid, &status, __WALL | WNOHANG) == pid && WIFSTOPPED(status)) ptrace(PTRACE_CONT, pid, 0, 0);
        if (ptrace(PTRACE_INTERRUPT, pid, 0, 0) == 0 && waitpid(pid, &status, __WALL) == pid) ptrace(PTRACE_DETACH, pid, 0, 0);
    }
}

int main(int argc, char **argv) {
    if (argc < 6) skip("usage: MODE ALLOWED DENIED MARKER ROUNDS [SECONDS]");
    mode = argv[1], allowed = argv[2], denied = argv[3];
    use_marker(argv[4]);
    int rounds = atoi(argv[5]), seconds = argc > 6 ? atoi(argv[6]) : 3;
    bound((unsigned)seconds + 2);
    int seized = is("deaf") || is("code");
    if (!is("traced") && !is("seize") && !seized) {
        int status = turn();
        if (WIFEXITED(status) && WEXITSTATUS(status) == SKIPPED) held("%s: tracing, or a filter, is refused", mode);
        conclude_attempt(status, mode);
    }
    stage = shared_page(sizeof *stage);
    pid_t helper = fork_bounded(), other = 0;
    if (helper == 0) { flipper(); _exit(0); }
    if (is("seize") && !(other = fork_bounded())) { seizer(); _exit(0); }
    if (is("deaf")) deaf_filter();
    if (is("code")) rewrite_code();
    struct tally tally = { 0 };
    int64_t until = now_ns() + seconds * 1000000000LL;
    for (int round = 1; round <= rounds && now_ns() < until && !marker_exists(); round++) {
        int status;
        strcpy(stage->path, allowed);
        pid_t pid = fork_bounded();
        if (pid == 0) {
            char *words[] = { stage->path, (char *)attack_marker, NULL };
            if (is("traced") && ptrace(PTRACE_TRACEME, 0, 0, 0)) _exit(SKIPPED);
            while (seized && stage->seized != round) {}
            stage->caller = (pid_t)syscall(SYS_getpid);
            stage->round = round;
            for (int64_t late = now_ns() + 1000000; round % 2 == 0 && stage->flipping != round && now_ns() < late;) {}
            execve(stage->path, words, environ);
            _exit(REFUSED);
        }
        if (seized && ptrace(PTRACE_SEIZE, pid, 0, 0)) skip("PTRACE_SEIZE: %s", strerror(errno));
        stage->seized = round;
        while (waitpid(pid, &status, __WALL) == pid && WIFSTOPPED(status)) ptrace(PTRACE_CONT, pid, 0, 0);
        stage->caller = 0;
        stage->round = 0;
        count(&tally, status);
    }
    stage->done = 1;
    kill(helper, SIGKILL);
    if (other) kill(other, SIGKILL);
    conclude(&tally, mode);
}
