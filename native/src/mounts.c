/*
 * Steps of the child that build the mount tree. What is mounted upon is named by its descriptor, by
 * changing into it and naming ".", or by move_mount(2) (tree.h): no path of the image is ever given to
 * mount(2). Order that must hold: the root, then what lies in it, then the pivot.
 *
 * /proc is special: masks and checks go by it. The procfs that is mounted there is remembered, and what is
 * hidden below it is looked up from that mount, wherever a rename may have taken the directory (CVE-2019-19921).
 */
#include "util.h"

#include <limits.h>
#include <linux/magic.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/sysmacros.h>
#include <sys/vfs.h>

#include "child.h"
#include "kernel.h"
#include "operations.h"
#include "root.h"
#include "tree.h"

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

int check_place(int target, const char *path)
{
	struct statfs fs;

	if (fstatfs(target, &fs) < 0)
		return -errno;
	if (fs.f_type != PROC_SUPER_MAGIC || !strcmp(path, "/proc") || !strncmp(path, "/proc/", 6))
		return 0;
	return -EXDEV;
}

/* What masks below /proc are set on. */
static int remember_procfs(int mount, struct context *c)
{
	struct statfs fs;

	if (fstatfs(mount, &fs) < 0)
		return -errno;
	if (fs.f_type != PROC_SUPER_MAGIC)
		return -EXDEV;
	close_fd(&c->procfs);
	c->procfs = fcntl(mount, F_DUPFD_CLOEXEC, 3);
	return c->procfs < 0 ? -errno : 0;
}

/* `data` with the mode of a directory, which what follows may override; of one page, as mount(2) wants it. */
static int with_mode(int dir, const char *data, char page[4096])
{
	size_t length = strlen(data);
	struct stat st;

	if (fstat(dir, &st) < 0)
		return -errno;
	if (length >= 4096 - sizeof("mode=0000,"))
		return -E2BIG;
	memcpy(page, "mode=", 5);
	for (int digit = 0; digit < 4; digit++)
		page[5 + digit] = (char)('0' + (st.st_mode >> (9 - 3 * digit) & 7));
	page[9] = ',';
	memcpy(page + 10, data, length + 1);
	return 0;
}

/* This kernel, or this user namespace, lacks what an optional mount is of. */
static bool is_lacking(int r)
{
	return r == -ENODEV || r == -EPERM || r == -EINVAL;
}

int run_mount_in(const struct value *v, struct context *c)
{
	const char *type = v[0].text, *path = v[2].text, *data = v[4].text;
	bool is_proc = !strcmp(type, "proc"), made;
	struct attributes propagation = { .propagation = v[6].number & ~(uint64_t)MS_REC };
	char page[4096];
	int root = child_root(c), r;

	if (root < 0)
		return root;
	if (v[3].number & MS_REMOUNT) {
		CLOSE_AT_END int there = root_open(root, path, O_PATH);
		return there < 0 ? there : tree_remount(there, type, v[3].number, data);
	}
	CLOSE_AT_END int target = is_proc || !strcmp(type, "sysfs") ? root_make_plain_dir(root, path, 0755, &made) :
								      root_make_dir(root, path, 0755, &made);
	if (target < 0)
		return target;
	r = check_place(target, path);
	if (r == 0 && v[7].number && !made) {
		r = with_mode(target, data, page);
		data = page;
	}
	if (r < 0)
		return r;
	if (!is_proc && !propagation.propagation) {
		if (fchdir(target) < 0)
			return -errno;
		r = sys_mount(v[1].text, ".", type, v[3].number, data);
		return v[5].number && is_lacking(r) ? 0 : r;
	}
	CLOSE_AT_END int tree = is_proc && c->joins_pid ? mount_joined_proc(c->proc, v[3].number & PROC_ATTRIBUTES) :
							  tree_new(type, v[1].text, v[3].number, data);
	if (tree < 0)
		return v[5].number && is_lacking(tree) ? 0 : tree;
	r = tree_change(tree, &propagation);
	if (r == 0)
		r = tree_attach(tree, target);
	return r == 0 && !strcmp(path, "/proc") ? remember_procfs(tree, c) : r;
}

/* Attach a detached tree at a path, which is made when missing. `v`: path, recursive, then attributes of the
 * mount itself: set, clear, propagation, then those of all: set, clear. */
static int attach_at(int tree, const struct value *v, struct context *c)
{
	uint64_t propagation = v[4].number & ~(uint64_t)MS_REC;
	bool spreads = v[4].number & MS_REC;
	struct attributes own = { v[2].number, v[3].number, spreads ? 0 : propagation, false };
	struct attributes all = { v[5].number, v[6].number, spreads ? propagation : 0, true };
	bool is_proc = !strcmp(v[0].text, "/proc");
	int root = child_root(c), r;
	struct stat st;

	if (root < 0)
		return root;
	if (fstat(tree, &st) < 0)
		return -errno;
	CLOSE_AT_END int target = is_proc		? root_make_plain_dir(root, v[0].text, 0755, NULL) :
				  S_ISDIR(st.st_mode) ? root_make_dir(root, v[0].text, 0755, NULL) :
							root_make_file(root, v[0].text);
	if (target < 0)
		return target;
	r = check_place(target, v[0].text);
	if (r == 0 && is_proc)
		r = remember_procfs(tree, c);
	/* before anyone sees the mount */
	if (r == 0)
		r = tree_change(tree, &own);
	if (r == 0)
		r = tree_change(tree, &all);
	return r < 0 ? r : tree_attach(tree, target);
}

int run_bind(const struct value *v, struct context *c)
{
	CLOSE_AT_END int tree = tree_clone(AT_FDCWD, v[0].text, v[2].number);

	return tree < 0 ? tree : attach_at(tree, &v[1], c);
}

int run_attach_tree(const struct value *v, struct context *c)
{
	return attach_at(c->slots[v[0].number], &v[1], c);
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

/* What is to be hidden: below /proc, from the procfs that this plan has mounted there. */
static int open_hidden(const char *path, struct context *c)
{
	int root = child_root(c);

	if (root < 0)
		return root;
	if (c->procfs >= 0 && !strncmp(path, "/proc/", 6))
		return root_open(c->procfs, path + 6, O_PATH);
	return root_open(root, path, O_PATH);
}

/* The first masked directory gets a new tmpfs, the others clones of that mount. */
static int mask_directory(int target, struct context *c)
{
	unsigned long flags = MS_RDONLY | MS_NOSUID | MS_NODEV | MS_NOEXEC;

	if (c->empty < 0) {
		c->empty = tree_new("tmpfs", "tmpfs", flags, "mode=0555,nr_inodes=2");
		return c->empty < 0 ? c->empty : tree_attach(c->empty, target);
	}
	CLOSE_AT_END int copy = tree_clone(c->empty, "", false);
	return copy < 0 ? copy : tree_attach(copy, target);
}

static int mask_file(int target, struct context *c)
{
	if (c->null < 0)
		c->null = open_null(child_root(c));
	if (c->null < 0)
		return c->null;
	CLOSE_AT_END int copy = tree_clone(c->null, "", false);
	return copy < 0 ? copy : tree_attach(copy, target);
}

int run_mask(const struct value *v, struct context *c)
{
	struct stat st;
	CLOSE_AT_END int target = open_hidden(v[0].text, c);

	if (target == -ENOENT || target == -ENOTDIR)
		return 0;
	if (target < 0)
		return target;
	if (fstat(target, &st) < 0)
		return -errno;
	return S_ISDIR(st.st_mode) ? mask_directory(target, c) : mask_file(target, c);
}

int run_readonly_path(const struct value *v, struct context *c)
{
	struct attributes readonly = { .set = MOUNT_ATTR_RDONLY, .all = true };
	int r;
	CLOSE_AT_END int target = open_hidden(v[0].text, c);

	if (target == -ENOENT || target == -ENOTDIR)
		return 0;
	if (target < 0)
		return target;
	CLOSE_AT_END int tree = tree_clone(target, "", true);
	if (tree < 0)
		return tree;
	r = tree_change(tree, &readonly);
	if (r == -EOPNOTSUPP) {
		readonly.all = false; /* as runtimes did before Linux 5.12 */
		r = tree_change(tree, &readonly);
	}
	return r < 0 ? r : tree_attach(tree, target);
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
	int root = child_root(c);

	(void)v;
	return root < 0 ? root : tree_change(root, &(struct attributes){ .set = MOUNT_ATTR_RDONLY });
}

int run_root_propagation(const struct value *v, struct context *c)
{
	struct attributes attributes = { .propagation = v[0].number & ~(uint64_t)MS_REC, .all = v[0].number & MS_REC };
	int root = child_root(c);

	return root < 0 ? root : tree_change(root, &attributes);
}
