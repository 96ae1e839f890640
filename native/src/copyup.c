/*
 * The CopyUp step: a tmpfs that starts with a copy of the directory that it covers.
 *
 * The copy is made while nobody sees the tmpfs. What is read may be changed meanwhile by others: each directory is
 * read by its own descriptor, and no symlink and no mount is followed. Bounded by the depth below, and by the
 * tmpfs's own size. Sockets are left out; so are devices where they can't be made (a user namespace).
 */
#include "util.h"

#include <limits.h>
#include <string.h>
#include <sys/sendfile.h>
#include <sys/stat.h>

#include "child.h"
#include "kernel.h"
#include "operations.h"
#include "root.h"
#include "tree.h"

#define MAX_DEPTH 128u
#define BENEATH (RESOLVE_BENEATH | RESOLVE_NO_SYMLINKS | RESOLVE_NO_XDEV)

struct entry {
	uint64_t inode;
	int64_t next;
	unsigned short size;
	unsigned char type;
	char name[];
};

static int copy_directory(int from, int to, unsigned int depth);

/* The owner first: a change of it takes set-user-ID bits away. */
static int copy_attributes(int dir, const char *name, const struct stat *st)
{
	struct timespec times[2] = { st->st_atim, st->st_mtim };

	if (fchownat(dir, name, st->st_uid, st->st_gid, AT_SYMLINK_NOFOLLOW) < 0)
		return -errno;
	/* in here nobody but us makes links */
	if (!S_ISLNK(st->st_mode) && fchmodat(dir, name, st->st_mode & 07777, 0) < 0)
		return -errno;
	return utimensat(dir, name, times, AT_SYMLINK_NOFOLLOW) < 0 ? -errno : 0;
}

/* `st` becomes that of the file that is copied: in between, one could have been exchanged for another. */
static int copy_file(int from, int to, const char *name, struct stat *st)
{
	CLOSE_AT_END int in = sys_openat2(from, name, O_RDONLY | O_NONBLOCK | O_NOCTTY, 0, BENEATH);

	if (in < 0)
		return in;
	if (fstat(in, st) < 0)
		return -errno;
	if (!S_ISREG(st->st_mode))
		return -ESTALE;
	CLOSE_AT_END int out = openat(to, name, O_WRONLY | O_CREAT | O_EXCL | O_NOFOLLOW | O_CLOEXEC, 0600);
	if (out < 0)
		return -errno;
	for (;;) {
		ssize_t sent = sendfile(out, in, NULL, 1 << 20);

		if (sent < 0)
			return -errno;
		if (sent == 0)
			return 0;
	}
}

static int copy_link(int link, int to, const char *name)
{
	char target[PATH_MAX];
	ssize_t length = readlinkat(link, "", target, sizeof(target) - 1);

	if (length < 0)
		return -errno;
	target[length] = '\0';
	return symlinkat(target, to, name) < 0 ? -errno : 0;
}

static int copy_child(int from, int to, const char *name, struct stat *st, unsigned int depth)
{
	CLOSE_AT_END int in = sys_openat2(from, name, O_RDONLY | O_DIRECTORY, 0, BENEATH);

	if (in < 0)
		return in;
	if (fstat(in, st) < 0)
		return -errno;
	if (mkdirat(to, name, 0700) < 0)
		return -errno;
	CLOSE_AT_END int out = sys_openat2(to, name, O_RDONLY | O_DIRECTORY, 0, BENEATH);
	return out < 0 ? out : copy_directory(in, out, depth + 1);
}

static int copy_entry(int from, int to, const char *name, unsigned int depth)
{
	struct stat st;
	int r;

	CLOSE_AT_END int fd = sys_openat2(from, name, O_PATH | O_NOFOLLOW, 0, RESOLVE_BENEATH | RESOLVE_NO_XDEV);
	if (fd == -EXDEV || fd == -ENOENT) /* something is mounted there, or it is gone */
		return 0;
	if (fd < 0)
		return fd;
	if (fstat(fd, &st) < 0)
		return -errno;
	switch (st.st_mode & S_IFMT) {
	case S_IFDIR:
		r = copy_child(from, to, name, &st, depth);
		break;
	case S_IFREG:
		r = copy_file(from, to, name, &st);
		break;
	case S_IFLNK:
		r = copy_link(fd, to, name);
		break;
	case S_IFCHR:
	case S_IFBLK:
	case S_IFIFO:
		r = mknodat(to, name, st.st_mode, st.st_rdev) < 0 ? -errno : 0;
		if (r == -EPERM)
			return 0;
		break;
	default:
		return 0;
	}
	return r < 0 ? r : copy_attributes(to, name, &st);
}

static int copy_directory(int from, int to, unsigned int depth)
{
	_Alignas(struct entry) char buffer[2048];

	if (depth > MAX_DEPTH)
		return -ELOOP;
	for (;;) {
		long size = checked(syscall(SYS_getdents64, from, buffer, sizeof(buffer)));

		if (size <= 0)
			return (int)size;
		for (long at = 0; at < size;) {
			const struct entry *entry = (const struct entry *)(buffer + at);
			const char *name = entry->name;
			int r = 0;

			at += entry->size;
			if (strcmp(name, ".") && strcmp(name, ".."))
				r = copy_entry(from, to, name, depth);
			if (r < 0)
				return r;
		}
	}
}

static bool has_option(const char *data, const char *name)
{
	size_t length = strlen(name);

	for (; *data; data += strcspn(data, ","), data += *data == ',')
		if (!strncmp(data, name, length))
			return true;
	return false;
}

/* The root of the copy is as the directory was, but for what the options say. */
static int copy_root(int from, int to, const char *data)
{
	struct timespec times[2];
	struct stat st;
	uid_t uid;
	gid_t gid;

	if (fstat(from, &st) < 0)
		return -errno;
	uid = has_option(data, "uid=") ? (uid_t)-1 : st.st_uid;
	gid = has_option(data, "gid=") ? (gid_t)-1 : st.st_gid;
	if (fchown(to, uid, gid) < 0)
		return -errno;
	if (!has_option(data, "mode=") && fchmod(to, st.st_mode & 07777) < 0)
		return -errno;
	times[0] = st.st_atim;
	times[1] = st.st_mtim;
	return futimens(to, times) < 0 ? -errno : 0;
}

static int fill(int place, int tree, const char *data)
{
	CLOSE_AT_END int from = sys_openat2(place, ".", O_RDONLY | O_DIRECTORY, 0, BENEATH);
	CLOSE_AT_END int to = sys_openat2(tree, ".", O_RDONLY | O_DIRECTORY, 0, BENEATH);
	int r = from < 0 ? from : to < 0 ? to : copy_directory(from, to, 0);

	return r < 0 ? r : copy_root(from, to, data);
}

int run_copy_up(const struct value *v, struct context *c)
{
	unsigned long flags = v[1].number;
	struct attributes attributes = {
		.set = flags & MS_RDONLY ? MOUNT_ATTR_RDONLY : 0,
		.propagation = v[4].number & ~(uint64_t)MS_REC,
	};
	int root = child_root(c), r;

	if (root < 0)
		return root;
	CLOSE_AT_END int place = root_make_dir(root, v[0].text, 0755, NULL);
	if (place < 0)
		return place;
	r = check_place(place, v[0].text);
	if (r < 0)
		return r;
	CLOSE_AT_END int tree = tree_new("tmpfs", v[3].text, flags & ~(unsigned long)MS_RDONLY, v[2].text);
	if (tree < 0)
		return tree;
	r = fill(place, tree, v[2].text);
	if (r == 0)
		r = tree_change(tree, &attributes);
	return r < 0 ? r : tree_attach(tree, place);
}
