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

/* Both ends of the child's standard streams, and of the pair to talk over; -1 where there is none. */
struct ends {
	int in[2], out[2], err[2], sync[2];
};

struct supervisor {
	struct msg_start setup;
	struct context context;
	struct streams streams;
	struct control controls[MAX_CONTROLS];
	int listener; /* this and `state_dir`: -1 when detached */
	int state_dir;
	pid_t child;
	int child_pidfd;
	int master; /* the terminal; -1: none */
	struct plan plan;
	bool awaits_listener; /* a filter's listener is still to come */
	bool holds;	      /* the plan has a Hold */
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

/* Wait for a process to end. A detached one is another's to reap. */
void wait_end(const struct supervisor *s, int pidfd);

/* clone.c: what the child and the supervisor share, and the child itself, in which clone_child doesn't return.
 * Both return 0 or -errno; `index` becomes that of a SetNs step of `before` which is the cause, or stays. */
int make_ends(struct supervisor *s, struct ends *ends);
void close_ends(struct ends *ends);
bool wants_helper(const struct plan *plan);
int clone_child(struct supervisor *s, struct ends *ends, uint32_t *index);

/* watch.c: listen to the child until the exec, or until it is held. Returns 0, or the child's own failure with its
 * step's index. With MSG_DONTWAIT: -EAGAIN when it hasn't failed yet. */
int watch_child(struct supervisor *s, int sync, uint32_t *index, int flags);

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
