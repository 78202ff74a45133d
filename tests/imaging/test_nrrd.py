"""NRRD and seg.nrrd against SimpleITK."""

from __future__ import annotations

import gzip
from pathlib import Path

import numpy as np
import pytest
import SimpleITK as sitk  # noqa: N813

from rayapp.errors import TooLarge, Unreadable
from rayapp.geometry import ras_to_lps
from rayapp.imaging import nrrd
from rayapp.imaging.reader import read_grid, read_segmentation, read_volume
from tests.imaging.grids import (
    AFFINES,
    MAX,
    SHAPE,
    Affine,
    assert_same_affine,
    assert_same_grid,
    every_affine,
    itk_affine,
    itk_image,
    itk_voxels,
    labels,
    voxels,
)
from tests.real_data import real


def _header(*, without: str = "", **changed: str) -> bytes:
    lps = ras_to_lps(AFFINES["oblique"])
    vectors = ["(" + ",".join(repr(float(n)) for n in lps[:3, axis]) + ")" for axis in range(4)]
    fields = {
        "type": "short",
        "dimension": "3",
        "space": "left-posterior-superior",
        "sizes": " ".join(map(str, SHAPE)),
        "space directions": " ".join(vectors[:3]),
        "kinds": "domain domain domain",
        "endian": "little",
        "encoding": "raw",
        "space origin": vectors[3],
    }
    fields |= {key.replace("_", " "): value for key, value in changed.items()}
    fields.pop(without, None)
    return ("NRRD0004\n" + "".join(f"{key}: {value}\n" for key, value in fields.items()) + "\n").encode()


_BODY = voxels().astype("<i2").tobytes(order="F")


@pytest.mark.parametrize("packed", [True, False], ids=["gzip", "raw"])
@every_affine
def test_an_image_that_simpleitk_wrote_has_the_same_grid_and_every_voxel(
    tmp_path: Path, affine: Affine, packed: bool
) -> None:
    path = tmp_path / "image.nrrd"
    sitk.WriteImage(itk_image(voxels(), affine), str(path), useCompression=packed)
    volume = read_volume(path, max_bytes=MAX)
    assert_same_affine(volume.affine, affine)
    assert_same_grid(read_grid(path), sitk.ReadImage(str(path)))
    np.testing.assert_array_equal(volume.array[0], voxels())


@every_affine
def test_a_vector_image_of_simpleitk_becomes_channels(tmp_path: Path, affine: Affine) -> None:
    array = voxels((3, *SHAPE), np.float32)
    path = tmp_path / "image.nrrd"
    sitk.WriteImage(itk_image(array, affine), str(path))
    volume = read_volume(path, max_bytes=MAX)
    np.testing.assert_array_equal(volume.array, array)
    assert_same_affine(volume.affine, affine)
    assert read_grid(path).shape == SHAPE


@pytest.mark.parametrize(
    ("space", "signs"),
    [
        ("left-posterior-superior", (-1, -1)),
        ("LPS", (-1, -1)),
        ("RAS", (1, 1)),
        ("Right-Anterior-Superior", (1, 1)),
        ("left-anterior-superior", (-1, 1)),
        ("scanner-xyz", (-1, -1)),
    ],
)
def test_each_patient_space_gives_the_grid_that_simpleitk_sees(
    tmp_path: Path, space: str, signs: tuple[int, int]
) -> None:
    path = tmp_path / "image.nrrd"
    path.write_bytes(_header(space=space) + _BODY)
    assert_same_grid(read_grid(path), sitk.ReadImage(str(path)))
    lps = ras_to_lps(AFFINES["oblique"])
    assert_same_affine(read_grid(path).affine, np.diag([*signs, 1.0, 1.0]) @ lps)


def test_big_endian_voxels_are_read(tmp_path: Path) -> None:
    path = tmp_path / "image.nrrd"
    path.write_bytes(_header(endian="big") + voxels().astype(">i2").tobytes(order="F"))
    volume = read_volume(path, max_bytes=MAX)
    np.testing.assert_array_equal(volume.array[0], voxels())
    np.testing.assert_array_equal(volume.array, itk_voxels(sitk.ReadImage(str(path))))
    assert volume.array.dtype.isnative


@pytest.mark.parametrize("field", ["data file", "datafile", "Data File"])
@pytest.mark.parametrize("name", ["other.raw", "/etc/passwd", "LIST", "x%03d.raw 1 3 1"])
def test_a_header_that_names_another_file_is_refused(tmp_path: Path, field: str, name: str) -> None:
    (tmp_path / "other.raw").write_bytes(_BODY)
    path = tmp_path / "image.nrrd"
    path.write_bytes(_header(**{field.replace(" ", "_"): name}) + _BODY)
    for read in (read_grid, lambda path: read_volume(path, max_bytes=MAX)):
        with pytest.raises(Unreadable) as caught:
            read(path)
        assert str(tmp_path) not in str(caught.value)


@pytest.mark.parametrize(
    "changed",
    [
        {"sizes": "5 7 -4"},
        {"sizes": "5 7"},
        {"sizes": "0 7 4"},
        {"sizes": "5 7 x"},
        {"sizes": "5 7 " + "9" * 40},
        {"dimension": "99"},
        {"dimension": "x"},
        {"type": "block"},
        {"type": "banana"},
        {"endian": "middle"},
        {"encoding": "hex"},
        {"encoding": "bzip2"},
        {"space": "scanner-xyz-time"},
        {"kinds": "domain"},
        {"space_origin": "(1,2)"},
        {"space_directions": "(1,0,0) (0,1,0) (0,0,0)"},
        {"space_directions": "(1,0,0) (2,0,0) (0,0,1)"},
        {"space_directions": "(1,0,0) (0,nan,0) (0,0,1)"},
        {"space_directions": "(1,0,0) (0,1,0)"},
        {"space_directions": "(inf,0,0) (0,1,0) (0,0,1)"},
        {"space_directions": "none (0,1,0) (0,0,1)"},
        {"space_origin": "(nan,0,0)"},
        {"space_origin": "here"},
        {"without": "sizes"},
        {"without": "type"},
        {"without": "encoding"},
    ],
    ids=str,
)
def test_a_header_that_is_not_sane_is_unreadable(tmp_path: Path, changed: dict[str, str]) -> None:
    path = tmp_path / "image.nrrd"
    path.write_bytes(_header(**changed) + _BODY)  # type: ignore[arg-type]
    with pytest.raises(Unreadable):
        read_volume(path, max_bytes=MAX)


def test_a_seg_nrrd_gives_names_and_values(tmp_path: Path) -> None:
    fields = b"Segment0_ID:=Segment_1\nSegment0_Name:=left kidney\nSegment0_LabelValue:=2\nSegment0_Layer:=0\n"
    head = _header(type="unsigned char", encoding="gzip").removesuffix(b"\n")
    path = tmp_path / "label.seg.nrrd"
    path.write_bytes(head + fields + b"\n" + gzip.compress(labels().tobytes(order="F")))
    found = read_segmentation(path, max_bytes=MAX)
    assert found.names == {"left kidney": 2}
    np.testing.assert_array_equal(found.array, labels())


@pytest.mark.parametrize("name", ["liver_seg.nrrd", "spine_seg.nrrd", "liver_spine_seg.nrrd", "heart_seg.nrrd"])
def test_a_real_label_map_reads_as_simpleitk_reads_it(name: str) -> None:
    path = real("dcmqi_seg", name)
    image = sitk.ReadImage(str(path))
    volume = read_volume(path, max_bytes=MAX)
    np.testing.assert_array_equal(volume.array, itk_voxels(image))
    assert_same_affine(volume.affine, itk_affine(image))
    assert_same_grid(read_grid(path), image)


@pytest.mark.parametrize("where", [0, 1, 2, 3])
def test_an_axis_that_is_not_spatial_is_the_channels_wherever_it_is(tmp_path: Path, where: int) -> None:
    array = voxels((2, *SHAPE))
    stored = np.moveaxis(array, 0, where)
    lps = ras_to_lps(AFFINES["oblique"])
    directions = ["(" + ",".join(repr(float(n)) for n in lps[:3, axis]) + ")" for axis in range(3)]
    kinds = ["domain"] * 3
    directions.insert(where, "none")
    kinds.insert(where, "list")
    path = tmp_path / "image.nrrd"
    head = _header(
        dimension="4",
        sizes=" ".join(map(str, stored.shape)),
        space_directions=" ".join(directions),
        kinds=" ".join(kinds),
    )
    path.write_bytes(head + stored.astype("<i2").tobytes(order="F"))
    volume = read_volume(path, max_bytes=MAX)
    np.testing.assert_array_equal(volume.array, array)
    assert_same_affine(volume.affine, AFFINES["oblique"])
    assert read_grid(path).shape == SHAPE
    if where in (0, 3):  # ITK takes it first or last alone
        np.testing.assert_array_equal(itk_voxels(sitk.ReadImage(str(path))), array)


def test_a_flat_image_has_one_slice(tmp_path: Path) -> None:
    path = tmp_path / "image.nrrd"
    sitk.WriteImage(sitk.GetImageFromArray(voxels((5, 7)).T), str(path))
    volume = read_volume(path, max_bytes=MAX)
    np.testing.assert_array_equal(volume.array[0, :, :, 0], voxels((5, 7)))
    np.testing.assert_array_equal(volume.affine, np.diag([-1.0, -1.0, 1.0, 1.0]))


def _layered(*segments: tuple[str, int, int]) -> bytes:
    """A `.seg.nrrd` of two layers, the second i < 2 alone; segments are (name, value, layer)."""
    layers = np.stack([labels(), np.zeros(SHAPE, np.uint8)])
    layers[1, :2] = 1
    head = _header(
        type="uint8",
        dimension="4",
        sizes=" ".join(map(str, layers.shape)),
        space_directions="none (1,0,0) (0,1,0) (0,0,1)",
        kinds="list domain domain domain",
    ).removesuffix(b"\n")
    for number, (name, value, layer) in enumerate(segments):
        fields = {"ID": f"Segment_{number}", "Name": name, "LabelValue": value, "Layer": layer}
        head += "".join(f"Segment{number}_{key}:={text}\n" for key, text in fields.items()).encode()
    return head + b"\n" + layers.tobytes(order="F")


def test_where_segments_in_layers_overlap_the_smaller_ones_cover_the_larger(tmp_path: Path) -> None:
    path = tmp_path / "label.seg.nrrd"
    path.write_bytes(_layered(("liver", 1, 0), ("Läsion", 1, 1), ("spleen", 3, 0)))
    found = read_segmentation(path, max_bytes=MAX)
    wanted = np.zeros(SHAPE)
    wanted[:2] = 2
    wanted[labels() == 1] = 1
    wanted[labels() == 3] = 3
    np.testing.assert_array_equal(found.array, wanted)
    assert found.names == {"liver": 1, "Läsion": 2, "spleen": 3}


def test_all_of_each_overlapping_segment_is_read_written_and_read_by_simpleitk(tmp_path: Path) -> None:
    path = tmp_path / "label.seg.nrrd"
    path.write_bytes(_layered(("liver", 1, 0), ("Läsion", 1, 1), ("spleen", 3, 0)))
    masks = nrrd.read_masks(path, max_bytes=MAX)
    assert masks is not None
    assert masks.overlap
    wanted = np.stack([labels() == 1, np.arange(5)[:, None, None] < np.full(SHAPE, 2), labels() == 3])
    np.testing.assert_array_equal(masks.array, wanted)
    path.write_bytes(nrrd.encode_masks(masks))
    again = nrrd.read_masks(path, max_bytes=MAX)
    assert again is not None
    np.testing.assert_array_equal(again.array, wanted)
    assert again.names == ("liver", "Läsion", "spleen")
    image = sitk.ReadImage(str(path))
    np.testing.assert_array_equal(itk_voxels(image), wanted)
    assert_same_affine(again.affine, itk_affine(image))
    with pytest.raises(TooLarge):
        nrrd.read_masks(path, max_bytes=wanted.size - 1)


def test_a_file_of_one_layer_has_no_masks_of_its_own(tmp_path: Path) -> None:
    path = tmp_path / "label.seg.nrrd"
    path.write_bytes(_header() + _BODY)
    assert nrrd.read_masks(path, max_bytes=MAX) is None


@pytest.mark.parametrize("segments", [[], [("liver", 1, 2)], [("liver", 1, -1)]], ids=["none", "beyond", "below"])
def test_layers_without_their_segments_are_unreadable(tmp_path: Path, segments: list[tuple[str, int, int]]) -> None:
    path = tmp_path / "label.seg.nrrd"
    path.write_bytes(_layered(*segments))
    with pytest.raises(Unreadable):
        read_segmentation(path, max_bytes=MAX)


def test_two_segments_of_one_name_keep_their_values(tmp_path: Path) -> None:
    path = tmp_path / "label.seg.nrrd"
    path.write_bytes(_layered(("node", 1, 0), ("node", 2, 0), ("other", 1, 1)))
    assert read_segmentation(path, max_bytes=MAX).names == {"node": 1, "node (2)": 2, "other": 3}


@pytest.mark.parametrize("field", ["space_units", "units"])
@pytest.mark.parametrize("unit", ["um", '"um" "um" "um"', '"m" "mm" "mm"'])
def test_lengths_that_are_not_in_millimetres_are_refused(tmp_path: Path, field: str, unit: str) -> None:
    path = tmp_path / "image.nrrd"
    path.write_bytes(_header(**{field: unit}) + _BODY)
    with pytest.raises(Unreadable, match="save it in millimetres"):
        read_grid(path)
    path.write_bytes(_header(**{field: '"mm" "mm" "mm"'}) + _BODY)
    assert_same_affine(read_grid(path).affine, AFFINES["oblique"])


def test_a_header_in_latin_1_is_read(tmp_path: Path) -> None:
    path = tmp_path / "image.nrrd"
    path.write_bytes(_header().removesuffix(b"\n") + "Kommentar:=Größe\n\n".encode("latin-1") + _BODY)
    np.testing.assert_array_equal(read_volume(path, max_bytes=MAX).array[0], voxels())


@pytest.mark.parametrize("kind", ["none", "time"])
def test_without_directions_a_third_axis_is_the_one_that_itk_makes_of_it(tmp_path: Path, kind: str) -> None:
    path = tmp_path / "image.nrrd"
    head = "NRRD0004\ntype: short\ndimension: 3\nsizes: 5 7 4\nendian: little\nencoding: raw\n"
    for kinds in (f"domain domain {kind}", f"{kind} domain domain"):
        path.write_bytes(f"{head}kinds: {kinds}\n\n".encode() + _BODY)
        np.testing.assert_array_equal(read_volume(path, max_bytes=MAX).array, itk_voxels(sitk.ReadImage(str(path))))
    head = head.replace("dimension: 3", "dimension: 4").replace("5 7 4", "2 5 7 2")
    path.write_bytes(f"{head}kinds: {kind} domain domain domain\n\n".encode() + _BODY)
    with pytest.raises(Unreadable, match="first axis"):
        read_volume(path, max_bytes=MAX)


def test_real_and_imaginary_parts_are_no_channels(tmp_path: Path) -> None:
    path = tmp_path / "image.nrrd"
    path.write_bytes(
        _header(
            dimension="4",
            sizes="2 5 7 2",
            kinds="complex domain domain domain",
            space_directions="none (1,0,0) (0,1,0) (0,0,1)",
        )
        + _BODY
    )
    with pytest.raises(Unreadable, match="complex"):
        read_volume(path, max_bytes=MAX)
