/*
 * Steps of the child that build the mount tree. A directory is mounted upon by changing into its
 * descriptor and naming ".", a file by move_mount(2) onto its descriptor: no path of the image is
 * ever given to mount(2). Order that must hold: the root, then what lies in it, then the pivot.
 */
#include "util.h"

#include <limits.h>
#include <sched.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/sysmacros.h>

#include "child.h"
#include "kernel.h"
#include "operations.h"
#include "root.h"

/* MS_* that are the same bits as MOUNT_ATTR_* */
#define PROC_ATTRIBUTES (MOUNT_ATTR_RDONLY | MOUNT_ATTR_NOSUID | MOUNT_ATTR_NODEV | MOUNT_ATTR_NOEXEC)

int child_root(struct context *context)
{
	/* Without a root of its own (exec in a running container) the root is that of the namespace entered. */
	if (context->root < 0)
		context->root = sys_openat2(AT_FDCWD, "/", O_PATH | O_DIRECTORY, 0, 0);
	return context->root;
}

int open_null(int root)
{
	struct stat st;
	CLOSE_AT_END int fd = root_open(root, "dev/null", O_PATH | O_NOFOLLOW);

	if (fd < 0)
		return fd;
	/* An image's /dev/null may be anything; only the device is safe to show in place of a file. */
	if (fstat(fd, &st) < 0 || !S_ISCHR(st.st_mode) || st.st_rdev != makedev(1, 3))
		return -ENODEV;
	return take(&fd);
}

int run_propagate(const struct value *v, struct context *c)
{
	(void)c;
	return sys_mount(NULL, "/", NULL, v[0].number, NULL);
}

static int take_root(const char *path, struct context *c)
{
	c->root = sys_openat2(AT_FDCWD, path, O_PATH | O_DIRECTORY, 0, 0);
	return c->root < 0 ? c->root : 0;
}

int run_mount_root(const struct value *v, struct context *c)
{
	const char *type = v[0].text, *source = v[1].text, *target = v[2].text, *data = v[4].text;
	int r;

	if (chdir(v[5].text) < 0)
		return -errno;
	r = sys_mount(source, target, type, v[3].number, data);
	return r < 0 ? r : take_root(target, c);
}

int run_bind_root(const struct value *v, struct context *c)
{
	int r = sys_mount(v[0].text, v[0].text, NULL, MS_BIND | MS_REC, NULL);

	return r < 0 ? r : take_root(v[0].text, c);
}

int run_mount_in(const struct value *v, struct context *c)
{
	const char *type = v[0].text, *source = v[1].text, *data = v[4].text;
	int root = child_root(c), r;

	if (root < 0)
		return root;
	CLOSE_AT_END int target = root_make_dir(root, v[2].text, 0755, NULL);
	if (target < 0)
		return target;
	if (c->joins_pid && !strcmp(type, "proc"))
		return mount_joined_proc(c->proc, target, v[3].number & PROC_ATTRIBUTES);
	if (fchdir(target) < 0)
		return -errno;
	r = sys_mount(source, ".", type, v[3].number, data);
	if (v[5].number && (r == -ENODEV || r == -EPERM || r == -EINVAL))
		return 0;
	return r;
}

/* Attach a detached tree at a path, which is made when missing. `v`: path, recursive, attr_set,
 * attr_clear, propagation. */
static int attach_tree(int tree, const struct value *v, struct context *c)
{
	struct mount_attr attr = {
		.attr_set = v[2].number,
		.attr_clr = v[3].number,
		.propagation = v[4].number,
	};
	int root = child_root(c), r;
	struct stat st;

	if (root < 0)
		return root;
	if (fstat(tree, &st) < 0)
		return -errno;
	CLOSE_AT_END int target = S_ISDIR(st.st_mode) ? root_make_dir(root, v[0].text, 0755, NULL) :
							  root_make_file(root, v[0].text);
	if (target < 0)
		return target;
	/* A read-only bind remount covers the top mount only; mount_setattr(2) covers the whole tree, and
	 * does it before anyone sees the mount. */
	if (attr.attr_set || attr.attr_clr || attr.propagation) {
		r = sys_mount_setattr(tree, v[1].number ? AT_RECURSIVE : 0, &attr);
		if (r < 0)
			return r;
	}
	return sys_move_mount(tree, target);
}

int run_bind(const struct value *v, struct context *c)
{
	unsigned int recursive = v[2].number ? AT_RECURSIVE : 0;
	CLOSE_AT_END int tree = sys_open_tree(AT_FDCWD, v[0].text, OPEN_TREE_CLONE | recursive);

	return tree < 0 ? tree : attach_tree(tree, &v[1], c);
}

int run_attach_tree(const struct value *v, struct context *c)
{
	return attach_tree(c->slots[v[0].number], &v[1], c);
}

int run_make_dir(const struct value *v, struct context *c)
{
	int root = child_root(c);
	bool made;

	if (root < 0)
		return root;
	CLOSE_AT_END int dir = root_make_dir(root, v[0].text, (mode_t)v[1].number, &made);
	if (dir < 0)
		return dir;
	if (made && (v[2].number || v[3].number) &&
	    fchownat(dir, "", (uid_t)v[2].number, (gid_t)v[3].number, AT_EMPTY_PATH) < 0)
		return -errno;
	return 0;
}

int run_make_node(const struct value *v, struct context *c)
{
	dev_t device = makedev((unsigned int)v[2].number, (unsigned int)v[3].number);
	mode_t mode = (mode_t)v[1].number;
	int root = child_root(c);
	char name[NAME_MAX + 1];
	struct stat st;

	if (root < 0)
		return root;
	CLOSE_AT_END int parent = root_make_parent(root, v[0].text, name);
	if (parent < 0)
		return parent;
	if (mknodat(parent, name, mode, device) < 0) {
		int e = errno;

		if (e == EEXIST && fstatat(parent, name, &st, AT_SYMLINK_NOFOLLOW) == 0 &&
		    (st.st_mode & S_IFMT) == (mode & S_IFMT) && st.st_rdev == device)
			return 0;
		return -e;
	}
	if ((v[4].number || v[5].number) &&
	    fchownat(parent, name, (uid_t)v[4].number, (gid_t)v[5].number, AT_SYMLINK_NOFOLLOW) < 0)
		return -errno;
	return 0;
}

int run_make_symlink(const struct value *v, struct context *c)
{
	int root = child_root(c);
	char name[NAME_MAX + 1];

	if (root < 0)
		return root;
	CLOSE_AT_END int parent = root_make_parent(root, v[1].text, name);
	if (parent < 0)
		return parent;
	if (symlinkat(v[0].text, parent, name) < 0 && errno != EEXIST)
		return -errno;
	return 0;
}

/* The first masked directory gets a new tmpfs, the others clones of that mount. */
static int mask_directory(int target, struct context *c)
{
	int r;

	if (c->empty < 0) {
		CLOSE_AT_END int fs = sys_fsopen("tmpfs");

		if (fs < 0)
			return fs;
		r = sys_fsconfig(fs, FSCONFIG_SET_STRING, "mode", "0555");
		if (r == 0)
			r = sys_fsconfig(fs, FSCONFIG_SET_STRING, "nr_inodes", "2");
		if (r == 0)
			r = sys_fsconfig(fs, FSCONFIG_CMD_CREATE, NULL, NULL);
		if (r < 0)
			return r;
		c->empty = sys_fsmount(fs, MOUNT_ATTR_RDONLY | MOUNT_ATTR_NOSUID | MOUNT_ATTR_NODEV | MOUNT_ATTR_NOEXEC);
		return c->empty < 0 ? c->empty : sys_move_mount(c->empty, target);
	}
	CLOSE_AT_END int copy = sys_open_tree(c->empty, "", OPEN_TREE_CLONE | AT_EMPTY_PATH);
	return copy < 0 ? copy : sys_move_mount(copy, target);
}

static int mask_file(int target, int root, struct context *c)
{
	if (c->null < 0)
		c->null = open_null(root);
	if (c->null < 0)
		return c->null;
	CLOSE_AT_END int copy = sys_open_tree(c->null, "", OPEN_TREE_CLONE | AT_EMPTY_PATH);
	return copy < 0 ? copy : sys_move_mount(copy, target);
}

int run_mask(const struct value *v, struct context *c)
{
	int root = child_root(c);
	struct stat st;

	if (root < 0)
		return root;
	CLOSE_AT_END int target = root_open(root, v[0].text, O_PATH);
	if (target == -ENOENT || target == -ENOTDIR)
		return 0;
	if (target < 0)
		return target;
	if (fstat(target, &st) < 0)
		return -errno;
	return S_ISDIR(st.st_mode) ? mask_directory(target, c) : mask_file(target, root, c);
}

int run_readonly_path(const struct value *v, struct context *c)
{
	struct mount_attr attr = { .attr_set = MOUNT_ATTR_RDONLY };
	int root = child_root(c), r;

	if (root < 0)
		return root;
	CLOSE_AT_END int target = root_open(root, v[0].text, O_PATH);
	if (target == -ENOENT || target == -ENOTDIR)
		return 0;
	if (target < 0)
		return target;
	CLOSE_AT_END int tree = sys_open_tree(target, "", OPEN_TREE_CLONE | AT_RECURSIVE | AT_EMPTY_PATH);
	if (tree < 0)
		return tree;
	r = sys_mount_setattr(tree, AT_RECURSIVE, &attr);
	return r < 0 ? r : sys_move_mount(tree, target);
}

int run_pivot_root(const struct value *v, struct context *c)
{
	int r;

	(void)v;
	if (fchdir(c->root) < 0)
		return -errno;
	/* pivot_root(2), NOTES: with both at ".", the old root comes to lie on top, and "." names it. */
	r = sys_pivot_root(".", ".");
	if (r < 0)
		return r;
	r = sys_umount2(".", MNT_DETACH);
	if (r < 0)
		return r;
	if (chdir("/") < 0)
		return -errno;
	return 0;
}

int run_root_readonly(const struct value *v, struct context *c)
{
	struct mount_attr attr = { .attr_set = MOUNT_ATTR_RDONLY };
	int root = child_root(c);

	(void)v;
	return root < 0 ? root : sys_mount_setattr(root, 0, &attr);
}

int run_root_propagation(const struct value *v, struct context *c)
{
	struct mount_attr attr = { .propagation = v[0].number & ~(uint64_t)MS_REC };
	int root = child_root(c);

	return root < 0 ? root : sys_mount_setattr(root, v[0].number & MS_REC ? AT_RECURSIVE : 0, &attr);
}
