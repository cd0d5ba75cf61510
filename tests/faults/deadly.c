/* A library to preload: one image, known by the size of its decoded pixels, ends or stalls the process that decodes it.
 * DEADLY_BYTES: the size; DEADLY_SIGNAL: the signal raised, or 0 to stall for ever. */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <signal.h>
#include <stdlib.h>
#include <unistd.h>

int posix_memalign(void **result, size_t alignment, size_t size) {
    static int (*next)(void **, size_t, size_t);
    if (!next) next = dlsym(RTLD_NEXT, "posix_memalign");
    const char *bytes = getenv("DEADLY_BYTES"), *number = getenv("DEADLY_SIGNAL");
    if (bytes && number && size == strtoul(bytes, NULL, 10)) {
        if (atoi(number) == 0) for (;;) pause();
        kill(getpid(), atoi(number));
        for (;;) pause();
    }
    return next(result, alignment, size);
}
