"""Uploads: parsed, written to the store's own file system, and checked before anything is acknowledged."""

from __future__ import annotations

import asyncio
import contextlib
import json
import shutil
from collections.abc import AsyncIterator, Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
from fastapi import UploadFile

from deployments.services import Services
from rayapp.datastore.protocol import Author, ImageRecord, Info
from rayapp.errors import BadRequest, Busy, GridMismatch, Unreadable
from rayapp.geometry import same_grid
from rayapp.imaging.reader import read_grid, read_segmentation, read_volume, split_ext
from rayapp.imaging.volume import Grid, Segmentation
from rayapp.imaging.writer import encode_segmentation
from rayapp.users import User

CHECKS = 2
"""Files decoded at once for checking; decoding is heavy and clicks come first."""
MAX_WAITING = 32

T = TypeVar("T")
_pool = ThreadPoolExecutor(CHECKS, thread_name_prefix="check")
_waiting = 0


def json_object(text: str | None, what: str) -> Info:
    """A form field or body that must be a JSON object. Raises BadRequest naming it."""
    try:
        value = json.loads(text or "{}")
    except (ValueError, RecursionError) as error:
        raise BadRequest(f"{what} is not JSON: {error}") from None
    if not isinstance(value, dict):
        raise BadRequest(f"{what} must be a JSON object, not {type(value).__name__}")
    return value


def author_of(user: User, params: Info) -> Author:
    """The signed-in user, with the client program's id from the request."""
    client_id = params.get("client_id")
    return Author(user=user.name, client_id=None if client_id is None else str(client_id)[:200])


@contextlib.asynccontextmanager
async def staged(services: Services, upload: UploadFile, ext: str) -> AsyncIterator[Path]:
    """The upload as a file on the store's file system; removed at the end unless the store has taken it over."""
    path: Path = await services.datastore.stage(ext)
    try:
        await asyncio.to_thread(_copy, upload, path)
        yield path
    finally:
        await asyncio.to_thread(path.unlink, missing_ok=True)


def _copy(upload: UploadFile, path: Path) -> None:
    with path.open("wb") as file:
        shutil.copyfileobj(upload.file, file, 1 << 20)


async def checked(function: Callable[..., T], /, *args: Any) -> T:
    """Run a check that decodes voxels, a few at a time. Raises Busy when too many wait."""
    global _waiting
    if _waiting >= MAX_WAITING:
        raise Busy("too many uploads are being checked; try again in a second")
    _waiting += 1
    try:
        return await asyncio.get_running_loop().run_in_executor(_pool, function, *args)
    finally:
        _waiting -= 1


def extension(filename: str | None, *, raw: bool = False) -> str:
    """The extension of an uploaded file's name, which may be a whole client path. `raw` allows `.bin`."""
    name = filename or ""
    if raw and name.lower().endswith(".bin"):
        return ".bin"
    return split_ext(name)[1]


def check_image(path: Path, max_bytes: int) -> None:
    """Raises Unreadable unless the whole image can be read."""
    read_volume(path, max_bytes=max_bytes)


def check_label(path: Path, image: Path, max_bytes: int) -> None:
    """Raises Unreadable unless it is a whole label map, GridMismatch unless it lies on the image's grid."""
    label, grid = read_segmentation(path, max_bytes=max_bytes), read_grid(image)
    if not same_grid(label.shape, label.affine, grid.shape, grid.affine):
        where = "but lies elsewhere in space" if label.shape == grid.shape else f"not {_times(label.shape)}"
        raise GridMismatch(f"the label must lie on its image's grid of {_times(grid.shape)} voxels, {where}")


def _times(shape: tuple[int, int, int]) -> str:
    return " x ".join(map(str, shape))


def label_from_raw(path: Path, image: Path, target: Path) -> None:
    """Turn raw uint8 voxels, i fastest (OHIF 2), into a NIfTI on the image's grid. Raises GridMismatch."""
    grid: Grid = read_grid(image)
    voxels = np.fromfile(path, np.uint8)
    if voxels.size != grid.shape[0] * grid.shape[1] * grid.shape[2]:
        raise GridMismatch(f"the label must have {_times(grid.shape)} voxels, not {voxels.size}")
    mask = Segmentation(array=voxels.reshape(grid.shape, order="F"), affine=grid.affine)
    target.write_bytes(encode_segmentation(mask, ".nii.gz"))


def image_name(filename: str | None) -> str:
    """The image id of an uploaded file that came without one."""
    try:
        return split_ext(filename or "")[0]
    except Unreadable:
        raise BadRequest(f"name the image: no id in the query and none in the file's name {filename!r}") from None


def is_folder(record: ImageRecord) -> bool:
    """True for an image that is a folder of DICOM files."""
    return record.path.is_dir()
