/* The daemons that are connected, and what they ask for. A malformed message is answered by silence. */
#include "util.h"

#include <errno.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/ioctl.h>
#include <sys/socket.h>

#include "kernel.h"
#include "supervise.h"

#define INPUT_GAP MAX_DETACH_KEYS /* client_add filters in place and needs this much room before */

union request {
	struct msg_head head;
	struct msg_attach attach;
	struct msg_resize resize;
};

void controls_init(struct supervisor *s)
{
	for (unsigned int i = 0; i < MAX_CONTROLS; i++)
		s->controls[i].fd = -1;
}

static void control_drop(struct supervisor *s, unsigned int index)
{
	close_fd(&s->controls[index].fd);
}

void controls_close(struct supervisor *s)
{
	for (unsigned int i = 0; i < MAX_CONTROLS; i++)
		control_drop(s, i);
}

void control_add(struct supervisor *s, int fd)
{
	for (unsigned int i = 0; i < MAX_CONTROLS; i++) {
		struct epoll_event event = { .events = EPOLLIN, .data.u64 = (uint64_t)TAG_CONTROL << 32 | i };

		if (s->controls[i].fd >= 0)
			continue;
		if (epoll_ctl(s->streams.epoll, EPOLL_CTL_ADD, fd, &event) < 0)
			break;
		s->controls[i].fd = fd;
		return;
	}
	close(fd);
}

void control_accept(struct supervisor *s)
{
	int fd = accept4(s->listener, NULL, NULL, SOCK_CLOEXEC | SOCK_NONBLOCK);

	if (fd >= 0)
		control_add(s, fd);
}

static void control_send(struct supervisor *s, unsigned int index, const void *message, size_t size, const int *fds,
			 size_t count)
{
	/* A daemon whose socket is full doesn't read: it may connect anew. */
	if (send_message(s->controls[index].fd, message, size, fds, count) < 0)
		control_drop(s, index);
}

void control_tell_all(struct supervisor *s, const void *message, size_t size)
{
	for (unsigned int i = 0; i < MAX_CONTROLS; i++)
		if (s->controls[i].fd >= 0)
			control_send(s, i, message, size, NULL, 0);
}

static int resize(struct supervisor *s, const struct msg_resize *m)
{
	struct winsize size = { .ws_row = (unsigned short)m->rows, .ws_col = (unsigned short)m->cols };

	if (s->master < 0 || s->streams.sources[0].fd < 0)
		return -ENOTTY;
	if (m->rows > 65535 || m->cols > 65535)
		return -ERANGE;
	return ioctl(s->master, TIOCSWINSZ, &size) < 0 ? -errno : 0;
}

static void tell_state(struct supervisor *s, unsigned int index, uint32_t id)
{
	struct msg_state state = {
		.head = { .type = MSG_STATE, .id = id },
		.pid = (uint32_t)s->child,
		.supervisor_pid = (uint32_t)getpid(),
		.log_dropped = s->streams.log.dropped,
	};
	CLOSE_AT_END int self = sys_pidfd_open(getpid());
	int fds[2] = { self, s->child_pidfd };

	if (self < 0)
		control_drop(s, index);
	else
		control_send(s, index, &state, sizeof(state), fds, 2);
}

/* Receive a request; input that comes with an ATTACH goes straight behind what stdin's buffer holds. */
static ssize_t receive_request(struct supervisor *s, int fd, union request *request, int *client, int flags)
{
	struct input *input = &s->streams.input;
	size_t at = min_size(input->end + INPUT_GAP, INPUT_BYTES), count = 1;
	struct iovec parts[2] = {
		{ request, sizeof(request->attach) },
		{ input->buffer + at, INPUT_BYTES - at },
	};
	ssize_t size;

	memset(request, 0, sizeof(*request));
	*client = -1;
	size = receive_message(fd, parts, 2, client, &count, flags);
	if (size >= 0 && !count)
		*client = -1;
	return size;
}

/* Takes the client's socket over, or closes it. */
static int attach(struct supervisor *s, const union request *request, size_t size, int client)
{
	int r = -EPROTO;

	if (client < 0)
		return r;
	if (size >= sizeof(request->attach) && size - sizeof(request->attach) == request->attach.initial_size)
		r = client_add(&s->streams, client, &request->attach, request->attach.initial_size);
	if (r < 0)
		close(client);
	return r;
}

int control_receive_attach(struct supervisor *s)
{
	union request request;
	int client;
	ssize_t size = receive_request(s, CONTROL_FD, &request, &client, 0);

	if (size <= 0)
		return size ? (int)size : -EPIPE;
	if (request.head.type != MSG_ATTACH) {
		close_fd(&client);
		return -EPROTO;
	}
	return attach(s, &request, (size_t)size, client);
}

void control_ready(struct supervisor *s, unsigned int index)
{
	struct msg_done done = { .head = { .type = MSG_DONE } };
	union request request;
	int client, r;
	ssize_t size;

	if (s->controls[index].fd < 0)
		return;
	size = receive_request(s, s->controls[index].fd, &request, &client, MSG_DONTWAIT);
	if (size == -EAGAIN)
		return;
	if (size == -EMSGSIZE && request.head.type == MSG_ATTACH) {
		/* its input doesn't fit beside what the process hasn't taken */
		done.head.id = request.head.id;
		done.error = ENOBUFS;
		control_send(s, index, &done, sizeof(done), NULL, 0);
		return;
	}
	if (size < (ssize_t)sizeof(request.head)) {
		close_fd(&client);
		control_drop(s, index);
		return;
	}
	if (request.head.type != MSG_ATTACH)
		close_fd(&client);
	switch (request.head.type) {
	case MSG_ATTACH:
		r = attach(s, &request, (size_t)size, client);
		input_ready(&s->streams);
		break;
	case MSG_RESIZE:
		r = (size_t)size < sizeof(request.resize) ? -EPROTO : resize(s, &request.resize);
		break;
	case MSG_CLOSE_STDIN:
		streams_close_input(&s->streams);
		r = 0;
		break;
	case MSG_QUERY:
		tell_state(s, index, request.head.id);
		return;
	default:
		return; /* of a later release, or nonsense */
	}
	done.head.id = request.head.id;
	done.error = -r;
	if (s->controls[index].fd >= 0)
		control_send(s, index, &done, sizeof(done), NULL, 0);
}
