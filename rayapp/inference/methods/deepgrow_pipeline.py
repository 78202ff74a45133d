"""DeepGrowPipelineTask: DeepGrow in two dimensions proposes slices, in three it makes a volume of them.

The network of slices is the sharper one, and a click on a slice tells it what the structure is. So it outlines the
clicked slices, and from each walks to the next ones above and below: deep inside what it found there it clicks on the
next slice, until the structure ends or turns into something else. Those places are hints to the network of volumes
(`rayapp.inference.methods.deepgrow`), whose answer to the annotator's own clicks is the mask: a walk that went astray
has no more than half a say, and none where the annotator says otherwise.

Background clicks play no part in the proposal, so that they cannot move it; they only take away from what there is
without them.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from scipy import ndimage

from rayapp.imaging.volume import Volume
from rayapp.inference.arrays import Bools
from rayapp.inference.energy.scan import Scan
from rayapp.inference.infer_task import Point, Prediction, Prompts, TaskInfo
from rayapp.inference.methods.deepgrow import DeepGrow2DTask, DeepGrow3DTask, PreparedStack, foreground
from rayapp.inference.methods.segmentation import PreparedImage
from rayapp.inference.prompts.parse import FOREGROUND

STEP_MM = 5.0
"""Distance between proposed slices, or one slice if they are further apart."""
MAX_SLICES = 40
"""Slices that are proposed, at most."""
OVERLAP = 0.5
"""Share of the smaller of two neighbouring outlines that lies within the larger, at least."""
GROWTH = 2.5
"""How many times larger one may be than the other."""
ALIKE = 0.5
"""Largest difference between their mean intensities, normalised (most of the body spans 2)."""
OUTLINES = 64
"""Outlines that are remembered, so that a click walks from its own slice only."""


@dataclass(frozen=True, kw_only=True)
class PreparedPair:
    """An image, and as each network takes it."""

    scan: Scan
    flat: PreparedStack
    solid: PreparedImage
    outlines: dict[tuple[Point, ...], Bools] = field(default_factory=dict)

    @property
    def nbytes(self) -> int:
        """Bytes of all, and of the outlines that it will remember."""
        i, j, _ = self.scan.shape
        return self.scan.nbytes + self.flat.nbytes + self.solid.nbytes + OUTLINES * i * j


class DeepGrowPipelineTask:
    """The clicked structure as label 1, of both models together."""

    def __init__(self, *, flat: DeepGrow2DTask, solid: DeepGrow3DTask, description: str) -> None:
        self._flat = flat
        self._solid = solid
        self._description = description

    @property
    def info(self) -> TaskInfo:
        """What `/info/` shows: as of DeepGrow 3D."""
        return dataclasses.replace(self._solid.info, description=self._description, version=self.version)

    @property
    def version(self) -> str:
        """Both models'."""
        return f"{self._flat.version}+{self._solid.version}"

    def load(self) -> None:
        """Load both, once. Raises ModelBroken naming the file."""
        self._flat.load()
        self._solid.load()

    def prepare(self, volume: Volume) -> PreparedPair:
        """Prepare the image for both. Raises BadRequest if it has too few channels."""
        return PreparedPair(scan=Scan.of(volume), flat=self._flat.prepare(volume), solid=self._solid.prepare(volume))

    def predict(self, prepared: PreparedPair, prompts: Prompts, config: Mapping[str, Any]) -> Prediction:
        """Segment what was clicked. Raises BadRequest without a click."""
        *_, last = self.stages(prepared, prompts, config)
        return last

    def stages(self, prepared: PreparedPair, prompts: Prompts, config: Mapping[str, Any]) -> Iterator[Prediction]:
        """The answers of the network of volumes to all clicks. Raises BadRequest as `predict` does."""
        hints = self._proposed(prepared, foreground(prompts), config)
        solid = self._solid.hinted(prepared.solid, hints)
        yield from self._solid.stages(solid, dataclasses.replace(prompts, slice=None), config)

    def _proposed(self, prepared: PreparedPair, own: tuple[Point, ...], config: Mapping[str, Any]) -> list[Point]:
        """Clicks deep inside the structure, on slices away from those that were clicked."""
        clicked = {k: tuple(point for point in own if point[2] == k) for _, _, k in own}
        step = max(1, round(STEP_MM / prepared.scan.spacing[2]))
        last = prepared.flat.image.shape[1] - 1
        outlines = {k: self._outline(prepared, points, config) for k, points in sorted(clicked.items())}
        walks = [(k, way, outline) for k, outline in outlines.items() for way in (-step, step)]
        found: list[Point] = []
        while walks and len(found) < MAX_SLICES:
            k, way, outline = walks.pop(0)
            beyond = k + way
            if not 0 <= beyond <= last or not outline.any() or any(abs(at - beyond) < step for at in clicked):
                continue
            point = _deepest(outline, beyond)
            onward = self._outline(prepared, (point,), config)
            if (
                _continues(outline, onward)
                and abs(_mean(prepared, outline, k) - _mean(prepared, onward, beyond)) < ALIKE
            ):
                found.append(point)
                walks.append((beyond, way, onward))
        return found

    def _outline(self, prepared: PreparedPair, points: tuple[Point, ...], config: Mapping[str, Any]) -> Bools:
        """What the network of slices finds on the slice of these points, (I, J)."""
        known = prepared.outlines.get(points)
        if known is not None:
            return known
        k = points[0][2]
        prompts = Prompts(clicks={FOREGROUND: points}, slice=k)
        labels = self._flat.predict(prepared.flat, prompts, {**config, "largest_cc": False}).labels
        if len(prepared.outlines) >= OUTLINES:
            del prepared.outlines[next(iter(prepared.outlines))]
        prepared.outlines[points] = np.asarray(labels[:, :, k] > 0, dtype=np.bool_)
        return prepared.outlines[points]


def _deepest(outline: Bools, k: int) -> Point:
    depth = ndimage.distance_transform_edt(np.pad(outline, 1))[1:-1, 1:-1]
    i, j = np.unravel_index(int(depth.argmax()), depth.shape)
    return int(i), int(j), k


def _continues(outline: Bools, onward: Bools) -> bool:
    """Whether two neighbouring outlines can be of one structure."""
    less, more = sorted((np.count_nonzero(outline), np.count_nonzero(onward)))
    return bool(0 < more <= GROWTH * less and np.count_nonzero(outline & onward) >= OVERLAP * less)


def _mean(prepared: PreparedPair, outline: Bools, k: int) -> float:
    """The mean intensity within an outline."""
    low, high = prepared.scan.ranges[0]
    values = (prepared.scan.array[0, :, :, k][outline].astype(np.float32) - low) * (2 / (high - low)) - 1
    return float(np.clip(values, -2, 2).mean()) if len(values) else -2.0
