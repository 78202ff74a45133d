"""Volumes as DICOM instances, generated on demand for viewers that read only DICOM.

A series' voxels are those of its image: columns run along i, rows along j, slices along k. DICOM orders slices along
row x column, so an image with left-handed axes gets its k reversed (`Stack.flipped`); nothing is resampled. Values are
stored exactly if they are whole numbers that fit 16 bits, else quantised to 65,536 steps between the image's minimum
and maximum (or, if outliers would take most of the steps, between the ends of all but these). UIDs are hashes of the
image's id: they are stable and reveal nothing. Pure functions except `write`, `read` and `frame`; thread-safe.
"""

from __future__ import annotations

import dataclasses
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import nibabel
import numpy as np
import numpy.typing as npt
from pydicom.dataset import Dataset
from pydicom.uid import PYDICOM_ROOT_UID, CTImageStorage, MRImageStorage, generate_uid
from pydicom.valuerep import DSfloat

from rayapp.errors import Unreadable
from rayapp.geometry import Affine, is_orthogonal, ras_to_lps, spacing
from rayapp.imaging.finite_values import finite_values
from rayapp.imaging.volume import Grid, Volume

ROOT = PYDICOM_ROOT_UID
"""Prefix of all UIDs generated here."""
VOXELS, DESCRIPTION = "voxels.nii", "stack.json"
_HEADER = 352  # bytes before the voxels of a NIfTI-1 file
_SAMPLED = 200_000  # voxels sampled for the window
_HOUNSFIELD_AIR = -400
_STEPS, _MARGIN = 1024, 8.0  # least steps for the central values; how much wider than theirs the range may be

Voxels = npt.NDArray[np.integer[Any]]
"""Shape (I, J, K), int16 or uint16."""
Level = Literal["study", "series", "instance"]


def uid_of(level: Level, image_id: str, number: int = 0) -> str:
    """UID of the study or series of an image, or of its slice `number`."""
    return str(generate_uid(ROOT, entropy_srcs=["rayapp", "\0", level, "\0", image_id, "\0", str(number)]))


@dataclass(frozen=True, kw_only=True)
class Stack:
    """An image as a DICOM series: its grid in DICOM's slice order, and the rescaling of its stored values.

    Attributes:
        image_id: id of the image.
        shape: columns, rows and slices.
        affine: index to RAS mm; right-handed.
        flipped: True if slice k of the series is slice K - 1 - k of the image.
        signed: True if stored values are int16, False for uint16.
        slope: Rescale Slope: value = slope * stored + intercept.
        intercept: Rescale Intercept.
        modality: CT if values look like Hounsfield units, else MR.
        window: centre and width of the default window, in the image's values.
    """

    image_id: str
    shape: tuple[int, int, int]
    affine: tuple[tuple[float, ...], ...]
    flipped: bool
    signed: bool
    slope: float
    intercept: float
    modality: Literal["CT", "MR"]
    window: tuple[float, float]

    @property
    def grid(self) -> Grid:
        return Grid(shape=self.shape, affine=np.array(self.affine))

    @property
    def frame_bytes(self) -> int:
        """Size of one slice in bytes."""
        return self.shape[0] * self.shape[1] * 2


def stack_of(volume: Volume, image_id: str) -> tuple[Stack, Voxels]:
    """The image's first channel as a series, and its stored values (a view where possible).

    Raises Unreadable for a sheared grid, which DICOM cannot represent.
    """
    if not is_orthogonal(volume.affine):
        raise Unreadable("the image's axes are not orthogonal (shear), which DICOM cannot represent: resample it")
    array, affine = volume.array[0], volume.affine
    flipped = bool(np.linalg.det(affine[:3, :3]) < 0)
    if flipped:
        array, affine = array[:, :, ::-1], _reversed(affine, volume.shape[2])
    voxels, slope, intercept = _stored(array)
    sample = voxels[tuple(slice(None, None, max(1, round((voxels.size / _SAMPLED) ** (1 / 3)))) for _ in range(3))]
    low, high = (float(x) * slope + intercept for x in np.percentile(sample, (0.5, 99.8)))
    modality: Literal["CT", "MR"] = "CT" if float(sample.min()) * slope + intercept < _HOUNSFIELD_AIR else "MR"
    stack = Stack(
        image_id=image_id,
        shape=volume.shape,
        affine=tuple(tuple(float(x) for x in row) for row in affine),
        flipped=flipped,
        signed=voxels.dtype.kind == "i",
        slope=slope,
        intercept=intercept,
        modality=modality,
        window=(40.0, 400.0) if modality == "CT" else ((low + high) / 2, max(high - low, slope)),
    )
    return stack, voxels


def _reversed(affine: Affine, slices: int) -> Affine:
    moved = affine.copy()
    moved[:3, 3] += affine[:3, 2] * (slices - 1)
    moved[:3, 2] *= -1
    return moved


def _stored(array: npt.NDArray[Any]) -> tuple[Voxels, float, float]:
    """16-bit stored values, and the slope and intercept that map them to the image's values."""
    array = finite_values(array)
    low, high = float(array.min()), float(array.max())
    integral = array.dtype.kind in "biu" or bool((array == np.rint(array)).all())
    for kind in (np.int16, np.uint16):
        if integral and np.iinfo(kind).min <= low and high <= np.iinfo(kind).max:
            return array.astype(kind, copy=False), 1.0, 0.0
    low, high = _range(array, low, high)
    slope = (high - low) / 65535 or 1.0
    steps = np.clip(np.rint((array.astype(np.float64) - low) / slope), 0, 65535)
    return steps.astype(np.uint16), slope, low


def _range(array: npt.NDArray[Any], low: float, high: float) -> tuple[float, float]:
    """The range to quantise: all values, unless a few are so far off that too few steps would be left for the others.

    Then it is that of the central 99 % of the values, widened; what lies beyond is stored as its ends.
    """
    every = tuple(slice(None, None, max(1, round((array.size / _SAMPLED) ** (1 / 3)))) for _ in range(3))
    sample = array[every].astype(np.float64)
    central_low = float(np.percentile(sample, 0.5, method="higher"))
    central_high = float(np.percentile(sample, 99.5, method="lower"))
    width = central_high - central_low
    if width <= 0 or (high - low) / 65535 <= width / _STEPS:
        return low, high
    return max(low, central_low - _MARGIN * width), min(high, central_high + _MARGIN * width)


def write(folder: Path, stack: Stack, voxels: Voxels) -> None:
    """Write a series into an empty folder: the voxels as NIfTI on the stack's grid, and its description."""
    image = nibabel.Nifti1Image(voxels, np.array(stack.affine))
    image.header.set_slope_inter(stack.slope, stack.intercept)
    image.to_filename(folder / VOXELS)
    (folder / DESCRIPTION).write_text(json.dumps(dataclasses.asdict(stack)))


def read(folder: Path) -> Stack:
    """The stack that `write` stored. Raises FileNotFoundError."""
    fields = json.loads((folder / DESCRIPTION).read_text())
    tuples = {"shape": tuple(fields["shape"]), "window": tuple(fields["window"])}
    return Stack(**{**fields, **tuples, "affine": tuple(tuple(row) for row in fields["affine"])})


def frame(folder: Path, stack: Stack, number: int) -> bytes:
    """Stored values of slice `number`: little endian, row by row. Raises FileNotFoundError."""
    with (folder / VOXELS).open("rb") as file:
        file.seek(_HEADER + number * stack.frame_bytes)
        return file.read(stack.frame_bytes)


def study_dataset(image_id: str) -> Dataset:
    """Attributes of an image's study that do not depend on its voxels. PatientName and PatientID are the image's id."""
    dataset = Dataset()
    dataset.SpecificCharacterSet = "ISO_IR 192"
    dataset.StudyInstanceUID = uid_of("study", image_id)
    dataset.PatientName = image_id[:64]
    dataset.PatientID = image_id[:64]
    dataset.StudyDescription = image_id[:64]
    dataset.StudyID = dataset.AccessionNumber = dataset.StudyDate = dataset.StudyTime = ""
    dataset.ReferringPhysicianName = dataset.PatientBirthDate = dataset.PatientSex = ""
    return dataset


def series_dataset(stack: Stack) -> Dataset:
    """Attributes that all instances share."""
    dataset = study_dataset(stack.image_id)
    dataset.SOPClassUID = CTImageStorage if stack.modality == "CT" else MRImageStorage
    dataset.Modality = stack.modality
    dataset.SeriesInstanceUID = uid_of("series", stack.image_id)
    dataset.SeriesNumber = 1
    dataset.SeriesDescription = stack.image_id[:64]
    dataset.FrameOfReferenceUID = uid_of("study", stack.image_id, 1)
    dataset.PositionReferenceIndicator = ""
    dataset.ImageType = ["DERIVED", "SECONDARY"]
    lps, steps = ras_to_lps(np.array(stack.affine)), spacing(np.array(stack.affine))
    cosines = lps[:3, :3] / steps
    dataset.ImageOrientationPatient = _numbers(np.concatenate([cosines[:, 0], cosines[:, 1]]))
    dataset.PixelSpacing = _numbers([steps[1], steps[0]])
    dataset.SliceThickness = dataset.SpacingBetweenSlices = _numbers([steps[2]])[0]
    dataset.Columns, dataset.Rows = stack.shape[:2]
    dataset.SamplesPerPixel, dataset.PhotometricInterpretation = 1, "MONOCHROME2"
    dataset.BitsAllocated = dataset.BitsStored = 16
    dataset.HighBit, dataset.PixelRepresentation = 15, int(stack.signed)
    dataset.RescaleSlope, dataset.RescaleIntercept = _numbers([stack.slope, stack.intercept])
    dataset.WindowCenter, dataset.WindowWidth = _numbers(stack.window)
    return dataset


def instance_datasets(stack: Stack) -> list[Dataset]:
    """All instances without pixel data, in slice order."""
    shared, lps = series_dataset(stack), ras_to_lps(np.array(stack.affine))
    instances = []
    for number in range(stack.shape[2]):
        dataset = Dataset()
        dataset.update(shared)
        dataset.SOPInstanceUID = uid_of("instance", stack.image_id, number)
        dataset.InstanceNumber = number + 1
        dataset.ImagePositionPatient = _numbers(lps[:3, 3] + number * lps[:3, 2])
        instances.append(dataset)
    return instances


def _numbers(values: Any) -> list[DSfloat]:
    return [DSfloat(float(value), auto_format=True) for value in values]
