#!/bin/sh
# From a checkout to running containers: prepare it, make a Debian image, start the daemon, run
# real containers, show what happened. Run it again as often as you like; it takes seconds then.
#   COVE_RUN_DIR, COVE_DATA_ROOT, COVE_HOST   another daemon than the default one
#   COVE_RUN_STOP=1                           stop the daemon at the end and remove what it left in the kernel
set -eu
cd "$(dirname "$0")/.."
. scripts/common.sh
need_root run

sh scripts/setup.sh run
"$cove" version >/dev/null || exit 1 # starts the daemon where none runs
sh scripts/image.sh

fail() {
	echo "run: $*" >&2
	exit 1
}

# Show a command as a person would type it, then run it.
show() {
	printf '\n$ cove'
	for word in "$@"; do
		case $word in
		*[!A-Za-z0-9_./:=-]*) printf " '%s'" "$word" ;;
		*) printf ' %s' "$word" ;;
		esac
	done
	echo
	"$cove" "$@"
}

# Nothing of an earlier run that was interrupted is in the way.
clean() {
	"$cove" rm -f -v cove-demo-web cove-demo-docker >/dev/null 2>&1 || true
	"$cove" volume rm -f cove-demo-data >/dev/null 2>&1 || true
}
clean
trap clean EXIT
trap 'exit 130' INT TERM

echo
echo "1. A container: its own processes, files, network and host name"
show run --rm debian sh -c 'echo "hello from $(. /etc/os-release; echo "$PRETTY_NAME"), process $$ on $(uname -n)"'

echo
echo "2. Limits, as the container's own cgroup says them"
show run --rm -m 64m --cpus 0.5 --pids-limit 50 debian sh -c \
	'cd /sys/fs/cgroup; grep -s . */memory.limit_in_bytes */cpu.cfs_quota_us */pids.max memory.max cpu.max pids.max; true'

echo
echo "3. A volume that outlives its container"
show run --rm -v cove-demo-data:/data debian sh -c 'echo "written by $(uname -n)" >/data/note'
show run --rm -v cove-demo-data:/data debian sh -c 'echo "$(uname -n) reads: $(cat /data/note)"'

echo
echo "4. A published port, asked from the host"
server='use IO::Socket::INET;
my $s = IO::Socket::INET->new(LocalPort => 80, Listen => 8, ReuseAddr => 1) or die $!;
while (my $c = $s->accept) {
	while (my $l = <$c>) { last if $l =~ /^\r?$/ }
	my $t = "hello over HTTP\n";
	print $c "HTTP/1.0 200 OK\r\nContent-Length: ", length $t, "\r\n\r\n$t";
}'
printf '\n$ cove run -d --name cove-demo-web -p 80 debian perl -e %s\n' "'a web server in 5 lines'"
"$cove" run -d --name cove-demo-web -p 80 debian perl -e "$server"
show port cove-demo-web
port=$("$cove" port cove-demo-web 80/tcp | sed -n '1s/.*://p')
printf '\n$ curl http://127.0.0.1:%s/\n' "$port"
.venv/bin/python - "$port" <<'PYTHON' || { "$cove" logs cove-demo-web; fail "the published port $port didn't answer"; }
import sys, time, urllib.request

deadline = time.monotonic() + 20
while True:
    try:
        print(urllib.request.urlopen(f"http://127.0.0.1:{sys.argv[1]}/", timeout=5).read().decode(), end="")
        break
    except OSError as error:
        if time.monotonic() > deadline:
            sys.exit(f"{error}")
        time.sleep(0.05)
PYTHON
show ps

if command -v docker >/dev/null 2>&1; then
	echo
	echo "5. The same daemon by Docker's own command line"
	printf '\n$ DOCKER_HOST=%s docker run --rm debian echo hello\n' "$COVE_HOST"
	DOCKER_HOST=$COVE_HOST docker run --rm --name cove-demo-docker debian echo hello
fi

clean
trap - EXIT INT TERM

if [ "${COVE_RUN_STOP:-0}" = 1 ]; then
	uninstall_daemon
	echo
	echo "run: everything worked; the daemon was stopped"
	exit 0
fi
cat <<TEXT

run: everything worked; the daemon goes on at $COVE_HOST. Try next:

  sudo $cove run --rm -it debian bash     a shell in a container; exit ends it
  sudo $cove plan debian                  the isolation, step by step, each step explained
  sudo $cove --help                       all commands
  export DOCKER_HOST=$COVE_HOST           then docker, and what is built on it, use Cove
  sudo sh scripts/uninstall.sh            stop it and remove what it left in the kernel
TEXT
