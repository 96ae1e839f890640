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
#include <poll.h>
#include <signal.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/socket.h>

#include "kernel.h"
#include "supervise.h"

void wait_end(const struct supervisor *s, int pidfd)
{
	struct pollfd ended = { .fd = pidfd, .events = POLLIN };

	if (s->context.detached)
		while (poll(&ended, 1, -1) < 0 && errno == EINTR)
			;
	else
		while (waitid(P_PIDFD, (id_t)pidfd, NULL, WEXITED | __WALL) < 0 && errno == EINTR)
			;
}

/* Whom the child has split off by a failure is ours to end, too; from now on nobody else can be. */
static void end_born(const struct supervisor *s)
{
	pid_t born = s->context.born ? *s->context.born : 0;
	CLOSE_AT_END int pidfd = born > 0 ? sys_pidfd_open(born) : -1;

	if (pidfd < 0)
		return;
	sys_pidfd_send_signal(pidfd, SIGKILL);
	wait_end(s, pidfd);
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
		wait_end(s, s->child_pidfd);
		end_born(s);
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
	/* behind the arena there is room for the daemon's answers to ResolveUser and to Pause */
	s->arena_size = plan_arena_size(size) + 2 * MAX_ANSWER;
	s->arena_memory = take_memory(s->arena_size);
	if (!s->arena_memory)
		return refuse("there is no memory for the plan");
	arena = (struct arena){ s->arena_memory, (char *)s->arena_memory + plan_arena_size(size) };
	s->context.answer = arena.end;
	s->context.text = arena.end + MAX_ANSWER;
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

static bool pauses(const struct step *step)
{
	return step->operation->kind == PAUSE;
}

/* A detached process has nobody to log its output or to serve clients. */
static bool fits_mode(const struct msg_start *m)
{
	return m->mode == MODE_SUPERVISE ||
	       (m->mode == MODE_DETACHED && m->log_driver == LOG_NONE && !m->attaches);
}

int receive_start(struct supervisor *s)
{
	struct iovec part = { &s->setup, sizeof(s->setup) };
	int fds[MAX_MESSAGE_FDS];
	size_t count = MAX_MESSAGE_FDS, fixed = 1;
	ssize_t size = receive_message(CONTROL_FD, &part, 1, fds, &count, 0);

	if (size == 0 || size == -ECONNRESET)
		return -1; /* the daemon is gone, and nobody else wants to know */
	if (size != sizeof(s->setup) || s->setup.head.type != MSG_START)
		return refuse("the first message must be START");
	if (s->setup.log_driver > LOG_JSON || s->setup.log_max_files > 1000)
		return refuse("the log's driver is unknown, or it has more than 1000 files");
	if (!fits_mode(&s->setup))
		return refuse("a detached process has no log and no clients, and there is no other mode");
	s->context.detached = s->setup.mode == MODE_DETACHED;
	s->context.unprivileged = geteuid() != 0;
	if (!s->context.detached)
		fixed = s->setup.log_driver == LOG_NONE ? 3 : 4;
	if (s->setup.slots > MAX_SLOTS || count != fixed + s->setup.slots)
		return refuse("START came with another number of descriptors than it says");

	CLOSE_AT_END int memory = fds[0];
	s->state_dir = s->context.detached ? -1 : fds[1];
	s->listener = s->context.detached ? -1 : fds[2];
	s->streams.log.driver = (enum log_driver)s->setup.log_driver;
	s->streams.log.dir = fixed == 4 ? fds[3] : -1;
	s->streams.log.max_bytes = s->setup.log_max_bytes;
	s->streams.log.max_files = s->setup.log_max_files;
	s->streams.terminal = s->setup.terminal;
	s->streams.stdin_once = s->setup.stdin_once;
	s->context.slot_count = s->setup.slots;
	for (uint32_t i = 0; i < s->setup.slots; i++)
		s->context.slots[i] = fds[fixed + i];
	if (read_plan(s, memory) < 0)
		return -1;
	if (has_step(&s->plan.sections[CHILD], is_terminal) != !!s->setup.terminal)
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

static void let_plan_go(struct supervisor *s)
{
	munmap(s->plan_memory, s->plan_memory_size);
	munmap(s->arena_memory, s->arena_size);
	for (uint32_t i = 0; i < s->setup.slots; i++)
		close_fd(&s->context.slots[i]);
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
	wait_end(s, s->child_pidfd);
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

static int tell_process(const struct supervisor *s, enum message_type type)
{
	struct msg_started message = { .head = { .type = type }, .pid = (uint32_t)s->child };

	return send_message(CONTROL_FD, &message, sizeof(message), &s->child_pidfd, 1);
}

/* Run the parent steps, with the child at its own meanwhile, and let it go on. */
static int run_parent(struct supervisor *s, int sync)
{
	struct sync_message go = { .type = SYNC_GO };
	int r = run_steps(&s->plan.sections[PARENT], &s->context);

	if (r == 0 && s->context.held)
		send_message(sync, &go, sizeof(go), NULL, 0); /* its failure is the child's end, seen next */
	return r;
}

int start_process(struct supervisor *s)
{
	struct ends ends = { { -1, -1 }, { -1, -1 }, { -1, -1 }, { -1, -1 } };
	bool paused = has_step(&s->plan.sections[CHILD], pauses);
	uint32_t index = UINT32_MAX;
	int r;

	s->context.helper_joins = wants_helper(&s->plan);
	s->context.held = paused || s->plan.sections[PARENT].count;
	r = run_steps(&s->plan.sections[BEFORE], &s->context);
	if (r < 0)
		return fail(s, BEFORE, s->context.index, r);
	r = make_ends(s, &ends);
	if (r == 0)
		r = clone_child(s, &ends, &index);
	if (r < 0) {
		close_ends(&ends);
		return index == UINT32_MAX ? fail(s, CLONE, 0, r) : fail(s, BEFORE, index, r);
	}
	close_fd(&ends.in[0]);
	close_fd(&ends.out[1]);
	close_fd(&ends.err[1]);
	close_fd(&ends.sync[1]);
	index = 0;

	if (paused || s->awaits_listener || s->context.detached)
		r = tell_process(s, MSG_CLONED);
	if (r == 0)
		r = run_parent(s, ends.sync[0]);
	if (r < 0) {
		/* A child that failed meanwhile is the cause: it has ended, and can't be put anywhere. */
		int cause = watch_child(s, ends.sync[0], &index, MSG_DONTWAIT);

		close_ends(&ends);
		return cause < 0 && cause != -EAGAIN ? fail(s, CHILD, index, cause) :
						       fail(s, PARENT, s->context.index, r);
	}
	let_plan_go(s);
	r = watch_child(s, ends.sync[0], &index, 0);
	if (r == 0)
		r = take_over(s);
	if (r == 0 && !s->context.detached)
		r = open_streams(s, &ends);
	close_ends(&ends);
	if (r < 0)
		return fail(s, CHILD, index, r);

	r = tell_process(s, MSG_STARTED);
	/* A daemon that has just died doesn't take the container along: the next one finds it. But nobody finds a
	 * detached one. */
	return r < 0 && s->context.detached ? fail(s, CHILD, index, r) : 0;
}
