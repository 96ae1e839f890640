/* libFuzzer: whatever comes, the decoder refuses it or returns what can be read without harm. */
#include <stdlib.h>
#include <string.h>

#include "operations.h"
#include "plan.h"

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

static volatile unsigned int sink; /* what was read stays read */

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
	size_t arena_size = plan_arena_size(size);
	char *memory = malloc(arena_size), *copy = malloc(size + 1);
	struct arena arena = { memory, memory + arena_size };
	struct refusal why;
	struct plan plan;

	memcpy(copy, data, size);
	if (plan_decode(copy, size, 3, &arena, &plan, &why) == 0)
		for (int section = 0; section < SECTIONS; section++)
			for (uint32_t i = 0; i < plan.sections[section].count; i++) {
				const struct step *step = &plan.sections[section].steps[i];
				const char *letter = step->operation->fields;

				for (const struct value *v = step->values; *letter; letter++, v++) {
					if (strchr("shr", *letter) && strlen(v->text) != v->size)
						abort();
					else if (*letter == 'b' && v->size)
						sink += ((const uint8_t *)v->data)[v->size - 1];
					else if (*letter == 'l')
						for (size_t n = 0; n < v->size; n++)
							if (strlen(v->list[n]) > size)
								abort();
				}
			}
	free(copy);
	free(memory);
	return 0;
}
