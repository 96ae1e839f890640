#!/bin/sh
# Stop the daemon and remove what Cove put into the host's kernel: containers, bridge, nftables
# table, cgroups, mounts. Images and volumes stay in the data root unless COVE_PURGE=1.
# COVE_RUN_DIR and COVE_DATA_ROOT choose another daemon than the default one.
set -eu
cd "$(dirname "$0")/.."
. scripts/common.sh
need_root uninstall

# Units would start the daemon again at the next connection.
if [ "$COVE_RUN_DIR" = /run/cove ] && [ -d /run/systemd/system ]; then
	systemctl disable --now cove.socket cove.service 2>/dev/null || true
fi
uninstall_daemon
if [ "${COVE_PURGE:-0}" = 1 ]; then
	rm -rf "$COVE_DATA_ROOT"
	echo "uninstall: removed $COVE_DATA_ROOT"
else
	echo "uninstall: images and volumes stay in $COVE_DATA_ROOT; COVE_PURGE=1 removes them too"
fi
echo "uninstall: done"
