/* Strikes by the name of the file that is opened, as a broken disk, server or library does: what it does stands in
 * the file's name. Preloaded (LD_PRELOAD), in whatever process opens the file.
 *
 *   *chaos-hang*     never comes back        *chaos-segv*   writes where there is no memory
 *   *chaos-abort*    gives up                *chaos-eat*    takes memory without end
 *   *chaos-eio*      every read fails with EIO
 *
 * With "late" in its name it does so when CHAOS pieces of it were read by pread, and not when it is opened.
 */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <errno.h>
#include <fcntl.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/types.h>
#include <unistd.h>

#define MOST 65536

enum { NOTHING, HANG, SEGV, ABORT, EAT, EIO_ALWAYS };
static char fault_of[MOST]; /* of a descriptor */
static int left_of[MOST];   /* reads of it that are in order */

static int fault_in(const char *path) {
    static const char *names[] = {"hang", "segv", "abort", "eat", "eio"};
    const char *found = path && getenv("CHAOS") ? strstr(path, "chaos-") : NULL;
    if (!found || !strstr(path, ".tiff") || strstr(path, "/run") || strstr(path, ".tmp")) return NOTHING;
    for (int i = 0; i < 5; i++)
        if (!strncmp(found + 6, names[i], strlen(names[i]))) return i + 1;
    return NOTHING;
}

static void strike(int fault) {
    if (fault == HANG)
        for (;;) pause();
    if (fault == SEGV) *(volatile int *)8 = 1;
    if (fault == ABORT) abort();
    if (fault == EAT)
        for (;;) {
            char *more = malloc(8 << 20);
            if (more) memset(more, 1, 8 << 20);
            usleep(2000);
        }
}

/* Before a file is opened: its fault, if it does not strike at once. */
static int before(const char *path) {
    int fault = fault_in(path);
    if (fault && !strstr(path, "late")) strike(fault);
    return fault;
}

static void opened(int descriptor, const char *path, int fault) {
    if (descriptor < 0 || descriptor >= MOST) return;
    fault_of[descriptor] = fault;
    left_of[descriptor] = fault && strstr(path, "late") ? atoi(getenv("CHAOS")) : 0;
}

/* Before a read: whether it is to fail. */
static int fails(int descriptor, int counts) {
    if (descriptor < 0 || descriptor >= MOST || !fault_of[descriptor]) return 0;
    if (left_of[descriptor] > 0) {
        left_of[descriptor] -= counts;
        return 0;
    }
    strike(fault_of[descriptor]);
    errno = EIO;
    return 1;
}

#define OPENS(name)                                                     \
    int name(const char *path, int flags, ...) {                        \
        va_list rest;                                                   \
        va_start(rest, flags);                                          \
        int mode = flags & (O_CREAT | O_TMPFILE) ? va_arg(rest, int) : 0; \
        va_end(rest);                                                   \
        int (*real)(const char *, int, ...) = dlsym(RTLD_NEXT, #name);  \
        int fault = before(path);                                       \
        int descriptor = real(path, flags, mode);                       \
        opened(descriptor, path, fault);                                \
        return descriptor;                                              \
    }
OPENS(open)
OPENS(open64)

#define STREAMS(name)                                                   \
    FILE *name(const char *path, const char *mode) {                    \
        FILE *(*real)(const char *, const char *) = dlsym(RTLD_NEXT, #name); \
        int fault = before(path);                                       \
        FILE *stream = real(path, mode);                                \
        if (stream) opened(fileno(stream), path, fault);                \
        return stream;                                                  \
    }
STREAMS(fopen)
STREAMS(fopen64)

int close(int descriptor) {
    int (*real)(int) = dlsym(RTLD_NEXT, "close");
    if (descriptor >= 0 && descriptor < MOST) fault_of[descriptor] = NOTHING;
    return real(descriptor);
}

ssize_t read(int descriptor, void *to, size_t count) {
    ssize_t (*real)(int, void *, size_t) = dlsym(RTLD_NEXT, "read");
    return fails(descriptor, 0) ? -1 : real(descriptor, to, count);
}

ssize_t pread(int descriptor, void *to, size_t count, off_t at) {
    ssize_t (*real)(int, void *, size_t, off_t) = dlsym(RTLD_NEXT, "pread");
    return fails(descriptor, 1) ? -1 : real(descriptor, to, count, at);
}

ssize_t pread64(int descriptor, void *to, size_t count, off64_t at) {
    ssize_t (*real)(int, void *, size_t, off64_t) = dlsym(RTLD_NEXT, "pread64");
    return fails(descriptor, 1) ? -1 : real(descriptor, to, count, at);
}

size_t fread(void *to, size_t size, size_t count, FILE *stream) {
    size_t (*real)(void *, size_t, size_t, FILE *) = dlsym(RTLD_NEXT, "fread");
    return fails(fileno(stream), 0) ? 0 : real(to, size, count, stream);
}
