"""`python -m cove.daemon`."""

import sys

from cove.daemon.serve import main

sys.exit(main())
