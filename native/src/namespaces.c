/*
 * Steps that enter namespaces, and a root that isn't mounted by a step.
 *
 * SetNs of the child: see exec.c for a pid namespace. SetNs before the clone: of a pid namespace alone the
 * supervisor itself, as only its children see anything of that; of others a helper (clone.c).
 */
#include "util.h"

#include <sched.h>

#include "child.h"
#include "kernel.h"
#include "operations.h"

int run_set_ns(const struct value *v, struct context *c)
{
	int fd = c->slots[v[0].number], r;

	if (c->helper_joins)
		return 0;
	if (c->born && c->wants_proc && (v[1].number & CLONE_NEWPID)) {
		/* first: whom we clone later is born there */
		c->proc = open_joined_proc(fd);
		if (c->proc < 0)
			return c->proc;
	}
	r = sys_setns(fd, (int)v[1].number);
	if (r == 0 && c->born && (v[1].number & CLONE_NEWPID))
		c->joins_pid = true; /* which setns(2) does for children alone */

	/* the root may have been that of the namespace we left */
	if (r == 0 && (v[1].number & CLONE_NEWNS))
		close_fd(&c->root);
	return r;
}

int run_unshare(const struct value *v, struct context *c)
{
	/* The root of a cgroup namespace is the cgroup of whoever makes it: parent steps come before. */
	int r = v[0].number & CLONE_NEWCGROUP ? wait_for_go(c) : 0;

	if (r < 0)
		return r;
	return unshare((int)v[0].number) < 0 ? -errno : 0;
}

int run_attach_root(const struct value *v, struct context *c)
{
	CLOSE_AT_END int target = sys_openat2(AT_FDCWD, v[1].text, O_PATH | O_DIRECTORY, 0, 0);
	int r = target < 0 ? target : sys_move_mount(c->slots[v[0].number], target);

	if (r == 0)
		/* the descriptor goes on naming the mount, which now lies at the target */
		c->root = c->slots[v[0].number];
	return r;
}

int run_chroot(const struct value *v, struct context *c)
{
	if (chroot(v[0].text) < 0 || chdir("/") < 0)
		return -errno;
	close_fd(&c->root); /* it was the root of the mount namespace */
	return 0;
}
