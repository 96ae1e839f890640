/*
 * bin/cove-runtime's way in: hands the call to a planner, if one runs, and is its hands here; else starts Python.
 *
 * A planner (cove/ociruntime/planner.py) is a Python process that has everything imported. It decides; what has
 * to be a child of this process's caller, or has its limits, cgroup and session, is spawned here: cove-init and
 * the hooks. So this parses no arguments and knows no container.
 *
 *     connect ◀──READY── planner; call, descriptors 0-2, cwd ──▶ ◀──SPAWN, HOOK, WAIT, FOREGROUND── ... ◀──EXIT──
 *        └── nobody there, not ready in time, or FALLBACK ──▶ execve(2) of Python, which leaves a planner behind
 *
 * The call is sent to one that is ready: a planner that hangs, or ends at that moment, costs time and nothing else.
 * The socket's name is a hash of what a planner inherits and a call depends on: whoever differs in it has another one.
 */
#include <errno.h>
#include <fcntl.h>
#include <poll.h>
#include <signal.h>
#include <stdbool.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/un.h>
#include <sys/wait.h>
#include <unistd.h>

enum { VERSION = 2, READY_MS = 3000, MAX_TEXT = 256 * 1024, MAX_STRINGS = 8192, LOW = 16 };
enum message { FALLBACK = 1, SPAWN, HOOK, WAIT, HOLD_SIGNALS, FOREGROUND, EXIT, READY };

extern char **environ;
static char root[4096];

/* What the planner sends; strings follow: arguments, then environment. */
struct order {
	uint32_t type;
	int32_t value;
	uint32_t args;
	uint32_t env;
};

struct call {
	uint32_t version;
	uint32_t umask;
	uint32_t args;
	uint32_t env;
};

static _Noreturn void fail(const char *what)
{
	fprintf(stderr, "cove-runtime: %s: %s\n", what, strerror(errno));
	_exit(1);
}

/* --- without a planner -------------------------------------------------------------------- */

static _Noreturn void run_python(int argc, char **argv, const char *planner)
{
	static char python[sizeof(root) + 64], boot[sizeof(root) + 64];
	char **args = calloc((size_t)argc + 8, sizeof(*args));

	snprintf(python, sizeof(python), "%s/.venv/bin/python", root);
	snprintf(boot, sizeof(boot), "%s/cove/ociruntime/boot.py", root);
	if (!args || (planner && setenv("COVE_RUNTIME_PLANNER", planner, 1) < 0))
		fail("memory");
	memcpy(args, (char *[]){ python, "-I", "-S", "-X", "utf8", boot }, 6 * sizeof(*args));
	memcpy(args + 6, argv + 1, (size_t)argc * sizeof(*args));
	execv(python, args);
	fail(python);
}

/* --- finding it --------------------------------------------------------------------------- */

static void mix(uint64_t *hash, const void *data, size_t size)
{
	for (const unsigned char *at = data; size--; at++)
		*hash = (*hash ^ *at) * 0x100000001b3u; /* FNV-1a */
}

static void mix_inode(uint64_t *hash, const char *path)
{
	struct stat info = { 0 };

	if (stat(path, &info) == 0) {
		mix(hash, &info.st_dev, sizeof(info.st_dev));
		mix(hash, &info.st_ino, sizeof(info.st_ino));
	}
}

static size_t read_file(const char *path, char *text, size_t size)
{
	int fd = open(path, O_RDONLY | O_CLOEXEC);
	ssize_t got = fd < 0 ? 0 : read(fd, text, size - 1);

	if (fd >= 0)
		close(fd);
	text[got > 0 ? got : 0] = '\0';
	return got > 0 ? (size_t)got : 0;
}

/* Identity, capabilities, filters and processors; what else is in there changes all the time. */
static void mix_status(uint64_t *hash)
{
	static const char *const wanted[] = { "Uid:", "Gid:", "Groups:", "Cap", "NoNewPrivs:", "Seccomp", "Cpus_allowed:",
					      "Mems_allowed:" };
	char text[8192];

	read_file("/proc/self/status", text, sizeof(text));
	for (char *save = NULL, *line = strtok_r(text, "\n", &save); line; line = strtok_r(NULL, "\n", &save))
		for (size_t i = 0; i < sizeof(wanted) / sizeof(*wanted); i++)
			if (!strncmp(line, wanted[i], strlen(wanted[i])))
				mix(hash, line, strlen(line));
}

static bool find_socket(char *path, size_t size)
{
	static const char *const namespaces[] = { "mnt", "pid", "user", "net", "cgroup", "uts", "ipc", "time" };
	const char *directory = getenv("XDG_RUNTIME_DIR");
	uint64_t hash = 0xcbf29ce484222325u;
	char text[4096];

	if (geteuid() == 0)
		directory = "/run";
	else if (!directory || !*directory)
		return false;
	for (size_t i = 0; i < sizeof(namespaces) / sizeof(*namespaces); i++) {
		snprintf(text, sizeof(text), "/proc/self/ns/%s", namespaces[i]);
		mix_inode(&hash, text);
	}
	mix_inode(&hash, "/");
	mix(&hash, root, strlen(root));
	mix_status(&hash);
	mix(&hash, text, read_file("/proc/self/limits", text, sizeof(text)));
	mix(&hash, text, read_file("/proc/self/oom_score_adj", text, sizeof(text)));
	mix(&hash, text, read_file("/proc/self/attr/current", text, sizeof(text)));
	return snprintf(path, size, "%s/cove-planner/%016llx", directory, (unsigned long long)hash) < (int)size;
}

static int connect_planner(const char *path)
{
	struct sockaddr_un address = { .sun_family = AF_UNIX };
	struct ucred peer = { .uid = (uid_t)-1 };
	struct timeval limit = { .tv_sec = 1 }; /* for a connect(2) that waits for a place in the backlog */
	socklen_t length = sizeof(peer);
	int fd = socket(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC, 0), high;

	strncpy(address.sun_path, path, sizeof(address.sun_path) - 1);
	if (fd < 0)
		return -1;
	high = fcntl(fd, F_DUPFD_CLOEXEC, LOW);
	close(fd);
	if (high < 0 || setsockopt(high, SOL_SOCKET, SO_SNDTIMEO, &limit, sizeof(limit)) < 0 ||
	    connect(high, (struct sockaddr *)&address, sizeof(address)) < 0)
		return -1;
	/* the directory is this user's alone, and so has to be whoever listens */
	if (getsockopt(high, SOL_SOCKET, SO_PEERCRED, &peer, &length) < 0 || peer.uid != geteuid())
		return -1;
	return high;
}

/* --- messages ----------------------------------------------------------------------------- */

static int write_strings(int fd, char **strings, uint32_t *count)
{
	for (*count = 0; strings[*count]; ++*count) {
		size_t length = strlen(strings[*count]) + 1;

		if (write(fd, strings[*count], length) != (ssize_t)length)
			return -1;
	}
	return 0;
}

static int send_call(int planner, char **argv)
{
	struct call call = { .version = VERSION };
	int fds[5] = { 0, 1, 2, open(".", O_PATH | O_DIRECTORY | O_CLOEXEC), memfd_create("call", MFD_CLOEXEC) };
	union {
		char space[CMSG_SPACE(sizeof(fds))];
		struct cmsghdr align;
	} control = { 0 };
	struct iovec part = { &call, sizeof(call) };
	struct msghdr message = { .msg_iov = &part, .msg_iovlen = 1, .msg_control = &control,
				  .msg_controllen = sizeof(control) };
	struct cmsghdr *rights = CMSG_FIRSTHDR(&message);
	mode_t mask = umask(0);

	umask(mask);
	call.umask = mask;
	if (fds[3] < 0 || fds[4] < 0 || write_strings(fds[4], argv, &call.args) < 0 ||
	    write_strings(fds[4], environ, &call.env) < 0)
		return -1;
	rights->cmsg_level = SOL_SOCKET;
	rights->cmsg_type = SCM_RIGHTS;
	rights->cmsg_len = CMSG_LEN(sizeof(fds));
	memcpy(CMSG_DATA(rights), fds, sizeof(fds));
	if (sendmsg(planner, &message, MSG_NOSIGNAL) < 0)
		return -1;
	close(fds[3]);
	close(fds[4]);
	return 0;
}

struct received {
	struct order order;
	char text[MAX_TEXT];
	char *strings[MAX_STRINGS + 2]; /* arguments, NULL, environment, NULL */
	int fds[3];
};

static bool receive(int planner, struct received *r)
{
	union {
		char space[CMSG_SPACE(sizeof(r->fds))];
		struct cmsghdr align;
	} control = { 0 };
	struct iovec parts[2] = { { &r->order, sizeof(r->order) }, { r->text, sizeof(r->text) - 1 } };
	struct msghdr message = { .msg_iov = parts, .msg_iovlen = 2, .msg_control = &control,
				  .msg_controllen = sizeof(control) };
	ssize_t got = recvmsg(planner, &message, MSG_CMSG_CLOEXEC);
	struct cmsghdr *rights = CMSG_FIRSTHDR(&message);
	char *at = r->text, *end;
	uint32_t total, slot = 0;

	if (got < (ssize_t)sizeof(r->order) || message.msg_flags & (MSG_TRUNC | MSG_CTRUNC))
		return false;
	memset(r->fds, -1, sizeof(r->fds));
	if (rights && rights->cmsg_level == SOL_SOCKET && rights->cmsg_type == SCM_RIGHTS)
		memcpy(r->fds, CMSG_DATA(rights), rights->cmsg_len - CMSG_LEN(0));
	for (int i = 0; i < 3; i++) {
		int low = r->fds[i];

		if (low >= 0 && low < LOW) { /* where the child's own descriptors go */
			r->fds[i] = fcntl(low, F_DUPFD_CLOEXEC, LOW);
			close(low);
		}
	}
	end = r->text + (got - (ssize_t)sizeof(r->order));
	*end = '\0';
	total = r->order.args + r->order.env;
	if (total > MAX_STRINGS)
		return false;
	for (uint32_t i = 0; i < total; i++) {
		if (at >= end)
			return false;
		if (i == r->order.args)
			r->strings[slot++] = NULL;
		r->strings[slot++] = at;
		at += strlen(at) + 1;
	}
	if (!r->order.env)
		r->strings[slot++] = NULL;
	r->strings[slot] = NULL;
	return true;
}

static void answer(int planner, int32_t value)
{
	if (send(planner, &value, sizeof(value), MSG_NOSIGNAL) < 0)
		fail("the planner is gone");
}

/* --- what is done here -------------------------------------------------------------------- */

static void reset_signals(bool blocked)
{
	sigset_t set;

	for (int signo = 1; signo < 65; signo++)
		signal(signo, SIG_DFL);
	if (blocked)
		sigfillset(&set);
	else
		sigemptyset(&set);
	sigprocmask(SIG_SETMASK, &set, NULL);
}

/* cove-init: descriptor 0 of the order is the program, 1 the control connection. A hook: 0 its standard input,
 * 1 its output, 2 its working directory. The pid, or -errno. */
static int32_t spawn(struct received *r)
{
	bool hook = r->order.type == HOOK;
	char **args = r->strings, **env = r->strings + r->order.args + 1;
	volatile int error = 0;
	pid_t pid;

	if (r->order.args < 1)
		return -EINVAL;
	pid = vfork();
	if (pid == 0) {
		reset_signals(!hook);
		if (!hook) {
			if (dup2(r->fds[1], 3) == 3)
				syscall(SYS_execveat, r->fds[0], "", args, env, 0x1000 /* AT_EMPTY_PATH */);
		} else if (fchdir(r->fds[2]) == 0 && dup2(r->fds[0], 0) == 0 && dup2(r->fds[1], 1) == 1 &&
			   dup2(r->fds[1], 2) == 2) {
			syscall(SYS_close_range, 3u, ~0u, 4u /* CLOSE_RANGE_CLOEXEC */); /* what the caller left open */
			execve(args[0], args + 1, env);
		}
		error = errno;
		_exit(127);
	}
	for (int i = 0; i < 3; i++)
		if (r->fds[i] >= 0)
			close(r->fds[i]);
	if (pid > 0 && error) {
		waitpid(pid, NULL, 0);
		return -error;
	}
	return pid < 0 ? -errno : pid;
}

static void forwarded(sigset_t *set)
{
	sigfillset(set);
	for (size_t i = 0; i < 5; i++)
		sigdelset(set, (int[]){ SIGURG, SIGILL, SIGBUS, SIGFPE, SIGSEGV }[i]);
}

static int32_t wait_for(pid_t pid)
{
	int status;

	while (waitpid(pid, &status, 0) < 0)
		if (errno != EINTR)
			return -errno;
	return status;
}

/* Until the process ends, every signal that comes goes to it. They have been held back since HOLD_SIGNALS. */
static int32_t wait_foreground(pid_t pid)
{
	sigset_t set;
	int status;

	forwarded(&set);
	for (;;) {
		siginfo_t info;
		pid_t ended = waitpid(pid, &status, WNOHANG);

		if (ended != 0)
			return ended < 0 ? -errno : status;
		if (sigwaitinfo(&set, &info) > 0 && info.si_signo != SIGCHLD)
			kill(pid, info.si_signo);
	}
}

int main(int argc, char **argv)
{
	static struct received r;
	const char *warm = getenv("COVE_RUNTIME_WARM");
	char path[sizeof(((struct sockaddr_un *)0)->sun_path)];
	ssize_t length = readlink("/proc/self/exe", root, sizeof(root) - 1);
	sigset_t set;
	int planner, null;

	/* what the caller has closed would be whatever is opened next */
	do {
		null = open("/dev/null", O_RDWR);
	} while (null >= 0 && null <= 2);
	if (null < 0)
		fail("/dev/null");
	close(null);
	signal(SIGCHLD, SIG_DFL); /* ignored, as some callers leave it, it would take the statuses away */
	for (int i = 0; length > 0 && i < 3; i++) { /* ROOT/build/native/cove-runtime */
		while (length > 0 && root[length - 1] != '/')
			length--;
		root[--length] = '\0';
	}
	if (length <= 0)
		fail("/proc/self/exe");
	if ((warm && !strcmp(warm, "0")) || !find_socket(path, sizeof(path)))
		run_python(argc, argv, NULL);
	planner = connect_planner(path);
	if (planner < 0 || poll(&(struct pollfd){ planner, POLLIN, 0 }, 1, READY_MS) != 1 || !receive(planner, &r) ||
	    r.order.type != READY)
		run_python(argc, argv, path);
	if (send_call(planner, argv + 1) < 0)
		run_python(argc, argv, NULL);
	while (receive(planner, &r)) {
		switch (r.order.type) {
		case FALLBACK:
			close(planner);
			run_python(argc, argv, path);
		case SPAWN:
		case HOOK:
			answer(planner, spawn(&r));
			break;
		case WAIT:
			answer(planner, wait_for(r.order.value));
			break;
		case HOLD_SIGNALS:
			forwarded(&set);
			sigprocmask(SIG_BLOCK, &set, NULL);
			answer(planner, 0);
			break;
		case FOREGROUND:
			answer(planner, wait_foreground(r.order.value));
			break;
		case EXIT:
			return r.order.value;
		}
	}
	fprintf(stderr, "cove-runtime: the planner ended; `cove-runtime delete --force` removes a half-made container\n");
	return 1;
}
