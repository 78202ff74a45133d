"""DICOM SEG: label maps written as segmentation objects, and segmentation objects of any origin read as label maps.

Written with highdicom as specified in DICOM PS3.3 A.51 (BINARY) and A.92 (LABELMAP): one segment per value that occurs,
with coded category and type, algorithm identification, a tracking UID that stays the same across revisions, and
references to the source instances. Read frame by frame; each is placed by its position in the patient, so that omitted
empty frames and any order or orientation of frames are handled. Thread-safe.
"""

from __future__ import annotations

import hashlib
import itertools
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from io import BytesIO
from pathlib import Path
from typing import Any, Literal

import highdicom
import numpy as np
import numpy.typing as npt
import pydicom
from highdicom.seg import SOP_CLASS_UIDS, SegmentDescription
from pydicom.dataset import Dataset
from pydicom.pixels.utils import iter_pixels
from pydicom.sr.codedict import codes

from rayapp import __version__
from rayapp.errors import BadRequest, GridMismatch, Unreadable
from rayapp.geometry import index_to_mm, mm_to_index, same_grid, spacing
from rayapp.imaging import dicom_series
from rayapp.imaging.dicom_plane import ROUNDING_MM, Plane, first_value, frame_datasets, is_rounded, read_plane
from rayapp.imaging.dicom_seg_source import character_set, complete, sources
from rayapp.imaging.dicom_terms import terms_of
from rayapp.imaging.payload import check_size
from rayapp.imaging.volume import Grid, Masks, Segmentation

Kind = Literal["BINARY", "LABELMAP"]

MANUFACTURER = "rayapp"
_OFF_GRID = 0.05  # maximum distance, in voxels, between a frame's pixel and its voxel
_UNEVEN = 0.11  # the same along the slices' normal, as slices may be spaced a little unevenly
_ROUNDED = 0.4  # and for positions that are rounded
_UNNAMED, _MAX_VALUE = "label {}", 65535
_NUMBER = 300
"""SeriesNumber of a segmentation, chosen to sort after the scanner's series."""


class OverlappingSegments(Unreadable):
    """The segments overlap, so they do not form a label map: read them with `read_masks`."""


@dataclass(frozen=True, kw_only=True)
class Provenance:
    """The origin of a label, recorded in its DICOM SEG.

    Attributes:
        model: name of the model; "" for a label drawn by hand.
        version: version of the model.
        corrected: True if an annotator corrected the model's result.
        description: SeriesDescription.
        identity: seed of the UIDs: the same identity gives the same UIDs, so that storing twice stores one object; ""
            gives new UIDs.
        entries: entries of `label_info` by segment name; see `terms_of`.
    """

    model: str = ""
    version: str = "1"
    corrected: bool = False
    description: str = ""
    identity: str = ""
    entries: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)

    @property
    def algorithm_type(self) -> str:
        """Value of SegmentAlgorithmType."""
        return ("SEMIAUTOMATIC" if self.corrected else "AUTOMATIC") if self.model else "MANUAL"


def encode(
    label: Segmentation | Masks, source: Path, *, kind: Kind = "BINARY", provenance: Provenance | None = None
) -> bytes:
    """A DICOM SEG file of a label, on the grid of a DICOM series.

    Segments are numbered 1..N in the order of their values; in a LABELMAP the numbers are the values. A named structure
    without a voxel is a segment without a frame, which says that it was looked for; a label of nothing is one too.

    Args:
        label: the label map or masks.
        source: folder with the series' DICOM files.
        kind: type of the segmentation.
        provenance: how the label was made.

    Raises:
        BadRequest: if overlapping masks are to be stored as a LABELMAP.
        GridMismatch: if the label lies on another grid.
        Unreadable: if the series cannot be read, or lacks attributes that a segmentation must copy.
    """
    provenance = provenance or Provenance()
    grid = dicom_series.read_grid(source)
    if not same_grid(label.array.shape[-3:], label.affine, grid.shape, grid.affine):
        raise GridMismatch("the label does not lie on the grid of its DICOM series: resample it onto the series")
    pixels, values = _pixels(label, kind)
    images, order, first = sources(source)
    pixels = pixels[order]
    empty = not label.array.any()
    complete(images[0])  # highdicom copies patient and study from the first image only
    segments = [_segment(number, name, images[0], provenance) for number, name in values.items()]
    uid = _Uids(provenance.identity)
    try:
        segmentation = highdicom.seg.Segmentation(
            source_images=images,
            pixel_array=pixels[:1] if empty else pixels,
            plane_positions=[highdicom.PlanePositionSequence("PATIENT", first)] if empty else None,
            segmentation_type=kind,
            omit_empty_frames=not empty,
            segment_descriptions=segments,
            series_instance_uid=uid("series"),
            series_number=_NUMBER,
            sop_instance_uid=uid("instance"),
            instance_number=1,
            manufacturer=MANUFACTURER,
            manufacturer_model_name=MANUFACTURER,
            software_versions=__version__,
            device_serial_number="0",
            content_description=provenance.description[:64] or None,
            series_description=provenance.description[:64] or "Segmentation",
            specific_character_set=character_set(images[0]),
        )
    except AttributeError as error:
        raise Unreadable(f"the series lacks {error.name}, which a DICOM SEG must copy from it") from error
    except (ValueError, TypeError, KeyError) as error:
        # The error's own text may quote the header.
        raise Unreadable(
            f"no DICOM SEG can be made: the series' headers are invalid ({type(error).__name__})"
        ) from error
    buffer = BytesIO()
    segmentation.save_as(buffer)
    return buffer.getvalue()


def _pixels(label: Segmentation | Masks, kind: Kind) -> tuple[npt.NDArray[Any], dict[int, str]]:
    """Pixels (k, j, i), with a last axis of segments for masks, and the name of each segment by its value there."""
    values = _values(label)
    if isinstance(label, Masks):
        if kind == "LABELMAP":
            raise BadRequest("a LABELMAP cannot hold masks that may overlap: store them as BINARY")
        return label.array.transpose(3, 2, 1, 0), values
    numbered = dict(enumerate(values.values(), 1))
    if kind == "LABELMAP" or list(values) == list(numbered):
        return label.array.transpose(2, 1, 0), values
    ranks = np.zeros(max(values) + 1, label.array.dtype)
    ranks[list(values)] = np.arange(1, len(values) + 1)
    return ranks[label.array].transpose(2, 1, 0), numbered


def _values(label: Segmentation | Masks) -> dict[int, str]:
    """Value and name of each segment: those that are named and those that occur, at least one."""
    if isinstance(label, Masks):
        return dict(enumerate(label.names, 1)) or {1: _UNNAMED.format(1)}
    names = {value: name for name, value in label.names.items() if 0 < value <= _MAX_VALUE}
    occur = {int(value) for value in np.unique(label.array) if value}
    return {value: names.get(value, _UNNAMED.format(value)) for value in sorted(occur | names.keys() or {1})}


def _segment(number: int, name: str, image: Dataset, provenance: Provenance) -> SegmentDescription:
    terms = terms_of(name, provenance.entries.get(name))
    algorithm = None
    if provenance.model:
        family = codes.cid7162.ArtificialIntelligence
        algorithm = highdicom.AlgorithmIdentificationSequence(provenance.model[:64], family, provenance.version[:64])
    segment = SegmentDescription(
        segment_number=number,
        segment_label=name[:64],
        segmented_property_category=terms.category,
        segmented_property_type=terms.type,
        algorithm_type=provenance.algorithm_type,
        algorithm_identification=algorithm,
        tracking_id=f"{name[:48]} of rayapp",
        tracking_uid=_Uids(f"{image.get('SeriesInstanceUID')} {name}")("tracked"),
    )
    if terms.side is not None:
        segment.SegmentedPropertyTypeCodeSequence[0].SegmentedPropertyTypeModifierCodeSequence = [terms.side]
    return segment


def series_uid(identity: str) -> str:
    """SeriesInstanceUID of the DICOM SEG that `encode` makes for a label of this identity."""
    return _Uids(identity)("series")


class _Uids:
    """UIDs derived from an identity, a different one for each purpose (UUID-derived, PS3.5 B.2)."""

    def __init__(self, identity: str) -> None:
        self._identity = identity

    def __call__(self, use: str) -> str:
        if not self._identity:
            return str(highdicom.UID())
        digest = hashlib.sha256(f"{use} {self._identity}".encode()).digest()
        return f"2.25.{int.from_bytes(digest[:16], 'big')}"


def read_segmentation(path: Path, grid: Grid, *, max_bytes: int) -> Segmentation:
    """A DICOM SEG of any origin as a label map on the image's grid; values are its segment numbers.

    Raises:
        OverlappingSegments: if segments overlap.
        GridMismatch: if its pixels do not coincide with the grid's voxels.
        Unreadable: if it is not a segmentation object, or is damaged.
        TooLarge: if it needs more than `max_bytes`.
    """
    dataset = _open(path)
    segments = _segments(dataset)
    dtype = np.uint8 if max(segments) < 256 else np.uint16
    check_size(int(np.prod(grid.shape)) * np.dtype(dtype).itemsize, max_bytes)
    array = np.zeros(grid.shape, dtype, order="F")
    for number, where in _marked(dataset, grid, max_bytes):
        before = array[where]
        if ((before != 0) & (before != number)).any():
            raise OverlappingSegments("the DICOM SEG's segments overlap, so they do not form a label map")
        array[where] = number
    return Segmentation(array=array, affine=grid.affine, names={name: number for number, name in segments.items()})


def read_masks(path: Path, grid: Grid, *, max_bytes: int) -> Masks:
    """A DICOM SEG as one mask per segment. Raises as `read_segmentation`, but allows overlaps."""
    dataset = _open(path)
    segments = _segments(dataset)
    check_size(int(np.prod(grid.shape)) * len(segments), max_bytes)
    array = np.zeros((len(segments), *grid.shape), np.bool_)
    places_of = {number: place for place, number in enumerate(segments)}
    for number, where in _marked(dataset, grid, max_bytes):
        array[places_of[number]][where] = True
    return Masks(array=array, affine=grid.affine, names=tuple(segments.values()))


def _open(path: Path) -> Dataset:
    try:
        dataset = pydicom.dcmread(path)
        if dataset.SOPClassUID not in SOP_CLASS_UIDS:
            raise Unreadable("the DICOM file is not a segmentation object")
        if dataset.SegmentationType not in ("BINARY", "LABELMAP"):
            raise Unreadable("FRACTIONAL segmentations are not supported: convert it to BINARY or LABELMAP")
        if not _segments(dataset):
            raise Unreadable("the segmentation does not describe any segment")
        return dataset
    except Unreadable:
        raise
    except Exception as error:  # damaged files make the parser raise almost anything
        raise Unreadable(f"the DICOM SEG is damaged ({type(error).__name__})") from error


def _segments(dataset: Dataset) -> dict[int, str]:
    """Number and label of each segment; duplicate labels are made unique. Number 0 is background (LABELMAP)."""
    segments: dict[int, str] = {}
    for item in dataset.SegmentSequence:
        number, name = int(item.SegmentNumber), str(item.get("SegmentLabel") or f"label {item.SegmentNumber}")
        if number:
            segments[number] = name if name not in segments.values() else f"{name} {number}"
    return segments


Where = tuple[npt.NDArray[np.intp], npt.NDArray[np.intp], npt.NDArray[np.intp]]


def _marked(dataset: Dataset, grid: Grid, max_bytes: int) -> Iterator[tuple[int, Where]]:
    """Segment number and marked voxels (i, j, k) of each frame that marks any; one frame is decoded at a time."""
    try:
        described = [
            (read_plane(where), first_value(where, "ReferencedSegmentNumber")) for where in frame_datasets(dataset)
        ]
        check_size(int(dataset.Rows) * int(dataset.Columns), max_bytes)
    except Unreadable:
        raise
    except Exception as error:  # damaged files make the parser raise almost anything
        raise Unreadable(f"the DICOM SEG's frames cannot be decoded ({type(error).__name__})") from error
    segments = _segments(dataset)
    for frame, (frame_plane, number) in zip(_decoded(dataset, len(described)), described, strict=True):
        if number is not None:
            numbers: Sequence[int] = [int(number)]
        else:
            numbers = [int(value) for value in np.unique(frame) if value]
        for one in numbers:
            rows, columns = np.nonzero(frame if number is not None else frame == one)
            if one not in segments:
                raise Unreadable(f"the DICOM SEG has a frame of segment {one}, which its SegmentSequence lacks")
            if rows.size:
                yield one, _voxels(frame_plane, rows, columns, grid)


def _decoded(dataset: Dataset, count: int) -> Iterator[npt.NDArray[Any]]:
    """The frames' pixels (row, column), decoded one by one: unpacked bits take eight times the file's size."""
    rows, columns = int(dataset.Rows), int(dataset.Columns)
    packed = dataset.BitsAllocated == 1 and not dataset.file_meta.TransferSyntaxUID.is_encapsulated
    try:
        frames = _unpacked(dataset.PixelData, rows * columns) if packed else iter_pixels(dataset, raw=True)
        for _ in range(count):
            yield next(frames).reshape(rows, columns)
    except Exception as error:  # decoders raise almost anything on damaged data
        raise Unreadable(f"the DICOM SEG's frames cannot be decoded ({type(error).__name__})") from error


def _unpacked(pixel_data: bytes, size: int) -> Iterator[npt.NDArray[np.uint8]]:
    """The bits of frames that follow each other without padding to whole bytes (PS3.5 8.1.1)."""
    data = np.frombuffer(pixel_data, np.uint8)
    for start in itertools.count(0, size):
        part = np.unpackbits(data[start // 8 : -(-(start + size) // 8)], bitorder="little")
        yield part[start % 8 : start % 8 + size]


def _voxels(plane: Plane, rows: npt.NDArray[np.intp], columns: npt.NDArray[np.intp], grid: Grid) -> Where:
    """The voxels of a frame's pixels, found from a first one and the steps along rows and columns."""
    first, extent = np.array((columns.min(), rows.min(), 0)), np.array((np.ptp(columns), np.ptp(rows), 0))
    away = extent * np.array([(0, 0, 0), (1, 0, 0), (0, 1, 0), (1, 1, 0)])
    exact = mm_to_index(grid.affine, index_to_mm(plane.affine(plane.normal), first + away))
    start, right, down = (np.rint(corner).astype(np.intp) for corner in exact[:3])
    along, across = (right - start) // max(1, extent[0]), (down - start) // max(1, extent[1])
    voxels = start + away[:, :1] * along + away[:, 1:2] * across
    allowed = np.array([_OFF_GRID, _OFF_GRID, _UNEVEN])
    if is_rounded(plane.position):
        allowed = np.maximum(allowed, np.minimum(ROUNDING_MM / spacing(grid.affine), _ROUNDED))
    if (np.abs(exact - voxels) > allowed).any() or voxels.min() < 0 or (voxels >= grid.shape).any():
        raise GridMismatch("the DICOM SEG's pixels do not coincide with the image's voxels: it is of another series")
    to_right, to_bottom = columns - first[0], rows - first[1]
    i, j, k = (start[n] + to_right * along[n] + to_bottom * across[n] for n in range(3))
    return i, j, k
