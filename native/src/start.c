/*
 * From the daemon's first message to the exec.
 *
 *     receive, check ── before ── clone ──┬─ parent ── go ──▶ wait for the exec ── STARTED
 *                                         └─ child: its steps, at the same time; it waits for go before
 *                                            a cgroup namespace and before the exec
 *
 * A failure anywhere kills the child, runs the exit steps, and is told by section, index and errno.
 * After the check nothing is allocated. The child tells its failures over a socket pair that the exec
 * closes; before the exec it says so, since a child that is killed closes the pair too.
 */
#include "util.h"

#include <errno.h>
#include <fcntl.h>
#include <signal.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/socket.h>
#include <sys/wait.h>

#include "child.h"
#include "kernel.h"
#include "supervise.h"

#ifndef P_PIDFD
#define P_PIDFD 3
#endif

/* Both ends of the child's standard streams, and of the pair to talk over; -1 where there is none. */
struct ends {
	int in[2], out[2], err[2], sync[2];
};

static void reap(idtype_t type, id_t id)
{
	while (waitid(type, id, NULL, WEXITED | __WALL) < 0 && errno == EINTR)
		;
}

static int fail(struct supervisor *s, enum section section, uint32_t index, int error)
{
	struct msg_failed message = {
		.head = { .type = MSG_FAILED },
		.section = section,
		.index = index,
		.error = -error,
	};

	if (s->child > 0) {
		sys_pidfd_send_signal(s->child_pidfd, SIGKILL);
		reap(P_PIDFD, (id_t)s->child_pidfd);
		/* and whom it has split off: from now on nobody else can be */
		if (s->context.born && *s->context.born > 0) {
			kill(*s->context.born, SIGKILL);
			reap(P_PID, (id_t)*s->context.born);
		}
	}
	run_exit_steps(s, true);
	run_exit_steps(s, false);
	send_message(CONTROL_FD, &message, sizeof(message), NULL, 0);
	return -1;
}

static int refuse_plan(const struct refusal *why)
{
	struct {
		struct msg_failed failed;
		char reason[128];
	} message = { .failed = { .head = { .type = MSG_REFUSED }, .section = why->section, .index = why->index } };
	size_t length = min_size(strlen(why->reason), sizeof(message.reason));

	memcpy(message.reason, why->reason, length);
	send_message(CONTROL_FD, &message, sizeof(message.failed) + length, NULL, 0);
	return -1;
}

static int refuse(const char *reason)
{
	return refuse_plan(&(struct refusal){ .section = CLONE, .reason = reason });
}

static void *take_memory(size_t size)
{
	void *p = mmap(NULL, size, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);

	return p == MAP_FAILED ? NULL : p;
}

/* Decode the plan, and keep a copy of its exit section for the time when the rest is gone. */
static int read_plan(struct supervisor *s, int memory)
{
	struct refusal why = { .reason = "" };
	struct arena arena;
	size_t size = s->setup.plan_size, keep;
	char *kept;

	if (!size || size > PLAN_MAX)
		return refuse("a plan has at most 16 MiB");
	s->plan_memory = mmap(NULL, size, PROT_READ, MAP_PRIVATE | MAP_POPULATE, memory, 0);
	if (s->plan_memory == MAP_FAILED)
		return refuse("the plan can't be mapped");
	s->plan_memory_size = size;
	/* behind the arena there is room for the daemon's answer to ResolveUser */
	s->arena_size = plan_arena_size(size) + MAX_ANSWER;
	s->arena_memory = take_memory(s->arena_size);
	if (!s->arena_memory)
		return refuse("there is no memory for the plan");
	arena = (struct arena){ s->arena_memory, (char *)s->arena_memory + plan_arena_size(size) };
	s->context.answer = arena.end;
	if (plan_decode(s->plan_memory, size, s->setup.slots, &arena, &s->plan, &why) < 0)
		return refuse_plan(&why);

	keep = s->plan.exit_size + plan_arena_size(s->plan.exit_size);
	kept = take_memory(keep);
	if (!kept)
		return refuse("there is no memory for the plan");
	memcpy(kept, s->plan.exit_wire, s->plan.exit_size);
	arena = (struct arena){ kept + s->plan.exit_size, kept + keep };
	if (plan_decode_section(kept, s->plan.exit_size, s->plan.sections[EXIT].count, EXIT, s->setup.slots, &arena,
				&s->exit_steps, &why) < 0)
		return refuse_plan(&why);
	return 0;
}

static bool is_terminal(const struct step *step)
{
	return step->operation->kind == TERMINAL;
}

static bool splits_off(const struct step *step)
{
	return step->operation->kind == SET_NS && (step->values[1].number & CLONE_NEWPID);
}

static bool mounts_proc(const struct step *step)
{
	return step->operation->kind == MOUNT_IN && !strcmp(step->values[0].text, "proc");
}

static bool has_step(const struct plan *plan, bool (*is_it)(const struct step *step))
{
	const struct steps *child = &plan->sections[CHILD];

	for (uint32_t i = 0; i < child->count; i++)
		if (is_it(&child->steps[i]))
			return true;
	return false;
}

int receive_start(struct supervisor *s)
{
	struct iovec part = { &s->setup, sizeof(s->setup) };
	int fds[MAX_MESSAGE_FDS];
	size_t count = MAX_MESSAGE_FDS, fixed;
	ssize_t size = receive_message(CONTROL_FD, &part, 1, fds, &count, 0);

	if (size == 0 || size == -ECONNRESET)
		return -1; /* the daemon is gone, and nobody else wants to know */
	if (size != sizeof(s->setup) || s->setup.head.type != MSG_START)
		return refuse("the first message must be START");
	if (s->setup.log_driver > LOG_JSON || s->setup.log_max_files > 1000)
		return refuse("the log's driver is unknown, or it has more than 1000 files");
	fixed = s->setup.log_driver == LOG_NONE ? 3 : 4;
	if (s->setup.slots > MAX_SLOTS || count != fixed + s->setup.slots)
		return refuse("START came with another number of descriptors than it says");

	CLOSE_AT_END int memory = fds[0];
	s->state_dir = fds[1];
	s->listener = fds[2];
	s->streams.log.driver = (enum log_driver)s->setup.log_driver;
	s->streams.log.dir = fixed == 4 ? fds[3] : -1;
	s->streams.log.max_bytes = s->setup.log_max_bytes;
	s->streams.log.max_files = s->setup.log_max_files;
	s->streams.terminal = s->setup.terminal;
	s->streams.stdin_once = s->setup.stdin_once;
	for (uint32_t i = 0; i < s->setup.slots; i++)
		s->context.slots[i] = fds[fixed + i];
	if (read_plan(s, memory) < 0)
		return -1;
	if (has_step(&s->plan, is_terminal) != !!s->setup.terminal)
		return refuse("a terminal is asked for by the plan or by the streams, but not by both");
	for (uint32_t i = 0; i < s->setup.attaches; i++) {
		int r = control_receive_attach(s);

		if (r == -EPIPE)
			return -1;
		if (r < 0)
			return refuse("a client can't be attached: at most 64, and 32 KiB of input");
	}
	return 0;
}

void run_exit_steps(struct supervisor *s, bool first)
{
	for (uint32_t i = 0; i < s->exit_steps.count; i++) {
		const struct step *step = &s->exit_steps.steps[i];

		/* The others still have to be undone; what stays is found by the daemon's reconciliation. */
		if (step->operation->first == first)
			step->operation->run(step->values, &s->context);
	}
}

static int make_pipe(int pipe_ends[2], int ours)
{
	if (pipe2(pipe_ends, O_CLOEXEC) < 0)
		return -errno;
	return fcntl(pipe_ends[ours], F_SETFL, O_NONBLOCK) < 0 ? -errno : 0;
}

static int make_ends(struct supervisor *s, struct ends *ends)
{
	int r = 0;

	if (socketpair(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC, 0, ends->sync) < 0)
		return -errno;
	if (s->setup.terminal)
		return 0;
	if (s->setup.has_stdin)
		r = make_pipe(ends->in, 1);
	if (r == 0)
		r = make_pipe(ends->out, 0);
	if (r == 0)
		r = make_pipe(ends->err, 0);
	return r;
}

static int child_streams(const struct ends *ends)
{
	/* The supervisor's own 0, 1 and 2 are /dev/null, so none of the ends is one of these. */
	if ((ends->in[0] >= 0 && dup2(ends->in[0], 0) < 0) || (ends->out[1] >= 0 && dup2(ends->out[1], 1) < 0) ||
	    (ends->err[1] >= 0 && dup2(ends->err[1], 2) < 0))
		return -errno;
	return 0;
}

static int run_child(struct supervisor *s, const struct ends *ends)
{
	struct context *c = &s->context;
	struct sync_message peeked;
	int r = die_with_parent();

	if (r < 0)
		return r;
	/* If the supervisor was killed before that, the signal never comes; the pair tells. */
	if (recv(ends->sync[1], &peeked, sizeof(peeked), MSG_PEEK | MSG_DONTWAIT) == 0)
		return -EPIPE;
	r = child_streams(ends);
	return r < 0 ? r : run_steps(&s->plan.sections[CHILD], c);
}

static _Noreturn void child_main(struct supervisor *s, struct ends *ends)
{
	struct sync_message message = { .type = SYNC_FAILED };

	close(ends->sync[0]);
	s->context.sync = ends->sync[1];
	s->context.control = CONTROL_FD;
	s->context.has_stdin = ends->in[0] >= 0;
	s->context.held = s->plan.sections[PARENT].count;
	message.error = -run_child(s, ends);
	message.index = s->context.index;
	send_message(ends->sync[1], &message, sizeof(message), NULL, 0);
	_exit(127);
}

/* Clone; in the child it doesn't return. */
static int clone_child(struct supervisor *s, struct ends *ends)
{
	struct clone_args args = { .flags = s->plan.clone_flags | CLONE_PIDFD, .exit_signal = SIGCHLD };
	int pidfd = -1;
	pid_t pid;
	CLOSE_AT_END int cgroup = -1;

	if (s->plan.cgroup_path[0]) {
		cgroup = open(s->plan.cgroup_path, O_PATH | O_DIRECTORY | O_CLOEXEC);
		if (cgroup < 0)
			return -errno;
		args.flags |= CLONE_INTO_CGROUP;
		args.cgroup = (uint64_t)cgroup;
	}
	if (has_step(&s->plan, splits_off)) {
		void *p = mmap(NULL, sizeof(pid_t), PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);

		if (p == MAP_FAILED)
			return -errno;
		s->context.born = p;
		s->context.wants_proc = has_step(&s->plan, mounts_proc);
	}
	args.pidfd = (uintptr_t)&pidfd;
	pid = sys_clone3(&args);
	if (pid < 0)
		return pid;
	if (pid == 0)
		child_main(s, ends);
	s->child = pid;
	s->child_pidfd = pidfd;
	s->context.child = pid;
	return 0;
}

static void let_plan_go(struct supervisor *s)
{
	munmap(s->plan_memory, s->plan_memory_size);
	munmap(s->arena_memory, s->arena_size);
	for (uint32_t i = 0; i < s->setup.slots; i++)
		close_fd(&s->context.slots[i]);
}

/* Listen to the child until the exec. Returns 0, or the child's own failure with its step's index.
 * With MSG_DONTWAIT: -EAGAIN when it hasn't failed yet. */
static int wait_for_exec(struct supervisor *s, int sync, uint32_t *index, int flags)
{
	uint32_t steps = s->plan.sections[CHILD].count;
	bool executing = false;

	for (;;) {
		struct sync_message message = { 0 };
		struct iovec part = { &message, sizeof(message) };
		int fd = -1;
		size_t count = 1;
		ssize_t size = receive_message(sync, &part, 1, &fd, &count, flags);

		/* It ended with our word to go on unread. The kernel tells that once, before what it said itself. */
		if (size == -ECONNRESET)
			continue;
		if (size < 0)
			return (int)size;
		if (size == 0)
			/* Closed without a word: killed, by the OOM killer for one. */
			return executing ? 0 : -ECHILD;
		if (message.type == SYNC_FAILED) {
			*index = message.index < steps ? message.index : steps - 1;
			return message.error > 0 ? -message.error : -EIO;
		}
		/* Behind SYNC_EXEC it may be a stranger who speaks: a container's process that traces the child. */
		if (message.type == SYNC_TERMINAL && count && s->master < 0 && !executing)
			s->master = fd;
		else if (count)
			close(fd);
		if (message.type == SYNC_EXEC)
			executing = true;
	}
}

/* After the exec: if the child has split a process off, that one is ours from now on. */
static int take_over(struct supervisor *s)
{
	pid_t pid = s->context.born ? *s->context.born : 0;
	int pidfd;

	if (pid <= 0)
		return 0;
	pidfd = sys_pidfd_open(pid);
	if (pidfd < 0)
		return pidfd;
	reap(P_PIDFD, (id_t)s->child_pidfd);
	close(s->child_pidfd);
	s->child = pid;
	s->child_pidfd = pidfd;
	munmap(s->context.born, sizeof(pid_t));
	s->context.born = NULL;
	return 0;
}

static int open_streams(struct supervisor *s, struct ends *ends)
{
	int in = -1;

	if (s->master < 0) {
		streams_open(&s->streams, take(&ends->in[1]), take(&ends->out[0]), take(&ends->err[0]));
		return 0;
	}
	if (fcntl(s->master, F_SETFL, O_NONBLOCK) < 0)
		return -errno;
	if (s->setup.has_stdin) {
		in = fcntl(s->master, F_DUPFD_CLOEXEC, 3);
		if (in < 0)
			return -errno;
	}
	streams_open(&s->streams, in, s->master, -1);
	return 0;
}

static void close_ends(struct ends *ends)
{
	int *all[] = { ends->in, ends->out, ends->err, ends->sync };

	for (size_t i = 0; i < ARRAY_SIZE(all); i++) {
		close_fd(&all[i][0]);
		close_fd(&all[i][1]);
	}
}

int start_process(struct supervisor *s)
{
	struct ends ends = { { -1, -1 }, { -1, -1 }, { -1, -1 }, { -1, -1 } };
	struct sync_message go = { .type = SYNC_GO };
	struct msg_started started = { .head = { .type = MSG_STARTED } };
	uint32_t index = 0;
	int r;

	r = run_steps(&s->plan.sections[BEFORE], &s->context);
	if (r < 0)
		return fail(s, BEFORE, s->context.index, r);
	r = make_ends(s, &ends);
	if (r == 0)
		r = clone_child(s, &ends);
	if (r < 0) {
		close_ends(&ends);
		return fail(s, CLONE, 0, r);
	}
	close_fd(&ends.in[0]);
	close_fd(&ends.out[1]);
	close_fd(&ends.err[1]);
	close_fd(&ends.sync[1]);

	if (s->plan.sections[PARENT].count) {
		r = run_steps(&s->plan.sections[PARENT], &s->context);
		if (r < 0) {
			/* A child that failed meanwhile is the cause: it has ended, and can't be put anywhere. */
			int cause = wait_for_exec(s, ends.sync[0], &index, MSG_DONTWAIT);

			close_ends(&ends);
			return cause < 0 && cause != -EAGAIN ? fail(s, CHILD, index, cause) :
							       fail(s, PARENT, s->context.index, r);
		}
		send_message(ends.sync[0], &go, sizeof(go), NULL, 0); /* its failure is the child's end, seen next */
	}
	let_plan_go(s);
	r = wait_for_exec(s, ends.sync[0], &index, 0);
	if (r == 0)
		r = take_over(s);
	if (r == 0)
		r = open_streams(s, &ends);
	close_ends(&ends);
	if (r < 0)
		return fail(s, CHILD, index, r);

	started.pid = (uint32_t)s->child;
	/* A daemon that has just died doesn't take the container along: the next one finds it. */
	send_message(CONTROL_FD, &started, sizeof(started), &s->child_pidfd, 1);
	return 0;
}
