"""Proposal: grid, network and batch size that suit a data set and a machine, after nnU-Net (Isensee et al., 2021).

Two budgets bound the region that a network sees at once: memory and, on a CPU, the time of a click. Within them voxels
are spent where the images have detail: along thick slices the spacing is kept while other axes are coarsened, and the
network pools along these axes later. Pure functions; a proposal takes seconds, mostly spent importing.
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
from rayapp.planner.footprint import Footprint, Workload
from rayapp.planner.machine import Hardware
from rayapp.planner.needs import VOXELS_ACROSS, Needs, kernels, pooling, rounded
from rayapp.planner.overrides import Numbers, Overrides
from rayapp.planner.replicas import Plan, plan
from rayapp.planner.shares import CORES_PER_REPLICA
from rayapp.planner.survey import Survey

Kind = Literal["segmentation", "deepedit", "deepgrow_2d", "deepgrow_3d"]
KINDS: tuple[Kind, ...] = get_args(Kind)

FORWARD_BUDGET_S = 0.06
"""Seconds for a forward pass on the CPU.

Guidance and restoring the result to the image's grid take about as long again, and a click should take 0.1 s.
"""
STEP_BUDGET_S = 0.5
"""Seconds for a training step on the CPU, which is how long a click may have to wait for it."""
GPU_FILLED = 0.8
"""Usable fraction of training's share of a GPU; cuDNN's workspace and fragmentation cannot be predicted."""
MEMORY_SHARE = 0.25
"""Fraction of RAM for a training step, and again for cached decoded images."""
GPU_VOXELS = 160**3
"""Maximum region on a GPU: larger ones are seldom worth the wait, whatever the memory."""
SLACK = 1.15
"""Tolerated excess over the budget, since sizes must be rounded."""
TRIES = 4
"""Maximum number of attempts to fit region and network to the budget."""
WINDOWS = {"cpu": 2, "cuda": 4}
"""Number of windows per image from which voxels are made larger.

nnU-Net likewise uses a coarser grid where a patch covers less than a quarter of the image. In the time available on a
CPU, more is learnt from larger parts in coarser voxels.
"""
GPU_OVERLAP = 0.5
"""Default overlap of windows on a GPU, as a fraction."""
GPU_WINDOWS = 8
"""Maximum number of windows per batch on a GPU."""
CT_RANGE = 500.0
"""Least range of Hounsfield units that a network tells apart well; it sees twice as many."""
WINDOW = {"cpu": 64, "cuda": 96}
"""Edge of a cube of as many voxels as a window has at least, as far as the image and the budgets allow."""
LEVELS = {"cpu": 4, "cuda": 5}
"""Maximum number of strides of a network."""
WIDTH = {"cpu": 16, "cuda": 32}
"""Channels of the finest level; they double with each level."""
BATCH = {"cpu": 2, "cuda": 8}
"""Maximum batch size: on a CPU, more steps teach more than larger ones."""
PROBE = {2: 256, 3: 64}
"""Size along each axis of the region used to estimate cost per voxel, by number of axes."""
CORE_FLOPS = {"float32": 100e9, "bfloat16": 400e9}
CORE_TRAFFIC = 2e9
"""Throughput of one core (a Xeon with AMX) per second; fitted to forward passes of three networks."""
STEP_SLOWER = 1.3
"""Factor by which a training step takes longer than estimated from its footprint."""


@dataclass(frozen=True, kw_only=True)
class Method:
    """Requirements of a method on its network.

    Attributes:
        structures: number of structures to segment.
        guidance: input channels besides the image's.
        whole: True if it sees images whole, False for sliding windows.
        axes: 3, or 2 for slices.
        examples: training examples drawn per visit to an image.
    """

    structures: int
    guidance: int = 0
    whole: bool = False
    axes: int = 3
    examples: int = 1

    @classmethod
    def of(cls, kind: Kind, structures: int) -> Method:
        """The requirements of a shipped method."""
        if kind == "segmentation":
            return cls(structures=structures)
        if kind == "deepedit":
            return cls(structures=structures, guidance=structures + 1, whole=True)
        if kind == "deepgrow_3d":
            return cls(structures=1, guidance=2, whole=True)
        return cls(structures=1, guidance=2, whole=True, axes=2, examples=4)


@dataclass(frozen=True, kw_only=True)
class Proposal:
    """A proposal for training a network and running it.

    Attributes:
        spacing: mm along R, A, S; for networks of slices, along the two axes in the slice plane.
        roi_size: voxels along the same axes.
        network: description as taken by `rayapp.models.networks.build`.
        train_batch_size: images per training step.
        precision: "float32" or "bfloat16".
        intensities: range of the images' values that the network sees as -1 to 1; None for percentiles of each image.
        overlap: overlap of neighbouring windows, as a fraction.
        windows: windows per batch during inference.
        cache: bytes of decoded images that training keeps.
        forward_memory: predicted bytes of a forward pass.
        step_memory: predicted bytes of a training step.
        forward_seconds: predicted time of a forward pass on a CPU; 0 on a GPU.
        step_seconds: predicted time of a training step on a CPU; 0 on a GPU.
        why: the reason for each choice, by its name.
    """

    spacing: tuple[float, ...]
    roi_size: tuple[int, ...]
    network: Mapping[str, Any]
    train_batch_size: int
    precision: str
    intensities: tuple[float, float] | None
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
    """The proposal for a method on a data set and machine.

    Args:
        survey: the data set.
        hardware: the machine.
        method: the requirements on the network.
        overrides: choices already made, as taken by `Overrides.of`; the others adapt to them.

    Raises:
        BadRequest: naming an invalid override.
        ModelBroken: if the network of an override cannot be built.
    """
    choices = Overrides.of(overrides or {}, axes=method.axes)
    chosen = plan(hardware)
    machine = Machine(hardware, replace(chosen, precision=choices.precision or chosen.precision))
    device = machine.plan.device
    needs = Needs.of(survey, whole=method.whole, axes=method.axes, windows=WINDOWS[device], window=WINDOW[device])
    channels = {"in_channels": survey.channels + method.guidance, "out_channels": method.structures + 1}
    spacing, roi_size, network = _fitted(channels, needs, machine, choices)
    batch = choices.train_batch_size or machine.batch(network, roi_size, examples=method.examples)
    forward = machine.footprint(network, roi_size)
    step = machine.footprint(network, roi_size, batch=batch * method.examples, training=True)
    images = np.maximum(1, needs.extent / spacing)
    slices = survey.size[survey.slice_axis] if method.axes == 2 else 1
    decoded = survey.images * float(images.prod()) * slices * (2 * survey.channels + 1)
    intensities = _intensities(survey)
    default_overlap = OVERLAP if machine.plan.device == "cpu" else GPU_OVERLAP
    return Proposal(
        spacing=tuple(round(float(mm), 3) for mm in spacing),
        roi_size=roi_size,
        network=network,
        train_batch_size=batch,
        precision=machine.plan.precision,
        intensities=intensities,
        overlap=default_overlap if choices.overlap is None else choices.overlap,
        windows=machine.windows(forward),
        cache=int(min(decoded, MEMORY_SHARE * hardware.memory)),
        forward_memory=machine.bytes(forward),
        step_memory=machine.bytes(step),
        forward_seconds=machine.seconds(forward),
        step_seconds=STEP_SLOWER * machine.seconds(step),
        why=_reasons(choices, needs, spacing, roi_size, machine, intensities),
    )


@dataclass(frozen=True)
class Machine:
    """Costs of networks on one machine."""

    hardware: Hardware
    plan: Plan

    def footprint(
        self, network: Mapping[str, Any], roi_size: Sequence[int], *, batch: int = 1, training: bool = False
    ) -> Footprint:
        """Footprint of a forward pass or training step."""
        workload = Workload(
            network=network, roi=roi_size, batch=batch, precision=self.plan.precision, training=training
        )
        return Footprint.of(workload, threads=0 if self.hardware.gpus else self.plan.threads)

    def bytes(self, footprint: Footprint) -> int:
        """Bytes on the device."""
        return footprint.memory if self.hardware.gpus else footprint.resident

    def seconds(self, footprint: Footprint) -> float:
        """Seconds on a CPU; 0 on a GPU, where only memory is limited."""
        if self.hardware.gpus:
            return 0.0
        busy = footprint.flops / CORE_FLOPS[self.plan.precision] + footprint.traffic / CORE_TRAFFIC
        return busy / min(self.plan.threads, CORES_PER_REPLICA)

    @property
    def step_bytes(self) -> float:
        """Bytes available to a training step."""
        if self.hardware.gpus:
            return GPU_FILLED * self.plan.training_gpus * min(gpu.memory for gpu in self.hardware.gpus)
        return MEMORY_SHARE * self.hardware.memory

    def voxels(self, network: Mapping[str, Any]) -> float:
        """Voxels that the network may see at once; on a GPU, two such regions must fit a training step."""
        axes = network["spatial_dims"]
        probe = [PROBE[axes]] * axes
        step = self.footprint(network, probe, training=True)
        most = self.step_bytes / self.bytes(step)
        if self.hardware.gpus:
            return min(GPU_VOXELS, math.prod(probe) * most / 2)
        return math.prod(probe) * min(most, FORWARD_BUDGET_S / self.seconds(self.footprint(network, probe)))

    def windows(self, forward: Footprint) -> int:
        """Windows per batch that fit a replica's share of the GPU; a CPU gains nothing from more than one."""
        if not self.hardware.gpus:
            return 1
        share = GPU_FILLED * self.plan.replica_gpus * min(gpu.memory for gpu in self.hardware.gpus)
        return int(min(GPU_WINDOWS, max(1, share / forward.memory)))

    def batch(self, network: Mapping[str, Any], roi_size: Sequence[int], *, examples: int) -> int:
        """Images per training step, each giving that many examples."""
        step = self.footprint(network, roi_size, training=True)
        most = self.step_bytes / self.bytes(step)
        if not self.hardware.gpus:
            most = min(most, STEP_BUDGET_S / (STEP_SLOWER * self.seconds(step)))
        return max(1, int(min(BATCH[self.plan.device], most) / examples))


def _fitted(
    channels: Mapping[str, int], needs: Needs, machine: Machine, choices: Overrides
) -> tuple[Numbers, tuple[int, ...], dict[str, Any]]:
    """Spacing, region and network within the budget; repeated, since uneven strides cost more than first estimated."""
    explicit = None if choices.network is None else {**choices.network, **channels}
    make = _family(channels, machine)
    if choices.roi_size is None:
        even = [(2,) * len(needs.finest)] * LEVELS[machine.plan.device]
        voxels = machine.voxels(explicit or make(even, [(3,) * len(needs.finest)] * (len(even) + 1)))
    else:
        voxels = float(choices.roi_size.prod())
    for _ in range(TRIES):
        spacing = needs.spacing(voxels) if choices.spacing is None else choices.spacing
        region = needs.region(spacing, voxels) if choices.roi_size is None else choices.roi_size
        strides = pooling(region, spacing, LEVELS[machine.plan.device])
        network = explicit or make(strides, kernels(spacing, strides))
        most = SLACK * voxels if choices.roi_size is None else math.inf
        roi_size = rounded(region, divisor_of(network), most=most)
        if choices.roi_size is not None:
            break
        over = machine.seconds(machine.footprint(network, roi_size)) / FORWARD_BUDGET_S
        if over <= SLACK:
            break
        voxels = math.prod(roi_size) / over
    return spacing, roi_size, network


def _family(
    channels: Mapping[str, int], machine: Machine
) -> Callable[[Sequence[Sequence[int]], Sequence[Sequence[int]]], dict[str, Any]]:
    """Builds networks from strides and kernels: the full U-Net on a GPU, the strided one on a CPU.

    On a CPU the strided one has learnt more in any acceptable time: 0.85 Dice on hippocampi, the full one 0.83.
    """
    inputs, outputs, width = channels["in_channels"], channels["out_channels"], WIDTH[machine.plan.device]
    if machine.hardware.gpus:
        return lambda strides, sizes: full_unet(inputs, outputs, strides, sizes, width=width)
    return lambda strides, sizes: strided_unet(inputs, outputs, strides, width=width)  # noqa: ARG005


def _intensities(survey: Survey) -> tuple[float, float] | None:
    """The Hounsfield units in which the structures lie, with a margin; None for images whose units are not fixed.

    nnU-Net clips CT to the same percentiles. The range is at least `CT_RANGE` wide, so that what lies around the
    structures can be told apart too.
    """
    if survey.modality != "CT" or survey.channels != 1 or survey.foreground_intensities is None:
        return None
    low, _, high = survey.foreground_intensities
    missing = max(0.0, CT_RANGE - (high - low)) / 2
    return round(low - missing, 1), round(high + missing, 1)


def _reasons(
    choices: Overrides,
    needs: Needs,
    spacing: Numbers,
    roi_size: Sequence[int],
    machine: Machine,
    intensities: tuple[float, float] | None,
) -> dict[str, str]:
    """The reason for each choice, in words."""
    images = np.maximum(1, needs.extent / spacing)
    budget = (
        "a training step's share of the GPU"
        if machine.hardware.gpus
        else f"{FORWARD_BUDGET_S:g} s per forward pass and the memory"
    )
    if np.allclose(spacing, needs.finest, rtol=0.01):
        finest = "the images' own voxels"
    elif not needs.whole and spacing.max() >= 0.99 * needs.smallest / VOXELS_ACROSS:
        finest = f"the smallest structure is {needs.smallest:.0f} mm across"
    else:
        finest = f"the images' own voxels are too many for {budget}"
    whole = needs.whole or bool((images <= np.array(roi_size) + 0.5).all())
    reasons = {
        "spacing": finest,
        "roi_size": "whole images" if whole else f"windows, as large as {budget} allow",
        "network": "full resolution" if machine.hardware.gpus else "on a CPU a strided network learns most",
        "train_batch_size": (
            "as many as the GPU holds" if machine.hardware.gpus else f"as many as {STEP_BUDGET_S:g} s per step allow"
        ),
        "intensities": (
            "percentiles of each image's body"
            if intensities is None
            else f"{intensities[0]:.0f} to {intensities[1]:.0f} HU, where the structures lie"
        ),
        "precision": f"the fastest on this {machine.plan.device}",
        "overlap": "default",
    }
    return reasons | {name: "as requested" for name in reasons if getattr(choices, name, None) is not None}
