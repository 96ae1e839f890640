#include "util.h"

#include "protocol.h"

#include <errno.h>
#include <string.h>
#include <sys/socket.h>

int send_message(int socket, const void *data, size_t size, const int *fds, size_t fd_count)
{
	union {
		struct cmsghdr align;
		char bytes[CMSG_SPACE(sizeof(int) * 4)];
	} control = { 0 };
	/* sendmsg(2) only reads it */
	struct iovec part = { .iov_base = (void *)(uintptr_t)data, .iov_len = size };
	struct msghdr message = { .msg_iov = &part, .msg_iovlen = 1 };
	ssize_t r;

	if (fd_count > 4)
		return -EINVAL;
	if (fd_count) {
		struct cmsghdr *c = &control.align;

		message.msg_control = control.bytes;
		message.msg_controllen = CMSG_SPACE(sizeof(int) * fd_count);
		c->cmsg_level = SOL_SOCKET;
		c->cmsg_type = SCM_RIGHTS;
		c->cmsg_len = CMSG_LEN(sizeof(int) * fd_count);
		memcpy(CMSG_DATA(c), fds, sizeof(int) * fd_count);
	}
	do {
		r = sendmsg(socket, &message, MSG_NOSIGNAL);
	} while (r < 0 && errno == EINTR);
	if (r < 0)
		return -errno;
	return (size_t)r == size ? 0 : -EMSGSIZE;
}

ssize_t receive_message(int socket, struct iovec *parts, size_t count, int *fds, size_t *fd_count, int flags)
{
	union {
		struct cmsghdr align;
		char bytes[CMSG_SPACE(sizeof(int) * MAX_MESSAGE_FDS)];
	} control;
	struct msghdr message = {
		.msg_iov = parts,
		.msg_iovlen = count,
		.msg_control = control.bytes,
		.msg_controllen = sizeof(control.bytes),
	};
	size_t room = *fd_count, came = 0;
	bool fits = true;
	ssize_t r;

	*fd_count = 0;
	do {
		r = recvmsg(socket, &message, flags | MSG_CMSG_CLOEXEC);
	} while (r < 0 && errno == EINTR);
	if (r < 0)
		return -errno;
	for (struct cmsghdr *c = CMSG_FIRSTHDR(&message); c; c = CMSG_NXTHDR(&message, c)) {
		size_t n;

		if (c->cmsg_level != SOL_SOCKET || c->cmsg_type != SCM_RIGHTS)
			continue;
		n = (c->cmsg_len - CMSG_LEN(0)) / sizeof(int);
		for (size_t i = 0; i < n; i++) {
			int fd;

			memcpy(&fd, CMSG_DATA(c) + i * sizeof(int), sizeof(int));
			if (came < room) {
				fds[came++] = fd;
			} else {
				close(fd);
				fits = false;
			}
		}
	}
	if (!fits || (message.msg_flags & (MSG_TRUNC | MSG_CTRUNC))) {
		while (came)
			close(fds[--came]);
		return -EMSGSIZE;
	}
	*fd_count = came;
	return r;
}
