"""The folder of real data, which is no part of the project: `../shared/data`, or what RAYAPP_TEST_DATA names."""

from __future__ import annotations

import os
from pathlib import Path

DATA = Path(os.environ.get("RAYAPP_TEST_DATA") or Path(__file__).parents[2] / "shared" / "data")
