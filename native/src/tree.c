#include "util.h"

#include "tree.h"

#include <fcntl.h>
#include <linux/magic.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/vfs.h>

#include "kernel.h"

/* They are everywhere, and of the two kinds. What is mounted there meanwhile is not missed. */
#define STAGE_DIRECTORY "/proc/sys"
#define STAGE_FILE "/proc/version"

/* What mount(2) can name a descriptor by. */
struct name {
	char text[sizeof("/proc/self/fd/") + 10];
};

static int name_descriptor(int fd, struct name *name)
{
	static const char directory[] = "/proc/self/fd/";
	char digits[10];
	size_t count = 0, at = sizeof(directory) - 1;
	struct statfs fs;

	for (unsigned int rest = (unsigned int)fd; rest || !count; rest /= 10)
		digits[count++] = (char)('0' + rest % 10);
	memcpy(name->text, directory, at);
	while (count)
		name->text[at++] = digits[--count];
	name->text[at] = '\0';
	/* the host's own, not something that is mounted there */
	if (statfs(directory, &fs) < 0)
		return -errno;
	return fs.f_type == PROC_SUPER_MAGIC ? 0 : -EXDEV;
}

static int stage_of(int fd, const char **stage)
{
	struct stat st;

	if (fstat(fd, &st) < 0)
		return -errno;
	*stage = S_ISDIR(st.st_mode) ? STAGE_DIRECTORY : STAGE_FILE;
	return 0;
}

static int bind_to_stage(int dir, const char *path, bool all)
{
	struct name name;
	const char *stage;
	int r;

	CLOSE_AT_END int source = path[0] ? sys_openat2(dir, path, O_PATH, 0, 0) : fcntl(dir, F_DUPFD_CLOEXEC, 3);
	if (source < 0)
		return path[0] ? source : -errno;
	r = stage_of(source, &stage);
	if (r == 0)
		r = name_descriptor(source, &name);
	if (r == 0)
		r = sys_mount(name.text, stage, NULL, MS_BIND | (all ? MS_REC : 0), NULL);
	return r < 0 ? r : sys_openat2(AT_FDCWD, stage, O_PATH, 0, 0);
}

int tree_clone(int dir, const char *path, bool all)
{
	unsigned int flags = OPEN_TREE_CLONE | (all ? AT_RECURSIVE : 0) | (path[0] ? 0 : AT_EMPTY_PATH);
	int tree = sys_open_tree(dir, path, flags);

	return tree == -ENOSYS ? bind_to_stage(dir, path, all) : tree;
}

/* `key`, `key=value`, or `key="value, with commas"`. Changes the text. */
static int set_option(int fs, char *option)
{
	char *value = strchr(option, '=');
	size_t length;

	if (!value)
		return sys_fsconfig(fs, FSCONFIG_SET_FLAG, option, NULL);
	*value++ = '\0';
	length = strlen(value);
	if (length > 1 && value[0] == '"' && value[length - 1] == '"') {
		value[length - 1] = '\0';
		value++;
	}
	return sys_fsconfig(fs, FSCONFIG_SET_STRING, option, value);
}

static int set_options(int fs, const char *data)
{
	char page[4096], *option = page;
	size_t length = strlen(data);
	bool quoted = false;
	int r = 0;

	if (length >= sizeof(page))
		return -E2BIG;
	memcpy(page, data, length + 1);
	for (char *p = page; r == 0; p++) {
		bool last = !*p;

		quoted ^= *p == '"';
		if (!last && (*p != ',' || quoted))
			continue;
		*p = '\0';
		if (*option)
			r = set_option(fs, option);
		if (last)
			break;
		option = p + 1;
	}
	return r;
}

/* Of mount(2)'s flags, those that are the filesystem's, by its names, and those that are the mount's. */
static int set_flags(int fs, unsigned long flags)
{
	static const struct {
		unsigned long ms;
		const char *name;
	} known[] = { { MS_RDONLY, "ro" },	  { MS_SYNCHRONOUS, "sync" }, { MS_DIRSYNC, "dirsync" },
		      { MS_LAZYTIME, "lazytime" }, { MS_MANDLOCK, "mand" } };

	for (size_t i = 0; i < ARRAY_SIZE(known); i++) {
		int r = flags & known[i].ms ? sys_fsconfig(fs, FSCONFIG_SET_FLAG, known[i].name, NULL) : 0;

		if (r < 0)
			return r;
	}
	return 0;
}

static unsigned int mount_attributes(unsigned long flags)
{
	/* the first four are the same bits */
	unsigned int attributes = flags & (MOUNT_ATTR_RDONLY | MOUNT_ATTR_NOSUID | MOUNT_ATTR_NODEV | MOUNT_ATTR_NOEXEC);

	if (flags & MS_NOATIME)
		attributes |= MOUNT_ATTR_NOATIME;
	else if (flags & MS_STRICTATIME)
		attributes |= MOUNT_ATTR_STRICTATIME;
	return attributes | (flags & MS_NODIRATIME ? MOUNT_ATTR_NODIRATIME : 0) |
	       (flags & MS_NOSYMFOLLOW ? MOUNT_ATTR_NOSYMFOLLOW : 0);
}

int tree_new(const char *type, const char *source, unsigned long flags, const char *data)
{
	CLOSE_AT_END int fs = sys_fsopen(type);
	int r;

	if (fs == -ENOSYS) {
		r = sys_mount(source, STAGE_DIRECTORY, type, flags, data);
		return r < 0 ? r : sys_openat2(AT_FDCWD, STAGE_DIRECTORY, O_PATH | O_DIRECTORY, 0, 0);
	}
	if (fs < 0)
		return fs;
	r = sys_fsconfig(fs, FSCONFIG_SET_STRING, "source", source);
	if (r == 0)
		r = set_flags(fs, flags);
	if (r == 0)
		r = set_options(fs, data);
	if (r == 0)
		r = sys_fsconfig(fs, FSCONFIG_CMD_CREATE, NULL, NULL);
	return r < 0 ? r : sys_fsmount(fs, mount_attributes(flags));
}

/* The MS_* that a mount has, changed as asked. statfs(2): ST_* are those of calculate_f_flags(). */
static int changed_flags(int tree, const struct attributes *a, unsigned long *flags)
{
	static const struct {
		long st;
		unsigned long ms;
		uint64_t attribute;
	} known[] = {
		{ 0x1, MS_RDONLY, MOUNT_ATTR_RDONLY },	     { 0x2, MS_NOSUID, MOUNT_ATTR_NOSUID },
		{ 0x4, MS_NODEV, MOUNT_ATTR_NODEV },	     { 0x8, MS_NOEXEC, MOUNT_ATTR_NOEXEC },
		{ 0x400, MS_NOATIME, MOUNT_ATTR_NOATIME },   { 0x800, MS_NODIRATIME, MOUNT_ATTR_NODIRATIME },
		{ 0x2000, MS_NOSYMFOLLOW, MOUNT_ATTR_NOSYMFOLLOW },
	};
	const long relatime = 0x1000;
	struct statfs fs;

	if (fstatfs(tree, &fs) < 0)
		return -errno;
	*flags = 0;
	for (size_t i = 0; i < ARRAY_SIZE(known); i++)
		if ((a->set & known[i].attribute) ||
		    ((fs.f_flags & known[i].st) && !(a->clear & known[i].attribute)))
			*flags |= known[i].ms;
	if (*flags & MS_NOATIME)
		return 0;
	/* of three times there is one: no flag at all would keep the one that is */
	if ((a->set & MOUNT_ATTR_STRICTATIME) || (!(a->clear & MOUNT_ATTR__ATIME) && !(fs.f_flags & (relatime | 0x400))))
		*flags |= MS_STRICTATIME;
	else
		*flags |= MS_RELATIME;
	return 0;
}

static int apply_by_mount(int tree, const struct attributes *a)
{
	unsigned long flags = 0;
	struct name name;
	int r = name_descriptor(tree, &name);

	if (r == 0 && (a->set || a->clear)) {
		r = changed_flags(tree, a, &flags);
		if (r == 0)
			r = sys_mount(NULL, name.text, NULL, MS_REMOUNT | MS_BIND | flags, NULL);
	}
	if (r == 0 && a->propagation)
		r = sys_mount(NULL, name.text, NULL, a->propagation | (a->all ? MS_REC : 0), NULL);
	return r;
}

static int change_by_mount(int tree, const struct attributes *a)
{
	const char *stage;
	int r;

	if (a->all && (a->set || a->clear))
		return -EOPNOTSUPP;
	r = apply_by_mount(tree, a);
	if (r != -EINVAL)
		return r;
	/* mount(2) changes only what is attached (EINVAL): a clone that nobody has attached yet is, for that */
	r = stage_of(tree, &stage);
	if (r < 0)
		return r;
	CLOSE_AT_END int there = sys_openat2(AT_FDCWD, stage, O_PATH, 0, 0);
	if (there < 0)
		return there;
	r = sys_move_mount(tree, there);
	return r < 0 ? r : apply_by_mount(tree, a);
}

int tree_change(int tree, const struct attributes *a)
{
	struct mount_attr attr = { .attr_set = a->set, .attr_clr = a->clear, .propagation = a->propagation };
	int r;

	if (!a->set && !a->clear && !a->propagation)
		return 0;
	r = sys_mount_setattr(tree, a->all ? AT_RECURSIVE : 0, &attr);
	return r == -ENOSYS ? change_by_mount(tree, a) : r;
}

int tree_remount(int mount, const char *type, unsigned long flags, const char *data)
{
	struct name name;
	int r = name_descriptor(mount, &name);

	return r < 0 ? r : sys_mount(NULL, name.text, type, flags, data);
}

int tree_attach(int tree, int target)
{
	struct name from, to;
	int r = sys_move_mount(tree, target);

	if (r != -ENOSYS)
		return r;
	r = name_descriptor(tree, &from);
	if (r == 0)
		r = name_descriptor(target, &to);
	return r < 0 ? r : sys_mount(from.text, to.text, NULL, MS_MOVE, NULL);
}
