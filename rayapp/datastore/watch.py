"""Watcher: a thread that notices files that other programs add to, change in, or remove from the studies folder.

The store's own writes are recognised by looking up each changed path in the index; they cause no scan.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable, Iterable
from pathlib import Path

from watchfiles import watch

from rayapp.datastore.folder_scan import LABELS, tags

IDLE_MS = 1000

log = logging.getLogger(__name__)


class Watcher:
    """Calls `scan()` when `concerns(paths)` is true for the changed paths, or when the last scan asked for another.

    With `poll` it scans every `poll` seconds instead, since on a network file system the kernel does not report changes
    made by other hosts.
    """

    def __init__(
        self,
        studies: Path,
        *,
        concerns: Callable[[Iterable[Path]], bool],
        scan: Callable[[], bool],
        poll: float | None,
    ) -> None:
        self._studies = studies
        self._concerns = concerns
        self._scan = scan
        self._poll = poll
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, name="datastore-watch", daemon=True)
        self._thread.start()

    def close(self) -> None:
        """Stop the thread."""
        self._stop.set()
        self._thread.join()

    def _run(self) -> None:
        while not self._stop.is_set():
            try:
                if self._poll is None:
                    self._watch()
                elif not self._stop.wait(self._poll):
                    self._scan()
            except Exception:
                log.exception("watching the studies folder failed; retrying")
                self._stop.wait(IDLE_MS / 1000)

    def _watch(self) -> None:
        """Watch until a tag's folder is added or removed."""
        labels = self._studies / LABELS
        watched = tags(labels)
        folders = (self._studies, labels, *(labels / tag for tag in watched))
        due = True  # changes made before the watch began
        for changes in watch(
            *folders,
            watch_filter=None,
            recursive=False,
            stop_event=self._stop,
            rust_timeout=IDLE_MS,
            yield_on_timeout=True,
            debounce=IDLE_MS,
        ):
            if due or self._concerns(Path(path) for _, path in changes):
                due = self._scan()
            if changes and tags(labels) != watched:
                return
