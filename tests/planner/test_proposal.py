"""Proposals for described data sets and machines."""

from __future__ import annotations

import json
import math
from dataclasses import replace

import numpy as np
import pytest
import torch
from torch._subclasses.fake_tensor import FakeTensorMode

from rayapp.errors import BadRequest
from rayapp.models.networks import build
from rayapp.planner.machine import Gpu, Hardware
from rayapp.planner.needs import kernels, pooling
from rayapp.planner.proposal import FORWARD_BUDGET_S, KINDS, SLACK, STEP_BUDGET_S, Kind, Method, Proposal, propose
from rayapp.planner.survey import Structure, Survey

GIB = 1 << 30
SMALL = Hardware(cores=2, memory=16 * GIB, shared_memory=8 * GIB, cpu_bf16=True)
WITH_GPU = replace(SMALL, gpus=(Gpu(name="some", memory=24 * GIB, bf16=True),))


def survey(
    spacing: tuple[float, float, float], size: tuple[int, int, int], *, structures: dict[int, Structure] | None = None
) -> Survey:
    return Survey(
        images=50,
        sampled=50,
        unreadable=0,
        labelled=0,
        channels=1,
        modality="CT",
        spacing=spacing,
        size=size,
        extent=tuple(np.multiply(spacing, size)),
        slice_axis=2,
        intensities=(-1000, 0, 400),
        structures=structures or {},
        foreground=None,
    )


def proposed(
    data: Survey, machine: Hardware, kind: Kind = "segmentation", structures: int = 4, **overrides: object
) -> Proposal:
    return propose(data, machine, Method.of(kind, structures), overrides=overrides)


CROPS = survey((1, 1, 1), (36, 52, 40))
TORSOS = survey((0.8, 0.8, 1.5), (512, 512, 400))
THICK = survey((1.25, 1.25, 7.7), (256, 288, 36))


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("data", [CROPS, THICK], ids=["crops", "thick slices"])
def test_the_network_takes_what_is_proposed(data: Survey, kind: Kind):
    proposal = proposed(data, SMALL, kind)
    with FakeTensorMode():
        logits = build(proposal.network)(torch.zeros(1, proposal.network["in_channels"], *proposal.roi_size))
    assert logits.shape == (1, proposal.network["out_channels"], *proposal.roi_size)


def test_channels_are_the_images_and_the_guidance():
    def channels(kind: Kind) -> tuple[int, int]:
        network = proposed(replace(CROPS, channels=2), SMALL, kind, structures=3).network
        return network["in_channels"], network["out_channels"]

    assert channels("segmentation") == (2, 4)
    assert channels("deepedit") == (6, 4)
    assert channels("deepgrow_3d") == (4, 2)


def test_small_images_are_seen_whole_as_they_are_on_a_gpu_by_a_network_of_full_resolution():
    for machine, name in ((SMALL, "UNet"), (WITH_GPU, "DynUNet")):
        proposal = proposed(CROPS, machine)
        assert proposal.spacing == (1, 1, 1)
        assert (np.array(proposal.roi_size) >= CROPS.size).all()
        assert proposal.network["name"] == name
        assert (proposal.why["spacing"], proposal.why["roi_size"]) == ("the images' own voxels", "whole images")


@pytest.mark.parametrize("data", [TORSOS, THICK], ids=["torsos", "thick slices"])
@pytest.mark.parametrize("kind", ["segmentation", "deepedit"])
def test_the_footprints_of_a_forward_pass_and_of_a_step_fit_the_budgets_of_two_cores(data: Survey, kind: Kind):
    proposal = proposed(data, SMALL, kind)
    assert 0 < proposal.forward_seconds <= SLACK * FORWARD_BUDGET_S
    assert proposal.step_seconds <= STEP_BUDGET_S


def test_clicks_see_the_whole_image_and_windows_a_part_in_finer_voxels():
    edit, windows = (proposed(TORSOS, SMALL, kind) for kind in ("deepedit", "segmentation"))
    assert (np.multiply(edit.roi_size, edit.spacing) >= 0.9 * np.array(TORSOS.extent)).all()
    assert edit.why["roi_size"] == "whole images" != windows.why["roi_size"]
    assert (np.array(windows.spacing) < edit.spacing).all()


def test_thick_slices_are_neither_thinned_nor_thickened_nor_pooled_first():
    proposal = proposed(THICK, SMALL, "deepedit")
    right, anterior, superior = proposal.spacing
    assert superior == 7.7
    assert 1.25 < right == anterior < 7.7
    assert proposal.network["strides"][0] == [2, 2, 1]
    full = proposed(THICK, WITH_GPU, "segmentation")
    assert full.spacing == (1.25, 1.25, 7.7)
    assert full.network["kernel_size"][:2] == [[3, 3, 1], [3, 3, 1]]
    assert full.network["kernel_size"][-1] == 3
    assert full.network["strides"][:3] == [1, [2, 2, 1], [2, 2, 1]]


def test_slices_have_the_voxels_of_their_plane_however_they_are_stacked():
    sagittal = replace(survey((4.0, 0.5, 1.0), (30, 200, 160)), slice_axis=0)
    proposal = proposed(sagittal, SMALL, "deepgrow_2d")
    assert proposal.spacing == (0.5, 1.0)
    assert proposal.roi_size == (208, 160)


def test_kernels_reach_along_an_axis_once_the_others_are_as_coarse():
    assert kernels(np.array([1.0, 1, 4]), [(2, 2, 1), (2, 2, 2)]) == [(3, 3, 1), (3, 3, 1), (3, 3, 1)]
    assert kernels(np.array([1.0, 1, 3]), [(2, 2, 1), (2, 2, 2)]) == [(3, 3, 1), (3, 3, 3), (3, 3, 3)]


def test_axes_are_pooled_once_the_others_are_as_coarse():
    strides = pooling(np.array([128.0, 96, 32]), np.array([1.0, 1, 3.9]), 4)
    assert strides == [(2, 2, 1), (2, 2, 2), (2, 2, 2), (2, 2, 2)]
    assert pooling(np.array([64.0, 64, 1]), np.array([1.0, 1, 1]), 3) == [(2, 2, 1)] * 3
    assert pooling(np.array([3.0, 3, 3]), np.array([1.0, 1, 1]), 3) == [(1, 1, 1)]


def test_small_structures_call_for_small_voxels():
    tiny = {1: Structure(volume=0.2, box=(6.0, 6.0, 6.0))}
    fine, coarse = (proposed(replace(TORSOS, structures=s), SMALL, "segmentation") for s in (tiny, {}))
    assert fine.spacing[0] < coarse.spacing[0]


def test_a_machine_without_bfloat16_sees_less_at_once():
    old = replace(SMALL, cpu_bf16=False)
    fast, slow = (proposed(TORSOS, machine, "deepedit") for machine in (SMALL, old))
    assert (fast.precision, slow.precision) == ("bfloat16", "float32")
    assert math.prod(slow.roi_size) < math.prod(fast.roi_size)


def test_a_gpu_trains_a_wider_network_on_more_at_once_within_its_memory():
    here, there = (proposed(TORSOS, machine, "segmentation") for machine in (SMALL, WITH_GPU))
    assert there.network["filters"][0] == 32
    assert there.network["name"] == "DynUNet" != here.network["name"]
    assert math.prod(there.roi_size) > math.prod(here.roi_size)
    assert there.step_memory <= 0.5 * WITH_GPU.gpus[0].memory
    assert there.forward_seconds == 0


def test_half_the_gpu_memory_means_a_smaller_step():
    lesser = replace(WITH_GPU, gpus=(replace(WITH_GPU.gpus[0], memory=6 * GIB),))
    assert proposed(TORSOS, lesser, "segmentation").step_memory <= 3 * GIB


def test_a_gpu_takes_as_many_windows_together_as_a_replicas_share_holds():
    small, large = (replace(WITH_GPU, gpus=(Gpu(name="some", memory=size * GIB, bf16=True),)) for size in (8, 80))
    few, more = (proposed(TORSOS, machine, roi_size=[128] * 3).windows for machine in (small, large))
    assert 1 <= few < more
    assert proposed(TORSOS, SMALL).windows == 1


def test_a_network_that_is_asked_for_gets_the_channels_and_a_region_that_it_takes():
    asked = {"name": "UNet", "spatial_dims": 3, "channels": [8, 16, 32], "strides": [[2, 2, 1], [2, 4, 2]]}
    network = {**asked, "num_res_units": 1}
    proposal = proposed(CROPS, SMALL, "deepedit", structures=2, network=network)
    assert proposal.network == {**network, "in_channels": 4, "out_channels": 3}
    assert all(n % d == 0 for n, d in zip(proposal.roi_size, (4, 8, 2), strict=True))
    assert proposal.why["network"] == "as requested"
    assert proposed(CROPS, SMALL, network=json.dumps(network)).network["channels"] == [8, 16, 32]


def test_what_is_set_stays_and_the_rest_follows():
    proposal = proposed(
        TORSOS,
        SMALL,
        spacing="2,2,3",
        roi_size=[50, 64, 32],
        train_batch_size="3",
        precision="float32",
        overlap=0.6,
    )
    assert proposal.spacing == (2, 2, 3)
    assert proposal.roi_size == (56, 64, 32)  # which the network's strides divide
    assert (proposal.train_batch_size, proposal.precision, proposal.overlap) == (3, "float32", 0.6)
    assert proposed(TORSOS, SMALL, "segmentation", spacing="4").spacing == (4, 4, 4)


@pytest.mark.parametrize(
    "conf",
    [
        {"spacing": "fine"},
        {"spacing": "1,2"},
        {"spacing": "nan"},
        {"roi_size": "64"},
        {"roi_size": "64,64,0"},
        {"roi_size": "64,64,9999"},
        {"train_batch_size": "-1"},
        {"train_batch_size": "1.5"},
        {"precision": "int8"},
        {"network": "unet"},
        {"network": {"name": "UNet", "spatial_dims": 2}},
        {"overlap": "1"},
    ],
    ids=str,
)
def test_a_setting_that_cannot_be_is_refused_by_name(conf: dict[str, str]):
    with pytest.raises(BadRequest, match=next(iter(conf))):
        proposed(CROPS, SMALL, "segmentation", **conf)


def test_the_same_question_has_the_same_answer():
    assert proposed(THICK, SMALL, "deepedit") == proposed(THICK, SMALL, "deepedit")
