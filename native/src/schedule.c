/* Steps of the child that say how the kernel runs the process: processors, scheduling, I/O, memory, personality. */
#include "util.h"

#include <sys/personality.h>

#include "kernel.h"
#include "operations.h"

#define IOPRIO_WHO_PROCESS 1
#define IOPRIO_CLASS_SHIFT 13

/* struct sched_attr of linux/sched/types.h, as of Linux 3.14 (sched_setattr(2)) */
struct attributes {
	uint32_t size;
	uint32_t policy;
	uint64_t flags;
	int32_t nice;
	uint32_t priority;
	uint64_t runtime;
	uint64_t deadline;
	uint64_t period;
};

int run_affinity(const struct value *v, struct context *c)
{
	(void)c;
	return (int)checked(syscall(SYS_sched_setaffinity, 0, v[0].size, v[0].data));
}

int run_scheduler(const struct value *v, struct context *c)
{
	struct attributes attributes = {
		.size = sizeof(attributes),
		.policy = (uint32_t)v[0].number,
		.flags = v[1].number,
		.nice = (int32_t)(int64_t)v[2].number,
		.priority = (uint32_t)v[3].number,
		.runtime = v[4].number,
		.deadline = v[5].number,
		.period = v[6].number,
	};

	(void)c;
	return (int)checked(syscall(SYS_sched_setattr, 0, &attributes, 0));
}

int run_io_priority(const struct value *v, struct context *c)
{
	(void)c;
	return (int)checked(syscall(SYS_ioprio_set, IOPRIO_WHO_PROCESS, 0,
				    (int)(v[0].number << IOPRIO_CLASS_SHIFT | v[1].number)));
}

int run_personality(const struct value *v, struct context *c)
{
	(void)c;
	return personality((unsigned long)v[0].number) < 0 ? -errno : 0;
}

int run_memory_policy(const struct value *v, struct context *c)
{
	/* the kernel reads one bit less than it is told (set_mempolicy(2), BUGS) */
	unsigned long bits = v[1].size ? v[1].size * 8 + 1 : 0;

	(void)c;
	return (int)checked(syscall(SYS_set_mempolicy, (int)v[0].number, v[1].size ? v[1].data : NULL, bits));
}
