"""Kinds of DICOM files beyond geometry: image or not, encoding, one slice or a mosaic, stored or tabulated values."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from pydicom.dataelem import RawDataElement
from pydicom.dataset import Dataset
from pydicom.pixels.decoders.base import get_decoder
from pydicom.uid import UID, DeflatedExplicitVRLittleEndian

from rayapp.errors import Unreadable
from rayapp.imaging.dicom_plane import first_value

NO_IMAGES = frozenset({"SEG", "RTSTRUCT", "RTPLAN", "RTDOSE", "RTRECORD", "SR", "PR", "KO", "REG", "FID", "DOC", "M3D"})
"""Modalities of objects that accompany images without being images."""
FRAME_ATTRIBUTES = (
    *("EffectiveEchoTime", "TemporalPositionIndex", "DiffusionBValue", "NominalCardiacTriggerDelayTime"),
    *("InversionTimes", "FrameAcquisitionNumber", "StackID", "FrameType"),
)
"""Attributes that distinguish the volumes of one multi-frame object, the likeliest first."""
_NAMED = (".dcm", ".ima")
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


def is_dicom(path: Path) -> bool:
    """True if a file begins as DICOM files do. Raises OSError."""
    with path.open("rb") as file:
        return file.read(132)[128:] == b"DICM"


def why_no_dicom(path: Path) -> str:
    """What is wrong with a file that `is_dicom` rejects, if its name or content suggests DICOM; else "". Raises
    OSError.
    """
    with path.open("rb") as file:
        group, element = file.read(2), file.read(6)
    if group in (b"\x02\0", b"\x08\0") and (element[2:4].isalpha() or element[4:6] == b"\0\0"):
        return "it is DICOM without the header of a file (preamble, meta information): add it, with dcmconv for example"
    return "it is no DICOM file, although its name says so: copy it again" if path.suffix.lower() in _NAMED else ""


def is_image(dataset: Dataset) -> bool:
    """False for an object that is not an image: a report, a PDF, a structure set, a segmentation.

    A file that does not state its kind counts as an image, so that a truncated slice is never left out.
    """
    if dataset.get("Modality") in NO_IMAGES:
        return False
    kind = UID(str(dataset.get("SOPClassUID") or ""))
    return not (kind and kind.name != kind) or "Image Storage" in kind.name


def kind_of(dataset: Dataset) -> str:
    """A word for an object that is no image: its modality, such as RTDOSE, or the standard's name of it."""
    modality = str(dataset.get("Modality"))
    return modality if modality in NO_IMAGES else UID(str(dataset.SOPClassUID)).name.removesuffix(" Storage")


def check_deflated(meta: Dataset) -> None:
    """Raise Unreadable for a file that is compressed as a whole."""
    if meta.get("TransferSyntaxUID") == DeflatedExplicitVRLittleEndian:
        raise Unreadable(
            "TransferSyntaxUID: deflated DICOM files are not read, as they may inflate to any size: convert them to "
            "another transfer syntax"
        )


def check_syntax(meta: Dataset) -> None:
    """Raise Unreadable for a file whose pixels cannot be decoded."""
    check_deflated(meta)
    syntax = meta.get("TransferSyntaxUID")
    if not syntax:
        raise Unreadable(
            "TransferSyntaxUID is missing, so the encoding of the pixels is unknown: export the series again"
        )
    try:
        decoded = get_decoder(syntax).is_available
    except NotImplementedError:
        decoded = False
    if not decoded:
        raise Unreadable(
            f"TransferSyntaxUID: pixels in {syntax.name} are not decoded here: convert the series to an "
            "uncompressed one, with gdcmconv --raw for example"
        )


def check_encoding(dataset: Dataset) -> None:
    """Raise Unreadable for a file in another encoding than its TransferSyntaxUID says: its pixels would be read at a
    wrong offset.
    """
    element: Any = dataset.get_item("Rows")
    implicit = dataset.file_meta.TransferSyntaxUID.is_implicit_VR
    if isinstance(element, RawDataElement) and element.is_implicit_VR != implicit:
        raise Unreadable("TransferSyntaxUID contradicts the file's encoding, explicit or implicit VR: export it again")


def check_intensities(dataset: Dataset) -> None:
    """Raise Unreadable for pixels that are numbers of colours in a palette."""
    if dataset.get("PhotometricInterpretation") == "PALETTE COLOR":
        raise Unreadable(
            "PhotometricInterpretation PALETTE COLOR: pixels are numbers of colours, not intensities: convert the "
            "series to RGB"
        )


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
