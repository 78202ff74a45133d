"""The server's log: one file under the workspace that every process appends to, line by line."""

from __future__ import annotations

import logging
import logging.handlers
import warnings
from pathlib import Path

from rayapp.config import Settings

MAX_BYTES = 10 << 20
KEPT = 10


def log_file(settings: Settings) -> Path:
    """Where it lies."""
    return settings.workspace / "logs" / "app.log"


def rotate(settings: Settings) -> None:
    """Move a full log aside. Called once at start, before other processes have it open."""
    path = log_file(settings)
    path.parent.mkdir(parents=True, exist_ok=True)
    if path.exists() and path.stat().st_size > MAX_BYTES:
        logging.handlers.RotatingFileHandler(path, backupCount=KEPT, maxBytes=MAX_BYTES).doRollover()


def configure(settings: Settings) -> None:
    """Let this process's loggers append to the log. Appending lines is atomic, so processes need no lock."""
    path = log_file(settings)
    path.parent.mkdir(parents=True, exist_ok=True)
    handler = logging.FileHandler(path, mode="a", encoding="utf-8")
    handler.setFormatter(logging.Formatter("[%(asctime)s] [%(process)d] [%(levelname)s] (%(name)s) %(message)s"))
    root = logging.getLogger("rayapp")
    root.handlers[:] = [handler]
    root.setLevel(logging.INFO)
    for library in ("pydicom", "highdicom"):  # they quote what is odd in a header, patients' names too
        warnings.filterwarnings("ignore", module=library)
        logging.getLogger(library).setLevel(logging.ERROR)
