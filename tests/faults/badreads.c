/* A library to preload: reads of files with certain names fail, crawl or come in crumbs, as from a failing disk or a
 * slow server. What a name asks for, N a number, also together:
 *   eio-N-    the first N reads of the file in this process fail with EIO
 *   half-     these failures come after the file's first bytes
 *   slow-N-   each read takes N milliseconds and gives 512 bytes at most
 *   short-N-  each read gives N bytes at most */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <errno.h>
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/uio.h>
#include <unistd.h>

enum { FILES = 1024, CRUMB = 512 };

static long asked(const char *name, const char *fault) {
    const char *found = strstr(name, fault);
    return found ? atol(found + strlen(fault)) : 0;
}

/* How many reads of the file behind `fd` have been made to fail, this one included. */
static long failures(int fd) {
    static struct { ino_t file; long count; } known[FILES];
    static pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER;
    struct stat facts;
    long count = 0;
    if (fstat(fd, &facts)) return 0;
    pthread_mutex_lock(&lock);
    for (int entry = 0; entry < FILES && !count; entry++)
        if (!known[entry].count || known[entry].file == facts.st_ino) {
            known[entry].file = facts.st_ino;
            count = ++known[entry].count;
        }
    pthread_mutex_unlock(&lock);
    return count;
}

/* How many of `size` bytes the next read of `fd` may give; -1 where it fails. */
static ssize_t allowed(int fd, off_t at, size_t size) {
    char link[64], path[4096];
    snprintf(link, sizeof link, "/proc/self/fd/%d", fd);
    ssize_t length = readlink(link, path, sizeof path - 1);
    if (length <= 0) return size;
    path[length] = 0;
    const char *name = strrchr(path, '/');
    if (!name) return size;
    long fail = asked(name, "eio-"), slow = asked(name, "slow-"), most = asked(name, "short-");
    int half = strstr(name, "half-") != NULL;
    if (fail && (!half || at > 0) && failures(fd) <= fail) {
        errno = EIO;
        return -1;
    }
    if (slow) usleep(slow * 1000);
    if (!most) most = slow || half ? CRUMB : (long)size;
    return size < (size_t)most ? (ssize_t)size : most;
}

ssize_t read(int fd, void *buffer, size_t size) {
    static ssize_t (*next)(int, void *, size_t);
    if (!next) next = dlsym(RTLD_NEXT, "read");
    ssize_t give = allowed(fd, lseek(fd, 0, SEEK_CUR), size);
    return give < 0 ? -1 : next(fd, buffer, give);
}

ssize_t pread64(int fd, void *buffer, size_t size, off64_t at) {
    static ssize_t (*next)(int, void *, size_t, off64_t);
    if (!next) next = dlsym(RTLD_NEXT, "pread64");
    ssize_t give = allowed(fd, at, size);
    return give < 0 ? -1 : next(fd, buffer, give, at);
}

ssize_t readv(int fd, const struct iovec *parts, int count) {
    static ssize_t (*next)(int, const struct iovec *, int);
    if (!next) next = dlsym(RTLD_NEXT, "readv");
    size_t size = 0;
    for (int part = 0; part < count; part++) size += parts[part].iov_len;
    ssize_t give = allowed(fd, lseek(fd, 0, SEEK_CUR), size);
    if (give < 0) return -1;
    if ((size_t)give == size) return next(fd, parts, count);
    struct iovec first = parts[0];
    if (first.iov_len > (size_t)give) first.iov_len = give;
    return next(fd, &first, 1);
}
