"""MONAI Label in the same run: scripts that its own Python runs, asked on stdin and answering on stdout in JSON."""

from __future__ import annotations

import json
import os
import subprocess
from pathlib import Path
from typing import Any


def ask(script: str, asked: dict[str, Any], *, python: Path, threads: int) -> dict[str, float]:
    """What a script of this folder, run by the Python that MONAI Label is installed for, finds out."""
    environment = {**os.environ, "OMP_NUM_THREADS": str(threads), "CUDA_VISIBLE_DEVICES": ""}
    command = [python, "-W", "ignore", Path(__file__).with_name(script)]
    told = subprocess.run(command, input=json.dumps(asked), capture_output=True, text=True, env=environment)
    if told.returncode:
        raise SystemExit(f"the peer failed: {told.stderr[-2000:]}")
    found: dict[str, float] = json.loads(told.stdout.splitlines()[-1])
    return found
