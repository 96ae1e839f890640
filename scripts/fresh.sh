#!/bin/sh
# Prove that a fresh machine works: run README's commands inside a minimal Debian 12 (the base
# system and git, no make, no sudo, nothing of this host) and check what they print.
#
#   COVE_FRESH_TEST=1   also run the whole test suite in there (about 20 minutes more)
#   COVE_CACHE          where the minimal root is kept between runs (default: /var/cache/cove)
#
# The root lives in a mount and a pid namespace of its own; network and cgroups are the host's.
# Passed in: apt's mirror and proxies, pip's settings, CA certificates. Order that must hold:
# uninstall (bridge, rules and cgroups are the host's) before the pid namespace ends.
set -eu
umask 022
cd "$(dirname "$0")/.."
. scripts/debian.sh

fail() {
	echo "fresh: $*" >&2
	exit 1
}

if [ "${1:-}" != --inside ]; then
	[ "$(id -u)" = 0 ] || fail "it needs root, for mounts and namespaces; run it with sudo"
	command -v mmdebstrap >/dev/null 2>&1 || sh scripts/setup.sh run
	cache=${COVE_CACHE:-/var/cache/cove}
	if [ ! -s "$cache/fresh.tar" ]; then
		echo "fresh: bootstrapping a minimal Debian 12 (once; kept as $cache/fresh.tar)"
		bootstrap bookworm "$cache/fresh.tar" --include=git,ca-certificates
	fi
	root=$(mktemp -d /var/tmp/cove-fresh.XXXXXX)
	trap 'rm -rf --one-file-system "$root"' EXIT
	trap 'exit 130' INT TERM
	tar -xpf "$cache/fresh.tar" -C "$root"
	git clone -q --bare . "$root/srv/cove.git"
	git -C "$root/srv/cove.git" update-ref refs/heads/main HEAD
	git -C "$root/srv/cove.git" symbolic-ref HEAD refs/heads/main
	unshare --mount --pid --fork --kill-child sh scripts/fresh.sh --inside "$root"
	exit
fi

# --- in the namespaces ----------------------------------------------------------------------

root=$2
mount --bind "$root" "$root" # "/" must be a mount of its own, as on any machine
mount -t proc proc "$root/proc"
mount -t sysfs sys "$root/sys"
mount --rbind /sys/fs/cgroup "$root/sys/fs/cgroup"
mount --rbind /dev "$root/dev"
mount -t tmpfs run "$root/run"
cp /etc/resolv.conf /etc/hosts "$root/etc/"

# What the host needs for package access: CA certificates, pip's settings and local wheels.
cp /etc/ssl/certs/ca-certificates.crt "$root/etc/ssl/certs/ca-certificates.crt"
[ ! -d /usr/local/share/ca-certificates ] || cp -r /usr/local/share/ca-certificates "$root/usr/local/share/"
[ ! -f /etc/pip.conf ] || cp /etc/pip.conf "$root/etc/pip.conf"
for file in "${HOME:-/root}/.config/pip/pip.conf" "${HOME:-/root}/.pip/pip.conf"; do
	[ ! -f "$file" ] || cp "$file" "$root/etc/pip.conf"
done
if [ -n "${PIP_FIND_LINKS:-}" ] && [ -d "$PIP_FIND_LINKS" ]; then
	mkdir -p "$root$PIP_FIND_LINKS"
	mount --bind "$PIP_FIND_LINKS" "$root$PIP_FIND_LINKS"
fi

# README's own lines, as they stand: the first block after the heading "Two commands".
commands=$(sed -n '/^## Two commands/,/^## [^T]/p' README.md | sed -n '/^```/,/^```/p' | sed '/^```/d')
[ -n "$commands" ] || fail "README.md has no commands below the heading Two commands"
printf '%s\n' "$commands" | grep -q '^git clone REPOSITORY ' || fail "README.md's first command isn't a git clone"

mkdir "$root/host"
pivot_root "$root" "$root/host"
cd /
umount -l /host
rmdir /host

# env -i: nothing of this shell but how packages are reached. A run dir of its own keeps the
# daemon's bridge, table and cgroups apart from those of a Cove on this host.
inside() {
	env -i PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin HOME=/root LANG=C.UTF-8 \
		COVE_RUN_DIR=/run/cove-fresh COVE_HOST=unix:///run/cove-fresh/docker.sock \
		$(env | grep -E '^(PIP_[A-Z_]*|https?_proxy|HTTPS?_PROXY|no_proxy|NO_PROXY|SSL_CERT_FILE|REQUESTS_CA_BUNDLE)=[^ ]*$') \
		sh -c "$1"
}

log=/tmp/fresh.log
clean() {
	[ ! -x /root/cove/.venv/bin/python ] || inside 'cd /root/cove && sh scripts/uninstall.sh' >/dev/null 2>&1 || true
}
trap clean EXIT

! inside 'command -v make || command -v sudo' >/dev/null || fail "make or sudo is there: the root isn't minimal"

run_readme() {
	started=$(date +%s)
	# As root, where sudo isn't installed either.
	inside "set -e; cd /root; sudo() { \"\$@\"; }; $1" >"$log" 2>&1 || {
		cat "$log" >&2
		fail "README's commands failed: $1"
	}
	for text in 'hello from Debian GNU/Linux' 'hello over HTTP' 'everything worked'; do
		grep -q "$text" "$log" || {
			cat "$log" >&2
			fail "README's commands didn't print \"$text\""
		}
	done
	echo "fresh: $2 took $(($(date +%s) - started)) s"
}

printf 'fresh: README says\n%s\n' "$(printf '%s\n' "$commands" | sed 's/^/    /')"
run_readme "$(printf '%s\n' "$commands" | sed 's|REPOSITORY|/srv/cove.git|')" "the first run"
run_readme "cd cove; sh scripts/run.sh" "the second run"
inside 'cd /root/cove && bin/cove run --rm debian true' || fail "bin/cove doesn't work after README's commands"
inside 'cd /root/cove && sh scripts/setup.sh test && sh scripts/test.sh unit' >"$log" 2>&1 || {
	tail -n 60 "$log" >&2
	fail "setup.sh test or the unit tests failed"
}
echo "fresh: $(tail -n 1 "$log")"
if [ "${COVE_FRESH_TEST:-0}" = 1 ]; then
	inside 'cd /root/cove && sh scripts/test.sh' || fail "the test suite failed"
fi
inside 'cd /root/cove && sh scripts/uninstall.sh' || fail "uninstall failed"
trap - EXIT
echo "fresh: a minimal Debian 12 runs containers by README's commands"
