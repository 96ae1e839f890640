/*
 * Mounts on their way to their place: cloned or new, given attributes, then attached, each by its descriptor.
 *
 * fsopen(2), open_tree(2), mount_setattr(2) and move_mount(2) do that where nobody sees the mount yet. A kernel (or a
 * filter) without them answers ENOSYS; then mount(2) does it at a stage, a directory or a file of the host's /proc
 * as the child's mount namespace has it, from where the mount is moved away at once.
 */
#ifndef COVE_TREE_H
#define COVE_TREE_H

#include <stdbool.h>
#include <stdint.h>

/* MOUNT_ATTR_* and MS_SHARED …, of one mount, or of all below it, too. */
struct attributes {
	uint64_t set, clear, propagation;
	bool all;
};

/* A copy of the mount at a path, with all below it when `all`; `dir` and "" name a descriptor. Or -errno. */
int tree_clone(int dir, const char *path, bool all);

/* A new filesystem, by mount(2)'s arguments. A descriptor of its root, or -errno. */
int tree_new(const char *type, const char *source, unsigned long flags, const char *data);

/* Change a tree, or a mount that is attached, by a descriptor of its root. -EOPNOTSUPP: the attributes of all can't be
 * set without mount_setattr(2). */
int tree_change(int tree, const struct attributes *attributes);

/* Give what is mounted at a descriptor of its root other flags, MS_REMOUNT among them, and options. */
int tree_remount(int mount, const char *type, unsigned long flags, const char *data);

/* Put a tree on what `target` is a descriptor of. */
int tree_attach(int tree, int target);

#endif
