#include "util.h"

#include "log.h"

#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <string.h>
#include <sys/file.h>
#include <sys/stat.h>
#include <sys/uio.h>

#include "json.h"

#define NAME_SIZE 32

/* A record of the local format: this, the payload, and the length once more. */
struct record {
	uint32_t length;
	uint8_t stream;
	uint8_t zero;
	uint16_t zeros;
	uint64_t time_ns;
};

_Static_assert(sizeof(struct record) == 16, "the log's format");

/* "log", "log.1" …; the number is below 10^9 */
static void file_name(const struct log *log, uint32_t number, char *name)
{
	char digits[16], *p = digits + sizeof(digits);

	strcpy(name, log->driver == LOG_JSON ? "json.log" : "log");
	if (!number)
		return;
	*--p = '\0';
	do {
		*--p = (char)('0' + number % 10);
		number /= 10;
	} while (number);
	strcat(name, ".");
	strcat(name, p);
}

static int open_file(struct log *log)
{
	char name[NAME_SIZE];
	struct stat st;

	file_name(log, 0, name);
	log->file = openat(log->dir, name, O_RDWR | O_CREAT | O_APPEND | O_CLOEXEC | O_NOFOLLOW | O_NONBLOCK, 0640);
	if (log->file < 0)
		return -errno;
	if (fstat(log->file, &st) < 0 || !S_ISREG(st.st_mode)) {
		close_fd(&log->file);
		return -EIO;
	}
	log->size = (uint64_t)st.st_size;
	return 0;
}

/* log.1 becomes log.2 and so on, the oldest goes, and a new file is made. */
static int rename_all(struct log *log)
{
	char from[NAME_SIZE], to[NAME_SIZE];

	close_fd(&log->file);
	if (log->max_files <= 1) {
		file_name(log, 0, from);
		unlinkat(log->dir, from, 0);
		return open_file(log);
	}
	for (uint32_t i = log->max_files - 1; i > 0; i--) {
		file_name(log, i - 1, from);
		file_name(log, i, to);
		if (renameat(log->dir, from, log->dir, to) < 0 && errno != ENOENT)
			return -errno;
	}
	return open_file(log);
}

/* Who packs a rotated file has the directory locked while the copy takes its place. That takes no time; should it be
 * stopped there, the file grows to twice its size, and then nobody is waited for. */
static int rotate(struct log *log)
{
	bool locked = !flock(log->dir, LOCK_EX | LOCK_NB);
	int r;

	if (!locked && errno == EWOULDBLOCK && log->file >= 0 && log->size < 2 * log->max_bytes)
		return 0;
	r = rename_all(log);
	if (locked)
		flock(log->dir, LOCK_UN);
	return r;
}

/* Did an earlier writer (killed, or out of disk) leave the file with half a record at its end? */
static bool is_torn(const struct log *log)
{
	struct record record;
	uint32_t length;
	char last;

	if (!log->size)
		return false;
	if (log->driver == LOG_JSON)
		return pread(log->file, &last, 1, (off_t)(log->size - 1)) != 1 || last != '\n';
	if (log->size < sizeof(record) + sizeof(length) ||
	    pread(log->file, &length, sizeof(length), (off_t)(log->size - sizeof(length))) != sizeof(length) ||
	    !length || length > log->size - sizeof(record) - sizeof(length))
		return true;
	return pread(log->file, &record, sizeof(record),
		     (off_t)(log->size - sizeof(length) - length - sizeof(record))) != sizeof(record) ||
	       record.length != length || record.stream < 1 || record.stream > 2;
}

/* Have a file that may take a record. */
static int make_ready(struct log *log)
{
	int r;

	if (log->file < 0) {
		r = open_file(log);
		if (r < 0)
			return r;
		if (is_torn(log))
			return rotate(log);
	}
	return log->max_bytes && log->size && log->size >= log->max_bytes ? rotate(log) : 0;
}

/* Append all parts, or nothing; `payload` is what is lost in the second case. */
static void append(struct log *log, struct iovec *parts, int count, size_t payload)
{
	size_t total = 0, written = 0;

	for (int i = 0; i < count; i++)
		total += parts[i].iov_len;
	if (make_ready(log) < 0) {
		log->dropped += payload;
		return;
	}
	while (written < total) {
		ssize_t r = writev(log->file, parts, count);

		if (r < 0 && errno == EINTR)
			continue;
		if (r <= 0)
			break;
		written += (size_t)r;
		for (; count && (size_t)r >= parts->iov_len; parts++, count--)
			r -= (ssize_t)parts->iov_len;
		if (count) {
			parts->iov_base = (char *)parts->iov_base + r;
			parts->iov_len -= (size_t)r;
		}
	}
	if (written == total) {
		log->size += total;
		return;
	}
	log->dropped += payload;
	/* Readers must not meet half a record; if this fails too, the next file starts clean. */
	if (written && ftruncate(log->file, (off_t)log->size) < 0)
		rotate(log);
}

static void write_local(struct log *log, unsigned int source, const uint8_t *data, size_t size)
{
	struct record record = {
		.length = (uint32_t)size,
		.stream = (uint8_t)(source + 1),
		.time_ns = clock_ns(CLOCK_REALTIME),
	};
	struct iovec parts[3] = {
		{ &record, sizeof(record) },
		{ (void *)(uintptr_t)data, size }, /* writev(2) only reads it */
		{ &record.length, sizeof(record.length) },
	};

	append(log, parts, 3, size);
}

static void flush_json(struct log *log)
{
	struct iovec part = { log->json, log->json_length };

	if (log->json_length)
		append(log, &part, 1, log->json_payload);
	log->json_length = 0;
	log->json_payload = 0;
}

/* Add one line (or a piece of one) to what will be written: first `head`, then `tail`. */
static void put_line(struct log *log, unsigned int source, const struct line *head, const uint8_t *tail,
		     size_t size, const char *time, size_t time_size)
{
	static const char *const streams[2] = { "\",\"stream\":\"stdout\",\"time\":\"", "\",\"stream\":\"stderr\",\"time\":\"" };
	size_t stream_size = strlen(streams[source]);
	char *p;

	if (JSON_BUFFER_BYTES - log->json_length < (head->length + size) * 6 + 128)
		flush_json(log);
	p = log->json + log->json_length;
	memcpy(p, "{\"log\":\"", 8);
	p += 8;
	if (head->length && size) {
		/* A character may lie across the two: join them first, at the end of the room reserved. */
		uint8_t *joined = (uint8_t *)p + (head->length + size) * 5;

		memmove(joined, head->bytes, head->length);
		memcpy(joined + head->length, tail, size);
		p += json_escape(p, joined, head->length + size);
	} else {
		p += json_escape(p, head->length ? head->bytes : tail, head->length + size);
	}
	memcpy(p, streams[source], stream_size);
	p += stream_size;
	memcpy(p, time, time_size);
	p += time_size;
	memcpy(p, "\"}\n", 3);
	p += 3;
	log->json_length = (size_t)(p - log->json);
	log->json_payload += head->length + size;
	if (log->max_bytes && log->size + log->json_length >= log->max_bytes)
		flush_json(log);
}

static void write_json(struct log *log, unsigned int source, const uint8_t *data, size_t size)
{
	struct line *line = &log->lines[source];
	char time[TIME_SIZE];
	size_t time_size = format_time(time, clock_ns(CLOCK_REALTIME));

	while (size) {
		size_t room = LINE_MAX_BYTES - line->length;
		size_t take = min_size(size, room);
		const uint8_t *newline = memchr(data, '\n', take);

		if (newline)
			take = (size_t)(newline - data) + 1;
		if (newline || take == room) {
			put_line(log, source, line, data, take, time, time_size);
			line->length = 0;
		} else {
			memcpy(line->bytes + line->length, data, take);
			line->length += take;
		}
		data += take;
		size -= take;
	}
	flush_json(log);
}

void log_write(struct log *log, unsigned int source, const uint8_t *data, size_t size)
{
	if (log->driver == LOG_LOCAL)
		write_local(log, source, data, size);
	else if (log->driver == LOG_JSON)
		write_json(log, source, data, size);
}

void log_end(struct log *log, unsigned int source)
{
	struct line *line = &log->lines[source];
	char time[TIME_SIZE];

	if (log->driver != LOG_JSON || !line->length)
		return;
	put_line(log, source, line, NULL, 0, time, format_time(time, clock_ns(CLOCK_REALTIME)));
	line->length = 0;
	flush_json(log);
}
