/*
 * The supervisor's ear: what the child tells until the exec, or until it is held.
 *
 * Order that must hold: behind SYNC_EXEC a stranger may speak, a container's process that traces the child, so a
 * terminal is taken before that, and a listener once, while the child that was told of it still waits.
 */
#include "util.h"

#include <errno.h>
#include <fcntl.h>
#include <poll.h>
#include <sys/socket.h>

#include "kernel.h"
#include "supervise.h"

/* Take the listener out of the child as soon as it is there, pass it on, and let the child go on. */
static int fetch_listener(struct supervisor *s, int sync, int number)
{
	struct timespec pause = { .tv_nsec = 20000 };
	struct msg_head message = { .type = MSG_LISTENER };
	struct sync_message word = { .type = SYNC_GO };
	CLOSE_AT_END int fd = -1;
	int r;

	for (;;) {
		fd = sys_pidfd_getfd(s->child_pidfd, number);
		if (fd != -EBADF)
			break;
		/* it isn't there yet; or never will be: then the child says so, or has ended */
		if (recv(sync, &word, sizeof(word), MSG_PEEK | MSG_DONTWAIT) >= 0)
			return 0;
		nanosleep(&pause, NULL);
	}
	if (fd < 0)
		return fd == -ESRCH ? 0 : fd;
	r = send_message(CONTROL_FD, &message, sizeof(message), &fd, 1);
	if (r < 0)
		return r;
	word.type = SYNC_GO;
	send_message(sync, &word, sizeof(word), NULL, 0);
	return 0;
}

/* The terminal is kept by its supervisor, or passed on. */
static int take_terminal(struct supervisor *s, int fd)
{
	struct msg_head message = { .type = MSG_TERMINAL };

	s->master = fd;
	return s->context.detached ? send_message(CONTROL_FD, &message, sizeof(message), &fd, 1) : 0;
}

/* Wait for the child's next word. With whoever started a detached process, which nobody else knows of yet, it ends. */
static int wait_for_word(const struct supervisor *s, int sync)
{
	struct pollfd events[2] = { { .fd = sync, .events = POLLIN }, { .fd = CONTROL_FD } };

	while (poll(events, s->context.detached ? 2 : 1, -1) < 0)
		if (errno != EINTR)
			return -errno;
	return events[0].revents ? 0 : -EPIPE;
}

int watch_child(struct supervisor *s, int sync, uint32_t *index, int flags)
{
	uint32_t steps = s->plan.sections[CHILD].count;
	bool executing = false, holds = s->holds;

	for (;;) {
		struct sync_message message = { 0 };
		struct iovec part = { &message, sizeof(message) };
		int fd = -1, r = flags ? 0 : wait_for_word(s, sync);
		size_t count = 1;
		ssize_t size;

		if (r < 0)
			return r;
		size = receive_message(sync, &part, 1, &fd, &count, flags);
		/* It ended with our word to go on unread. The kernel tells that once, before what it said itself. */
		if (size == -ECONNRESET)
			continue;
		if (size < 0)
			return (int)size;
		if (size == 0)
			/* Closed without a word: killed, by the OOM killer for one. */
			return executing && !holds ? 0 : -ECHILD;
		if (message.type == SYNC_FAILED) {
			*index = message.index < steps ? message.index : steps - 1;
			return message.error > 0 ? -message.error : -EIO;
		}
		if (message.type == SYNC_TERMINAL && count && s->master < 0 && !executing)
			r = take_terminal(s, fd);
		else if (count)
			close(fd);
		if (message.type == SYNC_EXEC)
			executing = true;
		if (message.type == SYNC_LISTENER && s->awaits_listener) {
			s->awaits_listener = false;
			r = fetch_listener(s, sync, (int)message.index);
		}
		if (r < 0)
			return r;
		if (message.type == SYNC_HELD && holds)
			return 0;
	}
}
