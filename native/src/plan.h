/*
 * Plans: the decoded form, and the check of everything that can be checked before a step runs.
 *
 * The vocabulary is cove/runtime/steps/, the format is described in cove/runtime/encode.py.
 * Decoding copies nothing: texts stay where they are in the plan, which must stay mapped.
 */
#ifndef COVE_PLAN_H
#define COVE_PLAN_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#define PLAN_MAGIC 0x4c505643u /* "CVPL" */
#define PLAN_VERSION 1u
#define PLAN_MAX (16u << 20)
#define MAX_SLOTS 64u
#define MAX_ENV_ADDITIONS 16u
#define MAX_FIELDS 8u

enum section { BEFORE, CLONE, PARENT, CHILD, EXIT, SECTIONS };

/* One field. `size` is the text's or data's length, or the list's number of texts. */
struct value {
	union {
		uint64_t number;
		const char *text;
		const void *data;
		char **list; /* ends with NULL and has room for MAX_ENV_ADDITIONS more */
	};
	size_t size;
};

struct operation;

struct step {
	const struct operation *operation;
	const struct value *values;
};

struct steps {
	const struct step *steps;
	uint32_t count;
};

/* Is there such a step among these? */
bool has_step(const struct steps *steps, bool (*is_it)(const struct step *step));

struct plan {
	uint64_t clone_flags;
	const char *cgroup_path; /* "" for none */
	struct steps sections[SECTIONS];
	const void *exit_wire; /* the exit section as it came, to keep when the plan is let go */
	size_t exit_size;
};

/* Why a plan was refused. */
struct refusal {
	enum section section;
	uint32_t index;
	const char *reason;
};

struct arena {
	char *next;
	char *end;
};

/* An arena of this size holds any plan of `size` bytes. */
static inline size_t plan_arena_size(size_t size)
{
	return size * 4 + 8192;
}

/* Both return 0, or -EINVAL with `why` filled in. They allocate from the arena alone. */
int plan_decode(const void *data, size_t size, uint32_t slots, struct arena *arena, struct plan *plan,
		struct refusal *why);
int plan_decode_section(const void *data, size_t size, uint32_t count, enum section section, uint32_t slots,
			struct arena *arena, struct steps *steps, struct refusal *why);

#endif
