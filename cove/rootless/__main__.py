"""`python -m cove.rootless`: `cove daemon` for whoever isn't root."""

import sys

from cove.rootless.bootstrap import main

sys.exit(main(sys.argv[1:]))
