"""A run learns, says how far it is, stops when told, and goes on from a checkpoint as if it had never stopped."""

import dataclasses
import itertools
import json
from types import SimpleNamespace

import nibabel
import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file

from rayapp.errors import BadRequest
from rayapp.inference.infer_task import Prompts
from rayapp.inference.methods.deepedit import DeepEditTask
from rayapp.inference.methods.deepgrow import DeepGrow2DTask, DeepGrow3DTask
from rayapp.inference.methods.segmentation import SegmentationTask
from rayapp.models.store import ModelStore, ModelVersion
from rayapp.training import checkpoint, loop
from rayapp.training.basic_train import BasicTrainTask
from rayapp.training.deepedit_train import DeepEditTrainTask
from rayapp.training.deepgrow_train import DeepGrow2dTrainTask, DeepGrowTrainTask
from rayapp.training.local_host import LocalHost
from rayapp.training.metrics import dice
from rayapp.training.options import ClickOptions, Options
from rayapp.training.train_task import TrainRequest
from tests.training.blobs import LABELS, SMALL, blob

CPU = torch.device("cpu")
CHEAP = {"network": SMALL["network"], "roi_size": SMALL["roi_size"], "amp": False}
"""Params without a spacing, which is the planner's then."""


def segmentation():
    return BasicTrainTask(labels=LABELS, description="balls and rods", options=Options())


def request(pairs, folder, **params):
    return TrainRequest(model="segmentation", pairs=pairs, folder=folder, params={**SMALL, **params})


def run(task, asked, folder, **host):
    told = []
    result = task.train(asked, LocalHost(folder, device=CPU, on_progress=told.append, **host))
    return result, told


def version(result, name="segmentation"):
    return ModelVersion(name=name, version="v1", weights=result.weights, card=result.card)


@pytest.fixture(scope="module")
def trained(pairs, tmp_path_factory):
    """A run that is long enough to learn something: (result, what was told, folder)."""
    folder = tmp_path_factory.mktemp("trained")
    return *run(segmentation(), request(pairs, folder / "run", max_epochs=16), folder / "host"), folder / "run"


def test_it_learns(trained):
    result, told, _ = trained
    assert result.metric > 0.75
    assert np.mean([progress.loss for progress in told[-6:]]) < np.mean([progress.loss for progress in told[:6]]) / 2


def test_its_card_serves_as_it_is_and_what_it_claims_holds(trained):
    result, _, _ = trained
    task = SegmentationTask.from_version(version(result))
    scores = []
    for seed in (101, 102, 103):
        volume, labels = blob(seed)
        scores.append(dice(task.predict(task.prepare(volume), Prompts(), {}).labels, labels, 2))
    assert np.nanmean(scores) > 0.6
    assert result.metric == result.card["metrics"]["dice"]["mean"]
    assert {"hash", "training", "validation"} == set(result.card["data"])
    assert result.card["seed"] == result.card["config"]["seed"] == 0
    assert result.card["labels"] == LABELS
    assert "torch" in result.card["code"]


def test_a_result_publishes_as_it_is(trained, tmp_path):
    result, _, _ = trained
    published = ModelStore(tmp_path).publish("segmentation", result.weights, result.card)
    assert published.card["metrics"] == json.loads(json.dumps(result.card["metrics"]))


def test_statistics_have_the_shape_that_clients_read(trained):
    result, _, folder = trained
    stats = result.stats
    assert stats == json.loads((folder / "stats.json").read_text())
    assert list(stats) == [
        *("total_epochs", "total_iterations", "epoch", "start_ts", "total_time", "best_metric", "train", "eval")
    ]
    assert (stats["total_epochs"], stats["epoch"]) == (16, 16)
    assert 0 < stats["best_metric"] <= 1
    for side in ("train", "eval"):
        assert set(stats[side]) == {"metrics", "key_metric_name", "best_metric", "best_metric_epoch"}
        assert stats[side]["key_metric_name"] in stats[side]["metrics"]
        assert 1 <= stats[side]["best_metric_epoch"] <= 16
    assert stats["eval"]["best_metric"] == stats["best_metric"]


def test_progress_counts_from_one_to_the_end(trained):
    _, told, _ = trained
    iterations = [progress.iteration for progress in told]
    assert iterations == sorted(iterations)
    assert iterations[0] == 1
    assert (told[-1].iteration, told[-1].epoch) == (told[-1].iterations, 16)
    assert told[0].metric is None
    assert told[0].epoch == 1
    assert told[-1].best >= told[-1].metric
    assert told[len(told) // 2].seconds_left > 0 == told[-1].seconds_left


def test_a_run_leaves_curves_events_and_a_picture(trained):
    _, _, folder = trained
    for name in ("curves.png", "worst-1.png"):
        assert min(Image.open(folder / name).size) > 200
    (events,) = (folder / "events").iterdir()
    assert b"val/dice_mean" in events.read_bytes()
    assert not (folder / "checkpoint").exists()


class Stopped:
    """Stops before the n-th time it is asked to go on, counting iterations and validation cases."""

    def __init__(self, after):
        self.calls = itertools.count()
        self.after = after

    def __call__(self):
        return next(self.calls) >= self.after


def deepedit():
    return DeepEditTrainTask(labels=LABELS, description="", options=ClickOptions(rounds=2, val_clicks=2))


@pytest.mark.parametrize("make", [segmentation, deepedit])
def test_a_run_that_goes_on_from_a_checkpoint_ends_as_one_that_never_stopped(pairs, tmp_path, make):
    params = {"max_epochs": 3, "checkpoint_every": 2, "accumulate": 1}
    whole, _ = run(make(), request(pairs, tmp_path / "a", **params), tmp_path / "host_a")
    for stop in (3, 4, 8):
        result, told = run(make(), request(pairs, tmp_path / "b", **params), tmp_path / "host_b", stop=Stopped(stop))
        assert result is None
    result, told = run(make(), request(pairs, tmp_path / "b", **params), tmp_path / "host_b")
    assert told[0].iteration > 1
    assert result.card["trained"]["resumed"] >= 2
    expected, got = load_file(whole.weights), load_file(result.weights)
    assert all(torch.equal(tensor, got[name]) for name, tensor in expected.items())
    assert result.stats["eval"] == whole.stats["eval"]
    assert result.stats["train"]["metrics"].keys() == whole.stats["train"]["metrics"].keys()


def test_a_stop_is_obeyed_before_the_next_iteration(pairs, tmp_path):
    for stop in range(5):
        result, told = run(
            segmentation(), request(pairs, tmp_path / "r", max_epochs=9), tmp_path / f"h{stop}", stop=Stopped(stop)
        )
        assert result is None
        assert len({progress.iteration for progress in told}) <= stop


def test_checkpoints_load_without_pickle(pairs, tmp_path):
    run(segmentation(), request(pairs, tmp_path / "r", max_epochs=1), tmp_path / "host")
    (kept,) = (tmp_path / "host").iterdir()
    state, tensors = checkpoint.load(kept)
    assert state.epoch == 1
    assert tensors["best"]
    torch.load(kept / "tensors.pt", weights_only=True)


def test_training_stops_early_when_nothing_gets_better(pairs, tmp_path):
    params = {"max_epochs": 30, "early_stop_patience": 2, "learning_rate": 1e-12, "augment": False}
    result, _ = run(segmentation(), request(pairs, tmp_path / "r", **params), tmp_path / "host")
    assert result.stats["epoch"] == 3


def test_a_run_of_given_steps_may_end_within_an_epoch(pairs, tmp_path):
    train = segmentation().partition(pairs, Options())[0]
    steps = 2 * len(train) - 1
    asked = request(pairs, tmp_path / "r", max_steps=steps, train_batch_size=1)
    result, told = run(segmentation(), asked, tmp_path / "host")
    assert (told[-1].iteration, told[-1].iterations, told[-1].epochs) == (steps, steps, 2)
    assert result.stats["total_iterations"] == steps
    assert result.card["trained"]["iterations"] == steps


def test_a_run_of_given_minutes_ends_when_they_have_passed_and_goes_on_where_it_stopped(pairs, tmp_path, monkeypatch):
    now = itertools.count()
    clock = SimpleNamespace(monotonic=lambda: next(now) * 1.0)  # each look of the run at the clock is a second later
    monkeypatch.setattr(loop, "time", clock)
    asked, steps = (
        request(pairs, tmp_path / "r", minutes=0.5, train_batch_size=1, checkpoint_every=1),
        itertools.count(),
    )
    stopped, told = run(segmentation(), asked, tmp_path / "host", stop=lambda: next(steps) == 7)
    assert stopped is None
    assert 0 < told[-1].seconds_left < 30
    result, later = run(segmentation(), asked, tmp_path / "host")
    assert later[0].iteration > told[-1].iteration - 1
    assert result.card["trained"]["resumed"] == 1
    assert 30 <= result.card["trained"]["seconds"] <= 33  # the last validation is not cut off
    assert later[-1].seconds_left == 0


def test_accumulated_batches_make_one_step(pairs, tmp_path):
    _, told = run(
        segmentation(),
        request(pairs, tmp_path / "r", max_epochs=1, train_batch_size=1, accumulate=4),
        tmp_path / "host",
    )
    train = segmentation().partition(pairs, Options())[0]
    assert told[-1].iterations == -(-len(train) // 4)


def test_a_run_starts_from_its_parent_and_measures_the_baseline(trained, pairs, tmp_path):
    result, _, _ = trained
    parent = version(result)
    params = {key: value for key, value in SMALL.items() if key not in ("network", "roi_size")}
    asked = TrainRequest(
        model="segmentation",
        pairs=pairs,
        folder=tmp_path / "r",
        params={**params, "max_epochs": 1, "learning_rate": 1e-9},
        parent=parent,
        baseline=parent,
    )
    again, _ = run(segmentation(), asked, tmp_path / "host")
    assert again.card["network"] == dict(parent.card["network"])
    assert again.card["trained"]["from"] == again.card["plan"]["from"] == "v1"
    assert "fine-tunes v1" in again.card["plan"]["start"]
    assert again.baseline == result.metric
    assert again.metric == pytest.approx(result.metric, abs=0.02)


def test_a_parent_of_other_labels_is_not_taken_over(trained, pairs, tmp_path):
    result, _, _ = trained
    task = BasicTrainTask(labels={"rod": 1, "ball": 2}, description="", options=Options())
    asked = TrainRequest(
        model="segmentation",
        pairs=pairs,
        folder=tmp_path / "r",
        params={**SMALL, "max_epochs": 1},
        parent=version(result),
        baseline=version(result),
    )
    again, _ = run(task, asked, tmp_path / "host")
    assert again.card["trained"]["from"] is None
    assert again.baseline is None


def test_a_parent_whose_voxels_are_far_from_the_datas_is_not_taken_over_and_the_record_says_so(
    trained, pairs, tmp_path
):
    result, _, _ = trained
    parent = dataclasses.replace(version(result), card={**result.card, "spacing": 6.0})
    asked = TrainRequest(
        model="segmentation", pairs=pairs, folder=tmp_path / "r", params={"max_epochs": 1, **CHEAP}, parent=parent
    )
    task = BasicTrainTask(labels=LABELS, description="", options=Options())
    again, _ = run(task, asked, tmp_path / "host")
    assert again.card["trained"]["from"] is None
    assert "not from v1: its voxels of 6.0 mm" in again.card["plan"]["start"]
    chosen = json.loads((tmp_path / "r" / "design.json").read_text())
    assert chosen["plan"] == again.card["plan"]
    assert max(again.card["spacing"]) < 3


def test_a_run_that_goes_on_keeps_its_design_whatever_the_server_is_told_meanwhile(pairs, tmp_path):
    def with_conf(**conf):
        return BasicTrainTask(labels=LABELS, description="", options=Options(), conf=conf)

    asked = request(pairs, tmp_path / "r", max_epochs=2, checkpoint_every=2, spacing=None)
    stopped, _ = run(with_conf(spacing="1.5,1.2,1.3"), asked, tmp_path / "host", stop=Stopped(3))
    assert stopped is None
    result, _ = run(with_conf(spacing="3"), asked, tmp_path / "host")
    assert result.card["trained"]["resumed"] == 1
    assert result.card["spacing"] == [1.5, 1.2, 1.3]
    SegmentationTask.from_version(version(result)).load()


@pytest.mark.parametrize(
    ("task", "kind"),
    [
        (deepedit(), DeepEditTask),
        (DeepGrowTrainTask(description="", options=ClickOptions(val_clicks=2)), DeepGrow3DTask),
    ],
    ids=["deepedit", "deepgrow_3d"],
)
def test_tasks_that_learn_from_clicks_train_to_their_end(task, kind, pairs, tmp_path):
    result, _ = run(task, request(pairs, tmp_path / "r", max_epochs=2), tmp_path / "host")
    assert set(result.card["metrics"]) == set(task.measurements)
    assert result.card["network"]["in_channels"] == 1 + len(task.labels) + 1
    assert result.card["config"]["click_noise"] == 0.0
    kind.from_version(version(result)).load()


def test_deepgrow_2d_trains_on_slices(pairs, tmp_path):
    params = {"network": {**SMALL["network"], "spatial_dims": 2}, "roi_size": [24, 24], "max_epochs": 2}
    task = DeepGrow2dTrainTask(description="", options=ClickOptions(val_clicks=2))
    result, _ = run(task, request(pairs, tmp_path / "r", **params), tmp_path / "host")
    assert result.card["labels"] == {"foreground": 1}
    assert result.card["roi_size"] == [24, 24]
    assert result.metric > 0
    DeepGrow2DTask.from_version(version(result)).load()


@pytest.mark.parametrize(
    ("params", "said"),
    [
        ({"max_epochs": -1}, "max_epochs"),
        ({"max_epochs": "many"}, "max_epochs cannot be 'many'"),
        ({"train_batch_size": 1.5}, "train_batch_size"),
        ({"val_split": 1}, "val_split"),
        ({"learning_rate": "nan"}, "learning_rate"),
        ({"network": {"name": "Nothing"}}, "Nothing"),
        ({"network": "unet"}, "network"),
        ({"roi_size": "wide"}, "roi_size"),
    ],
)
def test_params_that_cannot_be_are_refused_by_name(params, said, pairs, tmp_path):
    with pytest.raises(BadRequest, match=said):
        run(segmentation(), request(pairs, tmp_path / "r", **params), tmp_path / "host")


def test_one_image_is_too_few(pairs, tmp_path):
    with pytest.raises(BadRequest, match="two labelled images"):
        run(segmentation(), request(pairs[:1], tmp_path / "r"), tmp_path / "host")


def test_options_come_as_clients_send_them():
    options = Options().over({"max_epochs": "3", "pretrained": "false", "seed": [7], "device": "cuda", "name": "x"})
    assert (options.max_epochs, options.pretrained, options.seed) == (3, False, 7)


def spoilt(pairs, folder):
    """Copies of the pairs: of the first three, the label is cut, elsewhere, and of a structure that there is not."""
    copies = []
    for number, pair in enumerate(pairs):
        image, label = folder / pair.image.name, folder / pair.label.name
        image.write_bytes(pair.image.read_bytes())
        content, found = pair.label.read_bytes(), nibabel.load(pair.label)
        label.write_bytes(content[:-40] if number == 0 else content)
        if number == 1:
            moved = found.affine + np.array([[0, 0, 0, 3]] * 3 + [[0, 0, 0, 0]])
            nibabel.Nifti1Image(np.asarray(found.dataobj), moved).to_filename(label)
        if number == 2:
            nibabel.Nifti1Image(np.asarray(found.dataobj) * np.uint8(4), found.affine).to_filename(label)
        copies.append(dataclasses.replace(pair, image=image, label=label))
    return copies


def test_all_images_that_cannot_be_trained_with_are_named_at_once(pairs, tmp_path):
    bad = spoilt(pairs[:6], tmp_path)
    with pytest.raises(BadRequest) as raised:
        run(segmentation(), request(bad, tmp_path / "run", max_epochs=1), tmp_path / "host")
    assert "3 of 6 images cannot be trained with (skip_bad leaves them out): " in raised.value.detail
    for pair in bad[:3]:
        assert pair.image.name.split(".")[0] in raised.value.detail
    for reason in ("truncated", "do not coincide", "has the value 8"):
        assert reason in raised.value.detail


def test_images_that_cannot_be_trained_with_are_left_out_when_told_so(pairs, tmp_path):
    bad = spoilt(pairs[:6], tmp_path)
    result, _ = run(segmentation(), request(bad, tmp_path / "run", max_epochs=1, skip_bad=True), tmp_path / "host")
    data = result.card["data"]
    assert data["training"] + data["validation"] == 3
    assert list(data["left_out"]) == [pair.image.name.split(".")[0] for pair in bad[:3]]
