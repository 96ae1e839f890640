#!/bin/sh
# Prepare this checkout: Debian packages, the virtual environment, cove-init.
#
#   setup.sh run     what running Cove needs
#   setup.sh test    that, and what the tests need
#   setup.sh bench   that, and the peers that the benchmark measures
#
# Installs only what is missing; a prepared checkout takes under two seconds. Order that
# must hold: packages (python3-venv, a compiler), then .venv, then the native build, then the tests' clients.
set -eu
umask 022
cd "$(dirname "$0")/.."

level=${1:-run}
case $level in
run | test | bench) ;;
*)
	echo "setup: $level: expected run, test or bench" >&2
	exit 2
	;;
esac

say() { echo "setup: $*"; }
fail() {
	echo "setup: $*" >&2
	exit 1
}

# Debian 13 renamed libarchive13 (64-bit time_t) and brings a newer clang.
archive=libarchive13
clang_runtime=libclang-rt-14-dev
debian=$(sed -n 's/^VERSION_ID="\{0,1\}\([0-9]*\).*/\1/p' /etc/os-release 2>/dev/null || true)
if [ "${debian:-12}" -ge 13 ]; then
	archive=libarchive13t64
	clang_runtime=libclang-rt-19-dev
fi
run_packages="python3 python3-venv gcc libc6-dev musl-tools meson ninja-build libnftables1
	libseccomp2 $archive nftables iproute2 procps mmdebstrap busybox-static ca-certificates"
test_packages="runc clang $clang_runtime zstd xz-utils tmux git iptables qemu-system-x86 erofs-utils kmod e2fsprogs xfsprogs btrfs-progs rsyslog
	docker.io docker-compose containerd docker-registry skopeo umoci rpm openssh-client db-util"

wanted=$run_packages
[ "$level" = run ] || wanted="$wanted $test_packages"

find_missing() {
	# shellcheck disable=SC2086
	installed=$(dpkg-query -W -f '${db:Status-Abbrev}${Package}\n' $wanted 2>/dev/null |
		sed -n 's/^ii *//p' | tr '\n' ' ')
	for package in $wanted; do
		case " $installed " in
		*" $package "*) ;;
		*) printf '%s ' "$package" ;;
		esac
	done
}

install_packages() {
	[ "$(id -u)" = 0 ] || fail "these packages are missing: $1; run it as root: sudo sh scripts/setup.sh $level"
	command -v apt-get >/dev/null 2>&1 ||
		fail "there is no apt-get here; Cove's scripts install packages on Debian 12 or newer: $1"
	say "installing $1"
	export DEBIAN_FRONTEND=noninteractive
	apt_log=$(mktemp)
	# docker.io starts a daemon where it is installed; a policy that says no keeps it quiet.
	policy=/usr/sbin/policy-rc.d
	own_policy=no
	if [ ! -e $policy ]; then
		printf '#!/bin/sh\nexit 101\n' >$policy
		chmod 755 $policy
		own_policy=yes
	fi
	status=0
	{
		apt-get update -q && # shellcheck disable=SC2086
			apt-get install -q -y --no-install-recommends $1
	} >"$apt_log" 2>&1 </dev/null || status=$?
	[ $own_policy = no ] || rm -f $policy
	if [ $status != 0 ]; then
		tail -n 15 "$apt_log" >&2
		rm -f "$apt_log"
		fail "apt-get could not install $1; check the network and /etc/apt/sources.list, then run it again"
	fi
	rm -f "$apt_log"
}

missing=$(find_missing)
[ -z "$missing" ] || install_packages "${missing% }"

# Two setups of one checkout would write into each other's .venv and build directory.
mkdir -p build
exec 9>build/setup.lock
flock 9 || fail "could not lock build/setup.lock"

# --- .venv ----------------------------------------------------------------------------------

locked=requirements/base.txt
kind=base
[ "$level" = run ] || {
	locked=requirements/dev.txt
	kind=dev
}
stamp=.venv/cove-stamp
want_base="base $(sha256sum <requirements/base.txt | cut -c1-64)"
want_dev="dev $(sha256sum <requirements/dev.txt | cut -c1-64) $want_base"
have=$(cat $stamp 2>/dev/null || true)
want=$want_base
[ $kind = base ] || want=$want_dev

case $have in
"$want") ;;
"$want_dev") ;; # dev.txt holds all of base.txt
*)
	# The system's Python first: one below somebody's home couldn't be entered by other users.
	python=/usr/bin/python3
	$python -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null || python=python3
	$python -c 'import sys; sys.exit(sys.version_info < (3, 11))' ||
		fail "python3 is $($python -V 2>&1); Cove needs Python 3.11 or newer (Debian 12 has it)"
	say "making .venv from $locked"
	[ -x .venv/bin/python ] && .venv/bin/python -c '' 2>/dev/null || {
		rm -rf .venv
		$python -m venv .venv || fail "python3 -m venv .venv failed; remove .venv and run it again"
	}
	rm -f $stamp
	.venv/bin/python -m pip install -q --disable-pip-version-check --no-input --require-hashes -r $locked </dev/null ||
		fail "pip could not install $locked; check the network (or pip's index in PIP_INDEX_URL or pip.conf), then run it again"
	.venv/bin/python -m compileall -q cove || fail "a Python module of this checkout doesn't compile"
	echo "$want" >$stamp
	;;
esac

# --- cove-init ------------------------------------------------------------------------------

build=build/native
if [ ! -f $build/build.ninja ]; then
	rm -rf $build
	compiler=gcc
	! command -v musl-gcc >/dev/null 2>&1 || compiler=musl-gcc
	CC=$compiler meson setup $build native >build/meson.log 2>&1 || {
		tail -n 20 build/meson.log >&2
		fail "meson could not prepare native/ with $compiler; the whole log is in build/meson.log"
	}
fi
ninja -C $build >build/ninja.log 2>&1 || {
	cat build/ninja.log >&2
	fail "building native/ failed; the messages are above"
}
[ "$(tail -n 1 build/ninja.log)" = "ninja: no work to do." ] || say "built $build/cove-init"

# --- clients --------------------------------------------------------------------------------

# What can't be built here is told, and its tests are skipped.
[ "$level" = run ] || sh scripts/clients.sh
