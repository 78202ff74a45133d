"""Volumes as DICOM instances, made on demand, for viewers that read nothing else.

A series' voxels are those of its image: columns run along i, rows along j, slices along k. DICOM counts slices along
row x column, so an image whose axes are left-handed is shown with k reversed (`Stack.flipped`); nothing is resampled.
Values are the image's where whole numbers of 16 bits hold them, else 65,536 steps between its least and its greatest.
UIDs are digests of the image's id: the same everywhere and always, and nothing can be read from them. Pure functions
but for `write` and `read`; safe from any thread.
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
from rayapp.imaging.volume import Grid, Volume

ROOT = PYDICOM_ROOT_UID
"""How all UIDs made here begin."""
VOXELS, ABOUT = "voxels.nii", "stack.json"
_HEADER = 352  # bytes before the voxels of a NIfTI-1 file
_SAMPLED = 200_000  # voxels that are looked at for the window
_HOUNSFIELD_AIR = -400

Voxels = npt.NDArray[np.integer[Any]]
"""(I, J, K), int16 or uint16."""
Level = Literal["study", "series", "instance"]


def uid_of(level: Level, image_id: str, number: int = 0) -> str:
    """The UID of an image's study or series, or of its slice `number`."""
    return str(generate_uid(ROOT, entropy_srcs=["rayapp", "\0", level, "\0", image_id, "\0", str(number)]))


@dataclass(frozen=True, kw_only=True)
class Stack:
    """An image as a series: its grid with slices in DICOM's order, and how stored values become the image's."""

    image_id: str
    shape: tuple[int, int, int]
    affine: tuple[tuple[float, ...], ...]
    """Index to RAS millimetres, right-handed."""
    flipped: bool
    """Slice k here is slice K - 1 - k of the image."""
    signed: bool
    slope: float
    intercept: float
    modality: Literal["CT", "MR"]
    window: tuple[float, float]
    """Centre and width."""

    @property
    def grid(self) -> Grid:
        return Grid(shape=self.shape, affine=np.array(self.affine))

    @property
    def frame_bytes(self) -> int:
        """Bytes of one slice."""
        return self.shape[0] * self.shape[1] * 2


def stack_of(volume: Volume, image_id: str) -> tuple[Stack, Voxels]:
    """The image's first channel as a series; the voxels (I, J, K) are a view where they can be.

    Raises Unreadable for a sheared grid, which DICOM cannot say.
    """
    if not is_orthogonal(volume.affine):
        raise Unreadable("the image's axes are not at right angles (shear): it cannot be shown as DICOM; resample it")
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
    """16-bit values, and the slope and intercept that make them the image's."""
    finite = array if array.dtype.kind in "biu" else np.nan_to_num(array, nan=float(np.nanmin(array)))
    low, high = float(finite.min()), float(finite.max())
    whole = array.dtype.kind in "biu" or bool((finite == np.rint(finite)).all())
    for kind in (np.int16, np.uint16):
        if whole and np.iinfo(kind).min <= low and high <= np.iinfo(kind).max:
            return finite.astype(kind, copy=False), 1.0, 0.0
    slope = (high - low) / 65535 or 1.0
    steps = np.rint((finite.astype(np.float64) - low) / slope)
    return steps.astype(np.uint16), slope, low


def write(folder: Path, stack: Stack, voxels: Voxels) -> None:
    """Keep a series in an empty folder: the voxels as NIfTI on the stack's grid, and what is known of them."""
    image = nibabel.Nifti1Image(voxels, np.array(stack.affine))
    image.header.set_slope_inter(stack.slope, stack.intercept)
    image.to_filename(folder / VOXELS)
    (folder / ABOUT).write_text(json.dumps(dataclasses.asdict(stack)))


def read(folder: Path) -> Stack:
    """What `write` kept. Raises FileNotFoundError."""
    known = json.loads((folder / ABOUT).read_text())
    tuples = {"shape": tuple(known["shape"]), "window": tuple(known["window"])}
    return Stack(**{**known, **tuples, "affine": tuple(tuple(row) for row in known["affine"])})


def frame(folder: Path, stack: Stack, number: int) -> bytes:
    """The stored values of slice `number`, little endian, rows of columns. Raises FileNotFoundError."""
    with (folder / VOXELS).open("rb") as file:
        file.seek(_HEADER + number * stack.frame_bytes)
        return file.read(stack.frame_bytes)


def study_dataset(image_id: str) -> Dataset:
    """The attributes of an image's study that are known without its voxels. Its patient is the image's id."""
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
    """The attributes that all slices share."""
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
    """Every slice without its pixels, in order."""
    shared, lps = series_dataset(stack), ras_to_lps(np.array(stack.affine))
    made = []
    for number in range(stack.shape[2]):
        dataset = Dataset()
        dataset.update(shared)
        dataset.SOPInstanceUID = uid_of("instance", stack.image_id, number)
        dataset.InstanceNumber = number + 1
        dataset.ImagePositionPatient = _numbers(lps[:3, 3] + number * lps[:3, 2])
        made.append(dataset)
    return made


def _numbers(values: Any) -> list[DSfloat]:
    return [DSfloat(float(value), auto_format=True) for value in values]
