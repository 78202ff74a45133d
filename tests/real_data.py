"""Real data that some tests read: where it lies, and which of it a run did without."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import pytest

from benchmarks.real_data import DATA

ABSENT = "without real data of "
PLACE = "../shared/data, or the folder that RAYAPP_TEST_DATA names"


def real(*parts: str) -> Path:
    """A file or folder of the real data, by its parts below `DATA`; the test is skipped where it is absent."""
    path = DATA.joinpath(*parts)
    if not path.exists():
        pytest.skip(f"{ABSENT}{parts[0]}")
    return path


def case(*parts: str) -> Path:
    """A file or folder of the cases, which lie beside the real data; the test is skipped where it is absent."""
    path = DATA.parent.joinpath("cases", *parts)
    if not path.exists():
        pytest.skip(f"{ABSENT}../cases")
    return path


def lacked(skipped: Iterable[Any]) -> str:
    """The folders of real data that were absent, from the reports of skipped tests; "" when none was missed."""
    reasons = (str(report.longrepr[2]) for report in skipped)
    folders = Counter(reason.partition(ABSENT)[2] for reason in reasons if ABSENT in reason)
    if not folders:
        return ""
    each = ", ".join(f"{folder} ({count} skipped)" for folder, count in sorted(folders.items()))
    return f"Real data was missing from {PLACE}: {each}"
