"""The table of DICOM series that the documentation shows and the tests check: what is done to a sound series, and what
comes of it. `python -m tests.imaging.dicom_kinds` writes it into `docs/files.md`.
"""

from __future__ import annotations

import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import pydicom
from pydicom.dataset import Dataset
from pydicom.encaps import encapsulate
from pydicom.uid import (
    UID,
    DeflatedExplicitVRLittleEndian,
    ExplicitVRBigEndian,
    ExplicitVRLittleEndian,
    ImplicitVRLittleEndian,
)

from tests.imaging.series import compress, edit, enhanced, tilt

PAGE = Path(__file__).parents[2] / "docs" / "files.md"
BEGIN, END = "<!-- from tests/imaging/dicom_kinds.py -->\n", "<!-- end -->\n"
Files = list[Path]


@dataclass(frozen=True, kw_only=True)
class Kind:
    """One row: what a series is like, what the page says of it, and the words of its refusal; None if it is served."""

    series: str
    outcome: str
    make: Callable[[Files], None]
    refused: str | None = None


def _each(**fields: object) -> Callable[[Files], None]:
    return lambda files: [edit(file, **fields) for file in files] and None


def _one(**fields: object) -> Callable[[Files], None]:
    return lambda files: edit(files[1], **fields)


def _numbered(keyword: str, text: str) -> Callable[[Files], None]:
    return lambda files: [edit(file, **{keyword: text.format(n)}) for n, file in enumerate(files)] and None


def _move(number: int, axis: int, mm: float) -> Callable[[Files], None]:
    def make(files: Files) -> None:
        place = [float(n) for n in pydicom.dcmread(files[number]).ImagePositionPatient]
        place[axis] += mm
        edit(files[number], ImagePositionPatient=place)

    return make


def _round(files: Files) -> None:
    for file in files:
        place = pydicom.dcmread(file).ImagePositionPatient
        edit(file, ImagePositionPatient=[round(float(n), 1) for n in place])


def _two_volumes(files: Files) -> None:
    """One enhanced object with two echoes of each slice."""
    folder = files[0].parent
    path = enhanced(folder.parent / "enhanced", [*files, *files]) / "enhanced.dcm"
    dataset = pydicom.dcmread(path)
    for number, frame in enumerate(dataset.PerFrameFunctionalGroupsSequence):
        echo = Dataset()
        echo.EffectiveEchoTime = 10.0 if number < len(files) else 30.0
        frame.MREchoSequence = [echo]
    for file in files:
        file.unlink()
    dataset.save_as(folder / "enhanced.dcm")


def _localizer(files: Files) -> None:
    other = files[0].with_name("localizer.dcm")
    shutil.copy(files[0], other)
    edit(other, ImageOrientationPatient=[0, 1, 0, 0, 0, -1])


def _report(files: Files) -> None:
    report = pydicom.dcmread(files[0])
    report.SOPClassUID = report.file_meta.MediaStorageSOPClassUID = "1.2.840.10008.5.1.4.1.1.88.33"
    report.Modality = "SR"
    del report.Rows, report.Columns, report.PixelData
    report.save_as(files[0].with_name("report.dcm"))


def _table(files: Files) -> None:
    item = Dataset()
    item.add_new("LUTDescriptor", "SS", [200, 0, 16])
    item.add_new("LUTData", "US", list(range(200)))
    item.ModalityLUTType = "US"
    _each(RescaleSlope=None, RescaleIntercept=None, ModalityLUTSequence=[item])(files)


def _syntax(uid: str) -> Callable[[Files], None]:
    def make(files: Files) -> None:
        for file in files:
            dataset = pydicom.dcmread(file)
            if uid == ExplicitVRBigEndian:
                dataset.PixelData = dataset.pixel_array.astype(">i2").tobytes()
            dataset.file_meta.TransferSyntaxUID = uid
            pydicom.dcmwrite(file, dataset, enforce_file_format=True)

    return make


def _again(files: Files) -> None:
    again = files[1].with_name("again.dcm")
    shutil.copy(files[1], again)
    edit(again, SOPInstanceUID="1.2.3")


def _floating(files: Files) -> None:
    for file in files:
        dataset = pydicom.dcmread(file)
        dataset.FloatPixelData = dataset.pixel_array.astype("<f4").tobytes()
        dataset.BitsAllocated = 32
        del dataset.PixelData, dataset.BitsStored, dataset.HighBit, dataset.PixelRepresentation
        dataset.save_as(file)


def _named_syntax(uid: str | None) -> Callable[[Files], None]:
    """The files name another transfer syntax, and are otherwise as they were."""

    def make(files: Files) -> None:
        for file in files:
            dataset = pydicom.dcmread(file)
            if uid is None:
                del dataset.file_meta.TransferSyntaxUID
            else:
                dataset.file_meta.TransferSyntaxUID = UID(uid)
                dataset.PixelData = encapsulate([dataset.PixelData])
                dataset["PixelData"].VR = "OB"
            dataset.save_as(file, enforce_file_format=False, implicit_vr=False, little_endian=True)

    return make


def _contradict(files: Files) -> None:
    for file in files:
        explicit = ExplicitVRLittleEndian.encode() + b"\0"
        file.write_bytes(file.read_bytes().replace(explicit, ImplicitVRLittleEndian.encode() + b"\0\0\0"))


KINDS = [
    Kind(
        series="slices in any order, any instance numbers", outcome="ordered by position", make=_each(InstanceNumber=1)
    ),
    Kind(series="reports, PDFs, structure sets, segmentations beside them", outcome="passed over", make=_report),
    Kind(series="positions rounded to 0.1 mm", outcome="an even stack", make=_round),
    Kind(
        series="negative or wrong SpacingBetweenSlices",
        outcome="ignored: positions count",
        make=_each(SpacingBetweenSlices=-9),
    ),
    Kind(
        series="a missing slice, uneven spacing",
        outcome="refused",
        make=lambda files: files[1].unlink(),
        refused="not evenly spaced",
    ),
    Kind(
        series="a slice shifted sideways by a quarter of a pixel or more",
        outcome="refused",
        make=_move(1, 0, 0.9),
        refused="shifted sideways",
    ),
    Kind(series="gantry tilt", outcome="refused: resample it", make=tilt, refused="gantry tilt"),
    Kind(
        series="two slices at one position",
        outcome="refused, unless attributes tell echoes, phases, b-values or acquisitions apart",
        make=_again,
        refused="same position",
    ),
    Kind(
        series="copies of a file",
        outcome="count once",
        make=lambda files: [shutil.copy(file, file.with_name(f"copy of {file.name}")) for file in files] and None,
    ),
    Kind(series="a localizer among the slices", outcome="refused", make=_localizer, refused="not parallel"),
    Kind(
        series="several sizes or pixel formats",
        outcome="refused: split the series",
        make=_one(PixelRepresentation=0),
        refused="differ in size or pixel format",
    ),
    Kind(
        series="several pixel spacings",
        outcome="refused: split the series",
        make=_one(PixelSpacing=[1, 2]),
        refused="differ in pixel spacing",
    ),
    Kind(
        series="PixelSpacing that is not positive",
        outcome="refused",
        make=_each(PixelSpacing=[-2, 1]),
        refused="PixelSpacing -2, 1",
    ),
    Kind(
        series="several frames of reference",
        outcome="refused: split the series",
        make=_one(FrameOfReferenceUID="1.2.3"),
        refused="FrameOfReferenceUID",
    ),
    Kind(
        series="no frame of reference, or one for each slice",
        outcome="served, but no DICOM SEG can be made: said when the series is opened",
        make=_numbered("FrameOfReferenceUID", "1.2.3.{}"),
    ),
    Kind(series="a slope and intercept for each slice", outcome="applied", make=_numbered("RescaleSlope", "1.{}")),
    Kind(series="Modality LUT", outcome="applied", make=_table),
    Kind(series="MONOCHROME1", outcome="the stored values", make=_each(PhotometricInterpretation="MONOCHROME1")),
    Kind(
        series="PALETTE COLOR",
        outcome="refused: convert it to RGB",
        make=_each(PhotometricInterpretation="PALETTE COLOR"),
        refused="PhotometricInterpretation PALETTE COLOR",
    ),
    Kind(
        series="FloatPixelData, parametric maps",
        outcome="refused: convert it to NIfTI",
        make=_floating,
        refused="FloatPixelData",
    ),
    Kind(series="RescaleSlope of 0", outcome="refused", make=_one(RescaleSlope=0), refused="RescaleSlope 0"),
    Kind(
        series="Siemens mosaic",
        outcome="refused: convert it to enhanced DICOM or NIfTI",
        make=_each(ImageType=["ORIGINAL", "PRIMARY", "MOSAIC"]),
        refused="MOSAIC",
    ),
    Kind(
        series="an enhanced file of several volumes",
        outcome="refused, with the attribute that tells them apart: convert each to a file of its own",
        make=_two_volumes,
        refused="EffectiveEchoTime: one file holds 2 volumes",
    ),
    Kind(series="no PixelData", outcome="refused", make=_one(PixelData=None), refused="no PixelData"),
    Kind(series="a truncated PixelData", outcome="refused", make=_one(PixelData=b"\0\0"), refused="truncated"),
    Kind(
        series="RLE, JPEG, JPEG-LS, JPEG 2000",
        outcome="decoded",
        make=lambda files: compress(files, pydicom.uid.RLELossless),
    ),
    Kind(series="big endian", outcome="read", make=_syntax(ExplicitVRBigEndian)),
    Kind(
        series="deflated",
        outcome="refused: convert it",
        make=_syntax(DeflatedExplicitVRLittleEndian),
        refused="TransferSyntaxUID: deflated",
    ),
    Kind(
        series="video, HTJ2K, JPEG XL, private encodings",
        outcome="refused: convert it",
        make=_named_syntax("1.2.840.10008.1.2.4.201"),
        refused="TransferSyntaxUID: pixels in High-Throughput JPEG 2000",
    ),
    Kind(
        series="a TransferSyntaxUID that is missing",
        outcome="refused",
        make=_named_syntax(None),
        refused="TransferSyntaxUID is missing",
    ),
    Kind(
        series="a TransferSyntaxUID that contradicts the file",
        outcome="refused, as the pixels would be read at a wrong offset",
        make=_contradict,
        refused="TransferSyntaxUID contradicts",
    ),
    Kind(
        series="a file without preamble and meta information",
        outcome="refused: add them, with dcmconv for example",
        make=lambda files: files[1].write_bytes(files[1].read_bytes()[132:]) and None,
        refused="without the header of a file",
    ),
    Kind(
        series="a .dcm file that is no DICOM",
        outcome="refused: copy it again",
        make=lambda files: files[1].write_text("<html>404</html>" * 20) and None,
        refused="no DICOM file, although its name",
    ),
]


def table() -> str:
    """The rows as they stand in the documentation."""
    rows = "".join(f"| {kind.series} | {kind.outcome} |\n" for kind in KINDS)
    return f"{BEGIN}\n| series | what happens |\n|---|---|\n{rows}\n{END}"


def written(page: str) -> str:
    """The page with the table in it."""
    head, rest = page.split(BEGIN)
    return head + table() + rest.split(END)[1]


if __name__ == "__main__":
    PAGE.write_text(written(PAGE.read_text()))
