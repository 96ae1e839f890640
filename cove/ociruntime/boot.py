"""What bin/cove-runtime executes: puts the checkout on the path. Kept tiny: it has no cached bytecode."""

import sys

root = __file__.rpartition("/cove/ociruntime/")[0]
python = f"python{sys.version_info[0]}.{sys.version_info[1]}"
sys.path += [root, f"{root}/.venv/lib/{python}/site-packages"]

from cove.ociruntime.main import start  # noqa: E402

start(sys.argv[1:])
