/*
 * The clone: what child and supervisor share, the helper that joins namespaces before, and the child's first steps.
 *
 *     supervisor ── clone3 ──▶ child                                   (its child)
 *     supervisor ── clone3 ──▶ helper: SetNs … ── CLONE_PARENT ──▶ child
 *
 * A detached child is the child of whoever started the supervisor (CLONE_PARENT), and so is its helper, whose
 * end the supervisor can't reap then. The helper shares the descriptors, and is done before the supervisor goes on
 * (CLONE_VFORK); memory it shares but for one page, for setns(2) refuses a time namespace to who shares memory.
 */
#include "util.h"

#include <errno.h>
#include <fcntl.h>
#include <linux/seccomp.h>
#include <signal.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/socket.h>
#include <sys/stat.h>

#include "child.h"
#include "kernel.h"
#include "supervise.h"

/* What the kernel and the helper tell the supervisor. */
struct birth {
	pid_t pid;
	int pidfd;
	uint32_t index; /* of the step that failed */
	int error;
};

static void *share_memory(size_t size)
{
	void *p = mmap(NULL, size, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);

	return p == MAP_FAILED ? NULL : p;
}

static bool splits_off(const struct step *step)
{
	return step->operation->kind == SET_NS && (step->values[1].number & CLONE_NEWPID);
}

static bool joins_user(const struct step *step)
{
	return step->operation->kind == SET_NS && (step->values[1].number & CLONE_NEWUSER);
}

static bool joins_more(const struct step *step)
{
	return step->operation->kind == SET_NS && step->values[1].number != CLONE_NEWPID;
}

static bool mounts_proc(const struct step *step)
{
	return step->operation->kind == MOUNT_IN && !strcmp(step->values[0].text, "proc");
}

static bool is_hold(const struct step *step)
{
	return step->operation->kind == HOLD;
}

static bool listens(const struct step *step)
{
	return step->operation->kind == SECCOMP && (step->values[1].number & SECCOMP_FILTER_FLAG_NEW_LISTENER);
}

bool wants_helper(const struct plan *plan)
{
	return has_step(&plan->sections[BEFORE], joins_more);
}

static bool enters_user(const struct plan *plan)
{
	return (plan->clone_flags & CLONE_NEWUSER) || has_step(&plan->sections[BEFORE], joins_user) ||
	       has_step(&plan->sections[CHILD], joins_user);
}

static int make_pipe(int pipe_ends[2], int ours, bool open_to_all)
{
	if (pipe2(pipe_ends, O_CLOEXEC) < 0)
		return -errno;
	/* The process may reopen /dev/stdout. Nobody else comes by: that needs the right to trace the process. */
	if (open_to_all && fchmod(pipe_ends[0], 0666) < 0)
		return -errno;
	return fcntl(pipe_ends[ours], F_SETFL, O_NONBLOCK) < 0 ? -errno : 0;
}

int make_ends(struct supervisor *s, struct ends *ends)
{
	/* Who enters a user namespace can't be given them by fchown(2) there, as others are (SetIds). */
	bool open_to_all = enters_user(&s->plan);
	int r = 0;

	if (socketpair(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC, 0, ends->sync) < 0)
		return -errno;
	if (s->setup.terminal || s->context.detached)
		return 0;
	if (s->setup.has_stdin)
		r = make_pipe(ends->in, 1, open_to_all);
	if (r == 0)
		r = make_pipe(ends->out, 0, open_to_all);
	if (r == 0)
		r = make_pipe(ends->err, 0, open_to_all);
	return r;
}

void close_ends(struct ends *ends)
{
	int *all[] = { ends->in, ends->out, ends->err, ends->sync };

	for (size_t i = 0; i < ARRAY_SIZE(all); i++) {
		close_fd(&all[i][0]);
		close_fd(&all[i][1]);
	}
}

static int child_streams(const struct ends *ends)
{
	/* The supervisor's own 0, 1 and 2 are open, so none of the ends is one of these. */
	if ((ends->in[0] >= 0 && dup2(ends->in[0], 0) < 0) || (ends->out[1] >= 0 && dup2(ends->out[1], 1) < 0) ||
	    (ends->err[1] >= 0 && dup2(ends->err[1], 2) < 0))
		return -errno;
	return 0;
}

/* Where Hold, if there is one, waits and tells failures: known from the start, so that nobody closes it. */
static void find_fifos(const struct steps *child, struct context *c)
{
	c->go = c->status = -1;
	for (uint32_t i = 0; i < child->count; i++) {
		if (child->steps[i].operation->kind != HOLD)
			continue;
		c->go = c->slots[child->steps[i].values[0].number];
		c->status = c->slots[child->steps[i].values[1].number];
	}
}

static int run_child(struct supervisor *s, const struct ends *ends)
{
	struct context *c = &s->context;
	struct sync_message peeked;
	int r = die_with_supervisor(c);

	if (r < 0)
		return r;
	/* If the supervisor was killed before that, the signal never comes; the pair tells. */
	if (recv(ends->sync[1], &peeked, sizeof(peeked), MSG_PEEK | MSG_DONTWAIT) == 0)
		return -EPIPE;
	/* The supervisor has a session of its own already, but for one that is called from a shell. */
	if (c->detached && setsid() < 0)
		return -errno;
	r = child_streams(ends);
	return r < 0 ? r : run_steps(&s->plan.sections[CHILD], c);
}

/* To whom it may concern; under a filter it is write(2) or nothing. */
static void tell_failure(const struct context *c, int error)
{
	struct {
		uint32_t index;
		int32_t error;
	} told = { c->index, error };
	struct sync_message message = { .type = SYNC_FAILED, .index = c->index, .error = error };

	if (c->released) {
		if (write(c->status, &told, sizeof(told)) < 0)
			_exit(126);
	} else {
		send_message(c->sync, &message, sizeof(message), NULL, 0);
	}
}

static _Noreturn void child_main(struct supervisor *s, struct ends *ends)
{
	struct context *c = &s->context;

	close(ends->sync[0]);
	c->sync = ends->sync[1];
	c->control = CONTROL_FD;
	c->has_stdin = ends->in[0] >= 0 || c->detached;
	find_fifos(&s->plan.sections[CHILD], c);
	tell_failure(c, -run_child(s, ends));
	syscall(SYS_exit_group, 127);
	__builtin_trap(); /* a filter forbids even that */
}

/* The helper: join what is to be joined, and clone the child from there. */
static _Noreturn void help(struct supervisor *s, struct ends *ends, struct clone_args *args, struct birth *birth)
{
	const struct steps *before = &s->plan.sections[BEFORE];
	int r = madvise(birth, sizeof(*birth), MADV_DONTFORK) < 0 ? -errno : 0;

	s->context.helper_joins = false;
	for (uint32_t i = 0; i < before->count && r == 0; i++) {
		const struct step *step = &before->steps[i];

		if (step->operation->kind != SET_NS)
			continue;
		birth->index = i;
		r = step->operation->run(step->values, &s->context);
	}
	if (r == 0) {
		birth->index = UINT32_MAX;
		r = sys_clone3(args);
		if (r == 0)
			child_main(s, ends);
	}
	birth->error = r < 0 ? -r : 0;
	_exit(0);
}

static int clone_by_helper(struct supervisor *s, struct ends *ends, struct clone_args *args, uint32_t *index)
{
	struct birth *birth = share_memory(sizeof(*birth));
	struct clone_args helper = { .flags = CLONE_FILES | CLONE_VFORK, .exit_signal = SIGCHLD };
	pid_t pid;
	int r;

	if (!birth)
		return -errno;
	birth->index = *index;
	args->flags |= CLONE_PARENT | CLONE_PARENT_SETTID;
	args->exit_signal = 0;
	args->parent_tid = (uintptr_t)&birth->pid;
	args->pidfd = (uintptr_t)&birth->pidfd;
	if (s->context.detached) {
		helper.flags |= CLONE_PARENT;
		helper.exit_signal = 0;
	}
	pid = sys_clone3(&helper);
	if (pid == 0)
		help(s, ends, args, birth);
	if (pid > 0 && !s->context.detached)
		while (waitpid(pid, NULL, 0) < 0 && errno == EINTR)
			;
	r = pid < 0 ? pid : birth->pid > 0 ? 0 : birth->error ? -birth->error : -ECHILD;
	s->child = r == 0 ? birth->pid : 0;
	s->child_pidfd = r == 0 ? birth->pidfd : -1;
	*index = birth->index;
	munmap(birth, sizeof(*birth));
	return r;
}

int clone_child(struct supervisor *s, struct ends *ends, uint32_t *index)
{
	struct clone_args args = { .flags = s->plan.clone_flags | CLONE_PIDFD, .exit_signal = SIGCHLD };
	int pidfd = -1, r;
	CLOSE_AT_END int cgroup = -1;

	if (s->plan.cgroup_path[0]) {
		cgroup = open(s->plan.cgroup_path, O_PATH | O_DIRECTORY | O_CLOEXEC);
		if (cgroup < 0)
			return -errno;
		args.flags |= CLONE_INTO_CGROUP;
		args.cgroup = (uint64_t)cgroup;
	}
	if (has_step(&s->plan.sections[CHILD], splits_off)) {
		s->context.born = share_memory(sizeof(pid_t));
		if (!s->context.born)
			return -errno;
		s->context.wants_proc = has_step(&s->plan.sections[CHILD], mounts_proc);
	}
	s->holds = has_step(&s->plan.sections[CHILD], is_hold);
	s->awaits_listener = has_step(&s->plan.sections[CHILD], listens);
	if (s->context.helper_joins) {
		r = clone_by_helper(s, ends, &args, index);
	} else {
		if (s->context.detached) {
			args.flags |= CLONE_PARENT;
			args.exit_signal = 0; /* the supervisor's own */
		}
		args.pidfd = (uintptr_t)&pidfd;
		r = sys_clone3(&args);
		if (r == 0)
			child_main(s, ends);
		s->child = r > 0 ? r : 0;
		s->child_pidfd = pidfd;
	}
	s->context.child = s->child;
	return r < 0 ? r : 0;
}
