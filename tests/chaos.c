/* Strikes by the name of the file that is opened, as a broken disk, server or library does: what it does stands in
 * the file's name. Preloaded (LD_PRELOAD), in whatever process opens the file.
 *
 *   *chaos-hang*     never comes back        *chaos-segv*   writes where there is no memory
 *   *chaos-abort*    gives up                *chaos-eat*    takes memory without end
 *   *chaos-eio*      every read fails with EIO
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
static char failing[MOST]; /* descriptors of which every read fails */

static int strike(const char *path) {
    const char *fault = path ? strstr(path, "chaos-") : NULL;
    if (!fault || strstr(path, ".h5") || strstr(path, ".claim") || strstr(path, ".jp") || strstr(path, ".tmp")
        || strstr(path, ".geojson") || strstr(path, "/heatmaps/") || strstr(path, ".h5"))
        return 0;
    if (!strncmp(fault, "chaos-hang", 10))
        for (;;) pause();
    if (!strncmp(fault, "chaos-segv", 10)) *(volatile int *)8 = 1;
    if (!strncmp(fault, "chaos-abort", 11)) abort();
    if (!strncmp(fault, "chaos-eat", 9))
        for (;;) {
            char *more = malloc(8 << 20);
            if (more) memset(more, 1, 8 << 20);
            usleep(2000);
        }
    return !strncmp(fault, "chaos-eio", 9);
}

static int mode_of(int flags, va_list rest) { return flags & (O_CREAT | O_TMPFILE) ? va_arg(rest, int) : 0; }

#define OPENS(name, first, pass)                                              \
    int name(first const char *path, int flags, ...) {                        \
        va_list rest;                                                         \
        va_start(rest, flags);                                                \
        int mode = mode_of(flags, rest);                                      \
        va_end(rest);                                                         \
        int (*real)(first const char *, int, ...) = dlsym(RTLD_NEXT, #name);  \
        int fails = getenv("CHAOS") ? strike(path) : 0;                       \
        int descriptor = real(pass path, flags, mode);                        \
        if (descriptor >= 0 && descriptor < MOST) failing[descriptor] = fails; \
        return descriptor;                                                    \
    }
#define NONE
OPENS(open, , )
OPENS(open64, , )


#define STREAMS(name)                                                         \
    FILE *name(const char *path, const char *mode) {                          \
        FILE *(*real)(const char *, const char *) = dlsym(RTLD_NEXT, #name);  \
        int fails = getenv("CHAOS") ? strike(path) : 0;                       \
        FILE *stream = real(path, mode);                                      \
        if (stream && fileno(stream) < MOST) failing[fileno(stream)] = fails; \
        return stream;                                                        \
    }
STREAMS(fopen)
STREAMS(fopen64)

static int fails(int descriptor) {
    if (descriptor < 0 || descriptor >= MOST || !failing[descriptor]) return 0;
    errno = EIO;
    return 1;
}

int close(int descriptor) {
    int (*real)(int) = dlsym(RTLD_NEXT, "close");
    if (descriptor >= 0 && descriptor < MOST) failing[descriptor] = 0;
    return real(descriptor);
}

ssize_t read(int descriptor, void *to, size_t count) {
    ssize_t (*real)(int, void *, size_t) = dlsym(RTLD_NEXT, "read");
    return fails(descriptor) ? -1 : real(descriptor, to, count);
}

ssize_t pread(int descriptor, void *to, size_t count, off_t at) {
    ssize_t (*real)(int, void *, size_t, off_t) = dlsym(RTLD_NEXT, "pread");
    return fails(descriptor) ? -1 : real(descriptor, to, count, at);
}

ssize_t pread64(int descriptor, void *to, size_t count, off64_t at) {
    ssize_t (*real)(int, void *, size_t, off64_t) = dlsym(RTLD_NEXT, "pread64");
    return fails(descriptor) ? -1 : real(descriptor, to, count, at);
}

size_t fread(void *to, size_t size, size_t count, FILE *stream) {
    size_t (*real)(void *, size_t, size_t, FILE *) = dlsym(RTLD_NEXT, "fread");
    return fails(fileno(stream)) ? 0 : real(to, size, count, stream);
}
