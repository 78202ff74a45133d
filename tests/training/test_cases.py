"""Training cases look as inference will show them to the network, and their cache keeps within its bounds."""

import dataclasses
from pathlib import Path

import nibabel
import nrrd
import numpy as np
import pytest
import torch

from rayapp.errors import BadRequest
from rayapp.geometry import index_to_mm, mm_to_index
from rayapp.imaging.unseen import UNSEEN
from rayapp.inference.methods.deepedit import DeepEditTask
from rayapp.inference.methods.segmentation import SegmentationTask
from rayapp.inference.network.network_grid import NetworkGrid
from rayapp.models.store import ModelVersion
from rayapp.training.basic_train import BasicTrainTask
from rayapp.training.cases import MAX_PLACES, Cases, case_of, digest_of, name_of, patient_of, read_pair, split
from rayapp.training.deepedit_train import DeepEditTrainTask
from rayapp.training.deepgrow_train import DeepGrowTrainTask
from rayapp.training.design import Design
from rayapp.training.options import ClickOptions, Options
from rayapp.training.train_task import Pair
from tests.training.blobs import LABELS, NETWORK, blob, write_pair


def design(guidance=0, spacing=1.4):
    network = {**NETWORK, "in_channels": 1 + guidance, "out_channels": 3}
    return Design(labels=LABELS, spacing=spacing, roi_size=(16, 16, 16), network=network, channels=1)


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("spacing", [0.0, 0.8, 2.3])
def test_labels_lie_where_patient_space_says(seed, spacing):
    volume, labels = blob(seed)
    grid = NetworkGrid.fit(volume.shape, volume.affine, spacing_mm=spacing, limit=None, divisor=4)
    onto = grid.labels_from_source(labels)
    assert onto.shape == grid.padded
    turned = grid.orientation.affine(volume.affine, volume.shape)
    sizes = np.array(grid.orientation.apply(labels).shape)
    for place in np.argwhere(onto >= 0)[::97]:
        if (place >= grid.canonical).any():
            assert onto[tuple(place)] == 0
            continue
        canonical = (place + 0.5) * sizes / grid.canonical - 0.5
        source = mm_to_index(volume.affine, index_to_mm(turned, canonical))
        reach = np.maximum(1, np.array(labels.shape) / grid.resampled) - 1e-6
        low = np.clip(np.ceil(source - reach).astype(int), 0, np.array(labels.shape) - 1)
        high = np.clip(np.floor(source + reach).astype(int), 0, np.array(labels.shape) - 1) + 1
        around = labels[tuple(slice(a, b) for a, b in zip(low, high, strict=True))]
        if spacing == 0:
            around = [labels[tuple(np.rint(source).astype(int))]]
        assert onto[tuple(place)] in around, "a label that the voxel covers"


@pytest.mark.parametrize("ratio", [1.5, 2.0, 3.0, 4.0])
def test_targets_are_not_shifted(ratio):
    shape, rng = (72, 72, 72), np.random.default_rng(5)
    grid = NetworkGrid.fit(shape, np.eye(4), spacing_mm=ratio, limit=None, divisor=1)
    shifts = []
    for centre in rng.uniform(28, 44, (8, 3)):
        offset = np.moveaxis(np.indices(shape), 0, -1) - centre
        onto = grid.labels_from_source((np.linalg.norm(offset, axis=-1) < 20).astype(np.uint8))
        shifts.append((np.argwhere(onto).mean(axis=0) + 0.5) * ratio - 0.5 - centre)
    assert np.abs(np.mean(shifts, axis=0)).max() < 0.1, shifts


@pytest.mark.parametrize("offset", range(4))
@pytest.mark.parametrize("ratio", [2.0, 3.0, 4.0])
def test_thin_structures_survive_in_targets(ratio, offset):
    labels = np.zeros((48, 48, 48), np.uint8)
    labels[20 + offset] = 1
    labels[5, 20 + offset, 4:40], labels[30 + offset, 5, 4:40] = 2, 3
    grid = NetworkGrid.fit(labels.shape, np.eye(4), spacing_mm=ratio, limit=None, divisor=1)
    onto = grid.labels_from_source(labels)
    assert (onto == 1).any(axis=0).all(), "the sheet has no gap"
    for value in (2, 3):
        assert (onto == value).any(axis=(0, 1)).sum() >= 36 / ratio - 1, "nor have the lines"


def test_voxels_that_are_no_numbers_are_as_dark_as_the_darkest():
    array = np.full((12, 12, 12), -1000, np.float32)
    array[6:] = 40
    array[:3] = np.nan
    grid = NetworkGrid.fit(array.shape, np.eye(4), spacing_mm=0, limit=None, divisor=1)
    assert (grid.from_source(array)[:3] == -1000).all()


@pytest.mark.parametrize(
    ("task", "serving", "guidance"),
    [
        (BasicTrainTask(labels=LABELS, description="", options=Options()), SegmentationTask, 0),
        (DeepEditTrainTask(labels=LABELS, description="", options=ClickOptions()), DeepEditTask, 3),
    ],
)
def test_training_reads_an_image_as_inference_prepares_it(task, serving, guidance, pairs):
    drawn = design(guidance)
    for pair in pairs[:4]:
        volume = read_pair(pair, LABELS).volume
        serves = serving(
            name="x",
            weights=pair.image,
            labels=LABELS,
            network=drawn.network,
            spacing=drawn.spacing,
            roi_size=drawn.roi_size,
        )
        case = task.read(pair, drawn)
        np.testing.assert_array_equal(case.image.numpy(), serves.prepare(volume).image.half().numpy())
        assert case.labels.shape == case.image.shape[1:]


@pytest.mark.parametrize("augment", [False, True])
@pytest.mark.parametrize(
    "task",
    [
        DeepEditTrainTask(labels=LABELS, description="", options=ClickOptions()),
        DeepGrowTrainTask(description="", options=ClickOptions()),
    ],
)
def test_an_image_seen_whole_is_learnt_at_the_size_that_inference_shows(task, augment, pairs):
    drawn = dataclasses.replace(design(task.guidance_channels), roi_size=(64, 64, 64))
    make = task.examples(drawn, ClickOptions(augment=augment))
    for pair in pairs[:3]:
        case = task.read(pair, drawn)
        ((image, labels),) = make(case, np.random.default_rng(0))
        assert image.shape == case.image.shape
        assert labels.shape == case.labels.shape
        assert max(labels.shape) < 40
        if not augment:
            np.testing.assert_array_equal(image, case.image.float())


def test_windows_of_images_that_are_smaller_are_learnt_as_inference_shows_them(pairs):
    task = BasicTrainTask(labels=LABELS, description="", options=Options(augment=False))
    shown = []

    def network(images):
        shown.append(images)
        return torch.zeros(1, 3, *images.shape[2:])

    for pair in pairs[:3]:
        size = task.read(pair, design(0)).labels.shape
        for roi in ((64, 64, 64), (size[0], 64, size[2]), (8, 64, 64)):
            drawn = dataclasses.replace(design(0), roi_size=roi)
            case = task.read(pair, drawn)
            ((image, labels),) = task.examples(drawn, task.options)(case, np.random.default_rng(0))
            shown.clear()
            task.inferer(drawn)(case.image.float()[None], network)
            assert image.shape == shown[0].shape[1:], roi
            assert labels.shape == image.shape[1:]
            assert any(torch.equal(torch.as_tensor(image), one[0]) for one in shown) or roi[0] == 8, roi


def test_windows_are_drawn_by_structure_however_small_without_a_look_at_the_whole_image():
    labels = np.zeros((60, 50, 40), np.uint8)
    labels[5:35, 8:40, 4:30] = 1
    labels[50:52, 3:5, 33:36] = 2
    labels[0] = UNSEEN
    case = case_of(np.zeros((1, *labels.shape), np.float32), labels, structures=2)
    assert [len(places) for places in case.places] == [MAX_PLACES, MAX_PLACES, 12]
    for value, places in enumerate(case.places):
        assert (labels.ravel()[places] == value).all()
        spread = np.stack(np.unravel_index(places, labels.shape)).std(1) / np.argwhere(labels == value).std(0)
        np.testing.assert_allclose(spread, 1, atol=0.1)
    task = BasicTrainTask(labels=LABELS, description="", options=Options(augment=False))
    make = task.examples(design(0), task.options)
    shown = [make(case, np.random.default_rng(seed))[0][1] for seed in range(60)]
    assert {tuple(window.shape) for window in shown} == {(16, 16, 16)}
    assert 12 <= sum(bool((window == 2).any()) for window in shown) <= 40
    assert any(bool((window == 1).any()) and not bool((window == 2).any()) for window in shown)


def test_a_large_image_is_visited_more_often_each_time_it_is_read(pairs):
    task = BasicTrainTask(labels=LABELS, description="", options=Options())
    survey = {"size": [40, 40, 20], "spacing": [1.4, 1.4, 2.8]}
    assert task.visits(dataclasses.replace(design(0), plan={"survey": survey})) == 4  # 40 x 40 x 40 by 16 x 16 x 16
    assert task.visits(dataclasses.replace(design(0), roi_size=(40, 40, 20), plan={"survey": survey})) == 2
    assert task.visits(dataclasses.replace(design(0), roi_size=(64, 64, 64), plan={"survey": survey})) == 1
    whole = DeepEditTrainTask(labels=LABELS, description="", options=ClickOptions())
    assert whole.visits(dataclasses.replace(design(3), plan={"survey": survey})) == 1


@pytest.mark.parametrize("intensities", [None, (-150.0, 250.0)])
def test_training_and_inference_see_the_same_range_of_intensities(intensities, pairs):
    drawn = dataclasses.replace(design(0), intensities=intensities)
    version = ModelVersion(name="x", version="v1", weights=pairs[0].image, card=drawn.card())
    task = BasicTrainTask(labels=LABELS, description="", options=Options())
    volume = read_pair(pairs[0], LABELS).volume
    served = SegmentationTask.from_version(version).prepare(volume).image
    np.testing.assert_array_equal(task.read(pairs[0], drawn).image.numpy(), served.half().numpy())
    assert Design.of(drawn.card(), guidance=0).intensities == intensities


def test_the_cache_keeps_no_more_than_its_capacity(pairs):
    read = []
    task = BasicTrainTask(labels=LABELS, description="", options=Options())

    def reading(pair):
        read.append(pair)
        return task.read(pair, design())

    size = task.read(pairs[0], design()).nbytes
    cases = Cases(pairs, reading, capacity=int(3.5 * size))
    for _ in range(3):
        for index in range(len(cases)):
            assert cases[index].image.any()
            assert cases.nbytes <= 3.5 * size
    again = len(read) - len(pairs)
    assert len(pairs) <= again / 2 + 4
    assert again < 2 * len(pairs)


def test_an_image_stays_on_its_side_as_others_join(pairs):
    many = [dataclasses.replace(pairs[0], image=pairs[0].image.with_name(f"scan_{n}.nii.gz")) for n in range(400)]
    train, val = split(many, 0.2)
    assert 50 <= len(val) <= 110
    fewer_train, fewer_val = split(many[::2], 0.2)
    assert set(fewer_val) <= set(val)
    assert set(fewer_train) <= set(train)
    assert sorted(map(name_of, train + val)) == sorted(map(name_of, many))


@pytest.mark.parametrize("share", [0.01, 0.99])
def test_each_side_has_one_at_least(pairs, share):
    assert all(len(side) >= 1 for side in split(pairs, share))


def images_of(names, patients=None):
    return [
        Pair(image=Path(f"{name}.nii.gz"), label=Path("l.nii.gz"), patient=patient)
        for name, patient in zip(names, patients or [None] * len(names), strict=True)
    ]


def test_images_of_a_patient_are_on_one_side():
    known = images_of([f"ct_{n}" for n in range(60)], [f"P-{n // 3}" for n in range(60)])
    bids = images_of([f"sub-{n // 3:02}_ses-{n % 3}_T1w" for n in range(60)])
    for pairs in (known, bids):
        train, val = split(pairs, 0.3)
        assert len(train) + len(val) == 60
        assert 6 <= len(val) <= 30
        assert not {patient_of(pair) for pair in train} & {patient_of(pair) for pair in val}


def test_images_that_are_all_of_one_patient_are_split_by_their_names():
    train, val = split(images_of(["a", "b", "c", "d"], ["P-1"] * 4), 0.3)
    assert train
    assert val


def test_the_data_sets_digest_changes_with_a_label_and_not_with_the_order(pairs, tmp_path):
    before = digest_of(pairs)
    assert digest_of(pairs[::-1]) == before
    volume, labels = blob(0)
    labels[0, 0, 0] = 1
    assert digest_of([write_pair(tmp_path, "blob_00", volume, labels), *pairs[1:]]) != before


def test_a_label_map_on_another_grid_or_with_other_values_is_refused_by_name(tmp_path):
    volume, labels = blob(1)
    shifted = dataclasses.replace(volume, affine=volume.affine + np.eye(4)[:, [3, 0, 1, 2]] * 0.4)
    pair = write_pair(tmp_path, "moved", volume, labels)
    nibabel.Nifti1Image(labels, shifted.affine).to_filename(pair.label)
    with pytest.raises(BadRequest, match="moved"):
        read_pair(pair, LABELS)
    pair = write_pair(tmp_path, "seven", volume, labels * 7)
    with pytest.raises(BadRequest, match=r"'seven'.*14.*--labels"):
        read_pair(pair, LABELS)
    pair.image.write_bytes(b"no image")
    with pytest.raises(BadRequest, match="seven"):
        read_pair(pair, LABELS)


def test_named_segments_are_read_by_name(tmp_path):
    volume, labels = blob(2)
    pair = write_pair(tmp_path, "named", volume, labels)
    space = {
        "space": "right-anterior-superior",
        "space directions": volume.affine[:3, :3].T,
        "space origin": volume.affine[:3, 3],
    }
    names = {"Segment0_Name": "rod", "Segment0_LabelValue": "5", "Segment1_Name": "other", "Segment1_LabelValue": "1"}
    pair = Pair(image=pair.image, label=tmp_path / "named.seg.nrrd")
    nrrd.write(str(pair.label), np.where(labels == 2, 5, labels), {**space, **names})
    read = read_pair(pair, LABELS).labels
    np.testing.assert_array_equal(read, np.where(labels == 2, 2, 0))


def test_a_label_map_that_names_only_other_structures_is_refused(tmp_path):
    volume, labels = blob(2)
    pair = write_pair(tmp_path, "other", volume, labels)
    names = {"Segment0_Name": "left lung", "Segment0_LabelValue": "1", "Segment0_Layer": "0"}
    space = {"space directions": volume.affine[:3, :3].T, "space origin": volume.affine[:3, 3]}
    pair = Pair(image=pair.image, label=tmp_path / "other.seg.nrrd")
    nrrd.write(str(pair.label), labels, {"space": "right-anterior-superior", **space, **names})
    with pytest.raises(BadRequest, match=r"'other'.*names only 'left lung', none of .*rename"):
        read_pair(pair, LABELS)
    np.testing.assert_array_equal(read_pair(pair, None).labels, labels)


def named_label(path, values, **names):
    """A `.seg.nrrd` of these values, whose segments have these names."""
    header = {"space": "right-anterior-superior", "space directions": np.eye(3), "space origin": np.zeros(3)}
    for number, (name, value) in enumerate(names.items()):
        header |= {f"Segment{number}_ID": f"s{number}", f"Segment{number}_Name": name}
        header[f"Segment{number}_LabelValue"] = str(value)
    nrrd.write(str(path), values, header, custom_field_map=dict.fromkeys(header, "string"))
    return path


@pytest.mark.parametrize(
    ("names", "wanted"),
    [({"Ball": 7, "ROD": 3}, [2, 1]), ({"ball": 7, "Ball": 3}, [0, 1]), ({"rod": 3, "other": 7}, [2, 0])],
    ids=["case", "exact-before-case", "others-are-background"],
)
def test_segments_are_mapped_by_name_whatever_their_case(names, wanted, tmp_path):
    values = np.zeros((6, 5, 4), np.uint8)
    values[0], values[1] = 3, 7
    nibabel.Nifti1Image(values.astype(np.float32), np.eye(4)).to_filename(tmp_path / "image.nii.gz")
    label = named_label(tmp_path / "label.seg.nrrd", values, **names)
    found = read_pair(Pair(image=tmp_path / "image.nii.gz", label=label), {"ball": 1, "rod": 2}).labels
    assert [found[0, 0, 0], found[1, 0, 0], found[2, 0, 0]] == [*wanted, 0]
