"""`python -m cove.registry serve|gc|check …`: what `cove registry` becomes."""

from __future__ import annotations

import logging
import sys
from collections.abc import Sequence

from cove.model.errors import CoveError
from cove.registry.options import parse_options


def main(arguments: Sequence[str]) -> int:
    """Run one command; its exit code."""
    logging.basicConfig(
        stream=sys.stderr, level=logging.INFO, format="%(asctime)s %(levelname)s %(name)s: %(message)s"
    )
    try:
        options = parse_options(arguments)
        if options.command == "serve":
            if options.quiet:
                logging.getLogger().setLevel(logging.WARNING)
            from cove.registry.serve import serve

            return serve(options)
        from cove.registry.upkeep import run_check, run_gc

        return (run_gc if options.command == "gc" else run_check)(options)
    except CoveError as error:
        print(f"cove registry: {error}", file=sys.stderr)
        return 1
    except OSError as error:
        where = f"{error.filename}: " if error.filename else ""
        print(f"cove registry: {where}{error.strerror or error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        return 130


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
