"""DeepGrow: one structure, any structure, outlined by clicks in and around it (Sakinis et al., 2019).

The network is DeepEdit's with one structure, and so are the rules that make it obey. What the structure is called is
the annotator's business: clicks come as `foreground` and `background`, or under the name that `label` gives, and the
mask is 1. Without a click on a structure there is none.

An image may be prepared with hints: places that may be the structure's, though nobody clicked there. Nothing need obey
them. They are shown to the network as clicks are, and it is asked without them as well, since many clicks, let alone
wrong ones, are more than it has learnt from: the mean of both answers counts.

    deepgrow_3d   the whole image at once
    deepgrow_2d   one slice across the source's k: only clicks on it count, only on it is the mask
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from rayapp.errors import BadRequest
from rayapp.imaging.volume import Affine, Volume
from rayapp.inference.arrays import Floats
from rayapp.inference.energy.scan import Scan
from rayapp.inference.infer_task import Point, Prediction, Prompts, label_params
from rayapp.inference.methods.deepedit import HOLD, Clicks, DeepEditTask, PreparedEdit, as_edit
from rayapp.inference.methods.segmentation import PreparedImage
from rayapp.inference.network import slices
from rayapp.inference.prompts.parse import BACKGROUND, FOREGROUND
from rayapp.inference.stage_clock import StageClock

BESIDE_MM = 10.0
"""Distance from a background click up to which there are no hints."""


class DeepGrow3DTask(DeepEditTask):
    """The clicked structure as label 1; arguments as of `DeepEditTask`, the structure being one."""

    type = "deepgrow"

    @property
    def _labels(self) -> dict[str, int]:
        return {}

    def hinted(self, prepared: PreparedImage, hints: Sequence[Point]) -> PreparedEdit:
        """The same image with these hints."""
        return dataclasses.replace(as_edit(prepared), hints=tuple(hints))

    def stages(self, prepared: PreparedImage, prompts: Prompts, config: Mapping[str, Any]) -> Iterator[Prediction]:
        """Segment what was clicked.

        Raises:
            BadRequest: without a click.
        """
        for prediction in super().stages(prepared, prompts, config):
            yield dataclasses.replace(prediction, params=label_params(prompts))

    def _channelled(self, prompts: Prompts) -> Clicks:
        clicks = (foreground(prompts), tuple(prompts.clicks.get(BACKGROUND, ())))
        if not any(clicks):
            raise BadRequest(f"model {self._name!r} segments what is clicked: click on a structure")
        return clicks

    def _margins(self, prepared: PreparedEdit, clicks: Clicks, clock: StageClock) -> tuple[Floats, Floats]:
        """Nothing, where background clicks have nothing to take away from."""
        if not clicks[0]:
            nothing = self._automatic(prepared, clock)
            return nothing, nothing
        return super()._margins(prepared, clicks, clock)

    def _automatic(self, prepared: PreparedEdit, clock: StageClock) -> Floats:  # noqa: ARG002
        """Nothing."""
        return np.full((1, *prepared.image.shape[1:]), -HOLD, dtype=np.float32)

    def _guided(self, prepared: PreparedEdit, clicks: Clicks, clock: StageClock) -> Floats:
        alone = super()._guided(prepared, clicks, clock)
        on, off = clicks
        hints = [hint for hint in prepared.hints if _distance(hint, off, prepared.scan.spacing) > BESIDE_MM]
        if not hints:
            return alone
        mean: Floats = 0.5 * (alone + super()._guided(prepared, ((*on, *hints), off), clock))
        return mean


@dataclass(frozen=True, kw_only=True)
class PreparedStack(PreparedImage):
    """An image's slices, (C, K, X, Y), float16 as training keeps them, each on `grid`."""

    affine: Affine
    scan: Scan

    @property
    def nbytes(self) -> int:
        """Bytes of the slices and of the image itself."""
        return self.image.nbytes + self.scan.nbytes

    def slice(self, k: int) -> PreparedImage:
        """One of them, as a volume of one."""
        image = slices.plane(self.affine, self.image.numpy(), k).astype(np.float32)
        return PreparedImage(grid=self.grid, image=torch.from_numpy(image))


class DeepGrow2DTask(DeepGrow3DTask):
    """The same on one slice; `roi_size` has two numbers."""

    dimension = 2

    def prepare(self, volume: Volume) -> PreparedStack:
        """Turn and resample every slice in its plane, and normalise them all together."""
        affine = volume.affine
        grid = slices.slice_grid(
            volume.shape, affine, spacing_mm=self._spacing, limit=self._roi_size, divisor=self._network.divisor
        )
        image = self._normalised(volume, lambda channel: slices.stack(grid, affine, channel))
        seen = dataclasses.replace(volume, array=volume.array[: self._channels])
        return PreparedStack(grid=grid, image=torch.from_numpy(image).half(), affine=affine, scan=Scan.of(seen))

    def stages(self, prepared: PreparedImage, prompts: Prompts, config: Mapping[str, Any]) -> Iterator[Prediction]:
        """Segment what was clicked on the slice that the prompts name, or else on that of the last click.

        Raises:
            BadRequest: without a click on the slice.
        """
        if not isinstance(prepared, PreparedStack):
            raise TypeError("prepare the image with this task")
        k = clicked_slice(prompts, self._name)
        scan = dataclasses.replace(prepared.scan, array=prepared.scan.array[..., k : k + 1])
        edit = self._editable(prepared.slice(k), scan)
        for one in super().stages(edit, on_slice(prompts, k), config):
            labels = np.zeros((*one.labels.shape[:2], prepared.image.shape[1]), dtype=np.uint8, order="F")
            labels[:, :, k] = one.labels[:, :, 0]
            yield dataclasses.replace(one, labels=labels)

    def _infer(self, images: Tensor) -> Tensor:
        """Logits of whole slices, (N, C, R, A, S) with one voxel across: for the network, without it."""
        across = images.shape.index(1, 2)
        return super()._infer(images.squeeze(across)).unsqueeze(across)


def foreground(prompts: Prompts) -> tuple[Point, ...]:
    """The clicks on the structure, under its own name or under none."""
    names = dict.fromkeys((prompts.label or FOREGROUND, FOREGROUND))
    return tuple(point for name in names if name != BACKGROUND for point in prompts.clicks.get(name, ()))


def clicked_slice(prompts: Prompts, model: str) -> int:
    """The slice that the prompts name, or else that of the last click. Raises BadRequest if no click is on it."""
    points = [*prompts.clicks.get(BACKGROUND, ()), *foreground(prompts)]
    k = prompts.slice if prompts.slice is not None else next((k for _, _, k in reversed(points)), None)
    if k is None or all(point[2] != k for point in points):
        where = "" if k is None else f" on slice {k}"
        raise BadRequest(f"model {model!r} segments what is clicked: click on a structure{where}")
    return k


def on_slice(prompts: Prompts, k: int) -> Prompts:
    """The clicks, the box and the start on one slice, as of a volume of that slice alone."""
    clicks = {name: [(i, j, 0) for i, j, at in points if at == k] for name, points in prompts.clicks.items()}
    roi = None
    if prompts.roi is not None:
        low, high = ((i, j, min(max(at - k, 0), 1)) for i, j, at in prompts.roi)
        roi = low, high
    start = prompts.start[:, :, k : k + 1] if prompts.start is not None else None
    return dataclasses.replace(prompts, clicks=clicks, roi=roi, start=start)


def _distance(point: Point, others: Sequence[Point], spacing: npt.NDArray[np.float64]) -> float:
    """Millimetres to the nearest of the others."""
    apart = (np.array(others).reshape(-1, 3) - point) * spacing
    return float(np.linalg.norm(apart, axis=1).min(initial=np.inf))
