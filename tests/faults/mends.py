"""The mends of faults that were found, each with what its source was without it, and the machines that find the fault.

They are in `mends.txt`: the name of a fault after `#`, the machines after `found by:`, and the modules after `in:`,
each with the lines of the mend (`-`) and those that bring the fault back (`+`).
"""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

MACHINES: dict[str, tuple[str, ...]] = {
    "store": ("tests/datastore/test_store_machine.py",),
    "archive": ("tests/datastore/test_archive_machine.py",),
    "disk": ("tests/datastore/test_failing_disk.py", "tests/models/test_failing_disk.py"),
    "power": ("tests/files/test_power_loss.py", "tests/datastore/test_power_loss.py", "tests/jobs/test_power_loss.py"),
    "jobs": ("tests/jobs/test_queue_machine.py",),
    "prompts": ("tests/serving/test_interaction.py",),
    "leases": ("tests/datastore/test_lease_machine.py",),
}
"""Files of each machine."""


@dataclass
class Change:
    """A place in the source that is part of a mend.

    Attributes:
        module: name of the module.
        mended: lines that occur once in its source, without the last line's end.
        before: the lines in their stead that bring the fault back.
    """

    module: str
    mended: list[str] = field(default_factory=list)
    before: list[str] = field(default_factory=list)

    def undone(self, source: str) -> str:
        """The module's source without the mend. Raises LookupError if it does not have the mend once."""
        mended = "\n".join(self.mended)
        if source.count(mended) != 1:
            raise LookupError(f"{self.module} does not have this text once: {mended!r}")
        return source.replace(mended, "\n".join(self.before))


@dataclass
class Mend:
    """A mend: the machines that must fail without it, and what undoes it."""

    found_by: list[str] = field(default_factory=list)
    changes: list[Change] = field(default_factory=list)


def read(text: str) -> dict[str, Mend]:
    """The mends of such a file, by the name of the fault."""
    mends: dict[str, Mend] = {}
    mend = Mend()
    for line in text.splitlines():
        match line[:2]:
            case "# ":
                mend = mends[line[2:]] = Mend()
            case "fo":
                mend.found_by = line.partition(":")[2].split()
            case "in":
                mend.changes.append(Change(line.partition(":")[2].strip()))
            case "- " | "-":
                mend.changes[-1].mended.append(line[2:])
            case "+ " | "+":
                mend.changes[-1].before.append(line[2:])
    return mends


MENDS = read(Path(__file__).with_name("mends.txt").read_text())
"""The mends by the name of the fault."""
