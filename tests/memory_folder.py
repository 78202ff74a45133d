"""Folders in memory, for tests that open a datastore hundreds of times: there a sync costs nothing."""

from __future__ import annotations

import os
import tempfile
from pathlib import Path

_MEMORY = Path("/dev/shm")


def memory_folder() -> Path:
    """A new folder, on a file system in memory where there is one; for the caller to remove."""
    usable = _MEMORY.is_dir() and os.access(_MEMORY, os.W_OK)
    return Path(tempfile.mkdtemp(prefix="rayapp-", dir=_MEMORY if usable else None))
