"""AgeSampler: draws unlabelled images at random, weighted by the time since each was last handed out.

The weights of 100,000 images are kept as arrays; the index stays authoritative. A drawn image is looked up in the
index; if it was labelled, removed or handed out since, the arrays are corrected and the draw is repeated. So a writer
never has to update the arrays, and since each of these events only lowers a weight, the draw has the same distribution
as one from the index itself. Thread-safe.
"""

from __future__ import annotations

import sqlite3
import threading
import time
from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from rayapp.datastore.index import Index, reopened
from rayapp.protocol import FINAL

Ints = npt.NDArray[np.int64]


def largest(keys: npt.NDArray[np.float64], limit: int) -> npt.NDArray[np.intp]:
    """Indices of the `limit` largest keys (or of all, if fewer), in descending order of the key."""
    top = np.argpartition(-keys, limit - 1)[:limit] if limit < len(keys) else np.arange(len(keys))
    return top[np.argsort(-keys[top], kind="stable")]


class AgeSampler:
    """Samples image ids without replacement, weighted by the seconds since each was last handed out.

    An image that was never handed out weighs as much as the oldest image of the store. Every weight is at least 1.
    """

    def __init__(self, index: Index) -> None:
        self._index = index
        self._lock = threading.Lock()
        self._random = np.random.default_rng()
        self._reopened = 0
        self._ids: list[str] = []
        self._seq, self._served, self._added = (np.empty(0, np.int64) for _ in range(3))

    def sample(self, tag: str, limit: int) -> list[str]:
        """At most `limit` ids of images without a label under `tag`; empty when every image has one."""
        with self._index.reader() as db:
            if tag != FINAL:
                rows = db.execute(
                    "SELECT id, served, added FROM image WHERE NOT EXISTS"
                    " (SELECT 1 FROM label WHERE image_id = image.id AND tag = ?)",
                    (tag,),
                ).fetchall()
                ids, served, added = zip(*rows, strict=True) if rows else ((), (), ())
                return [ids[i] for i in self._draw(np.array(served, np.int64), np.array(added, np.int64), limit)]
            with self._lock:
                self._catch_up(db)
                picks = self._draw(self._served, self._added, limit)
                while not self._confirm(db, picks):
                    picks = self._draw(self._served, self._added, limit)
                return [self._ids[i] for i in picks]

    def _catch_up(self, db: sqlite3.Connection) -> None:
        last = int(self._seq.max()) if len(self._seq) else 0
        # The unary plus keeps SQLite from using the index on `final`, which is slower here.
        columns = "SELECT id, seq, served, added FROM image WHERE +final = 0"
        self._append(db.execute(f"{columns} AND seq > ?", (last,)).fetchall())
        again, self._reopened = reopened(db, self._reopened)
        for image_id in dict.fromkeys(again):
            for row in db.execute(f"{columns} AND id = ?", (image_id,)).fetchall():
                known = self._seq == row[1]
                self._served[known] = row[2]
                self._append([] if known.any() else [row])

    def _append(self, rows: Sequence[tuple[str, int, int, int]]) -> None:
        if rows:
            ids, *columns = zip(*rows, strict=True)
            self._ids.extend(ids)
            self._seq, self._served, self._added = (
                np.concatenate([old, np.array(new, np.int64)])
                for old, new in zip((self._seq, self._served, self._added), columns, strict=True)
            )

    def _draw(self, served: Ints, added: Ints, limit: int) -> list[int]:
        """Indices of at most `limit` images.

        Args:
            served: seconds since the epoch at which each image was last handed out; 0 for never, -1 to exclude the
                image.
            added: seconds since the epoch at which each image was added.
            limit: how many to draw.
        """
        alive = np.flatnonzero(served >= 0)
        if not len(alive):
            return []
        since = np.where(served[alive] > 0, served[alive], added[alive].min())
        weights = np.maximum(int(time.time()) - since, 0) + 1
        # The items with the largest log(u) / w are a weighted sample without replacement (Efraimidis, Spirakis 2006).
        keys = np.log(1.0 - self._random.random(len(alive))) / weights
        return [int(alive[i]) for i in largest(keys, limit)]

    def _confirm(self, db: sqlite3.Connection, picks: Sequence[int]) -> bool:
        """True if the arrays agreed with the index about all picks; corrects the arrays where they did not."""
        agreed = True
        for pick in picks:
            row = db.execute("SELECT final, served FROM image WHERE seq = ?", (int(self._seq[pick]),)).fetchone()
            served = -1 if row is None or row[0] else row[1]
            if served != self._served[pick]:
                self._served[pick] = served
                agreed = False
        return agreed
