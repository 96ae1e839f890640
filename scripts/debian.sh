# Shared by image.sh and fresh.sh: bootstrap a Debian root into an archive. Sourced, not run.

# Print the mirror that this host's own apt uses for suite $1; nothing where it knows none: mmdebstrap has a default.
find_mirror() {
	mirror=$(apt-get indextargets --format '$(ORIGIN) $(RELEASE) $(REPO_URI)' 'Created-By: Packages' 2>/dev/null |
		sed -n "s/^Debian $1 //p" | head -n 1)
	echo "$mirror"
}

# Print apt's proxies as mmdebstrap options, one a line.
find_proxies() {
	for kind in http https; do
		apt-config shell P "Acquire::$kind::Proxy" 2>/dev/null |
			sed -n "s/^P='\(.*\)'\$/--aptopt=Acquire::$kind::Proxy \"\1\"/p"
	done
}

# bootstrap SUITE ARCHIVE [MMDEBSTRAP OPTION...]: a minimal root as a tar archive, which appears
# when it is whole. On failure the last lines of mmdebstrap's log go to standard error.
bootstrap() (
	suite=$1 archive=$2
	shift 2
	partial=$archive.partial.tar
	mkdir -p "$(dirname "$archive")"
	trap 'rm -f "$partial" "$archive.log"' EXIT
	proxies=$(find_proxies)
	mirror=$(find_mirror "$suite")
	set -f
	IFS='
'
	# shellcheck disable=SC2086 - one option a line
	mmdebstrap --variant=minbase $proxies "$@" "$suite" "$partial" $mirror >"$archive.log" 2>&1 </dev/null || {
		tail -n 15 "$archive.log" >&2
		echo "mmdebstrap could not make a Debian root from ${mirror:-its default mirror}; check the network, then run it again" >&2
		exit 1
	}
	chmod 644 "$partial"
	mv "$partial" "$archive"
)
