"""The server's log: one file in the workspace to which every process appends lines."""

from __future__ import annotations

import json
import logging
import logging.handlers
import warnings
from datetime import UTC, datetime
from pathlib import Path

from rayapp.config import Settings
from rayapp.runtime.request_id import REQUEST

TEXT = "[%(asctime)s] [%(process)d] [%(levelname)s] (%(name)s) %(message)s"
MAX_BYTES = 10 << 20
KEPT = 10


class JsonLines(logging.Formatter):
    """Each record as one line of JSON, with the id of the request that it belongs to."""

    def format(self, record: logging.LogRecord) -> str:
        """See logging.Formatter."""
        fields = {
            "time": datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds"),
            "level": record.levelname,
            "logger": record.name,
            "process": record.process,
            "request": REQUEST.get() or None,
            "message": record.getMessage(),
            "error": self.formatException(record.exc_info) if record.exc_info else None,
        }
        return json.dumps({name: value for name, value in fields.items() if value is not None}, ensure_ascii=False)


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
    handler.setFormatter(JsonLines() if settings.log_format == "json" else logging.Formatter(TEXT))
    root = logging.getLogger("rayapp")
    root.handlers[:] = [handler]
    root.setLevel(logging.INFO)
    for library in ("pydicom", "highdicom"):  # their messages quote unusual header values, including patient names
        warnings.filterwarnings("ignore", module=library)
        logging.getLogger(library).setLevel(logging.ERROR)
