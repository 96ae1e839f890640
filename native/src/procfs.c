/*
 * A procfs of a pid namespace that is joined, for a plan that mounts a /proc there.
 *
 * procfs shows the namespace of the process that called fsopen(2), so one has to be born among the
 * processes of another container for that. Whoever has CAP_SYS_PTRACE there can trace it, or look through
 * its /proc/PID/root, at once (see exec.c); so before it is born, its parent, which nobody there sees, has
 *
 *     a mount namespace with an empty root    no descriptors but a socket    CAP_SYS_ADMIN alone
 *     a filter that allows fsopen(2), sendmsg(2), exit_group(2), and what the parent itself needs
 *
 * A context without a mount is no use to one who may not mount. What comes over the socket is checked to
 * be a procfs before it is attached.
 */
#include "util.h"

#include <linux/audit.h>
#include <linux/capability.h>
#include <linux/filter.h>
#include <linux/magic.h>
#include <linux/sched.h>
#include <linux/seccomp.h>
#include <sched.h>
#include <signal.h>
#include <sys/mount.h>
#include <sys/socket.h>
#include <sys/statfs.h>
#include <sys/wait.h>

#include "child.h"
#include "kernel.h"
#include "protocol.h"

#if defined(__x86_64__)
#define NATIVE_ARCH AUDIT_ARCH_X86_64
#elif defined(__aarch64__)
#define NATIVE_ARCH AUDIT_ARCH_AARCH64
#else
#error "name this architecture's AUDIT_ARCH_*"
#endif

static int become_rootless(void)
{
	int r = unshare(CLONE_NEWNS) < 0 ? -errno : 0;

	if (r == 0)
		r = sys_mount(NULL, "/", NULL, MS_REC | MS_PRIVATE, NULL);
	if (r == 0)
		r = sys_mount("empty", "/proc", "tmpfs", MS_RDONLY | MS_NOSUID | MS_NODEV | MS_NOEXEC, "mode=555");
	if (r == 0)
		r = chdir("/proc") < 0 ? -errno : sys_pivot_root(".", ".");
	if (r == 0)
		r = sys_umount2(".", MNT_DETACH);
	if (r == 0)
		r = chdir("/") < 0 ? -errno : 0;
	return r;
}

static int keep_only_admin(void)
{
	struct __user_cap_header_struct header = { .version = _LINUX_CAPABILITY_VERSION_3 };
	struct __user_cap_data_struct data[2] = { { .effective = 1u << CAP_SYS_ADMIN,
						    .permitted = 1u << CAP_SYS_ADMIN } };

	return (int)checked(syscall(SYS_capset, &header, data));
}

static int allow_only_opening(void)
{
	static const unsigned int calls[] = { SYS_fsopen, SYS_sendmsg, SYS_exit_group, SYS_clone, SYS_wait4, SYS_waitid };
	struct sock_filter filter[5 + 2 * ARRAY_SIZE(calls)] = {
		BPF_STMT(BPF_LD | BPF_W | BPF_ABS, offsetof(struct seccomp_data, arch)),
		BPF_JUMP(BPF_JMP | BPF_JEQ | BPF_K, NATIVE_ARCH, 1, 0),
		BPF_STMT(BPF_RET | BPF_K, SECCOMP_RET_KILL_PROCESS),
		BPF_STMT(BPF_LD | BPF_W | BPF_ABS, offsetof(struct seccomp_data, nr)),
	};
	struct sock_fprog program = { .filter = filter };
	unsigned short at = 4;

	for (size_t i = 0; i < ARRAY_SIZE(calls); i++) {
		filter[at++] = (struct sock_filter)BPF_JUMP(BPF_JMP | BPF_JEQ | BPF_K, calls[i], 0, 1);
		filter[at++] = (struct sock_filter)BPF_STMT(BPF_RET | BPF_K, SECCOMP_RET_ALLOW);
	}
	filter[at++] = (struct sock_filter)BPF_STMT(BPF_RET | BPF_K, SECCOMP_RET_KILL_PROCESS);
	program.len = at;
	return (int)checked(syscall(SYS_seccomp, SECCOMP_SET_MODE_FILTER, 0, &program));
}

static pid_t fork_here(void)
{
	return (pid_t)checked(syscall(SYS_clone, SIGCHLD, 0, 0, 0, 0));
}

/* The parent that nobody sees; `socket` is 0 and the namespace 1 when this starts. Never returns. */
static _Noreturn void give_birth(void)
{
	struct msg_head message = { .type = 0 };
	pid_t child;
	int r = sys_close_range(2, ~0u, 0);

	if (r == 0)
		r = die_with_parent();
	if (r == 0)
		r = become_rootless();
	if (r == 0)
		r = sys_setns(1, CLONE_NEWPID);
	if (r < 0 || close(1) < 0 || keep_only_admin() < 0 || allow_only_opening() < 0)
		_exit(1);
	child = fork_here();
	if (child == 0) {
		int fs = sys_fsopen("proc");

		_exit(fs < 0 || send_message(0, &message, sizeof(message), &fs, 1) < 0);
	}
	if (child > 0)
		waitpid(child, NULL, 0);
	_exit(child < 0);
}

int open_joined_proc(int namespace)
{
	struct msg_head message;
	struct iovec part = { &message, sizeof(message) };
	size_t count = 1;
	int pair[2], fs = -1;
	ssize_t size;
	pid_t helper;

	if (socketpair(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC, 0, pair) < 0)
		return -errno;
	CLOSE_AT_END int ours = pair[0];
	helper = fork_here();
	if (helper == 0) {
		/* neither of both is below 3: those are the process's streams */
		if (dup2(pair[1], 0) == 0 && dup2(namespace, 1) == 1)
			give_birth();
		_exit(1);
	}
	close(pair[1]);
	if (helper < 0)
		return helper;
	size = receive_message(ours, &part, 1, &fs, &count, 0);
	while (waitpid(helper, NULL, 0) < 0 && errno == EINTR)
		;
	if (size < 0)
		return (int)size;
	return size > 0 && count ? fs : -ESRCH; /* the namespace's first process ended */
}

int mount_joined_proc(int context, unsigned int attributes)
{
	struct statfs fs;
	int r = sys_fsconfig(context, FSCONFIG_SET_STRING, "source", "proc");

	if (r == 0)
		r = sys_fsconfig(context, FSCONFIG_CMD_CREATE, NULL, NULL);
	if (r < 0)
		return r;
	CLOSE_AT_END int mount = sys_fsmount(context, attributes);
	if (mount < 0)
		return mount;
	if (fstatfs(mount, &fs) < 0)
		return -errno;
	return fs.f_type == PROC_SUPER_MAGIC ? take(&mount) : -EXDEV;
}
