/* Moves the wall clock of a process by CLOCK_OFFSET seconds: loaded before the C library. */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <stdlib.h>
#include <time.h>

typedef int (*gettime)(clockid_t, struct timespec *);

int clock_gettime(clockid_t clock, struct timespec *time) {
    static gettime real;
    static long offset;
    if (!real) {
        const char *text = getenv("CLOCK_OFFSET");
        offset = text ? atol(text) : 0;
        real = (gettime)dlsym(RTLD_NEXT, "clock_gettime");
    }
    int result = real(clock, time);
    if (result == 0 && (clock == CLOCK_REALTIME || clock == CLOCK_REALTIME_COARSE)) {
        time->tv_sec += offset;
    }
    return result;
}
