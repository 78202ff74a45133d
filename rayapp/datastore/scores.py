"""ScoreTable: draws unlabelled images by their scores, from arrays in memory.

The arrays hold the newest score of each name and image; the index stays authoritative. A drawn image is looked up in
the index; if it was labelled or removed since, the draw is repeated without it (as in `rayapp.datastore.age_sampler`),
so saving a label never has to update the arrays. New scores are read from the index at a cost in proportion to their
number: `catch_up`, called on opening and after scores are recorded, keeps that off the path of a draw. Thread-safe.
"""

from __future__ import annotations

import sqlite3
import threading
from collections.abc import Callable, Iterable

import numpy as np
import numpy.typing as npt

from rayapp.datastore.age_sampler import largest
from rayapp.datastore.index import Index, reopened
from rayapp.datastore.interfaces import Ranked
from rayapp.protocol import FINAL

_INITIAL_CAPACITY = 1024
"""Initial capacity of the arrays, in images; they grow by doubling."""


class ScoreTable:
    """Scores of images by name; NaN for an image without a score."""

    def __init__(self, index: Index) -> None:
        self._index = index
        self._lock = threading.Lock()
        self._random = np.random.default_rng()
        self._newest = self._reopened = 0
        self._ids: list[str] = []
        self._rows: dict[str, int] = {}
        self._unlabeled = np.zeros(_INITIAL_CAPACITY, np.bool_)
        """False for images known to have a final label or to have been removed."""
        self._values: dict[str, npt.NDArray[np.float64]] = {}

    def catch_up(self) -> None:
        """Read the scores that were recorded since the last call."""
        with self._index.reader() as db, self._lock:
            self._read(db)

    def draw(self, name: str, tag: str, *, power: float | None, limit: int, excluded: Callable[[], set[str]]) -> Ranked:
        """See `Datastore.ranked`.

        `excluded` returns the ids that must not be drawn; it is called as late as possible, so that it sees the newest
        leases.
        """
        with self._index.reader() as db, self._lock:
            self._read(db)
            leased = excluded()
            if name not in self._values:
                return Ranked(ids=[], known=0.0)
            values = self._values[name][: len(self._ids)]
            drawable = self._unlabeled[: len(values)] if tag == FINAL else self._without(db, tag)
            while True:
                picks = self._pick(np.where(drawable, values, np.nan), power, limit + len(leased))
                gone = [row for row in picks if not _lacks(db, self._ids[row], tag)]
                if not gone:
                    break
                drawable[gone] = False
            scored = int(np.count_nonzero(drawable & ~np.isnan(values)))
            (images,) = db.execute("SELECT n FROM count WHERE kind = 'image'").fetchone()
            labelled = db.execute("SELECT n FROM count WHERE kind = 'tag' AND name = ?", (tag,)).fetchone()
        unlabeled = images - (labelled[0] if labelled else 0)
        ids = [self._ids[row] for row in picks if self._ids[row] not in leased][:limit]
        return Ranked(ids=ids, known=min(1.0, scored / unlabeled) if unlabeled else 0.0)

    def _read(self, db: sqlite3.Connection) -> None:
        since, touched = self._newest, set()
        for image_id, name, value, seq in db.execute(
            "SELECT image_id, name, value, seq FROM score WHERE seq > ? ORDER BY seq", (since,)
        ):
            row = self._row(image_id)
            if name not in self._values:
                self._values[name] = np.full(len(self._unlabeled), np.nan)
            self._values[name][row] = value
            self._newest = seq
            touched.add(image_id)
        again, self._reopened = reopened(db, self._reopened)
        if since:
            self._read_again(db, [image_id for image_id in again if image_id in self._rows])
            touched.update(image_id for image_id in again if image_id in self._rows)
            for image_id in touched:
                self._unlabeled[self._rows[image_id]] = _lacks(db, image_id, FINAL)
        elif touched:  # the first read: one query for all images is faster than one for each
            unlabeled = {image_id for (image_id,) in db.execute("SELECT id FROM image WHERE final = 0")}
            self._unlabeled[: len(self._ids)] = [image_id in unlabeled for image_id in self._ids]

    def _read_again(self, db: sqlite3.Connection, ids: Iterable[str]) -> None:
        """Read all scores of images again, since some may have been deleted."""
        for image_id in ids:
            scores = dict(db.execute("SELECT name, value FROM score WHERE image_id = ?", (image_id,)))
            for name, values in self._values.items():
                values[self._rows[image_id]] = scores.get(name, np.nan)

    def _row(self, image_id: str) -> int:
        row = self._rows.get(image_id)
        if row is None:
            row = self._rows[image_id] = len(self._ids)
            self._ids.append(image_id)
            if row == len(self._unlabeled):
                self._unlabeled = np.concatenate([self._unlabeled, np.zeros_like(self._unlabeled)])
                for name, values in self._values.items():
                    self._values[name] = np.concatenate([values, np.full_like(values, np.nan)])
        return row

    def _without(self, db: sqlite3.Connection, tag: str) -> npt.NDArray[np.bool_]:
        """Mask of the images without a label under the tag; some may have been removed from the store."""
        without = np.ones(len(self._ids), np.bool_)
        labelled = db.execute("SELECT image_id FROM label WHERE tag = ?", (tag,))
        without[[self._rows[image_id] for (image_id,) in labelled if image_id in self._rows]] = False
        return without

    def _pick(self, values: npt.NDArray[np.float64], power: float | None, limit: int) -> list[int]:
        """Positions of at most `limit` images: the highest scores, or a sample with probability in proportion to score
        ** power.
        """
        drawable = np.flatnonzero(~np.isnan(values) if power is None else values > 0)
        keys = values[drawable]
        if power is not None:  # Gumbel top-k: the largest keys are a sample by score ** power (Kirsch et al. 2023)
            keys = power * np.log(keys) + self._random.gumbel(size=len(keys))
        return [int(row) for row in drawable[largest(keys, limit)]]


def _lacks(db: sqlite3.Connection, image_id: str, tag: str) -> bool:
    """True if the image exists and has no label under the tag."""
    row = db.execute(
        "SELECT NOT EXISTS (SELECT 1 FROM label WHERE image_id = image.id AND tag = ?) FROM image WHERE id = ?",
        (tag, image_id),
    ).fetchone()
    return row is not None and bool(row[0])
