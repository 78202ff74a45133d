"""The images of a studies folder as DICOM series, for viewers.

`SeriesStore` maps UIDs to images and converts images to series. It belongs to one gateway replica and its event loop;
the series are cached in the workspace, which all replicas share. They are converted again after the image's file
changed, or after they were evicted.
"""

from __future__ import annotations

import asyncio
import bisect
import contextlib
import os
import shutil
import tempfile
import time
from collections import OrderedDict
from dataclasses import dataclass
from pathlib import Path

from deployments.services import Services
from deployments.uploads import Checks
from rayapp.datastore.interfaces import ImageRecord
from rayapp.errors import NotFound
from rayapp.imaging import dicom_instances
from rayapp.imaging.dicom_instances import ROOT, Stack, uid_of
from rayapp.imaging.reader import read_volume

ROOM = 8 << 30
"""Bytes of cached series; beyond, the least recently opened ones are evicted."""
FRESH_S = 2.0
"""Seconds for which a listing of the images is reused."""
_PAGE = 10_000
_REMEMBERED = 64
"""Series whose headers are held in memory."""


@dataclass(frozen=True, kw_only=True)
class Series:
    """A converted series: `folder` holds its voxels; `numbers` maps SOP instance UIDs to slice numbers."""

    stack: Stack
    folder: Path
    numbers: dict[str, int]

    @property
    def voxels(self) -> Path:
        """The image on the series' grid, as a file that can be read like any image."""
        return self.folder / dicom_instances.VOXELS


class SeriesStore:
    """Finds images by UID and converts them to DICOM series."""

    def __init__(self, services: Services, checks: Checks, *, room: int = ROOM) -> None:
        self._services = services
        self._checks = checks
        self._room = room
        self._folder = services.settings.workspace / "viewer"
        self._ids: list[str] = []
        self._by_uid: dict[str, str] = {}
        self._listed = -FRESH_S
        self._listing = asyncio.Lock()
        self._known: OrderedDict[Path, Series] = OrderedDict()
        self._making: dict[Path, asyncio.Task[Series]] = {}

    async def ids(self) -> list[str]:
        """Ids of all images, ascending; empty for an archive, which serves its series itself."""
        if self._services.settings.dicomweb.url:
            return []
        async with self._listing:
            if time.monotonic() - self._listed > FRESH_S:
                ids: list[str] = []
                while page := await self._services.datastore.image_ids(after=ids[-1] if ids else None, limit=_PAGE):
                    ids += page
                await asyncio.to_thread(self._learn, ids)
                self._listed = time.monotonic()
            return self._ids

    def _learn(self, ids: list[str]) -> None:
        known = self._ids
        for image_id in ids:
            at = bisect.bisect_left(known, image_id)
            if at == len(known) or known[at] != image_id:
                self._by_uid[uid_of("study", image_id)] = self._by_uid[uid_of("series", image_id)] = image_id
        self._ids = ids

    async def image_of(self, uid: str) -> ImageRecord:
        """The image whose study or series has this UID. Raises NotFound."""
        if uid not in self._by_uid:
            await self.ids()
        image_id = self._by_uid.get(uid)
        if image_id is None:
            raise NotFound("no study or series has that UID")
        return await self._services.datastore.image(image_id)

    async def source(self, name: str) -> tuple[str, Path | None]:
        """The image to segment, by its id or by the UID of its series.

        A client that shows the series counts voxels on the series' grid. Where that is not the image's own (slices in
        reverse order), the series' voxels are segmented instead.

        Returns:
            `key` and `path` of an `InferCall`.
        """
        if not name.startswith(ROOT):
            return name, None
        try:
            record = await self.image_of(name)
        except NotFound:  # an archive may name its series like this
            return name, None
        series = await self.series(record)
        return (f"series/{name}", series.voxels) if series.stack.flipped else (record.id, None)

    async def series(self, record: ImageRecord) -> Series:
        """The image's series, converted if it is not cached. Raises Unreadable, TooLarge, Busy."""
        folder = await asyncio.to_thread(self._place, record)
        known = self._known.get(folder)
        if known is not None:
            self._known.move_to_end(folder)
            return known
        conversion = self._making.get(folder)
        if conversion is None:
            conversion = self._making[folder] = asyncio.create_task(self._checks.run(self._series, record, folder))
            conversion.add_done_callback(lambda _: self._making.pop(folder, None))
        series = self._known[folder] = await asyncio.shield(conversion)
        if len(self._known) > _REMEMBERED:
            self._known.popitem(last=False)
        return series

    async def frame(self, record: ImageRecord, number: int) -> bytes:
        """Pixels of a slice of the image's series, also if it was evicted just now."""
        series = await self.series(record)
        try:
            return await asyncio.to_thread(dicom_instances.frame, series.folder, series.stack, number)
        except FileNotFoundError:
            self._known.pop(series.folder, None)
            series = await self.series(record)
            return await asyncio.to_thread(dicom_instances.frame, series.folder, series.stack, number)

    def _place(self, record: ImageRecord) -> Path:
        """Cache folder of the series of the image's file in its present state."""
        stamp = record.path.stat()
        home = self._folder / uid_of("series", record.id)
        return home / f"{stamp.st_mtime_ns:x}-{stamp.st_size:x}-{stamp.st_ino:x}"

    def _series(self, record: ImageRecord, folder: Path) -> Series:
        home = folder.parent
        with contextlib.suppress(FileNotFoundError):
            series = _series_in(folder)
            os.utime(home)  # opened just now: the last to be swept
            return series
        self._sweep(home)
        volume = read_volume(record.path, max_bytes=self._services.settings.max_volume)
        stack, voxels = dicom_instances.stack_of(volume, record.id)
        home.mkdir(parents=True, exist_ok=True)
        part = Path(tempfile.mkdtemp(prefix=".part-", dir=home))
        try:
            dicom_instances.write(part, stack, voxels)
            with contextlib.suppress(OSError):  # another gateway was faster: its series is the same
                part.rename(folder)
        finally:
            shutil.rmtree(part, ignore_errors=True)
        return _series_in(folder)

    def _sweep(self, making: Path) -> None:
        """Evict earlier states of the series that is being converted, and the least recently opened series."""
        homes = sorted(self._folder.glob("*"), key=lambda home: home.stat().st_mtime, reverse=True)
        taken = 0
        for home in homes:
            taken += sum(file.stat().st_size for file in home.rglob("*") if file.is_file())
            if home == making or taken > self._room:
                shutil.rmtree(home, ignore_errors=True)


def _series_in(folder: Path) -> Series:
    stack = dicom_instances.read(folder)
    numbers = {uid_of("instance", stack.image_id, number): number for number in range(stack.shape[2])}
    return Series(stack=stack, folder=folder, numbers=numbers)
