"""PromptableSliceTask: segmentation of any structure on one slice, by the network that ships (DeepGrow 2D).

The slice is treated as an image of its own, at its in-plane resolution, so that its outline is more precise than in a
volume. Only prompts on the slice count.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np

from rayapp.errors import BadRequest
from rayapp.imaging.volume import Volume
from rayapp.inference.infer_task import Prediction, Prompts, TaskInfo
from rayapp.inference.methods.promptable_infer import PreparedSource, PromptableTask, source_of
from rayapp.inference.prompts import outlines
from rayapp.inference.prompts.parse import BACKGROUND
from rayapp.inference.zoom.lowering import foreground
from rayapp.inference.zoom.view import Source

AXIS = 2
"""Slices lie across the source's k axis."""
KEPT = 8
"""Number of slices per image whose answers are cached."""


@dataclass(frozen=True)
class PreparedSlices:
    """An image with cached slices."""

    source: Source
    slices: OrderedDict[int, PreparedSource] = field(default_factory=OrderedDict)

    @property
    def nbytes(self) -> int:
        """Memory of the image and of the answers on its slices, in bytes."""
        array = self.source.array
        return int(array.nbytes + min(array.shape[AXIS], KEPT) * array.size // array.shape[AXIS])

    def at(self, k: int) -> PreparedSource:
        """The slice with this index, as an image of its own."""
        known = self.slices.setdefault(
            k, PreparedSource(Source(self.source.array[:, :, k : k + 1], self.source.spacing))
        )
        self.slices.move_to_end(k)
        while len(self.slices) > KEPT:
            self.slices.popitem(last=False)
        return known


class PromptableSliceTask:
    """Segmentation of the prompted structure on one slice, as label 1.

    Args:
        network: the task whose network is used; it may serve volumes too.
        name: the model's name, for error messages.
        description: one sentence for the annotator.
    """

    def __init__(self, network: PromptableTask, name: str, description: str) -> None:
        self._network = network
        self._name = name
        self._description = description

    @property
    def info(self) -> TaskInfo:
        """The model's entry in `/info/`."""
        return replace(self._network.info, dimension=2, description=self._description)

    @property
    def version(self) -> str:
        """The network's version."""
        return self._network.version

    def load(self) -> None:
        """Load the network's weights; later calls do nothing. Raises ModelBroken, naming the file."""
        self._network.load()

    def prepare(self, volume: Volume) -> PreparedSlices:
        """Take the image's first channel."""
        return PreparedSlices(source_of(volume))

    def predict(self, prepared: PreparedSlices, prompts: Prompts, config: Mapping[str, Any]) -> Prediction:
        """Segment the prompted structure on the slice. Raises as `stages`."""
        *_, last = self.stages(prepared, prompts, config)
        return last

    def stages(self, prepared: PreparedSlices, prompts: Prompts, config: Mapping[str, Any]) -> Iterator[Prediction]:
        """Yield a coarse mask, then a fine one, of the slice that the prompts name, else of the slice with the last
        prompt.

        Raises:
            BadRequest: without a prompt for a structure on the slice, or for a slice outside the image.
        """
        shape = prepared.source.array.shape
        k = prompts.slice if prompts.slice is not None else _last_slice(prompts)
        if k is None:
            raise BadRequest(f"model {self._name!r} needs a prompt on a slice: click on a structure there")
        if not 0 <= k < shape[AXIS]:
            raise BadRequest(
                f"model {self._name!r}: there is no slice {k}; the image has slices 0 to {shape[AXIS] - 1}"
            )
        for prediction in self._network.stages(prepared.at(k), on_slice(prompts, k), config):
            labels = np.zeros(shape, np.uint8, order="F")
            labels[:, :, k] = prediction.labels[:, :, 0]
            yield replace(prediction, labels=labels)


def on_slice(prompts: Prompts, k: int) -> Prompts:
    """The prompts on slice k, as for a volume of that slice alone."""

    def clicks(groups: Mapping[str, Any]) -> dict[str, tuple[tuple[int, int, int], ...]]:
        found = {name: tuple((i, j, 0) for i, j, at in points if at == k) for name, points in groups.items()}
        return {name: points for name, points in found.items() if points}

    roi = None
    if prompts.roi is not None and prompts.roi[0][AXIS] <= k < prompts.roi[1][AXIS]:
        (low_i, low_j, _), (high_i, high_j, _) = prompts.roi
        roi = (low_i, low_j, 0), (high_i, high_j, 1)
    curves = [curve for curve in prompts.curves if outlines.slice_of(curve) == (AXIS, k)]
    placed = foreground(prompts)
    sizes = {sum(at == k for _, _, at in placed[:count]): size for count, size in prompts.sizes.items()}
    return replace(
        prompts,
        clicks=clicks(prompts.clicks),
        extremes=clicks(prompts.extremes),
        roi=roi,
        slice=None,
        curves=[[(i, j, 0.0) for i, j, _ in curve] for curve in curves],
        marks=None if prompts.marks is None else prompts.marks.on_slice(k),
        start=None if prompts.start is None else prompts.start[:, :, k : k + 1],
        sizes=sizes,
        turns=[on_slice(turn, k) for turn in prompts.turns],
    )


def _last_slice(prompts: Prompts) -> int | None:
    """The slice of the last prompt or click, or the only slice that is drawn on; None if there is none."""
    for turn in reversed(prompts.turns):
        found = _last_slice(turn)
        if found is not None:
            return found
    clicks = [*prompts.clicks.get(BACKGROUND, ()), *foreground(prompts)]
    if clicks:
        return clicks[-1][AXIS]
    drawn = {index for axis, index in map(outlines.slice_of, prompts.curves) if axis == AXIS}
    drawn |= {point[AXIS] for points in prompts.extremes.values() for point in points}
    if prompts.marks is not None:
        drawn |= {prompts.marks.lower[AXIS] + int(k) for k in np.flatnonzero(prompts.marks.part.any((0, 1)))}
    if prompts.roi is not None:
        drawn |= set(range(prompts.roi[0][AXIS], prompts.roi[1][AXIS]))
    return drawn.pop() if len(drawn) == 1 else None
