/* Count the system calls of this process that change something below a folder, and make one of them fail or the process die before
 * it. every_moment.py loads this library into the process to be disturbed.
 *
 * A seccomp filter turns each such call, whoever makes it (HDF5, Python, the C library's streams, Rust's own wrappers), into the
 * signal SIGSYS, whose handler looks at the call and makes it from the one place that the filter lets through. x86-64 alone. */

#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <linux/audit.h>
#include <linux/filter.h>
#include <linux/seccomp.h>
#include <signal.h>
#include <stddef.h>
#include <stdio.h>
#include <string.h>
#include <sys/prctl.h>
#include <sys/syscall.h>
#include <ucontext.h>
#include <unistd.h>

/* room: whether the call takes room on the disk. The places of its arguments, or -1: descriptor, of a file or of the folder where a
 * relative path starts; path; flags of what is opened. */
static const struct { int number; const char *name; int room, descriptor, path, flags; } calls[] = {
    {SYS_write, "write", 1, 0, -1, -1}, {SYS_writev, "writev", 1, 0, -1, -1}, {SYS_pwrite64, "pwrite64", 1, 0, -1, -1},
    {SYS_pwritev, "pwritev", 1, 0, -1, -1}, {SYS_pwritev2, "pwritev2", 1, 0, -1, -1}, {SYS_sendfile, "sendfile", 1, 0, -1, -1},
    {SYS_copy_file_range, "copy_file_range", 1, 2, -1, -1}, {SYS_fallocate, "fallocate", 1, 0, -1, -1},
    {SYS_fsync, "fsync", 0, 0, -1, -1}, {SYS_fdatasync, "fdatasync", 0, 0, -1, -1}, {SYS_ftruncate, "ftruncate", 0, 0, -1, -1},
    {SYS_truncate, "truncate", 0, -1, 0, -1}, {SYS_rename, "rename", 1, -1, 1, -1}, {SYS_renameat, "rename", 1, 2, 3, -1},
    {SYS_renameat2, "rename", 1, 2, 3, -1}, {SYS_link, "link", 1, -1, 1, -1}, {SYS_linkat, "link", 1, 2, 3, -1},
    {SYS_symlink, "symlink", 1, -1, 1, -1}, {SYS_symlinkat, "symlink", 1, 1, 2, -1}, {SYS_unlink, "unlink", 0, -1, 0, -1},
    {SYS_unlinkat, "unlink", 0, 0, 1, -1}, {SYS_rmdir, "rmdir", 0, -1, 0, -1}, {SYS_mkdir, "mkdir", 1, -1, 0, -1},
    {SYS_mkdirat, "mkdir", 1, 0, 1, -1}, {SYS_creat, "open", 1, -1, 0, -1}, {SYS_open, "open", 1, -1, 0, 1},
    {SYS_openat, "open", 1, 0, 1, 2},
};
enum { CALLS = sizeof calls / sizeof *calls };

static char root[PATH_MAX];
static struct {                  /* a page that outlives the process */
    long calls;                  /* so far */
    char memory[4088];           /* what it shares with other processes, paths with a space behind: a killed one cannot remove it */
} *page;
static long at;                  /* the call to be disturbed, from 1 */
static int error, stays, log_to; /* 0 to die, or what fails; whether everything that takes room fails from then on; -1 or a descriptor */
static void (*look)(const char *, const char *);                            /* told of each call before it is made, or NULL */
static __thread int inside __attribute__((tls_model("initial-exec")));      /* calls that we make ourselves do not count */

long raw_call(long number, const greg_t *registers);
extern char raw_call_end[];
__asm__(".text\n.globl raw_call\nraw_call:\n"
        "mov %rdi, %rax\n mov %rsi, %r11\n"
        "mov 64(%r11), %rdi\n mov 72(%r11), %rsi\n mov 96(%r11), %rdx\n"  /* REG_RDI 8, REG_RSI 9, REG_RDX 12 of 8 bytes each */
        "mov 16(%r11), %r10\n mov 0(%r11), %r8\n mov 8(%r11), %r9\n"      /* REG_R10 2, REG_R8 0, REG_R9 1 */
        "syscall\nraw_call_end:\n ret\n");

static long argument(const greg_t *registers, int place) {
    static const int where[] = {REG_RDI, REG_RSI, REG_RDX, REG_R10};
    return registers[where[place]];
}

static void full_path(char *full, int descriptor, const char *path) {
    char link[64];
    ssize_t length = 0;
    if (!path || path[0] != '/') {
        if (descriptor == AT_FDCWD)
            strcpy(link, "/proc/self/cwd");
        else
            snprintf(link, sizeof link, "/proc/self/fd/%d", descriptor);
        length = readlink(link, full, PATH_MAX - 1);
        if (length < 0)
            length = 0;
        if (path)
            full[length++] = '/';
    }
    full[length] = 0;
    if (path)
        strncat(full, path, PATH_MAX - 1 - length);
}

/* The errno with which the call shall fail, or 0. */
static int fails(const greg_t *registers, int which) {
    char full[PATH_MAX];
    int descriptor = calls[which].descriptor < 0 ? AT_FDCWD : (int)argument(registers, calls[which].descriptor);
    full_path(full, descriptor, calls[which].path < 0 ? NULL : (const char *)argument(registers, calls[which].path));
    if (strncmp(full, root, strlen(root))) {
        if (calls[which].flags >= 0 && !strncmp(full, "/dev/shm/", 9) && strlen(page->memory) + strlen(full) + 2 < sizeof page->memory)
            strcat(strcat(page->memory, full), " ");
        return 0;
    }
    long number = __atomic_add_fetch(&page->calls, 1, __ATOMIC_SEQ_CST);
    if (log_to >= 0)
        dprintf(log_to, "%s %s\n", calls[which].name, full);
    if (look)
        look(calls[which].name, full);
    if (number == at && !error)
        kill(getpid(), SIGKILL);
    return number == at || (at && number > at && stays && calls[which].room) ? error : 0;
}

static void handle(int number, siginfo_t *about, void *context) {
    greg_t *registers = ((ucontext_t *)context)->uc_mcontext.gregs;
    int before = errno, code = 0, which = 0;
    (void)number;
    while (which < CALLS - 1 && calls[which].number != about->si_syscall)
        which++;
    if (!inside) {
        inside = 1;
        code = fails(registers, which);
        inside = 0;
    }
    registers[REG_RAX] = code ? -code : raw_call(about->si_syscall, registers);
    errno = before;
}

static struct sock_filter filter[16 + 6 * CALLS];
static int length;
static void add(unsigned short code, unsigned value, int yes, int no) {
    filter[length++] = (struct sock_filter)BPF_JUMP(code, value, yes, no);
}
static void load(size_t offset) { add(BPF_LD | BPF_W | BPF_ABS, offset, 0, 0); }

/* Begin to count, in this process and all its threads. shared: the page. Returns 0. */
int moments_start(const char *folder, void *shared, long number, int code, int stay, int log, void (*told)(const char *, const char *)) {
    strcpy(root, folder);
    page = shared, at = number, error = code, stays = stay, log_to = log, look = told;

    struct sigaction action = {.sa_sigaction = handle, .sa_flags = SA_SIGINFO | SA_NODEFER};
    sigaction(SIGSYS, &action, NULL);
    unsigned long through = (unsigned long)raw_call_end;
    load(offsetof(struct seccomp_data, instruction_pointer));
    add(BPF_JMP | BPF_JEQ | BPF_K, (unsigned)through, 0, 3);
    load(offsetof(struct seccomp_data, instruction_pointer) + 4);
    add(BPF_JMP | BPF_JEQ | BPF_K, (unsigned)(through >> 32), 0, 1);
    add(BPF_RET | BPF_K, SECCOMP_RET_ALLOW, 0, 0);
    load(offsetof(struct seccomp_data, nr));
    for (int which = 0; which < CALLS; which++) {
        if (calls[which].flags >= 0) { /* only what may make or empty a file */
            add(BPF_JMP | BPF_JEQ | BPF_K, calls[which].number, 0, 4);
            load(offsetof(struct seccomp_data, args) + 8 * calls[which].flags);
            add(BPF_JMP | BPF_JSET | BPF_K, O_CREAT | O_TRUNC, 0, 1);
        } else if (calls[which].path < 0) { /* not standard output and error, so that git, say, can be started */
            add(BPF_JMP | BPF_JEQ | BPF_K, calls[which].number, 0, 4);
            load(offsetof(struct seccomp_data, args) + 8 * calls[which].descriptor);
            add(BPF_JMP | BPF_JGT | BPF_K, 2, 0, 1);
        } else {
            add(BPF_JMP | BPF_JEQ | BPF_K, calls[which].number, 0, 1);
        }
        add(BPF_RET | BPF_K, SECCOMP_RET_TRAP, 0, 0);
        if (calls[which].path < 0 || calls[which].flags >= 0)
            add(BPF_RET | BPF_K, SECCOMP_RET_ALLOW, 0, 0);
    }
    add(BPF_RET | BPF_K, SECCOMP_RET_ALLOW, 0, 0);
    struct sock_fprog program = {.len = length, .filter = filter};
    prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0);
    return syscall(SYS_seccomp, SECCOMP_SET_MODE_FILTER, SECCOMP_FILTER_FLAG_TSYNC, &program);
}
