"""Scores: the unlabelled images by what scoring found, so that the next one is drawn at once.

They are kept by name, the newest of each image, as arrays that the index corrects, as `rayapp.datastore.ages` does: a
drawn image is looked up, and if it was labelled or removed meanwhile, the draw is repeated without it. So no writer has
to tell. Any number of threads may call at once.
"""

from __future__ import annotations

import sqlite3
import threading
from collections.abc import Sequence

import numpy as np

from rayapp.datastore.index import Index
from rayapp.datastore.protocol import Ranked
from rayapp.protocol import FINAL

BARE = "NOT EXISTS (SELECT 1 FROM label WHERE image_id = image.id AND tag = :tag)"
"""Images without a label under a tag."""


class Scores:
    """The scores of unlabelled images by name."""

    def __init__(self, index: Index) -> None:
        self._index = index
        self._lock = threading.Lock()
        self._random = np.random.default_rng()
        self._reopened = -1
        self._columns: dict[str, _Column] = {}

    def draw(self, name: str, tag: str, *, power: float | None, limit: int, taken: set[str]) -> Ranked:
        """See `Datastore.ranked`; `taken` are images that must not be drawn."""
        with self._index.reader() as db:
            if tag != FINAL:
                rows = db.execute(
                    "SELECT image.id, score.seq, value FROM score JOIN image ON image.id = image_id"
                    f" WHERE name = :name AND {BARE}",
                    {"name": name, "tag": tag},
                )
                column = _Column()
                column.extend(rows.fetchall())
                picks = column.draw(self._random, power, limit + len(taken))
                (open_images,) = db.execute(f"SELECT count(*) FROM image WHERE {BARE}", {"tag": tag}).fetchone()
                return _ranked(column, picks, open_images, limit, taken)
            with self._lock:
                column = self._caught_up(db, name)
                picks = column.draw(self._random, power, limit + len(taken))
                while not column.confirm(db, picks):
                    picks = column.draw(self._random, power, limit + len(taken))
                (open_images,) = db.execute(
                    "SELECT (SELECT n FROM count WHERE kind = 'image')"
                    " - coalesce((SELECT n FROM count WHERE kind = 'tag' AND name = 'final'), 0)"
                ).fetchone()
                return _ranked(column, picks, open_images, limit, taken)

    def _caught_up(self, db: sqlite3.Connection, name: str) -> _Column:
        (reopened,) = db.execute("SELECT n FROM count WHERE kind = 'reopened'").fetchone()
        if reopened != self._reopened:
            self._columns.clear()
            self._reopened = reopened
        column = self._columns.setdefault(name, _Column())
        rows = db.execute(
            "SELECT image.id, score.seq, value FROM score CROSS JOIN image ON image.id = image_id"
            " WHERE name = ? AND score.seq > ? AND final = 0 ORDER BY score.seq",
            (name, column.last),
        )
        column.extend(rows.fetchall())
        return column


class _Column:
    """One score of many images; a value of NaN is that of an image that must not be drawn."""

    def __init__(self) -> None:
        self.last = 0
        self._ids: list[str] = []
        self._places: dict[str, int] = {}
        self._seq = np.empty(0, np.int64)
        self._value = np.empty(0, np.float64)

    def extend(self, rows: Sequence[tuple[str, int, float]]) -> None:
        """Add scores that are newer than all here; an image's older one is forgotten."""
        if not rows:
            return
        ids, seq, values = zip(*rows, strict=True)
        old = [self._places[image_id] for image_id in ids if image_id in self._places]
        self._value[old] = np.nan
        self._places.update({image_id: len(self._ids) + n for n, image_id in enumerate(ids)})
        self._ids.extend(ids)
        self._seq = np.concatenate([self._seq, np.array(seq, np.int64)])
        self._value = np.concatenate([self._value, np.array(values, np.float64)])
        self.last = int(self._seq[-1]) if len(seq) else self.last

    @property
    def count(self) -> int:
        """Images that may be drawn."""
        return int(np.count_nonzero(~np.isnan(self._value)))

    def draw(self, random: np.random.Generator, power: float | None, limit: int) -> list[int]:
        """Places of at most `limit` images: the highest, or drawn with a chance that goes with value ** power."""
        alive = np.flatnonzero(~np.isnan(self._value) if power is None else self._value > 0)
        keys = self._value[alive]
        if power is not None:
            keys = power * np.log(keys) + random.gumbel(size=len(keys))  # the largest are such a sample (Kirsch 2023)
        top = np.argpartition(-keys, limit - 1)[:limit] if limit < len(keys) else np.arange(len(keys))
        return [int(place) for place in alive[top[np.argsort(-keys[top], kind="stable")]]]

    def confirm(self, db: sqlite3.Connection, picks: Sequence[int]) -> bool:
        """Whether all picks are unlabelled still; those that are not are not drawn again."""
        right = True
        for pick in picks:
            row = db.execute("SELECT final FROM image WHERE id = ?", (self._ids[pick],)).fetchone()
            if row is None or row[0]:
                self._value[pick] = np.nan
                right = False
        return right

    def id(self, place: int) -> str:
        """The image at a place."""
        return self._ids[place]


def _ranked(column: _Column, picks: Sequence[int], open_images: int, limit: int, taken: set[str]) -> Ranked:
    ids = [image_id for image_id in map(column.id, picks) if image_id not in taken][:limit]
    return Ranked(ids=ids, known=min(1.0, column.count / open_images) if open_images else 0.0)
