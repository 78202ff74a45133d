"""MONAI Label as the reference: scripts run by its own Python, with JSON on stdin and on stdout."""

from __future__ import annotations

import json
import os
import subprocess
from pathlib import Path
from typing import Any


def ask(script: str, request: dict[str, Any], *, python: Path, threads: int) -> dict[str, float]:
    """Run a script of this folder with MONAI Label's Python, on the CPU.

    Args:
        script: The script's file name.
        request: Sent to its stdin as JSON.
        python: The Python interpreter that MONAI Label is installed for.
        threads: Number of OpenMP threads.

    Returns:
        The JSON object in the last line of its stdout.
    """
    environment = {**os.environ, "OMP_NUM_THREADS": str(threads), "CUDA_VISIBLE_DEVICES": ""}
    command = [python, "-W", "ignore", Path(__file__).with_name(script)]
    done = subprocess.run(command, input=json.dumps(request), capture_output=True, text=True, env=environment)
    if done.returncode:
        raise SystemExit(f"{script} failed under {python}: {done.stderr[-2000:]}")
    result: dict[str, float] = json.loads(done.stdout.splitlines()[-1])
    return result
