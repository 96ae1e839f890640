#include "util.h"

#include "root.h"

#include <limits.h>
#include <string.h>
#include <sys/stat.h>

#include "kernel.h"

#define IN_ROOT (RESOLVE_IN_ROOT | RESOLVE_NO_MAGICLINKS)
#define MAX_LINKS 40 /* as the kernel's own MAXSYMLINKS */

static int resolve(int root, const char *path, int flags, uint64_t how)
{
	for (int tries = 0;; tries++) {
		int fd = sys_openat2(root, path, (uint64_t)flags, 0, how);

		/* EAGAIN: a rename or mount elsewhere raced with a ".."; openat2(2) says to try again */
		if (fd != -EAGAIN || tries == 32)
			return fd;
	}
}

int root_open(int root, const char *path, int flags)
{
	return resolve(root, path, flags, IN_ROOT);
}

/* Open the directory `name`, just found or made in `dir`: neither a symlink nor "..". */
static int open_child(int dir, const char *name)
{
	return sys_openat2(dir, name, O_PATH | O_DIRECTORY | O_NOFOLLOW, 0, RESOLVE_BENEATH | RESOLVE_NO_SYMLINKS);
}

/*
 * A dangling symlink stands at path[0..end): put its target there, so that the walk starts again with
 * it. `start` is where its name begins, `rest` what follows it.
 */
static int splice_link(int dir, const char *name, char *path, size_t start, size_t end)
{
	char target[PATH_MAX], rest[PATH_MAX];
	ssize_t length = readlinkat(dir, name, target, sizeof(target) - 1);
	size_t base;

	if (length < 0)
		return errno == EINVAL ? -ENOTDIR : -errno;
	target[length] = '\0';
	base = target[0] == '/' ? 0 : start;
	if (base + (size_t)length + 1 + strlen(path + end) + 1 > PATH_MAX)
		return -ENAMETOOLONG;
	strcpy(rest, path + end);
	memcpy(path + base, target, (size_t)length);
	path[base + (size_t)length] = '\0';
	if (rest[0])
		strcat(path, rest);
	return 0;
}

/* Walk `path` (changed meanwhile) component by component and make what is missing. */
static int walk(int root, char *path, mode_t mode, bool *made)
{
	int links = 0;

again:;
	CLOSE_AT_END int dir = root_open(root, ".", O_PATH | O_DIRECTORY);
	size_t at = 0;

	while (dir >= 0) {
		size_t start = at + strspn(path + at, "/");
		size_t end = start + strcspn(path + start, "/");
		bool last = !path[end + strspn(path + end, "/")];
		char name[NAME_MAX + 1], saved = path[end];
		int next, r;

		if (start == end)
			return take(&dir);
		if (end - start > NAME_MAX)
			return -ENAMETOOLONG;
		memcpy(name, path + start, end - start);
		name[end - start] = '\0';

		path[end] = '\0';
		next = root_open(root, path, O_PATH | O_DIRECTORY);
		path[end] = saved;
		if (next == -ENOENT) {
			if (mkdirat(dir, name, last ? mode : 0755) == 0) {
				if (last && made)
					*made = true;
			} else if (errno != EEXIST) {
				return -errno;
			}
			next = open_child(dir, name);
			if (next == -ELOOP || next == -ENOTDIR) {
				r = splice_link(dir, name, path, start, end);
				if (r < 0)
					return r;
				if (++links > MAX_LINKS)
					return -ELOOP;
				close_fd(&dir);
				goto again;
			}
		}
		if (next < 0)
			return next;
		close(dir);
		dir = next;
		at = end;
	}
	return dir;
}

int root_make_dir(int root, const char *path, mode_t mode, bool *made)
{
	char copy[PATH_MAX];
	int fd = root_open(root, path, O_PATH | O_DIRECTORY);

	if (made)
		*made = false;
	if (fd != -ENOENT)
		return fd;
	if (strlen(path) >= sizeof(copy))
		return -ENAMETOOLONG;
	strcpy(copy, path);
	return walk(root, copy, mode, made);
}

int root_make_plain_dir(int root, const char *path, mode_t mode, bool *made)
{
	CLOSE_AT_END int dir = root_make_dir(root, path, mode, made);

	return dir < 0 ? dir : resolve(root, path, O_PATH | O_DIRECTORY, IN_ROOT | RESOLVE_NO_SYMLINKS);
}

int root_make_parent(int root, const char *path, char *name)
{
	char parent[PATH_MAX];
	size_t end = strlen(path), start;

	while (end && path[end - 1] == '/')
		end--;
	for (start = end; start && path[start - 1] != '/'; start--)
		;
	if (start == end || (end - start <= 2 && strspn(path + start, ".") >= end - start))
		return -EEXIST;
	if (end - start > NAME_MAX || start >= sizeof(parent))
		return -ENAMETOOLONG;
	memcpy(name, path + start, end - start);
	name[end - start] = '\0';
	memcpy(parent, path, start);
	parent[start] = '\0';
	return root_make_dir(root, start ? parent : ".", 0755, NULL);
}

int root_make_file(int root, const char *path)
{
	char name[NAME_MAX + 1];
	int found = root_open(root, path, O_PATH);

	if (found != -ENOENT)
		return found;
	CLOSE_AT_END int parent = root_make_parent(root, path, name);
	if (parent < 0)
		return parent;
	/* O_EXCL: a dangling symlink at this place is refused (EEXIST), not followed */
	CLOSE_AT_END int made = openat(parent, name, O_WRONLY | O_CREAT | O_EXCL | O_NOFOLLOW | O_CLOEXEC, 0644);
	if (made < 0)
		return -errno;
	return sys_openat2(parent, name, O_PATH | O_NOFOLLOW, 0, RESOLVE_BENEATH | RESOLVE_NO_SYMLINKS);
}
