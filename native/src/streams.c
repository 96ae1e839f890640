#include "util.h"

#include "streams.h"

#include <errno.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/mman.h>
#include <sys/socket.h>

#define READS_IN_A_ROW 16     /* then others have their turn */
#define GRACE_MS 100	      /* for output of others that hold the pipe, once the process has ended */
#define STUCK_MS 3600000      /* a client that takes nothing for an hour at the end is dropped */
#define TERMINAL_RETRY_MS 200
#define HEADER_BYTES 8
#define SKIP ((size_t)-1) /* client.done: it came when the chunk was on its way already */

static void watch(struct streams *s, int fd, enum tag tag, uint32_t what, uint32_t *polled, uint32_t events)
{
	struct epoll_event event = { .events = events, .data.u64 = (uint64_t)tag << 32 | what };
	int operation = !*polled ? EPOLL_CTL_ADD : events ? EPOLL_CTL_MOD : EPOLL_CTL_DEL;

	if (events == *polled)
		return;
	epoll_ctl(s->epoll, operation, fd, &event);
	*polled = events;
}

/* A source without interest is taken off the list: its end would be reported again and again. */
static void poll_source(struct streams *s, unsigned int index, bool wanted)
{
	struct source *source = &s->sources[index];
	uint32_t polled = source->polled ? EPOLLIN : 0;

	watch(s, source->fd, TAG_SOURCE, index, &polled, wanted ? EPOLLIN : 0);
	source->polled = wanted;
}

static void poll_input(struct streams *s, bool wanted)
{
	uint32_t polled = s->input_polled ? EPOLLOUT : 0;

	watch(s, s->input.fd, TAG_INPUT, 0, &polled, wanted ? EPOLLOUT : 0);
	s->input_polled = wanted;
}

int streams_init(struct streams *s)
{
	uint8_t *p = mmap(NULL, STREAM_MEMORY, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);

	if (p == MAP_FAILED)
		return -errno;
	s->input.buffer = p;
	s->input.fd = -1;
	p += INPUT_BYTES;
	for (unsigned int i = 0; i < SOURCES; i++) {
		s->sources[i].fd = -1;
		s->sources[i].buffer = p;
		p += CHUNK_BYTES;
		s->sources[i].rest = p;
		p += REST_BYTES;
		s->log.lines[i].bytes = p;
		p += LINE_MAX_BYTES;
	}
	s->spill = p;
	p += CHUNK_BYTES;
	s->log.json = (char *)p;
	s->log.file = -1;
	for (unsigned int i = 0; i < MAX_CLIENTS; i++)
		s->clients[i].fd = -1;
	s->epoll = epoll_create1(EPOLL_CLOEXEC);
	return s->epoll < 0 ? -errno : 0;
}

static bool wants(const struct client *c, unsigned int source)
{
	return c->fd >= 0 && !c->hung_up && (c->flags & (source ? ATTACH_STDERR : ATTACH_STDOUT));
}

static size_t chunk_total(const struct streams *s, const struct client *c, unsigned int source)
{
	return s->sources[source].length + (c->flags & ATTACH_MULTIPLEX ? HEADER_BYTES : 0);
}

/* Does the client still have to take (part of) the source's chunk? */
static bool owes(const struct streams *s, const struct client *c, unsigned int source)
{
	return s->sources[source].length && wants(c, source) && c->done[source] < chunk_total(s, c, source);
}

static bool reads_input(const struct streams *s, const struct client *c)
{
	/* Without a stdin that is wanted, input is read all the same, and thrown away: its end must be seen. */
	return !c->input_ended && !(c->flags & ATTACH_STDIN && input_pending(&s->input));
}

static void poll_client(struct streams *s, unsigned int index)
{
	struct client *c = &s->clients[index];
	uint32_t events = 0;

	if (c->fd < 0)
		return;
	if (reads_input(s, c))
		events |= EPOLLIN;
	for (unsigned int i = 0; i < SOURCES; i++)
		if (owes(s, c, i))
			events |= EPOLLOUT;
	/* Nothing is wanted of it for now, but to hear once when it dies. */
	if (!events && !c->hung_up)
		events = EPOLLET | EPOLLHUP;
	watch(s, c->fd, TAG_CLIENT, (uint32_t)c->generation << 16 | index, &c->polled, events);
}

/* After the last client with input has gone: is stdin to be closed? */
static void end_input(struct streams *s, struct client *c)
{
	if (c->input_ended)
		return;
	c->input_ended = true;
	if (c->flags & ATTACH_STDIN && s->stdin_once && !s->terminal)
		streams_close_input(s);
}

static void drop_client(struct streams *s, unsigned int index)
{
	struct client *c = &s->clients[index];

	if (c->fd < 0)
		return;
	end_input(s, c);
	shutdown(c->fd, SHUT_RDWR);
	close_fd(&c->fd); /* which takes it off epoll's list: the daemon has closed its copy */
	c->polled = 0;
}

static void send_chunk(struct streams *s, unsigned int index);

/* What was left when the process ended is the last chunk. */
static void begin_rest(struct streams *s, unsigned int index)
{
	struct source *source = &s->sources[index];

	if (source->fd >= 0 || source->length || !source->rest_length)
		return;
	source->buffer = source->rest;
	source->length = source->rest_length;
	source->rest_length = 0;
	send_chunk(s, index);
}

/* When all clients have taken the chunk, the source can be read again. */
static void release_chunk(struct streams *s, unsigned int index)
{
	struct source *source = &s->sources[index];

	if (!source->length)
		return;
	for (unsigned int i = 0; i < MAX_CLIENTS; i++)
		if (owes(s, &s->clients[i], index))
			return;
	source->length = 0;
	begin_rest(s, index);
}

static void release_chunks(struct streams *s)
{
	for (unsigned int i = 0; i < SOURCES; i++) {
		release_chunk(s, i);
		if (s->sources[i].fd >= 0 && !s->draining && !s->sources[i].length && !s->sources[i].retry_ms)
			poll_source(s, i, true);
	}
}

/* Send what the client still has to take of one source. Returns false when it takes no more. */
static bool send_to(struct streams *s, struct client *c, unsigned int source)
{
	const struct source *from = &s->sources[source];
	uint32_t length = (uint32_t)from->length;
	uint8_t header[HEADER_BYTES] = { (uint8_t)(source + 1), 0, 0, 0, (uint8_t)(length >> 24),
					 (uint8_t)(length >> 16), (uint8_t)(length >> 8), (uint8_t)length };
	size_t ahead = c->flags & ATTACH_MULTIPLEX ? HEADER_BYTES : 0;

	while (owes(s, c, source)) {
		size_t done = c->done[source];
		struct iovec parts[2] = {
			{ header + min_size(done, ahead), ahead - min_size(done, ahead) },
			{ from->buffer + (done > ahead ? done - ahead : 0), from->length - (done > ahead ? done - ahead : 0) },
		};
		struct msghdr message = { .msg_iov = parts, .msg_iovlen = 2 };
		ssize_t r = sendmsg(c->fd, &message, MSG_DONTWAIT | MSG_NOSIGNAL);

		if (r < 0 && errno == EINTR)
			continue;
		if (r < 0 && errno != EAGAIN && errno != ENOBUFS && errno != ENOMEM)
			c->hung_up = true; /* it takes no output; what it sent as input still counts */
		if (r < 0)
			return false;
		c->done[source] += (size_t)r;
		s->progress_ms = now_ms();
	}
	return true;
}

/* Send all that is on its way to one client: first the frame that was begun, as frames don't mix. */
static void send_pending(struct streams *s, unsigned int index)
{
	struct client *c = &s->clients[index];

	if (c->sending >= 0) {
		if (!send_to(s, c, (unsigned int)c->sending))
			return;
		c->sending = -1;
	}
	for (unsigned int i = 0; i < SOURCES; i++) {
		if (!send_to(s, c, i)) {
			/* a frame of which nothing was sent may as well wait for the other source's */
			if (c->done[i])
				c->sending = (int)i;
			return;
		}
	}
}

static void send_chunk(struct streams *s, unsigned int index)
{
	for (unsigned int i = 0; i < MAX_CLIENTS; i++) {
		struct client *c = &s->clients[i];

		if (!wants(c, index))
			continue;
		c->done[index] = 0;
		send_pending(s, i);
		if (c->hung_up && (c->input_ended || !(c->flags & ATTACH_STDIN)))
			drop_client(s, i);
		else
			poll_client(s, i);
	}
	release_chunk(s, index);
}

static void end_source(struct streams *s, unsigned int index)
{
	struct source *source = &s->sources[index];

	poll_source(s, index, false);
	close_fd(&source->fd);
	log_end(&s->log, index);
	begin_rest(s, index);
}

/* Read what is left, whatever clients still have to take. Beyond REST_BYTES it goes to the log only. */
static void read_rest(struct streams *s, unsigned int index)
{
	struct source *source = &s->sources[index];

	while (source->fd >= 0) {
		bool keep = REST_BYTES - source->rest_length >= CHUNK_BYTES;
		uint8_t *at = keep ? source->rest + source->rest_length : s->spill;
		ssize_t r = read(source->fd, at, CHUNK_BYTES);

		if (r < 0 && errno == EINTR)
			continue;
		if (r < 0 && errno == EAGAIN)
			return;
		if (r <= 0) {
			end_source(s, index);
			return;
		}
		if (keep)
			source->rest_length += (size_t)r;
		s->progress_ms = now_ms();
		log_write(&s->log, index, at, (size_t)r);
	}
}

void source_ready(struct streams *s, unsigned int index)
{
	struct source *source = &s->sources[index];

	if (s->draining) {
		read_rest(s, index);
		return;
	}
	for (int i = 0; i < READS_IN_A_ROW && source->fd >= 0 && !source->length; i++) {
		ssize_t r = read(source->fd, source->buffer, CHUNK_BYTES);

		if (r < 0 && errno == EINTR)
			continue;
		if (r < 0 && errno == EAGAIN)
			return;
		if (r < 0 && errno == EIO && s->terminal) {
			/* All slaves are closed (pty(7)), but the process may open /dev/tty again. */
			poll_source(s, index, false);
			source->retry_ms = now_ms() + TERMINAL_RETRY_MS;
			return;
		}
		if (r <= 0) {
			end_source(s, index);
			return;
		}
		source->length = (size_t)r;
		s->progress_ms = now_ms();
		log_write(&s->log, index, source->buffer, (size_t)r);
		send_chunk(s, index);
	}
	if (source->fd >= 0 && source->length)
		poll_source(s, index, false);
}

void streams_open(struct streams *s, int in, int out, int err)
{
	s->input.fd = in;
	if (s->input.fd < 0)
		s->input.end = 0;
	s->sources[0].fd = out;
	s->sources[1].fd = err;
	for (unsigned int i = 0; i < SOURCES; i++)
		if (s->sources[i].fd >= 0)
			poll_source(s, i, true);
	input_ready(s);
}

void input_ready(struct streams *s)
{
	bool was_polled = s->input_polled;

	if (s->input.fd < 0) {
		s->input.start = s->input.end = 0;
		return;
	}
	if (!input_flush(&s->input)) {
		poll_input(s, true);
		return;
	}
	poll_input(s, false);
	if (s->input.closing || (s->input.broken && !s->terminal))
		close_fd(&s->input.fd);
	s->input.broken = false;
	if (!was_polled)
		return;
	/* those who had to wait may send again */
	for (unsigned int i = 0; i < MAX_CLIENTS; i++)
		poll_client(s, i);
}

void streams_close_input(struct streams *s)
{
	if (s->terminal || s->input.fd < 0)
		return;
	s->input.closing = true;
	if (!input_pending(&s->input))
		input_ready(s);
}

/* Pass bytes that lie at buffer[at..at+size) on to the process, but for the detach keys. Returns false
 * when those were complete. */
static bool accept_input(struct streams *s, struct client *c, size_t at, size_t size)
{
	struct input *input = &s->input;
	bool detached = false;

	if (c->detach.count)
		size = detach_filter(&c->detach, input->buffer + at, size, input->buffer, &detached);
	if (c->flags & ATTACH_STDIN && input->fd >= 0 && !input->closing) {
		input->start = c->detach.count ? 0 : at;
		input->end = input->start + size;
	}
	return !detached;
}

static void detach_client(struct streams *s, unsigned int index)
{
	uint32_t id = s->clients[index].id;

	drop_client(s, index);
	s->detached(s->owner, id);
	release_chunks(s);
}

/* Read what a client sends, while the process takes it. */
static void read_input(struct streams *s, unsigned int index)
{
	struct client *c = &s->clients[index];

	for (int i = 0; i < READS_IN_A_ROW && c->fd >= 0 && reads_input(s, c); i++) {
		/* An empty buffer is free to read into; one that holds another client's input isn't, but then only
		 * clients without stdin get here, whose bytes are thrown away. */
		bool busy = input_pending(&s->input);
		uint8_t waste[512];
		uint8_t *room = busy ? waste : s->input.buffer + MAX_DETACH_KEYS;
		size_t size = busy ? sizeof(waste) : INPUT_BYTES - MAX_DETACH_KEYS;
		ssize_t r = recv(c->fd, room, size, MSG_DONTWAIT);

		if (r < 0 && errno == EINTR)
			continue;
		if (r < 0 && errno == EAGAIN) {
			if (c->hung_up)
				drop_client(s, index);
			break;
		}
		if (r <= 0) {
			end_input(s, c);
			if (r < 0 || c->hung_up)
				drop_client(s, index);
			break;
		}
		if (busy || !(c->flags & ATTACH_STDIN))
			continue;
		if (!accept_input(s, c, MAX_DETACH_KEYS, (size_t)r)) {
			detach_client(s, index);
			input_ready(s);
			return;
		}
		input_ready(s);
	}
	poll_client(s, index);
}

void client_ready(struct streams *s, uint32_t generation_and_index, uint32_t events)
{
	unsigned int index = generation_and_index & 0xffff;
	struct client *c = &s->clients[index];

	if (c->fd < 0 || c->generation != generation_and_index >> 16)
		return; /* dropped earlier in the same round */
	if (events & (EPOLLHUP | EPOLLERR))
		c->hung_up = true;
	if (events & EPOLLOUT && !c->hung_up)
		send_pending(s, index);
	if (events & EPOLLIN || (c->hung_up && reads_input(s, c)))
		read_input(s, index);
	if (c->fd >= 0) {
		if (c->hung_up && (c->input_ended || !(c->flags & ATTACH_STDIN)))
			drop_client(s, index);
		else
			poll_client(s, index);
	}
	release_chunks(s);
}

int client_add(struct streams *s, int fd, const struct msg_attach *attach, size_t initial)
{
	struct client *c = NULL;
	unsigned int index;

	if (attach->key_count > MAX_DETACH_KEYS)
		return -EINVAL;
	if (s->draining)
		return -ESRCH;
	for (index = 0; index < MAX_CLIENTS && !c; index++)
		if (s->clients[index].fd < 0)
			c = &s->clients[index];
	if (!c)
		return -EUSERS;
	index--;
	*c = (struct client){
		.fd = fd,
		.id = attach->head.id,
		.flags = attach->flags,
		.sending = -1,
		.generation = (uint16_t)(c->generation + 1),
	};
	c->detach.count = (uint8_t)attach->key_count;
	memcpy(c->detach.keys, attach->keys, sizeof(attach->keys));
	for (unsigned int i = 0; i < SOURCES; i++)
		c->done[i] = SKIP;
	if (initial && attach->flags & ATTACH_STDIN) {
		size_t start = s->input.start, end = s->input.end, passed = initial;
		bool detached = false;

		if (c->detach.count) {
			/* filtered in place, by way of the room before: the caller left MAX_DETACH_KEYS bytes */
			passed = detach_filter(&c->detach, s->input.buffer + end + MAX_DETACH_KEYS, initial,
					       s->input.buffer + end, &detached);
		} else {
			memmove(s->input.buffer + end, s->input.buffer + end + MAX_DETACH_KEYS, initial);
		}
		s->input.start = start;
		s->input.end = end + passed;
		if (detached) {
			detach_client(s, index);
			return 0;
		}
	}
	poll_client(s, index);
	return 0;
}

void streams_drain(struct streams *s)
{
	s->draining = true;
	s->progress_ms = now_ms();
	if (s->input.fd >= 0)
		poll_input(s, false);
	close_fd(&s->input.fd);
	s->input.start = s->input.end = 0;
	for (unsigned int i = 0; i < SOURCES; i++) {
		struct source *source = &s->sources[i];

		source->retry_ms = 0;
		if (source->fd < 0)
			continue;
		read_rest(s, i);
		if (source->fd >= 0)
			poll_source(s, i, true);
	}
}

bool streams_drained(const struct streams *s)
{
	for (unsigned int i = 0; i < SOURCES; i++)
		if (s->sources[i].fd >= 0)
			return false;
	return true;
}

static bool any_owes(const struct streams *s, unsigned int index)
{
	for (unsigned int i = 0; i < SOURCES; i++)
		if (owes(s, &s->clients[index], i))
			return true;
	return false;
}

int streams_tick(struct streams *s)
{
	uint64_t now = now_ms();
	bool waiting = false, reading = false;

	if (!s->draining) {
		struct source *source = &s->sources[0];

		if (!source->retry_ms)
			return -1;
		if (now < source->retry_ms)
			return (int)(source->retry_ms - now);
		source->retry_ms = 0;
		source_ready(s, 0);
		if (!source->retry_ms && source->fd >= 0 && !source->length)
			poll_source(s, 0, true);
		return source->retry_ms ? TERMINAL_RETRY_MS : -1;
	}
	for (unsigned int i = 0; i < SOURCES; i++) {
		if (s->sources[i].fd < 0)
			continue;
		/* Another process holds the pipe: it had its time. */
		if (now - s->progress_ms >= GRACE_MS)
			end_source(s, i);
		else
			reading = true;
	}
	if (reading)
		return GRACE_MS;
	for (unsigned int i = 0; i < MAX_CLIENTS; i++)
		waiting |= any_owes(s, i);
	if (waiting && now - s->progress_ms >= STUCK_MS) {
		for (unsigned int i = 0; i < MAX_CLIENTS; i++)
			if (any_owes(s, i))
				drop_client(s, i);
		waiting = false;
		release_chunks(s);
	}
	return waiting ? STUCK_MS : -1;
}

bool streams_finished(const struct streams *s)
{
	for (unsigned int i = 0; i < SOURCES; i++)
		if (s->sources[i].fd >= 0 || s->sources[i].length || s->sources[i].rest_length)
			return false;
	return true;
}

void streams_give_memory_back(struct streams *s)
{
	if (s->input.start == s->input.end)
		madvise(s->input.buffer, INPUT_BYTES, MADV_DONTNEED);
	for (unsigned int i = 0; i < SOURCES; i++) {
		if (!s->sources[i].length)
			madvise(s->sources[i].buffer, CHUNK_BYTES, MADV_DONTNEED);
		if (!s->log.lines[i].length)
			madvise(s->log.lines[i].bytes, LINE_MAX_BYTES, MADV_DONTNEED);
	}
	madvise(s->log.json, JSON_BUFFER_BYTES, MADV_DONTNEED);
}

void streams_close_log(struct streams *s)
{
	close_fd(&s->log.file);
}

void streams_close(struct streams *s)
{
	for (unsigned int i = 0; i < MAX_CLIENTS; i++)
		drop_client(s, i);
	for (unsigned int i = 0; i < SOURCES; i++)
		close_fd(&s->sources[i].fd);
	close_fd(&s->input.fd);
	close_fd(&s->log.file);
}
