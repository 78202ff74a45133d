"""Open images of a replica: decoded volumes, and volumes prepared for a model, as caches bounded in bytes.

Each is made once, however many calls wait for it, in the io threads. All methods belong to one event loop.
"""

from __future__ import annotations

from collections.abc import Awaitable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from rayapp.datastore.interfaces import ImageRecord
from rayapp.errors import RayappError, TooLarge, Unreadable
from rayapp.imaging.detached import DETACHED
from rayapp.imaging.reader import EXTENSIONS, data_file, read_volume
from rayapp.imaging.volume import Volume
from rayapp.inference.infer_task import InferTask
from rayapp.serving.cache import ByteCache, Sized
from rayapp.serving.executors import Executors

FILES = 10_000
"""Images whose file is remembered, so that the datastore need not be asked for it again."""


class Images(Protocol):
    """The part of the datastore that it needs, asynchronously."""

    def image(self, image_id: str) -> Awaitable[ImageRecord]:
        """See `rayapp.datastore.interfaces.ImageStore`."""

    def quarantine(self, image_id: str, reason: str) -> Awaitable[None]:
        """See `rayapp.datastore.interfaces.WorklistStore`."""


@dataclass(frozen=True, kw_only=True)
class ImageFile:
    """An image's file, or folder of DICOM files, as it is now; `ext` is "" where masks are not written as the image."""

    key: str
    path: Path
    ext: str
    mtime_ns: int
    size: int
    inode: int

    @classmethod
    def of(cls, key: str, path: Path, ext: str) -> ImageFile:
        """The file as it is; a header with its voxels beside it. Raises FileNotFoundError, Unreadable."""
        status = path.stat()
        voxels = data_file(path) if ext in DETACHED else None
        newest = status if voxels is None else max(status, voxels.stat(), key=lambda each: each.st_mtime_ns)
        size = status.st_size + (0 if voxels is None else voxels.stat().st_size)
        return cls(key=key, path=path, ext=ext, mtime_ns=newest.st_mtime_ns, size=size, inode=newest.st_ino)


@dataclass(frozen=True, kw_only=True)
class OpenImage:
    """A decoded volume and the file that it was decoded from. Caches are keyed by that: after a file was replaced, no
    voxels of the old one can be shown."""

    file: ImageFile
    volume: Volume

    @property
    def nbytes(self) -> int:
        """Bytes of the voxels."""
        return self.volume.nbytes


class OpenImages:
    """The images that a replica has open.

    Args:
        images: the datastore.
        executors: threads that decode and prepare.
        capacity: bytes of the machine's memory, half for volumes and half for prepared ones.
        prepared: bytes of prepared volumes, at most: on a GPU they are in its memory; None to leave it at that.
        max_volume: bytes that one decoded volume may have.
    """

    def __init__(
        self, *, images: Images, executors: Executors, capacity: int, max_volume: int, prepared: int | None = None
    ) -> None:
        self._images = images
        self._executors = executors
        self._max_volume = max_volume
        self._opened: ByteCache[OpenImage] = ByteCache(capacity // 2)
        self._prepared: ByteCache[Sized] = ByteCache(min(capacity // 2, capacity if prepared is None else prepared))
        self._files: dict[str, tuple[Path, str]] = {}

    async def open(self, key: str, path: Path | None = None, hits: dict[str, bool] | None = None) -> OpenImage:
        """The image of that key; without `path` it is the datastore's. `hits` is told if it was open already.

        An image of the datastore that cannot be read is quarantined there.

        Raises:
            NotFound: there is no such image.
            Unreadable: it cannot be decoded.
            TooLarge: it has more bytes than allowed.
        """
        try:
            file = await self._file(key, path)
            if hits is not None:
                hits["image"] = file in self._opened
            return await self._decoded(file)
        except (Unreadable, TooLarge) as error:
            if path is None:
                with suppress(RayappError):  # the reader's error is the one to tell
                    await self._images.quarantine(key, error.detail)
            raise

    async def _decoded(self, file: ImageFile) -> OpenImage:
        def read() -> OpenImage:
            return OpenImage(file=file, volume=read_volume(file.path, max_bytes=self._max_volume))

        return await self._opened.get(file, lambda: self._executors.io(read))

    async def _file(self, key: str, path: Path | None) -> ImageFile:
        """The image's file as it is now. The datastore is asked only the first time, and for a file that went away."""
        if path is not None:
            ext = next((ext for ext in EXTENSIONS if path.name.endswith(ext)), "")
            return await self._executors.io(ImageFile.of, key, path, ext)
        known = self._files.get(key)
        if known is not None:
            with suppress(FileNotFoundError):
                return await self._executors.io(ImageFile.of, key, *known)
        record = await self._images.image(key)
        if len(self._files) >= FILES:
            self._files.clear()
        self._files[key] = record.path, record.ext
        return await self._executors.io(ImageFile.of, key, record.path, record.ext)

    def forget_prepared(self) -> None:
        """Drop all prepared volumes, as of code that is no longer served."""
        self._prepared.clear()

    async def prepared(
        self, model: str, task: InferTask, image: OpenImage, hits: dict[str, bool] | None = None
    ) -> Sized:
        """The image as this version of the model takes it; `hits` says if it was there. Raises what the task raises."""

        def prepare() -> Sized:
            task.load()
            return task.prepare(image.volume)

        key = (image.file, model, task.version)
        if hits is not None:
            hits["prepared"] = key in self._prepared
        return await self._prepared.get(key, lambda: self._executors.io(prepare))

    async def recent(self, model: str, version: str, count: int) -> list[OpenImage]:
        """Those of the `count` images used last that are prepared for that version of the model, oldest first."""
        files = [file for file, *of in self._prepared.newest(count) if of == [model, version]]
        return [await self._decoded(file) for file in files]
