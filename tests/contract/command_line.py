"""The command line as a program."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

RAYAPP = Path(sys.executable).with_name("rayapp")


def rayapp(*words: object, cwd: Path) -> subprocess.CompletedProcess[str]:
    """Run the command line to its end."""
    return subprocess.run([RAYAPP, *map(str, words)], capture_output=True, text=True, timeout=120, cwd=cwd)
