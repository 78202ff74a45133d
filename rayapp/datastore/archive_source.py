"""ArchiveSource: the series that a DICOM archive lists, as a datastore's images.

A series is one image until it has been retrieved and turned out to hold several volumes; then each of them is one.

A list is not trusted at once. A new series is accepted when two successive lists give the same number of instances,
since it may still be arriving; a missing series is queried individually before it is dropped; and an empty list has to
repeat.
"""

from __future__ import annotations

import logging
import random
import time
from collections import deque
from collections.abc import Callable, Collection, Iterable, Mapping
from pathlib import Path

import pydicom
from pydicom.uid import UID

from rayapp.datastore.image_names import is_valid_name
from rayapp.datastore.image_source import IDENTIFYING
from rayapp.datastore.interfaces import SERIES_EXT, Info
from rayapp.datastore.pacs import UNKNOWN, ListedSeries, PacsClient
from rayapp.datastore.series_cache import SeriesCache
from rayapp.datastore.series_parts import described, series_of
from rayapp.errors import RayappError

EMPTY_LOOKS = 3
"""Consecutive empty lists after which an archive is believed to be empty."""
ASKED = 20
"""Missing series that are queried individually per scan; if more are missing, none is dropped yet."""

log = logging.getLogger(__name__)


class ArchiveSource:
    """The images of a datastore on an archive; an `ImageSource`. One scan at a time; all else is thread-safe."""

    def __init__(self, pacs: PacsClient, cache: SeriesCache, filters: Mapping[str, str]) -> None:
        self._pacs = pacs
        self._cache = cache
        self._filters = dict(filters)
        self._listed: dict[str, ListedSeries] = {}
        self._unsettled: dict[str, int | None] = {}
        """Numbers of instances of series that are not images yet, from the last list."""
        self._empty = 0
        self.problem: str | None = None
        """The reason why the archive could not be listed the last time."""
        self._changed: deque[str] = deque()

    def images(self, indexed: Mapping[str, str]) -> tuple[dict[str, str], dict[Path, str]]:
        """See `ImageSource`. While the archive is unavailable, the list stays as it was."""
        asked = time.time()
        try:
            found = self._pacs.series(self._filters)
        except RayappError as error:
            log.warning("the series of the archive could not be listed; keeping the last list: %s", error.detail)
            self.problem = error.detail
            return dict(indexed), {}
        self.problem = None
        listed = {uid: series for uid, series in found.items() if is_valid_name(uid, "image")}
        known = {series_of(image_id) for image_id in indexed}
        missing = known - listed.keys()
        gone = self._gone(missing) if self._is_plausible(listed, known) else set()
        if missing - gone:
            log.warning("%d series are missing from the archive's list; they stay for now", len(missing - gone))
        kept = {uid: self._listed[uid] for uid in missing - gone if uid in self._listed}
        self._listed = {**kept, **listed}
        self._changed += self._cache.drop_changed({uid: one.instances for uid, one in listed.items()}, asked)
        refused = {Path(uid): "its SeriesInstanceUID is not valid" for uid in found.keys() - listed.keys()}
        images = (image_id for uid in (*listed, *(missing - gone)) for image_id in self._cache.image_ids(uid))
        return dict.fromkeys(images, SERIES_EXT), refused

    def _is_plausible(self, listed: Mapping[str, ListedSeries], known: Collection[str]) -> bool:
        """False for an empty list, until it has repeated."""
        self._empty = self._empty + 1 if known and not listed else 0
        return self._empty == 0 or self._empty >= EMPTY_LOOKS

    def _gone(self, missing: Iterable[str]) -> set[str]:
        """The missing series that the archive, queried for each, does not have."""
        some = sorted(missing)
        if len(some) > ASKED:
            some = random.sample(some, ASKED)  # others in the next look, so that none is passed over for ever
        return {uid for uid in some if self._is_gone(uid)}

    def _is_gone(self, series: str) -> bool:
        try:
            return series not in self._search(series)
        except RayappError:
            return False

    def _search(self, series: str) -> dict[str, ListedSeries]:
        return self._pacs.series({**self._filters, "SeriesInstanceUID": series})

    def has(self, series: str) -> bool:
        """True if the archive lists the series now; False while the archive is unavailable."""
        if not UID(series, pydicom.config.IGNORE).is_valid:
            return False
        try:
            return series in self._search(series)
        except RayappError:
            return False

    def complete(self, new: Mapping[str, str], settle: float) -> set[str]:
        """See `ImageSource`: the series with the same number of instances in two successive lists.

        The first list may be that of an earlier scan; otherwise the archive is listed again after `settle` seconds.
        """
        counts = {uid: self.count(uid) for uid in new}
        unsure = {uid for uid in new if self._unsettled.get(uid) != counts[uid]}
        if unsure:
            time.sleep(settle)
            again = self._look_again({series_of(uid) for uid in unsure})
            counts |= {uid: again[series_of(uid)] for uid in unsure}
        settled = {uid for uid in new if uid not in unsure or counts[uid] == self.count(uid)}
        self._unsettled = {uid: counts[uid] for uid in new.keys() - settled}
        return settled

    def why_incomplete(self, image_id: str, ext: str) -> str | None:  # noqa: ARG002
        """See `ImageSource`: it is still arriving."""
        return None

    def _look_again(self, series: set[str]) -> dict[str, int | None]:
        """Present numbers of instances; 0 for a series that is not found or that the archive gives no number for."""
        try:
            if len(series) > ASKED:
                found = self._pacs.series(self._filters)
            else:
                found = {uid: one for each in series for uid, one in self._search(each).items()}
        except RayappError:
            found = {}
        return {uid: found[uid].instances if uid in found else 0 for uid in series}

    def count(self, image_id: str) -> int | None:
        """Number of instances of the image's series according to the last list; None if it gives none."""
        listed = self._listed.get(series_of(image_id))
        return None if listed is None else listed.instances

    def recheck(self, study: str, image_id: str) -> bool:
        """Query an image's series, and drop its retrieved files if the archive now has another number of instances.

        For an archive that gives no numbers, the instances themselves are listed.

        Returns:
            True if the series had changed.

        Raises:
            ArchiveAway, NotFound: from the archive.
        """
        asked, series = time.time(), series_of(image_id)
        found = self._search(series).get(series)
        count = found.instances if found is not None else None
        if count is None:
            count = len(self._pacs.instances(study, series))
        changed = self._cache.drop_changed({series: count}, asked)
        self._changed += changed
        return bool(changed)

    def replaced(self) -> set[str]:
        """See `ImageSource`."""
        series = [self._changed.popleft() for _ in range(len(self._changed))]
        return {image_id for uid in series for image_id in self._cache.image_ids(uid)}

    def follow(self, recorded: Iterable[tuple[str, Info]], record: Callable[[dict[str, Info]], None]) -> None:
        """See `ImageSource`."""
        found = {}
        for image_id, info in recorded:
            listed = self.info(image_id)
            new = {key: listed[key] for key in IDENTIFYING if listed.get(key, UNKNOWN) not in (UNKNOWN, info[key])}
            if new:
                found[image_id] = new
        if found:
            record(found)
            self._cache.drop({series_of(image_id) for image_id in found})

    def keeps_ids(self) -> bool:
        """See `ImageSource`: a UID never names another series."""
        return True

    def exists(self, image_id: str, ext: str) -> bool:  # noqa: ARG002
        """See `ImageSource`."""
        series = series_of(image_id)
        return series in self._listed and image_id in self._cache.image_ids(series)

    def path(self, image_id: str, ext: str) -> Path:  # noqa: ARG002
        """See `ImageSource`."""
        return self._cache.path(image_id)

    def info(self, image_id: str) -> Info:
        """See `ImageSource`."""
        listed = self._listed.get(series_of(image_id))
        return {} if listed is None else described(listed.info, image_id)
