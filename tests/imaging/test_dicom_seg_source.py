"""What a series gives to its DICOM SEG: voxels where pydicom alone finds them, codes that are whole, or a reason."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pydicom
import pytest
from pydicom.dataset import Dataset

from rayapp.errors import Unreadable
from rayapp.imaging.dicom_seg import Kind, Provenance, encode, read_masks, read_segmentation
from rayapp.imaging.dicom_seg_source import obstacle
from rayapp.imaging.dicom_series import read_slices
from rayapp.imaging.reader import read_grid
from rayapp.imaging.volume import Masks, Segmentation
from tests.imaging.grids import AFFINES, MAX, SHAPE, Affine, every_affine, labels, voxels
from tests.imaging.series import edit, enhanced, write_series
from tests.imaging.test_dicom_seg import KINDS, faults, needs_dciodvfy

Points = npt.NDArray[np.float64]


def _pixels_mm(dataset: Dataset, position: Any, orientation: Any, marked: npt.NDArray[Any]) -> Points:
    """Places in the patient of the marked pixels of one frame, by PS3.3 C.7.6.2.1.1 and nothing of ours."""
    rows, columns = np.nonzero(marked)
    along_row, along_column = np.reshape(orientation, (2, 3)).astype(float)
    between_rows, between_columns = map(float, dataset.PixelSpacing)
    start = np.array(position, float)
    return start + np.outer(columns * between_columns, along_row) + np.outer(rows * between_rows, along_column)


def _sorted(points: list[Points]) -> Points:
    whole = np.concatenate(points)
    return whole[np.lexsort(np.round(whole, 2).T)]


@every_affine
@pytest.mark.parametrize("digits", [9, 1])
def test_pydicom_alone_finds_each_segment_on_the_pixels_that_have_its_values(
    tmp_path: Path, affine: Affine, digits: int
) -> None:
    """The image's values serve as labels, so that segment and pixels can be compared without any grid of ours."""
    values = labels()
    for file in write_series(tmp_path / "series", values, affine):
        place = [round(float(number), digits) for number in pydicom.dcmread(file).ImagePositionPatient]
        edit(file, ImagePositionPatient=place, InstanceNumber=int(abs(place[0])) + 1)
    grid = read_grid(tmp_path / "series")
    order = values[:, :, ::-1] if np.linalg.det(affine) < 0 else values
    written = tmp_path / "seg.dcm"
    written.write_bytes(encode(Segmentation(array=order, affine=grid.affine), tmp_path / "series"))
    np.testing.assert_array_equal(read_segmentation(written, grid, max_bytes=MAX).array, order)
    images = [pydicom.dcmread(file) for file in (tmp_path / "series").iterdir()]
    seg = pydicom.dcmread(written)
    shared = seg.SharedFunctionalGroupsSequence[0]
    orientation = shared.PlaneOrientationSequence[0].ImageOrientationPatient
    for number in (1, 2, 3):
        wanted = [
            _pixels_mm(image, image.ImagePositionPatient, image.ImageOrientationPatient, image.pixel_array == number)
            for image in images
        ]
        found = [
            _pixels_mm(
                shared.PixelMeasuresSequence[0], group.PlanePositionSequence[0].ImagePositionPatient, orientation, frame
            )
            for group, frame in zip(seg.PerFrameFunctionalGroupsSequence, seg.pixel_array, strict=True)
            if group.SegmentIdentificationSequence[0].ReferencedSegmentNumber == number
        ]
        np.testing.assert_allclose(_sorted(found), _sorted(wanted), atol=1e-3)


def test_slices_whose_orientations_and_spacings_rounding_made_differ_have_a_segmentation(tmp_path: Path) -> None:
    """On the volume's grid, which is that of the first slice."""
    values = labels()
    for number, file in enumerate(write_series(tmp_path / "series", values, AFFINES["oblique"])):
        header = pydicom.dcmread(file)
        turned = [
            round(float(n) + 2e-4 * (number % 3 - 1) * (place == 0), 6)
            for place, n in enumerate(header.ImageOrientationPatient)
        ]
        spacing = [float(n) * (1 + 1e-5 * number) for n in header.PixelSpacing]
        edit(file, ImageOrientationPatient=turned, PixelSpacing=spacing)
    grid = read_grid(tmp_path / "series")
    written = tmp_path / "seg.dcm"
    written.write_bytes(encode(Segmentation(array=values, affine=grid.affine), tmp_path / "series"))
    np.testing.assert_array_equal(read_segmentation(written, grid, max_bytes=MAX).array, values)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("names", [{}, {"liver": 1, "tumour": 2}], ids=["unnamed", "named"])
def test_nothing_here_is_an_answer(tmp_path: Path, kind: Kind, names: dict[str, int]) -> None:
    write_series(tmp_path / "series", voxels((5, 7, 30)), AFFINES["oblique"])
    grid = read_grid(tmp_path / "series")
    nothing = Segmentation(array=np.zeros(grid.shape, np.uint8), affine=grid.affine, names=names)
    path = tmp_path / "seg.dcm"
    path.write_bytes(encode(nothing, tmp_path / "series", kind=kind))
    found = read_segmentation(path, grid, max_bytes=MAX)
    assert not found.array.any()
    assert found.names == (names or {"label 1": 1})
    assert pydicom.dcmread(path).NumberOfFrames <= 2  # not one for each slice and segment


def test_of_an_enhanced_object_nothing_is_an_answer_too(tmp_path: Path) -> None:
    source = enhanced(tmp_path / "enhanced", write_series(tmp_path / "series", voxels(), AFFINES["left-handed"]))
    grid = read_grid(source)
    path = tmp_path / "seg.dcm"
    path.write_bytes(encode(Segmentation(array=np.zeros(SHAPE, np.uint8), affine=grid.affine), source))
    assert not read_segmentation(path, grid, max_bytes=MAX).array.any()


def test_a_structure_without_a_voxel_is_a_segment_beside_the_others(tmp_path: Path) -> None:
    write_series(tmp_path / "series", voxels(), AFFINES["oblique"])
    grid = read_grid(tmp_path / "series")
    names = {"liver": 1, "spleen": 2, "tumour": 3, "cyst": 700}
    path = tmp_path / "seg.dcm"
    path.write_bytes(encode(Segmentation(array=labels(), affine=grid.affine, names=names), tmp_path / "series"))
    found = read_segmentation(path, grid, max_bytes=MAX)
    np.testing.assert_array_equal(found.array, labels())
    assert found.names == {"liver": 1, "spleen": 2, "tumour": 3, "cyst": 4}
    masks = Masks(array=np.zeros((2, *SHAPE), bool), affine=grid.affine, names=("liver", "tumour"))
    path.write_bytes(encode(masks, tmp_path / "series"))
    assert read_masks(path, grid, max_bytes=MAX).names == ("liver", "tumour")


def _item(**fields: str) -> Dataset:
    item = Dataset()
    for keyword, value in fields.items():
        setattr(item, keyword, value)
    return item


@needs_dciodvfy
@pytest.mark.parametrize(
    "items",
    [
        [_item(CodeValue="1", CodeMeaning="Head")],
        [_item(CodeMeaning="Head")],
        [Dataset()],
        [],
        [_item(CodeValue="1", CodingSchemeDesignator="99X", CodeMeaning="Head"), _item(CodeValue="2")],
    ],
    ids=["no designator", "meaning alone", "empty item", "no item", "one whole"],
)
def test_an_incomplete_procedure_code_is_not_copied(tmp_path: Path, items: list[Dataset]) -> None:
    for file in write_series(tmp_path / "series", voxels(), AFFINES["oblique"]):
        edit(file, ProcedureCodeSequence=items)
    grid = read_grid(tmp_path / "series")
    path = tmp_path / "seg.dcm"
    path.write_bytes(encode(Segmentation(array=labels(), affine=grid.affine), tmp_path / "series"))
    assert faults(path) == []
    kept = pydicom.dcmread(path).get("ProcedureCodeSequence", [])
    assert [code.CodingSchemeDesignator for code in kept] == (["99X"] if len(items) == 2 else [])


@pytest.mark.parametrize(
    ("fields", "reason"),
    [
        ({"FrameOfReferenceUID": None}, "lacks FrameOfReferenceUID"),
        ({"FrameOfReferenceUID": "1.2.3.{}"}, "FrameOfReferenceUID differs"),
        ({"StudyInstanceUID": None}, "lacks StudyInstanceUID"),
        ({"SOPClassUID": "1.3.46.670589.11.0.0.12.1"}, "SOPClassUID"),
    ],
)
def test_that_no_segmentation_can_be_made_is_known_from_the_headers(
    tmp_path: Path, fields: dict[str, str | None], reason: str
) -> None:
    write_series(tmp_path / "sound", voxels(), AFFINES["oblique"])
    assert obstacle(read_slices(tmp_path / "sound")) is None
    for number, file in enumerate(write_series(tmp_path / "series", voxels(), AFFINES["oblique"])):
        edit(file, **{name: value and value.format(number) for name, value in fields.items()})
    slices = read_slices(tmp_path / "series")
    told = obstacle(slices)
    assert told is not None
    assert reason in told
    grid = read_grid(tmp_path / "series")
    with pytest.raises(Unreadable, match=reason):
        encode(Segmentation(array=labels(), affine=grid.affine), tmp_path / "series", provenance=Provenance())
