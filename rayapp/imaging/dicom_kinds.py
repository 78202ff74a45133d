"""Kinds of DICOM files beyond their geometry: image or not, one slice or a mosaic, values stored or tabulated."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
from pydicom.dataset import Dataset
from pydicom.uid import UID

from rayapp.errors import Unreadable
from rayapp.imaging.dicom_plane import first_value

NO_IMAGES = frozenset({"SEG", "RTSTRUCT", "RTPLAN", "RTDOSE", "RTRECORD", "SR", "PR", "KO", "REG", "FID", "DOC", "M3D"})
"""Modalities of objects that accompany images without being images."""
FRAME_ATTRIBUTES = (
    *("EffectiveEchoTime", "TemporalPositionIndex", "DiffusionBValue", "NominalCardiacTriggerDelayTime"),
    *("InversionTimes", "FrameAcquisitionNumber", "StackID", "FrameType"),
)
"""Attributes that distinguish the volumes of one multi-frame object, the likeliest first."""
_MOSAIC = (0x0019, 0x100A)  # Siemens: NumberOfImagesInMosaic


@dataclass(frozen=True, kw_only=True)
class ModalityTable:
    """A Modality LUT (DICOM PS3.3 C.11.1.1): the values of the stored number `first` and of those that follow it.

    Smaller stored numbers have the first value, larger ones the last.
    """

    first: int
    values: tuple[int, ...]

    def apply(self, stored: npt.NDArray[Any]) -> npt.NDArray[np.float32]:
        """The values of stored numbers."""
        places = np.clip(stored.astype(np.int64) - self.first, 0, len(self.values) - 1)
        return np.array(self.values, np.float32)[places]


def is_image(dataset: Dataset) -> bool:
    """False for an object that is not an image: a report, a PDF, a structure set, a segmentation.

    A file that does not state its kind counts as an image, so that a truncated slice is never left out.
    """
    if dataset.get("Modality") in NO_IMAGES:
        return False
    kind = UID(str(dataset.get("SOPClassUID") or ""))
    return not (kind and kind.name != kind) or "Image Storage" in kind.name


def check_one_slice(dataset: Dataset) -> None:
    """Raise Unreadable for a file whose pixels are several slices side by side."""
    count = dataset[_MOSAIC].value if _MOSAIC in dataset else None
    several = isinstance(count, (int, float)) and count > 1
    if several or "MOSAIC" in [str(word).upper() for word in _words(dataset.get("ImageType"))]:
        raise Unreadable(
            "ImageType says MOSAIC: the slices lie side by side in one picture; convert the series to enhanced DICOM "
            "or NIfTI, with dcm2niix for example"
        )


def check_one_volume(frames: Sequence[Sequence[Dataset]]) -> None:
    """Raise Unreadable for a multi-frame object of several volumes, in which frames share a position.

    Args:
        frames: For each frame, the datasets that hold its attributes.
    """
    positions = Counter(str(first_value(frame, "ImagePositionPatient")) for frame in frames)
    if max(positions.values(), default=0) < 2:
        return
    for keyword in FRAME_ATTRIBUTES:
        values = {str(first_value(frame, keyword)) for frame in frames}
        if len(values) > 1:
            raise Unreadable(
                f"{keyword}: one file holds {len(values)} volumes, which differ in it: convert each to a file of its "
                "own, with dcm2niix for example"
            )
    raise Unreadable("ImagePositionPatient: frames of one file lie at the same position: split it into its volumes")


def modality_table(places: Sequence[Dataset]) -> ModalityTable | None:
    """The frame's Modality LUT; None if values are stored directly or rescaled by a slope. Raises Unreadable."""
    for place in places:
        if place.get("ModalityLUTSequence"):
            item = place.ModalityLUTSequence[0]
            try:
                count, first, _ = (int(number) for number in item.LUTDescriptor)
                data = item.LUTData
                values = np.frombuffer(data, "<u2").tolist() if isinstance(data, bytes) else [int(n) for n in data]
            except (AttributeError, TypeError, ValueError) as error:
                raise Unreadable("ModalityLUTSequence is damaged: its descriptor or data are missing") from error
            if len(values) != (count or 1 << 16):
                raise Unreadable(f"ModalityLUTSequence has {len(values)} values, and its LUTDescriptor says {count}")
            if place.get("PixelRepresentation") and first >= 1 << 15:
                first -= 1 << 16
            return ModalityTable(first=first, values=tuple(values))
    return None


def _words(value: Any) -> Sequence[Any]:
    return [] if value is None else [value] if isinstance(value, str) else list(value)
