"""DICOM SEG: written so that others read the same voxels and a validator finds no fault; theirs read as they mean."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

import highdicom
import numpy as np
import pydicom
import pytest
import SimpleITK as sitk  # noqa: N813
from highdicom._standard_utils import get_iod_module_map, get_module_attribute_map, get_sop_class_iod_map
from pydicom.uid import SegmentationStorage

from rayapp.errors import BadRequest, GridMismatch, TooLarge, Unreadable
from rayapp.geometry import index_to_mm, mm_to_index
from rayapp.imaging.dicom_seg import (
    Kind,
    OverlappingSegments,
    Provenance,
    encode,
    read_masks,
    read_segmentation,
)
from rayapp.imaging.reader import read_grid
from rayapp.imaging.volume import Grid, Masks, Segmentation, flatten
from tests.imaging.grids import AFFINES, MAX, SHAPE, Affine, itk_affine, itk_voxels, labels, voxels
from tests.imaging.series import SERIES, edit, enhanced, write_series
from tests.real_data import real

NAMES = {"left kidney": 1, "liver": 2, "my own spot": 3}
MAKER = Provenance(model="deepedit", version="7", corrected=True, description="final 3")
KINDS: tuple[Kind, ...] = ("BINARY", "LABELMAP")
needs_dciodvfy = pytest.mark.skipif(shutil.which("dciodvfy") is None, reason="no dciodvfy: apt-get install dicom3tools")


STUDY_SAYS = ("StudyDate", "StudyTime", "StudyID", "AccessionNumber", "ReferringPhysicianName")


def _series(folder: Path, affine: Affine = AFFINES["oblique"], modality: str = "CT") -> tuple[Path, Segmentation]:
    """A series, and a label map on its grid that no flip or swap leaves alike."""
    write_series(folder, voxels(), affine, modality=modality)
    return folder, Segmentation(array=labels(), affine=read_grid(folder).affine, names=NAMES)


def _written(label: Segmentation | Masks, source: Path, kind: Kind = "BINARY", provenance: Provenance = MAKER) -> Path:
    path = source.with_name(f"{source.name} {kind}.dcm")
    path.write_bytes(encode(label, source, kind=kind, provenance=provenance))
    return path


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("affine", AFFINES.values(), ids=AFFINES.keys())
def test_what_is_written_is_read_back_voxel_for_voxel(tmp_path: Path, affine: Affine, kind: Kind) -> None:
    source, label = _series(tmp_path / "series", affine)
    found = read_segmentation(_written(label, source, kind), read_grid(source), max_bytes=MAX)
    np.testing.assert_array_equal(found.array, label.array)
    assert found.names == NAMES


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("name", ["oblique", "left-handed", "permuted-201"])
def test_another_reader_finds_each_segment_at_the_same_places_in_the_patient(
    tmp_path: Path, name: str, kind: Kind
) -> None:
    source, label = _series(tmp_path / "series", AFFINES[name])
    read = highdicom.seg.segread(_written(label, source, kind))
    for number in (1, 2, 3):
        volume = read.get_volume(combine_segments=False, segment_numbers=[number])
        at = index_to_mm(np.diag([-1.0, -1.0, 1.0, 1.0]) @ volume.affine, np.argwhere(volume.array[..., 0]))
        back = np.rint(mm_to_index(label.affine, at)).astype(int)
        wanted = np.argwhere(label.array == number)
        assert {tuple(place) for place in back} == {tuple(place) for place in wanted}


def test_each_frame_names_the_instance_that_it_lies_on(tmp_path: Path) -> None:
    files = write_series(tmp_path / "series", voxels(), AFFINES["oblique-flipped"])
    grid = read_grid(tmp_path / "series")
    label = Segmentation(array=labels(), affine=grid.affine, names=NAMES)
    dataset = pydicom.dcmread(_written(label, tmp_path / "series"))
    position = {(d := pydicom.dcmread(f)).SOPInstanceUID: np.array(d.ImagePositionPatient, float) for f in files}
    assert len(dataset.PerFrameFunctionalGroupsSequence) == 3 * SHAPE[2]
    for frame in dataset.PerFrameFunctionalGroupsSequence:
        (source,) = frame.DerivationImageSequence[0].SourceImageSequence
        place = np.array(frame.PlanePositionSequence[0].ImagePositionPatient, float)
        np.testing.assert_allclose(place, position[source.ReferencedSOPInstanceUID], atol=1e-4)
    (series,) = dataset.ReferencedSeriesSequence
    assert series.SeriesInstanceUID == SERIES
    assert {item.ReferencedSOPInstanceUID for item in series.ReferencedInstanceSequence} == set(position)


def test_segments_say_what_they_are_who_made_them_and_what_they_track(tmp_path: Path) -> None:
    source, label = _series(tmp_path / "series")
    coded = {
        "SegmentedPropertyTypeCodeSequence": {"CodeValue": "1", "CodingSchemeDesignator": "99X", "CodeMeaning": "spot"}
    }
    provenance = Provenance(**{**vars(MAKER), "entries": {"my own spot": coded}})
    dataset = pydicom.dcmread(_written(label, source, provenance=provenance))
    kidney, liver, spot = dataset.SegmentSequence
    assert [item.SegmentLabel for item in (kidney, liver, spot)] == list(NAMES)
    (code,) = kidney.SegmentedPropertyTypeCodeSequence
    assert (code.CodeValue, code.CodingSchemeDesignator) == ("64033007", "SCT")
    assert code.SegmentedPropertyTypeModifierCodeSequence[0].CodeMeaning == "Left"
    assert liver.SegmentedPropertyTypeCodeSequence[0].CodeMeaning == "Liver"
    assert liver.SegmentedPropertyCategoryCodeSequence[0].CodeMeaning == "Anatomical Structure"
    assert spot.SegmentedPropertyTypeCodeSequence[0].CodingSchemeDesignator == "99X"
    assert {item.SegmentAlgorithmType for item in dataset.SegmentSequence} == {"SEMIAUTOMATIC"}
    (algorithm,) = liver.SegmentationAlgorithmIdentificationSequence
    assert (algorithm.AlgorithmName, algorithm.AlgorithmVersion) == ("deepedit", "7")
    again = pydicom.dcmread(_written(label, source))
    assert [i.TrackingUID for i in again.SegmentSequence] == [i.TrackingUID for i in dataset.SegmentSequence]
    assert len({item.TrackingUID for item in dataset.SegmentSequence}) == 3
    assert again.SOPInstanceUID != dataset.SOPInstanceUID
    assert dataset.SeriesDescription == "final 3"
    assert dataset.PatientID == "P1"


def test_a_drawn_label_is_manual_and_one_identity_has_one_uid(tmp_path: Path) -> None:
    source, label = _series(tmp_path / "series")
    first, second, third = (
        pydicom.dcmread(_written(label, source, provenance=Provenance(identity=identity)))
        for identity in ("a", "a", "b")
    )
    assert first.SegmentSequence[0].SegmentAlgorithmType == "MANUAL"
    assert first.SOPInstanceUID == second.SOPInstanceUID != third.SOPInstanceUID
    assert first.SeriesInstanceUID == second.SeriesInstanceUID != third.SeriesInstanceUID


def faults(file: Path) -> list[str]:
    """Errors that an independent validator finds in a DICOM SEG."""
    found = subprocess.run(["dciodvfy", file], capture_output=True, text=True, timeout=60)
    assert "Segmentation" in found.stderr  # what it took the file for
    return [line for line in found.stderr.splitlines() if line.startswith("Error")]


@needs_dciodvfy
@pytest.mark.parametrize("modality", ["CT", "MR"])
def test_the_validator_finds_no_fault(tmp_path: Path, modality: str) -> None:
    source, label = _series(tmp_path / "series", modality=modality)
    assert faults(_written(label, source)) == []


@needs_dciodvfy
def test_a_series_made_anonymous_by_leaving_things_out_has_a_valid_segmentation(tmp_path: Path) -> None:
    source, label = _series(tmp_path / "series")
    for file in source.iterdir():
        dataset = pydicom.dcmread(file)
        for element in [one for one in dataset if one.tag.group == 0x0010 or one.keyword in STUDY_SAYS]:
            del dataset[element.tag]
        dataset.save_as(file)
    assert faults(_written(label, source)) == []


@needs_dciodvfy
@pytest.mark.filterwarnings("ignore::UserWarning:pydicom")
def test_words_in_the_place_of_times_are_left_out(tmp_path: Path) -> None:
    source, label = _series(tmp_path / "series")
    for file in source.iterdir():
        edit(file, PatientBirthDate="REMOVED", StudyDate="anon", StudyTime="noon")
    written = _written(label, source)
    assert faults(written) == []
    assert not pydicom.dcmread(written).PatientBirthDate


@needs_dciodvfy
@pytest.mark.parametrize(
    ("character_set", "name"),
    [
        ("", "Doe^Jane"),
        ("ISO_IR 6", "Doe^Jane"),
        ("ISO_IR 100", "Müller^Jörg"),
        ("ISO_IR 192", "Müller^山田"),
        (["", "ISO 2022 IR 87"], "Yamada^Tarou=山田^太郎"),
        ("GB18030", "Wang^XiaoDong=王^小东"),
    ],
)
@pytest.mark.filterwarnings("ignore::UserWarning:pydicom")
def test_the_patient_is_named_as_in_the_series(tmp_path: Path, character_set: str | list[str], name: str) -> None:
    source, label = _series(tmp_path / "series")
    for file in source.iterdir():
        edit(file, SpecificCharacterSet=character_set, PatientName=name)
    written = _written(label, source)
    assert faults(written) == []
    assert str(pydicom.dcmread(written).PatientName) == name


def _lacking(dataset: pydicom.Dataset) -> list[str]:
    """Attributes of the mandatory modules, by tables of the standard, that are absent, or empty and may not be. Which
    macros are shared and which lie with the frames is left to the file."""
    iod = get_iod_module_map()[get_sop_class_iod_map()[dataset.SOPClassUID]]
    lacking = []
    for module in (one["key"] for one in iod if one["usage"] == "M"):
        for attribute in get_module_attribute_map()[module]:
            path, keyword, kind = attribute["path"], attribute["keyword"], attribute["type"]
            if kind not in ("1", "2") or (len(path) == 1 and path[0].endswith("FunctionalGroupsSequence")):
                continue
            items = [dataset]
            for step in path:
                items = [inner for item in items if step in item for inner in item[step].value]
            lacking += [
                f"{module} {'.'.join([*path, keyword])}"
                for item in items
                if keyword not in item or (kind == "1" and item[keyword].is_empty)
            ]
    return lacking


@pytest.mark.parametrize("kind", KINDS)
def test_nothing_that_the_standard_demands_is_absent(tmp_path: Path, kind: Kind) -> None:
    source, label = _series(tmp_path / "series")
    dataset = pydicom.dcmread(_written(label, source, kind=kind))
    assert _lacking(dataset) == []
    del dataset.SegmentSequence[0].SegmentLabel
    assert _lacking(dataset) == ["segmentation-image SegmentSequence.SegmentLabel"]


NEW_IN_LABELMAP = ("LABELMAP", "SegmentNumber of 0", "<Segment Number>", "<SegmentIdentificationSequence>")


@needs_dciodvfy
def test_of_a_labelmap_the_validator_of_2022_finds_only_what_is_new_in_it(tmp_path: Path) -> None:
    source, label = _series(tmp_path / "series")
    dataset = pydicom.dcmread(_written(label, source, kind="LABELMAP"))
    dataset.SOPClassUID = dataset.file_meta.MediaStorageSOPClassUID = SegmentationStorage
    dataset.save_as(tmp_path / "as_segmentation.dcm")
    errors = faults(tmp_path / "as_segmentation.dcm")
    assert errors
    assert [line for line in errors if not any(new in line for new in NEW_IN_LABELMAP)] == []


def test_of_overlapping_segments_a_label_map_shows_the_smaller_ones(tmp_path: Path) -> None:
    large, small = np.zeros((2, 4, 3, 2), bool)
    large[:3], small[2:, 1] = True, True
    shown = flatten(Masks(array=np.stack([small, large]), affine=AFFINES["oblique"], names=("tumour", "liver")))
    assert shown.names == {"tumour": 1, "liver": 2}
    np.testing.assert_array_equal(shown.array, np.where(small, 1, np.where(large, 2, 0)))


def test_overlapping_segments_are_kept(tmp_path: Path) -> None:
    source, label = _series(tmp_path / "series", AFFINES["oblique-flipped"])
    array = np.random.default_rng(4).random((2, *SHAPE)) > 0.6
    assert (array[0] & array[1]).any()
    masks = Masks(array=array, affine=label.affine, names=("liver", "tumor"))
    path = _written(masks, source)
    found = read_masks(path, read_grid(source), max_bytes=MAX)
    np.testing.assert_array_equal(found.array, array)
    assert found.names == ("liver", "tumor")
    with pytest.raises(OverlappingSegments):
        read_segmentation(path, read_grid(source), max_bytes=MAX)
    with pytest.raises(BadRequest):
        encode(masks, source, kind="LABELMAP")


@pytest.mark.parametrize("kind", KINDS)
def test_values_with_gaps_keep_their_names_and_a_labelmap_s_also_themselves(tmp_path: Path, kind: Kind) -> None:
    source, label = _series(tmp_path / "series")
    sparse = Segmentation(
        array=np.array([0, 5, 0, 200], np.uint8)[label.array], affine=label.affine, names={"liver": 5, "spleen": 200}
    )
    found = read_segmentation(_written(sparse, source, kind), read_grid(source), max_bytes=MAX)
    for name, value in sparse.names.items():
        np.testing.assert_array_equal(found.array == found.names[name], sparse.array == value)
    if kind == "LABELMAP":
        np.testing.assert_array_equal(found.array, sparse.array)


def test_mostly_empty_label_maps_come_back_where_they_were(tmp_path: Path) -> None:
    write_series(tmp_path / "series", voxels((5, 7, 30)), AFFINES["oblique"])
    grid = read_grid(tmp_path / "series")
    array = np.zeros(grid.shape, np.uint8)
    array[1, 2, 3] = array[4, 6, 17] = 1
    path = _written(Segmentation(array=array, affine=grid.affine), tmp_path / "series")
    np.testing.assert_array_equal(read_segmentation(path, grid, max_bytes=MAX).array, array)


def test_frames_are_decoded_one_by_one_so_that_their_number_is_no_limit(tmp_path: Path) -> None:
    write_series(tmp_path / "series", voxels((5, 7, 30)), AFFINES["oblique"])
    grid = read_grid(tmp_path / "series")
    array = np.random.default_rng(2).permutation(np.arange(5 * 7 * 30) % 41).astype(np.uint8).reshape(grid.shape)
    path = _written(Segmentation(array=array, affine=grid.affine), tmp_path / "series")
    unpacked = int(pydicom.dcmread(path).NumberOfFrames) * 5 * 7
    assert unpacked > 20 * array.nbytes
    np.testing.assert_array_equal(read_segmentation(path, grid, max_bytes=array.nbytes).array, array)


@pytest.mark.parametrize("kind", KINDS)
def test_a_label_of_an_enhanced_object_lies_on_its_frames(tmp_path: Path, kind: Kind) -> None:
    files = write_series(tmp_path / "series", voxels(), AFFINES["left-handed"])
    source = enhanced(tmp_path / "enhanced", files)
    grid = read_grid(source)
    label = Segmentation(array=labels(), affine=grid.affine, names=NAMES)
    path = _written(label, source, kind)
    np.testing.assert_array_equal(read_segmentation(path, grid, max_bytes=MAX).array, label.array)


def test_a_label_elsewhere_is_refused(tmp_path: Path) -> None:
    source, label = _series(tmp_path / "series")
    with pytest.raises(GridMismatch):
        encode(Segmentation(array=label.array, affine=label.affine @ np.diag([-1.0, 1, 1, 1])), source)


def test_a_segmentation_of_another_series_or_none_or_over_the_cap_is_refused(tmp_path: Path) -> None:
    source, label = _series(tmp_path / "series")
    path, grid = _written(label, source), read_grid(source)
    for other in (grid.affine @ np.diag([2.0, 1, 1, 1]), grid.affine + _shift(0.4)):
        with pytest.raises(GridMismatch):
            read_segmentation(path, Grid(shape=grid.shape, affine=other), max_bytes=MAX)
    with pytest.raises(GridMismatch):
        read_segmentation(path, Grid(shape=(5, 7, 3), affine=grid.affine), max_bytes=MAX)
    with pytest.raises(TooLarge):
        read_segmentation(path, grid, max_bytes=100)
    with pytest.raises(Unreadable):
        read_segmentation(next(source.iterdir()), grid, max_bytes=MAX)
    edit(path, SegmentationType="FRACTIONAL")
    with pytest.raises(Unreadable, match="FRACTIONAL"):
        read_segmentation(path, grid, max_bytes=MAX)


def _shift(mm: float) -> Affine:
    shift = np.zeros((4, 4))
    shift[0, 3] = mm
    return shift


@pytest.mark.filterwarnings("ignore::UserWarning:pydicom")
def test_a_truncated_segmentation_is_unreadable(tmp_path: Path) -> None:
    source, label = _series(tmp_path / "series")
    path, grid = _written(label, source), read_grid(source)
    data = path.read_bytes()
    for cut in [*range(0, len(data), 997), len(data) - 20]:
        path.write_bytes(data[:cut])
        with pytest.raises(Unreadable):
            read_segmentation(path, grid, max_bytes=MAX)


@pytest.mark.parametrize(("seg", "nrrd"), [("liver.dcm", "liver_seg.nrrd")])
def test_a_segmentation_by_dcmqi_reads_as_dcmqi_s_own_mask(seg: str, nrrd: str) -> None:
    grid = read_grid(real("dcmqi_seg", "ct-3slice"))
    found = read_segmentation(real("dcmqi_seg", seg), grid, max_bytes=MAX)
    image = sitk.ReadImage(str(real("dcmqi_seg", nrrd)))
    at = index_to_mm(itk_affine(image), np.argwhere(itk_voxels(image)[0]))
    wanted = np.zeros(grid.shape, np.uint8)
    wanted[tuple(np.rint(mm_to_index(grid.affine, at)).astype(int).T)] = 1
    assert wanted.any()
    np.testing.assert_array_equal(found.array, wanted)
    assert found.names == {"Liver": 1}


def test_overlapping_segments_by_dcmqi_are_read_each_for_itself() -> None:
    grid = read_grid(real("dcmqi_seg", "ct-3slice"))
    path = real("dcmqi_seg", "partial_overlaps.dcm")
    with pytest.raises(OverlappingSegments):
        read_segmentation(path, grid, max_bytes=MAX)
    found = read_masks(path, grid, max_bytes=MAX)
    dataset = pydicom.dcmread(path)
    assert found.names == ("GREEN", "ORANGE", "PURPLE", "LIGHT_BLUE", "DARK_BLUE")
    wanted = [0] * 5
    for frame, pixels in zip(dataset.PerFrameFunctionalGroupsSequence, dataset.pixel_array, strict=True):
        wanted[frame.SegmentIdentificationSequence[0].ReferencedSegmentNumber - 1] += int(pixels.sum())
    assert [int(mask.sum()) for mask in found.array] == wanted


@pytest.mark.parametrize("name", ["seg_image_ct_binary.dcm", "seg_image_ct_binary_overlap.dcm"])
def test_segmentations_by_highdicom_read_as_highdicom_reads_them(name: str) -> None:
    volume = highdicom.seg.segread(real("highdicom", name)).get_volume(combine_segments=False)
    # highdicom's axes are slice, row, column, from the far end; ours column, row, slice.
    affine = (np.diag([-1.0, -1.0, 1.0, 1.0]) @ volume.affine)[:, [2, 1, 0, 3]]
    grid = Grid(shape=volume.array.shape[2::-1], affine=affine)
    found = read_masks(real("highdicom", name), grid, max_bytes=MAX)
    np.testing.assert_array_equal(found.array, volume.array.astype(bool).transpose(3, 2, 1, 0))
