/*
 * The Hold step: the container is created, and its process waits to be started.
 *
 * Nobody supervises from here on, if the process is detached: it learns by a FIFO that it may go, and tells
 * by another what fails; both close at the exec, and that is the word of success. A system call filter may be
 * installed already, so read(2) and write(2) have to do: what a filter can forbid besides is tried, and its
 * failure is no harm.
 */
#include "util.h"

#include <errno.h>

#include "child.h"
#include "operations.h"
#include "protocol.h"

static int read_all(int fd, void *data, size_t size)
{
	char *at = data;

	while (size) {
		ssize_t r = read(fd, at, size);

		if (r < 0 && errno == EINTR)
			continue;
		if (r <= 0)
			return r ? -errno : -EPIPE;
		at += r;
		size -= (size_t)r;
	}
	return 0;
}

/* Whether the exec will fail for sure. Anything else may come from a filter, and the exec will tell. */
static int check_program(const char *name, const char *path)
{
	int r = find_program(name, path);

	return r == -ENOENT || r == -EACCES || r == -ENOTDIR || r == -ELOOP || r == -ENAMETOOLONG ? r : 0;
}

int run_hold(const struct value *v, struct context *c)
{
	struct sync_message message = { .type = SYNC_HELD };
	uint32_t length;
	int r = check_program(v[2].text, v[3].text);

	if (r == 0)
		r = prepare_exec(c);
	if (r == 0 && c->joins_pid)
		r = split_off(c);
	if (r < 0)
		return r;
	close_others(c);
	c->root = c->null = c->empty = c->control = -1;
	if (write(c->sync, &message, sizeof(message)) != sizeof(message))
		return -EPIPE;
	c->released = true;
	close_fd(&c->sync);
	r = read_all(c->go, &length, sizeof(length));
	if (r == 0 && length > MAX_ANSWER)
		r = -EMSGSIZE;
	if (r == 0)
		r = read_all(c->go, c->text, length);
	if (r == 0)
		c->text_size = length;
	return r;
}
