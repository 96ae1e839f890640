/* Steps of the supervisor: cgroups and the host's files. Their paths are Cove's own. */
#include "util.h"

#include <errno.h>
#include <fcntl.h>
#include <linux/bpf.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/syscall.h>

#include "kernel.h"
#include "operations.h"

#define REMOVE_BOUND_MS 2000

int run_make_host_dir(const struct value *v, struct context *c)
{
	(void)c;
	if (mkdir(v[0].text, (mode_t)v[1].number) < 0 && !(errno == EEXIST && v[2].number))
		return -errno;
	return 0;
}

static int write_file(const char *path, const char *data, size_t size)
{
	CLOSE_AT_END int fd = open(path, O_WRONLY | O_CLOEXEC);
	ssize_t written;

	if (fd < 0)
		return -errno;
	written = write(fd, data, size);
	if (written < 0)
		return -errno;
	return (size_t)written == size ? 0 : -EIO;
}

int run_write_host(const struct value *v, struct context *c)
{
	int r = write_file(v[0].text, v[1].text, v[1].size);

	(void)c;
	return r == -ENOENT && v[2].number ? 0 : r;
}

int run_write_pid(const struct value *v, struct context *c)
{
	char digits[16], *p = digits + sizeof(digits);
	pid_t pid = c->child;

	do {
		*--p = (char)('0' + pid % 10);
		pid /= 10;
	} while (pid);
	return write_file(v[0].text, p, (size_t)(digits + sizeof(digits) - p));
}

/* The caller moves itself: the kernel needs no global lock for that. */
int run_join_cgroup(const struct value *v, struct context *c)
{
	(void)c;
	return write_file(v[0].text, "0", 1);
}

int run_remove_host_dir(const struct value *v, struct context *c)
{
	struct timespec pause = { .tv_nsec = 100000 };
	uint64_t end = 0;

	(void)c;
	while (rmdir(v[0].text) < 0) {
		if (errno == ENOENT)
			return 0;
		if (errno != EBUSY)
			return -errno;
		/* A cgroup stays busy for a moment after its last process was reaped; there is no event. */
		if (!end)
			end = now_ms() + REMOVE_BOUND_MS;
		else if (now_ms() >= end)
			return -EBUSY;
		nanosleep(&pause, NULL);
		if (pause.tv_nsec < 10000000)
			pause.tv_nsec *= 2;
	}
	return 0;
}

int run_unmount_host(const struct value *v, struct context *c)
{
	int r = sys_umount2(v[0].text, MNT_DETACH | UMOUNT_NOFOLLOW);

	(void)c;
	return r == -EINVAL || r == -ENOENT ? 0 : r; /* nothing is mounted there */
}

int run_read_oom(const struct value *v, struct context *c)
{
	char text[1024];
	ssize_t length;
	CLOSE_AT_END int fd = open(v[0].text, O_RDONLY | O_CLOEXEC);

	if (fd < 0)
		return -errno;
	length = read(fd, text, sizeof(text) - 1);
	if (length < 0)
		return -errno;
	text[length] = '\0';
	for (char *line = text; line; line = strchr(line, '\n')) {
		line += *line == '\n';
		if (!strncmp(line, v[1].text, v[1].size) && line[v[1].size] == ' ' &&
		    strtoull(line + v[1].size, NULL, 10) > 0)
			c->oom_killed = true;
	}
	return 0;
}

int run_attach_device_program(const struct value *v, struct context *c)
{
	static const char license[] = "Apache";
	union bpf_attr load = {
		.prog_type = BPF_PROG_TYPE_CGROUP_DEVICE,
		.insns = (uintptr_t)v[1].data,
		.insn_cnt = (uint32_t)(v[1].size / 8),
		.license = (uintptr_t)license,
	};

	(void)c;
	CLOSE_AT_END int group = open(v[0].text, O_RDONLY | O_DIRECTORY | O_CLOEXEC);
	if (group < 0)
		return -errno;
	CLOSE_AT_END int program = (int)checked(syscall(SYS_bpf, BPF_PROG_LOAD, &load, sizeof(load)));
	if (program < 0)
		return program;
	union bpf_attr attach = {
		.target_fd = (uint32_t)group,
		.attach_bpf_fd = (uint32_t)program,
		.attach_type = BPF_CGROUP_DEVICE,
		.attach_flags = BPF_F_ALLOW_MULTI,
	};
	return (int)checked(syscall(SYS_bpf, BPF_PROG_ATTACH, &attach, sizeof(attach)));
}
