/*
 * The container's log files. Nothing that happens to a log stops the container or its clients: output
 * that can't be written is counted and passed over, and the next is tried again.
 */
#ifndef COVE_LOG_H
#define COVE_LOG_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

enum log_driver { LOG_NONE, LOG_LOCAL, LOG_JSON };

#define LINE_MAX_BYTES 16384u	       /* Docker splits lines there */
#define JSON_BUFFER_BYTES (128u << 10) /* one line, each byte escaped to six, fits */

struct line {
	uint8_t *bytes; /* LINE_MAX_BYTES: the start of a line that hasn't ended yet */
	size_t length;
};

struct log {
	enum log_driver driver;
	int dir;
	int file; /* -1: to be opened */
	uint64_t size;
	uint64_t max_bytes; /* 0: never rotated */
	uint32_t max_files;
	uint64_t dropped; /* bytes of output that weren't logged */
	struct line lines[2];
	char *json; /* JSON_BUFFER_BYTES: lines to be written */
	size_t json_length;
	size_t json_payload; /* how much output these lines hold */
};

/* `source` is 0 for stdout (and a terminal), 1 for stderr. */
void log_write(struct log *log, unsigned int source, const uint8_t *data, size_t size);

/* The source has ended: a line without its end is written as it is. */
void log_end(struct log *log, unsigned int source);

#endif
