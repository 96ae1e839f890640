#include "input.h"

#include <errno.h>
#include <string.h>

#include "util.h"

size_t detach_filter(struct detach *d, const uint8_t *in, size_t size, uint8_t *out, bool *detached)
{
	size_t passed = 0;

	*detached = false;
	for (size_t i = 0; i < size; i++) {
		uint8_t typed[MAX_DETACH_KEYS + 1];
		size_t length = d->matched, keep;

		/* What is withheld and the new byte; the longest end of it that starts the keys stays back. */
		memcpy(typed, d->keys, length);
		typed[length++] = in[i];
		for (keep = min_size(length, d->count); keep > 0; keep--)
			if (!memcmp(typed + length - keep, d->keys, keep))
				break;
		memcpy(out + passed, typed, length - keep);
		passed += length - keep;
		d->matched = (uint8_t)keep;
		if (keep && keep == d->count) {
			d->matched = 0;
			*detached = true;
			break;
		}
	}
	return passed;
}

bool input_flush(struct input *input)
{
	while (input_pending(input)) {
		ssize_t r = write(input->fd, input->buffer + input->start, input->end - input->start);

		if (r < 0 && errno == EINTR)
			continue;
		if (r < 0 && errno == EAGAIN)
			return false;
		if (r <= 0) {
			input->broken = true; /* EPIPE; or EIO of a terminal that no process has open */
			break;
		}
		input->start += (size_t)r;
	}
	input->start = 0;
	input->end = 0;
	return true;
}
