"""Proposal: the grid, network and batch that suit a data set and a machine, after nnU-Net (Isensee et al., 2021).

Two budgets bound what a network sees at once: memory, and on a CPU the time of one click. Within them voxels are spent
where the images have detail: along axes of thick slices they stay as they are while the others become larger, and the
network pools along those axes later. Pure functions; a proposal takes seconds, most of them importing.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal, get_args

import numpy as np

from rayapp.inference.network.network import divisor_of
from rayapp.inference.network.sliding_window import OVERLAP
from rayapp.models.networks import full_unet, strided_unet
from rayapp.planner.footprint import Footprint, Work
from rayapp.planner.machine import Hardware
from rayapp.planner.needs import ACROSS, Needs, kernels, pooling, rounded
from rayapp.planner.overrides import Numbers, Overrides
from rayapp.planner.replicas import CORES_PER_REPLICA, Plan, plan
from rayapp.planner.survey import Survey

Kind = Literal["segmentation", "deepedit", "deepgrow_2d", "deepgrow_3d"]
KINDS: tuple[Kind, ...] = get_args(Kind)

GLANCE_S = 0.06
"""Seconds that a network on the CPU may take for what it sees at once: guidance and the way back to the image's grid
need about as long again, and a click should take a tenth of a second."""
STEP_S = 0.5
"""Seconds of a training step on the CPU, which is how long a click may wait for it."""
GPU_FILLED = 0.8
"""Of training's share of a GPU; what cuDNN and fragments take is not foretold."""
MEMORY_SHARE = 0.25
"""Of the RAM, for a training step and again for decoded images."""
GPU_VOXELS = 160**3
"""More is seldom worth the wait, whatever a GPU's memory."""
SLACK = 1.15
"""Of the budget, where sizes have to be rounded."""
TRIES = 4
WINDOWS = {"cpu": 2, "cuda": 4}
"""Windows over an image, beyond which its voxels are made larger: as nnU-Net turns to a coarser grid where a patch sees
less than a quarter. In the time there is on a CPU, more is learnt of larger parts in coarser voxels."""
GPU_OVERLAP = 0.5
GPU_WINDOWS = 8
"""Windows that go through a GPU together, at most."""
LEVELS = {"cpu": 4, "cuda": 5}
"""Strides of a network, at most."""
WIDTH = {"cpu": 16, "cuda": 32}
"""Channels of the finest level; they double with each level."""
BATCH = {"cpu": 2, "cuda": 8}
"""Examples in a step, at most: on a CPU more steps learn more than larger ones."""
PROBE = {2: 256, 3: 64}
"""Voxels along an axis of the region, by its axes, that a network's cost by voxel is taken from."""
CORE_FLOPS = {"float32": 100e9, "bfloat16": 400e9}
CORE_TRAFFIC = 2e9
"""What one core (a Xeon with AMX) does in a second; fitted to forward passes of three networks."""
STEP_SLOWER = 1.3
"""How much longer than so estimated a training step takes."""


@dataclass(frozen=True, kw_only=True)
class Method:
    """What a method asks of its network: the structures it tells apart, the channels beside the image's, whether it
    sees images whole or through windows, its axes (2 for slices), and how many examples a visit to an image gives."""

    structures: int
    guidance: int = 0
    whole: bool = False
    axes: int = 3
    examples: int = 1

    @classmethod
    def of(cls, kind: Kind, structures: int) -> Method:
        """A method that ships."""
        if kind == "segmentation":
            return cls(structures=structures)
        if kind == "deepedit":
            return cls(structures=structures, guidance=structures + 1, whole=True)
        if kind == "deepgrow_3d":
            return cls(structures=1, guidance=2, whole=True)
        return cls(structures=1, guidance=2, whole=True, axes=2, examples=4)


@dataclass(frozen=True, kw_only=True)
class Proposal:
    """What to train, and how to run it.

    `spacing` (mm) and `roi_size` (voxels) are along R, A, S, of networks of slices along the two of them that are in
    the slices' plane; `network` is as `rayapp.models.networks.build` takes it; `overlap` is that of neighbouring
    windows and `windows` how many of them the network takes together; `cache` are bytes of decoded images that training
    keeps. Foretold are the bytes of a forward pass and of a training step, and on a CPU the seconds of both (0 on a
    GPU). `why` has a reason for each choice, by its name.
    """

    spacing: tuple[float, ...]
    roi_size: tuple[int, ...]
    network: Mapping[str, Any]
    train_batch_size: int
    precision: str
    overlap: float
    windows: int
    cache: int
    forward_memory: int
    step_memory: int
    forward_seconds: float
    step_seconds: float
    why: Mapping[str, str]


def propose(
    survey: Survey, hardware: Hardware, method: Method, *, overrides: Mapping[str, Any] | None = None
) -> Proposal:
    """Choose for a method. `overrides` are as `Overrides.of` takes them; the rest follows from what they say.

    Raises BadRequest naming an override that cannot be, ModelBroken if an override's network cannot be built.
    """
    wanted = Overrides.of(overrides or {}, axes=method.axes)
    chosen = plan(hardware)
    machine = Machine(hardware, replace(chosen, precision=wanted.precision or chosen.precision))
    needs = Needs.of(survey, whole=method.whole, axes=method.axes, windows=WINDOWS[machine.plan.device])
    channels = {"in_channels": survey.channels + method.guidance, "out_channels": method.structures + 1}
    spacing, roi_size, network = _fitted(channels, needs, machine, wanted)
    batch = wanted.train_batch_size or machine.batch(network, roi_size, examples=method.examples)
    forward = machine.footprint(network, roi_size)
    step = machine.footprint(network, roi_size, batch=batch * method.examples, training=True)
    images = np.maximum(1, needs.extent / spacing)
    slices = survey.size[survey.stacked] if method.axes == 2 else 1
    decoded = survey.images * float(images.prod()) * slices * (2 * survey.channels + 1)
    usual = OVERLAP if machine.plan.device == "cpu" else GPU_OVERLAP
    return Proposal(
        spacing=tuple(round(float(mm), 3) for mm in spacing),
        roi_size=roi_size,
        network=network,
        train_batch_size=batch,
        precision=machine.plan.precision,
        overlap=usual if wanted.overlap is None else wanted.overlap,
        windows=machine.windows(forward),
        cache=int(min(decoded, MEMORY_SHARE * hardware.memory)),
        forward_memory=machine.bytes(forward),
        step_memory=machine.bytes(step),
        forward_seconds=machine.seconds(forward),
        step_seconds=STEP_SLOWER * machine.seconds(step),
        why=_reasons(wanted, needs, spacing, roi_size, machine),
    )


@dataclass(frozen=True)
class Machine:
    """What a network costs here."""

    hardware: Hardware
    plan: Plan

    def footprint(
        self, network: Mapping[str, Any], roi_size: Sequence[int], *, batch: int = 1, training: bool = False
    ) -> Footprint:
        """Of a forward pass or a training step."""
        work = Work(network=network, roi=roi_size, batch=batch, precision=self.plan.precision, training=training)
        return Footprint.of(work, threads=0 if self.hardware.gpus else self.plan.threads)

    def bytes(self, footprint: Footprint) -> int:
        """On the device."""
        return footprint.memory if self.hardware.gpus else footprint.resident

    def seconds(self, footprint: Footprint) -> float:
        """On a CPU; 0 on a GPU, which is bounded by memory alone."""
        if self.hardware.gpus:
            return 0.0
        busy = footprint.flops / CORE_FLOPS[self.plan.precision] + footprint.traffic / CORE_TRAFFIC
        return busy / min(self.plan.threads, CORES_PER_REPLICA)

    @property
    def step_bytes(self) -> float:
        """That a training step may take."""
        if self.hardware.gpus:
            return GPU_FILLED * self.plan.training_gpus * min(gpu.memory for gpu in self.hardware.gpus)
        return MEMORY_SHARE * self.hardware.memory

    def voxels(self, network: Mapping[str, Any]) -> float:
        """That the network may see at once: two of them in a training step on a GPU."""
        axes = network["spatial_dims"]
        probe = [PROBE[axes]] * axes
        step = self.footprint(network, probe, training=True)
        most = self.step_bytes / self.bytes(step)
        if self.hardware.gpus:
            return min(GPU_VOXELS, math.prod(probe) * most / 2)
        return math.prod(probe) * min(most, GLANCE_S / self.seconds(self.footprint(network, probe)))

    def windows(self, forward: Footprint) -> int:
        """Windows that a GPU takes together within a replica's share of it; a CPU gains nothing by more than one."""
        if not self.hardware.gpus:
            return 1
        share = GPU_FILLED * self.plan.replica_gpus * min(gpu.memory for gpu in self.hardware.gpus)
        return int(min(GPU_WINDOWS, max(1, share / forward.memory)))

    def batch(self, network: Mapping[str, Any], roi_size: Sequence[int], *, examples: int) -> int:
        """Images in a training step, each of which gives so many examples."""
        step = self.footprint(network, roi_size, training=True)
        most = self.step_bytes / self.bytes(step)
        if not self.hardware.gpus:
            most = min(most, STEP_S / (STEP_SLOWER * self.seconds(step)))
        return max(1, int(min(BATCH[self.plan.device], most) / examples))


def _fitted(
    channels: Mapping[str, int], needs: Needs, machine: Machine, wanted: Overrides
) -> tuple[Numbers, tuple[int, ...], dict[str, Any]]:
    """Spacing, region and network within the budget, which unequal strides make smaller than it first seemed."""
    given = None if wanted.network is None else {**wanted.network, **channels}
    make = _family(channels, machine)
    if wanted.roi_size is None:
        even = [(2,) * len(needs.finest)] * LEVELS[machine.plan.device]
        voxels = machine.voxels(given or make(even, [(3,) * len(needs.finest)] * (len(even) + 1)))
    else:
        voxels = float(wanted.roi_size.prod())
    for _ in range(TRIES):
        spacing = needs.spacing(voxels) if wanted.spacing is None else wanted.spacing
        region = needs.region(spacing, voxels) if wanted.roi_size is None else wanted.roi_size
        strides = pooling(region, spacing, LEVELS[machine.plan.device])
        network = given or make(strides, kernels(spacing, strides))
        most = SLACK * voxels if wanted.roi_size is None else math.inf
        roi_size = rounded(region, divisor_of(network), most=most)
        if wanted.roi_size is not None:
            break
        over = machine.seconds(machine.footprint(network, roi_size)) / GLANCE_S
        if over <= SLACK:
            break
        voxels = math.prod(roi_size) / over
    return spacing, roi_size, network


def _family(
    channels: Mapping[str, int], machine: Machine
) -> Callable[[Sequence[Sequence[int]], Sequence[Sequence[int]]], dict[str, Any]]:
    """Networks of strides and kernels: the full U-Net on a GPU. On a CPU the strided one, which has learnt more in any
    time that people wait for: 0.85 Dice on hippocampi where the full one had 0.83."""
    inputs, outputs, width = channels["in_channels"], channels["out_channels"], WIDTH[machine.plan.device]
    if machine.hardware.gpus:
        return lambda strides, sizes: full_unet(inputs, outputs, strides, sizes, width=width)
    return lambda strides, sizes: strided_unet(inputs, outputs, strides, width=width)  # noqa: ARG005


def _reasons(
    wanted: Overrides, needs: Needs, spacing: Numbers, roi_size: Sequence[int], machine: Machine
) -> dict[str, str]:
    """Why each choice was made, in words."""
    images = np.maximum(1, needs.extent / spacing)
    budget = "a training step's share of the GPU" if machine.hardware.gpus else f"{GLANCE_S:g} s a look and the memory"
    if np.allclose(spacing, needs.finest, rtol=0.01):
        finest = "the images' own voxels"
    elif not needs.whole and spacing.max() >= 0.99 * needs.smallest / ACROSS:
        finest = f"the smallest structure is {needs.smallest:.0f} mm across"
    else:
        finest = f"the images' own voxels are too many for {budget}"
    whole = needs.whole or bool((images <= np.array(roi_size) + 0.5).all())
    reasons = {
        "spacing": finest,
        "roi_size": "whole images" if whole else f"windows, as large as {budget} allow",
        "network": "every voxel is looked at" if machine.hardware.gpus else "on a CPU a strided network learns most",
        "train_batch_size": f"as many as {'the GPU holds' if machine.hardware.gpus else f'{STEP_S:g} s a step allow'}",
        "precision": f"what this {machine.plan.device} computes fastest",
        "overlap": "usual",
    }
    return reasons | {name: "as asked for" for name in reasons if getattr(wanted, name) is not None}
