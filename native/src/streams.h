/*
 * The container's output and the clients that are attached to it.
 *
 * One chunk per source is on its way at a time: it is read, logged, and sent to every client; a source
 * is read again when all of them have taken the chunk. So memory is bounded, and a slow client holds
 * the process back, as with Docker. Once the process has ended, what is left in the pipes is read and
 * logged at once, into memory of its own, and becomes one last chunk: so the log is complete and the exit can
 * be told, however long a client takes over its output. All sockets are used with MSG_DONTWAIT, and nothing
 * here blocks.
 */
#ifndef COVE_STREAMS_H
#define COVE_STREAMS_H

#include "input.h"
#include "log.h"
#include "protocol.h"

#define SOURCES 2u /* 0: stdout or the terminal, 1: stderr */
#define MAX_CLIENTS 64u
#define CHUNK_BYTES 65536u
#define REST_BYTES (2u << 20) /* more than a pipe holds (fs.pipe-max-size, 1 MiB); only touched memory counts */
#define STREAM_MEMORY \
	(SOURCES * (CHUNK_BYTES + REST_BYTES + LINE_MAX_BYTES) + CHUNK_BYTES + INPUT_BYTES + JSON_BUFFER_BYTES)

/* What an event is about: the upper half of epoll_event.data.u64. The lower half has an index, and for
 * clients a generation, so that an event of a round never goes to a client that came in the same round. */
enum tag { TAG_PROCESS, TAG_LISTENER, TAG_CONTROL, TAG_SOURCE, TAG_INPUT, TAG_CLIENT };

struct source {
	int fd; /* -1: ended */
	bool polled;
	size_t length; /* of the chunk that clients haven't all taken; 0: none */
	uint8_t *buffer;
	size_t rest_length; /* what was left when the process ended: the last chunk, after the present one */
	uint8_t *rest;
	uint64_t retry_ms; /* a terminal whose slaves are all closed, but whose process lives: when to look again */
};

struct client {
	int fd; /* -1: the place is free */
	uint32_t id;
	uint32_t flags;
	uint32_t polled; /* the events it is registered for; 0: it isn't */
	uint16_t generation;
	bool input_ended;
	bool hung_up;
	int sending; /* the source whose frame is half sent; -1: none */
	size_t done[SOURCES]; /* how much of the chunk (and its header) has been sent */
	struct detach detach;
};

struct streams {
	int epoll;
	bool terminal;
	bool stdin_once;
	bool draining; /* the process has ended */
	uint64_t progress_ms; /* when a client took something, or a source gave something */
	uint8_t *spill; /* CHUNK_BYTES: for what goes to the log only */
	struct source sources[SOURCES];
	struct input input;
	bool input_polled;
	struct log log;
	struct client clients[MAX_CLIENTS];
	void (*detached)(void *owner, uint32_t id);
	void *owner;
};

int streams_init(struct streams *s);

/* Take over the descriptors of a started process; -1 for those that it hasn't. */
void streams_open(struct streams *s, int in, int out, int err);

/* Serve a client. `initial` bytes of input lie behind the end of the input buffer already.
 * Returns 0, or -errno: the socket is the caller's then. */
int client_add(struct streams *s, int fd, const struct msg_attach *attach, size_t initial);

void source_ready(struct streams *s, unsigned int index);
void client_ready(struct streams *s, uint32_t generation_and_index, uint32_t events);
void input_ready(struct streams *s);

/* Close the process's stdin once what has been sent is written. */
void streams_close_input(struct streams *s);

/* The process has ended: what is left is read. Serve on, by streams_tick, until streams_drained. */
void streams_drain(struct streams *s);
bool streams_drained(const struct streams *s);

/* Look at what only time changes; returns milliseconds until it must be looked at again, -1: never. */
int streams_tick(struct streams *s);

/* Nothing is left to read or to send: there are no more clients to wait for. */
bool streams_finished(const struct streams *s);

/* Is nothing on its way? Then the buffers' memory can be given back. */
void streams_give_memory_back(struct streams *s);

/* The log is complete: let go of it. */
void streams_close_log(struct streams *s);

/* Close all that is left. */
void streams_close(struct streams *s);

#endif
