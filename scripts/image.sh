#!/bin/sh
# Make a minimal Debian image and import it as debian:latest, where the daemon has none.
# The archive is made once by mmdebstrap, from the Debian mirror that this host uses, and kept:
#   COVE_CACHE   where it is kept (default: /var/cache/cove)
set -eu
umask 022
cd "$(dirname "$0")/.."
. scripts/common.sh
. scripts/debian.sh
need_root image

cache=${COVE_CACHE:-/var/cache/cove}
archive=$cache/debian.tar

[ -z "$("$cove" images -q debian:latest)" ] || exit 0
if [ ! -s "$archive" ]; then
	suite=$(. /etc/os-release && [ "${ID:-}" = debian ] && echo "${VERSION_CODENAME:-}" || true)
	suite=${suite:-bookworm}
	echo "image: bootstrapping Debian $suite by mmdebstrap (once; kept as $archive)"
	# The host's proxies are nothing for the image.
	bootstrap "$suite" "$archive" --customize-hook='rm -f "$1/etc/apt/apt.conf.d/99mmdebstrap"'
fi
echo "image: importing $archive as debian:latest"
"$cove" import -c 'CMD ["bash"]' -c 'ENV PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin' \
	-m "minimal Debian, made by mmdebstrap" "$archive" debian:latest >/dev/null
