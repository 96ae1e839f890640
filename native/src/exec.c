/*
 * The last steps of the child: the working directory, the exec, and the small init that may stay behind.
 *
 * Once a system call filter is installed, nothing but execve(2) can be relied upon; prepare_exec does
 * the rest before, called by whichever of Seccomp and Exec comes first.
 *
 * A SetNs step of the child joins a pid namespace by a fork at the very end, once namespaces, capabilities
 * and filter are those of the process: whoever lives there and has CAP_SYS_PTRACE sees every newcomer at once and can trace it,
 * or look through its /proc/PID/root, whatever its dumpable attribute (CVE-2016-9962 and ptrace(2)). A child
 * born there would still be in the host's mount namespace, with all capabilities.
 */
#include "util.h"

#include <limits.h>
#include <signal.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/sysmacros.h>
#include <sys/wait.h>

#include "child.h"
#include "kernel.h"
#include "operations.h"
#include "protocol.h"
#include "root.h"

#define DEFAULT_PATH "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"

int run_chdir(const struct value *v, struct context *c)
{
	char where[PATH_MAX + 16];
	int root = child_root(c);
	long length;

	if (root < 0)
		return root;
	CLOSE_AT_END int dir = v[1].number ? root_make_dir(root, v[0].text, 0755, NULL) :
					       root_open(root, v[0].text, O_PATH | O_DIRECTORY);
	if (dir < 0)
		return dir;
	if (fchdir(dir) < 0)
		return -errno;
	/* Outside of the root the kernel answers "(unreachable)/…" (CVE-2024-21626). */
	length = checked(syscall(SYS_getcwd, where, sizeof(where)));
	if (length < 0)
		return (int)length;
	return where[0] == '/' ? 0 : -EXDEV;
}

/* Without stdin the process reads /dev/null: its own, if it has one, and not the host's. */
static void own_null(struct context *c)
{
	struct stat st;
	int root = child_root(c);

	if (root < 0)
		return;
	CLOSE_AT_END int fd = root_open(root, "dev/null", O_RDWR | O_NOFOLLOW | O_NONBLOCK | O_NOCTTY);
	if (fd >= 0 && fstat(fd, &st) == 0 && S_ISCHR(st.st_mode) && st.st_rdev == makedev(1, 3))
		dup2(fd, 0);
}

int close_others(const struct context *c)
{
	int keep[3] = { c->sync, c->go, c->status }, from = 3 + (int)c->preserved, r = 0;

	for (int i = 0; i < 3; i++)
		for (int j = i + 1; j < 3; j++)
			if (keep[j] < keep[i]) {
				int swapped = keep[i];

				keep[i] = keep[j];
				keep[j] = swapped;
			}
	for (int i = 0; i < 3 && r == 0; i++) {
		if (keep[i] > from)
			r = sys_close_range((unsigned int)from, (unsigned int)keep[i] - 1, 0);
		if (keep[i] >= from)
			from = keep[i] + 1;
	}
	return r < 0 ? r : sys_close_range((unsigned int)from, ~0u, 0);
}

/* Who is split off shows itself to strangers before its exec: it must hold nothing but its own. */
static int leave_nothing(struct context *c)
{
	int r = close_others(c);

	if (r == 0 && madvise(c->born, sizeof(*c->born), MADV_DONTFORK) < 0)
		r = -errno;
	return r;
}

/* Move a descriptor out of the way, to `from` or above. */
static int move_up(int *fd, int from)
{
	int r;

	if (*fd < 0)
		return 0;
	r = fcntl(*fd, F_DUPFD_CLOEXEC, from);
	if (r < 0)
		return -errno;
	*fd = r;
	return 0;
}

int run_preserve(const struct value *v, struct context *c)
{
	int *own[] = { &c->control, &c->sync, &c->go, &c->status };
	size_t first = v[0].number, count = v[1].number - first + 1;
	int from = 3 + (int)count, r = 0;

	for (size_t i = 0; i < ARRAY_SIZE(own) && r == 0; i++)
		r = move_up(own[i], from);
	for (size_t i = 0; i < c->slot_count && r == 0; i++)
		r = move_up(&c->slots[i], from);
	for (size_t i = 0; i < count && r == 0; i++)
		r = dup2(c->slots[first + i], 3 + (int)i) < 0 ? -errno : 0;
	c->preserved = (unsigned int)count;
	return r;
}

int wait_for_go(struct context *c)
{
	struct sync_message go;
	struct iovec part = { &go, sizeof(go) };
	size_t none = 0;
	ssize_t size;

	if (!c->held)
		return 0;
	c->held = false;
	size = receive_message(c->sync, &part, 1, NULL, &none, 0);
	/* the end of the pair means that the supervisor was killed */
	return size == sizeof(go) ? 0 : size < 0 ? (int)size : -EPIPE;
}

/* posix_spawn(3) has reset all signals but those the C library keeps for itself, which it left ignored. */
int reset_signals(void)
{
	static const struct {
		void *handler;
		unsigned long flags;
		void *restorer;
		uint64_t mask;
	} initial;
	uint64_t none = 0;

	for (int signo = 32; signo < 35; signo++)
		syscall(SYS_rt_sigaction, signo, &initial, NULL, sizeof(initial.mask));
	return (int)checked(syscall(SYS_rt_sigprocmask, SIG_SETMASK, &none, NULL, sizeof(none)));
}

int prepare_exec(struct context *c)
{
	struct sync_message message = { .type = SYNC_EXEC };
	int r;

	if (c->exec_ready)
		return 0;
	c->exec_ready = true;
	r = wait_for_go(c);
	if (r < 0)
		return r;
	if (!c->has_stdin)
		own_null(c);
	if (!c->umask_set)
		umask(022);
	if (c->joins_pid)
		r = leave_nothing(c);
	else
		/* Everything is close-on-exec already; this holds against what we can't know of. */
		r = sys_close_range(3 + c->preserved, ~0u, CLOSE_RANGE_CLOEXEC);
	if (r < 0)
		return r;
	r = send_message(c->sync, &message, sizeof(message), NULL, 0);
	return r < 0 ? r : reset_signals();
}

static const char *find_variable(char *const *env, const char *name)
{
	size_t length = strlen(name);

	for (; *env; env++)
		if (!strncmp(*env, name, length) && (*env)[length] == '=')
			return *env + length + 1;
	return NULL;
}

/* What to do with each file that the name may mean: -errno, or 0 when it is the one. */
typedef int attempt(const char *file, char *const *args, char *const *env);

/* As execvpe(3), but an unknown format is reported instead of handed to a shell, and an empty part of
 * PATH isn't the working directory. */
static int search(const char *name, const char *path, attempt *try, char *const *args, char *const *env)
{
	size_t size = strlen(name);
	char candidate[PATH_MAX];
	int result = -ENOENT;

	if (strchr(name, '/'))
		return try(name, args, env);
	if (!path || !*path)
		path = DEFAULT_PATH;
	for (;;) {
		size_t length = strcspn(path, ":");

		if (length && length + 1 + size < sizeof(candidate)) {
			int r;

			memcpy(candidate, path, length);
			candidate[length] = '/';
			memcpy(candidate + length + 1, name, size + 1);
			r = try(candidate, args, env);
			if (r == -EACCES)
				result = r;
			else if (r != -ENOENT && r != -ENOTDIR)
				return r;
		}
		if (!path[length])
			return result;
		path += length + 1;
	}
}

static int execute(const char *file, char *const *args, char *const *env)
{
	execve(file, args, env);
	return -errno;
}

static int look_at(const char *file, char *const *args, char *const *env)
{
	struct stat st;

	(void)args;
	(void)env;
	if (stat(file, &st) < 0)
		return -errno;
	if (!S_ISREG(st.st_mode))
		return -EACCES;
	return (int)checked(syscall(SYS_faccessat2, AT_FDCWD, file, X_OK, AT_EACCESS));
}

int find_program(const char *name, const char *path)
{
	return search(name, path, look_at, NULL, NULL);
}

int split_off(struct context *c)
{
	struct sync_message peeked;
	/* CLONE_PARENT: it is the supervisor that waits for it; CLONE_PARENT_SETTID: and learns its pid */
	pid_t child = (pid_t)checked(
		syscall(SYS_clone, CLONE_PARENT | CLONE_PARENT_SETTID | SIGCHLD, 0, c->born, 0, 0));

	if (child < 0)
		return child;
	if (child)
		_exit(0);
	c->joins_pid = false; /* done */
	die_with_supervisor(c);
	/* if the supervisor was killed before that, the signal never comes */
	if (recv(c->sync, &peeked, sizeof(peeked), MSG_PEEK | MSG_DONTWAIT) == 0)
		_exit(127);
	if ((c->wants_terminal || c->detached) && setsid() < 0)
		return -errno;
	if (c->wants_terminal && ioctl(0, TIOCSCTTY, 0) < 0)
		return -errno;
	return 0;
}

/* Process 1 of the container: reap what is orphaned, pass signals on, end as the child does. */
static _Noreturn void init_loop(pid_t child)
{
	sigset_t all;

	sigfillset(&all);
	for (;;) {
		int signo = sigwaitinfo(&all, NULL);

		if (signo < 0)
			continue;
		if (signo != SIGCHLD) {
			kill(child, signo);
			continue;
		}
		for (;;) {
			int status;
			pid_t pid = waitpid(-1, &status, WNOHANG);

			if (pid <= 0)
				break;
			if (pid == child)
				_exit(WIFEXITED(status) ? WEXITSTATUS(status) : 128 + WTERMSIG(status));
		}
	}
}

int become_init(struct context *c)
{
	sigset_t all, before;
	int gate[2];
	pid_t child;
	char none;

	(void)c;
	sigfillset(&all);
	sigprocmask(SIG_SETMASK, &all, &before);
	if (pipe2(gate, O_CLOEXEC) < 0)
		return -errno;
	/* not clone3(2): the filter is installed already, and Docker's default policy answers ENOSYS to it */
	child = (pid_t)checked(syscall(SYS_clone, SIGCHLD, 0, 0, 0, 0));
	if (child < 0)
		return child;
	if (child) {
		/* Holding a pipe or the terminal open would hide their end from the supervisor; and what else is
		 * open is nothing for the container to find in /proc/1/fd, so the child waits for this. */
		sys_close_range(0, ~0u, 0);
		init_loop(child);
	}
	close(gate[1]);
	while (read(gate[0], &none, 1) < 0 && errno == EINTR)
		;
	/* A group of its own, in the foreground, so that what is typed signals the child and not us. */
	setpgid(0, 0);
	tcsetpgrp(0, getpid());
	die_with_parent();
	sigprocmask(SIG_SETMASK, &before, NULL);
	return 0;
}

int run_exec(const struct value *v, struct context *c)
{
	char **env = v[1].list;
	size_t count = v[1].size;
	int r;

	r = prepare_exec(c);
	if (r == 0 && c->joins_pid)
		r = split_off(c);
	if (r == 0 && v[2].number)
		r = become_init(c);
	if (r < 0)
		return r;
	for (uint32_t i = 0; i < c->identity.env_count; i++)
		env[count++] = c->identity.env[i]; /* plan.c left room for MAX_ENV_ADDITIONS */
	env[count] = NULL;
	return search(v[0].list[0], find_variable(env, "PATH"), execute, v[0].list, env);
}
