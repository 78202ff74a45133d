"""Plane: position and orientation of one DICOM frame in the patient, and stacks of frames.

Single-frame objects follow the Image Plane module (DICOM PS3.3 C.7.6.2), frames of enhanced objects and segmentations
the functional groups (C.7.6.16). Pure functions; positions and directions are in LPS mm, as in the files.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
from pydicom.dataset import Dataset

from rayapp.errors import Unreadable
from rayapp.geometry import Affine, is_sane, ras_to_lps

_MAX_UNEVENNESS = 0.1  # deviation of a slice from even spacing, as a fraction of that spacing
_MAX_DEVIATION = 1e-3  # of direction cosines and of relative pixel spacing within a series
_MAX_TILT = 1e-2  # radians between the stacking direction and the normal; more is gantry tilt
_MAX_SIDESTEP = 0.25  # of a pixel, between a slice's first pixel and the line through those of all slices
_TENTH = 0.1
ROUNDING_MM = 3**0.5 * _TENTH
"""Largest relative displacement of two slices, in mm, that comes from rounding positions to a tenth of a millimetre."""

Vector = npt.NDArray[np.float64]


@dataclass(frozen=True, kw_only=True, eq=False)
class Plane:
    """The plane of one frame: centre of its first pixel, directions of its rows and columns, pixel spacing.

    Attributes:
        position: ImagePositionPatient, LPS mm.
        row: unit vector along a row, in the direction of increasing column index.
        column: unit vector along a column, in the direction of increasing row index.
        spacing: PixelSpacing: mm between rows, then between columns.
        thickness: mm to the next plane: SpacingBetweenSlices, else SliceThickness, else 1.
    """

    position: Vector
    row: Vector
    column: Vector
    spacing: Vector
    thickness: float

    @property
    def normal(self) -> Vector:
        """Row x column: the direction in which slices are counted."""
        normal: Vector = np.cross(self.row, self.column)
        return normal

    def affine(self, step: Vector) -> Affine:
        """Index (column, row, plane) to RAS mm, for planes that follow each other by the vector `step`. Raises
        Unreadable.
        """
        between_rows, between_columns = self.spacing
        lps = np.eye(4)
        lps[:3, 0], lps[:3, 1] = self.row * between_columns, self.column * between_rows
        lps[:3, 2], lps[:3, 3] = step, self.position
        if not is_sane(lps):
            raise Unreadable("the series' geometry is not finite or not invertible")
        return ras_to_lps(lps)


def frame_datasets(dataset: Dataset) -> list[list[Dataset]]:
    """For each frame, the datasets that hold its attributes, in order of precedence.

    Raises Unreadable for a multi-frame object that does not describe each of its frames.
    """
    count = int(dataset.get("NumberOfFrames") or 1)
    frames = dataset.get("PerFrameFunctionalGroupsSequence")
    if frames is None:
        if count > 1:
            raise Unreadable("a multi-frame DICOM file lacks the positions of its frames: it is not a volume")
        return [[dataset]]
    if len(frames) != count:
        raise Unreadable(f"a DICOM file describes only {len(frames)} of its {count} frames")
    shared = _macros(dataset.get("SharedFunctionalGroupsSequence") or [])
    return [[*_macros([frame]), *shared, dataset] for frame in frames]


def _macros(groups: Sequence[Dataset]) -> list[Dataset]:
    """The functional group macros; each is a sequence with one item."""
    return [item for group in groups for element in group if element.VR == "SQ" for item in element.value[:1]]


def read_plane(places: Sequence[Dataset]) -> Plane:
    """The plane of a frame. Raises Unreadable if its attributes are missing or invalid."""
    cosines = _numbers(places, "ImageOrientationPatient", 6).reshape(2, 3)
    lengths = np.linalg.norm(cosines, axis=1)
    if np.abs(lengths - 1).max() > 0.01 or abs(float(cosines[0] @ cosines[1])) > 0.01:
        raise Unreadable("a slice's ImageOrientationPatient is not two orthogonal unit vectors")
    row, column = cosines / lengths[:, None]
    spacing = _numbers(places, "PixelSpacing", 2)
    if spacing.min() <= 0:
        raise Unreadable(
            f"a slice's PixelSpacing {spacing[0]:g}, {spacing[1]:g} is not two positive lengths: correct it"
        )
    return Plane(
        position=_numbers(places, "ImagePositionPatient", 3),
        row=row,
        column=column,
        spacing=spacing,
        thickness=abs(
            float(first_value(places, "SpacingBetweenSlices") or first_value(places, "SliceThickness") or 1.0)
        ),
    )


def first_value(places: Sequence[Dataset], keyword: str) -> Any:
    """The attribute's value in the first dataset that has it; None if none has."""
    return next((place[keyword].value for place in places if keyword in place), None)


def _numbers(places: Sequence[Dataset], keyword: str, count: int) -> Vector:
    value = first_value(places, keyword)
    listed = [] if value in (None, "") else value if isinstance(value, Iterable) else [value]
    numbers = np.array([float(number) for number in listed])
    if numbers.shape != (count,) or not np.isfinite(numbers).all():
        raise Unreadable(
            f"a slice's {keyword} is missing or not {count} numbers: remove pictures that are no slices (screenshots, "
            "projections), or export the series again"
        )
    return numbers


def check_parallel(planes: Sequence[Plane]) -> None:
    """Raise Unreadable unless all planes have the same pixel spacing and orientation."""
    first = planes[0]
    if any(
        np.abs(np.subtract(piece.spacing, first.spacing)).max() > _MAX_DEVIATION * first.spacing.min()
        for piece in planes
    ):
        raise Unreadable("the slices of the series differ in pixel spacing: split the series")
    if any(np.abs([piece.row - first.row, piece.column - first.column]).max() > _MAX_DEVIATION for piece in planes):
        raise Unreadable("the slices of the series are not parallel: remove the localizer, or split the series")


def stack_affine(planes: Sequence[Plane]) -> Affine:
    """The affine of an even, straight stack of planes in order of position along the normal. Raises Unreadable."""
    first = planes[0]
    return first.affine(first.normal * _distance(planes))


def _distance(planes: Sequence[Plane]) -> float:
    """Millimetres between neighbouring slices. Raises Unreadable for a stack that is uneven or not along the normal."""
    normal = planes[0].normal
    if len(planes) == 1:
        return planes[0].thickness
    positions = np.array([piece.position for piece in planes])
    along = positions @ normal
    step = (positions[-1] - positions[0]) / (len(planes) - 1)
    length = float(np.linalg.norm(step))
    if np.diff(along).min() <= _MAX_DEVIATION * length:
        raise Unreadable(
            "two slices of the series have the same position: remove what is there twice, or keep one phase or echo "
            "per folder"
        )
    slack = _slack(positions)
    if np.abs(along - np.linspace(along[0], along[-1], len(planes))).max() > max(_MAX_UNEVENNESS * length, slack):
        raise Unreadable(
            "the slices of the series are not evenly spaced: one is missing (copy the series again), or the spacing "
            "changes (resample it)"
        )
    if np.linalg.norm(step - normal * (step @ normal)) > _MAX_TILT * length + slack / (len(planes) - 1):
        raise Unreadable("the slices of the series do not stack along their normal (gantry tilt): resample it first")
    off = positions - positions[0] - np.outer(along - along[0], step / (step @ normal))
    if np.linalg.norm(off, axis=1).max() > max(_MAX_SIDESTEP * float(planes[0].spacing.min()), slack):
        raise Unreadable("the slices of the series do not lie behind each other: some are shifted sideways")
    return length


def _slack(positions: npt.NDArray[np.float64]) -> float:
    """Largest displacement in mm of a slice against the first and last that rounding may cause."""
    return ROUNDING_MM if is_rounded(positions) else 0.0


def is_rounded(positions: npt.NDArray[np.float64]) -> bool:
    """True if all coordinates are multiples of a tenth of a millimetre, to which some programs round."""
    tenths = positions / _TENTH
    return bool(np.abs(tenths - np.rint(tenths)).max() < 1e-3)
