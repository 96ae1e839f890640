/* Small helpers: descriptors that close themselves, bounds, time. */
#ifndef COVE_UTIL_H
#define COVE_UTIL_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <time.h>
#include <unistd.h>

#define ARRAY_SIZE(a) (sizeof(a) / sizeof((a)[0]))
#define CLOSE_AT_END __attribute__((cleanup(close_at_end)))

static inline void close_at_end(int *fd)
{
	if (*fd >= 0)
		close(*fd);
}

/* Give a descriptor away: the variable's cleanup then closes nothing. */
static inline int take(int *fd)
{
	int r = *fd;

	*fd = -1;
	return r;
}

static inline void close_fd(int *fd)
{
	if (*fd >= 0)
		close(*fd);
	*fd = -1;
}

static inline size_t min_size(size_t a, size_t b)
{
	return a < b ? a : b;
}

static inline uint64_t clock_ns(clockid_t clock)
{
	struct timespec t;

	clock_gettime(clock, &t);
	return (uint64_t)t.tv_sec * 1000000000u + (uint64_t)t.tv_nsec;
}

static inline uint64_t now_ms(void)
{
	return clock_ns(CLOCK_MONOTONIC) / 1000000u;
}

#endif
