"""SeriesCache: the archive's series on local disk; retrieved once, complete, and bounded in bytes.

A series is a folder `<SeriesInstanceUID>` with `instances/`, the DICOM files as received, and `volume.nii`, the same
voxels on the same grid, which every client can read. It appears under its name once all of it is on disk. Thread-safe;
concurrent requests for a series share one retrieval (single flight).
"""

from __future__ import annotations

import logging
import os
import shutil
import threading
import time
import uuid
from concurrent.futures import Future, ThreadPoolExecutor
from concurrent.futures import TimeoutError as Late
from pathlib import Path

from rayapp.datastore.pacs import PacsClient
from rayapp.datastore.revisions import delete
from rayapp.errors import ArchiveAway, Busy, TooLarge
from rayapp.files.durable import replacing, sync
from rayapp.imaging import dicom_series, nifti

RETRIEVALS = 4
"""Series retrieved concurrently; further ones are queued."""
SYNCS = 16
"""Instances written or parsed concurrently."""
AHEAD = 2 * SYNCS
"""Received instances that may wait to be written; a faster archive is not read further until the disk catches up."""
WAITING = 8
"""Callers that may wait for retrievals at once, so that a slow archive does not occupy all threads of the datastore."""
PATIENCE_S = 50.0
GRACE_S = 600.0
"""Seconds after its last use for which a series is never evicted: someone may still be reading it."""
VOLUME = "volume.nii"
INSTANCES = "instances"

log = logging.getLogger(__name__)


class SeriesCache:
    """The series under `root`, up to `max_bytes` bytes."""

    def __init__(self, root: Path, pacs: PacsClient, *, max_bytes: int, max_volume: int) -> None:
        self._root = root
        self._pacs = pacs
        self._max_bytes = max_bytes
        self._max_volume = max_volume
        self._lock = threading.Lock()
        self._under_way: dict[str, Future[None]] = {}
        self._places = threading.Semaphore(WAITING)
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

    def retrieve(self, study: str, series: str, *, patience: float = PATIENCE_S) -> Path:
        """Retrieve the series if needed, and return the path of its volume.

        Args:
            study: StudyInstanceUID.
            series: SeriesInstanceUID.
            patience: seconds to wait for the retrieval.

        Raises:
            ArchiveAway, NotFound: from the archive; a partial series is discarded.
            Unreadable, TooLarge: if the series is not a volume.
            Busy: if it takes longer than `patience`, or too many callers wait; the retrieval continues, so try again.
        """
        if self.path(series).exists():
            os.utime(self._root / series)
            return self.path(series)
        if not self._places.acquire(blocking=False):
            raise Busy("too many requests are waiting for the DICOM archive; try again in a second")
        try:
            self._retrieval(study, series).result(patience)
        except Late:
            raise Busy("the series is still being retrieved from the DICOM archive; try again in a second") from None
        finally:
            self._places.release()
        return self.path(series)

    def _retrieval(self, study: str, series: str) -> Future[None]:
        """The retrieval of the series that is under way, or a new one."""
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
                    part.rename(self._root / series)
            finally:
                shutil.rmtree(part, ignore_errors=True)
        self._make_room(series)

    def _write(self, study: str, series: str, target: Path) -> list[Future[list[dicom_series.Slice]]]:
        """Write every instance of the series to a file; raises ArchiveAway if any is missing. Returns the slices of
        each.

        Writing, parsing headers and listing the series overlap with the transfer.
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
        with replacing(home / VOLUME) as staged:
            nifti.write_volume(volume, staged)

    def _make_room(self, newest: str) -> None:
        """Evict the least recently used series until the cache fits its limit."""
        folders = [path for path in self._root.iterdir() if path.is_dir() and not path.name.startswith(".")]
        sizes = {path: sum(file.stat().st_size for file in path.rglob("*")) for path in folders}
        used = {path: path.stat().st_mtime for path in folders}
        total = sum(sizes.values())
        for path in sorted(folders, key=used.__getitem__):
            if total <= self._max_bytes:
                return
            if path.name != newest and time.time() - used[path] > GRACE_S:
                gone = self._root / f".{uuid.uuid4().hex}"
                path.rename(gone)
                delete(gone)
                total -= sizes[path]
        if total > self._max_bytes:
            log.warning("the series cache exceeds its %d bytes: all its series were used recently", self._max_bytes)


def _keep(file: Path, data: bytes) -> None:
    file.write_bytes(data)
    sync(file)
