"""A design is the planner's for these images, keeps what a version brings where it fits, and says which and why."""

import dataclasses
import json

import numpy as np
import pytest
import torch

from rayapp.errors import BadRequest
from rayapp.inference.network.network import divisor_of
from rayapp.models.networks import build, strided_unet
from rayapp.training.basic_train import BasicTrainTask
from rayapp.training.deepgrow_train import DeepGrow2dTrainTask
from rayapp.training.design import Design
from rayapp.training.options import ClickOptions, Options
from tests.training.blobs import LABELS, SMALL

CPU = torch.device("cpu")
NETWORK = strided_unet(4, 3, [(2, 2, 1), (2, 2, 2)], width=4)


def task(**conf):
    return BasicTrainTask(labels=LABELS, description="", options=Options(), conf=conf)


def design(**other):
    made = Design(
        labels=LABELS, spacing=(1.0, 1.0, 2.5), roi_size=(16, 24, 8), network=NETWORK, channels=1, precision="float32"
    )
    return dataclasses.replace(made, **other)


def test_a_card_gives_the_design_back():
    for spacing in (1.5, (1.5, 0.8, 4.0)):
        made = design(spacing=spacing, overlap=0.4, windows=3, plan={"train_batch_size": 3, "why": {"spacing": "so"}})
        assert Design.of(json.loads(json.dumps(made.card())), guidance=3) == made
    assert design().divisor == (4, 4, 2)


def test_a_card_from_before_the_planner_is_read():
    old = {"labels": LABELS, "spacing": 4.5, "roi_size": [16, 24, 8], "network": NETWORK}
    made = Design.of(old, guidance=3)
    assert (made.spacing, made.overlap, made.windows, made.precision) == (4.5, 0.25, 1, "bfloat16")


def test_the_planner_designs_and_its_network_takes_the_region(pairs):
    slices = DeepGrow2dTrainTask(description="", options=ClickOptions())
    for one, channels, params in ((task(), 1, {}), (slices, 3, {"roi_size": [24, 20]})):
        made = one.design(pairs, params, device=CPU)
        assert len(made.spacing) == len(made.roi_size) == one.dimensions
        assert all(n % d == 0 for n, d in zip(made.roi_size, made.divisor, strict=True))
        with torch.no_grad():
            logits = build(made.network)(torch.zeros(1, channels, *made.roi_size))
        assert logits.shape == (1, len(one.labels) + 1, *made.roi_size)
        assert made.plan["train_batch_size"] >= 1
        assert made.plan["survey"]["labelled"] == len(pairs)
        assert set(made.plan["why"]) >= {"spacing", "roi_size", "network", "train_batch_size"}


def test_the_apps_conf_comes_before_the_planner_and_a_request_before_both(pairs):
    network = SMALL["network"]
    conf = {"spacing": "2,2,3", "overlap": "0.5", "precision": "float32"}
    made = task(**conf).design(pairs, {"network": network}, device=CPU)
    assert (made.spacing, made.overlap, made.precision) == ((2, 2, 3), 0.5, "float32")
    assert made.network["channels"] == network["channels"]
    asked = {"network": network, "spacing": 1.5, "roi_size": [15, 17, 9], "amp": True}
    made = task(**conf).design(pairs, asked, device=CPU)
    assert (made.spacing, made.roi_size) == ((1.5, 1.5, 1.5), (16, 18, 10))
    assert made.plan["why"]["spacing"] == made.plan["why"]["roi_size"] == "as requested"


def test_without_mixed_precision_a_design_is_of_float32(pairs):
    made = task().design(pairs, {"network": SMALL["network"], "roi_size": [16] * 3, "amp": False}, device=CPU)
    assert made.precision == "float32"


@pytest.mark.parametrize("conf", [{"spacing": "fine"}, {"roi_size": "1,2"}, {"network": "[]x"}], ids=str)
def test_conf_that_cannot_be_is_refused_by_name(pairs, conf):
    with pytest.raises(BadRequest, match=next(iter(conf))):
        task(**conf).design(pairs, {}, device=CPU)


def test_a_version_is_gone_on_from_unless_its_voxels_are_far_off_or_something_else_was_asked_for():
    def objection(fixed=(), **card):
        return design().objection({**design().card(), **card}, fixed=fixed)

    assert objection() is None
    assert objection(spacing=1.6, roi_size=[64, 64, 64]) is None
    assert "voxels" in objection(spacing=[1.0, 1.0, 5.5])
    assert "voxels" in objection(spacing=[0.4, 1.0, 2.5])
    assert "channels" in objection(network={**NETWORK, "in_channels": 5})
    assert "spacing" in objection(fixed=["spacing"], spacing=[1.0, 1.0, 2.0])
    assert "network" in objection(fixed=["network"], network={**NETWORK, "channels": [8, 16, 32]})
    assert objection(fixed=["spacing", "network", "roi_size"]) is None


def test_what_the_options_leave_open_is_the_plans():
    plan = {"train_batch_size": 3, "cache": 77}
    left = Options().planned(plan)
    assert (left.train_batch_size, left.cache) == (3, 77)
    asked = Options(train_batch_size=2, cache=0).planned(plan)
    assert (asked.train_batch_size, asked.cache) == (2, 0)
    assert Options().planned({}).train_batch_size == 1


@pytest.mark.parametrize("strides", [[(2, 2, 1), (2, 2, 2)], [(2, 2)], [(1, 1, 1)]])
def test_networks_stride_along_each_axis_as_told(strides):
    axes = len(strides[0])
    network = strided_unet(1, 3, strides, width=4)
    assert divisor_of(network) == tuple(np.prod(strides, axis=0))
    shape = [12, 8, 6][:axes]
    assert build(network)(torch.zeros(1, 1, *shape)).shape == (1, 3, *shape)
