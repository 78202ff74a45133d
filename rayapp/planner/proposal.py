"""Proposal: the grid, network and batch that suit a data set and a machine, after nnU-Net (Isensee et al., 2021).

Two budgets bound what a network sees at once: memory, and on a CPU the time of one click. Within them voxels are spent
where the images have detail: along axes of thick slices they stay as they are while the others become larger, and the
network pools along those axes later. Pure functions; a proposal takes seconds, most of them importing.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, Literal, Self, get_args

import numpy as np
import numpy.typing as npt

from rayapp.errors import BadRequest
from rayapp.planner.footprint import Footprint, Work
from rayapp.planner.machine import Hardware
from rayapp.planner.replicas import CORES_PER_REPLICA, Plan, plan
from rayapp.planner.survey import Survey

Kind = Literal["segmentation", "deepedit", "deepgrow_2d", "deepgrow_3d"]
METHODS: tuple[Kind, ...] = get_args(Kind)
Numbers = npt.NDArray[np.float64]

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
WINDOWS = (8, 32)
"""Windows over an image: what it may cost, and what it may cost where structures are small."""
ACROSS = 5
"""Voxels that the smallest structure should measure across."""
AROUND = 1.5
"""Of the box around all structures, what a window needs to see at most."""
SLACK = 1.15
"""Of the budget, where sizes have to be rounded."""
TRIES = 4
OVERLAP = {"cpu": 0.25, "cuda": 0.5}
SMALLEST = 4
"""Voxels along an axis on the coarsest level."""
LEVELS = {"cpu": 3, "cuda": 5}
WIDTH = {"cpu": 16, "cuda": 32}
"""Channels of the finest level; they double with each level, up to `WIDEST`."""
WIDEST = 256
MAX_AXIS = 384
"""Voxels that a region may have along an axis."""
BATCH = {"cpu": 4, "cuda": 8}
PROBE = {2: 256, 3: 64}
"""Voxels along an axis of the region, by its axes, that a network's cost by voxel is taken from."""
CORE_FLOPS = {"float32": 100e9, "bfloat16": 400e9}
CORE_TRAFFIC = 2e9
"""What one core (a Xeon with AMX) does in a second; fitted to forward passes of three networks."""
STEP_SLOWER = 1.3
"""How much longer than so estimated a training step takes."""


@dataclass(frozen=True, kw_only=True)
class Proposal:
    """What to train, and how to run it.

    `spacing` (mm) and `roi_size` (voxels) are along R, A, S, of deepgrow_2d along R and A; `network` is as
    `rayapp.models.networks.build` takes it; `cache` are bytes of decoded images that training keeps; `overlap` is that
    of neighbouring windows, 0 where the region holds whole images. Foretold are the bytes of a forward pass and of a
    training step, and on a CPU the seconds of both (0 on a GPU).
    """

    kind: Kind
    spacing: tuple[float, ...]
    roi_size: tuple[int, ...]
    network: Mapping[str, Any]
    batch_size: int
    precision: str
    overlap: float
    cache: int
    forward_memory: int
    step_memory: int
    forward_seconds: float
    step_seconds: float


def propose(
    survey: Survey,
    hardware: Hardware,
    *,
    kind: Kind,
    structures: int | None = None,
    conf: Mapping[str, str] | None = None,
) -> Proposal:
    """Choose for a method. `structures` are those that it tells apart, by default those of the survey's labels.

    `conf` overrides (texts, as of `--conf`): `spacing` (one number of mm or one for each axis), `roi_size` (a number
    for each axis), `batch_size`, `precision`, `overlap`. The rest follows from what they say.

    Raises BadRequest naming an override that cannot be.
    """
    wanted = Overrides.of(conf or {}, axes=2 if kind == "deepgrow_2d" else 3)
    chosen = plan(hardware)
    machine = Machine(hardware, replace(chosen, precision=wanted.precision or chosen.precision))
    count = 1 if kind.startswith("deepgrow") else structures or len(survey.structures) or 1
    inputs = survey.channels + (0 if kind == "segmentation" else count + 1)
    needs = Needs.of(survey, whole=kind != "segmentation", axes=wanted.axes)
    spacing, roi_size, network = _fitted(inputs, count + 1, needs, machine, wanted)
    batch = wanted.batch_size or machine.batch(network, roi_size)
    forward = machine.footprint(network, roi_size)
    step = machine.footprint(network, roi_size, batch=batch, training=True)
    images = needs.extent / spacing
    whole = needs.whole or bool((images <= np.array(roi_size) + 0.5).all())
    overlap = 0.0 if whole else OVERLAP[machine.plan.device]
    slices = survey.size[2] if wanted.axes == 2 else 1
    decoded = survey.images * float(images.prod()) * slices * (4 * survey.channels + 1)
    return Proposal(
        kind=kind,
        spacing=tuple(round(float(mm), 3) for mm in spacing),
        roi_size=roi_size,
        network=network,
        batch_size=batch,
        precision=machine.plan.precision,
        overlap=overlap if wanted.overlap is None else wanted.overlap,
        cache=int(min(decoded, MEMORY_SHARE * hardware.memory)),
        forward_memory=machine.bytes(forward),
        step_memory=machine.bytes(step),
        forward_seconds=machine.seconds(forward),
        step_seconds=STEP_SLOWER * machine.seconds(step),
    )


def pooling(region: Numbers, spacing: Numbers, levels: int) -> list[tuple[int, ...]]:
    """Strides of each level: halve every axis that is long enough and not yet twice as coarse as the finest of them."""
    size, edge = region.copy(), spacing.copy()
    strides: list[tuple[int, ...]] = []
    while len(strides) < levels:
        long = size >= 2 * SMALLEST
        if not long.any():
            break
        halve = long & (edge < 2 * edge[long].min())
        factor = np.where(halve, 2, 1)
        size, edge = size / factor, edge * factor
        strides.append(tuple(int(n) for n in factor))
    return strides or [(1,) * len(region)]


def full_unet(inputs: int, outputs: int, strides: Sequence[Sequence[int]], *, width: int) -> dict[str, Any]:
    """A U-Net as nnU-Net builds it, whose finest level has the image's own voxels."""
    return {
        "name": "DynUNet",
        "spatial_dims": len(strides[0]),
        "in_channels": inputs,
        "out_channels": outputs,
        "kernel_size": [3] * (len(strides) + 1),
        "strides": [1, *(_plain(stride) for stride in strides)],
        "upsample_kernel_size": [_plain(stride) for stride in strides],
        "filters": _widths(len(strides) + 1, width),
    }


def strided_unet(inputs: int, outputs: int, strides: Sequence[Sequence[int]], *, width: int) -> dict[str, Any]:
    """A residual U-Net that halves the image before anything else: several times faster, blurred edges."""
    return {
        "name": "UNet",
        "spatial_dims": len(strides[0]),
        "in_channels": inputs,
        "out_channels": outputs,
        "channels": _widths(len(strides) + 1, width),
        "strides": [_plain(stride) for stride in strides],
        "num_res_units": 1,
    }


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

    def batch(self, network: Mapping[str, Any], roi_size: Sequence[int]) -> int:
        """Regions in a training step."""
        step = self.footprint(network, roi_size, training=True)
        most = self.step_bytes / self.bytes(step)
        if not self.hardware.gpus:
            most = min(most, STEP_S / (STEP_SLOWER * self.seconds(step)))
        return int(min(BATCH[self.plan.device], max(1, most)))


@dataclass(frozen=True, kw_only=True)
class Needs:
    """What the images call for, in mm along each axis: their voxels, their extent, the part that a window should see;
    and across the smallest structure (infinite if none is known)."""

    whole: bool
    finest: Numbers
    extent: Numbers
    around: Numbers
    smallest: float

    @classmethod
    def of(cls, survey: Survey, *, whole: bool, axes: int) -> Self:
        """Of a survey, for networks that see images whole, or through windows."""
        extent = np.array(survey.extent[:axes])
        around = (
            extent if survey.foreground is None else np.minimum(extent, AROUND * np.array(survey.foreground[:axes]))
        )
        volumes = [structure.volume for structure in survey.structures.values()]
        return cls(
            whole=whole,
            finest=np.array(survey.spacing[:axes]),
            extent=extent,
            around=around,
            smallest=math.cbrt(1000 * min(volumes)) if volumes else math.inf,
        )

    @property
    def voxels(self) -> float:
        """That a network should see at once so that no voxel need be made larger."""
        return float((self.extent / self.finest).prod()) / (1 if self.whole else WINDOWS[0])

    def spacing(self, voxels: float) -> Numbers:
        """The finest that the budget allows; at most as fine as structures and images are."""
        if self.whole:
            return self._coarsened(voxels)
        usual, finer = (self._coarsened(voxels * windows) for windows in WINDOWS)
        return np.clip(np.maximum(self.finest, self.smallest / ACROSS), finer, usual)

    def region(self, spacing: Numbers, voxels: float) -> Numbers:
        """The voxels to see at once: the whole image or else, as far as it is worth seeing, a cube's part of it."""
        if self.whole or (self.extent / spacing).prod() <= voxels:
            return np.maximum(1, np.rint(self.extent / spacing))
        low, high = 0.0, float(self.around.max())
        for _ in range(50):
            middle = (low + high) / 2
            fits = (np.minimum(self.around, middle) / spacing).prod() <= voxels
            low, high = (middle, high) if fits else (low, middle)
        return np.maximum(1, np.rint(np.minimum(self.around, low) / spacing))

    def _coarsened(self, voxels: float) -> Numbers:
        """Spacing at which the image has so many voxels: thick slices stay, other axes are brought up to one step."""
        low, high = float(self.finest.min()), float(self.extent.max())
        if (self.extent / self.finest).prod() <= voxels:
            return self.finest
        for _ in range(50):
            middle = math.sqrt(low * high)
            fits = (self.extent / np.maximum(self.finest, middle)).prod() <= voxels
            low, high = (low, middle) if fits else (middle, high)
        return np.maximum(self.finest, high)


@dataclass(frozen=True, kw_only=True)
class Overrides:
    """What `--conf` says in place of the planner."""

    axes: int
    spacing: Numbers | None = None
    roi_size: Numbers | None = None
    batch_size: int | None = None
    precision: str | None = None
    overlap: float | None = None

    @classmethod
    def of(cls, conf: Mapping[str, str], *, axes: int) -> Self:
        """Parse; keys that are no overrides are others' business. Raises BadRequest naming the key."""
        spacing = _numbers(conf, "spacing", lambda mm: 0.01 <= mm <= 100)
        roi_size = _numbers(conf, "roi_size", lambda n: n.is_integer() and 1 <= n <= MAX_AXIS)
        batch = _numbers(conf, "batch_size", lambda n: n.is_integer() and 1 <= n <= 1024)
        overlap = _numbers(conf, "overlap", lambda share: 0 <= share < 1)
        precision = conf.get("precision") or None
        if spacing is not None and len(spacing) not in (1, axes):
            raise BadRequest(f"spacing: one number of mm, or {axes} along R, A, S, not {len(spacing)}")
        if roi_size is not None and len(roi_size) != axes:
            raise BadRequest(f"roi_size: {axes} numbers of voxels, along R, A, S, not {len(roi_size)}")
        if precision is not None and precision not in CORE_FLOPS:
            raise BadRequest(f"precision: one of {', '.join(CORE_FLOPS)}, not {precision[:40]!r}")
        return cls(
            axes=axes,
            spacing=None if spacing is None else np.broadcast_to(spacing, axes),
            roi_size=roi_size,
            batch_size=None if batch is None else int(batch[0]),
            precision=precision,
            overlap=None if overlap is None else float(overlap[0]),
        )


def _numbers(conf: Mapping[str, str], key: str, sane: Callable[[float], bool]) -> Numbers | None:
    """The comma-separated numbers under a key."""
    if key not in conf:
        return None
    try:
        numbers = [float(text) for text in conf[key].strip("[]() ").split(",")]
    except ValueError:
        numbers = []
    if not numbers or not all(sane(number) for number in numbers):
        raise BadRequest(f"{key}: {conf[key][:40]!r} is out of range or no number")
    return np.array(numbers)


def _fitted(
    inputs: int, outputs: int, needs: Needs, machine: Machine, wanted: Overrides
) -> tuple[Numbers, tuple[int, ...], dict[str, Any]]:
    """Spacing, region and network within the budget, which unequal strides make smaller than it first seemed."""
    make, voxels = _family(inputs, outputs, needs, machine)
    for _ in range(TRIES):
        spacing = needs.spacing(voxels) if wanted.spacing is None else wanted.spacing
        region = needs.region(spacing, voxels) if wanted.roi_size is None else wanted.roi_size
        strides = pooling(region, spacing, LEVELS[machine.plan.device])
        roi_size = _rounded(region, strides, spacing, most=voxels if wanted.roi_size is None else math.inf)
        network = make(strides)
        over = machine.seconds(machine.footprint(network, roi_size)) / GLANCE_S
        if over <= SLACK or wanted.roi_size is not None:
            break
        voxels = math.prod(roi_size) / over
    return spacing, roi_size, network


def _family(
    inputs: int, outputs: int, needs: Needs, machine: Machine
) -> tuple[Callable[[Sequence[Sequence[int]]], dict[str, Any]], float]:
    """The full U-Net where the budget lets it see enough, else the strided one; and the voxels it may see at once."""
    device, axes = machine.plan.device, len(needs.finest)
    full, strided = (partial(family, inputs, outputs, width=WIDTH[device]) for family in (full_unet, strided_unet))
    even = [(2,) * axes] * LEVELS[device]
    voxels = machine.voxels(full(even))
    if voxels >= needs.voxels or machine.hardware.gpus:
        return full, voxels
    return strided, machine.voxels(strided(even))


def _rounded(region: Numbers, strides: Sequence[Sequence[int]], spacing: Numbers, *, most: float) -> tuple[int, ...]:
    """Sizes that the strides divide, about the region's, with little more than `most` voxels."""
    divisor = np.prod(np.array(strides), axis=0)
    parts = np.maximum(1, np.ceil(region / divisor - 0.01))
    while (parts * divisor).prod() > SLACK * most and parts.max() > 1:
        lengths = np.where(parts > 1, parts * divisor * spacing, 0)
        parts[int(lengths.argmax())] -= 1
    return tuple(int(n) for n in parts * divisor)


def _widths(levels: int, width: int) -> list[int]:
    return [min(WIDEST, width * 2**level) for level in range(levels)]


def _plain(stride: Sequence[int]) -> int | list[int]:
    """One number where all axes have the same."""
    return stride[0] if len(set(stride)) == 1 else list(stride)
