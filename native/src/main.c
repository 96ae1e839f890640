/*
 * cove-init: run a plan, then supervise its process. Started by the daemon with a control connection
 * as descriptor 3, every signal blocked, and in a session of its own; it outlives the daemon.
 *
 * Signals stay blocked for good: nothing but SIGKILL ends a supervisor, and the process's end comes
 * by its pidfd. Of a detached process it is just the midwife: once that is executed, or held, it ends.
 *
 * `cove-init pause` is something else: the process of a pod, which holds its namespaces and reaps.
 */
#include <signal.h>
#include <string.h>
#include <sys/wait.h>
#include <sys/prctl.h>
#include <sys/stat.h>

#include "kernel.h"
#include "supervise.h"

/* Ends by SIGTERM, SIGINT or the stop signal of who asks: as process 1 it gets no other one but SIGKILL. */
static int hold_pod(void)
{
	sigset_t set;

	sigemptyset(&set);
	sigaddset(&set, SIGTERM);
	sigaddset(&set, SIGINT);
	sigaddset(&set, SIGCHLD);
	sigprocmask(SIG_SETMASK, &set, NULL);
	for (;;) {
		int number = sigwaitinfo(&set, NULL);

		if (number == SIGTERM || number == SIGINT)
			return 0;
		while (waitpid(-1, NULL, WNOHANG) > 0)
			;
	}
}

int main(int argc, char **argv)
{
	if (argc == 2 && !strcmp(argv[1], "pause"))
		return hold_pod();
	static struct supervisor supervisor;
	struct supervisor *s = &supervisor;
	uint64_t all = ~(uint64_t)0; /* also those that the C library keeps out of a sigset_t */

	syscall(SYS_rt_sigprocmask, SIG_SETMASK, &all, NULL, sizeof(all));
	prctl(PR_SET_NAME, "cove-init", 0, 0, 0);
	/* Inherited by the child until its exec: the processes of a container that it joins must not get at
	 * its descriptors (CVE-2016-9962). */
	prctl(PR_SET_DUMPABLE, 0, 0, 0, 0);
	umask(0);
	for (int fd = 0; fd < CONTROL_FD; fd++)
		if (fcntl(fd, F_GETFD) < 0)
			return 2; /* the next one that is opened would be the process's */
	if (fcntl(CONTROL_FD, F_SETFD, FD_CLOEXEC) < 0)
		return 2; /* not started by the daemon */
	sys_close_range(CONTROL_FD + 1, ~0u, 0); /* whatever the daemon itself inherited and knows nothing of */
	s->context.root = s->context.null = s->context.empty = s->context.procfs = -1;
	s->child_pidfd = s->master = -1;
	controls_init(s);
	if (streams_init(&s->streams) < 0 || receive_start(s) < 0 || start_process(s) < 0)
		return 1;
	if (!s->context.detached)
		supervise(s);
	return 0;
}
