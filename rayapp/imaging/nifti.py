"""NIfTI-1 and NIfTI-2, plain or gzipped, in either byte order, in one file or a pair of `.hdr` and `.img`: read volumes
and grids, write volumes and label maps in one file.

Follows https://nifti.nimh.nih.gov/nifti-1. Where the standard leaves a choice (two affines, no affine, units), the grid
is the one that ITK, and so 3D Slicer, uses: a mask must lie where the annotator sees the image.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import nibabel
import numpy as np
import numpy.typing as npt
from nibabel.nifti1 import Nifti1Header
from nibabel.nifti2 import Nifti2Header
from nibabel.quaternions import quat2mat
from nibabel.spatialimages import HeaderDataError

from rayapp.errors import Unreadable
from rayapp.geometry import Affine, is_orthogonal, is_sane, spacing
from rayapp.imaging.detached import ImageHeader
from rayapp.imaging.foreign_content import START, foreign_content
from rayapp.imaging.payload import Payload, check_size, opened
from rayapp.imaging.raster import raster
from rayapp.imaging.volume import Grid, Segmentation, Volume, shifted

_SIZES = {348: Nifti1Header, 540: Nifti2Header}
_MAGIC = {348: (344, b"n+1\0"), 540: (4, b"n+2\0\r\n\x1a\n")}
_MAGIC_OF_PAIRS = {348: (344, b"ni1\0"), 540: (4, b"ni2\0\r\n\x1a\n")}
_PAIR = ".hdr"
_VOXELS = (".img", ".img.gz", ".IMG", ".IMG.gz")
_MAX_OFFSET = 1 << 24
_SCANNER = 1
_MAX_SHEAR = 1e-4  # ITK's tolerance for the axes' dot products
_SAME_PLACE, _SAME_AXIS = 1e-2, 1e-4  # mm, and 1 - cosine, within which a sform and a qform are alike
_HALF_TURN = 1e-7  # smallest squared real part of a quaternion that the NIfTI library tells from none
_MILLIMETRES = {1: 1e3, 3: 1e-3}  # units code -> mm; mm and "unknown" are 1


@dataclass(frozen=True, kw_only=True)
class _Header(ImageHeader):
    fields: Any
    length: int
    channels: int
    dtype: np.dtype[Any]


def write_volume(volume: Volume, path: Path) -> None:
    """Write an image, uncompressed; its channels become the fifth axis."""
    array = volume.array[0] if volume.channels == 1 else np.moveaxis(volume.array, 0, -1)[..., np.newaxis, :]
    image = nibabel.Nifti1Image(array, volume.affine)
    image.header.set_xyzt_units("mm")
    image.to_filename(path)


def read_header(path: Path) -> ImageHeader:
    """The header. Raises Unreadable."""
    with _payload(path) as payload:
        return _header(payload, path)


def _images(path: Path) -> tuple[str, ...]:
    """Possible names of an `.hdr`'s voxel file; empty for a file that holds its own voxels."""
    if path.suffix.lower() != _PAIR:
        return ()
    stems = dict.fromkeys((path.stem, path.resolve().stem))  # of a link, also what it links to
    return tuple(stem + ext for stem in stems for ext in _VOXELS)


def read_volume(path: Path, *, max_bytes: int) -> Volume:
    """The whole image; axes beyond the third, and colour samples, become channels. Raises Unreadable, TooLarge."""
    with _payload(path) as payload:
        header = _header(payload, path)
        slope, inter = _rescale(header.fields)
        count = header.channels * math.prod(header.grid.shape)
        check_size(count * max(header.dtype.itemsize, 4 if slope is not None else 0), max_bytes)
        offset = float(header.fields["vox_offset"])
        if not (0 if header.data_files else header.length) <= offset <= _MAX_OFFSET:
            raise Unreadable(f"the NIfTI header's vox_offset {offset} is invalid")
        if not header.data_files:
            payload.read(int(offset) - header.length)
            data = _voxels(payload, count * header.dtype.itemsize)
    if other := header.data_file(path):
        with _payload(other) as payload:
            payload.read(int(offset))
            data = _voxels(payload, count * header.dtype.itemsize)
    array = _array(data, header)
    if slope is not None:
        whole = slope == 1 and inter.is_integer() and array.dtype.kind in "iu"
        array = shifted(array, int(inter)) if whole else _rescaled(array, slope, inter)
    return Volume(array=array, affine=header.grid.affine)


def _voxels(payload: Payload, nbytes: int) -> npt.NDArray[np.uint8]:
    """The last bytes of a payload. Raises Unreadable if others follow."""
    data = payload.read(nbytes)
    payload.end()
    return data


def encode(segmentation: Segmentation, dtype: np.dtype[Any]) -> npt.NDArray[np.uint8]:
    """The bytes of a little-endian NIfTI-1 file of a label map in `dtype`, with sform and qform set.

    Raises Unreadable for a grid that NIfTI-1 cannot represent.
    """
    header = Nifti1Header(endianness="<")
    try:
        header.set_data_shape(segmentation.shape)
        header.set_data_dtype(dtype)
    except HeaderDataError as error:
        raise Unreadable(f"NIfTI-1 cannot represent this label map: {error}") from error
    # A qform cannot represent shear; with code 0 no reader prefers it to the exact sform.
    orthogonal = is_orthogonal(segmentation.affine)
    header.set_qform(segmentation.affine, code=_SCANNER if orthogonal else 0, strip_shears=True)
    header.set_sform(segmentation.affine, code=_SCANNER)
    header.set_xyzt_units("mm")
    header["magic"], header["vox_offset"], header["scl_slope"], header["scl_inter"] = b"n+1", 352, 1, 0
    voxels = raster(segmentation.array, dtype.newbyteorder("<")).reshape(-1).view(np.uint8)
    return np.concatenate([np.frombuffer(header.binaryblock + b"\0\0\0\0", np.uint8), voxels])


@contextmanager
def _payload(path: Path) -> Iterator[Payload]:
    with opened(path) as file:
        start = file.read(START)
        packed = start.startswith(b"\x1f\x8b")
        if what := foreign_content(start):
            raise Unreadable(f"not a NIfTI file, but {what}")
        if not packed and path.name.lower().endswith(".gz"):
            raise Unreadable("the content is not gzipped: name the file .nii, as viewers go by the extension")
        if packed and path.suffix.lower() in (".nii", ".hdr", ".img"):
            wanted = "name the file .nii.gz" if path.suffix.lower() == ".nii" else "save it as .nii.gz"
            raise Unreadable(f"the content is gzipped: {wanted}, as viewers go by the extension")
        file.seek(0)
        yield Payload(file, "gzip" if packed else "raw")


def _header(payload: Payload, path: Path) -> _Header:
    images = _images(path)
    start = payload.read(348).tobytes()
    for order in "<>":
        length = int(np.frombuffer(start[:4], f"{order}i4")[0])
        if length in _SIZES:
            break
    else:
        what = foreign_content(start)
        detail = f", but {what}" if what else ": its header size is neither 348 nor 540 bytes"
        raise Unreadable(f"not a NIfTI file{detail}")
    block = start + payload.read(length - len(start)).tobytes()
    at, magic = (_MAGIC_OF_PAIRS if images else _MAGIC)[length]
    if block[at : at + len(magic)] != magic:
        what = (
            "the header of a NIfTI pair (but Analyze)"
            if images
            else "a single-file NIfTI (but the .hdr of a pair, or Analyze)"
        )
        raise Unreadable(f"not {what}: save it as .nii or .nii.gz")
    fields = _SIZES[length](block, endianness=order, check=False)
    shape, channels = _shape(fields)
    try:
        dtype, affine = fields.get_data_dtype(), _affine(fields)
    except (HeaderDataError, KeyError, ValueError, np.linalg.LinAlgError) as error:
        raise Unreadable(f"the NIfTI header is damaged: {error}") from error
    if dtype.itemsize == 0 or dtype.kind not in "iufV" or dtype.itemsize > 8:
        raise Unreadable(f"voxels of type {dtype} are not supported: save them as integers or 32-bit floats")
    if not is_sane(affine):
        raise Unreadable("the NIfTI header's affine is not finite or not invertible")
    return _Header(
        grid=Grid(shape=shape, affine=affine),
        data_files=images,
        fields=fields,
        length=length,
        channels=channels,
        dtype=dtype,
    )


def _shape(fields: Any) -> tuple[tuple[int, int, int], int]:
    """Voxels along i, j, k, and the number of channels."""
    count, *sizes = (int(n) for n in fields["dim"])
    if not 1 <= count <= 7 or any(n < 1 for n in sizes[:count]):
        raise Unreadable(f"the NIfTI header's dimensions {[count, *sizes]} are invalid")
    i, j, k, *rest = [*sizes[:count], 1, 1][: max(count, 3)]
    return (i, j, k), math.prod(rest)


@np.errstate(invalid="ignore")  # is_sane rejects NaN
def _affine(fields: Any) -> Affine:
    """The affine that ITK would choose.

    Directions and origin are those of the sform if it is the only transform, or is a shear-free scanner transform; else
    of the qform; else the axes run to the left and posterior from the origin. The voxel sizes are always those of
    `pixdim`, unless the sform is sheared, which ITK does not open: that one is taken as it is.
    """
    sform, qform = int(fields["sform_code"]), int(fields["qform_code"])
    affine: Affine = np.array(fields.get_sform(), np.float64)
    if sform > 0 and not np.isfinite(affine).all():
        raise Unreadable(
            "the NIfTI header's sform (srow_x, srow_y, srow_z) is not finite: correct it, or set its code to 0"
        )
    rotation = is_sane(affine) and _is_rotation(affine)
    if sform > 0 and (qform <= 0 or (sform == _SCANNER and rotation)):
        if rotation:
            affine[:3, :3] *= _pixdim(fields) / spacing(affine)
    elif qform > 0:
        sform_affine, affine = affine, _qform(fields)
        if sform > 0 and _is_mirrored(sform_affine, affine):
            raise Unreadable(
                "the NIfTI header contradicts itself: sform and qform agree but for the direction of an axis, so that "
                "viewers differ (a lost qfac, pixdim[0]?): save it again with one of them"
            )
    else:
        affine = np.diag([-1.0, -1.0, 1.0, 1.0])
        affine[:3, :3] *= _pixdim(fields)
    affine[:3] *= _MILLIMETRES.get(int(fields["xyzt_units"]) & 7, 1.0)
    return affine


def _is_rotation(affine: Affine) -> bool:
    """True if ITK takes the axes to be at right angles."""
    cosines = affine[:3, :3] / spacing(affine)
    return bool(np.abs(cosines @ cosines.T - np.eye(3)).max() <= _MAX_SHEAR)


def _is_mirrored(one: Affine, other: Affine) -> bool:
    """True if two affines have the same origin and axes, of which some run in opposite directions.

    ITK takes such affines for equal and chooses the sform, within tolerances that depend on the orientation.
    """
    if not is_sane(one) or np.abs(one[:3, 3] - other[:3, 3]).max() > _SAME_PLACE:
        return False
    cosines = ((one[:3, :3] / spacing(one)) * (other[:3, :3] / spacing(other))).sum(0)
    return bool((np.abs(cosines) > 1 - _SAME_AXIS).all() and (cosines < 0).any())


def _pixdim(fields: Any) -> npt.NDArray[np.float64]:
    """Voxel sizes as the NIfTI library repairs them: 1 for zero and for what is not a finite number."""
    sizes = np.array(fields["pixdim"][1:4], np.float64)
    repaired: npt.NDArray[np.float64] = np.where(np.isfinite(sizes) & (sizes != 0), sizes, 1.0)
    return repaired


def _qform(fields: Any) -> Affine:
    """The qform as the NIfTI library makes it.

    qfac is -1 if `pixdim[0]` is negative, else 1; numbers that are not finite are 0; a quaternion that rounding made
    too long is a rotation by 180 degrees.
    """
    vector = np.nan_to_num([float(fields[f"quatern_{letter}"]) for letter in "bcd"], posinf=0.0, neginf=0.0)
    rest = 1.0 - float(vector @ vector)
    real = math.sqrt(rest) if rest >= _HALF_TURN else 0.0
    if real == 0.0:
        vector = vector / np.linalg.norm(vector)
    affine = np.eye(4)
    affine[:3, :3] = quat2mat([real, *vector]) * _pixdim(fields)
    if float(fields["pixdim"][0]) < 0:
        affine[:3, 2] *= -1
    affine[:3, 3] = np.nan_to_num([float(fields[f"qoffset_{axis}"]) for axis in "xyz"], posinf=0.0, neginf=0.0)
    return affine


def _rescale(fields: Any) -> tuple[float | None, float]:
    """Slope and intercept; a slope of None leaves the stored values unchanged."""
    slope, inter = float(fields["scl_slope"]), float(fields["scl_inter"])
    if not math.isfinite(slope) or slope == 0 or (slope, inter) == (1, 0):
        return None, 0.0
    if not math.isfinite(inter):
        raise Unreadable(f"the NIfTI header's scl_inter {inter} is not a finite number")
    return slope, inter


@np.errstate(over="ignore", invalid="ignore")
def _rescaled(array: npt.NDArray[Any], slope: float, inter: float) -> npt.NDArray[Any]:
    scaled = array.astype(np.float32)
    scaled *= np.float32(slope)
    scaled += np.float32(inter)
    return scaled


def _array(data: npt.NDArray[np.uint8], header: _Header) -> npt.NDArray[Any]:
    """The file's bytes as an array (C, I, J, K) in native byte order, without a copy."""
    if header.dtype.fields:  # colours, one byte each, side by side
        colours = data.reshape(header.channels, *header.grid.shape[::-1], header.dtype.itemsize)
        return colours.transpose(0, 4, 3, 2, 1).reshape(-1, *header.grid.shape)
    array = data.view(header.dtype).reshape(header.channels, *header.grid.shape[::-1])
    if not header.dtype.isnative:
        array = array.byteswap(inplace=True).view(header.dtype.newbyteorder("="))
    return array.transpose(0, 3, 2, 1)
