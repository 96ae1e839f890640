/*
 * The RunHook step: a program in the container's namespaces, with the container's state on its stdin, that the
 * start waits for. Its stderr is the process's, its stdout /dev/null; it starts in the root, as with runc, or,
 * behind a Hold, in the process's working directory. It is killed with the child.
 */
#include "util.h"

#include <errno.h>
#include <poll.h>
#include <signal.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <sys/sysmacros.h>

#include "child.h"
#include "kernel.h"
#include "operations.h"
#include "protocol.h"

/* In the hook's process: execute it, or tell why not. */
static _Noreturn void become_hook(const struct value *v, const struct context *c, int input, int told, pid_t parent)
{
	char *just_path[2] = { (char *)(uintptr_t)v[0].text, NULL };
	int null, error;
	struct stat st;

	if (die_with_parent() < 0 || (parent && getppid() != parent) || dup2(input, 0) < 0 ||
	    (c->root >= 0 && fchdir(c->root) < 0))
		_exit(127);
	null = open("/dev/null", O_WRONLY | O_CLOEXEC | O_NOCTTY | O_NONBLOCK);
	if (null >= 0 && fstat(null, &st) == 0 && S_ISCHR(st.st_mode) && st.st_rdev == makedev(1, 3))
		dup2(null, 1);
	if (!c->umask_set)
		umask(022);
	sys_close_range(3, ~0u, CLOSE_RANGE_CLOEXEC);
	reset_signals();
	execve(v[0].text, v[1].size ? v[1].list : just_path, v[2].list);
	error = errno;
	_exit(write(told, &error, sizeof(error)) < 0 ? 127 : 126);
}

static int wait_for_hook(int pidfd, int timeout_ms)
{
	struct pollfd ended = { .fd = pidfd, .events = POLLIN };
	siginfo_t info = { 0 };
	int r;

	do {
		r = poll(&ended, 1, timeout_ms);
	} while (r < 0 && errno == EINTR);
	if (r <= 0)
		sys_pidfd_send_signal(pidfd, SIGKILL);
	while (waitid(P_PIDFD, (id_t)pidfd, &info, WEXITED | __WALL) < 0 && errno == EINTR)
		;
	if (r <= 0)
		return r < 0 ? -errno : -ETIME;
	return info.si_code == CLD_EXITED && info.si_status == 0 ? 0 : -EPROTO;
}

/* The text as a file to read: it has no bound as a pipe has, so nobody has to read it. */
static int text_file(const struct context *c)
{
	CLOSE_AT_END int fd = memfd_create("state", MFD_CLOEXEC);

	if (fd < 0)
		return -errno;
	if (pwrite(fd, c->text, c->text_size, 0) != (ssize_t)c->text_size)
		return -ENOSPC;
	return take(&fd);
}

int run_hook(const struct value *v, struct context *c)
{
	int told[2], pidfd = -1, error, r;
	pid_t self = c->joins_pid ? 0 : getpid(), child;
	CLOSE_AT_END int input = text_file(c);

	if (input < 0)
		return input;
	if (pipe2(told, O_CLOEXEC | O_NONBLOCK) < 0)
		return -errno;
	CLOSE_AT_END int told_out = told[0];
	CLOSE_AT_END int told_in = told[1];
	/* clone(2), as a filter may answer ENOSYS to clone3(2); the pidfd comes in place of the parent's tid */
	child = (pid_t)checked(syscall(SYS_clone, CLONE_PIDFD | SIGCHLD, 0, &pidfd, 0, 0));
	if (child < 0)
		return child;
	if (child == 0)
		become_hook(v, c, input, told_in, self);
	CLOSE_AT_END int process = pidfd;
	r = wait_for_hook(process, v[3].number ? (int)min_size(v[3].number, INT32_MAX) : -1);
	return read(told_out, &error, sizeof(error)) == sizeof(error) && error > 0 ? -error : r;
}
