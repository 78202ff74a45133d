"""The server's log: one file in the workspace to which every process appends lines."""

from __future__ import annotations

import logging
import logging.handlers
import warnings
from pathlib import Path

from rayapp.config import Settings

MAX_BYTES = 10 << 20
KEPT = 10


def log_file(settings: Settings) -> Path:
    """Path of the log."""
    return settings.workspace / "logs" / "app.log"


def rotate(settings: Settings) -> None:
    """Rotate a full log. Call once at start-up, before other processes open it."""
    path = log_file(settings)
    path.parent.mkdir(parents=True, exist_ok=True)
    if path.exists() and path.stat().st_size > MAX_BYTES:
        logging.handlers.RotatingFileHandler(path, backupCount=KEPT, maxBytes=MAX_BYTES).doRollover()


def configure(settings: Settings) -> None:
    """Let this process's loggers append to the log. Appending a line is atomic, so processes need no lock."""
    path = log_file(settings)
    path.parent.mkdir(parents=True, exist_ok=True)
    handler = logging.FileHandler(path, mode="a", encoding="utf-8")
    handler.setFormatter(logging.Formatter("[%(asctime)s] [%(process)d] [%(levelname)s] (%(name)s) %(message)s"))
    root = logging.getLogger("rayapp")
    root.handlers[:] = [handler]
    root.setLevel(logging.INFO)
    for library in ("pydicom", "highdicom"):  # their messages quote unusual header values, including patient names
        warnings.filterwarnings("ignore", module=library)
        logging.getLogger(library).setLevel(logging.ERROR)
