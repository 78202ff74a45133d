"""NIfTI-1 and NIfTI-2, single file, plain or gzipped: read volumes and grids, write label maps.

The affine is the sform when its code is set, else the qform, else the pixdim alone, as the standard
(https://nifti.nimh.nih.gov/nifti-1) and ITK have it.
"""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import numpy.typing as npt
from nibabel.nifti1 import Nifti1Header
from nibabel.nifti2 import Nifti2Header
from nibabel.spatialimages import HeaderDataError
from nibabel.wrapstruct import WrapStructError

from rayapp.errors import Unreadable
from rayapp.geometry import Affine, is_sane
from rayapp.imaging.gzip import GzipReader, check_size
from rayapp.imaging.volume import Grid, Segmentation, Volume

_NIFTI1, _NIFTI2 = 348, 540
_MAX_HEADER = 1 << 24


class _Plain:
    """The same two methods as GzipReader, on a plain file."""

    def __init__(self, file: BinaryIO) -> None:
        self._file = file

    def __enter__(self) -> _Plain:
        return self

    def __exit__(self, *_: object) -> None:
        self._file.close()

    def read(self, size: int) -> bytes:
        data = self._file.read(size)
        if len(data) < size:
            raise Unreadable(f"the file is truncated: {len(data)} of {size} bytes are there")
        return data


def _open(path: Path) -> _Plain | GzipReader:
    with path.open("rb") as file:
        packed = file.read(2) == b"\x1f\x8b"
    return GzipReader(path) if packed else _Plain(path.open("rb"))


def _header(stream: _Plain | GzipReader) -> tuple[Any, int]:
    """The header and how many bytes were read for it."""
    start = stream.read(_NIFTI1)
    size = {_NIFTI1.to_bytes(4, e): _NIFTI1 for e in ("little", "big")} | {  # type: ignore[arg-type]
        _NIFTI2.to_bytes(4, e): _NIFTI2
        for e in ("little", "big")  # type: ignore[arg-type]
    }
    length = size.get(start[:4])
    if length is None:
        raise Unreadable("not a NIfTI file: the header does not start with 348 or 540")
    start += stream.read(length - len(start))
    kind = Nifti1Header if length == _NIFTI1 else Nifti2Header
    try:
        header = kind(start, check=False)
    except (WrapStructError, HeaderDataError, ValueError) as error:
        raise Unreadable(f"the NIfTI header is damaged: {error}") from error
    return header, length


def _layout(header: Any) -> tuple[tuple[int, int, int], int, np.dtype[Any]]:
    """Shape along i, j, k, number of channels, and the voxels' type."""
    dims = [int(n) for n in header["dim"]]
    if not 2 <= dims[0] <= 7 or any(n < 1 for n in dims[1 : dims[0] + 1]):
        raise Unreadable(f"the NIfTI header's dimensions are not sane: {dims}")
    sizes = [*dims[1 : dims[0] + 1], 1, 1][: max(3, dims[0])]
    try:
        dtype = header.get_data_dtype()
    except HeaderDataError as error:
        raise Unreadable(f"the NIfTI header's data type is unknown: {error}") from error
    if dtype.kind == "c" or dtype.itemsize == 0:
        raise Unreadable(f"voxels of type {dtype} cannot be shown")
    return (sizes[0], sizes[1], sizes[2]), math.prod(sizes[3:]), dtype


def _affine(header: Any) -> Affine:
    try:
        if header["sform_code"] > 0:
            affine = header.get_sform()
        elif header["qform_code"] > 0:
            affine = header.get_qform()
        else:
            # No code set: ITK takes the voxel sizes, with i and j running along LPS x and y.
            affine = np.diag([*(-header["pixdim"][1:3]), header["pixdim"][3], 1.0])
    except (HeaderDataError, ValueError, np.linalg.LinAlgError) as error:
        raise Unreadable(f"the NIfTI header's orientation is damaged: {error}") from error
    affine = np.asarray(affine, np.float64)
    if not is_sane(affine):
        raise Unreadable("the NIfTI header's affine is not finite or not invertible")
    return affine


def read_grid(path: Path) -> Grid:
    """The grid alone: reads the header only."""
    with _open(path) as stream:
        header, _ = _header(stream)
    shape, _, _ = _layout(header)
    return Grid(shape=shape, affine=_affine(header))


def read_volume(path: Path, *, max_bytes: int) -> Volume:
    """The whole image. Raises Unreadable, TooLarge."""
    with _open(path) as stream:
        header, done = _header(stream)
        shape, channels, dtype = _layout(header)
        affine = _affine(header)
        count = math.prod(shape) * channels
        check_size(count * dtype.itemsize, max_bytes)
        offset = float(header["vox_offset"])
        if not done <= offset <= _MAX_HEADER:
            raise Unreadable(f"the NIfTI header's vox_offset is not sane: {offset}")
        stream.read(int(offset) - done)
        data = stream.read(count * dtype.itemsize)
    array = np.frombuffer(data, dtype).reshape((*shape, channels), order="F")
    return Volume(array=_scaled(_channels_first(array), header), affine=affine)


def _channels_first(array: npt.NDArray[Any]) -> npt.NDArray[Any]:
    if array.dtype.fields:  # RGB and RGBA: one channel per colour
        array = np.concatenate([array[name] for name in array.dtype.fields], axis=-1)
    if not array.dtype.isnative:
        array = array.astype(array.dtype.newbyteorder("="))
    return np.moveaxis(array, -1, 0)


def _scaled(array: npt.NDArray[Any], header: Any) -> npt.NDArray[Any]:
    slope, inter = float(header["scl_slope"]), float(header["scl_inter"])
    if not math.isfinite(slope) or slope == 0 or (slope == 1 and inter == 0):
        return array
    scaled: npt.NDArray[Any] = array * np.float32(slope) + np.float32(inter if math.isfinite(inter) else 0)
    return scaled


def encode(segmentation: Segmentation, array: npt.NDArray[Any]) -> bytes:
    """A single-file NIfTI-1 of a label map with sform and qform set; `array` is the voxels in the type to write."""
    header = Nifti1Header(endianness="<")
    header.set_data_shape(segmentation.shape)
    header.set_data_dtype(array.dtype)
    header.set_qform(segmentation.affine, code=1, strip_shears=True)
    header.set_sform(segmentation.affine, code=1)
    header.set_xyzt_units("mm")
    header["vox_offset"] = 352
    header["magic"] = b"n+1"
    return bytes(header.binaryblock) + b"\0\0\0\0" + array.tobytes(order="F")
