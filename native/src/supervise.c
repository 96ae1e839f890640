/*
 * The loop: wait for the process's end, and serve its streams, its clients and the daemons until then.
 *
 * Order that must hold at the end: what is left in the pipes is read and logged; the OOM counter read; `exit`
 * written (whoever sees it finds the truth); cgroups removed; the control socket gone, so that the next start has
 * the state directory for itself; and then the daemons are told, for whom this is the end. The supervisor itself
 * stays for as long as a client takes to read its output, and touches nothing but that client's socket.
 */
#include "util.h"

#include <errno.h>
#include <fcntl.h>
#include <signal.h>
#include <stdio.h>
#include <string.h>
#include <sys/epoll.h>

#include "kernel.h"
#include "supervise.h"

#define EVENTS 16
#define IDLE_MS 1000	   /* after that long the buffers' memory is given back */

static void on_detached(void *owner, uint32_t id)
{
	struct msg_head message = { .type = MSG_DETACHED, .id = id };

	control_tell_all(owner, &message, sizeof(message));
}

static void add_event(struct supervisor *s, int fd, enum tag tag)
{
	struct epoll_event event = { .events = EPOLLIN, .data.u64 = (uint64_t)tag << 32 };

	epoll_ctl(s->streams.epoll, EPOLL_CTL_ADD, fd, &event);
}

/* The process has ended (its pidfd is readable): reap it and take its status. */
static void take_status(struct supervisor *s)
{
	siginfo_t info = { 0 };

	s->finished_ns = clock_ns(CLOCK_REALTIME);
	while (waitid(P_PIDFD, (id_t)s->child_pidfd, &info, WEXITED | __WALL) < 0 && errno == EINTR)
		;
	s->exit_code = (uint32_t)(info.si_code == CLD_EXITED ? info.si_status : 128 + info.si_status);
	epoll_ctl(s->streams.epoll, EPOLL_CTL_DEL, s->child_pidfd, NULL);
}

static void dispatch(struct supervisor *s, uint64_t data, uint32_t events, bool *ended)
{
	uint32_t what = (uint32_t)data;

	switch ((enum tag)(data >> 32)) {
	case TAG_PROCESS:
		*ended = true;
		break;
	case TAG_LISTENER:
		control_accept(s);
		break;
	case TAG_CONTROL:
		control_ready(s, what);
		break;
	case TAG_SOURCE:
		source_ready(&s->streams, what);
		break;
	case TAG_INPUT:
		input_ready(&s->streams);
		break;
	case TAG_CLIENT:
		client_ready(&s->streams, what, events);
		break;
	}
}

/* One round: wait at most `timeout_ms`, handle what came. Returns the number of events. */
static int serve(struct supervisor *s, int timeout_ms, bool *ended)
{
	struct epoll_event events[EVENTS];
	int count = epoll_wait(s->streams.epoll, events, EVENTS, timeout_ms);

	for (int i = 0; i < count; i++)
		dispatch(s, events[i].data.u64, events[i].events, ended);
	return count;
}

static void serve_process(struct supervisor *s)
{
	bool ended = false, idle = false;

	while (!ended) {
		int wait_ms = streams_tick(&s->streams);
		bool tick = wait_ms >= 0;

		if (!idle && !tick)
			wait_ms = IDLE_MS;
		if (serve(s, wait_ms, &ended)) {
			idle = false;
		} else if (!tick) {
			streams_give_memory_back(&s->streams);
			idle = true;
		}
	}
	take_status(s);
}

static void drain(struct supervisor *s)
{
	bool ended;

	streams_drain(&s->streams);
	while (!streams_drained(&s->streams)) {
		int wait_ms = streams_tick(&s->streams);

		if (!streams_drained(&s->streams))
			serve(s, wait_ms < 0 ? IDLE_MS : wait_ms, &ended);
	}
}

/* Let clients have the rest of their output. */
static void serve_clients(struct supervisor *s)
{
	bool ended;

	while (!streams_finished(&s->streams)) {
		int wait_ms = streams_tick(&s->streams);

		if (!streams_finished(&s->streams))
			serve(s, wait_ms < 0 ? IDLE_MS : wait_ms, &ended);
	}
	streams_close(&s->streams);
}

static char *put_line(char *out, const char *key, uint64_t number)
{
	char digits[24], *p = digits + sizeof(digits);

	out = stpcpy(out, key);
	*out++ = ' ';
	*--p = '\0';
	do {
		*--p = (char)('0' + number % 10);
		number /= 10;
	} while (number);
	out = stpcpy(out, p);
	*out++ = '\n';
	return out;
}

/* The file appears whole or not at all. If it can't be written, a living daemon still hears it. */
static void write_exit(struct supervisor *s)
{
	char text[256], *p = text;
	CLOSE_AT_END int fd = openat(s->state_dir, "exit.new", O_WRONLY | O_CREAT | O_TRUNC | O_CLOEXEC, 0600);

	p = put_line(p, "exit_code", s->exit_code);
	p = put_line(p, "oom_killed", s->context.oom_killed);
	p = put_line(p, "finished_ns", s->finished_ns);
	p = put_line(p, "log_dropped_bytes", s->streams.log.dropped);
	if (fd >= 0 && write(fd, text, (size_t)(p - text)) == p - text)
		renameat(s->state_dir, "exit.new", s->state_dir, "exit");
}

static void tell_exit(struct supervisor *s)
{
	struct msg_exited message = {
		.head = { .type = MSG_EXITED },
		.exit_code = s->exit_code,
		.oom_killed = s->context.oom_killed,
		.finished_ns = s->finished_ns,
		.log_dropped = s->streams.log.dropped,
	};

	control_tell_all(s, &message, sizeof(message));
}

void supervise(struct supervisor *s)
{
	s->streams.detached = on_detached;
	s->streams.owner = s;
	add_event(s, s->child_pidfd, TAG_PROCESS);
	add_event(s, s->listener, TAG_LISTENER);
	fcntl(CONTROL_FD, F_SETFL, O_NONBLOCK);
	control_add(s, CONTROL_FD);
	serve_process(s);
	drain(s);
	streams_close_log(&s->streams);
	run_exit_steps(s, true);
	write_exit(s);
	run_exit_steps(s, false);
	close_fd(&s->listener);
	unlinkat(s->state_dir, "control.sock", 0);
	tell_exit(s);
	controls_close(s);
	close_fd(&s->state_dir);
	serve_clients(s);
}
