"""DeepGrow: segmentation of any one structure by clicks on it and around it (Sakinis et al., 2019).

The network and the rules that enforce clicks are those of DeepEdit with a single structure. The structure may have any
name: clicks come as `foreground` and `background`, or under the name in `label`, and the mask is 1. Without a click on
the structure the mask is empty.

A prepared image may carry hints: voxels that may belong to the structure, though nobody clicked there. Hints are shown
to the network as clicks but not enforced. Since the network was not trained on so many clicks, some of which may be
wrong, it also runs without them, and the log-odds of both runs are averaged.

- `DeepGrow3DTask` segments the whole image at once.
- `DeepGrow2DTask` segments a single slice across the source's k; only clicks on that slice count.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from rayapp.errors import BadRequest
from rayapp.imaging.volume import Affine, Volume
from rayapp.inference.arrays import Floats, Spacing
from rayapp.inference.energy.scan import Scan
from rayapp.inference.infer_task import Point, Prediction, Prompts, label_params
from rayapp.inference.methods.deepedit import CLICK_MARGIN, Clicks, DeepEditTask, PreparedEdit, as_edit
from rayapp.inference.methods.segmentation import PreparedImage
from rayapp.inference.network import slices
from rayapp.inference.prompts.parse import BACKGROUND, FOREGROUND
from rayapp.inference.stage_clock import StageClock

HINT_CLEARANCE_MM = 10.0
"""Distance from a background click within which hints are ignored."""


class DeepGrow3DTask(DeepEditTask):
    """Segmentation of the clicked structure as label 1. Arguments as for `DeepEditTask`, with a single structure."""

    type = "deepgrow"

    @property
    def _labels(self) -> dict[str, int]:
        return {}

    def with_hints(self, prepared: PreparedImage, hints: Sequence[Point]) -> PreparedEdit:
        """The same prepared image with other hints, which are source voxels."""
        return dataclasses.replace(as_edit(prepared), hints=tuple(hints))

    def stages(self, prepared: PreparedImage, prompts: Prompts, config: Mapping[str, Any]) -> Iterator[Prediction]:
        """Yield the network's answer, then the refined one, as `DeepEditTask.stages`.

        Raises:
            BadRequest: Without a click.
        """
        for prediction in super().stages(prepared, prompts, config):
            yield dataclasses.replace(prediction, params=label_params(prompts))

    def _clicks_by_channel(self, prompts: Prompts) -> Clicks:
        clicks = (foreground_clicks(prompts), tuple(prompts.clicks.get(BACKGROUND, ())))
        if not any(clicks):
            raise BadRequest(f"model {self._name!r} needs a click on a structure")
        return clicks

    def _log_odds(self, prepared: PreparedEdit, clicks: Clicks, clock: StageClock) -> tuple[Floats, Floats]:
        """Log-odds as in `DeepEditTask`; without clicks on the structure, those of an empty mask."""
        if not clicks[0]:
            empty = self._automatic(prepared, clock)
            return empty, empty
        return super()._log_odds(prepared, clicks, clock)

    def _automatic(self, prepared: PreparedEdit, clock: StageClock) -> Floats:  # noqa: ARG002
        """Log-odds of an empty mask."""
        return np.full((1, *prepared.image.shape[1:]), -CLICK_MARGIN, dtype=np.float32)

    def _guided_log_odds(self, prepared: PreparedEdit, clicks: Clicks, clock: StageClock) -> Floats:
        """Log-odds for clicks alone, averaged with those for clicks and hints if there are hints."""
        without_hints = super()._guided_log_odds(prepared, clicks, clock)
        on, off = clicks
        hints = [hint for hint in prepared.hints if _distance_mm(hint, off, prepared.scan.spacing) > HINT_CLEARANCE_MM]
        if not hints:
            return without_hints
        mean: Floats = 0.5 * (without_hints + super()._guided_log_odds(prepared, ((*on, *hints), off), clock))
        return mean


@dataclass(frozen=True, kw_only=True)
class PreparedStack(PreparedImage):
    """The normalised slices of an image, (C, K, X, Y), float16 as in training; `grid` is that of one slice.

    Attributes:
        affine: Source index to RAS mm.
        scan: The source image, for refinement at full resolution.
    """

    affine: Affine
    scan: Scan

    @property
    def nbytes(self) -> int:
        """Memory of the slices and of the source image in bytes."""
        return self.image.nbytes + self.scan.nbytes

    def slice(self, k: int) -> PreparedImage:
        """Slice k as a volume of one plane."""
        image = slices.plane(self.affine, self.image.numpy(), k).astype(np.float32)
        return PreparedImage(grid=self.grid, image=torch.from_numpy(image))


class DeepGrow2DTask(DeepGrow3DTask):
    """Segmentation of the clicked structure in one slice. Arguments as for `DeepGrow3DTask`; `roi_size` is 2D."""

    dimension = 2

    def prepare(self, volume: Volume) -> PreparedStack:
        """Reorient and resample every slice in its plane, and normalise all slices together.

        Raises:
            BadRequest: If the image has fewer channels than the network needs.
        """
        affine = volume.affine
        grid = slices.slice_grid(
            volume.shape, affine, spacing_mm=self._spacing, limit=self._roi_size, divisor=self._network.divisor
        )
        image = self._normalised(volume, lambda channel: slices.stack(grid, affine, channel))
        used = dataclasses.replace(volume, array=volume.array[: self._channels])
        return PreparedStack(grid=grid, image=torch.from_numpy(image).half(), affine=affine, scan=Scan.of(used))

    def stages(self, prepared: PreparedImage, prompts: Prompts, config: Mapping[str, Any]) -> Iterator[Prediction]:
        """Segment in the slice that the prompts name, else in that of the last click.

        Raises:
            BadRequest: Without a click on the slice.
        """
        if not isinstance(prepared, PreparedStack):
            raise TypeError("prepare the image with this task")
        k = clicked_slice(prompts, self._name)
        scan = dataclasses.replace(prepared.scan, array=prepared.scan.array[..., k : k + 1])
        edit = self._editable(prepared.slice(k), scan)
        for prediction in super().stages(edit, restricted_to_slice(prompts, k), config):
            labels = np.zeros((*prediction.labels.shape[:2], prepared.image.shape[1]), dtype=np.uint8, order="F")
            labels[:, :, k] = prediction.labels[:, :, 0]
            yield dataclasses.replace(prediction, labels=labels)

    def _infer(self, images: Tensor) -> Tensor:
        """Logits (N, 2, R, A, S) of slices (N, C, R, A, S) with one voxel along the stacking axis.

        The two-dimensional network runs without that axis.
        """
        axis = images.shape.index(1, 2)
        return super()._infer(images.squeeze(axis)).unsqueeze(axis)


def foreground_clicks(prompts: Prompts) -> tuple[Point, ...]:
    """Clicks on the structure, under the name in `label` and under `foreground`."""
    names = dict.fromkeys((prompts.label or FOREGROUND, FOREGROUND))
    return tuple(point for name in names if name != BACKGROUND for point in prompts.clicks.get(name, ()))


def clicked_slice(prompts: Prompts, model: str) -> int:
    """Index k of the slice to segment: the one that the prompts name, else that of the last click.

    Args:
        prompts: The request's prompts.
        model: The model's name, for error messages.

    Raises:
        BadRequest: If there is no click on the slice.
    """
    points = [*prompts.clicks.get(BACKGROUND, ()), *foreground_clicks(prompts)]
    k = prompts.slice if prompts.slice is not None else next((k for _, _, k in reversed(points)), None)
    if k is None or all(point[2] != k for point in points):
        where = "" if k is None else f" on slice {k}"
        raise BadRequest(f"model {model!r} needs a click on a structure{where}")
    return k


def restricted_to_slice(prompts: Prompts, k: int) -> Prompts:
    """Clicks, box and starting mask of slice k, as for a volume of that slice alone."""
    clicks = {name: [(i, j, 0) for i, j, at in points if at == k] for name, points in prompts.clicks.items()}
    roi = None
    if prompts.roi is not None:
        low, high = ((i, j, min(max(at - k, 0), 1)) for i, j, at in prompts.roi)
        roi = low, high
    start = prompts.start[:, :, k : k + 1] if prompts.start is not None else None
    return dataclasses.replace(prompts, clicks=clicks, roi=roi, start=start)


def _distance_mm(point: Point, others: Sequence[Point], spacing: Spacing) -> float:
    """Distance in mm to the nearest of other points; infinite if there are none."""
    offsets = (np.array(others).reshape(-1, 3) - point) * spacing
    return float(np.linalg.norm(offsets, axis=1).min(initial=np.inf))
