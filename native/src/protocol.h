/*
 * Messages to and from the daemon (SOCK_SEQPACKET, the twin of cove/runtime/protocol.py), and those
 * between the child and its supervisor before the exec. Little-endian, as is every machine Cove runs on.
 */
#ifndef COVE_PROTOCOL_H
#define COVE_PROTOCOL_H

#include <stddef.h>
#include <stdint.h>
#include <sys/types.h>
#include <sys/uio.h>

_Static_assert(__BYTE_ORDER__ == __ORDER_LITTLE_ENDIAN__, "the wire is little-endian");

#define CONTROL_FD 3 /* where the daemon puts the control connection */
#define MAX_INITIAL 32768u
#define MAX_DETACH_KEYS 16u
#define MAX_GROUPS 1024u
#define MAX_ANSWER 32768u
#define MAX_MESSAGE_FDS 80u

enum message_type {
	/* from the daemon */
	MSG_START = 1,
	MSG_RESOLVED = 2,
	MSG_UNRESOLVED = 3,
	MSG_ATTACH = 4,
	MSG_RESIZE = 5,
	MSG_CLOSE_STDIN = 6,
	MSG_QUERY = 7,
	MSG_CONTINUE = 8,
	/* to the daemon */
	MSG_RESOLVE = 16,
	MSG_STARTED = 17,
	MSG_FAILED = 18,
	MSG_REFUSED = 19,
	MSG_DONE = 20,
	MSG_DETACHED = 21,
	MSG_STATE = 22,
	MSG_EXITED = 23,
	MSG_CLONED = 24,
	MSG_PAUSED = 25,
	MSG_TERMINAL = 26,
	MSG_LISTENER = 27,
};

struct msg_head {
	uint32_t type;
	uint32_t id;
};

enum start_mode { MODE_SUPERVISE, MODE_DETACHED };

struct msg_start {
	struct msg_head head;
	uint64_t plan_size;
	uint64_t log_max_bytes;
	uint32_t log_max_files;
	uint32_t log_driver;
	uint32_t terminal;
	uint32_t has_stdin;
	uint32_t stdin_once;
	uint32_t slots;
	uint32_t attaches;
	uint32_t mode;
};

enum { ATTACH_STDIN = 1, ATTACH_STDOUT = 2, ATTACH_STDERR = 4, ATTACH_MULTIPLEX = 8 };

struct msg_attach {
	struct msg_head head;
	uint32_t flags;
	uint32_t key_count;
	uint32_t initial_size;
	uint8_t keys[MAX_DETACH_KEYS];
};

struct msg_resize {
	struct msg_head head;
	uint32_t rows;
	uint32_t cols;
};

struct msg_resolved {
	struct msg_head head;
	uint32_t uid;
	uint32_t gid;
	uint32_t group_count;
	uint32_t env_count;
	uint32_t groups[]; /* then env_count texts, each with its NUL */
};

struct msg_failed {
	struct msg_head head;
	uint32_t section;
	uint32_t index;
	int32_t error; /* a positive errno; 0 in a refusal, where the reason follows */
};

/* STARTED and CLONED. */
struct msg_started {
	struct msg_head head;
	uint32_t pid;
};

struct msg_paused {
	struct msg_head head;
	uint32_t index; /* of the step */
};

struct msg_done {
	struct msg_head head;
	int32_t error;
};

struct msg_state {
	struct msg_head head;
	uint32_t pid;
	uint32_t supervisor_pid;
	uint64_t log_dropped;
};

struct msg_exited {
	struct msg_head head;
	uint32_t exit_code;
	uint32_t oom_killed;
	uint64_t finished_ns;
	uint64_t log_dropped;
};

/* Between child and supervisor. SYNC_GO comes from the supervisor, the others go to it. SYNC_LISTENER names, as
 * `index`, the descriptor in the child that a listener is about to be. */
enum sync_type { SYNC_GO = 1, SYNC_FAILED, SYNC_TERMINAL, SYNC_EXEC, SYNC_HELD, SYNC_LISTENER };

struct sync_message {
	uint32_t type;
	uint32_t index;
	int32_t error;
};

/* Send one message whole, or -errno. Doesn't block on a socket that doesn't, and raises no SIGPIPE. */
int send_message(int socket, const void *data, size_t size, const int *fds, size_t fd_count);

/* Receive one message into `parts`; returns its size, 0 at the end, or -errno; -EMSGSIZE when it (or
 * its descriptors) didn't fit. `fd_count` says how many fit in `fds` and becomes how many came; a
 * message that isn't returned has left none open. */
ssize_t receive_message(int socket, struct iovec *parts, size_t count, int *fds, size_t *fd_count, int flags);

#endif
