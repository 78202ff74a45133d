"""The source series of a DICOM SEG: what a segmentation copies from its headers, repaired, and what it requires.

A segmentation refers to each instance of the series and shares its patient, study and frame of reference (DICOM PS3.3
A.51). Missing attributes are detected from the headers, before any work is done.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import pydicom
from highdicom._standard_utils import get_sop_class_iod_map
from highdicom.enum import SpecificCharacterSetValues
from pydicom.dataset import Dataset
from pydicom.valuerep import DA, TM

from rayapp.errors import Unreadable
from rayapp.imaging import dicom_series
from rayapp.imaging.dicom_series import Slice

_MAY_BE_EMPTY = (
    *("PatientName", "PatientID", "PatientBirthDate", "PatientSex"),
    *("StudyDate", "StudyTime", "StudyID", "AccessionNumber", "ReferringPhysicianName"),
)
"""Type 2 attributes of patient and study (PS3.3 C.7.1.1, C.7.2.1).

Anonymisers may drop them, against the standard, or put text in place of dates, but a segmentation must have them.
"""
_TIMES = {"PatientBirthDate": DA, "StudyDate": DA, "StudyTime": TM}


def complete(image: Dataset) -> None:
    """Repair the image in place: missing or invalid patient and study attributes become empty, incomplete codes are
    dropped.
    """
    for keyword in _MAY_BE_EMPTY:
        image.setdefault(keyword, "")
    for keyword, kind in _TIMES.items():
        try:
            kind(image[keyword].value)
        except ValueError:
            image[keyword].value = ""
    for element in [each for each in image if each.VR == "SQ" and each.keyword.endswith("CodeSequence")]:
        items = [item for item in element.value if _is_coded(item)]
        if items:
            element.value = items
        else:
            del image[element.tag]


def _is_coded(item: Dataset) -> bool:
    """True for a code with a meaning and, unless it is a URN, the scheme that it belongs to (PS3.3 8.8)."""
    scheme = item.get("CodingSchemeDesignator") and (item.get("CodeValue") or item.get("LongCodeValue"))
    return bool(item.get("CodeMeaning") and (scheme or item.get("URNCodeValue")))


def obstacle(slices: Sequence[Slice]) -> str | None:
    """The reason why no DICOM SEG can be made for a series; None if one can. Reads the header of one file."""
    frames = {piece.frame_of_reference for piece in slices}
    if "" in frames:
        return "the series lacks FrameOfReferenceUID, which a DICOM SEG must copy from it"
    if len(frames) > 1:
        return "FrameOfReferenceUID differs from slice to slice, and a DICOM SEG lies in one frame of reference"
    files = {piece.path for piece in slices}
    if 1 < len(files) < len(slices):
        return "a DICOM SEG of a series in several multi-frame objects is not supported"
    image = pydicom.dcmread(slices[0].path, stop_before_pixels=True)
    for keyword in ("StudyInstanceUID", "SeriesInstanceUID", "SOPInstanceUID", "SOPClassUID"):
        if not image.get(keyword):
            return f"the series lacks {keyword}, which a DICOM SEG must copy from it"
    if image.SOPClassUID not in get_sop_class_iod_map():
        return f"SOPClassUID {image.SOPClassUID} is not one of the standard's, so what a DICOM SEG copies is not known"
    return None


def sources(source: Path) -> tuple[list[Dataset], list[int], tuple[float, ...]]:
    """The instances that a DICOM SEG refers to.

    A segmentation has one orientation and one pixel spacing. So where rounding made those of the slices differ, all get
    those of the first slice, which are the volume's.

    Returns:
        The series' instances without pixel data; for each of their frames the k of its slice; and the position of the
        first frame.

    Raises:
        Unreadable: if no DICOM SEG can be made for them.
    """
    slices = dicom_series.read_slices(source)
    if reason := obstacle(slices):
        raise Unreadable(reason)
    files = list(dict.fromkeys(piece.path for piece in slices))
    images: list[Dataset] = [pydicom.dcmread(file, stop_before_pixels=True) for file in files]
    single = len(files) == len(slices)
    for image in images[1:] if single else ():
        for keyword in ("ImageOrientationPatient", "PixelSpacing"):
            image[keyword] = images[0][keyword]
    order = list(range(len(slices))) if single else sorted(range(len(slices)), key=lambda k: slices[k].frame)
    return images, order, tuple(slices[order[0]].plane.position)


def character_set(image: Dataset) -> str | list[str] | None:
    """The image's SpecificCharacterSet if highdicom supports it, else UTF-8, which covers all others (PS3.3
    C.12.1.1.2).
    """
    own = image.get("SpecificCharacterSet") or None
    names = {own} if own is None or isinstance(own, str) else set(own)
    return own if names <= {None, *(known.value for known in SpecificCharacterSetValues)} else "ISO_IR 192"
