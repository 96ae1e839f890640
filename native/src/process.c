/*
 * Steps of the child that make the process what it shall be: limits, identity, capabilities, filter.
 *
 * Order that must hold (the plan's order is the planner's matter): the bounding set is dropped while
 * CAP_SETPCAP is there, so before SetIds; SetIds keeps the permitted set (PR_SET_KEEPCAPS), and
 * Capabilities then sets all of them; a filter needs NoNewPrivs or CAP_SYS_ADMIN.
 */
#include "util.h"

#include <errno.h>
#include <grp.h>
#include <linux/capability.h>
#include <linux/filter.h>
#include <linux/seccomp.h>
#include <signal.h>
#include <stdlib.h>
#include <string.h>
#include <sys/prctl.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/uio.h>

#include "child.h"
#include "kernel.h"
#include "operations.h"
#include "protocol.h"

int run_rlimit(const struct value *v, struct context *c)
{
	uint64_t limit[2] = { v[1].number, v[2].number }; /* struct rlimit64; ~0 is RLIM64_INFINITY */

	return (int)checked(syscall(SYS_prlimit64, c->child, (unsigned int)v[0].number, limit, NULL));
}

int run_umask(const struct value *v, struct context *c)
{
	umask((mode_t)v[0].number);
	c->umask_set = true;
	return 0;
}

/* Take the daemon's answer apart; it is checked like any input. */
static int apply_answer(const char *answer, size_t size, struct identity *identity)
{
	const struct msg_resolved *m = (const void *)answer;
	const char *text, *end = answer + size;

	if (size < sizeof(*m) || m->head.type != MSG_RESOLVED || m->group_count > MAX_GROUPS ||
	    m->env_count > MAX_ENV_ADDITIONS)
		return -EPROTO;
	text = answer + sizeof(*m) + m->group_count * sizeof(uint32_t);
	if (text > end)
		return -EPROTO;
	for (uint32_t i = 0; i < m->env_count; i++) {
		const char *nul = text < end ? memchr(text, '\0', (size_t)(end - text)) : NULL;

		if (!nul)
			return -EPROTO;
		identity->env[i] = (char *)(uintptr_t)text;
		text = nul + 1;
	}
	identity->uid = m->uid;
	identity->gid = m->gid;
	identity->group_count = m->group_count;
	identity->groups = (gid_t *)(uintptr_t)m->groups;
	identity->env_count = m->env_count;
	identity->resolved = true;
	return 0;
}

int run_resolve_user(const struct value *v, struct context *c)
{
	struct iovec part = { .iov_base = c->answer, .iov_len = MAX_ANSWER };
	struct msg_head question = { .type = MSG_RESOLVE };
	int root = child_root(c), r, none;
	size_t fds = 0;
	ssize_t size;

	(void)v;
	if (root < 0)
		return root;
	/* The supervisor doesn't read its control connection before the exec: the child may use it. */
	r = send_message(c->control, &question, sizeof(question), &root, 1);
	if (r < 0)
		return r;
	size = receive_message(c->control, &part, 1, &none, &fds, 0);
	if (size < 0)
		return (int)size;
	if (size == 0)
		return -EPIPE;
	if ((size_t)size >= sizeof(question) && ((struct msg_head *)c->answer)->type == MSG_UNRESOLVED)
		return -ECANCELED;
	return apply_answer(c->answer, (size_t)size, &c->identity);
}

int run_pause(const struct value *v, struct context *c)
{
	struct msg_paused question = { .head = { .type = MSG_PAUSED }, .index = c->index };
	/* Who isn't root may write the maps of a process only if it could trace it (user_namespaces(7)). */
	bool open = c->unprivileged && !strcmp(v[0].text, "user");
	struct msg_head answer;
	struct iovec parts[2] = { { &answer, sizeof(answer) }, { c->text, MAX_ANSWER } };
	int r = wait_for_go(c);
	size_t none = 0;
	ssize_t size;

	if (r < 0)
		return r;
	if (open && prctl(PR_SET_DUMPABLE, 1, 0, 0, 0) < 0)
		return -errno;
	/* The supervisor doesn't read its control connection before the exec: the child may use it. */
	r = send_message(c->control, &question, sizeof(question), NULL, 0);
	if (r < 0)
		return r;
	size = receive_message(c->control, parts, 2, NULL, &none, 0);
	if (size < 0)
		return (int)size;
	if (open && prctl(PR_SET_DUMPABLE, 0, 0, 0, 0) < 0)
		return -errno;
	if (size == 0)
		return -EPIPE;
	if ((size_t)size < sizeof(answer) || answer.type != MSG_CONTINUE)
		return (size_t)size >= sizeof(answer) && answer.type == MSG_UNRESOLVED ? -ECANCELED : -EPROTO;
	c->text_size = (size_t)size - sizeof(answer);
	return 0;
}

int die_with_parent(void)
{
	return prctl(PR_SET_PDEATHSIG, SIGKILL, 0, 0, 0) < 0 ? -errno : 0;
}

int die_with_supervisor(const struct context *c)
{
	return c->detached ? 0 : die_with_parent();
}

/* None where user_namespaces(7) denies them: what is then left are groups that don't exist in there. */
static int drop_groups(void)
{
	int r = (int)checked(syscall(SYS_setgroups, 0, NULL));

	return r == -EPERM ? 0 : r;
}

static int set_groups(const struct value *list, const struct context *c)
{
	const struct identity *identity = &c->identity;
	gid_t groups[256]; /* check_ids: they fit */

	if (identity->resolved && identity->group_count)
		return (int)checked(syscall(SYS_setgroups, (size_t)identity->group_count, identity->groups));
	if (identity->resolved || !list->size)
		return drop_groups();
	for (size_t i = 0; i < list->size; i++)
		groups[i] = (gid_t)strtoul(list->list[i], NULL, 10);
	return (int)checked(syscall(SYS_setgroups, list->size, groups));
}

/* The process may reopen /dev/stdout, which leads to a pipe: that needs its owner's rights. A pipe that was
 * inherited may be another's, or of another user namespace: then it can't. */
static int give_pipes(uid_t uid)
{
	for (int fd = 0; fd < 3; fd++) {
		struct stat st;

		if (fstat(fd, &st) == 0 && S_ISFIFO(st.st_mode) && st.st_uid != uid &&
		    fchown(fd, uid, (gid_t)-1) < 0 && errno != EPERM && errno != EROFS)
			return -errno;
	}
	return 0;
}

int run_become_root(const struct value *v, struct context *c)
{
	int r = drop_groups();

	(void)v;
	if (r == 0)
		r = (int)checked(syscall(SYS_setresgid, 0, 0, 0));
	if (r == 0)
		r = (int)checked(syscall(SYS_setresuid, 0, 0, 0));
	if (r == 0 && prctl(PR_SET_DUMPABLE, 0, 0, 0, 0) < 0)
		r = -errno;
	return r < 0 ? r : die_with_supervisor(c);
}

int run_set_ids(const struct value *v, struct context *c)
{
	uid_t uid = c->identity.resolved ? c->identity.uid : (uid_t)v[0].number;
	gid_t gid = c->identity.resolved ? c->identity.gid : (gid_t)v[1].number;
	int r;

	if (uid) {
		r = give_pipes(uid);
		if (r < 0)
			return r;
		if (prctl(PR_SET_KEEPCAPS, 1, 0, 0, 0) < 0)
			return -errno;
	}
	/* The C library's functions also signal other threads, of which there are none. */
	r = set_groups(&v[2], c);
	if (r == 0)
		r = (int)checked(syscall(SYS_setresgid, gid, gid, gid));
	if (r == 0)
		r = (int)checked(syscall(SYS_setresuid, uid, uid, uid));
	return r < 0 ? r : die_with_supervisor(c);
}

int run_drop_bounding(const struct value *v, struct context *c)
{
	(void)c;
	for (unsigned long cap = 0; cap < 64; cap++) {
		if (v[0].number >> cap & 1)
			continue;
		if (prctl(PR_CAPBSET_DROP, cap, 0, 0, 0) < 0) {
			if (errno == EINVAL)
				break; /* beyond the kernel's last capability */
			return -errno;
		}
	}
	return 0;
}

int run_capabilities(const struct value *v, struct context *c)
{
	struct __user_cap_header_struct header = { .version = _LINUX_CAPABILITY_VERSION_3 };
	struct __user_cap_data_struct data[2];
	int r;

	for (unsigned int i = 0; i < 2; i++) {
		data[i].effective = (uint32_t)(v[0].number >> 32 * i);
		data[i].permitted = (uint32_t)(v[1].number >> 32 * i);
		data[i].inheritable = (uint32_t)(v[2].number >> 32 * i);
	}
	r = (int)checked(syscall(SYS_capset, &header, data));
	if (r < 0)
		return r;
	for (unsigned long cap = 0; cap < 64; cap++)
		if (v[3].number >> cap & 1 && prctl(PR_CAP_AMBIENT, PR_CAP_AMBIENT_RAISE, cap, 0, 0) < 0)
			return -errno;
	return die_with_supervisor(c);
}

int run_no_new_privs(const struct value *v, struct context *c)
{
	(void)v;
	(void)c;
	return prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) < 0 ? -errno : 0;
}

/* The supervisor takes the listener out of the child, which may have no system call left to send it by: it is told
 * beforehand which descriptor that will be. Then read(2) is all that the child needs. */
static int announce_listener(const struct context *c, int *number)
{
	struct sync_message message = { .type = SYNC_LISTENER };

	*number = fcntl(c->sync, F_DUPFD_CLOEXEC, 0); /* the lowest that is free, as seccomp(2) takes */
	if (*number < 0)
		return -errno;
	close(*number);
	/* as for Pause: who isn't root takes something out of a process only if it could trace it (pidfd_getfd(2)) */
	if (c->unprivileged && !c->joins_pid && prctl(PR_SET_DUMPABLE, 1, 0, 0, 0) < 0)
		return -errno;
	message.index = (uint32_t)*number;
	return send_message(c->sync, &message, sizeof(message), NULL, 0);
}

int run_seccomp(const struct value *v, struct context *c)
{
	struct sock_fprog program = {
		.len = (unsigned short)(v[0].size / 8),
		.filter = (struct sock_filter *)(uintptr_t)v[0].data,
	};
	bool listens = v[1].number & SECCOMP_FILTER_FLAG_NEW_LISTENER;
	struct sync_message go;
	int r = prepare_exec(c), number;
	ssize_t size;

	if (r == 0 && listens)
		r = announce_listener(c, &number);
	if (r < 0)
		return r;
	r = (int)checked(syscall(SYS_seccomp, SECCOMP_SET_MODE_FILTER, (unsigned int)v[1].number, &program));
	if (r < 0 || !listens)
		return r;
	do {
		size = read(c->sync, &go, sizeof(go));
	} while (size < 0 && errno == EINTR);
	return size == sizeof(go) ? 0 : size < 0 ? -errno : -EPIPE;
}
