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

	(void)c;
	return (int)checked(syscall(SYS_prlimit64, 0, (unsigned int)v[0].number, limit, NULL));
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

int die_with_parent(void)
{
	return prctl(PR_SET_PDEATHSIG, SIGKILL, 0, 0, 0) < 0 ? -errno : 0;
}

static int set_groups(const struct value *list, const struct identity *identity)
{
	gid_t groups[256]; /* check_ids: they fit */

	if (identity->resolved)
		return (int)checked(syscall(SYS_setgroups, (size_t)identity->group_count, identity->groups));
	for (size_t i = 0; i < list->size; i++)
		groups[i] = (gid_t)strtoul(list->list[i], NULL, 10);
	return (int)checked(syscall(SYS_setgroups, list->size, groups));
}

/* The process may reopen /dev/stdout, which leads to our pipe: that needs its owner's rights. */
static int give_pipes(uid_t uid)
{
	for (int fd = 0; fd < 3; fd++) {
		struct stat st;

		if (fstat(fd, &st) == 0 && S_ISFIFO(st.st_mode) && st.st_uid != uid &&
		    fchown(fd, uid, (gid_t)-1) < 0)
			return -errno;
	}
	return 0;
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
	r = set_groups(&v[2], &c->identity);
	if (r == 0)
		r = (int)checked(syscall(SYS_setresgid, gid, gid, gid));
	if (r == 0)
		r = (int)checked(syscall(SYS_setresuid, uid, uid, uid));
	return r < 0 ? r : die_with_parent();
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

	(void)c;
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
	return die_with_parent();
}

int run_no_new_privs(const struct value *v, struct context *c)
{
	(void)v;
	(void)c;
	return prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) < 0 ? -errno : 0;
}

int run_seccomp(const struct value *v, struct context *c)
{
	struct sock_fprog program = {
		.len = (unsigned short)(v[0].size / 8),
		.filter = (struct sock_filter *)(uintptr_t)v[0].data,
	};
	int r = prepare_exec(c);

	if (r < 0)
		return r;
	return (int)checked(syscall(SYS_seccomp, SECCOMP_SET_MODE_FILTER, (unsigned int)v[1].number, &program));
}
