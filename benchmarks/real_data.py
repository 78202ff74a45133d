"""Folder of real data, which are not part of the project: `../shared/data`, or RAYAPP_TEST_DATA if that is set."""

from __future__ import annotations

import os
from pathlib import Path

DATA = Path(os.environ.get("RAYAPP_TEST_DATA") or Path(__file__).parents[2] / "shared" / "data")
