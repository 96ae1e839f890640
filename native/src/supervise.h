/* One supervisor: what it was given, what it started, whom it serves. */
#ifndef COVE_SUPERVISE_H
#define COVE_SUPERVISE_H

#include "operations.h"
#include "protocol.h"
#include "streams.h"

#define MAX_CONTROLS 8u /* connections: the daemon's, and room for the next daemon's */

struct control {
	int fd; /* -1: the place is free */
};

struct supervisor {
	struct msg_start setup;
	struct context context;
	struct streams streams;
	struct control controls[MAX_CONTROLS];
	int listener;
	int state_dir;
	pid_t child;
	int child_pidfd;
	int master; /* the terminal; -1: none */
	struct plan plan;
	void *plan_memory; /* let go once the child has its copy */
	size_t plan_memory_size;
	void *arena_memory;
	size_t arena_size;
	struct steps exit_steps; /* in memory of their own */
	uint32_t exit_code;
	uint64_t finished_ns;
};

/* start.c: receive what the daemon sends first; run the plan up to the exec. Both return 0, or -1 when
 * the daemon was told why not and nothing is left. */
int receive_start(struct supervisor *s);
int start_process(struct supervisor *s);

/* Run the exit steps: those that only look (`first`), or the others. Failures don't stop them. */
void run_exit_steps(struct supervisor *s, bool first);

/* supervise.c: serve until the process has ended and all is told; then return. */
void supervise(struct supervisor *s);

/* control.c */
void controls_init(struct supervisor *s);
void controls_close(struct supervisor *s);
void control_add(struct supervisor *s, int fd);
void control_accept(struct supervisor *s);
void control_ready(struct supervisor *s, unsigned int index);
/* Tell every daemon that is connected; one that doesn't read is cut off. */
void control_tell_all(struct supervisor *s, const void *message, size_t size);
/* Receive one ATTACH; `answer` tells the daemon how it went. Returns 0 or -errno (0 bytes: -EPIPE). */
int control_receive_attach(struct supervisor *s);

#endif
