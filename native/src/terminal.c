/*
 * The Terminal step. The master is opened at the devpts instance of the container's root and checked,
 * the slave comes from TIOCGPTPEER, so that no name in the container decides what is opened.
 */
#include "util.h"

#include <linux/magic.h>
#include <sys/ioctl.h>
#include <sys/stat.h>
#include <sys/sysmacros.h>
#include <sys/vfs.h>
#include <termios.h>

#include "child.h"
#include "kernel.h"
#include "operations.h"
#include "protocol.h"
#include "root.h"
#include "tree.h"

#ifndef TIOCGPTPEER
#define TIOCGPTPEER _IO('T', 0x41)
#endif

static int open_master(int root)
{
	struct statfs fs;
	struct stat st;
	CLOSE_AT_END int fd = root_open(root, "dev/pts/ptmx", O_RDWR | O_NOCTTY);

	if (fd < 0)
		return fd;
	if (fstat(fd, &st) < 0 || fstatfs(fd, &fs) < 0)
		return -errno;
	if (fs.f_type != DEVPTS_SUPER_MAGIC || !S_ISCHR(st.st_mode) || st.st_rdev != makedev(5, 2))
		return -ENODEV;
	return take(&fd);
}

/* Show the slave as /dev/console. */
static int bind_console(int root, int slave)
{
	CLOSE_AT_END int target = root_make_file(root, "dev/console");
	int r = target < 0 ? target : check_place(target, "dev/console");

	if (r < 0)
		return r;
	CLOSE_AT_END int copy = tree_clone(slave, "", false);
	return copy < 0 ? copy : tree_attach(copy, target);
}

int run_terminal(const struct value *v, struct context *c)
{
	struct winsize size = { .ws_row = (unsigned short)v[0].number, .ws_col = (unsigned short)v[1].number };
	int root = child_root(c), unlock = 0, slave_fd, r;

	if (root < 0)
		return root;
	CLOSE_AT_END int master = open_master(root);
	if (master < 0)
		return master;
	if (ioctl(master, TIOCSPTLCK, &unlock) < 0)
		return -errno;
	slave_fd = ioctl(master, TIOCGPTPEER, O_RDWR | O_NOCTTY | O_CLOEXEC);
	if (slave_fd < 0)
		return -errno;
	CLOSE_AT_END int slave = slave_fd;
	if ((size.ws_row || size.ws_col) && ioctl(master, TIOCSWINSZ, &size) < 0)
		return -errno;
	if (v[3].number && fchown(slave, (uid_t)v[3].number, (gid_t)-1) < 0)
		return -errno;
	if (v[2].number) {
		r = bind_console(root, slave);
		if (r < 0)
			return r;
	}
	r = send_message(c->sync, &(struct sync_message){ .type = SYNC_TERMINAL }, sizeof(struct sync_message),
			 &master, 1);
	if (r < 0)
		return r;
	/* A session's leader takes its terminal along when it ends, as the child does that splits a process off. */
	c->wants_terminal = c->joins_pid;
	if (!c->wants_terminal && ((!c->detached && setsid() < 0) || ioctl(slave, TIOCSCTTY, 0) < 0))
		return -errno;
	for (int fd = 0; fd < 3; fd++)
		if (dup2(slave, fd) < 0)
			return -errno;
	c->has_stdin = true;
	return 0;
}
