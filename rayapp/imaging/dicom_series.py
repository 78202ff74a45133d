"""A folder with one DICOM series, read as a volume.

The array's axes are columns, rows and slices (i, j, k), with slices in order of increasing position along row x column:
the order of OHIF's volume. The affine is the one that ITK gives the series. Values are rescaled by the slope and
intercept of the Modality LUT (DICOM PS3.3 C.11.1).

Headers are read first; after all checks, pixels are decoded one file at a time into one array.
"""

from __future__ import annotations

import filecmp
import itertools
import math
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pydicom
from pydicom.dataset import Dataset, FileDataset
from pydicom.errors import InvalidDicomError
from pydicom.filereader import read_file_meta_info
from pydicom.pixels.utils import iter_pixels
from pydicom.uid import MediaStorageDirectoryStorage

from rayapp.errors import Unreadable
from rayapp.imaging.dicom_kinds import (
    ModalityTable,
    check_deflated,
    check_encoding,
    check_intensities,
    check_one_slice,
    check_one_volume,
    check_syntax,
    is_image,
    modality_table,
    why_no_dicom,
)
from rayapp.imaging.dicom_plane import Plane, check_parallel, first_value, frame_datasets, read_plane, stack_affine
from rayapp.imaging.payload import check_size
from rayapp.imaging.volume import Grid, Volume, shifted

_PREAMBLE = 128


@dataclass(frozen=True)
class _Layout:
    """Attributes that all slices of a series must share."""

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
class Slice:
    """One slice: the file, and the frame in it (from 0), that hold its pixels."""

    instance: str
    path: Path
    frame: int
    layout: _Layout
    plane: Plane
    slope: float
    intercept: float
    table: ModalityTable | None
    frame_of_reference: str


def read_grid(path: Path) -> Grid:
    """The grid of the folder's series, from headers alone. Raises Unreadable."""
    slices = read_slices(path)
    layout = slices[0].layout
    return Grid(
        shape=(layout.columns, layout.rows, len(slices)), affine=stack_affine([piece.plane for piece in slices])
    )


def read_volume(path: Path, *, max_bytes: int) -> Volume:
    """The folder's series as a volume; colour samples become channels. Raises Unreadable, TooLarge."""
    return volume_from_slices(read_slices(path), max_bytes=max_bytes)


def volume_from_slices(slices: list[Slice], *, max_bytes: int) -> Volume:
    """The volume of slices from `read_slices`. Raises Unreadable, TooLarge."""
    affine, layout = stack_affine([piece.plane for piece in slices]), slices[0].layout
    shape = (layout.channels, len(slices), layout.rows, layout.columns)
    check_size(int(np.prod(shape)) * max(layout.dtype.itemsize, 4), max_bytes)
    scales = {(piece.slope, piece.intercept) for piece in slices}
    slope, intercept = next(iter(scales))
    tables = any(piece.table for piece in slices)
    uniform = len(scales) == 1 and slope == 1 and intercept.is_integer() and not tables
    array: npt.NDArray[Any] = np.empty(0)
    for k, pixels in _pixels(slices):
        if not array.size:  # one slice has been decoded, so the header's sizes are genuine
            array = np.empty(shape, layout.dtype if uniform else np.float32)
        if (table := slices[k].table) is not None:
            pixels = table.apply(pixels)
        elif not uniform:
            pixels = pixels * np.float32(slices[k].slope) + np.float32(slices[k].intercept)
        array[:, k] = pixels
    if uniform and intercept:
        array = shifted(array, int(intercept))
    return Volume(array=array.transpose(0, 3, 2, 1), affine=affine)


def read_slices(path: Path) -> list[Slice]:
    """The series' slices in order of position, so that the index is the volume's k. Raises Unreadable."""
    return sort_slices(piece for file in sorted(path.iterdir()) if file.is_file() for piece in _slices(file))


def sort_slices(pieces: Iterable[Slice]) -> list[Slice]:
    """The slices of one series in order of position; copies of one file count once.

    Raises Unreadable if they do not form a uniform stack.
    """
    slices = list(_without_copies(pieces))
    if not slices:
        raise Unreadable("no DICOM image is there, only other objects or files: put the files of one series there")
    series = {piece.layout.series for piece in slices}
    if len(series) != 1:
        raise Unreadable(f"the folder has {len(series)} DICOM series: put each in a folder of its own")
    if len({piece.layout for piece in slices}) != 1:
        raise Unreadable("the slices of the series differ in size or pixel format: split the series")
    frames = {piece.frame_of_reference for piece in slices}
    if 1 < len(frames) < len(slices):  # one for each slice comes from careless anonymisers
        raise Unreadable(
            f"FrameOfReferenceUID: the slices lie in {len(frames)} frames of reference, between which positions cannot "
            "be compared: split the series"
        )
    check_parallel([piece.plane for piece in slices])
    normal = slices[0].plane.normal
    return sorted(slices, key=lambda piece: float(normal @ piece.plane.position))


def _without_copies(pieces: Iterable[Slice]) -> Iterator[Slice]:
    """The slices, without those of a file that has the content of an earlier one."""
    kept: dict[tuple[str, int, tuple[float, ...]], list[Path]] = {}
    for piece in pieces:
        twins = kept.setdefault((piece.instance, piece.frame, tuple(piece.plane.position)), [])
        if not any(filecmp.cmp(twin, piece.path, shallow=False) for twin in twins):
            twins.append(piece.path)
            yield piece


def _slices(path: Path) -> list[Slice]:
    """The slices in one file: none if it is not DICOM or is a DICOMDIR, several if it is an enhanced (multi-frame)
    object.

    A truncated file is refused instead of skipped, since the series would otherwise look complete but shorter.
    """
    try:
        with path.open("rb") as file:
            if not file.read(_PREAMBLE).strip(b"\0") and path.stat().st_size < _PREAMBLE + len(b"DICM"):
                raise Unreadable("a file of the series is empty or truncated: copy it again")
        check_deflated(read_file_meta_info(path))  # before anything is decompressed
        dataset = pydicom.dcmread(path, stop_before_pixels=True)
    except InvalidDicomError:
        if reason := why_no_dicom(path):
            raise Unreadable(f"a file of the series is not read: {reason}") from None
        return []
    except Unreadable:
        raise
    except Exception as error:  # damaged files make the parser raise almost anything
        raise Unreadable(f"a DICOM file of the series is damaged ({type(error).__name__})") from error
    return slices_of(dataset, path)


def slices_of(dataset: FileDataset, path: Path) -> list[Slice]:
    """The slices in a parsed file; none for a DICOMDIR or an object that is not an image. Raises Unreadable."""
    try:
        if dataset.file_meta.get("MediaStorageSOPClassUID") == MediaStorageDirectoryStorage:
            return []
        if not is_image(dataset):
            return []
        check_syntax(dataset.file_meta)
        if "Rows" not in dataset:
            raise Unreadable("a DICOM file of the folder has no Rows: it is no image, or is truncated; copy it again")
        check_encoding(dataset)
        check_intensities(dataset)
        check_one_slice(dataset)
        frames = frame_datasets(dataset)
        check_one_volume(frames)
        return [_slice(path, number, dataset, where) for number, where in enumerate(frames)]
    except Unreadable:
        raise
    except Exception as error:  # damaged files make the parser raise almost anything
        raise Unreadable(f"a DICOM file of the series is damaged ({type(error).__name__})") from error


def _slice(path: Path, frame: int, dataset: Dataset, where: Sequence[Dataset]) -> Slice:
    layout = _Layout(
        series=str(dataset.get("SeriesInstanceUID")),
        columns=int(dataset.Columns),
        rows=int(dataset.Rows),
        channels=int(dataset.get("SamplesPerPixel") or 1),
        bits=int(dataset.get("BitsAllocated") or 0),
        signed=bool(dataset.get("PixelRepresentation")),
    )
    if layout.bits not in (8, 16, 32) or layout.channels not in (1, 3) or min(layout.columns, layout.rows) < 1:
        raise Unreadable(
            f"pixels of {layout.channels} samples of {layout.bits} bits are not supported: convert them to 1 or 3 "
            "samples of 8, 16 or 32 bits"
        )
    slope, intercept = first_value(where, "RescaleSlope"), first_value(where, "RescaleIntercept")
    slope = 1.0 if slope in (None, "") else float(slope)
    intercept = 0.0 if intercept in (None, "") else float(intercept)
    if slope == 0 or not math.isfinite(slope) or not math.isfinite(intercept):
        raise Unreadable(f"RescaleSlope {slope:g} and RescaleIntercept {intercept:g} give a slice no values")
    return Slice(
        instance=str(dataset.get("SOPInstanceUID")),
        path=path,
        frame=frame,
        layout=layout,
        plane=read_plane(where),
        slope=slope,
        intercept=intercept,
        table=modality_table(where),
        frame_of_reference=str(first_value(where, "FrameOfReferenceUID") or ""),
    )


def _pixels(slices: list[Slice]) -> Iterator[tuple[int, npt.NDArray[Any]]]:
    """Index in the stack and stored values, shape (C, rows, columns), of each slice."""
    by_file = sorted(enumerate(slices), key=lambda item: (str(item[1].path), item[1].frame))
    for path, group in itertools.groupby(by_file, key=lambda item: item[1].path):
        members = list(group)
        layout = members[0][1].layout
        try:
            frames = list(zip(members, iter_pixels(path, indices=[piece.frame for _, piece in members]), strict=True))
        except AttributeError as error:
            raise Unreadable(f"a slice has no {error.name or 'PixelData'}: export the series again") from error
        except Exception as error:  # decoders raise almost anything on damaged data
            raise Unreadable(
                f"a slice's PixelData is truncated or damaged ({type(error).__name__}): copy it again"
            ) from error
        for (k, _), pixels in frames:
            if pixels.dtype.kind == "f":
                raise Unreadable("FloatPixelData: pixels in floating point are not read: convert the series to NIfTI")
            plane = np.moveaxis(pixels, -1, 0) if layout.channels > 1 else pixels[np.newaxis]
            if (
                plane.shape != (layout.channels, layout.rows, layout.columns)
                or plane.dtype.newbyteorder("=") != layout.dtype
            ):
                raise Unreadable(f"a slice's pixels are {plane.shape} {plane.dtype}, which contradicts its header")
            yield k, plane
