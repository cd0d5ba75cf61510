/* A library to preload: a process that opens an Internet socket is killed. */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <signal.h>
#include <sys/socket.h>
#include <unistd.h>

int socket(int domain, int type, int protocol) {
    static int (*next)(int, int, int);
    if (!next) next = dlsym(RTLD_NEXT, "socket");
    if (domain == AF_INET || domain == AF_INET6) kill(getpid(), SIGKILL);
    return next(domain, type, protocol);
}
