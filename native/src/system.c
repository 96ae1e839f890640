/* Steps of the child that set up its namespaces: names, sysctls, links, /proc/self, the keyring. */
#include "util.h"

#include <limits.h>
#include <linux/keyctl.h>
#include <linux/magic.h>
#include <net/if.h>
#include <stdio.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/socket.h>
#include <sys/vfs.h>

#include "kernel.h"
#include "operations.h"

int run_hostname(const struct value *v, struct context *c)
{
	(void)c;
	return sethostname(v[0].text, v[0].size) < 0 ? -errno : 0;
}

int run_domainname(const struct value *v, struct context *c)
{
	(void)c;
	return setdomainname(v[0].text, v[0].size) < 0 ? -errno : 0;
}

/* Write below /proc; the file must lie on procfs, whatever was mounted there. */
static int write_proc(const char *prefix, const char *name, const char *data, size_t size, uint64_t resolve)
{
	char path[PATH_MAX];
	size_t length = strlen(prefix);
	struct statfs fs;
	ssize_t written;

	if (length + strlen(name) >= sizeof(path))
		return -ENAMETOOLONG;
	strcpy(path, prefix);
	strcpy(path + length, name);
	CLOSE_AT_END int fd = sys_openat2(AT_FDCWD, path, O_WRONLY, 0, resolve | RESOLVE_NO_MAGICLINKS);
	if (fd < 0)
		return fd;
	if (fstatfs(fd, &fs) < 0)
		return -errno;
	if (fs.f_type != PROC_SUPER_MAGIC)
		return -EXDEV;
	written = write(fd, data, size);
	if (written < 0)
		return -errno;
	return (size_t)written == size ? 0 : -EIO;
}

int run_sysctl(const struct value *v, struct context *c)
{
	(void)c;
	return write_proc("/proc/sys/", v[0].text, v[1].text, v[1].size, RESOLVE_NO_SYMLINKS);
}

int run_write_self(const struct value *v, struct context *c)
{
	int r = write_proc("/proc/self/", v[0].text, v[1].text, v[1].size, 0);

	(void)c;
	if (v[2].number && (r == -EACCES || r == -EPERM))
		return 0;
	return r;
}

int run_link_up(const struct value *v, struct context *c)
{
	struct ifreq request = { 0 };

	(void)c;
	CLOSE_AT_END int fd = socket(AF_INET, SOCK_DGRAM | SOCK_CLOEXEC, 0);
	if (fd < 0)
		return -errno;
	memcpy(request.ifr_name, v[0].text, v[0].size); /* check_link: it fits */
	if (ioctl(fd, SIOCGIFFLAGS, &request) < 0)
		return -errno;
	request.ifr_flags |= IFF_UP;
	return ioctl(fd, SIOCSIFFLAGS, &request) < 0 ? -errno : 0;
}

int run_session_keyring(const struct value *v, struct context *c)
{
	(void)c;
	/* Optional: kernels without keys, and full quotas, leave the daemon's own session keyring, which
	 * holds nothing. */
	syscall(SYS_keyctl, KEYCTL_JOIN_SESSION_KEYRING, v[0].text);
	return 0;
}
