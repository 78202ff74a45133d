"""SeriesCache: series of the archive on local disk: retrieved once, whole, and bounded in bytes.

A series is a folder `<SeriesInstanceUID>` with its `instances/` as they came and `volume.nii`, the same voxels on the
same grid, which every client reads. It appears under its name when all of it is on the disk. Any thread may ask; who
asks for what is being retrieved already waits for that.
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

from rayapp.datastore.commit import sync
from rayapp.datastore.pacs import PacsClient
from rayapp.datastore.revisions import delete
from rayapp.errors import ArchiveAway, Busy, TooLarge
from rayapp.imaging import dicom, nifti

RETRIEVALS = 4
"""Series retrieved at once; others wait their turn."""
SYNCS = 16
"""Files written or parsed at once."""
AHEAD = 2 * SYNCS
"""Instances that may wait for the disk: an archive that is faster is not read any further meanwhile."""
WAITING = 8
"""Callers that may wait for series at once, so that a slow archive takes not every thread of the datastore."""
PATIENCE_S = 50.0
GRACE_S = 600.0
"""Seconds after its last use in which no series is thrown away: somebody may be reading it."""
VOLUME = "volume.nii"
INSTANCES = "instances"

log = logging.getLogger(__name__)


class SeriesCache:
    """The series under `root`, of at most `most` bytes."""

    def __init__(self, root: Path, pacs: PacsClient, *, most: int, max_volume: int) -> None:
        self._root = root
        self._pacs = pacs
        self._most = most
        self._max_volume = max_volume
        self._lock = threading.Lock()
        self._under_way: dict[str, Future[None]] = {}
        self._places = threading.Semaphore(WAITING)
        root.mkdir(parents=True, exist_ok=True)
        for left in root.glob(".*"):  # by a crash
            delete(left)
        self._pool = ThreadPoolExecutor(RETRIEVALS, thread_name_prefix="retrieve")

    def close(self) -> None:
        """Give up what is not retrieved yet."""
        self._pool.shutdown(wait=False, cancel_futures=True)

    def path(self, series: str) -> Path:
        """Where the series' volume lies once it is retrieved."""
        return self._root / series / VOLUME

    def instances(self, series: str) -> Path:
        """Where its DICOM files lie."""
        return self._root / series / INSTANCES

    def retrieve(self, study: str, series: str, *, patience: float = PATIENCE_S) -> Path:
        """The volume's path, once it is there.

        Raises:
            ArchiveAway, NotFound: from the archive; nothing half is kept.
            Unreadable, TooLarge: if the series is no volume.
            Busy: when it takes longer than `patience`, or too many wait; it goes on, so ask again.
        """
        if self.path(series).exists():
            os.utime(self._root / series)
            return self.path(series)
        if not self._places.acquire(blocking=False):
            raise Busy("too many wait for the DICOM archive; try again in a second")
        try:
            self._begun(study, series).result(patience)
        except Late:
            raise Busy("the DICOM archive is still sending the series; try again in a second") from None
        finally:
            self._places.release()
        return self.path(series)

    def _begun(self, study: str, series: str) -> Future[None]:
        with self._lock:
            if series not in self._under_way:
                begun = self._under_way[series] = self._pool.submit(self._retrieve, study, series)
                begun.add_done_callback(lambda _: self._under_way.pop(series, None))
            else:
                begun = self._under_way[series]
            return begun

    def _retrieve(self, study: str, series: str) -> None:
        if self.path(series).exists():
            return
        if self.instances(series).exists():  # which made no volume
            self._convert(dicom.stack(self.instances(series)), self._root / series)
        else:
            part = self._root / f".{uuid.uuid4().hex}"
            try:
                parsed = self._write(study, series, part / INSTANCES)
                try:
                    self._convert(dicom.stacked_up(piece for one in parsed for piece in one.result()), part)
                finally:  # what is no volume is not retrieved again
                    part.rename(self._root / series)
            finally:
                shutil.rmtree(part, ignore_errors=True)
        self._make_room(series)

    def _write(self, study: str, series: str, target: Path) -> list[Future[list[dicom.Slice]]]:
        """Every instance of the series as a file, or ArchiveAway; the slices of each.

        The disk writes, headers are parsed, and the archive is asked for its list, while it sends the next.
        """
        target.mkdir(parents=True)
        size = 0
        with ThreadPoolExecutor(SYNCS) as pool:
            listed = pool.submit(self._pacs.instances, study, series)
            came: set[str] = set()
            written: list[Future[None]] = []
            parsed: list[Future[list[dicom.Slice]]] = []
            for instance, data in self._pacs.retrieve(study, series):
                came.add(str(instance.get("SOPInstanceUID")))
                size += len(data)
                if size > self._max_volume:
                    raise TooLarge(f"the series has more than {self._max_volume} bytes (max_volume)")
                file = target / f"{len(written)}.dcm"
                written.append(pool.submit(_keep, file, data))
                if len(written) > AHEAD:  # no more of the series than that is held in memory
                    written[-1 - AHEAD].result()
                parsed.append(pool.submit(dicom.slices_of, instance, file))
            wanted = listed.result()
            if came - wanted or len(written) > len(came):
                raise ArchiveAway("the DICOM archive sends instances that it does not list")
            if wanted - came:
                missing = len(wanted - came)
                raise ArchiveAway(f"the DICOM archive broke off: {missing} instances of the series are missing")
            for one in written:
                one.result()
        sync(target)
        return parsed

    def _convert(self, slices: list[dicom.Slice], home: Path) -> None:
        """The volume of these slices, in the series' folder."""
        volume = dicom.volume_of(slices, max_bytes=self._max_volume)
        part = home / f".{VOLUME[:-4]}.part.nii"
        nifti.write_volume(volume, part)
        sync(part)
        part.rename(home / VOLUME)

    def _make_room(self, newest: str) -> None:
        """Throw away what was not used for longest, down to the bytes allowed."""
        folders = [path for path in self._root.iterdir() if path.is_dir() and not path.name.startswith(".")]
        sizes = {path: sum(file.stat().st_size for file in path.rglob("*")) for path in folders}
        used = {path: path.stat().st_mtime for path in folders}
        total = sum(sizes.values())
        for path in sorted(folders, key=used.__getitem__):
            if total <= self._most:
                return
            if path.name != newest and time.time() - used[path] > GRACE_S:
                gone = self._root / f".{uuid.uuid4().hex}"
                path.rename(gone)
                delete(gone)
                total -= sizes[path]
        if total > self._most:
            log.warning("the cache of series is over its %d bytes, as all of them were in use lately", self._most)


def _keep(file: Path, data: bytes) -> None:
    file.write_bytes(data)
    sync(file)
