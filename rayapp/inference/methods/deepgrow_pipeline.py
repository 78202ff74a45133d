"""DeepGrowPipelineTask: DeepGrow 2D proposes slices, from which DeepGrow 3D makes a volume.

The 2D network is more precise, and a click on a slice identifies the structure. So it segments the clicked slices and
proceeds from each to neighbouring ones above and below: it places a click at the deepest point of an outline on the
next slice, until the structure ends or changes into something else. These points are hints to the 3D network
(`rayapp.inference.methods.deepgrow`), whose answer to the annotator's own clicks is the mask; wrong hints have at most
half the weight, and none near background clicks.

Background clicks are not used for the proposal, so that they cannot change it; they only remove voxels from the mask.
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
from rayapp.inference.methods.deepgrow import DeepGrow2DTask, DeepGrow3DTask, PreparedStack, foreground_clicks
from rayapp.inference.methods.segmentation import PreparedImage
from rayapp.inference.prompts.parse import FOREGROUND

STEP_MM = 5.0
"""Distance between proposed slices; one slice if slices are further apart."""
MAX_SLICES = 40
"""Largest number of proposed slices."""
MIN_OVERLAP = 0.5
"""Least share of the smaller of two neighbouring outlines that lies within the larger."""
MAX_GROWTH = 2.5
"""Largest ratio of the areas of two neighbouring outlines."""
SIMILAR = 0.5
"""Largest difference of two neighbouring outlines' mean normalised intensities (most of the body spans 2)."""
CACHED_OUTLINES = 64
"""Number of outlines cached per image, so that a new click walks from its own slice only."""


@dataclass(frozen=True, kw_only=True)
class PreparedPair:
    """An image prepared for both models.

    Attributes:
        scan: The source image.
        image_2d: The image as the 2D model takes it.
        image_3d: The image as the 3D model takes it.
        outlines: Cached outlines (I, J), by the clicks on their slice.
    """

    scan: Scan
    image_2d: PreparedStack
    image_3d: PreparedImage
    outlines: dict[tuple[Point, ...], Bools] = field(default_factory=dict)

    @property
    def nbytes(self) -> int:
        """Memory of the images, and of the outlines that will be cached, in bytes."""
        i, j, _ = self.scan.shape
        return self.scan.nbytes + self.image_2d.nbytes + self.image_3d.nbytes + CACHED_OUTLINES * i * j


class DeepGrowPipelineTask:
    """Segmentation of the clicked structure as label 1, by a 2D and a 3D DeepGrow model together.

    Args:
        model_2d: Proposes slices.
        model_3d: Segments the volume.
        description: One sentence for the annotator.
    """

    def __init__(self, *, model_2d: DeepGrow2DTask, model_3d: DeepGrow3DTask, description: str) -> None:
        self._model_2d = model_2d
        self._model_3d = model_3d
        self._description = description

    @property
    def info(self) -> TaskInfo:
        """The model's entry in `/info/`, which is the 3D model's with another description and version."""
        return dataclasses.replace(self._model_3d.info, description=self._description, version=self.version)

    @property
    def version(self) -> str:
        """The versions of both models, joined by +."""
        return f"{self._model_2d.version}+{self._model_3d.version}"

    def load(self) -> None:
        """Load the weights of both models; later calls do nothing.

        Raises:
            ModelBroken: If weights do not fit their network; names the file.
        """
        self._model_2d.load()
        self._model_3d.load()

    def prepare(self, volume: Volume) -> PreparedPair:
        """Prepare an image for both models.

        Raises:
            BadRequest: If the image has fewer channels than a network needs.
        """
        return PreparedPair(
            scan=Scan.of(volume), image_2d=self._model_2d.prepare(volume), image_3d=self._model_3d.prepare(volume)
        )

    def predict(self, prepared: PreparedPair, prompts: Prompts, config: Mapping[str, Any]) -> Prediction:
        """Segment the clicked structure.

        Raises:
            BadRequest: Without a click.
        """
        *_, last = self.stages(prepared, prompts, config)
        return last

    def stages(self, prepared: PreparedPair, prompts: Prompts, config: Mapping[str, Any]) -> Iterator[Prediction]:
        """Yield the 3D model's answers to the clicks and the hints.

        Raises:
            BadRequest: Without a click.
        """
        hints = self._proposed_hints(prepared, foreground_clicks(prompts), config)
        hinted = self._model_3d.with_hints(prepared.image_3d, hints)
        yield from self._model_3d.stages(hinted, dataclasses.replace(prompts, slice=None), config)

    def _proposed_hints(
        self, prepared: PreparedPair, clicks: tuple[Point, ...], config: Mapping[str, Any]
    ) -> list[Point]:
        """Points deep inside the structure, on slices at a distance from the clicked ones."""
        clicked = {k: tuple(point for point in clicks if point[2] == k) for _, _, k in clicks}
        step = max(1, round(STEP_MM / prepared.scan.spacing[2]))
        last = prepared.image_2d.image.shape[1] - 1
        outlines = {k: self._outline(prepared, points, config) for k, points in sorted(clicked.items())}
        walks = [(k, direction, outline) for k, outline in outlines.items() for direction in (-step, step)]
        hints: list[Point] = []
        while walks and len(hints) < MAX_SLICES:
            k, direction, outline = walks.pop(0)
            following = k + direction
            near_click = any(abs(index - following) < step for index in clicked)
            if not 0 <= following <= last or not outline.any() or near_click:
                continue
            point = _deepest_point(outline, following)
            next_outline = self._outline(prepared, (point,), config)
            if (
                _is_continuation(outline, next_outline)
                and abs(_mean_intensity(prepared, outline, k) - _mean_intensity(prepared, next_outline, following))
                < SIMILAR
            ):
                hints.append(point)
                walks.append((following, direction, next_outline))
        return hints

    def _outline(self, prepared: PreparedPair, points: tuple[Point, ...], config: Mapping[str, Any]) -> Bools:
        """The 2D model's mask (I, J) of the slice that these clicks are on, cached."""
        cached = prepared.outlines.get(points)
        if cached is not None:
            return cached
        k = points[0][2]
        prompts = Prompts(clicks={FOREGROUND: points}, slice=k)
        labels = self._model_2d.predict(prepared.image_2d, prompts, {**config, "largest_cc": False}).labels
        if len(prepared.outlines) >= CACHED_OUTLINES:
            del prepared.outlines[next(iter(prepared.outlines))]
        prepared.outlines[points] = np.asarray(labels[:, :, k] > 0, dtype=np.bool_)
        return prepared.outlines[points]


def _deepest_point(outline: Bools, k: int) -> Point:
    """The deepest point inside an outline, on slice k."""
    depth = ndimage.distance_transform_edt(np.pad(outline, 1))[1:-1, 1:-1]
    i, j = np.unravel_index(int(depth.argmax()), depth.shape)
    return int(i), int(j), k


def _is_continuation(outline: Bools, next_outline: Bools) -> bool:
    """True if two neighbouring outlines can belong to one structure, by their areas and their overlap."""
    smaller, larger = sorted((np.count_nonzero(outline), np.count_nonzero(next_outline)))
    overlap = np.count_nonzero(outline & next_outline)
    return bool(0 < larger <= MAX_GROWTH * smaller and overlap >= MIN_OVERLAP * smaller)


def _mean_intensity(prepared: PreparedPair, outline: Bools, k: int) -> float:
    """Mean normalised intensity of the first channel within an outline on slice k."""
    low, high = prepared.scan.ranges[0]
    values = (prepared.scan.array[0, :, :, k][outline].astype(np.float32) - low) * (2 / (high - low)) - 1
    return float(np.clip(values, -2, 2).mean()) if len(values) else -2.0
