"""Write the tables of docs/kube.md from the code's: `python -P scripts/kube_fields.py`."""

from __future__ import annotations

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from cove.kube.fields import render_tables

BEGIN, END = "<!-- fields: scripts/kube_fields.py -->\n\n", "<!-- end of fields -->\n"

if __name__ == "__main__":
    page = Path(__file__).resolve().parent.parent / "docs/kube.md"
    before, _, rest = page.read_text().partition(BEGIN)
    page.write_text(before + BEGIN + render_tables() + END + rest.partition(END)[2])
