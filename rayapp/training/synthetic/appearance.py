"""Simulated acquisition of a scene: intensities of its tissues, and the scanner's artefacts."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

from rayapp.training.synthetic.scenes import Scene, Tissue
from rayapp.training.synthetic.shapes import Bools, Floats, Random, smooth

UNITS: dict[Tissue, tuple[float, float]] = {
    "air": (-10, 0.1), "gas": (-9.5, 0.5), "lung": (-8.2, 0.7), "fat": (-0.95, 0.12), "fluid": (0.15, 0.15),
    "soft": (0.5, 0.25), "vessel": (1.2, 0.9), "marrow": (2, 0.8), "bone": (7, 2.5),
}  # fmt: skip
"""Mean and standard deviation of tissues in CT, in hundreds of Hounsfield units, with and without contrast agent."""
DARK: frozenset[Tissue] = frozenset({"air", "gas", "lung"})
"""Tissues with almost no signal in MR."""


@dataclass
class Acquisition:
    """A simulated scan of a scene.

    Attributes:
        image: (i, j, k).
        labels: (i, j, k), the scene's labels on the image's voxels, if slices are thin.
        thickness: canvas voxels per slice along each axis; above 1 along one axis if slices are thick.
        region: the part of the canvas that was imaged.
        means, noise: mean intensity of each label, and its standard deviation, which tell whether a border is visible.
    """

    image: Floats
    thickness: tuple[int, int, int]
    region: tuple[slice, ...]
    means: NDArray[np.float64]
    noise: float

    @property
    def spacing(self) -> NDArray[np.float64]:
        """Canvas voxels per voxel of the image, along each axis."""
        return np.array(self.thickness, float)

    def on_image(self, mask: Bools) -> Bools:
        """A mask of the canvas on the image's voxels: those that are more than half filled."""
        part = mask[self.region].astype(np.float32)
        return np.asarray(thick(part, self.thickness) > 0.5)


def acquire(random: Random, scene: Scene) -> Acquisition:
    """Simulate a scan in the style of CT, MR or PET, with texture, blur, bias field, thick slices, noise, metal and
    cropping.
    """
    edge = scene.labels.shape[0]
    kind = random.choice(["mr", "ct", "pet"], p=[0.5, 0.4, 0.1])
    means, spread, unit = {"mr": _mr, "ct": _ct, "pet": _pet}[kind](random, scene)
    image = means[scene.labels].astype(np.float32)
    for sharpness, share in ((0.0, 0.7), (random.uniform(0.6, 2.5), 0.5)):
        amounts = spread * (random.random(len(spread)) < share) * random.uniform(0, 1.3)
        grain = random.standard_normal(image.shape, dtype=np.float32)
        if sharpness:
            grain = ndimage.gaussian_filter(grain, sharpness) * np.float32(sharpness**1.5 * 3)
        image += amounts.astype(np.float32)[scene.labels] * grain
    drift = (spread * 2 * (random.random(len(spread)) < 0.4)).astype(np.float32)
    image += drift[scene.labels] * smooth(random, image.shape, int(random.integers(3, 16)))
    if kind == "ct" and random.random() < 0.12:
        _metal(random, image)
    blur = random.uniform(1.5, 4) if kind == "pet" else random.uniform(0, 1.3)
    image = ndimage.gaussian_filter(image, blur)
    if kind == "mr" and random.random() < 0.7:
        image = image * np.exp(smooth(random, image.shape, 3) * np.float32(random.uniform(0, 0.3)))
    region, thickness = _field_of_view(random, edge)
    image = thick(image[region], thickness, skip=random.random() < 0.3)
    noise = unit * random.choice([random.uniform(0, 0.3), random.uniform(0, 0.9)])
    grain = random.standard_normal(image.shape, dtype=np.float32)
    if random.random() < 0.3:
        grain = ndimage.gaussian_filter(grain, 0.7) * np.float32(2.2)
    if random.random() < 0.06:
        image = image * (1 + np.float32(random.uniform(0.05, 0.3)) * grain)
    image = image + np.float32(noise) * grain
    return Acquisition(image.astype(np.float32), thickness, region, means, max(noise, unit * 0.1))


def _mr(random: Random, scene: Scene) -> tuple[NDArray[np.float64], NDArray[np.float64], float]:
    """Intensities as in MR: any tissue may have any intensity."""
    tissues = np.array(scene.tissues)
    means = random.uniform(0, 1, tissues.max() + 1)
    if random.random() < 0.35:
        means = np.round(means * 6) / 6
    if random.random() < 0.25:
        means = random.uniform(0.3, 0.7) + (means - 0.5) * random.uniform(0.15, 0.6)
    for tissue, kind in scene.kinds.items():
        if kind in DARK or (kind == "bone" and random.random() < 0.6):
            means[tissue] = random.uniform(0, 0.12)
    means = means[tissues]
    means[list(scene.air)] = random.choice([0.0, random.uniform(0, 0.05)])
    return means, np.abs(random.normal(0, 0.05, len(means))), 0.08


def _ct(random: Random, scene: Scene) -> tuple[NDArray[np.float64], NDArray[np.float64], float]:
    """Intensities as in CT, in hundreds of Hounsfield units: soft tissues close together, fat, bone, air, contrast
    agent.
    """
    tissues = np.array(scene.tissues)
    count = tissues.max() + 1
    means = random.normal(0.5, random.uniform(0.15, 0.5), count)
    draw = random.random(count)
    means = np.where(draw < 0.15, random.normal(-0.9, 0.15, count), means)
    means = np.where((draw > 0.15) & (draw < 0.23), random.uniform(-9.5, -6, count), means)
    means = np.where((draw > 0.23) & (draw < 0.33), random.uniform(2, 9, count), means)
    means = np.where((draw > 0.33) & (draw < 0.42), random.uniform(1, 3, count), means)
    for tissue, kind in scene.kinds.items():
        means[tissue] = random.normal(*UNITS[kind])
    means = means[tissues]
    means[list(scene.air)] = -10
    if random.random() < 0.6:
        means = np.clip(means, random.uniform(-5, -1.5), random.uniform(2, 6))
    return means, np.abs(random.normal(0, 0.07, len(means))), random.uniform(0.08, 0.35)


def _pet(random: Random, scene: Scene) -> tuple[NDArray[np.float64], NDArray[np.float64], float]:
    """Intensities as in PET: low everywhere, high in a few tissues."""
    tissues = np.array(scene.tissues)
    means = random.gamma(0.8, 0.5, tissues.max() + 1)[tissues]
    means[list(scene.air)] = 0
    return means, 0.1 * means, 0.15 * float(means.mean())


def _metal(random: Random, image: Floats) -> None:
    """A bright object with streaks in its slices."""
    edge = image.shape[0]
    at = random.integers(8, edge - 8, 3)
    across, along = np.meshgrid(np.arange(edge) - at[1], np.arange(edge) - at[2], indexing="ij")
    angle = np.arctan2(across, along)
    distance = np.sqrt(across**2 + along**2) + 2
    streaks = np.sin(angle * random.integers(4, 14) + random.uniform(0, 6)) * random.uniform(3, 20) / distance
    height = int(random.integers(2, 7))
    image[at[0] - height : at[0] + height] += streaks.astype(np.float32)
    image[at[0] - 2 : at[0] + 2, at[1] - 2 : at[1] + 2, at[2] - 2 : at[2] + 2] += np.float32(15)


def _field_of_view(random: Random, edge: int) -> tuple[tuple[slice, ...], tuple[int, int, int]]:
    """The part of the canvas that is imaged, and the thickness of its slices."""
    thickness = [1, 1, 1]
    axis = int(random.integers(3))
    if random.random() < 0.5:
        thickness[axis] = int(np.exp(random.uniform(np.log(2), np.log(10.5))))
    region = []
    for other in range(3):
        if random.random() < 0.8:
            low, high = 0, edge
        else:
            length = int(edge * random.uniform(0.3 if other == axis else 0.5, 0.95))
            low = int(random.integers(0, edge - length + 1))
            high = low + length
        high = low + max(3, (high - low) // thickness[other]) * thickness[other]
        if high > edge:
            low, high = 0, edge // thickness[other] * thickness[other]
        region.append(slice(low, high))
    return tuple(region), (thickness[0], thickness[1], thickness[2])


def thick(values: Floats, thickness: tuple[int, int, int], *, skip: bool = False) -> Floats:
    """Averages of `thickness` voxels along each axis; an incomplete block at the end is dropped.

    Args:
        values: (i, j, k).
        thickness: voxels per average, along each axis.
        skip: leave gaps between thinner slices.
    """
    for axis, factor in enumerate(thickness):
        if factor > 1:
            rows = np.moveaxis(values, axis, 0)
            rows = rows[: len(rows) // factor * factor].reshape(-1, factor, *rows.shape[1:])
            used = rows[:, factor // 4 : max(factor // 4 + 1, factor - factor // 4)] if skip else rows
            values = np.moveaxis(used.mean(1), 0, axis)
    return np.ascontiguousarray(values, np.float32)
