# Shared by run.sh and uninstall.sh: which daemon they mean, and how it is stopped.
# Sourced, not run; needs the checkout as working directory.

COVE_RUN_DIR=${COVE_RUN_DIR:-/run/cove}
COVE_DATA_ROOT=${COVE_DATA_ROOT:-/var/lib/cove}
COVE_HOST=${COVE_HOST:-unix://$COVE_RUN_DIR/docker.sock}
export COVE_RUN_DIR COVE_DATA_ROOT COVE_HOST
unset DOCKER_HOST

cove=$PWD/bin/cove

need_root() {
	[ "$(id -u)" = 0 ] || {
		echo "$1: it needs root, for namespaces, mounts and cgroups; run it with sudo" >&2
		exit 1
	}
}

# Print the pid of the daemon of this run dir; nothing where none runs. The lock is what
# counts: a pid may have been reused.
find_daemon() {
	[ -f "$COVE_RUN_DIR/daemon.lock" ] || return 0
	flock -n "$COVE_RUN_DIR/daemon.lock" true || cat "$COVE_RUN_DIR/daemon.lock"
}

# Stop the daemon and wait for its end; its containers go on.
stop_daemon() {
	daemon=$(find_daemon)
	[ -n "$daemon" ] || return 0
	kill "$daemon"
	flock -w 30 "$COVE_RUN_DIR/daemon.lock" true || {
		echo "the daemon (process $daemon) did not end within 30 s" >&2
		return 1
	}
}

# Stop the daemon and remove what it has in the kernel: containers, bridge, rules, cgroups, mounts.
uninstall_daemon() {
	stop_daemon
	"$cove" daemon --uninstall
	rm -rf "$COVE_RUN_DIR"
}
