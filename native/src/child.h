/* What the child's steps share. */
#ifndef COVE_CHILD_H
#define COVE_CHILD_H

#include "operations.h"

/* The root (O_PATH): the new one, or that of the mount namespace. A descriptor or -errno. */
int child_root(struct context *context);

/* The root's /dev/null (O_PATH), if it is the device: a descriptor or -errno. */
int open_null(int root);

/* Wait until the parent steps are done; nothing of the container runs before. Once. */
int wait_for_go(struct context *context);

/* The last preparations for execve(2), before a system call filter can forbid them. Once. */
int prepare_exec(struct context *context);

/* The parent-death signal is lost at changes of identity: ask for it (again). */
int die_with_parent(void);

/* When a pid namespace is joined: split off the process that lives there; returns in it alone. */
int split_off(struct context *context);

/* With `init`: split off the process to be executed; returns in it alone. */
int become_init(struct context *context);

#endif
