"""LeftOutEntries: entries of a studies folder that are not served, with the reasons, and whether any of them has
changed.

Each entry is logged once, without its name, which may be a patient's, and is examined again only when it changes.
"""

from __future__ import annotations

import logging
import os
import threading
import time
from collections import Counter
from collections.abc import Mapping
from pathlib import Path

from rayapp.datastore.image_names import shown

SHARE = 0.01
"""Maximum share of time spent on checking entries for changes."""

log = logging.getLogger(__name__)

_State = tuple[int, ...]


class LeftOutEntries:
    """The entries left out by the last scan of each part of a studies folder. Thread-safe."""

    def __init__(self, studies: Path) -> None:
        self._studies = studies
        self._parts: dict[str, dict[Path, tuple[str, _State]]] = {}
        self._lock = threading.Lock()
        self._next = 0.0

    def replace(self, part: str, problems: Mapping[Path, str]) -> None:
        """Set the entries left out of a part of the folder, each with its reason; new ones are logged."""
        entries = {path: (reason, _state(path)) for path, reason in problems.items()}
        with self._lock:
            old = self._parts.get(part, {})
            self._parts[part] = entries
        new = Counter(_nameless(entry[0]) for path, entry in entries.items() if old.get(path) != entry)
        for reason, count in new.items():
            log.warning("left out of the studies folder: %d (%s); rayapp images --problems names them", count, reason)

    def holds(self, path: Path) -> bool:
        """True if the entry is left out and has not changed since."""
        with self._lock:
            found = next((part[path][1] for part in self._parts.values() if path in part), None)
        return found is not None and _state(path) == found

    def reasons(self) -> dict[str, str]:
        """The reason for each entry, by its path in the studies folder, in ascending order."""
        with self._lock:
            found = {path: reason for entries in self._parts.values() for path, (reason, _) in entries.items()}
        return {self._shown(path): reason for path, reason in sorted(found.items())}

    def changed(self) -> bool:
        """True if an entry has changed since it was left out. Checks at most as often as `SHARE` allows."""
        began = time.monotonic()
        if began < self._next:
            return False
        with self._lock:
            entries = [(path, state) for part in self._parts.values() for path, (_, state) in part.items()]
        changed = any(_state(path) != state for path, state in entries)
        self._next = time.monotonic() + (time.monotonic() - began) / SHARE
        return changed

    def _shown(self, path: Path) -> str:
        return shown(str(path.relative_to(self._studies) if path.is_relative_to(self._studies) else path.name))


def _state(path: Path) -> _State:
    """A fingerprint of an entry, or of the file that it links to; it differs after any change."""
    try:
        status = os.stat(path)  # noqa: PTH116 -- often
    except OSError as error:
        return (error.errno or 0,)
    return status.st_mode, status.st_ino, status.st_size, status.st_mtime_ns, status.st_ctime_ns


def _nameless(reason: str) -> str:
    """The reason without the advice and without file names."""
    return reason.partition(":")[0].partition(" as ")[0]
