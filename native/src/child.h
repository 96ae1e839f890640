/* What the child's steps share. */
#ifndef COVE_CHILD_H
#define COVE_CHILD_H

#include "operations.h"

/* The root (O_PATH): the new one, or that of the mount namespace. A descriptor or -errno. */
int child_root(struct context *context);

/* Whether a descriptor of what is to be mounted upon is on a procfs though the path doesn't say so: a link of the
 * image may lead there. 0 or -EXDEV. */
int check_place(int target, const char *path);

/* The root's /dev/null (O_PATH), if it is the device: a descriptor or -errno. */
int open_null(int root);

/* Wait until the parent steps are done; nothing of the container runs before. Once. */
int wait_for_go(struct context *context);

/* The last preparations for execve(2), before a system call filter can forbid them. Once. */
int prepare_exec(struct context *context);

/* The parent-death signal is lost at changes of identity: ask for it (again). A detached process outlives its
 * supervisor, so there it has none. */
int die_with_parent(void);
int die_with_supervisor(const struct context *context);

/* When a pid namespace is joined: split off the process that lives there; returns in it alone. */
int split_off(struct context *context);

/* A procfs context (fsopen(2)) of a pid namespace that is joined, made by a process that is born there and
 * can do nothing else; and a mount of it with MOUNT_ATTR_*, to be attached. A descriptor or -errno. */
int open_joined_proc(int namespace);
int mount_joined_proc(int context, unsigned int attributes);

/* Close every descriptor above 2 but what is preserved, `sync`, `go` and `status`. */
int close_others(const struct context *context);

/* Look a program up as the exec will: 0, or why it can't be executed. */
int find_program(const char *name, const char *path);

/* The signal mask and the actions of signals as a program expects them. */
int reset_signals(void);

/* With `init`: split off the process to be executed; returns in it alone. */
int become_init(struct context *context);

#endif
