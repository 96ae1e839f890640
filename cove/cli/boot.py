"""What bin/cove executes: puts the checkout on the path. Kept tiny: it has no cached bytecode."""

import sys

sys.path.append(__file__.rpartition("/cove/cli/")[0])

from cove.cli.main import start

start(sys.argv[1:])
