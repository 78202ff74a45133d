"""A folder with one DICOM series: read it as a volume.

The array's axes are columns, rows, slices (i, j, k), slices by increasing position along row x column, so that its
order is the one OHIF's volume has. Geometry: DICOM PS3.3 C.7.6.2 (Image Plane); values: C.7.6.3 and the Modality LUT.
"""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pydicom
from pydicom.dataset import Dataset
from pydicom.errors import InvalidDicomError

from rayapp.errors import Unreadable
from rayapp.geometry import Affine, is_sane, ras_to_lps
from rayapp.imaging.gzip import check_size
from rayapp.imaging.volume import Grid, Volume

_UNEVEN = 0.1  # of a slice's distance: how far a slice may lie from where even spacing puts it
_ANGLED = 1e-3  # how far direction cosines of one series may differ


def read_grid(path: Path) -> Grid:
    """The grid of the folder's series: reads headers only. Raises Unreadable."""
    slices = _slices(path, voxels=False)
    return Grid(shape=_shape(slices), affine=_affine(slices))


def read_volume(path: Path, *, max_bytes: int) -> Volume:
    """The folder's series. Raises Unreadable, TooLarge."""
    headers = _slices(path, voxels=False)
    affine, shape = _affine(headers), _shape(headers)
    samples = int(headers[0].get("SamplesPerPixel", 1))
    check_size(math.prod(shape) * samples * 4, max_bytes)
    planes = [_pixels(piece) for piece in _slices(path, voxels=True)]
    if len({plane.shape for plane in planes}) != 1:
        raise Unreadable("the slices of the series differ in size")
    array = np.stack(planes, axis=-1)
    return Volume(array=array, affine=affine)


def _slices(path: Path, *, voxels: bool) -> list[Dataset]:
    """The series' instances in order of position."""
    found = []
    for file in sorted(path.iterdir()):
        if not file.is_file() or file.name.startswith("."):
            continue
        try:
            found.append(pydicom.dcmread(file, stop_before_pixels=not voxels))
        except InvalidDicomError:
            continue
        except (OSError, ValueError, AttributeError, NotImplementedError, EOFError) as error:
            raise Unreadable(f"a DICOM file of the series is damaged: {type(error).__name__}") from error
    images = [dataset for dataset in found if "Rows" in dataset]
    if not images:
        raise Unreadable("the folder holds no DICOM images")
    series = {dataset.get("SeriesInstanceUID") for dataset in images}
    if len(series) != 1:
        raise Unreadable(f"the folder holds {len(series)} DICOM series; put each in a folder of its own")
    if any(int(dataset.get("NumberOfFrames", 1) or 1) > 1 for dataset in images):
        raise Unreadable("multi-frame DICOM objects are not read yet")
    normal = np.cross(*_cosines(images[0]))
    if any(np.abs(np.array(_cosines(dataset)) - _cosines(images[0])).max() > _ANGLED for dataset in images):
        raise Unreadable("the slices of the series are not parallel (a localizer?)")
    return sorted(images, key=lambda dataset: float(normal @ _position(dataset)))


def _numbers(dataset: Dataset, keyword: str, count: int) -> npt.NDArray[np.float64]:
    try:
        values = np.array([float(value) for value in dataset[keyword].value], float)
    except (KeyError, TypeError, ValueError):
        raise Unreadable(f"a slice has no readable {keyword}") from None
    if values.shape != (count,) or not np.isfinite(values).all():
        raise Unreadable(f"a slice's {keyword} is not {count} numbers")
    return values


def _cosines(dataset: Dataset) -> tuple[npt.NDArray[np.float64], npt.NDArray[np.float64]]:
    six = _numbers(dataset, "ImageOrientationPatient", 6)
    return six[:3], six[3:]


def _position(dataset: Dataset) -> npt.NDArray[np.float64]:
    return _numbers(dataset, "ImagePositionPatient", 3)


def _shape(slices: list[Dataset]) -> tuple[int, int, int]:
    sizes = {(int(dataset.Columns), int(dataset.Rows)) for dataset in slices}
    if len(sizes) != 1:
        raise Unreadable("the slices of the series differ in size")
    columns, rows = sizes.pop()
    return columns, rows, len(slices)


def _affine(slices: list[Dataset]) -> Affine:
    row, column = _cosines(slices[0])
    between_rows, between_columns = _numbers(slices[0], "PixelSpacing", 2)
    first = _position(slices[0])
    lps = np.eye(4)
    lps[:3, 0], lps[:3, 1], lps[:3, 3] = row * between_columns, column * between_rows, first
    lps[:3, 2] = _step(slices, np.cross(row, column))
    if not is_sane(lps):
        raise Unreadable("the series' geometry is not invertible")
    return ras_to_lps(lps)


def _step(slices: list[Dataset], normal: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
    """From one slice to the next, in mm; refuses what is no even stack along the normal."""
    if len(slices) == 1:
        thickness = float(slices[0].get("SpacingBetweenSlices") or slices[0].get("SliceThickness") or 1.0)
        return normal * thickness
    positions = np.array([_position(dataset) for dataset in slices])
    step: npt.NDArray[np.float64] = (positions[-1] - positions[0]) / (len(slices) - 1)
    length = float(np.linalg.norm(step))
    along = np.diff(positions @ normal)
    if (along < 1e-3).any():
        raise Unreadable("two slices of the series lie at the same position")
    even = positions[0] + np.arange(len(slices))[:, None] * step
    if np.abs(positions - even).max() > _UNEVEN * length:
        raise Unreadable("the series' slices are not evenly spaced (one is missing, or the gantry moved)")
    if float(step @ normal) / length < 1 - _ANGLED:
        raise Unreadable("the series is sheared (gantry tilt): its slices do not stack along their normal")
    return step


def _pixels(dataset: Dataset) -> npt.NDArray[Any]:
    """One slice as (C, columns, rows), rescaled; integers stay integers where the rescale keeps them so."""
    try:
        pixels = dataset.pixel_array
    except Exception as error:  # decoders raise whatever they like on damaged data
        raise Unreadable(f"a slice's pixels cannot be decoded: {type(error).__name__}: {error}") from error
    pixels = pixels[np.newaxis] if pixels.ndim == 2 else np.moveaxis(pixels, -1, 0)
    slope, intercept = float(dataset.get("RescaleSlope", 1) or 1), float(dataset.get("RescaleIntercept", 0) or 0)
    plane = pixels.transpose(0, 2, 1)
    if slope == 1 and intercept.is_integer():
        wide = plane.astype(np.int32) + int(intercept)
        fits = np.iinfo(np.int16).min <= wide.min() and wide.max() <= np.iinfo(np.int16).max
        return wide.astype(np.int16) if fits else wide
    scaled: npt.NDArray[Any] = plane * np.float32(slope) + np.float32(intercept)
    return scaled
