#include "operations.h"

#include <errno.h>
#include <linux/sched.h>
#include <string.h>

#include "util.h"

#define IN(section) (1u << (section))
#define CHILD_ONLY IN(CHILD)
#define HOST_ONLY (IN(BEFORE) | IN(PARENT) | IN(EXIT))

static const char *check_set_ns(const struct value *v, enum section section)
{
	(void)section;
	return v[1].number ? NULL : "no namespace is named";
}

/* The supervisor stays where it is; of these two only its children see anything. */
static const char *check_unshare(const struct value *v, enum section section)
{
	if (section == BEFORE && v[0].number != CLONE_NEWTIME)
		return "only a time namespace can be made before the clone";
	return NULL;
}

static const char *check_program(const struct value *v, enum section section)
{
	(void)section;
	/* sock_filter and bpf_insn have 8 bytes each; 4096 is BPF_MAXINSNS of both for the unprivileged kind. */
	if (!v->size || v->size % 8 || v->size > 8 * 4096)
		return "a program has 1 to 4096 instructions of 8 bytes";
	return NULL;
}

static const char *check_device_program(const struct value *v, enum section section)
{
	return check_program(&v[1], section);
}

static const char *check_key(const struct value *v, enum section section)
{
	(void)section;
	if (!v->size || v->text[0] == '/' || strstr(v->text, ".."))
		return "expected a relative path without .. in it";
	return NULL;
}

static const char *check_self(const struct value *v, enum section section)
{
	if (section == BEFORE && strcmp(v[0].text, "timens_offsets"))
		return "only timens_offsets can be written before the clone";
	return check_key(v, section);
}

static const char *check_link(const struct value *v, enum section section)
{
	(void)section;
	return v->size && v->size < 16 ? NULL : "a link's name has 1 to 15 bytes";
}

static const char *check_exec(const struct value *v, enum section section)
{
	(void)section;
	return v[0].size && v[0].list[0][0] ? NULL : "there is nothing to execute";
}

static const char *check_ids(const struct value *v, enum section section)
{
	(void)section;
	for (size_t i = 0; i < v[2].size; i++) {
		const char *p = v[2].list[i];
		uint64_t n = 0;

		if (!*p)
			return "a group is empty";
		for (; *p; p++) {
			if (*p < '0' || *p > '9')
				return "a group isn't a decimal number";
			n = n * 10 + (uint64_t)(*p - '0');
			if (n > UINT32_MAX - 1)
				return "a group is beyond 4294967294";
		}
	}
	return v[2].size <= 256 ? NULL : "more than 256 groups";
}

/* The kernel takes whole words: more processors or nodes than it knows are of no use, but do no harm. */
static const char *check_mask(const struct value *v, enum section section)
{
	(void)section;
	return v->size && v->size % 8 == 0 && v->size <= 1024 ? NULL : "a mask has 8 to 1024 bytes, whole words";
}

static const char *check_policy(const struct value *v, enum section section)
{
	return v[1].size ? check_mask(&v[1], section) : NULL;
}

static const char *check_preserve(const struct value *v, enum section section)
{
	(void)section;
	return v[0].number <= v[1].number ? NULL : "the last slot comes before the first";
}

static const struct operation operations[] = {
	{ MAKE_HOST_DIR, HOST_ONLY, false, "MakeHostDir", "hui", run_make_host_dir, NULL },
	{ WRITE_HOST, HOST_ONLY, false, "WriteHost", "hsi", run_write_host, NULL },
	{ WRITE_PID, IN(PARENT), false, "WritePid", "h", run_write_pid, NULL },
	{ JOIN_CGROUP, CHILD_ONLY, false, "JoinCgroup", "h", run_join_cgroup, NULL },
	{ REMOVE_HOST_DIR, IN(EXIT), false, "RemoveHostDir", "h", run_remove_host_dir, NULL },
	{ UNMOUNT_HOST, IN(EXIT), false, "UnmountHost", "h", run_unmount_host, NULL },
	{ READ_OOM, IN(EXIT), true, "ReadOom", "hs", run_read_oom, NULL },
	{ ATTACH_DEVICE_PROGRAM, IN(BEFORE) | IN(PARENT), false, "AttachDeviceProgram", "hb",
	  run_attach_device_program, check_device_program },

	{ SET_NS, CHILD_ONLY | IN(BEFORE), false, "SetNs", "du", run_set_ns, check_set_ns },
	{ PROPAGATE, CHILD_ONLY, false, "Propagate", "u", run_propagate, NULL },
	{ MOUNT_ROOT, CHILD_ONLY, false, "MountRoot", "sshush", run_mount_root, NULL },
	{ BIND_ROOT, CHILD_ONLY, false, "BindRoot", "h", run_bind_root, NULL },
	{ MOUNT_IN, CHILD_ONLY, false, "MountIn", "ssrusiui", run_mount_in, NULL },
	{ BIND, CHILD_ONLY, false, "Bind", "hriuuuuu", run_bind, NULL },
	{ MAKE_DIR, CHILD_ONLY, false, "MakeDir", "ruuu", run_make_dir, NULL },
	{ MAKE_NODE, CHILD_ONLY, false, "MakeNode", "ruuuuu", run_make_node, NULL },
	{ MAKE_SYMLINK, CHILD_ONLY, false, "MakeSymlink", "rr", run_make_symlink, NULL },
	{ MASK, CHILD_ONLY, false, "Mask", "r", run_mask, NULL },
	{ READONLY_PATH, CHILD_ONLY, false, "ReadonlyPath", "r", run_readonly_path, NULL },
	{ PIVOT_ROOT, CHILD_ONLY, false, "PivotRoot", "", run_pivot_root, NULL },
	{ ROOT_READONLY, CHILD_ONLY, false, "RootReadonly", "", run_root_readonly, NULL },
	{ ROOT_PROPAGATION, CHILD_ONLY, false, "RootPropagation", "u", run_root_propagation, NULL },
	{ UNSHARE, CHILD_ONLY | IN(BEFORE), false, "Unshare", "u", run_unshare, check_unshare },
	{ ATTACH_TREE, CHILD_ONLY, false, "AttachTree", "driuuuuu", run_attach_tree, NULL },
	{ ATTACH_ROOT, CHILD_ONLY, false, "AttachRoot", "dh", run_attach_root, NULL },
	{ COPY_UP, CHILD_ONLY, false, "CopyUp", "russu", run_copy_up, NULL },
	{ CHROOT, CHILD_ONLY, false, "Chroot", "h", run_chroot, NULL },

	{ HOSTNAME, CHILD_ONLY, false, "Hostname", "s", run_hostname, NULL },
	{ DOMAINNAME, CHILD_ONLY, false, "Domainname", "s", run_domainname, NULL },
	{ SYSCTL, CHILD_ONLY, false, "Sysctl", "ss", run_sysctl, check_key },
	{ LINK_UP, CHILD_ONLY, false, "LinkUp", "s", run_link_up, check_link },
	{ WRITE_SELF, CHILD_ONLY | IN(BEFORE), false, "WriteSelf", "ssi", run_write_self, check_self },
	{ BECOME_ROOT, CHILD_ONLY, false, "BecomeRoot", "", run_become_root, NULL },
	{ PAUSE, CHILD_ONLY, false, "Pause", "s", run_pause, NULL },
	{ RUN_HOOK, CHILD_ONLY, false, "RunHook", "hllu", run_hook, NULL },

	{ RLIMIT, CHILD_ONLY | IN(PARENT), false, "Rlimit", "uii", run_rlimit, NULL },
	{ UMASK, CHILD_ONLY, false, "Umask", "u", run_umask, NULL },
	{ SESSION_KEYRING, CHILD_ONLY, false, "SessionKeyring", "s", run_session_keyring, NULL },
	{ TERMINAL, CHILD_ONLY, false, "Terminal", "uuiu", run_terminal, NULL },
	{ RESOLVE_USER, CHILD_ONLY, false, "ResolveUser", "sl", run_resolve_user, NULL },
	{ SET_IDS, CHILD_ONLY, false, "SetIds", "uul", run_set_ids, check_ids },
	{ DROP_BOUNDING, CHILD_ONLY, false, "DropBounding", "i", run_drop_bounding, NULL },
	{ CAPABILITIES, CHILD_ONLY, false, "Capabilities", "iiii", run_capabilities, NULL },
	{ NO_NEW_PRIVS, CHILD_ONLY, false, "NoNewPrivs", "", run_no_new_privs, NULL },
	{ SECCOMP, CHILD_ONLY, false, "Seccomp", "bu", run_seccomp, check_program },
	{ CHDIR, CHILD_ONLY, false, "Chdir", "ri", run_chdir, NULL },
	{ EXEC, CHILD_ONLY, false, "Exec", "lli", run_exec, check_exec },
	{ HOLD, CHILD_ONLY, false, "Hold", "ddss", run_hold, NULL },
	{ AFFINITY, CHILD_ONLY, false, "Affinity", "b", run_affinity, check_mask },
	{ SCHEDULER, CHILD_ONLY, false, "Scheduler", "uiiuiii", run_scheduler, NULL },
	{ IO_PRIORITY, CHILD_ONLY, false, "IoPriority", "uu", run_io_priority, NULL },
	{ PERSONALITY, CHILD_ONLY, false, "Personality", "u", run_personality, NULL },
	{ MEMORY_POLICY, CHILD_ONLY, false, "MemoryPolicy", "ub", run_memory_policy, check_policy },
	{ PRESERVE, CHILD_ONLY, false, "Preserve", "dd", run_preserve, check_preserve },
};

const struct operation *find_operation(uint32_t kind)
{
	for (size_t i = 0; i < ARRAY_SIZE(operations); i++)
		if (operations[i].kind == kind)
			return &operations[i];
	return NULL;
}

int run_steps(const struct steps *steps, struct context *context)
{
	for (uint32_t i = 0; i < steps->count; i++) {
		const struct step *step = &steps->steps[i];
		int r;

		context->index = i;
		r = step->operation->run(step->values, context);
		if (r < 0)
			return r;
	}
	return 0;
}
