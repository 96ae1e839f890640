"""Jobs of the image tools, and their answers: what the daemon and a worker say to each other. No I/O."""

from __future__ import annotations

import msgspec

from cove.image.checktypes import Listing, Records, Report


class ToolMessage(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Base of these jobs and answers."""


class CheckStore(ToolMessage, tag="check-store", frozen=True, kw_only=True):
    """Compare records and disk; `deep`: read every layer again. `running`: as find_problems has it."""

    root: str
    records: Records
    listing: Listing
    running: bool = False
    deep: bool = False


class Checked(ToolMessage, tag="checked", frozen=True, kw_only=True):
    report: Report


ToolJob = CheckStore
ToolAnswer = Checked
