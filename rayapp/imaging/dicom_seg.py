"""DICOM SEG: label maps as the segmentations of an archive, and those of others as label maps.

Written by highdicom, by DICOM PS3.3 A.51 (BINARY) and A.92 (LABELMAP): one segment for each value that occurs, with
coded category and type, the algorithm's identification, a tracking id that stays the same over revisions, and a
reference to each source instance. Read frame by frame, each put where its position in the patient says, so that
left-out empty frames, other orders and other orientations of the frames do not matter.

Everything here may run in several threads at once.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from io import BytesIO
from pathlib import Path
from typing import Any, Literal

import highdicom
import numpy as np
import numpy.typing as npt
import pydicom
from highdicom.enum import SpecificCharacterSetValues
from highdicom.seg import SOP_CLASS_UIDS, SegmentDescription
from pydicom.dataset import Dataset
from pydicom.sr.codedict import codes
from pydicom.valuerep import DA, TM

from rayapp import __version__
from rayapp.errors import BadRequest, GridMismatch, Unreadable
from rayapp.geometry import index_to_mm, mm_to_index, same_grid
from rayapp.imaging import dicom
from rayapp.imaging.dicom_plane import Plane, found, places, plane
from rayapp.imaging.dicom_terms import terms_of
from rayapp.imaging.payload import check_size
from rayapp.imaging.volume import Affine, Grid, Segmentation, from_below

Kind = Literal["BINARY", "LABELMAP"]

MANUFACTURER = "rayapp"
_OFF_GRID = 0.05  # of a voxel: how far a frame's pixel may lie from the voxel it stands for
_NUMBER = 300
"""Of the series, behind those of the scanner."""


class Overlapping(Unreadable):
    """The segments overlap, so they are no label map: read them as masks."""


@dataclass(frozen=True, kw_only=True)
class Masks:
    """Segments that may overlap. `array` is (S, I, J, K), boolean; `names` are the segments', one each."""

    array: npt.NDArray[np.bool_]
    affine: Affine
    names: tuple[str, ...]


@dataclass(frozen=True, kw_only=True)
class Maker:
    """How the label came to be. Without a `model` somebody drew it; `corrected` is a model's, corrected by hand."""

    model: str = ""
    version: str = "1"
    corrected: bool = False
    description: str = ""
    """Of the series."""
    identity: str = ""
    """The same identity gives the same UIDs, so that what is stored twice is stored once; "" gives new ones."""
    entries: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    """Of `label_info`, by name; see `terms_of`."""

    @property
    def algorithm_type(self) -> str:
        """DICOM's word for it."""
        return ("SEMIAUTOMATIC" if self.corrected else "AUTOMATIC") if self.model else "MANUAL"


def encode(label: Segmentation | Masks, source: Path, *, kind: Kind = "BINARY", maker: Maker | None = None) -> bytes:
    """The file of a label on the grid of the DICOM series in the folder `source`.

    Segments are numbered 1..N in the order of their values (a LABELMAP's have the values as numbers).

    Raises:
        BadRequest: if nothing is labelled, or overlapping masks are to be a LABELMAP.
        GridMismatch: if the label lies elsewhere.
        Unreadable: if the series cannot be read, or lacks what a segmentation of it must say.
    """
    maker = maker or Maker()
    grid = dicom.read_grid(source)
    if not same_grid(label.array.shape[-3:], label.affine, grid.shape, grid.affine):
        raise GridMismatch("the label does not lie on the grid of the series that it is to be stored with")
    values = _values(label)
    if isinstance(label, Masks):
        if kind == "LABELMAP":
            raise BadRequest("masks that may overlap are stored as BINARY")
        pixels: npt.NDArray[Any] = label.array.transpose(3, 2, 1, 0)
    elif kind == "LABELMAP":
        pixels = label.array.transpose(2, 1, 0)
    else:
        ranks = np.zeros(int(label.array.max()) + 1, label.array.dtype)
        ranks[list(values)] = np.arange(1, len(values) + 1)
        pixels = ranks[label.array].transpose(2, 1, 0)
        values = dict(enumerate(values.values(), 1))
    images, order = _sources(source)
    _complete(images[0])  # of which alone the patient and the study are read
    segments = [_segment(number, name, images[0], maker) for number, name in values.items()]
    uid = _Uids(maker.identity)
    try:
        made = highdicom.seg.Segmentation(
            source_images=images,
            pixel_array=pixels[order],
            segmentation_type=kind,
            segment_descriptions=segments,
            series_instance_uid=uid("series"),
            series_number=_NUMBER,
            sop_instance_uid=uid("instance"),
            instance_number=1,
            manufacturer=MANUFACTURER,
            manufacturer_model_name=MANUFACTURER,
            software_versions=__version__,
            device_serial_number="0",
            content_description=maker.description[:64] or None,
            series_description=maker.description[:64] or "Segmentation",
            specific_character_set=_character_set(images[0]),
        )
    except AttributeError as error:
        raise Unreadable(f"the series lacks {error.name}, which a DICOM SEG of it must say") from error
    except (ValueError, TypeError, KeyError) as error:
        # Whose text may quote the header.
        raise Unreadable(
            f"no DICOM SEG can be made of what the series says of itself ({type(error).__name__})"
        ) from error
    buffer = BytesIO()
    made.save_as(buffer)
    return buffer.getvalue()


def _values(label: Segmentation | Masks) -> dict[int, str]:
    """Value and name of each segment."""
    if isinstance(label, Masks):
        values = dict(enumerate(label.names, 1))
        occur = bool(label.array.any())
    else:
        names = {value: name for name, value in label.names.items()}
        values = {int(value): names.get(int(value), f"label {value}") for value in np.unique(label.array) if value}
        occur = bool(values)
    if not occur:
        raise BadRequest("nothing is labelled: a DICOM SEG holds at least one voxel")
    return values


_MAY_BE_EMPTY = (
    *("PatientName", "PatientID", "PatientBirthDate", "PatientSex"),
    *("StudyDate", "StudyTime", "StudyID", "AccessionNumber", "ReferringPhysicianName"),
)
"""Of the patient and the study (type 2 in PS3.3 C.7.1.1 and C.7.2.1): whoever makes files anonymous may leave them out,
against the standard, or put words in the place of times, but a segmentation must have them."""
_TIMES = {"PatientBirthDate": DA, "StudyDate": DA, "StudyTime": TM}


def _complete(image: Dataset) -> None:
    """Leave empty, in the image itself, what it should say of patient and study and does not."""
    for keyword in _MAY_BE_EMPTY:
        image.setdefault(keyword, "")
    for keyword, kind in _TIMES.items():
        try:
            kind(image[keyword].value)
        except ValueError:
            image[keyword].value = ""


def _sources(source: Path) -> tuple[list[Dataset], list[int]]:
    """The series' instances without their pixels, and for each of their frames the k of its slice."""
    slices = dicom.stack(source)
    files = list(dict.fromkeys(piece.path for piece in slices))
    images: list[Dataset] = [pydicom.dcmread(file, stop_before_pixels=True) for file in files]
    if len(files) == len(slices):
        return images, list(range(len(slices)))
    if len(files) > 1:
        raise Unreadable("a DICOM SEG of a series in several multi-frame objects is not written")
    return images, sorted(range(len(slices)), key=lambda k: slices[k].frame)


def _character_set(image: Dataset) -> str | list[str] | None:
    """The image's own if highdicom takes it; UTF-8 says whatever is said in others (PS3.3 C.12.1.1.2)."""
    own = image.get("SpecificCharacterSet") or None
    names = {own} if own is None or isinstance(own, str) else set(own)
    return own if names <= {None, *(known.value for known in SpecificCharacterSetValues)} else "ISO_IR 192"


def _segment(number: int, name: str, image: Dataset, maker: Maker) -> SegmentDescription:
    terms = terms_of(name, maker.entries.get(name))
    algorithm = None
    if maker.model:
        family = codes.cid7162.ArtificialIntelligence
        algorithm = highdicom.AlgorithmIdentificationSequence(maker.model[:64], family, maker.version[:64])
    segment = SegmentDescription(
        segment_number=number,
        segment_label=name[:64],
        segmented_property_category=terms.category,
        segmented_property_type=terms.type,
        algorithm_type=maker.algorithm_type,
        algorithm_identification=algorithm,
        tracking_id=f"{name[:48]} of rayapp",
        tracking_uid=_Uids(f"{image.get('SeriesInstanceUID')} {name}")("tracked"),
    )
    if terms.side is not None:
        segment.SegmentedPropertyTypeCodeSequence[0].SegmentedPropertyTypeModifierCodeSequence = [terms.side]
    return segment


class _Uids:
    """UIDs of an identity: each use has its own, and the same one every time (UUID-derived, PS3.5 B.2)."""

    def __init__(self, identity: str) -> None:
        self._identity = identity

    def __call__(self, use: str) -> str:
        if not self._identity:
            return str(highdicom.UID())
        digest = hashlib.sha256(f"{use} {self._identity}".encode()).digest()
        return f"2.25.{int.from_bytes(digest[:16], 'big')}"


def read_segmentation(path: Path, grid: Grid, *, max_bytes: int) -> Segmentation:
    """A DICOM SEG, by whomever, as a label map on the image's grid; values are its segments' numbers.

    Raises:
        Overlapping: if segments overlap.
        GridMismatch: if its frames lie on other voxels than the grid's.
        Unreadable, TooLarge: if it is none, or over the cap.
    """
    dataset = _opened(path)
    segments = _segments(dataset)
    dtype = np.uint8 if max(segments) < 256 else np.uint16
    check_size(int(np.prod(grid.shape)) * np.dtype(dtype).itemsize, max_bytes)
    array = np.zeros(grid.shape, dtype, order="F")
    for number, where in _marked(dataset, grid, max_bytes):
        before = array[where]
        if ((before != 0) & (before != number)).any():
            raise Overlapping("segments of the DICOM SEG overlap, so they are no label map")
        array[where] = number
    return Segmentation(array=array, affine=grid.affine, names={name: number for number, name in segments.items()})


def read_masks(path: Path, grid: Grid, *, max_bytes: int) -> Masks:
    """A DICOM SEG with each segment for itself. Raises as `read_segmentation`, overlaps excepted."""
    dataset = _opened(path)
    segments = _segments(dataset)
    check_size(int(np.prod(grid.shape)) * len(segments), max_bytes)
    array = np.zeros((len(segments), *grid.shape), np.bool_)
    places_of = {number: place for place, number in enumerate(segments)}
    for number, where in _marked(dataset, grid, max_bytes):
        array[places_of[number]][where] = True
    return Masks(array=array, affine=grid.affine, names=tuple(segments.values()))


def flattened(masks: Masks) -> Segmentation:
    """A label map with the values 1..S of masks that may overlap: where they do, the smaller one is seen."""
    count = len(masks.names)
    array = np.zeros(masks.array.shape[1:], np.uint8 if count < 256 else np.uint16, order="F")
    for place in from_below([int(mask.sum()) for mask in masks.array]):
        array[masks.array[place]] = place + 1
    return Segmentation(array=array, affine=masks.affine, names={name: n for n, name in enumerate(masks.names, 1)})


def _opened(path: Path) -> Dataset:
    try:
        dataset = pydicom.dcmread(path)
        if dataset.SOPClassUID not in SOP_CLASS_UIDS:
            raise Unreadable("the DICOM file is no segmentation")
        if dataset.SegmentationType not in ("BINARY", "LABELMAP"):
            raise Unreadable("only BINARY and LABELMAP segmentations are read, not FRACTIONAL ones")
        if not _segments(dataset):
            raise Unreadable("the segmentation describes no segment")
        return dataset
    except Unreadable:
        raise
    except Exception as error:  # damaged files make the parser raise almost anything
        raise Unreadable(f"the DICOM SEG is damaged ({type(error).__name__})") from error


def _segments(dataset: Dataset) -> dict[int, str]:
    """Number and label of each segment, labels made different where two are the same. 0 is background (LABELMAP)."""
    segments: dict[int, str] = {}
    for item in dataset.SegmentSequence:
        number, name = int(item.SegmentNumber), str(item.get("SegmentLabel") or f"label {item.SegmentNumber}")
        if number:
            segments[number] = name if name not in segments.values() else f"{name} {number}"
    return segments


Where = tuple[npt.NDArray[np.intp], npt.NDArray[np.intp], npt.NDArray[np.intp]]


def _marked(dataset: Dataset, grid: Grid, max_bytes: int) -> Iterator[tuple[int, Where]]:
    """Segment number and voxels (i, j, k) of each frame, as far as anything is marked."""
    try:
        described = [(plane(where), found(where, "ReferencedSegmentNumber")) for where in places(dataset)]
        check_size(len(described) * int(dataset.Rows) * int(dataset.Columns), max_bytes)
        frames = np.atleast_3d(dataset.pixel_array).reshape(len(described), dataset.Rows, dataset.Columns)
    except Unreadable:
        raise
    except Exception as error:  # decoders raise almost anything on damaged data
        raise Unreadable(f"the DICOM SEG's frames cannot be decoded ({type(error).__name__})") from error
    segments = _segments(dataset)
    for frame, (lies, number) in zip(frames, described, strict=True):
        if number is not None:
            numbers: Sequence[int] = [int(number)]
        else:
            numbers = [int(value) for value in np.unique(frame) if value]
        for one in numbers:
            rows, columns = np.nonzero(frame if number is not None else frame == one)
            if one not in segments:
                raise Unreadable(f"the DICOM SEG has a frame of segment {one}, which it does not describe")
            if rows.size:
                yield one, _voxels(lies, rows, columns, grid)


def _voxels(lies: Plane, rows: npt.NDArray[np.intp], columns: npt.NDArray[np.intp], grid: Grid) -> Where:
    affine = lies.affine(lies.normal)
    pixels = np.stack([columns, rows, np.zeros_like(rows)], axis=-1)
    exact = mm_to_index(grid.affine, index_to_mm(affine, pixels))
    voxels = np.rint(exact).astype(np.intp)
    if np.abs(exact - voxels).max() > _OFF_GRID or voxels.min() < 0 or (voxels >= grid.shape).any():
        raise GridMismatch("the DICOM SEG's pixels are not voxels of the image: it was made of another series")
    return voxels[:, 0], voxels[:, 1], voxels[:, 2]
