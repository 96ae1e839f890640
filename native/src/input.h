/* The container's stdin: what clients sent and the process hasn't taken; and the detach keys. */
#ifndef COVE_INPUT_H
#define COVE_INPUT_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "protocol.h"

#define INPUT_BYTES 65536u

struct detach {
	uint8_t keys[MAX_DETACH_KEYS];
	uint8_t count;	 /* 0: none */
	uint8_t matched; /* how many of the keys the client has typed; they are withheld */
};

/*
 * Pass on what isn't part of the detach keys: from `in` to `out`, which has room for size + count
 * bytes, or lies at least MAX_DETACH_KEYS bytes before `in`. Sets `*detached`, and passes nothing on
 * behind the keys, when they are complete. Returns the number of bytes passed on.
 */
size_t detach_filter(struct detach *detach, const uint8_t *in, size_t size, uint8_t *out, bool *detached);

struct input {
	int fd; /* the pipe, or a second descriptor of the terminal; -1: none, or closed */
	uint8_t *buffer; /* INPUT_BYTES */
	size_t start;
	size_t end;
	bool closing; /* close it once the buffer is empty */
	bool broken;  /* nobody will read it any more: what is sent is thrown away */
};

static inline bool input_pending(const struct input *input)
{
	return input->start < input->end;
}

/* Write what the process takes. Returns false when it takes no more for now; the descriptor stays open. */
bool input_flush(struct input *input);

#endif
