#include "plan.h"

#include <errno.h>
#include <limits.h>
#include <linux/sched.h>
#include <string.h>

#include "operations.h"
#include "util.h"

#define CLONE_FLAGS_ALLOWED                                                                                  \
	(CLONE_NEWNS | CLONE_NEWCGROUP | CLONE_NEWUTS | CLONE_NEWIPC | CLONE_NEWUSER | CLONE_NEWPID |         \
	 CLONE_NEWNET | CLONE_NEWTIME)

struct wire_header {
	uint32_t magic;
	uint32_t version;
	uint64_t clone_flags;
	uint64_t size;
	struct {
		uint32_t count;
		uint32_t bytes;
	} sections[4];
};

struct wire_step {
	uint16_t kind;
	uint16_t fields;
	uint32_t bytes;
};

/* A reader over part of the plan. Every length is compared with what is left before it is used. */
struct reader {
	const char *next;
	size_t left;
};

static void *arena_take(struct arena *arena, size_t size)
{
	char *taken = arena->next;

	size = (size + 15) & ~(size_t)15;
	if (size > (size_t)(arena->end - arena->next))
		return NULL;
	arena->next += size;
	return taken;
}

static int refuse(struct refusal *why, enum section section, uint32_t index, const char *reason)
{
	why->section = section;
	why->index = index;
	why->reason = reason;
	return -EINVAL;
}

static bool read_number(struct reader *r, uint64_t *number)
{
	if (r->left < sizeof(*number))
		return false;
	memcpy(number, r->next, sizeof(*number));
	r->next += sizeof(*number);
	r->left -= sizeof(*number);
	return true;
}

/* Bytes with a length before, and a NUL and zeros behind them, up to a multiple of 8. */
static bool read_bytes(struct reader *r, const char **bytes, size_t *size)
{
	uint64_t length;
	size_t padded;

	if (!read_number(r, &length) || length >= r->left)
		return false;
	padded = (length | 7) + 1;
	if (padded > r->left || r->next[length] != '\0')
		return false;
	*bytes = r->next;
	*size = length;
	r->next += padded;
	r->left -= padded;
	return true;
}

static bool read_text(struct reader *r, const char **text, size_t *size)
{
	return read_bytes(r, text, size) && !memchr(*text, '\0', *size);
}

static const char *read_list(struct reader *r, struct arena *arena, struct value *value)
{
	uint64_t count;

	if (!read_number(r, &count) || count > r->left / 16)
		return "a list is cut short";
	value->list = arena_take(arena, (count + 1 + MAX_ENV_ADDITIONS) * sizeof(char *));
	if (!value->list)
		return "the plan is too large";
	for (uint64_t i = 0; i < count; i++) {
		const char *text;
		size_t size;

		if (!read_text(r, &text, &size))
			return "a text in a list is cut short";
		/* execve(2) takes char *const[]: nothing writes through it */
		value->list[i] = (char *)(uintptr_t)text;
	}
	value->list[count] = NULL;
	value->size = count;
	return NULL;
}

static const char *read_path(struct reader *r, char letter, struct value *value)
{
	if (!read_text(r, &value->text, &value->size))
		return "a path is cut short";
	if (!value->size || value->size >= PATH_MAX)
		return "a path has 1 to 4095 bytes";
	if (letter == 'h' && value->text[0] != '/')
		return "a host path must be absolute";
	return NULL;
}

static const char *read_field(struct reader *r, char letter, uint32_t slots, struct arena *arena,
			      struct value *value)
{
	switch (letter) {
	case 'i':
		return read_number(r, &value->number) ? NULL : "a number is cut short";
	case 'u':
		if (!read_number(r, &value->number))
			return "a number is cut short";
		return value->number <= UINT32_MAX ? NULL : "a number is beyond 32 bits";
	case 'd':
		if (!read_number(r, &value->number))
			return "a slot is cut short";
		return value->number < slots ? NULL : "a slot is beyond the descriptors that were given";
	case 's':
		return read_text(r, &value->text, &value->size) ? NULL : "a text is cut short or has a NUL";
	case 'b':
		return read_bytes(r, &value->text, &value->size) ? NULL : "bytes are cut short";
	case 'l':
		return read_list(r, arena, value);
	default:
		return read_path(r, letter, value);
	}
}

static const char *read_step(struct reader *r, enum section section, uint32_t slots, struct arena *arena,
			     struct step *step)
{
	struct wire_step wire;
	struct value *values;
	struct reader body;
	size_t fields;

	if (r->left < sizeof(wire))
		return "the step is cut short";
	memcpy(&wire, r->next, sizeof(wire));
	if (wire.bytes > r->left - sizeof(wire) || wire.bytes % 8)
		return "the step is cut short";
	body = (struct reader){ r->next + sizeof(wire), wire.bytes };
	r->next += sizeof(wire) + wire.bytes;
	r->left -= sizeof(wire) + wire.bytes;

	step->operation = find_operation(wire.kind);
	if (!step->operation)
		return "this release has no such step";
	if (!(step->operation->sections & (1u << section)))
		return "the step can't stand in this section";
	fields = strlen(step->operation->fields);
	if (wire.fields != fields)
		return "the number of fields is wrong";
	step->values = values = arena_take(arena, fields * sizeof(*values));
	if (!values)
		return "the plan is too large";
	for (size_t i = 0; i < fields; i++) {
		const char *reason = read_field(&body, step->operation->fields[i], slots, arena, &values[i]);

		if (reason)
			return reason;
	}
	if (body.left)
		return "there is something behind the last field";
	return step->operation->check ? step->operation->check(values, section) : NULL;
}

int plan_decode_section(const void *data, size_t size, uint32_t count, enum section section, uint32_t slots,
			struct arena *arena, struct steps *steps, struct refusal *why)
{
	struct reader r = { data, size };
	struct step *array;

	if (count > size / sizeof(struct wire_step))
		return refuse(why, section, 0, "the section is cut short");
	array = arena_take(arena, count * sizeof(*array));
	if (!array)
		return refuse(why, section, 0, "the plan is too large");
	for (uint32_t i = 0; i < count; i++) {
		const char *reason = read_step(&r, section, slots, arena, &array[i]);

		if (reason)
			return refuse(why, section, i, reason);
	}
	if (r.left)
		return refuse(why, section, count, "there is something behind the last step");
	steps->steps = array;
	steps->count = count;
	return 0;
}

/* What no single step shows: one root, pivoted into once, and one Exec, which is last. */
static int check_child(const struct steps *child, struct refusal *why)
{
	bool root = false, pivoted = false, terminal = false, resolved = false, hold = false;

	if (!child->count || child->steps[child->count - 1].operation->kind != EXEC)
		return refuse(why, CHILD, child->count, "the last step of the child must be Exec");
	for (uint32_t i = 0; i < child->count; i++) {
		switch (child->steps[i].operation->kind) {
		case MOUNT_ROOT:
		case BIND_ROOT:
		case ATTACH_ROOT:
			if (root)
				return refuse(why, CHILD, i, "the root is mounted already");
			root = true;
			break;
		case PIVOT_ROOT:
			if (!root || pivoted)
				return refuse(why, CHILD, i, "there is no root to pivot into");
			pivoted = true;
			break;
		case TERMINAL:
			if (terminal)
				return refuse(why, CHILD, i, "there is a terminal already");
			terminal = true;
			break;
		case RESOLVE_USER:
			if (resolved)
				return refuse(why, CHILD, i, "the user is looked up already");
			resolved = true;
			break;
		case PRESERVE:
			if (i)
				return refuse(why, CHILD, i, "Preserve must be the first step");
			break;
		case HOLD:
			if (hold)
				return refuse(why, CHILD, i, "the process is held already");
			hold = true;
			break;
		case EXEC:
			if (i != child->count - 1)
				return refuse(why, CHILD, i, "Exec must be the last step");
			break;
		}
	}
	return 0;
}

int plan_decode(const void *data, size_t size, uint32_t slots, struct arena *arena, struct plan *plan,
		struct refusal *why)
{
	static const enum section order[4] = { BEFORE, PARENT, CHILD, EXIT };
	struct wire_header header;
	struct reader r = { data, size };
	size_t ignored;
	int e;

	memset(plan, 0, sizeof(*plan));
	if (size < sizeof(header) || size > PLAN_MAX)
		return refuse(why, CLONE, 0, "a plan has at most 16 MiB, and a header");
	memcpy(&header, data, sizeof(header));
	if (header.magic != PLAN_MAGIC)
		return refuse(why, CLONE, 0, "this isn't a plan");
	if (header.version != PLAN_VERSION)
		return refuse(why, CLONE, 0, "the plan is of another version");
	if (header.size != size)
		return refuse(why, CLONE, 0, "the plan is cut short");
	if (header.clone_flags & ~(uint64_t)CLONE_FLAGS_ALLOWED)
		return refuse(why, CLONE, 0, "clone flags other than namespaces");
	plan->clone_flags = header.clone_flags;
	r.next += sizeof(header);
	r.left -= sizeof(header);
	if (!read_text(&r, &plan->cgroup_path, &ignored))
		return refuse(why, CLONE, 0, "the cgroup path is cut short");
	if (plan->cgroup_path[0] && plan->cgroup_path[0] != '/')
		return refuse(why, CLONE, 0, "the cgroup path must be absolute");

	for (size_t i = 0; i < ARRAY_SIZE(order); i++) {
		size_t bytes = header.sections[i].bytes;

		if (bytes > r.left)
			return refuse(why, order[i], 0, "the section is cut short");
		e = plan_decode_section(r.next, bytes, header.sections[i].count, order[i], slots, arena,
					&plan->sections[order[i]], why);
		if (e < 0)
			return e;
		if (order[i] == EXIT) {
			plan->exit_wire = r.next;
			plan->exit_size = bytes;
		}
		r.next += bytes;
		r.left -= bytes;
	}
	if (r.left)
		return refuse(why, EXIT, 0, "there is something behind the last section");
	return check_child(&plan->sections[CHILD], why);
}

bool has_step(const struct steps *steps, bool (*is_it)(const struct step *step))
{
	for (uint32_t i = 0; i < steps->count; i++)
		if (is_it(&steps->steps[i]))
			return true;
	return false;
}
