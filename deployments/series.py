"""The images of a studies folder as DICOM series, for viewers: which UID is which image, and the series themselves.

`SeriesStore` belongs to one gateway replica and its event loop; the series lie in the workspace, where all replicas
find them. They are made anew when the image's file changes or when they were swept for room.
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
"""Bytes of series that are kept; beyond, those not opened for longest go."""
FRESH_S = 2.0
"""Seconds for which a listing of the images is good."""
_PAGE = 10_000
_REMEMBERED = 64
"""Series whose description is held in memory."""


@dataclass(frozen=True, kw_only=True)
class Series:
    """A series that is there: `folder` holds its voxels; `numbers` are its slices by UID."""

    stack: Stack
    folder: Path
    numbers: dict[str, int]

    @property
    def voxels(self) -> Path:
        """The image on the series' grid, as a file that can be read like any image."""
        return self.folder / dicom_instances.VOXELS


class SeriesStore:
    """Finds images by UID, and makes their series."""

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
        """All images' ids, ascending; none of an archive, which shows its series itself."""
        if self._services.settings.dicomweb.url:
            return []
        async with self._listing:
            if time.monotonic() - self._listed > FRESH_S:
                found: list[str] = []
                while page := await self._services.datastore.image_ids(after=found[-1] if found else None, limit=_PAGE):
                    found += page
                await asyncio.to_thread(self._learn, found)
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
            raise NotFound("no study or series of that UID")
        return await self._services.datastore.image(image_id)

    async def source(self, name: str) -> tuple[str, Path | None]:
        """What is segmented for a client that names an image, or its series: the key of `InferCall`, and its file.

        A client that has the series counts its slices; where these are not the image's, it gets the series itself.
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
        """The image's series, made if it is not there yet. Raises Unreadable, TooLarge, Busy."""
        folder = await asyncio.to_thread(self._place, record)
        known = self._known.get(folder)
        if known is not None:
            self._known.move_to_end(folder)
            return known
        made = self._making.get(folder)
        if made is None:
            made = self._making[folder] = asyncio.create_task(self._checks.run(self._series, record, folder))
            made.add_done_callback(lambda _: self._making.pop(folder, None))
        series = self._known[folder] = await asyncio.shield(made)
        if len(self._known) > _REMEMBERED:
            self._known.popitem(last=False)
        return series

    async def frame(self, record: ImageRecord, number: int) -> bytes:
        """The pixels of a slice of the image's series, also when it was swept just now."""
        series = await self.series(record)
        try:
            return await asyncio.to_thread(dicom_instances.frame, series.folder, series.stack, number)
        except FileNotFoundError:
            self._known.pop(series.folder, None)
            series = await self.series(record)
            return await asyncio.to_thread(dicom_instances.frame, series.folder, series.stack, number)

    def _place(self, record: ImageRecord) -> Path:
        """Where the series of the image's file as it is now lies."""
        stamp = record.path.stat()
        home = self._folder / uid_of("series", record.id)
        return home / f"{stamp.st_mtime_ns:x}-{stamp.st_size:x}-{stamp.st_ino:x}"

    def _series(self, record: ImageRecord, folder: Path) -> Series:
        home = folder.parent
        with contextlib.suppress(FileNotFoundError):
            found = _series_in(folder)
            os.utime(home)  # opened just now: the last to be swept
            return found
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
        """Make room: earlier states of the series that is made, and the series not opened for longest."""
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
