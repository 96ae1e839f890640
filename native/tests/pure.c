/*
 * The pure parts of cove-init, for tests to call: frames `u32 length, bytes` come on stdin, an answer
 * in the same form goes to stdout for each. The first argument names the part:
 *
 *     plan SLOTS   decode a plan, answer with one line a step, or "refused SECTION INDEX REASON"
 *     json         escape
 *     time         u64 nanoseconds to RFC 3339
 *     detach KEYS  pass the frame through the filter; "!" in front when the keys were complete
 */
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "input.h"
#include "json.h"
#include "operations.h"
#include "plan.h"

static char *answer;
static size_t answer_size;

__attribute__((format(printf, 1, 2))) static void say(const char *format, ...)
{
	va_list args;

	va_start(args, format);
	answer_size += (size_t)vsprintf(answer + answer_size, format, args);
	va_end(args);
}

static void say_bytes(const void *data, size_t size)
{
	for (size_t i = 0; i < size; i++)
		say("%02x", ((const unsigned char *)data)[i]);
}

static void say_step(const struct step *step)
{
	const char *letter = step->operation->fields;

	say(" %s", step->operation->name);
	for (const struct value *v = step->values; *letter; letter++, v++) {
		say(" ");
		switch (*letter) {
		case 'i':
		case 'u':
		case 'd':
			say("%llu", (unsigned long long)v->number);
			break;
		case 'l':
			say("[");
			for (size_t i = 0; i < v->size; i++) {
				say(i ? "," : "");
				say_bytes(v->list[i], strlen(v->list[i]));
			}
			say("]");
			break;
		default:
			say("'");
			say_bytes(v->data, v->size);
			say("'");
		}
	}
	say("\n");
}

static void do_plan(const void *data, size_t size, uint32_t slots)
{
	size_t arena_size = plan_arena_size(size);
	char *memory = malloc(arena_size);
	struct arena arena = { memory, memory + arena_size };
	struct plan plan;
	struct refusal why;

	if (plan_decode(data, size, slots, &arena, &plan, &why) < 0) {
		say("refused %d %u %s", why.section, why.index, why.reason);
	} else {
		say("clone %llu ", (unsigned long long)plan.clone_flags);
		say_bytes(plan.cgroup_path, strlen(plan.cgroup_path));
		say("\n");
		for (int section = 0; section < SECTIONS; section++)
			for (uint32_t i = 0; i < plan.sections[section].count; i++) {
				say("%d", section);
				say_step(&plan.sections[section].steps[i]);
			}
	}
	free(memory);
}

static void do_detach(const char *keys, const uint8_t *data, size_t size)
{
	struct detach detach = { .count = (uint8_t)strlen(keys) };
	size_t at = 0, passed = 0;
	bool detached = false;
	uint8_t *out = malloc(size + MAX_DETACH_KEYS);

	memcpy(detach.keys, keys, detach.count);
	/* in pieces of growing size, so that matches span them */
	for (size_t piece = 1; at < size && !detached; at += piece, piece = piece % 5 + 1) {
		if (piece > size - at)
			piece = size - at;
		passed += detach_filter(&detach, data + at, piece, out + passed, &detached);
		if (at + piece >= size)
			break;
	}
	say("%s", detached ? "!" : "");
	memcpy(answer + answer_size, out, passed);
	answer_size += passed;
	free(out);
}

int main(int argc, char **argv)
{
	uint32_t size;

	if (argc > 2 && !strcmp(argv[1], "detach") && strlen(argv[2]) > MAX_DETACH_KEYS)
		return 2;
	while (argc > 1 && fread(&size, sizeof(size), 1, stdin) == 1) {
		uint8_t *data = malloc(size ? size : 1);

		answer = malloc((size_t)size * 16 + (1 << 16));
		answer_size = 0;
		if (!data || !answer || fread(data, 1, size, stdin) != size)
			return 1;
		if (!strcmp(argv[1], "plan"))
			do_plan(data, size, (uint32_t)atoi(argv[2]));
		else if (!strcmp(argv[1], "json"))
			answer_size = json_escape(answer, data, size);
		else if (!strcmp(argv[1], "time"))
			answer_size = format_time(answer, *(const uint64_t *)(const void *)data);
		else
			do_detach(argv[2], data, size);
		size = (uint32_t)answer_size;
		fwrite(&size, sizeof(size), 1, stdout);
		fwrite(answer, 1, answer_size, stdout);
		fflush(stdout);
		free(answer);
		free(data);
	}
	return 0;
}
