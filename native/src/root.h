/*
 * Paths inside the container's root. Everything here resolves with openat2(2) RESOLVE_IN_ROOT and
 * RESOLVE_NO_MAGICLINKS and works on the descriptor that came out: no name is looked up twice, and
 * no symlink of an image leads outside.
 */
#ifndef COVE_ROOT_H
#define COVE_ROOT_H

#include <stdbool.h>
#include <sys/types.h>

/* Open a path inside `root`; returns a descriptor or -errno. */
int root_open(int root, const char *path, int flags);

/* Make a directory and its missing parents (0755 for these); one that is there is fine.
 * Returns an O_PATH descriptor of it, or -errno. `made` (may be NULL) tells whether the last was made. */
int root_make_dir(int root, const char *path, mode_t mode, bool *made);

/* The same, but no part of the path may be a symlink: -ELOOP. */
int root_make_plain_dir(int root, const char *path, mode_t mode, bool *made);

/* The directory that `path` is to be made in, its missing parents made, and the last name in it,
 * copied to `name` (NAME_MAX + 1 bytes). -EEXIST when there is no such name, as with "/" or "a/..". */
int root_make_parent(int root, const char *path, char *name);

/* An O_PATH descriptor of a file to mount upon, made (empty, with its parents) when missing. */
int root_make_file(int root, const char *path);

#endif
