/*
 * The floor: what the kernel alone needs to run one process in a default container.
 *
 * Each round makes the isolation of Cove's default container with bare system calls and
 * takes it down again: directories and generated files, one cgroup in every hierarchy,
 * clone3(2) into fresh namespaces, overlay root, the mounts, masks,
 * read-only paths, devices and links, pivot_root(2), identity, capabilities, the system
 * call filter, execve(2), wait, removal. Nothing is parsed, decided, logged, stored or
 * supervised, no path is resolved safely and nothing is answered: an engine does all of
 * that on top, and the benchmark shows the ratio.
 *
 * Order that must hold: a round's clock runs from its first mkdir to its last rmdir. The
 * filter goes in before the capabilities go (no no_new_privs, as Docker's default).
 *
 * Prints the nanoseconds of each round, one a line. Exit status 0, or 1 with one sentence.
 */
#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <ftw.h>
#include <getopt.h>
#include <grp.h>
#include <linux/capability.h>
#include <linux/filter.h>
#include <linux/if.h>
#include <linux/keyctl.h>
#include <linux/sched.h>
#include <linux/seccomp.h>
#include <sched.h>
#include <signal.h>
#include <stdarg.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/mount.h>
#include <sys/prctl.h>
#include <sys/resource.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/sysmacros.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

enum { MAX_HIERARCHIES = 16, MAX_MASKS = 128, MAX_FILTER = 4096, PATH_SIZE = 1024 };

struct settings {
	const char *directory; /* the round's directory, made and removed */
	const char *lower;     /* overlay's lowerdir option */
	const char *cgroup;    /* the round's cgroup below each hierarchy; its parent is there */
	const char *hierarchies[MAX_HIERARCHIES];
	int hierarchy_count;
	const char *masks[MAX_MASKS]; /* paths to hide, without the leading slash */
	int mask_count;
	int unified; /* the hierarchy is cgroup v2: one directory, one mount */
	int network; /* a network namespace with its loopback up */
	int rounds;
	struct sock_filter filter[MAX_FILTER];
	unsigned short filter_length;
	char **command;
};

/* What Docker's default container keeps: 14 capabilities. */
static const uint64_t KEPT_CAPABILITIES = 0xa80425fb;

static const char *const READONLY_PATHS[] = {"proc/bus", "proc/fs", "proc/irq", "proc/sys", "proc/sysrq-trigger"};
/* What Docker sets in every network namespace that it makes. */
static const struct {
	const char *path, *value;
} NETWORK_SETTINGS[] = {{"/proc/sys/net/ipv4/ip_unprivileged_port_start", "0"},
			{"/proc/sys/net/ipv4/ping_group_range", "0 2147483647"}};
static const char *const GENERATED[] = {"hosts", "hostname", "resolv.conf"};
static const struct {
	const char *path;
	unsigned int major, minor;
} DEVICES[] = {{"dev/null", 1, 3}, {"dev/zero", 1, 5},    {"dev/full", 1, 7},
	       {"dev/tty", 5, 0},  {"dev/random", 1, 8}, {"dev/urandom", 1, 9}};
static const struct {
	const char *target, *path;
} LINKS[] = {{"/proc/self/fd", "dev/fd"},	{"/proc/self/fd/0", "dev/stdin"}, {"/proc/self/fd/1", "dev/stdout"},
	     {"/proc/self/fd/2", "dev/stderr"}, {"/proc/kcore", "dev/core"},	  {"pts/ptmx", "dev/ptmx"}};

#define COUNT(array) (sizeof(array) / sizeof((array)[0]))

/* What a failure in the parent has to take down; NULL in the child and between rounds. */
static const struct settings *undo;
static pid_t undo_child;

static int remove_entry(const char *path, const struct stat *status, int type, struct FTW *where)
{
	(void)status, (void)type, (void)where;
	return remove(path);
}

static void undo_round(void)
{
	const struct settings *s = undo;
	char path[2048];

	undo = NULL;
	if (undo_child > 0 && kill(undo_child, SIGKILL) == 0)
		waitpid(undo_child, NULL, 0);
	for (int i = 0; i < s->hierarchy_count; i++) {
		snprintf(path, sizeof path, "%s/%s", s->hierarchies[i], s->cgroup);
		rmdir(path);
	}
	nftw(s->directory, remove_entry, 16, FTW_DEPTH | FTW_PHYS);
}

__attribute__((noreturn, format(printf, 1, 2))) static void fail(const char *format, ...)
{
	int error = errno;
	va_list arguments;

	fputs("floor: ", stderr);
	va_start(arguments, format);
	vfprintf(stderr, format, arguments);
	va_end(arguments);
	fprintf(stderr, ": %s\n", strerror(error));
	if (undo != NULL)
		undo_round();
	_exit(1);
}

__attribute__((format(printf, 2, 3))) static const char *text(char buffer[PATH_SIZE], const char *format, ...)
{
	va_list arguments;

	va_start(arguments, format);
	int length = vsnprintf(buffer, PATH_SIZE, format, arguments);
	va_end(arguments);
	if (length < 0 || length >= PATH_SIZE) {
		errno = ENAMETOOLONG;
		fail("%s", format);
	}
	return buffer;
}

static int64_t now_ns(void)
{
	struct timespec now;

	clock_gettime(CLOCK_MONOTONIC, &now);
	return (int64_t)now.tv_sec * 1000000000 + now.tv_nsec;
}

static void write_file(const char *path, int flags, const char *data)
{
	int fd = open(path, flags | O_WRONLY | O_CLOEXEC, 0644);

	if (fd < 0 || write(fd, data, strlen(data)) < 0)
		fail("write %s to %s", data, path);
	close(fd);
}

static void make_directory(const char *path, mode_t mode)
{
	if (mkdir(path, mode) < 0 && errno != EEXIST)
		fail("make %s", path);
}

static void mount_on(const char *source, const char *target, const char *fstype, unsigned long flags,
		     const char *data)
{
	if (mount(source, target, fstype, flags, data) < 0)
		fail("mount %s on %s", source, target);
}

/* Hide or fix a path; a kernel that lacks it needs nothing. */
static void bind_readonly(const char *source, const char *target)
{
	if (mount(source, target, NULL, MS_BIND, NULL) < 0) {
		if (errno == ENOENT)
			return;
		fail("bind %s on %s", source, target);
	}
	mount_on("none", target, NULL, MS_BIND | MS_REMOUNT | MS_RDONLY | MS_NOSUID | MS_NODEV | MS_NOEXEC, NULL);
}

static void make_cgroups(const struct settings *s)
{
	char path[PATH_SIZE];

	for (int i = 0; i < s->hierarchy_count; i++)
		make_directory(text(path, "%s/%s", s->hierarchies[i], s->cgroup), 0755);
}

/* The child moves itself, as Cove's does: on v1 a 0 into `tasks` needs no global lock of the kernel's. */
static void enter_cgroups(const struct settings *s)
{
	const char *file = s->unified ? "cgroup.procs" : "tasks";
	char path[PATH_SIZE];

	for (int i = 0; i < s->hierarchy_count; i++)
		write_file(text(path, "%s/%s/%s", s->hierarchies[i], s->cgroup, file), 0, "0");
}

static void remove_cgroups(const struct settings *s)
{
	char path[PATH_SIZE];

	for (int i = 0; i < s->hierarchy_count; i++)
		if (rmdir(text(path, "%s/%s", s->hierarchies[i], s->cgroup)) < 0)
			fail("remove %s", path);
}

static void mount_cgroups(const struct settings *s)
{
	const unsigned long flags = MS_NOSUID | MS_NODEV | MS_NOEXEC;
	char path[PATH_SIZE], source[PATH_SIZE];

	if (s->unified) {
		mount_on("cgroup", "sys/fs/cgroup", "cgroup2", flags | MS_RDONLY, NULL);
		return;
	}
	/* the host's own tmpfs, not what is mounted below it, brings the mount points */
	bind_readonly("/sys/fs/cgroup", "sys/fs/cgroup");
	for (int i = 0; i < s->hierarchy_count; i++) {
		const char *name = strrchr(s->hierarchies[i], '/') + 1;

		text(source, "%s/%s", s->hierarchies[i], s->cgroup);
		bind_readonly(source, text(path, "sys/fs/cgroup/%s", name));
	}
}

/* Files get /dev/null on top, directories one shared empty tmpfs. */
static void hide_paths(const struct settings *s)
{
	const char *empty = NULL;

	for (int i = 0; i < s->mask_count; i++) {
		const char *path = s->masks[i];

		if (mount("dev/null", path, NULL, MS_BIND, NULL) == 0 || errno == ENOENT)
			continue;
		if (errno != ENOTDIR)
			fail("hide %s", path);
		if (empty != NULL)
			mount_on(empty, path, NULL, MS_BIND, NULL);
		else
			mount_on("tmpfs", path, "tmpfs", MS_RDONLY, "nr_inodes=1");
		empty = path;
	}
}

static void mount_everything(const struct settings *s)
{
	const unsigned long flags = MS_NOSUID | MS_NODEV | MS_NOEXEC;
	char source[PATH_SIZE], target[PATH_SIZE];

	mount_on("proc", "proc", "proc", flags, NULL);
	mount_on("tmpfs", "dev", "tmpfs", MS_NOSUID | MS_STRICTATIME, "mode=755,size=65536k");
	make_directory("dev/pts", 0755);
	mount_on("devpts", "dev/pts", "devpts", MS_NOSUID | MS_NOEXEC, "newinstance,ptmxmode=0666,mode=0620,gid=5");
	mount_on("sysfs", "sys", "sysfs", flags | MS_RDONLY, NULL);
	mount_cgroups(s);
	make_directory("dev/mqueue", 01777);
	mount_on("mqueue", "dev/mqueue", "mqueue", flags, NULL);
	make_directory("dev/shm", 01777);
	mount_on("shm", "dev/shm", "tmpfs", flags, "mode=1777,size=67108864");
	for (size_t i = 0; i < COUNT(GENERATED); i++) {
		text(source, "%s/%s", s->directory, GENERATED[i]);
		text(target, "etc/%s", GENERATED[i]);
		close(open(target, O_WRONLY | O_CREAT | O_CLOEXEC, 0644)); /* the mount says if it isn't there */
		mount_on(source, target, NULL, MS_BIND | MS_REC, NULL);
	}
	for (size_t i = 0; i < COUNT(DEVICES); i++)
		if (mknod(DEVICES[i].path, S_IFCHR | 0666, makedev(DEVICES[i].major, DEVICES[i].minor)) < 0)
			fail("make %s", DEVICES[i].path);
	for (size_t i = 0; i < COUNT(LINKS); i++)
		if (symlink(LINKS[i].target, LINKS[i].path) < 0)
			fail("link %s", LINKS[i].path);
	for (size_t i = 0; i < COUNT(READONLY_PATHS); i++)
		bind_readonly(READONLY_PATHS[i], READONLY_PATHS[i]);
	hide_paths(s);
}

static void bring_loopback_up(void)
{
	struct ifreq request = {.ifr_name = "lo", .ifr_flags = IFF_UP | IFF_RUNNING};
	int fd = socket(AF_INET, SOCK_DGRAM | SOCK_CLOEXEC, 0);

	if (fd < 0 || ioctl(fd, SIOCSIFFLAGS, &request) < 0)
		fail("bring lo up");
	close(fd);
}

static void become(const struct settings *s)
{
	struct __user_cap_header_struct header = {.version = _LINUX_CAPABILITY_VERSION_3};
	struct __user_cap_data_struct data[2] = {
		{.effective = (uint32_t)KEPT_CAPABILITIES, .permitted = (uint32_t)KEPT_CAPABILITIES}, {0}};
	struct sock_fprog program = {.len = s->filter_length, .filter = (struct sock_filter *)s->filter};

	syscall(SYS_keyctl, KEYCTL_JOIN_SESSION_KEYRING, s->cgroup); /* optional by nature: key quotas */
	umask(0022);
	if (s->filter_length > 0 && syscall(SYS_seccomp, SECCOMP_SET_MODE_FILTER, 0, &program) < 0)
		fail("install the system call filter");
	for (int bit = 0; bit <= CAP_LAST_CAP; bit++)
		if (!(KEPT_CAPABILITIES >> bit & 1) && prctl(PR_CAPBSET_DROP, bit, 0, 0, 0) < 0 && errno != EINVAL)
			fail("drop capability %d", bit);
	if (setgroups(0, NULL) < 0 || setresgid(0, 0, 0) < 0 || setresuid(0, 0, 0) < 0)
		fail("become root of the container");
	if (syscall(SYS_capset, &header, data) < 0)
		fail("set capabilities");
}

__attribute__((noreturn)) static void run_child(const struct settings *s)
{
	char path[PATH_SIZE], options[3 * PATH_SIZE];
	char *const environment[] = {"PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin", NULL};

	enter_cgroups(s);
	if (s->unified && unshare(CLONE_NEWCGROUP) < 0)
		fail("make a cgroup namespace");
	if (setsid() < 0)
		fail("start a session");
	umask(0); /* device nodes get the mode they are made with */
	mount_on("none", "/", NULL, MS_REC | MS_PRIVATE, NULL);
	snprintf(options, sizeof options, "lowerdir=%s,upperdir=%s/upper,workdir=%s/work,index=off", s->lower, s->directory,
		 s->directory);
	text(path, "%s/merged", s->directory);
	mount_on("overlay", path, "overlay", 0, options);
	if (chdir(path) < 0)
		fail("enter %s", path);
	mount_everything(s);
	if (s->network) {
		bring_loopback_up();
		for (size_t i = 0; i < COUNT(NETWORK_SETTINGS); i++)
			write_file(NETWORK_SETTINGS[i].path, 0, NETWORK_SETTINGS[i].value);
	}
	if (sethostname("0123456789ab", 12) < 0)
		fail("set the host name");
	if (syscall(SYS_pivot_root, ".", ".") < 0 || umount2(".", MNT_DETACH) < 0 || chdir("/") < 0)
		fail("pivot into %s", path);
	become(s);
	if (close_range(3, ~0U, 0) < 0)
		fail("close descriptors");
	execve(s->command[0], s->command, environment);
	fail("run %s", s->command[0]);
}

static void make_files(const struct settings *s)
{
	static const char *const names[] = {"", "/upper", "/work", "/merged"};
	char path[PATH_SIZE];

	for (size_t i = 0; i < COUNT(names); i++)
		make_directory(text(path, "%s%s", s->directory, names[i]), 0755);
	for (size_t i = 0; i < COUNT(GENERATED); i++)
		write_file(text(path, "%s/%s", s->directory, GENERATED[i]), O_CREAT,
			   "127.0.0.1 localhost\n");
}

static void run_round(const struct settings *s)
{
	struct clone_args arguments = {
		.flags = CLONE_NEWNS | CLONE_NEWPID | CLONE_NEWUTS | CLONE_NEWIPC | (s->network ? CLONE_NEWNET : 0),
		.exit_signal = SIGCHLD,
	};
	int status;

	undo_child = 0;
	undo = s;
	make_files(s);
	make_cgroups(s);
	pid_t child = (pid_t)syscall(SYS_clone3, &arguments, sizeof arguments);
	if (child < 0)
		fail("clone");
	if (child == 0) {
		undo = NULL;
		run_child(s);
	}
	undo_child = child;
	if (waitpid(child, &status, 0) < 0)
		fail("wait");
	undo_child = 0;
	remove_cgroups(s);
	if (nftw(s->directory, remove_entry, 16, FTW_DEPTH | FTW_PHYS) < 0)
		fail("remove %s", s->directory);
	if (!WIFEXITED(status) || WEXITSTATUS(status) != 0) {
		errno = EPROTO;
		fail("the process ended with status %#x", status);
	}
	undo = NULL;
}

static void read_filter(struct settings *s, const char *path)
{
	int fd = open(path, O_RDONLY | O_CLOEXEC);
	ssize_t size = fd < 0 ? -1 : read(fd, s->filter, sizeof s->filter);

	if (size <= 0 || size % (ssize_t)sizeof s->filter[0] != 0)
		fail("read the filter %s", path);
	s->filter_length = (unsigned short)((size_t)size / sizeof s->filter[0]);
	close(fd);
}

static void usage(void)
{
	fputs("usage: floor -d DIRECTORY -l LOWER -c CGROUP [-h HIERARCHY]... [-m PATH]... [-s FILTER] [-n ROUNDS] [-2] [-N]"
	      " -- COMMAND [ARGUMENT]...\n"
	      "  -d  directory of a round, e.g. /srv/x   -l  overlay's lower directories\n"
	      "  -c  cgroup of a round, e.g. parent/x    -h  mount point of a cgroup hierarchy, up to 16\n"
	      "  -s  file with a struct sock_filter[]    -n  number of rounds, e.g. 20 (default: 1)\n"
	      "  -m  path to hide, e.g. /proc/kcore\n"
	      "  -2  the one hierarchy is cgroup v2      -N  a network namespace\n",
	      stderr);
	exit(2);
}

int main(int argc, char **argv)
{
	static struct settings s = {.rounds = 1};

	for (int option; (option = getopt(argc, argv, "d:l:c:h:m:s:n:2N")) != -1;) {
		switch (option) {
		case 'd':
			s.directory = optarg;
			break;
		case 'l':
			s.lower = optarg;
			break;
		case 'c':
			s.cgroup = optarg;
			break;
		case 'h':
			if (s.hierarchy_count == MAX_HIERARCHIES || strchr(optarg, '/') == NULL)
				usage();
			s.hierarchies[s.hierarchy_count++] = optarg;
			break;
		case 'm':
			if (s.mask_count == MAX_MASKS || optarg[0] != '/')
				usage();
			s.masks[s.mask_count++] = optarg + 1;
			break;
		case 's':
			read_filter(&s, optarg);
			break;
		case 'n':
			s.rounds = atoi(optarg);
			break;
		case '2':
			s.unified = 1;
			break;
		case 'N':
			s.network = 1;
			break;
		default:
			usage();
		}
	}
	s.command = argv + optind;
	if (s.directory == NULL || s.lower == NULL || s.cgroup == NULL || s.command[0] == NULL || s.rounds < 1)
		usage();
	for (int round = 0; round < s.rounds; round++) {
		int64_t start = now_ns();

		run_round(&s);
		printf("%lld\n", (long long)(now_ns() - start));
	}
	return 0;
}
