"""OpenImages: decoded volumes, and volumes prepared for a model, as caches bounded in bytes.

Each is made once, however many ask for it at the same time, in the io lane. All methods belong to one event loop.
"""

from __future__ import annotations

import os
from collections.abc import Awaitable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from rayapp.datastore.interfaces import ImageRecord
from rayapp.errors import RayappError, TooLarge, Unreadable
from rayapp.imaging.reader import read_volume
from rayapp.imaging.volume import Volume
from rayapp.inference.infer_task import InferTask
from rayapp.serving.cache import ByteCache, Sized
from rayapp.serving.executors import Executors

PATHS = 10_000
"""Images whose file is remembered."""


class Images(Protocol):
    """What it needs of the datastore, asynchronously."""

    def image(self, image_id: str) -> Awaitable[ImageRecord]:
        """Where the image is. Raises NotFound, Unreadable."""

    def quarantine(self, image_id: str, reason: str) -> Awaitable[None]:
        """Let nobody get an image to label that cannot be opened."""


@dataclass(frozen=True, kw_only=True)
class OpenImage:
    """A decoded volume. The file's identity is part of its origin: a replaced file can never show another patient's
    voxels."""

    origin: tuple[Any, ...]
    volume: Volume

    @property
    def nbytes(self) -> int:
        """Bytes of the voxels."""
        return self.volume.nbytes


class OpenImages:
    """The images that a replica has at hand."""

    def __init__(self, *, images: Images, lanes: Executors, capacity: int, max_volume: int) -> None:
        """`capacity` is in bytes, half for volumes and half for prepared ones; `max_volume` of one volume."""
        self._images = images
        self._lanes = lanes
        self._max_volume = max_volume
        self._opened: ByteCache[OpenImage] = ByteCache(capacity // 2)
        self._prepared: ByteCache[Sized] = ByteCache(capacity // 2)
        self._paths: dict[str, Path] = {}

    async def open(self, key: str, path: Path | None = None) -> OpenImage:
        """The image of that key, in the file `path` if it is not the datastore's.

        Raises NotFound, Unreadable, TooLarge. The datastore is told of an image of its own that cannot be opened.
        """
        try:
            found, stamp = await self._file(key, path)
            return await self._decoded((key, str(found), stamp.st_mtime_ns, stamp.st_size, stamp.st_ino))
        except (Unreadable, TooLarge) as error:
            if path is None:
                with suppress(RayappError):  # the reader's words count
                    await self._images.quarantine(key, error.detail)
            raise

    async def _decoded(self, origin: tuple[Any, ...]) -> OpenImage:
        def read() -> OpenImage:
            return OpenImage(origin=origin, volume=read_volume(Path(origin[1]), max_bytes=self._max_volume))

        return await self._opened.get(origin, lambda: self._lanes.io(read))

    async def _file(self, key: str, path: Path | None) -> tuple[Path, os.stat_result]:
        """The image's file and what it is now. The datastore is asked again only where it was not before."""
        known = path or self._paths.get(key)
        if known is not None:
            try:
                return known, await self._lanes.io(known.stat)
            except FileNotFoundError:
                if path is not None:
                    raise
        found = (await self._images.image(key)).path
        if len(self._paths) >= PATHS:
            self._paths.clear()
        self._paths[key] = found
        return found, await self._lanes.io(found.stat)

    async def prepared(self, model: str, task: InferTask, image: OpenImage) -> Sized:
        """The image as this version of the model takes it. Raises what the task raises."""

        def prepare() -> Sized:
            task.load()
            return task.prepare(image.volume)

        return await self._prepared.get((*image.origin, model, task.version), lambda: self._lanes.io(prepare))

    async def recent(self, model: str, version: str, count: int) -> list[OpenImage]:
        """Of the `count` used last, the images prepared for that version of the model, the very last one at the end."""
        keys = [key for key in self._prepared.newest(count) if key[-2:] == (model, version)]
        return [await self._decoded(key[:-2]) for key in keys]
