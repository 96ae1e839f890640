#include "json.h"

#include <stdbool.h>
#include <string.h>

static bool is_plain(uint8_t byte)
{
	return byte >= 0x20 && byte < 0x80 && byte != '"' && byte != '\\' && byte != '<' && byte != '>' && byte != '&';
}

/* The length of the UTF-8 sequence at `in`, 0 when it isn't one (overlong, surrogate, cut short). */
static size_t utf8_length(const uint8_t *in, size_t left)
{
	uint8_t first = in[0], low = 0x80, high = 0xbf;
	size_t length;

	if (first >= 0xc2 && first <= 0xdf) {
		length = 2;
	} else if (first >= 0xe0 && first <= 0xef) {
		length = 3;
		if (first == 0xe0)
			low = 0xa0;
		else if (first == 0xed)
			high = 0x9f;
	} else if (first >= 0xf0 && first <= 0xf4) {
		length = 4;
		if (first == 0xf0)
			low = 0x90;
		else if (first == 0xf4)
			high = 0x8f;
	} else {
		return 0;
	}
	if (left < length || in[1] < low || in[1] > high)
		return 0;
	for (size_t i = 2; i < length; i++)
		if ((in[i] & 0xc0) != 0x80)
			return 0;
	return length;
}

static size_t put_hex(char *out, uint8_t byte)
{
	static const char hex[] = "0123456789abcdef";

	memcpy(out, "\\u00", 4);
	out[4] = hex[byte >> 4];
	out[5] = hex[byte & 15];
	return 6;
}

static size_t put_special(char *out, uint8_t byte)
{
	out[0] = '\\';
	switch (byte) {
	case '"':
	case '\\':
		out[1] = (char)byte;
		return 2;
	case '\n':
		out[1] = 'n';
		return 2;
	case '\r':
		out[1] = 'r';
		return 2;
	default:
		return put_hex(out, byte);
	}
}

size_t json_escape(char *out, const uint8_t *in, size_t size)
{
	char *start = out;
	size_t i = 0;

	while (i < size) {
		size_t run = i, length;

		while (run < size && is_plain(in[run]))
			run++;
		memcpy(out, in + i, run - i);
		out += run - i;
		i = run;
		if (i == size)
			break;
		if (in[i] < 0x80) {
			out += put_special(out, in[i++]);
			continue;
		}
		length = utf8_length(in + i, size - i);
		if (length == 0) {
			memcpy(out, "\\ufffd", 6);
			out += 6;
			i++;
		} else if (length == 3 && in[i] == 0xe2 && in[i + 1] == 0x80 && (in[i + 2] | 1) == 0xa9) {
			/* U+2028 and U+2029 end a line in JavaScript */
			memcpy(out, in[i + 2] == 0xa8 ? "\\u2028" : "\\u2029", 6);
			out += 6;
			i += 3;
		} else {
			memcpy(out, in + i, length);
			out += length;
			i += length;
		}
	}
	return (size_t)(out - start);
}

static char *put_digits(char *out, uint64_t number, int digits)
{
	for (int i = digits - 1; i >= 0; i--) {
		out[i] = (char)('0' + number % 10);
		number /= 10;
	}
	return out + digits;
}

size_t format_time(char *out, uint64_t time_ns)
{
	uint64_t seconds = time_ns / 1000000000u, fraction = time_ns % 1000000000u;
	uint64_t day = seconds / 86400 + 719468, second = seconds % 86400;
	/* Howard Hinnant, "chrono-Compatible Low-Level Date Algorithms": days of an era from 1 March */
	uint64_t era = day / 146097, of_era = day % 146097;
	uint64_t year_of_era = (of_era - of_era / 1460 + of_era / 36524 - of_era / 146096) / 365;
	uint64_t of_year = of_era - (365 * year_of_era + year_of_era / 4 - year_of_era / 100);
	uint64_t shifted = (5 * of_year + 2) / 153;
	uint64_t month = shifted < 10 ? shifted + 3 : shifted - 9;
	char *p = out;

	p = put_digits(p, year_of_era + era * 400 + (month <= 2), 4);
	*p++ = '-';
	p = put_digits(p, month, 2);
	*p++ = '-';
	p = put_digits(p, of_year - (153 * shifted + 2) / 5 + 1, 2);
	*p++ = 'T';
	p = put_digits(p, second / 3600, 2);
	*p++ = ':';
	p = put_digits(p, second / 60 % 60, 2);
	*p++ = ':';
	p = put_digits(p, second % 60, 2);
	if (fraction) {
		*p++ = '.';
		p = put_digits(p, fraction, 9);
		while (p[-1] == '0')
			p--;
	}
	*p++ = 'Z';
	return (size_t)(p - out);
}
