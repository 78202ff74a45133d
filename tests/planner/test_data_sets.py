"""Plans for data sets of many shapes, on many machines: each can be built, sees enough, and serves in bounded time."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import pytest
import torch
from torch._subclasses.fake_tensor import FakeTensorMode

from rayapp.models.networks import build
from rayapp.planner.machine import Gpu, Hardware
from rayapp.planner.proposal import WINDOW, Method, Proposal, propose
from rayapp.planner.survey import Structure, Survey

GIB = 1 << 30


def machine(cores: int, memory: int, gpus: int = 0, gpu_memory: int = 0, bf16: bool = True) -> Hardware:
    gpu = Gpu(name="some", memory=gpu_memory * GIB, bf16=bf16)
    return Hardware(
        cores=cores, memory=memory * GIB, shared_memory=memory * GIB // 2, gpus=(gpu,) * gpus, cpu_bf16=cores > 4
    )


MACHINES = {
    "laptop": machine(2, 16),
    "server": machine(32, 128),
    "T4": machine(4, 16, 1, 16, bf16=False),
    "RTX 3080": machine(16, 64, 1, 10),
    "RTX 4090": machine(16, 64, 1, 24),
    "4 A100": machine(64, 512, 4, 80),
    "H200": machine(16, 128, 1, 141),
}


def data(
    spacing: tuple[float, float, float],
    size: tuple[int, int, int],
    box: float | tuple[float, float, float],
    *,
    channels: int = 1,
    structures: int = 1,
) -> Survey:
    """A data set whose structures each fill half of a box with these sides in millimetres."""
    sides = tuple(float(side) for side in np.broadcast_to(box, 3))
    extent = tuple(float(mm) for mm in np.multiply(spacing, size))
    one = Structure(volume=math.prod(sides) / 2000 / structures, box=sides)
    return Survey(
        images=60, sampled=60, unreadable=0, labelled=60, channels=channels, modality="MR", spacing=spacing, size=size,
        extent=extent, slice_axis=2, intensities=(0, 50, 100), structures=dict.fromkeys(range(1, structures + 1), one),
        foreground=sides,
    )  # fmt: skip


SHAPES = {
    "an 11 mm lesion in a chest of 320 mm": data((1, 1, 1), (320, 320, 320), 11),
    "a 30 mm tumour in a fine chest CT": data((0.7, 0.7, 1), (512, 512, 350), 30),
    "a 25 mm tumour in a brain of four sequences": data((1, 1, 1), (240, 240, 155), 25, channels=4),
    "hippocampi": data((1, 1, 1), (36, 50, 36), (20, 40, 30), structures=2),
    "13 organs of an abdomen": data((0.8, 0.8, 3), (512, 512, 150), (320, 240, 300), structures=13),
    "a prostate in thick slices": data((0.6, 0.6, 3.6), (320, 320, 20), 50, channels=2),
    "a heart in slices of 10 mm": data((1.5, 1.5, 10), (216, 256, 10), (80, 80, 70), structures=3),
    "knees": data((0.36, 0.36, 0.7), (384, 384, 160), 100, structures=5),
    "whole bodies of 1.9 m": data((1.5, 1.5, 1.5), (420, 420, 1270), (300, 200, 1700), structures=20),
    "mice": data((0.05, 0.05, 0.05), (512, 512, 800), 3, structures=4),
    "stacks of two slices": data((0.8, 0.8, 8), (512, 512, 2), 40),
    "tiny crops": data((0.5, 0.5, 0.5), (24, 28, 20), 8),
    "vessels of a head": data((0.3, 0.3, 0.6), (560, 560, 140), 120),
}
SOME = [(shape, list(MACHINES)[n % len(MACHINES)]) for n, shape in enumerate(SHAPES)]
ALL = [(shape, name) for shape in SHAPES for name in MACHINES if (shape, name) not in SOME]


@pytest.mark.parametrize(("shape", "name"), [*SOME, *(pytest.param(*case, marks=pytest.mark.slow) for case in ALL)])
def test_a_plan_can_be_built_sees_enough_and_serves_in_bounded_time(shape: str, name: str):
    survey, hardware = SHAPES[shape], MACHINES[name]
    plan = propose(survey, hardware, Method.of("segmentation", len(survey.structures)))
    image = np.maximum(1, np.rint(np.divide(survey.extent, plan.spacing)))
    least = WINDOW["cuda" if hardware.gpus else "cpu"]
    built(plan)
    assert levels(plan) >= min(3, *(int(np.log2(max(2, n))) - 2 for n in sorted(image)[1:])), "levels of the network"
    assert math.prod(np.minimum(plan.roi_size, image)) >= 0.5 * min(math.prod(image), least**3), "the window"
    steps = np.multiply(plan.roi_size, 1 - plan.overlap)
    assert np.maximum(1, np.ceil((image - plan.roi_size) / steps) + 1).prod() <= 256, "windows of an image"


def built(plan: Proposal) -> None:
    with FakeTensorMode():
        logits = build(plan.network)(torch.zeros(1, plan.network["in_channels"], *plan.roi_size))
    assert logits.shape[2:] == plan.roi_size


def levels(plan: Proposal) -> int:
    return sum(stride != 1 for stride in plan.network["strides"])


def test_a_lesion_is_seen_with_what_lies_around_it():
    plan = propose(SHAPES["an 11 mm lesion in a chest of 320 mm"], MACHINES["laptop"], Method.of("segmentation", 1))
    seen = np.multiply(plan.roi_size, plan.spacing)
    assert seen.min() >= 60
    assert max(plan.spacing) <= 11 / 4


def test_computed_tomography_is_seen_in_the_hounsfield_units_of_its_structures():
    chest = replace(SHAPES["a 30 mm tumour in a fine chest CT"], modality="CT")
    method = Method.of("segmentation", 1)

    def seen(*percentiles: float) -> tuple[float, float] | None:
        return propose(replace(chest, foreground_intensities=percentiles), MACHINES["T4"], method).intensities

    assert seen(-1000, -850, -300) == (-1000, -300), "lungs"
    assert seen(-100, 40, 200) == (-200, 300), "soft tissue, and fat and vessels beside it"
    assert propose(chest, MACHINES["T4"], method).intensities is None, "without labels"
    assert propose(replace(chest, modality="MR"), MACHINES["T4"], method).intensities is None
