/*
 * System calls that musl 1.2.3 or glibc 2.36 have no function for, or one that hides the errno:
 * each returns the kernel's result or -errno.
 */
#ifndef COVE_KERNEL_H
#define COVE_KERNEL_H

#include <errno.h>
#include <fcntl.h>
#include <linux/close_range.h>
#include <linux/mount.h>
#include <linux/openat2.h>
#include <linux/sched.h>
#include <stddef.h>
#include <stdint.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <unistd.h>

#ifndef AT_RECURSIVE
#define AT_RECURSIVE 0x8000
#endif
#ifndef P_PIDFD
#define P_PIDFD 3
#endif
#ifndef UMOUNT_NOFOLLOW
#define UMOUNT_NOFOLLOW 8
#endif
#ifndef MNT_DETACH
#define MNT_DETACH 2
#endif

static inline long checked(long r)
{
	return r < 0 ? -errno : r;
}

static inline int sys_clone3(struct clone_args *args)
{
	return (int)checked(syscall(SYS_clone3, args, sizeof(*args)));
}

static inline int sys_openat2(int dir, const char *path, uint64_t flags, uint64_t mode, uint64_t resolve)
{
	struct open_how how = { .flags = flags | O_CLOEXEC, .mode = mode, .resolve = resolve };

	return (int)checked(syscall(SYS_openat2, dir, path, &how, sizeof(how)));
}

static inline int sys_mount(const char *source, const char *target, const char *type, unsigned long flags,
			    const char *data)
{
	return (int)checked(syscall(SYS_mount, source, target, type, flags, data));
}

static inline int sys_umount2(const char *target, int flags)
{
	return (int)checked(syscall(SYS_umount2, target, flags));
}

static inline int sys_pivot_root(const char *new_root, const char *put_old)
{
	return (int)checked(syscall(SYS_pivot_root, new_root, put_old));
}

static inline int sys_open_tree(int dir, const char *path, unsigned int flags)
{
	return (int)checked(syscall(SYS_open_tree, dir, path, flags | OPEN_TREE_CLOEXEC));
}

/* Attach the mount `from` where `to` is; neither is looked up again. */
static inline int sys_move_mount(int from, int to)
{
	return (int)checked(syscall(SYS_move_mount, from, "", to, "",
				    MOVE_MOUNT_F_EMPTY_PATH | MOVE_MOUNT_T_EMPTY_PATH));
}

static inline int sys_mount_setattr(int mount, unsigned int flags, struct mount_attr *attr)
{
	return (int)checked(syscall(SYS_mount_setattr, mount, "", flags | AT_EMPTY_PATH, attr, sizeof(*attr)));
}

static inline int sys_fsopen(const char *type)
{
	return (int)checked(syscall(SYS_fsopen, type, FSOPEN_CLOEXEC));
}

static inline int sys_fsconfig(int fs, unsigned int command, const char *key, const char *value)
{
	return (int)checked(syscall(SYS_fsconfig, fs, command, key, value, 0));
}

static inline int sys_fsmount(int fs, unsigned int attributes)
{
	return (int)checked(syscall(SYS_fsmount, fs, FSMOUNT_CLOEXEC, attributes));
}

static inline int sys_setns(int fd, int flags)
{
	return (int)checked(syscall(SYS_setns, fd, flags));
}

static inline int sys_close_range(unsigned int first, unsigned int last, unsigned int flags)
{
	return (int)checked(syscall(SYS_close_range, first, last, flags));
}

static inline int sys_pidfd_open(pid_t pid)
{
	return (int)checked(syscall(SYS_pidfd_open, pid, 0));
}

static inline int sys_pidfd_getfd(int pidfd, int fd)
{
	return (int)checked(syscall(SYS_pidfd_getfd, pidfd, fd, 0));
}

static inline int sys_pidfd_send_signal(int pidfd, int signo)
{
	return (int)checked(syscall(SYS_pidfd_send_signal, pidfd, signo, NULL, 0));
}

#endif
