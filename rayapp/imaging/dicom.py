"""A folder with one DICOM series: read it as a volume.

The array's axes are columns, rows, slices (i, j, k), slices by increasing position along row x column, so that its
order is the one OHIF's volume has; the affine is the one ITK gives the series. Geometry: DICOM PS3.3 C.7.6.2 (Image
Plane) and C.7.6.16 (frames of enhanced objects); values: the Modality LUT's slope and intercept, C.11.1.

Headers are read first; the pixels of one file at a time after all checks, into one array.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pydicom
from pydicom.dataset import Dataset
from pydicom.errors import InvalidDicomError
from pydicom.filereader import read_file_meta_info
from pydicom.pixels.utils import iter_pixels
from pydicom.uid import MediaStorageDirectoryStorage

from rayapp.errors import Unreadable
from rayapp.geometry import Affine, is_sane, ras_to_lps
from rayapp.imaging.payload import check_size
from rayapp.imaging.volume import Grid, Volume

_PREAMBLE = 128
_UNEVEN = 0.1  # of a slice's distance: how far a slice may lie from where even spacing puts it
_ANGLED = 1e-3  # how far direction cosines within a series may differ
_TILTED = 1e-2  # radians between the stack and its normal: beyond, it is gantry tilt

Vector = npt.NDArray[np.float64]


@dataclass(frozen=True)
class _Layout:
    """What all slices of a series share."""

    series: str
    columns: int
    rows: int
    channels: int
    bits: int
    signed: bool

    @property
    def dtype(self) -> np.dtype[Any]:
        return np.dtype(f"{'i' if self.signed else 'u'}{self.bits // 8}")


@dataclass(frozen=True, kw_only=True)
class _Slice:
    path: Path
    frame: int
    layout: _Layout
    position: Vector
    row: Vector
    column: Vector
    spacing: Vector  # between rows, between columns
    thickness: float
    slope: float
    intercept: float


def read_grid(path: Path) -> Grid:
    """The grid of the folder's series: reads headers only. Raises Unreadable."""
    slices = _stack(path)
    layout = slices[0].layout
    return Grid(shape=(layout.columns, layout.rows, len(slices)), affine=_affine(slices))


def read_volume(path: Path, *, max_bytes: int) -> Volume:
    """The folder's series; colours become channels. Raises Unreadable, TooLarge."""
    slices = _stack(path)
    affine, layout = _affine(slices), slices[0].layout
    shape = (layout.channels, len(slices), layout.rows, layout.columns)
    check_size(int(np.prod(shape)) * max(layout.dtype.itemsize, 4), max_bytes)
    scales = {(piece.slope, piece.intercept) for piece in slices}
    slope, intercept = next(iter(scales))
    uniform = len(scales) == 1 and slope == 1 and intercept.is_integer()
    array: npt.NDArray[Any] = np.empty(0)
    for k, plane in _planes(slices):
        if not array.size:  # one plane is there, so the sizes are no lie
            array = np.empty(shape, layout.dtype if uniform else np.float32)
        if not uniform:
            plane = plane * np.float32(slices[k].slope) + np.float32(slices[k].intercept)
        array[:, k] = plane
    if uniform and intercept:
        array = _shifted(array, int(intercept))
    return Volume(array=array.transpose(0, 3, 2, 1), affine=affine)


def _stack(path: Path) -> list[_Slice]:
    """The series' slices in order of position."""
    slices = [piece for file in sorted(path.iterdir()) if file.is_file() for piece in _slices(file)]
    if not slices:
        raise Unreadable("the folder holds no DICOM images")
    first = slices[0]
    series = {piece.layout.series for piece in slices}
    if len(series) != 1:
        raise Unreadable(f"the folder holds {len(series)} DICOM series: put each in a folder of its own")
    if len({piece.layout for piece in slices}) != 1:
        raise Unreadable("the slices of the series differ in size or pixel format")
    if any(np.abs(np.subtract(piece.spacing, first.spacing)).max() > _ANGLED * first.spacing.min() for piece in slices):
        raise Unreadable("the slices of the series differ in pixel spacing")
    if any(np.abs([piece.row - first.row, piece.column - first.column]).max() > _ANGLED for piece in slices):
        raise Unreadable("the slices of the series are not parallel: remove the localizer, or split the series")
    normal = np.cross(first.row, first.column)
    return sorted(slices, key=lambda piece: float(normal @ piece.position))


def _slices(path: Path) -> list[_Slice]:
    """The slices one file holds: none if it is not DICOM or an index, several if it is an enhanced object.

    A file cut off is refused, not passed over: without it the series would look whole, and be shorter.
    """
    try:
        with path.open("rb") as file:
            if not file.read(_PREAMBLE).strip(b"\0") and path.stat().st_size < _PREAMBLE + len(b"DICM"):
                raise Unreadable("a file of the series is empty or cut off")
        syntax = read_file_meta_info(path).get("TransferSyntaxUID")
        if syntax is not None and syntax.is_deflated:
            raise Unreadable("deflated DICOM files are not read here: store them in another transfer syntax")
        dataset = pydicom.dcmread(path, stop_before_pixels=True)
        if dataset.file_meta.get("MediaStorageSOPClassUID") == MediaStorageDirectoryStorage:
            return []
        if "Rows" not in dataset:
            raise Unreadable("a DICOM file of the folder is no image, or cut off: keep the images of one series only")
        return list(_frames(path, dataset))
    except InvalidDicomError:
        return []
    except Unreadable:
        raise
    except Exception as error:  # damaged files make the parser raise almost anything
        raise Unreadable(f"a DICOM file of the series is damaged ({type(error).__name__})") from error


def _frames(path: Path, dataset: Dataset) -> Iterator[_Slice]:
    count = int(dataset.get("NumberOfFrames") or 1)
    frames = dataset.get("PerFrameFunctionalGroupsSequence")
    if frames is None:
        if count > 1:
            raise Unreadable("a multi-frame DICOM file says no positions of its frames: it cannot be read as a volume")
        yield _slice(path, 0, dataset, [dataset])
        return
    if len(frames) != count:
        raise Unreadable(f"a DICOM file describes {len(frames)} of its {count} frames")
    shared = _macros(dataset.get("SharedFunctionalGroupsSequence") or [])
    for number, frame in enumerate(frames):
        yield _slice(path, number, dataset, [*_macros([frame]), *shared, dataset])


def _macros(groups: Sequence[Dataset]) -> list[Dataset]:
    """The functional group macros: each is a sequence of one item."""
    return [item for group in groups for element in group if element.VR == "SQ" for item in element.value[:1]]


def _slice(path: Path, frame: int, dataset: Dataset, places: Sequence[Dataset]) -> _Slice:
    layout = _Layout(
        series=str(dataset.get("SeriesInstanceUID")),
        columns=int(dataset.Columns),
        rows=int(dataset.Rows),
        channels=int(dataset.get("SamplesPerPixel") or 1),
        bits=int(dataset.get("BitsAllocated") or 0),
        signed=bool(dataset.get("PixelRepresentation")),
    )
    if layout.bits not in (8, 16, 32) or layout.channels not in (1, 3) or min(layout.columns, layout.rows) < 1:
        raise Unreadable(f"{layout.channels} samples of {layout.bits} bits per pixel are not read as an image")
    cosines = _numbers(places, "ImageOrientationPatient", 6).reshape(2, 3)
    lengths = np.linalg.norm(cosines, axis=1)
    if np.abs(lengths - 1).max() > 0.01 or abs(float(cosines[0] @ cosines[1])) > 0.01:
        raise Unreadable("a slice's ImageOrientationPatient is not two unit vectors at a right angle")
    row, column = cosines / lengths[:, None]
    return _Slice(
        path=path,
        frame=frame,
        layout=layout,
        position=_numbers(places, "ImagePositionPatient", 3),
        row=row,
        column=column,
        spacing=_numbers(places, "PixelSpacing", 2),
        thickness=abs(float(_found(places, "SpacingBetweenSlices") or _found(places, "SliceThickness") or 1.0)),
        slope=float(_or(_found(places, "RescaleSlope"), 1.0)),
        intercept=float(_or(_found(places, "RescaleIntercept"), 0.0)),
    )


def _found(places: Sequence[Dataset], keyword: str) -> Any:
    return next((place[keyword].value for place in places if keyword in place), None)


def _or(value: Any, default: float) -> Any:
    return default if value is None or value == "" else value


def _numbers(places: Sequence[Dataset], keyword: str, count: int) -> Vector:
    value = _found(places, keyword)
    numbers = np.array([] if value is None else [float(number) for number in value])
    if numbers.shape != (count,) or not np.isfinite(numbers).all():
        raise Unreadable(f"a slice's {keyword} is missing or not {count} numbers")
    return numbers


def _affine(slices: list[_Slice]) -> Affine:
    first = slices[0]
    between_rows, between_columns = first.spacing
    normal = np.cross(first.row, first.column)
    lps = np.eye(4)
    lps[:3, 0], lps[:3, 1] = first.row * between_columns, first.column * between_rows
    lps[:3, 2], lps[:3, 3] = normal * _distance(slices, normal), first.position
    if not is_sane(lps):
        raise Unreadable("the series' geometry is not finite or not invertible")
    return ras_to_lps(lps)


def _distance(slices: list[_Slice], normal: Vector) -> float:
    """Millimetres from one slice to the next; refuses what is no even stack along the normal."""
    if len(slices) == 1:
        return slices[0].thickness
    positions = np.array([piece.position for piece in slices])
    along = positions @ normal
    step = (positions[-1] - positions[0]) / (len(slices) - 1)
    length = float(np.linalg.norm(step))
    if np.diff(along).min() <= _ANGLED * length:
        raise Unreadable("two slices of the series lie at the same position: keep one phase or echo per folder")
    if np.abs(along - np.linspace(along[0], along[-1], len(slices))).max() > _UNEVEN * length:
        raise Unreadable("the slices of the series are not evenly spaced: one is missing, or the spacing changes")
    if np.linalg.norm(step - normal * (step @ normal)) > _TILTED * length:
        raise Unreadable("the slices of the series do not stack along their normal (gantry tilt): resample it first")
    return length


def _planes(slices: list[_Slice]) -> Iterator[tuple[int, npt.NDArray[Any]]]:
    """Each slice's place in the stack and its pixels as (C, rows, columns), stored values."""
    by_file = sorted(enumerate(slices), key=lambda item: (str(item[1].path), item[1].frame))
    for path, group in itertools.groupby(by_file, key=lambda item: item[1].path):
        members = list(group)
        layout = members[0][1].layout
        try:
            frames = list(zip(members, iter_pixels(path, indices=[piece.frame for _, piece in members]), strict=True))
        except Exception as error:  # decoders raise almost anything on damaged data
            raise Unreadable(f"a slice's pixels cannot be decoded ({type(error).__name__})") from error
        for (k, _), pixels in frames:
            plane = np.moveaxis(pixels, -1, 0) if layout.channels > 1 else pixels[np.newaxis]
            if plane.shape != (layout.channels, layout.rows, layout.columns) or plane.dtype != layout.dtype:
                raise Unreadable(f"a slice's pixels are {plane.shape} {plane.dtype}, not what its header says")
            yield k, plane


def _shifted(array: npt.NDArray[Any], intercept: int) -> npt.NDArray[Any]:
    """Stored values plus the intercept: int16 where they fit, as those of CT do, else int32 or float32."""
    low, high = int(array.min()) + intercept, int(array.max()) + intercept
    for kind in (np.int16, np.int32):
        if np.iinfo(kind).min <= min(low, intercept) and max(high, intercept) <= np.iinfo(kind).max:
            same = array.itemsize == np.dtype(kind).itemsize
            shifted: npt.NDArray[Any] = array.view(kind) if same else array.astype(kind)
            shifted += kind(intercept)  # exact in spite of wrapping: the sums fit
            return shifted
    return array.astype(np.float32) + np.float32(intercept)
