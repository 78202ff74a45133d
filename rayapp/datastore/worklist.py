"""Worklist: which images need a label, who has leased which, and how they score.

A lease keeps an image from being handed out to a second annotator. It ends when the image gets a final label, or some
time after the last activity on the image. Thread-safe; every change is committed by the single writer.
"""

from __future__ import annotations

import json
import sqlite3
from collections.abc import Callable, Sequence

import numpy as np
import numpy.typing as npt

from rayapp.datastore import leases, steady_clock
from rayapp.datastore.commit import GroupCommit
from rayapp.datastore.document import DocumentFile
from rayapp.datastore.index import Index, info_of, update_image, update_label
from rayapp.datastore.interfaces import ImageRecord, ImageScore, Labelled, Order, Ranked
from rayapp.datastore.studies_folder import StudiesFolder
from rayapp.protocol import FINAL

_UNLABELED = "NOT EXISTS (SELECT 1 FROM label WHERE image_id = image.id AND tag = :tag)"


class Worklist:
    """The part of a `Datastore` that selects the next image; a mixin of `LocalDatastore`."""

    _opened: StudiesFolder
    _index: Index
    _commit: GroupCommit
    _document: DocumentFile
    _image: Callable[[str], ImageRecord]

    def unlabeled(
        self, *, tag: str = FINAL, order: Order = "first", limit: int = 1, holder: str | None = None
    ) -> list[str]:
        """See `Datastore`."""
        if order == "age":
            leased = self._leased_by_others(holder)
            drawn = self._opened.age_sampler.sample(tag, limit + len(leased))
            return [image_id for image_id in drawn if image_id not in leased][:limit]
        direction = "DESC" if order == "last" else "ASC"
        unlabeled = "final = 0" if tag == FINAL else _UNLABELED
        free = f"NOT EXISTS (SELECT 1 {leases.OF_OTHERS} AND image_id = image.id)"
        with self._index.reader() as db:
            rows = db.execute(
                f"SELECT id FROM image WHERE {unlabeled} AND {free} ORDER BY id {direction} LIMIT :limit",
                {"tag": tag, "limit": limit, "now": steady_clock.steady_time(), "holder": holder or ""},
            )
            return [row[0] for row in rows]

    def _leased_by_others(self, holder: str | None) -> set[str]:
        with self._index.reader() as db:
            rows = db.execute(
                f"SELECT image_id {leases.OF_OTHERS}", {"now": steady_clock.steady_time(), "holder": holder or ""}
            )
            return {row[0] for row in rows}

    def serve_next(
        self, image_id: str, strategy: str, *, client_id: str | None, ts: int, holder: str | None = None
    ) -> ImageRecord | None:
        """See `Datastore`."""

        def apply(db: sqlite3.Connection) -> bool | None:
            row = db.execute("SELECT info FROM image WHERE id = ?", (image_id,)).fetchone()
            if row is None:
                return None
            if holder is not None and not leases.grant(db, image_id, holder):
                return False
            served = info_of(row[0]).get("strategy", {})
            served[strategy] = {"ts": ts, "client_id": client_id}
            return update_image(db, image_id, {"strategy": served}) is not None

        if self._commit.do(apply) is False:
            return None
        self._document.touch()
        return self._image(image_id)  # raises NotFound

    def quarantine(self, image_id: str, reason: str) -> None:
        """See `Datastore`."""
        now = steady_clock.steady_time()

        def apply(db: sqlite3.Connection) -> None:
            if update_image(db, image_id, {"unreadable": {"ts": int(now), "why": reason}}) is not None:
                leases.quarantine(db, image_id)

        self._image(image_id)  # raises NotFound
        self._commit.do(apply)
        self._document.touch()

    # ScoreTable

    def save_scores(self, scores: Sequence[ImageScore]) -> None:
        """See `Datastore`."""

        def apply(db: sqlite3.Connection) -> None:
            for score in scores:
                _save_score(db, score)

        self._commit.do(apply)
        self._opened.scores.catch_up()
        self._document.touch()

    def unscored(
        self, run: str, *, images: Labelled = "unlabeled", failed: bool = True, limit: int | None = None
    ) -> list[str]:
        """See `Datastore`."""
        which = {"unlabeled": "final = 0", "labeled": "final = 1", "all": "1"}[images]
        done = "SELECT 1 FROM scored WHERE run = ? AND image_id = image.id" + (" AND NOT failed" if failed else "")
        with self._index.reader() as db:
            rows = db.execute(
                f"SELECT id FROM image WHERE {which} AND NOT EXISTS ({done}) ORDER BY id LIMIT ?",
                (run, -1 if limit is None else limit),
            )
            return [row[0] for row in rows]

    def score_names(self) -> list[str]:
        """See `Datastore`."""
        with self._index.reader() as db:
            rows = db.execute("SELECT name FROM count WHERE kind = 'score' AND n > 0 ORDER BY name")
            return [row[0] for row in rows]

    def ranked(
        self, name: str, *, tag: str = FINAL, power: float | None = None, limit: int = 1, holder: str | None = None
    ) -> Ranked:
        """See `Datastore`."""
        return self._opened.scores.draw(
            name, tag, power=power, limit=limit, excluded=lambda: self._leased_by_others(holder)
        )

    def features(self, ids: Sequence[str]) -> dict[str, npt.NDArray[np.float32]]:
        """See `Datastore`."""
        with self._index.reader() as db:
            rows = db.execute(
                # As one variable, since SQLite limits their number.
                "SELECT image_id, vector FROM feature WHERE image_id IN (SELECT value FROM json_each(?))",
                (json.dumps(list(ids)),),
            )
            return {image_id: np.frombuffer(vector, np.float32) for image_id, vector in rows}

    def farthest(self, ids: Sequence[str], *, against: int) -> str | None:
        """See `Datastore`."""
        features = self.features(ids)
        comparable = [image_id for image_id in ids if image_id in features]
        if not comparable:
            return None
        length = len(features[comparable[0]])  # other scoring methods may yield other lengths
        comparable = [image_id for image_id in comparable if len(features[image_id]) == length]
        with self._index.reader() as db:
            rows = db.execute(
                # The unary plus makes SQLite walk the table backwards until it has enough rows, rather than
                # read all rows by the index on tag.
                "SELECT f.vector FROM label AS l CROSS JOIN feature AS f ON f.image_id = l.image_id WHERE +l.tag = ?"
                " AND length(f.vector) = ? ORDER BY l.rowid DESC LIMIT ?",
                (FINAL, features[comparable[0]].nbytes, against),
            )
            labelled = b"".join(vector for (vector,) in rows)
        if not labelled:
            return None
        candidates = np.stack([features[image_id] for image_id in comparable])
        reference = np.frombuffer(labelled, np.float32).reshape(-1, length)
        squares = (candidates**2).sum(axis=1)[:, None] + (reference**2).sum(axis=1) - 2 * candidates @ reference.T
        return comparable[int(squares.min(axis=1).argmax())]


def _save_score(db: sqlite3.Connection, score: ImageScore) -> None:
    """Record one image's scores, feature and infos; ignored for an image that was removed."""
    if not db.execute("SELECT 1 FROM image WHERE id = ?", (score.image_id,)).fetchone():
        return
    db.execute("INSERT OR REPLACE INTO scored VALUES(?, ?, ?, ?)", (score.image_id, score.run, score.failed, score.ts))
    for name, value in score.values.items():
        db.execute("DELETE FROM score WHERE image_id = ? AND name = ?", (score.image_id, name))
        db.execute("INSERT INTO score(image_id, name, value) VALUES(?, ?, ?)", (score.image_id, name, value))
    if score.feature is not None:
        vector = np.asarray(score.feature, np.float32).tobytes()
        db.execute("INSERT OR REPLACE INTO feature VALUES(?, ?)", (score.image_id, vector))
    if score.info:
        update_image(db, score.image_id, score.info)
    for tag, info in score.label_infos.items():
        update_label(db, score.image_id, tag, info)
