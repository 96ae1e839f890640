/* The pure part of the json-file log: escaping as Docker's jsonlog does, and RFC 3339 times. */
#ifndef COVE_JSON_H
#define COVE_JSON_H

#include <stddef.h>
#include <stdint.h>

/* Write `size` bytes as the inside of a JSON string; returns the length, at most 6 * size.
 * A byte that isn't UTF-8 becomes \ufffd, as Go's encoder has it. */
size_t json_escape(char *out, const uint8_t *in, size_t size);

#define TIME_SIZE 32

/* "2006-01-02T15:04:05.999999999Z", trailing zeros of the fraction left out; returns the length. */
size_t format_time(char *out, uint64_t time_ns);

#endif
