"""Automatic segmentation: useful on unseen patients, the same on every grid, tolerant of what clients send."""

import contextlib
import json
import threading
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
from scipy import ndimage

from rayapp.errors import BadRequest, ModelBroken
from rayapp.imaging.volume import Volume
from rayapp.inference.infer_task import Prompts
from rayapp.inference.methods import segmentation as method
from rayapp.inference.methods.segmentation import SegmentationTask
from rayapp.inference.network import network
from rayapp.models import networks
from rayapp.training.metrics import dice
from tests.inference.grids import turned, turned_labels
from tests.inference.shipped_models import SHIPPED, changed, shipped

TURNS = [((2, 0, 1), (True, False, True)), ((0, 1, 2), (True, True, False)), ((1, 0, 2), (False, False, True))]


def segment(task, volume, prompts=None, **config):
    return task.predict(task.prepare(volume), prompts or Prompts(), config)


@pytest.fixture(scope="module")
def answers(segmentation, cases):
    return [segment(segmentation, volume) for volume, _ in cases]


def test_the_shipped_weights_find_the_organs_of_patients_they_never_saw(answers, cases):
    scores = [dice(answer.labels, truth.array, 5) for answer, (_, truth) in zip(answers, cases, strict=True)]
    assert np.nanmean(scores) >= 0.85
    assert np.nanmin(np.nanmean(scores, axis=0)) >= 0.75  # the worst organ


def test_the_shipped_files_are_small_and_their_cards_state_their_worth():
    sizes = {path.stem: path.stat().st_size for path in SHIPPED.glob("*.safetensors")}
    assert sizes.pop("deepgrow_3d") <= 24_000_000
    assert sum(sizes.values()) <= 3_000_000
    for name in ("segmentation", "deepedit"):
        assert json.loads((SHIPPED / f"{name}.json").read_text())["metrics"]["dice"]["mean"] >= 0.85


def test_labels_lie_on_the_source_grid(answers, cases, segmentation):
    for answer, (volume, _) in zip(answers, cases, strict=True):
        assert answer.labels.shape == volume.shape
        assert answer.labels.dtype == np.uint8
        assert set(np.unique(answer.labels)) <= {0, *segmentation.info.labels.values()}
        assert set(answer.seconds) == {"infer", "post", "invert"}


@pytest.mark.parametrize(("order", "flips"), TURNS)
def test_a_turned_grid_gives_the_same_labels_turned(segmentation, answers, cases, order, flips):
    again = segment(segmentation, turned(cases[0][0], order, flips)).labels
    expected = turned_labels(answers[0].labels, order, flips)
    assert (again != expected).mean() < 1e-4  # sums in another order may flip a voxel on an edge


def test_a_sliding_window_sees_what_the_whole_does(segmentation, answers, cases):
    small = SegmentationTask.from_version(changed(shipped("segmentation"), roi_size=(64, 64, 48)))
    windowed = segment(small, cases[0][0]).labels
    both = (windowed > 0) & (windowed == answers[0].labels)
    assert 2 * both.sum() / ((windowed > 0).sum() + (answers[0].labels > 0).sum()) > 0.85


def test_only_the_largest_part_stays_when_asked(segmentation, cases):
    labels = segment(segmentation, cases[1][0], largest_cc="true").labels
    for value in segmentation.info.labels.values():
        _, count = ndimage.label(labels == value, ndimage.generate_binary_structure(3, 3))
        assert count <= 1


def test_nothing_is_marked_outside_the_roi(segmentation, answers, cases):
    low, high = (10, 12, 8), (60, 50, 40)
    labels = segment(segmentation, cases[0][0], Prompts(roi=(low, high))).labels
    inside = tuple(slice(*ends) for ends in zip(low, high, strict=True))
    np.testing.assert_array_equal(labels[inside], answers[0].labels[inside])
    labels = labels.copy()
    labels[inside] = 0
    assert not labels.any()


def test_what_clients_add_to_a_request_changes_nothing(segmentation, answers, cases):
    extras = {"device": ["Tesla V100"], "restore_label_idx": False, "largest_cc": ["false"], "result_dtype": "uint8"}
    np.testing.assert_array_equal(segment(segmentation, cases[0][0], **extras).labels, answers[0].labels)


def test_an_image_of_too_many_voxels_is_segmented_coarser_and_the_answer_says_so(segmentation, cases, monkeypatch):
    monkeypatch.setattr(method, "MAX_LOGITS", 6 * 20_000)
    answer = segment(segmentation, cases[0][0])
    assert "coarser" in answer.params["coarsened"]
    assert answer.labels.shape == cases[0][0].shape


def test_describing_needs_no_weights(tmp_path):
    task = SegmentationTask.from_version(changed(shipped("segmentation"), weights=tmp_path / "absent.safetensors"))
    assert task.info.type == "segmentation"
    assert "background" not in task.info.labels
    assert sorted(task.info.labels.values()) == [1, 2, 3, 4, 5]
    assert task.info.config["largest_cc"] is False
    assert task.info.version == task.version == "shipped-1"
    with pytest.raises(ModelBroken, match=r"absent\.safetensors"):
        task.load()


def test_many_threads_that_load_at_once_build_the_network_once(monkeypatch):
    task = SegmentationTask.from_version(shipped("segmentation"))
    built, two_at_once = [], threading.Barrier(2)

    def build(config):
        built.append(config)
        with contextlib.suppress(threading.BrokenBarrierError):
            two_at_once.wait(0.5)  # time for a second thread to come here, which the lock must keep out
        return networks.build(config)

    monkeypatch.setattr(network, "build", build)
    with ThreadPoolExecutor(8) as pool:
        for done in [pool.submit(task.load) for _ in range(8)]:
            done.result()
    assert len(built) == 1


def test_extra_channels_are_left_alone_and_missing_ones_are_named(segmentation, answers, cases):
    volume = cases[0][0]
    more = Volume(array=np.concatenate([volume.array, volume.array * 0]), affine=volume.affine)
    np.testing.assert_array_equal(segment(segmentation, more).labels, answers[0].labels)
    network = {**shipped("segmentation").card["network"], "in_channels": 4}
    needs_four = SegmentationTask.from_version(changed(shipped("segmentation"), network=network))
    with pytest.raises(BadRequest, match="4 channels"):
        needs_four.prepare(volume)


@pytest.mark.parametrize("labels", [{"liver": 1, "spleen": 3}, {}, {"background": 0}, {"a": 1, "b": 1}])
def test_label_values_with_gaps_are_refused(labels):
    with pytest.raises(ModelBroken, match="from 1"):
        SegmentationTask.from_version(changed(shipped("segmentation"), labels=labels))


def test_a_card_that_lacks_something_is_named():
    version = shipped("segmentation")
    incomplete = {key: value for key, value in version.card.items() if key != "spacing"}
    with pytest.raises(ModelBroken, match="spacing"):
        SegmentationTask.from_version(type(version)(name="x", version="1", weights=version.weights, card=incomplete))


def test_what_is_prepared_knows_its_size(segmentation, cases):
    prepared = segmentation.prepare(cases[0][0])
    assert prepared.nbytes == prepared.image.numel() * 4 > 100_000
