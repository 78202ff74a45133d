"""Checks of uploaded files, before anything is acknowledged. Decoding takes a core, so few run at a time."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Callable, Mapping
from pathlib import Path
from typing import Any, TypeVar

from deployments.forms import Stage
from deployments.services import Services
from rayapp.datastore.interfaces import Author, Info
from rayapp.errors import Busy
from rayapp.imaging import nrrd
from rayapp.imaging.placement import RAW, on_grid, pad_masks_to_grid, raw_label_map
from rayapp.imaging.reader import read_grid, read_segmentation, read_volume, split_ext
from rayapp.imaging.writer import encode_segmentation
from rayapp.users import User

CHECKS = 2
"""Concurrent checks; decoding is heavy, and clicks come first."""
MAX_WAITING = 32

T = TypeVar("T")


class Checks:
    """Runs checks of uploads, a few at a time, with a bounded queue. Belongs to one event loop."""

    def __init__(self) -> None:
        self._places = asyncio.Semaphore(CHECKS)
        self._inside = 0

    @property
    def inside(self) -> int:
        """Checks that run or wait."""
        return self._inside

    @contextlib.asynccontextmanager
    async def place(self) -> AsyncIterator[None]:
        """Hold one of the places while the block runs. Raises Busy when too many wait already."""
        if self._inside >= CHECKS + MAX_WAITING:
            raise Busy("too many uploads are being checked; retry in 1 s")
        self._inside += 1
        try:
            async with self._places:
                yield
        finally:
            self._inside -= 1

    async def run(self, function: Callable[..., T], /, *args: Any) -> T:
        """Call `function` in a thread, once there is a place. Raises Busy when too many wait already."""
        async with self.place():
            return await asyncio.to_thread(function, *args)


def to_store(services: Services, *, raw: bool = False) -> Stage:
    """Stage a form's image and label files on the datastore's own file system, under new names.

    A file whose extension is not read here is refused before a byte is written; `raw` allows `.bin`.
    """

    async def stage(filename: str) -> Path:
        return await services.datastore.stage(extension(filename, raw=raw))

    return stage


def extension(filename: str, *, raw: bool = False) -> str:
    """Extension of an uploaded file's name. Raises Unreadable if the format is not supported."""
    return RAW if raw and filename.lower().endswith(RAW) else split_ext(filename)[1]


def author_of(user: User, params: Mapping[str, Any]) -> Author:
    """The signed-in user, and the client program's id from the request."""
    client_id = params.get("client_id")
    return Author(user=user.name, client_id=None if client_id is None else str(client_id)[:200])


def info_of(params: Mapping[str, Any]) -> Info:
    """Keys that a client may write into an info: all but those that the server maintains."""
    return {key: value for key, value in params.items() if key not in ("ts", "name", "user")}


def check_image(path: Path, max_bytes: int) -> None:
    """Check that the image can be decoded completely. Raises Unreadable, TooLarge."""
    read_volume(path, max_bytes=max_bytes)


def check_label(path: Path, image: Path, max_bytes: int) -> None:
    """Check that a label map lies on its image's voxel grid.

    3D Slicer crops a `.seg.nrrd` to its segments: the file is rewritten on the whole grid, with all of each segment
    where segments overlap.

    Args:
        path: the label map.
        image: the image's file, or folder of DICOM files.
        max_bytes: the most that the decoded label map may have.

    Raises:
        Unreadable: the label map cannot be decoded completely.
        GridMismatch: it lies on another grid.
    """
    label, ext, grid = read_segmentation(path, max_bytes=max_bytes), split_ext(path.name)[1], read_grid(image)
    placed = on_grid(label, grid, ext)
    if placed is not label:
        masks = nrrd.read_masks(path, max_bytes=max_bytes)  # only a .seg.nrrd is placed
        if masks is not None and masks.overlap:
            path.write_bytes(nrrd.encode_masks(pad_masks_to_grid(masks, grid)))
        else:
            path.write_bytes(encode_segmentation(placed, ext))


def label_from_raw(path: Path, image: Path, target: Path) -> None:
    """Convert raw uint8 voxels, i fastest (OHIF 2), to NIfTI on the image's grid. Raises GridMismatch."""
    target.write_bytes(encode_segmentation(raw_label_map(path, read_grid(image)), ".nii.gz"))
