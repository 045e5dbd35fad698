// A disk that fails, under a program that does not know: loaded before the C library, it lets FAIL_AFTER operations that change
// something below the folder FAIL_UNDER succeed, and the next FAIL_FOR ones fail with FAIL_WITH. A failing write leaves half of its
// bytes. At its end the program leaves the number of its operations in FAIL_COUNT, where that names a file. What goes to the kernel
// past the C library (allocation of the log's segments, renames of temporary files) does not fail, and neither does reading.
#define _GNU_SOURCE
#include <dlfcn.h>
#include <errno.h>
#include <fcntl.h>
#include <stdarg.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/types.h>
#include <unistd.h>

static atomic_ulong operations;

static unsigned long number(const char *name) {
    const char *text = getenv(name);
    return text ? strtoul(text, NULL, 10) : 0;
}

static int is_below(const char *path) {
    const char *folder = getenv("FAIL_UNDER");
    return folder && strncmp(path, folder, strlen(folder)) == 0;
}

static int is_file_below(int fd) {
    char name[64], path[4096];
    snprintf(name, sizeof name, "/proc/self/fd/%d", fd);
    ssize_t length = readlink(name, path, sizeof path - 1);
    if (length < 0) return 0;
    path[length] = 0;
    return is_below(path);
}

// Counts an operation; whether it is one that fails.
static int fails(void) {
    unsigned long nth = atomic_fetch_add(&operations, 1), after = number("FAIL_AFTER");
    if (!getenv("FAIL_AFTER") || nth < after || nth - after >= number("FAIL_FOR")) return 0;
    errno = (int)number("FAIL_WITH");
    return 1;
}

__attribute__((destructor)) static void tell(void) {
    const char *path = getenv("FAIL_COUNT");
    FILE *file = path ? fopen(path, "w") : NULL;
    if (!file) return;
    fprintf(file, "%lu", atomic_load(&operations));
    fclose(file);
}

#define REAL(name) ((__typeof__(&name))dlsym(RTLD_NEXT, #name))

ssize_t write(int fd, const void *bytes, size_t count) {
    if (is_file_below(fd) && fails()) {
        int error = errno;
        REAL(write)(fd, bytes, count / 2);
        errno = error;
        return -1;
    }
    return REAL(write)(fd, bytes, count);
}

ssize_t pwrite64(int fd, const void *bytes, size_t count, off64_t offset) {
    if (is_file_below(fd) && fails()) {
        int error = errno;
        REAL(pwrite64)(fd, bytes, count / 2, offset);
        errno = error;
        return -1;
    }
    return REAL(pwrite64)(fd, bytes, count, offset);
}

int fsync(int fd) { return is_file_below(fd) && fails() ? -1 : REAL(fsync)(fd); }
int fdatasync(int fd) { return is_file_below(fd) && fails() ? -1 : REAL(fdatasync)(fd); }
int ftruncate64(int fd, off64_t size) { return is_file_below(fd) && fails() ? -1 : REAL(ftruncate64)(fd, size); }
int rename(const char *from, const char *to) { return is_below(to) && fails() ? -1 : REAL(rename)(from, to); }
int unlink(const char *path) { return is_below(path) && fails() ? -1 : REAL(unlink)(path); }
int mkdir(const char *path, mode_t mode) {
    static int (*real)(const char *, mode_t);
    if (!real) real = (int (*)(const char *, mode_t))dlsym(RTLD_NEXT, "mkdir");
    return is_below(path) && fails() ? -1 : real(path, mode);
}
int link(const char *from, const char *to) { return is_below(to) && fails() ? -1 : REAL(link)(from, to); }
int linkat(int a, const char *from, int b, const char *to, int flags) {
    return is_below(to) && fails() ? -1 : REAL(linkat)(a, from, b, to, flags);
}

int open64(const char *path, int flags, ...) {
    va_list rest;
    va_start(rest, flags);
    mode_t mode = flags & O_CREAT ? va_arg(rest, mode_t) : 0;
    va_end(rest);
    return flags & O_CREAT && is_below(path) && fails() ? -1 : REAL(open64)(path, flags, mode);
}
