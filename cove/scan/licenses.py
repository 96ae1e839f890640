"""Whether a declared licence is an expression of SPDX, by the ids that packages mostly have. Pure.

The whole list (spdx.org/licenses) has some 700; what isn't here is shown as text and never guessed at.
"""

from __future__ import annotations

import re

KNOWN = frozenset(
    """0BSD AFL-2.1 AGPL-3.0-only AGPL-3.0-or-later Apache-1.1 Apache-2.0 Artistic-1.0-Perl Artistic-2.0 BSD-1-Clause
    BSD-2-Clause BSD-2-Clause-Patent BSD-3-Clause BSD-4-Clause BSL-1.0 BlueOak-1.0.0 CC-BY-3.0 CC-BY-4.0 CC-BY-SA-4.0
    CC0-1.0 CDDL-1.0 CDDL-1.1 EPL-1.0 EPL-2.0 FTL GFDL-1.3-or-later GPL-1.0-only GPL-1.0-or-later GPL-2.0-only
    GPL-2.0-or-later GPL-3.0-only GPL-3.0-or-later HPND ICU IJG ISC LGPL-2.0-only LGPL-2.0-or-later LGPL-2.1-only
    LGPL-2.1-or-later LGPL-3.0-only LGPL-3.0-or-later Libpng MIT MIT-0 MPL-1.1 MPL-2.0 MPL-2.0-no-copyleft-exception
    MS-PL NCSA OFL-1.1 OLDAP-2.8 OpenSSL PHP-3.01 PSF-2.0 PostgreSQL Python-2.0 Ruby SSPL-1.0 TCL UPL-1.0
    Unicode-DFS-2016 Unlicense Vim W3C WTFPL X11 ZPL-2.1 Zlib bzip2-1.0.6 curl zlib-acknowledgement""".split()
)
_EXCEPTIONS = frozenset("Autoconf-exception-3.0 Bison-exception-2.2 Classpath-exception-2.0 GCC-exception-3.1 "
                        "LLVM-exception Linux-syscall-note OpenSSL-exception".split())  # fmt: skip
_TOKEN = re.compile(r"\(|\)|[A-Za-z0-9.+-]+")


def spdx_expression(text: str) -> str:
    """The expression that a text is, or ""."""
    words = _TOKEN.findall(text)
    if not words or "".join(words) != "".join(text.split()) or len(words) > 64:
        return ""
    depth, wants_operand = 0, True
    for number, word in enumerate(words):
        if word == "(":
            if not wants_operand:
                return ""
            depth += 1
        elif word == ")":
            depth -= 1
            if wants_operand or depth < 0:
                return ""
        elif word in ("AND", "OR", "WITH"):
            if wants_operand:
                return ""
            wants_operand = True
        else:
            after_with = number > 0 and words[number - 1] == "WITH"
            if not wants_operand or word not in (_EXCEPTIONS if after_with else KNOWN):
                return ""
            wants_operand = False
    return " ".join(words).replace("( ", "(").replace(" )", ")") if not depth and not wants_operand else ""
