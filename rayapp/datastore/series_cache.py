"""SeriesCache: the archive's series on local disk; retrieved once, complete, and bounded in bytes.

A series is a folder `<SeriesInstanceUID>` with `instances/`, the DICOM files as received, and `volume.nii`, the same
voxels on the same grid, which every client can read. It appears under its name once all of it is on disk, and is
dropped when the archive announces another number of instances, because it is still arriving or was changed there.
Thread-safe; concurrent requests for a series share one retrieval (single flight).
"""

from __future__ import annotations

import json
import logging
import math
import os
import shutil
import threading
import time
import uuid
from collections.abc import Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path

from rayapp.datastore.bounded_wait import BoundedWait
from rayapp.datastore.pacs import PacsClient
from rayapp.datastore.revisions import delete, link_or_copy
from rayapp.errors import ArchiveAway, TooLarge
from rayapp.files.durable import replacing, sync
from rayapp.imaging import dicom_series, nifti
from rayapp.imaging.dicom_seg_source import obstacle

RETRIEVALS = 4
"""Maximum number of series retrieved concurrently; others are queued."""
SYNCS = 16
"""Maximum number of instances written or parsed concurrently."""
AHEAD = 2 * SYNCS
"""Maximum number of received instances that wait to be written; at this number reading from the archive pauses."""
GRACE_S = 600.0
"""Seconds after its last use for which a series is never evicted: someone may still be reading it."""
VOLUME = "volume.nii"
INSTANCES = "instances"
ANNOUNCED = "announced"
"""File with the number of instances according to the archive, if the archive repeatedly sends another number."""
FACTS = "facts.json"
"""File with the series' `SeriesFacts`."""

log = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True)
class SeriesFacts:
    """Facts from a retrieved series' headers that its volume does not hold.

    Attributes:
        frame_of_reference: FrameOfReferenceUID; "" if there is none, or not one for all slices.
        obstacle: the reason why no DICOM SEG can be made for it; None if one can.
    """

    frame_of_reference: str
    obstacle: str | None


class SeriesCache:
    """The series under `root`, up to `max_bytes` bytes."""

    def __init__(
        self, root: Path, pacs: PacsClient, *, max_bytes: int, max_volume: int, waits: BoundedWait | None = None
    ) -> None:
        """Open the cache.

        Args:
            root: its folder.
            pacs: the archive.
            max_bytes: size up to which series are kept.
            max_volume: maximum size of one series in bytes.
            waits: the wait for retrievals, shared with everything else that waits for the archive.
        """
        self._root = root
        self._pacs = pacs
        self._max_bytes = max_bytes
        self._max_volume = max_volume
        self._waits = waits or BoundedWait()
        self._lock = threading.Lock()
        self._under_way: dict[str, Future[None]] = {}
        self._folders = threading.RLock()
        """Held while a series' folder is removed, or looked up and marked as used."""
        self._dropped: dict[str, tuple[int, int]] = {}
        """Numbers of instances held and announced, of series that were dropped and not retrieved since."""
        root.mkdir(parents=True, exist_ok=True)
        for leftover in root.glob(".*"):  # of a crash
            delete(leftover)
        self._pool = ThreadPoolExecutor(RETRIEVALS, thread_name_prefix="retrieve")

    def close(self) -> None:
        """Cancel the queued retrievals."""
        self._pool.shutdown(wait=False, cancel_futures=True)

    def path(self, series: str) -> Path:
        """Path of the series' volume, whether or not it has been retrieved."""
        return self._root / series / VOLUME

    def instances(self, series: str) -> Path:
        """Path of the folder with its DICOM files."""
        return self._root / series / INSTANCES

    def facts(self, series: str) -> SeriesFacts:
        """The facts from a retrieved series' headers; empty for one that has just been evicted. Raises Unreadable."""
        try:
            return SeriesFacts(**json.loads((self._root / series / FACTS).read_text()))
        except (FileNotFoundError, ValueError, TypeError):  # retrieved by an earlier version, or evicted
            try:
                return _facts_of(dicom_series.read_slices(self.instances(series)))
            except FileNotFoundError:
                return SeriesFacts(frame_of_reference="", obstacle=None)

    def retrieve(self, study: str, series: str) -> Path:
        """Retrieve the series if needed, and return the path of its volume.

        Args:
            study: StudyInstanceUID.
            series: SeriesInstanceUID.

        Raises:
            ArchiveAway, NotFound: from the archive; a partial series is discarded.
            Unreadable, TooLarge: if the series is not a volume.
            Busy: if it takes too long, or too many callers wait; the retrieval continues, so try again.
        """
        if not self._use(series):
            self._waits.result(lambda: self._retrieval(study, series), "the series is still being retrieved")
        return self.path(series)

    def link(self, study: str, series: str, target: Path) -> None:
        """Hard-link the series' volume to a path that evictions do not touch; retrieve it if needed.

        Raises the errors of `retrieve`.
        """
        while not target.exists():
            self.retrieve(study, series)
            with self._folders, suppress(FileNotFoundError, FileExistsError):  # dropped, or linked, at this moment
                link_or_copy(self.path(series), target)

    def _use(self, series: str) -> bool:
        """Mark the series as used; False if it must be retrieved."""
        with self._folders:
            if not self.path(series).exists():
                return False
            os.utime(self._root / series)
            return True

    def drop_changed(self, announced: Mapping[str, int | None], asked: float) -> set[str]:
        """Drop the series of which the archive now has another number of instances than are held.

        Args:
            announced: number of instances by series; None if the archive gives none.
            asked: time of the archive's answer, in Unix seconds; series retrieved later are left for the next scan.

        Returns:
            The series that were dropped.
        """
        changed = set()
        for folder in self._held():
            count = announced.get(folder.name)
            with self._folders:
                held = _instances_in(folder, before=asked)
                if count is None or held is None or count in (held, _accepted(folder)):
                    continue
                log.warning("a series has changed in the archive, from %d to %d instances; dropped", held, count)
                self._dropped[folder.name] = held, count
                self._remove(folder)
            changed.add(folder.name)
        return changed

    def holds(self, series: str) -> bool:
        """True if anything of the series has been retrieved."""
        return (self._root / series).exists()

    def _held(self) -> list[Path]:
        """Folders of the series that were retrieved."""
        return [path for path in self._root.iterdir() if path.is_dir() and not path.name.startswith(".")]

    def _remove(self, folder: Path) -> None:
        """Delete a series' folder; it disappears from its path at once."""
        gone = self._root / f".{uuid.uuid4().hex}"
        with suppress(FileNotFoundError):
            folder.rename(gone)
        delete(gone)

    def _retrieval(self, study: str, series: str) -> Future[None]:
        """The running retrieval of the series, or a new one."""
        with self._lock:
            if series not in self._under_way:
                retrieval = self._under_way[series] = self._pool.submit(self._retrieve, study, series)
                retrieval.add_done_callback(lambda _: self._under_way.pop(series, None))
            else:
                retrieval = self._under_way[series]
            return retrieval

    def _retrieve(self, study: str, series: str) -> None:
        if self.path(series).exists():
            return
        if self.instances(series).exists():  # retrieved before, but the volume could not be made
            self._convert(dicom_series.read_slices(self.instances(series)), self._root / series)
        else:
            part = self._root / f".{uuid.uuid4().hex}"
            try:
                parsed = self._write(study, series, part / INSTANCES)
                try:
                    self._convert(dicom_series.sort_slices(piece for one in parsed for piece in one.result()), part)
                finally:  # also if it is not a volume, so that it is not retrieved again
                    self._accept_repeated(series, part)
                    part.rename(self._root / series)
            finally:
                shutil.rmtree(part, ignore_errors=True)
        self._make_room(series)

    def _accept_repeated(self, series: str, part: Path) -> None:
        """Accept the number of instances if the archive sent the same number before, although it announces another."""
        held, announced = self._dropped.pop(series, (None, 0))
        if held is not None and held == _instances_in(part):
            (part / ANNOUNCED).write_text(str(announced))

    def _write(self, study: str, series: str, target: Path) -> list[Future[list[dicom_series.Slice]]]:
        """Write all instances of the series to files. Returns the slices in each.

        Writing, parsing headers and listing the series overlap with the transfer. Raises ArchiveAway if any instance is
        missing.
        """
        target.mkdir(parents=True)
        size = 0
        with ThreadPoolExecutor(SYNCS) as pool:
            listed = pool.submit(self._pacs.instances, study, series)
            received: set[str] = set()
            written: list[Future[None]] = []
            parsed: list[Future[list[dicom_series.Slice]]] = []
            for instance, data in self._pacs.retrieve(study, series):
                received.add(str(instance.get("SOPInstanceUID")))
                size += len(data)
                if size > self._max_volume:
                    raise TooLarge(f"the series has more than {self._max_volume} bytes: raise max_volume to open it")
                file = target / f"{len(written)}.dcm"
                written.append(pool.submit(_keep, file, data))
                if len(written) > AHEAD:  # bounds the part of the series held in memory
                    written[-1 - AHEAD].result()
                parsed.append(pool.submit(dicom_series.slices_of, instance, file))
            expected = listed.result()
            if received - expected or len(written) > len(received):
                raise ArchiveAway("the DICOM archive sent instances that it does not list: the series may be changing")
            if expected - received:
                missing = len(expected - received)
                raise ArchiveAway(
                    f"the transfer was cut short: {missing} instances of the series are missing; try again"
                )
            for one in written:
                one.result()
        sync(target)
        return parsed

    def _convert(self, slices: list[dicom_series.Slice], home: Path) -> None:
        """Write the volume of these slices into the series' folder."""
        volume = dicom_series.volume_from_slices(slices, max_bytes=self._max_volume)
        with replacing(home / FACTS) as staged:
            staged.write_text(json.dumps(asdict(_facts_of(slices))))
        with replacing(home / VOLUME) as staged:
            nifti.write_volume(volume, staged)

    def _make_room(self, newest: str) -> None:
        """Evict the least recently used series until the cache fits its limit."""
        with self._folders:
            folders = self._held()
            sizes = {path: sum(_size(file) for file in path.rglob("*")) for path in folders}
            used = {path: path.stat().st_mtime for path in folders}
            total = sum(sizes.values())
            for path in sorted(folders, key=used.__getitem__):
                if total <= self._max_bytes:
                    return
                if path.name != newest and time.time() - used[path] > GRACE_S:
                    self._remove(path)
                    total -= sizes[path]
        if total > self._max_bytes:
            log.warning("the series cache exceeds its %d bytes: all its series were used recently", self._max_bytes)


def _facts_of(slices: list[dicom_series.Slice]) -> SeriesFacts:
    frames = {piece.frame_of_reference for piece in slices}
    return SeriesFacts(frame_of_reference=frames.pop() if len(frames) == 1 else "", obstacle=obstacle(slices))


def _instances_in(folder: Path, *, before: float = math.inf) -> int | None:
    """Number of instances in a series' folder; None if the folder does not exist, or was not retrieved before that
    time.
    """
    try:
        if (folder / INSTANCES).stat().st_mtime >= before:
            return None
        return sum(1 for _ in (folder / INSTANCES).iterdir())
    except FileNotFoundError:
        return None


def _accepted(folder: Path) -> int | None:
    """The announced number of instances that was accepted although another was sent; None if there is none."""
    try:
        return int((folder / ANNOUNCED).read_text())
    except (FileNotFoundError, ValueError):
        return None


def _size(file: Path) -> int:
    """Size in bytes; 0 for a file that is just being replaced by its final name."""
    try:
        return file.stat().st_size
    except FileNotFoundError:
        return 0


def _keep(file: Path, data: bytes) -> None:
    file.write_bytes(data)
    sync(file)
