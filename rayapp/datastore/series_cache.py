"""SeriesCache: the archive's series on local disk; retrieved once, complete, and bounded in bytes.

A series is a folder `<SeriesInstanceUID>` with `instances/`, the DICOM files as received, and `volume.nii`, the same
voxels on the same grid, which every client can read. If the series holds several volumes, each is an image, and has
links to its instances in `parts/<image id>/instances/`, and its volume beside them; that of the image whose id is the
SeriesInstanceUID stays where it is. A series appears under its name once all of it is on disk, and is dropped when the
archive announces another number of instances, because it is still arriving or was changed there. Thread-safe;
concurrent requests for a series share one retrieval (single flight).
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
from collections.abc import Iterable, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path

from pydicom.dataset import FileDataset

from rayapp.datastore.bounded_wait import BoundedWait
from rayapp.datastore.pacs import PacsClient
from rayapp.datastore.revisions import delete, link_or_copy
from rayapp.datastore.series_facts import FACTS, SeriesFacts
from rayapp.datastore.series_parts import SeriesImages, series_of
from rayapp.errors import ArchiveAway, NotFound, TooLarge, Unreadable
from rayapp.files.durable import replacing, sync
from rayapp.imaging import dicom_series, nifti
from rayapp.imaging.dicom_parts import SliceKey

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
PARTS = "parts"
ANNOUNCED = "announced"
"""File with the number of instances according to the archive, if the archive repeatedly sends another number."""

log = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True)
class _Received:
    """One instance on disk: the file, its UID, its slices, and what distinguishes it within its series."""

    file: Path
    uid: str
    slices: list[dicom_series.Slice]
    key: SliceKey | None

    @classmethod
    def of(cls, instance: FileDataset, file: Path) -> _Received:
        """Parse an instance. Raises Unreadable."""
        return cls(
            file=file,
            uid=str(instance.get("SOPInstanceUID")),
            slices=dicom_series.slices_of(instance, file),
            key=SliceKey.of(instance),
        )


class SeriesCache:
    """The series under `root`, up to `max_bytes` bytes."""

    def __init__(
        self,
        root: Path,
        pacs: PacsClient,
        images: SeriesImages,
        *,
        max_bytes: int,
        max_volume: int,
        waits: BoundedWait | None = None,
    ) -> None:
        """Open the cache.

        Args:
            root: its folder.
            pacs: the archive.
            images: the images of each series, which outlast the cache.
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
        self._images = images
        for leftover in root.glob(".*"):  # of a crash
            delete(leftover)
        self._pool = ThreadPoolExecutor(RETRIEVALS, thread_name_prefix="retrieve")

    def close(self) -> None:
        """Cancel the queued retrievals."""
        self._pool.shutdown(wait=False, cancel_futures=True)

    def image_ids(self, series: str) -> tuple[str, ...]:
        """Ids of the series' images: its UID until it turns out to hold several volumes."""
        return self._images.of(series)

    def path(self, image_id: str) -> Path:
        """Path of the image's volume, whether or not it has been retrieved."""
        return self._home(image_id) / VOLUME

    def instances(self, image_id: str) -> Path:
        """Path of the folder with its DICOM files."""
        series = self._root / series_of(image_id)
        part = series / PARTS / image_id / INSTANCES
        return part if part.exists() else series / INSTANCES

    def facts(self, image_id: str) -> SeriesFacts:
        """The facts from a retrieved image's headers; empty for one that has just been evicted. Raises Unreadable."""
        if facts := SeriesFacts.beside(self.path(image_id)):
            return facts
        try:  # retrieved by an earlier version, or evicted
            return SeriesFacts.of(dicom_series.read_slices(self.instances(image_id)))
        except FileNotFoundError:
            return SeriesFacts(frame_of_reference="", obstacle=None)

    def check_image(self, image_id: str) -> None:
        """Raise Unreadable if the id is that of a series whose volumes are images of their own."""
        images = self._images.of(series_of(image_id))
        if image_id == series_of(image_id) and image_id not in images:
            raise Unreadable(
                f"the series holds {len(images)} volumes, and each is an image of its own: open {', '.join(images)}"
            )

    def retrieve(self, study: str, image_id: str) -> Path:
        """Retrieve the image's series if needed, and return the path of the image's volume.

        Args:
            study: StudyInstanceUID.
            image_id: SeriesInstanceUID, or the id of a part of the series.

        Raises:
            ArchiveAway, NotFound: from the archive, or if it no longer has that part; a partial series is discarded.
            Unreadable, TooLarge: if the series is not a volume, or if it holds several.
            Busy: if it takes too long, or too many callers wait; the retrieval continues, so try again.
        """
        if not self._use(image_id):
            series = series_of(image_id)
            self._waits.result(lambda: self._retrieval(study, series), "the series is still being retrieved")
            self.check_image(image_id)
            if image_id not in self._images.of(series):
                raise NotFound("the series in the DICOM archive no longer has this part: refresh the list of images")
            if not self.path(image_id).exists() and self.instances(image_id).exists():
                # A part that is no volume does not keep the others from being retrieved.
                self._convert(dicom_series.read_slices(self.instances(image_id)), self._home(image_id))
        return self.path(image_id)

    def link(self, study: str, image_id: str, target: Path) -> None:
        """Hard-link the image's volume to a path that evictions do not touch; retrieve it if needed.

        Raises the errors of `retrieve`.
        """
        while not target.exists():
            self.retrieve(study, image_id)
            with self._folders, suppress(FileNotFoundError, FileExistsError):  # dropped, or linked, at this moment
                link_or_copy(self.path(image_id), target)

    def _home(self, image_id: str) -> Path:
        """The folder with the image's volume and facts."""
        series = series_of(image_id)
        return self._root / series if image_id == series else self._root / series / PARTS / image_id

    def _use(self, image_id: str) -> bool:
        """Mark the image's series as used; False if it must be retrieved."""
        with self._folders:
            if not self.path(image_id).exists():
                return False
            os.utime(self._root / series_of(image_id))
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

    def drop(self, series: Iterable[str]) -> None:
        """Drop these series; each is retrieved anew when it is needed."""
        for one in series:
            with self._folders:
                self._remove(self._root / one)

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
        if (self._root / series / INSTANCES).exists():  # retrieved before, but a volume could not be made
            if self._images.of(series) != (series,):
                return
            self._convert(dicom_series.read_slices(self._root / series / INSTANCES), self._root / series)
        else:
            part = self._root / f".{uuid.uuid4().hex}"
            try:
                parsed = self._write(study, series, part / INSTANCES)
                try:
                    self._make_volumes(series, [one.result() for one in parsed], part)
                finally:  # also if it is not a volume, so that it is not retrieved again
                    self._accept_repeated(series, part)
                    part.rename(self._root / series)
            finally:
                shutil.rmtree(part, ignore_errors=True)
        self._make_room(series)

    def _make_volumes(self, series: str, received: Sequence[_Received], home: Path) -> None:
        """Make a volume of each image of a series; see the module.

        Args:
            series: SeriesInstanceUID.
            received: all instances of the series.
            home: the folder that becomes the series'.

        Raises:
            Unreadable, TooLarge: if the series is one image, and not a volume. A part that is not is refused when it
                is opened.
        """
        pieces = {one.uid: one for one in received}
        images = self._images.assign(series, {one.uid: one.key for one in received if one.slices})
        if images.keys() == {series}:
            self._convert(_sorted(received), home)
            return
        for image_id, uids in images.items():
            folder = home / PARTS / image_id / INSTANCES
            folder.mkdir(parents=True)
            for uid in uids:
                file = pieces[uid].file
                (folder / file.name).symlink_to(Path("..", "..", "..", INSTANCES, file.name))
            sync(folder)
            with suppress(Unreadable, TooLarge):
                own = home if image_id == series else folder.parent
                self._convert(_sorted(pieces[uid] for uid in uids), own, instances=uids)

    def _accept_repeated(self, series: str, part: Path) -> None:
        """Accept the number of instances if the archive sent the same number before, although it announces another."""
        held, announced = self._dropped.pop(series, (None, 0))
        if held is not None and held == _instances_in(part):
            (part / ANNOUNCED).write_text(str(announced))

    def _write(self, study: str, series: str, target: Path) -> list[Future[_Received]]:
        """Write all instances of the series to files.

        Writing, parsing headers and listing the series overlap with the transfer. Raises ArchiveAway if any instance is
        missing.
        """
        target.mkdir(parents=True)
        size = 0
        with ThreadPoolExecutor(SYNCS) as pool:
            listed = pool.submit(self._pacs.instances, study, series)
            received: set[str] = set()
            written: list[Future[None]] = []
            parsed: list[Future[_Received]] = []
            for instance, data in self._pacs.retrieve(study, series):
                received.add(str(instance.get("SOPInstanceUID")))
                size += len(data)
                if size > self._max_volume:
                    raise TooLarge(f"the series has more than {self._max_volume} bytes: raise max_volume to open it")
                file = target / f"{len(written)}.dcm"
                written.append(pool.submit(_keep, file, data))
                if len(written) > AHEAD:  # bounds the part of the series held in memory
                    written[-1 - AHEAD].result()
                parsed.append(pool.submit(_Received.of, instance, file))
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

    def _convert(self, slices: list[dicom_series.Slice], home: Path, *, instances: Sequence[str] = ()) -> None:
        """Write the volume of these slices, and their facts, into the image's folder."""
        volume = dicom_series.volume_from_slices(slices, max_bytes=self._max_volume)
        with replacing(home / FACTS) as staged:
            staged.write_text(json.dumps(asdict(SeriesFacts.of(slices, instances))))
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


def _sorted(received: Iterable[_Received]) -> list[dicom_series.Slice]:
    return dicom_series.sort_slices(piece for one in received for piece in one.slices)


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
    """Size in bytes, of a link its own; 0 for a file that is just being replaced by its final name."""
    try:
        return file.lstat().st_size
    except FileNotFoundError:
        return 0


def _keep(file: Path, data: bytes) -> None:
    file.write_bytes(data)
    sync(file)
