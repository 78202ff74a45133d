"""DeepEditTask: all structures at once, corrected by clicks on any of them (Diaz-Pinto et al., DeepEdit, 2022).

The network sees the image and one guidance channel per structure and one for background; without clicks it segments
by itself. The whole image is scaled into a fixed number of voxels, so that a click costs the same in any image.

Networks obey clicks mostly. Three rules, applied to the margins between structures, make it always:
  - a clicked voxel carries the clicked label, and so does tissue like it within a voxel or two of the network's;
  - where clicks on structures are closer together than that, the nearest decides;
  - background clicks can only take away: a structure never reaches beyond where it would be without them.
"""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from rayapp.errors import BadRequest
from rayapp.imaging.volume import Volume
from rayapp.inference.arrays import Floats, Labels
from rayapp.inference.energy import click_refinement
from rayapp.inference.energy.scan import Scan
from rayapp.inference.infer_task import Point, Prediction, Prompts, TaskInfo
from rayapp.inference.methods.segmentation import PreparedImage, SegmentationTask
from rayapp.inference.network import restoration
from rayapp.inference.prompts import guidance
from rayapp.inference.prompts.guidance import GuidedImage, Position
from rayapp.inference.prompts.parse import BACKGROUND, FOREGROUND
from rayapp.inference.stage_clock import StageClock
from rayapp.protocol import parse_flag

HOLD = 4.0
"""Least margin (in logits) that a click gives its label on the network voxels around it."""
REACH = 1.5
"""Voxels of the network's grid that a click reaches into tissue like its own."""
ALIKE = 0.12
"""Largest difference, in normalised intensity (the body spans 2), of tissue that counts as alike."""

REFINE = "refine"
"""In a request: whether to wait for the second stage."""

Clicks = tuple[tuple[Point, ...], ...]
"""Points per guidance channel: structures by value, then background."""


@dataclass(frozen=True, kw_only=True)
class PreparedEdit(PreparedImage):
    """A prepared image, the same with room for clicks, and the margins that the last clicks on structures alone gave
    (background clicks need them). `hints` are places that may be the structure's, of a model of one: see
    `rayapp.inference.methods.deepgrow`."""

    structures: int
    guided: GuidedImage
    memo: Memo
    scan: Scan
    hints: tuple[Point, ...] = ()

    @property
    def nbytes(self) -> int:
        """Bytes of the images and of the margins it will remember."""
        margins = 2 * self.image[0].nbytes * self.structures
        return self.image.nbytes + self.guided.nbytes + margins + self.scan.nbytes


@dataclass
class Memo:
    """Remembered results. Each is replaced as a whole, so any thread sees the old or the new."""

    last: tuple[tuple[Clicks, tuple[Point, ...]], Floats] | None = None
    automatic: Floats | None = None


class DeepEditTask(SegmentationTask):
    """Interactive segmentation; arguments as of `SegmentationTask`, the image being scaled into `roi_size`."""

    type = "deepedit"

    @property
    def _guidance_channels(self) -> int:
        return len(self._structures) + 1

    @property
    def info(self) -> TaskInfo:
        """What `/info/` shows."""
        info = super().info
        return dataclasses.replace(info, config={**info.config, REFINE: False})

    @property
    def _labels(self) -> dict[str, int]:
        return {BACKGROUND: 0, **self._structures}

    def prepare(self, volume: Volume) -> PreparedImage:
        """Orient, scale into the ROI and normalise."""
        prepared = self._prepare(volume, limit=self._roi_size)
        seen = dataclasses.replace(volume, array=volume.array[: self._channels])
        return self._editable(prepared, Scan.of(seen))

    def _editable(self, prepared: PreparedImage, scan: Scan) -> PreparedEdit:
        return PreparedEdit(
            grid=prepared.grid,
            image=prepared.image,
            structures=len(self._structures),
            guided=guidance.GuidedImage(prepared.image.cpu().numpy(), self._guidance_channels),
            memo=Memo(),
            scan=scan,
        )

    def margins(self, prepared: PreparedImage) -> Floats:
        """Those without clicks."""
        return self._guided(as_edit(prepared), ((),) * self._guidance_channels, StageClock())

    def predict(self, prepared: PreparedImage, prompts: Prompts, config: Mapping[str, Any]) -> Prediction:
        """Segment, guided by the clicks; drawn finely around them only if `refine` asks for it, since that takes longer
        than the network does.

        Raises:
            BadRequest: for `foreground` clicks when it is not clear which structure they mean.
        """
        first, *better = itertools.islice(
            self.stages(prepared, prompts, config), 2 if parse_flag(config.get(REFINE), REFINE) else 1
        )
        return better[0] if better else first

    def stages(self, prepared: PreparedImage, prompts: Prompts, config: Mapping[str, Any]) -> Iterator[Prediction]:
        """What the network says to the clicks, and then, where the image has more detail, that drawn finely around
        them. Raises BadRequest as `predict` does."""
        prepared = as_edit(prepared)
        clock = StageClock()
        clicks = self._channelled(prompts)
        positions = [prepared.grid.positions(points) for points in clicks]
        added, margins = self._margins(prepared, clicks, clock)
        if prompts.start is not None:
            labels = self._corrected(prepared, prompts.start, clicks, margins, clock)
            yield self._answer(restoration.clear_outside(labels, prompts.roi), clicks, config, clock)
            return
        held = hold(margins, positions, _gray(prepared)) if any(clicks) else margins
        clock.stage("post")
        labels = restoration.restore(held, prepared.grid, roi=prompts.roi)
        clock.stage("invert")
        yield self._answer(labels, clicks, config, clock)
        if click_refinement.is_worthwhile(prepared.grid) and any(clicks):
            clock.resume()
            labels = self._drawn(prepared, clicks, positions, added, margins, clock)
            yield self._answer(restoration.clear_outside(labels, prompts.roi), clicks, config, clock)

    def _drawn(
        self,
        prepared: PreparedEdit,
        clicks: Clicks,
        positions: Sequence[Sequence[Position]],
        added: Floats,
        margins: Floats,
        clock: StageClock,
    ) -> Labels:
        """The labels, drawn finely around the clicks; away from them, those that there are without clicks."""
        automatic, grid, image = self._automatic(prepared, clock), prepared.grid, _gray(prepared)
        *structures, background = positions
        held = hold(added, [*structures, ()], image)
        kept = click_refinement.changed_at_clicks(
            automatic, held, [position for points in structures for position in points]
        )
        left = added = np.where(kept, added, automatic)
        held = np.where(kept, held, automatic)
        if background:
            fewer = np.minimum(held, hold(margins, positions, image))
            kept = click_refinement.changed_at_clicks(held, fewer, background)
            left, held = np.where(kept, np.minimum(added, margins), added), np.where(kept, fewer, held)
        clock.stage("infer")
        labels = restoration.restore(held, grid)
        clock.stage("invert")
        click_refinement.grow_at_clicks(labels, prepared.scan, grid, added, clicks[:-1])
        click_refinement.shrink_at_clicks(labels, prepared.scan, grid, left, clicks)
        clock.stage("infer")
        return labels

    def _corrected(
        self, prepared: PreparedEdit, start: Labels, clicks: Clicks, margins: Floats, clock: StageClock
    ) -> Labels:
        """A mask that exists already, corrected by the clicks."""
        structures = len(clicks) - 1
        labels = np.where(start <= structures, start, 0).astype(np.uint8)
        automatic, locked = self._automatic(prepared, clock), start > structures
        click_refinement.correct_mask(labels, prepared.scan, prepared.grid, automatic, margins, clicks, locked=locked)
        clock.stage("infer")
        return labels

    def _answer(self, labels: Labels, clicks: Clicks, config: Mapping[str, Any], clock: StageClock) -> Prediction:
        if parse_flag(config.get("largest_cc"), "largest_cc"):
            labels = restoration.keep_largest_component(labels)
        for channel, points in enumerate(clicks):
            for i, j, k in points:
                labels[i, j, k] = (channel + 1) % len(clicks)
        clock.stage("post")
        return Prediction(labels=labels, seconds=dict(clock.seconds))

    def _margins(self, prepared: PreparedEdit, clicks: Clicks, clock: StageClock) -> tuple[Floats, Floats]:
        """The network's margins for the clicks on structures alone, and for all, which are never above those."""
        additive: Clicks = (*clicks[:-1], ())
        remembered = prepared.memo.last
        if not any(additive):
            added = self._automatic(prepared, clock)
        elif remembered is not None and remembered[0] == (additive, prepared.hints):
            added = remembered[1]
        else:
            added = self._guided(prepared, additive, clock)
            prepared.memo.last = ((additive, prepared.hints), added)
        return added, np.minimum(added, self._guided(prepared, clicks, clock)) if clicks[-1] else added

    def _automatic(self, prepared: PreparedEdit, clock: StageClock) -> Floats:
        """Those without clicks."""
        if prepared.memo.automatic is None:
            prepared.memo.automatic = self._guided(prepared, ((),) * self._guidance_channels, clock)
        return prepared.memo.automatic

    def _guided(self, prepared: PreparedEdit, clicks: Clicks, clock: StageClock) -> Floats:
        positions = [prepared.grid.positions(points) for points in clicks]
        images = torch.from_numpy(prepared.guided.show(positions))
        clock.stage("pre")
        margins = restoration.log_odds_margins(self._infer(images[None])[0])
        clock.stage("infer")
        return margins

    def _channelled(self, prompts: Prompts) -> Clicks:
        named = {name: tuple(points) for name, points in prompts.clicks.items()}
        loose = named.pop(FOREGROUND, ())
        if loose:
            target = prompts.label if prompts.label in self._structures else None
            if target is None and len(self._structures) == 1:
                target = next(iter(self._structures))
            if target is None:
                names = ", ".join(self._structures)
                raise BadRequest(f"foreground clicks: name their structure in 'label', one of {names}")
            named[target] = (*named.get(target, ()), *loose)
        return tuple(named.get(name, ()) for name in (*self._structures, BACKGROUND))


def _gray(prepared: PreparedEdit) -> Floats:
    """The first channel as the network sees it."""
    image: Floats = prepared.image[0].cpu().numpy()
    return image


def as_edit(prepared: PreparedImage) -> PreparedEdit:
    """What `prepare` made. Raises TypeError for what another kind of task did."""
    if not isinstance(prepared, PreparedEdit):
        raise TypeError("prepare the image with this task")
    return prepared


def hold(margins: Floats, clicks: Sequence[Sequence[Position]], image: Floats) -> Floats:
    """Margins in which each click's label leads by at least `HOLD` around the click.

    Around it are the up to eight voxels that surround it, and those within `REACH` voxels that look like the one it is
    on. Of several structures' clicks the nearest decides; a background click then lowers what it is nearest to.

    Args:
        margins: (L, R, A, S).
        clicks: positions per channel, structures by value, then background.
        image: (R, A, S), normalised.
    """
    held = margins.copy()
    shape = (image.shape[0], image.shape[1], image.shape[2])
    nearest = np.full(shape, np.inf, dtype=np.float32)
    for channel, positions in enumerate(clicks):
        for position in positions:
            box, distance, around = _surroundings(position, image)
            around &= distance < nearest[box]
            if channel < len(margins):
                nearest[box][around] = distance[around]
            for value, margin in enumerate(held):
                # As large as what lies around it, so that interpolation carries the click halfway there.
                lead = max(HOLD, float(np.abs(margins[value][box]).max()))
                if value == channel:
                    margin[box][around] = np.maximum(margins[value][box][around], lead)
                else:
                    margin[box][around] = np.minimum(margin[box][around], -lead)
    return held


def _surroundings(position: Position, image: Floats) -> tuple[tuple[slice, ...], Floats, npt.NDArray[np.bool_]]:
    """A box around a click, its voxels' distances to it, and which of them the click speaks for."""
    shape = (image.shape[0], image.shape[1], image.shape[2])
    box, distance = guidance.distances(position, shape, REACH)
    on = tuple(min(n - 1, max(0, round(at))) for at, n in zip(position, shape, strict=True))
    around = (distance < REACH) & (np.abs(image[box] - image[on]) < ALIKE)
    i, j, k = (np.abs(np.arange(s.start, s.stop) - at) < 1 - 1e-6 for s, at in zip(box, position, strict=True))
    around |= i[:, None, None] & j[None, :, None] & k[None, None, :]
    return box, distance, around
