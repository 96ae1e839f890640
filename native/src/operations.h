/* The table of operations: for each kind of step its fields, where it may stand, and its function. */
#ifndef COVE_OPERATIONS_H
#define COVE_OPERATIONS_H

#include <sys/types.h>

#include "plan.h"

enum kind {
	MAKE_HOST_DIR = 1,
	WRITE_HOST = 2,
	WRITE_PID = 3,
	REMOVE_HOST_DIR = 4,
	READ_OOM = 5,
	ATTACH_DEVICE_PROGRAM = 6,
	JOIN_CGROUP = 7,
	UNMOUNT_HOST = 8,
	SET_NS = 16,
	PROPAGATE = 17,
	MOUNT_ROOT = 18,
	BIND_ROOT = 19,
	MOUNT_IN = 20,
	BIND = 21,
	MAKE_DIR = 22,
	MAKE_NODE = 23,
	MAKE_SYMLINK = 24,
	MASK = 25,
	READONLY_PATH = 26,
	PIVOT_ROOT = 27,
	ROOT_READONLY = 28,
	ROOT_PROPAGATION = 29,
	UNSHARE = 30,
	ATTACH_TREE = 31,
	HOSTNAME = 32,
	DOMAINNAME = 33,
	SYSCTL = 34,
	LINK_UP = 35,
	WRITE_SELF = 36,
	BECOME_ROOT = 37,
	PAUSE = 38,
	RUN_HOOK = 39,
	ATTACH_ROOT = 40,
	CHROOT = 41,
	COPY_UP = 42,
	RLIMIT = 48,
	UMASK = 49,
	SESSION_KEYRING = 50,
	TERMINAL = 51,
	RESOLVE_USER = 52,
	SET_IDS = 53,
	DROP_BOUNDING = 54,
	CAPABILITIES = 55,
	NO_NEW_PRIVS = 56,
	SECCOMP = 57,
	CHDIR = 58,
	EXEC = 59,
	HOLD = 60,
	AFFINITY = 61,
	SCHEDULER = 62,
	IO_PRIORITY = 63,
	PERSONALITY = 64,
	MEMORY_POLICY = 65,
	PRESERVE = 66,
};

/* What ResolveUser brought: it replaces the ids of SetIds and adds to the environment of Exec. */
struct identity {
	bool resolved;
	uid_t uid;
	gid_t gid;
	uint32_t group_count;
	gid_t *groups;
	uint32_t env_count;
	char *env[MAX_ENV_ADDITIONS];
};

/* What steps share. One exists in the supervisor, and the child has a copy of it. */
struct context {
	int slots[MAX_SLOTS];
	size_t slot_count;
	bool detached;    /* the process is a child of whoever started the supervisor, and outlives it */
	bool unprivileged; /* the supervisor isn't root: of its user namespace, if it lives in one */
	bool helper_joins; /* before steps: SetNs is left to a helper (clone.c) */
	pid_t child;      /* parent steps: whom WritePid and Rlimit name; 0 in the child itself */
	bool oom_killed;  /* exit steps: set by ReadOom */
	int control;      /* child: the daemon, for ResolveUser and Pause */
	int sync;         /* child: the supervisor */
	bool joins_pid;   /* child: the process is to be split off into a pid namespace (see split_off) */
	bool wants_terminal; /* child: who is split off makes 0 its controlling terminal */
	bool wants_proc;  /* child: a MountIn of a proc will need `proc`, a context of the joined namespace */
	int proc;
	pid_t *born;      /* memory shared with the supervisor: who was split off; NULL when nobody will be */
	int root;         /* child: the new root (O_PATH), -1 before it is mounted */
	int null;         /* child: the root's /dev/null (O_PATH), opened by the first Mask that needs it */
	int procfs;       /* child: the root of the procfs mounted at /proc (O_PATH), -1 before it is */
	int empty;        /* child: the empty directory of Mask, mounted by the first that needs it */
	bool held;        /* child: the parent steps may not be done yet */
	unsigned int preserved; /* child: how many descriptors from 3 on are the process's */
	int go;           /* child: the FIFOs of Hold, -1 without one */
	int status;
	bool released;    /* child: Hold has told the supervisor; what fails from here on goes to `status` */
	bool has_stdin;   /* child: 0 is a pipe, or will be the terminal */
	bool umask_set;
	bool exec_ready;
	uint32_t index;   /* of the step that runs */
	struct identity identity;
	void *answer;     /* memory for the daemon's answer to ResolveUser, MAX_ANSWER bytes */
	char *text;       /* memory for the text that came with the last Pause or Hold, MAX_ANSWER bytes */
	size_t text_size;
};

typedef int run_step(const struct value *values, struct context *context);

/*
 * `fields` has a letter for each field:
 *   i number    u number below 2^32    d slot    s text    b bytes    l list of texts
 *   h absolute host path    r path inside the root (not empty)
 */
struct operation {
	uint16_t kind;
	uint8_t sections; /* bits of 1 << enum section */
	bool first;       /* exit steps: before the end is made known */
	const char *name;
	const char *fields;
	run_step *run;
	const char *(*check)(const struct value *values, enum section section); /* a reason to refuse */
};

/* NULL for a kind that doesn't exist. */
const struct operation *find_operation(uint32_t kind);

/* Run steps in order; stop at the first failure: -errno, and its index is in `context->index`. */
int run_steps(const struct steps *steps, struct context *context);

run_step run_make_host_dir, run_write_host, run_write_pid, run_join_cgroup, run_remove_host_dir, run_unmount_host, run_read_oom,
	run_attach_device_program;
run_step run_set_ns, run_propagate, run_mount_root, run_bind_root, run_mount_in, run_bind, run_make_dir,
	run_make_node, run_make_symlink, run_mask, run_readonly_path, run_pivot_root, run_root_readonly,
	run_root_propagation, run_unshare, run_attach_tree, run_attach_root, run_chroot, run_copy_up;
run_step run_hostname, run_domainname, run_sysctl, run_link_up, run_write_self, run_become_root, run_pause, run_hook;
run_step run_rlimit, run_umask, run_session_keyring, run_terminal, run_resolve_user, run_set_ids,
	run_drop_bounding, run_capabilities, run_no_new_privs, run_seccomp, run_chdir, run_exec, run_hold;
run_step run_affinity, run_scheduler, run_io_priority, run_personality, run_memory_policy, run_preserve;

#endif
