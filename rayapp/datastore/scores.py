"""Scores: the unlabelled images by what scoring found, so that the next one is drawn at once.

They are kept as arrays, the newest of each name and image, and the index stays the truth: a drawn image is looked up,
and if it was labelled or removed meanwhile, the draw is repeated without it, as in `rayapp.datastore.ages`. So who
labels need not tell. What is new is read from the index, which costs as much as there is of it: `catch_up` after the
opening and whenever scores were recorded leaves little of that to who asks. Any number of threads may call at once.
"""

from __future__ import annotations

import sqlite3
import threading
from collections.abc import Callable

import numpy as np
import numpy.typing as npt

from rayapp.datastore.ages import largest
from rayapp.datastore.index import Index, reopened
from rayapp.datastore.interfaces import Ranked
from rayapp.protocol import FINAL

_ROOM = 1024
"""Images that the arrays have room for at first; they grow by doubling."""


class Scores:
    """The scores of images by name; NaN for an image without."""

    def __init__(self, index: Index) -> None:
        self._index = index
        self._lock = threading.Lock()
        self._random = np.random.default_rng()
        self._newest = self._reopened = 0
        self._ids: list[str] = []
        self._places: dict[str, int] = {}
        self._open = np.zeros(_ROOM, np.bool_)
        """False for images that have a final label or are gone, as far as is known."""
        self._values: dict[str, npt.NDArray[np.float64]] = {}

    def catch_up(self) -> None:
        """Read what the index has got since."""
        with self._index.reader() as db, self._lock:
            self._read(db)

    def draw(self, name: str, tag: str, *, power: float | None, limit: int, taken: Callable[[], set[str]]) -> Ranked:
        """See `Datastore.ranked`; `taken` tells which images must not be drawn, and is asked at the last moment."""
        with self._index.reader() as db, self._lock:
            self._read(db)
            held = taken()
            if name not in self._values:
                return Ranked(ids=[], known=0.0)
            values = self._values[name][: len(self._ids)]
            drawable = self._open[: len(values)] if tag == FINAL else self._without(db, tag)
            while True:
                picks = self._picked(np.where(drawable, values, np.nan), power, limit + len(held))
                gone = [place for place in picks if not _lacks(db, self._ids[place], tag)]
                if not gone:
                    break
                drawable[gone] = False
            scored = int(np.count_nonzero(drawable & ~np.isnan(values)))
            (images,) = db.execute("SELECT n FROM count WHERE kind = 'image'").fetchone()
            labelled = db.execute("SELECT n FROM count WHERE kind = 'tag' AND name = ?", (tag,)).fetchone()
        bare = images - (labelled[0] if labelled else 0)
        ids = [self._ids[place] for place in picks if self._ids[place] not in held][:limit]
        return Ranked(ids=ids, known=min(1.0, scored / bare) if bare else 0.0)

    def _read(self, db: sqlite3.Connection) -> None:
        since, touched = self._newest, set()
        for image_id, name, value, seq in db.execute(
            "SELECT image_id, name, value, seq FROM score WHERE seq > ? ORDER BY seq", (since,)
        ):
            place = self._place(image_id)
            if name not in self._values:
                self._values[name] = np.full(len(self._open), np.nan)
            self._values[name][place] = value
            self._newest = seq
            touched.add(image_id)
        again, self._reopened = reopened(db, self._reopened)
        if since:
            touched.update(image_id for image_id in again if image_id in self._places)
            for image_id in touched:
                self._open[self._places[image_id]] = _lacks(db, image_id, FINAL)
        elif touched:  # all of them: one look is faster than one for each
            bare = {image_id for (image_id,) in db.execute("SELECT id FROM image WHERE final = 0")}
            self._open[: len(self._ids)] = [image_id in bare for image_id in self._ids]

    def _place(self, image_id: str) -> int:
        place = self._places.get(image_id)
        if place is None:
            place = self._places[image_id] = len(self._ids)
            self._ids.append(image_id)
            if place == len(self._open):
                self._open = np.concatenate([self._open, np.zeros_like(self._open)])
                for name, values in self._values.items():
                    self._values[name] = np.concatenate([values, np.full_like(values, np.nan)])
        return place

    def _without(self, db: sqlite3.Connection, tag: str) -> npt.NDArray[np.bool_]:
        """Images without a label under the tag, and maybe some that are gone."""
        bare = np.ones(len(self._ids), np.bool_)
        labelled = db.execute("SELECT image_id FROM label WHERE tag = ?", (tag,))
        bare[[self._places[image_id] for (image_id,) in labelled if image_id in self._places]] = False
        return bare

    def _picked(self, values: npt.NDArray[np.float64], power: float | None, limit: int) -> list[int]:
        """Places of at most `limit` images: the highest, or drawn with a chance that goes with value ** power."""
        drawable = np.flatnonzero(~np.isnan(values) if power is None else values > 0)
        keys = values[drawable]
        if power is not None:  # the largest are such a sample (Kirsch et al. 2023)
            keys = power * np.log(keys) + self._random.gumbel(size=len(keys))
        return [int(place) for place in drawable[largest(keys, limit)]]


def _lacks(db: sqlite3.Connection, image_id: str, tag: str) -> bool:
    """Whether the image is there and lacks a label under the tag."""
    row = db.execute(
        "SELECT NOT EXISTS (SELECT 1 FROM label WHERE image_id = image.id AND tag = ?) FROM image WHERE id = ?",
        (tag, image_id),
    ).fetchone()
    return row is not None and bool(row[0])
