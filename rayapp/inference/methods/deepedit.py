"""DeepEditTask: segmentation of all structures, corrected by clicks on any of them (Diaz-Pinto et al., DeepEdit, 2022).

The network's input is the image, one guidance channel per structure and one for background; without clicks it segments
automatically. The whole image is resampled to a fixed number of voxels, so that a click costs the same in any image.

A network follows clicks in most cases only. Three rules on the log-odds enforce them always:

- a clicked voxel has the clicked label, and so has similar tissue within one or two network voxels of it;
- where clicks on structures are closer to each other than that, the nearest click decides;
- background clicks only remove: a structure never extends beyond what it is without them.
"""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from rayapp.errors import BadRequest
from rayapp.imaging.volume import Volume
from rayapp.inference.arrays import Bools, Floats, Labels
from rayapp.inference.energy import click_refinement
from rayapp.inference.energy.scan import Scan
from rayapp.inference.infer_task import Point, Prediction, Prompts, TaskInfo
from rayapp.inference.methods.segmentation import PreparedImage, SegmentationTask
from rayapp.inference.network import restoration
from rayapp.inference.prompts import guidance
from rayapp.inference.prompts.guidance import GuidedImage, Position
from rayapp.inference.prompts.parse import BACKGROUND, FOREGROUND
from rayapp.inference.prompts.to_clicks import clear_outside
from rayapp.inference.stage_clock import StageClock
from rayapp.protocol import parse_flag

CLICK_MARGIN = 4.0
"""Least lead in log-odds of a click's label on the network voxels around it."""
CLICK_RADIUS = 1.5
"""Distance in network voxels over which a click is enforced in similar tissue."""
SIMILAR = 0.12
"""Largest difference in normalised intensity (the body spans 2) of similar tissue."""

REFINE = "refine"
"""Request option: wait for the refined answer."""

Clicks = tuple[tuple[Point, ...], ...]
"""Clicked voxels for each guidance channel: structures in order of label values, then background."""


@dataclass(frozen=True, kw_only=True)
class PreparedEdit(PreparedImage):
    """A prepared image that can be edited by clicks.

    Attributes:
        structures: Number of structures.
        guided: The network's input, with guidance channels.
        cache: Log-odds of earlier forward passes on this image.
        scan: The source image, for refinement at full resolution.
        hints: Voxels that may belong to the structure of a single-structure model; see
            `rayapp.inference.methods.deepgrow`.
    """

    structures: int
    guided: GuidedImage
    cache: LogOddsCache
    scan: Scan
    hints: tuple[Point, ...] = ()

    @property
    def nbytes(self) -> int:
        """Memory of the images, and of the log-odds that will be cached, in bytes."""
        log_odds = 2 * self.image[0].nbytes * self.structures
        return self.image.nbytes + self.guided.nbytes + log_odds + self.scan.nbytes


@dataclass
class LogOddsCache:
    """Cached log-odds of one image. Attributes are replaced, never modified, so reads are thread-safe.

    Attributes:
        last: The last clicks on structures (without background clicks) and hints, and the log-odds that they gave.
        automatic: Log-odds without clicks.
    """

    last: tuple[tuple[Clicks, tuple[Point, ...]], Floats] | None = None
    automatic: Floats | None = None


class DeepEditTask(SegmentationTask):
    """Interactive segmentation by clicks. Arguments as for `SegmentationTask`; images are resampled into `roi_size`."""

    type = "deepedit"

    @property
    def _guidance_channels(self) -> int:
        return len(self._structures) + 1

    @property
    def info(self) -> TaskInfo:
        """The model's entry in `/info/`."""
        info = super().info
        return dataclasses.replace(info, config={**info.config, REFINE: False})

    @property
    def _labels(self) -> dict[str, int]:
        return {BACKGROUND: 0, **self._structures}

    def prepare(self, volume: Volume) -> PreparedImage:
        """Reorient, resample into `roi_size` and normalise an image.

        Raises:
            BadRequest: If the image has fewer channels than the network needs.
        """
        prepared = self._prepare(volume, limit=self._roi_size)
        used = dataclasses.replace(volume, array=volume.array[: self._channels])
        return self._editable(prepared, Scan.of(used))

    def _editable(self, prepared: PreparedImage, scan: Scan) -> PreparedEdit:
        return PreparedEdit(
            grid=prepared.grid,
            image=prepared.image,
            structures=len(self._structures),
            guided=guidance.GuidedImage(prepared.image.cpu().numpy(), self._guidance_channels),
            cache=LogOddsCache(),
            scan=scan,
        )

    def log_odds(self, prepared: PreparedImage) -> Floats:
        """Log-odds over background without clicks, (L, *grid.padded)."""
        return self._guided_log_odds(as_edit(prepared), ((),) * self._guidance_channels, StageClock())

    def predict(self, prepared: PreparedImage, prompts: Prompts, config: Mapping[str, Any]) -> Prediction:
        """Segment an image, guided by clicks.

        The answer is refined at full resolution only if the option `refine` is set, since that takes longer than the
        network.

        Raises:
            BadRequest: For `foreground` clicks of which the structure is ambiguous.
        """
        stages = 2 if parse_flag(config.get(REFINE), REFINE) else 1
        *_, last = itertools.islice(self.stages(prepared, prompts, config), stages)
        return last

    def stages(self, prepared: PreparedImage, prompts: Prompts, config: Mapping[str, Any]) -> Iterator[Prediction]:
        """Yield the network's answer and, if the image has more detail, the answer refined around the clicks.

        Raises:
            BadRequest: As `predict`.
        """
        prepared = as_edit(prepared)
        clock = StageClock()
        clicks = self._clicks_by_channel(prompts)
        positions = [prepared.grid.positions(points) for points in clicks]
        additive, log_odds = self._log_odds(prepared, clicks, clock)
        if prompts.start is not None:
            labels = self._corrected(prepared, prompts.start, clicks, log_odds, clock)
            yield self._prediction(labels, clicks, prompts, config, clock)
            return
        enforced = enforce_clicks(log_odds, positions, _first_channel(prepared)) if any(clicks) else log_odds
        clock.stage("post")
        labels = restoration.restore(enforced, prepared.grid, roi=prompts.roi)
        if clicks[-1] and prepared.structures > 1:
            without = enforce_clicks(additive, [*positions[:-1], ()], _first_channel(prepared))
            labels[labels != restoration.restore(without, prepared.grid, roi=prompts.roi)] = 0
        clock.stage("invert")
        yield self._prediction(labels, clicks, prompts, config, clock)
        if click_refinement.is_worthwhile(prepared.grid) and any(clicks):
            clock.resume()
            labels = self._refined(prepared, clicks, positions, additive, log_odds, clock)
            yield self._prediction(labels, clicks, prompts, config, clock)

    def _refined(
        self,
        prepared: PreparedEdit,
        clicks: Clicks,
        positions: Sequence[Sequence[Position]],
        additive: Floats,
        log_odds: Floats,
        clock: StageClock,
    ) -> Labels:
        """The answer refined around the clicks; away from them it is the automatic segmentation.

        Args:
            prepared: The prepared image.
            clicks: Clicks in source voxels.
            positions: The same clicks on the network grid.
            additive: Log-odds for the clicks on structures alone.
            log_odds: Log-odds for all clicks.
            clock: Stage times, which are added to.
        """
        automatic, grid, image = self._automatic(prepared, clock), prepared.grid, _first_channel(prepared)
        *structures, background = positions
        enforced = enforce_clicks(additive, [*structures, ()], image)
        on_structures = [position for points in structures for position in points]
        changed = click_refinement.changed_at_clicks(automatic, enforced, on_structures)
        remaining = additive = np.where(changed, additive, automatic)
        enforced = np.where(changed, enforced, automatic)
        clock.stage("infer")
        labels = restoration.restore(enforced, grid)
        if background:
            reduced = _only_reduced(enforced, enforce_clicks(log_odds, positions, image))
            changed = click_refinement.changed_at_clicks(enforced, reduced, background)
            remaining = np.where(changed, _only_reduced(additive, log_odds), additive)
            labels[labels != restoration.restore(np.where(changed, reduced, enforced), grid)] = 0
        clock.stage("invert")
        click_refinement.grow_at_clicks(labels, prepared.scan, grid, additive, clicks[:-1])
        click_refinement.shrink_at_clicks(labels, prepared.scan, grid, remaining, clicks)
        clock.stage("infer")
        return labels

    def _corrected(
        self, prepared: PreparedEdit, start: Labels, clicks: Clicks, log_odds: Floats, clock: StageClock
    ) -> Labels:
        """An existing mask (I, J, K), corrected by clicks."""
        structures = len(clicks) - 1
        labels = np.where(start <= structures, start, 0).astype(np.uint8)
        automatic, locked = self._automatic(prepared, clock), start > structures
        click_refinement.correct_mask(labels, prepared.scan, prepared.grid, automatic, log_odds, clicks, locked=locked)
        clock.stage("infer")
        return labels

    def _prediction(
        self, labels: Labels, clicks: Clicks, prompts: Prompts, config: Mapping[str, Any], clock: StageClock
    ) -> Prediction:
        """The answer on which clicks hold, and outside the box nothing.

        Args:
            labels: Label map (I, J, K); modified.
            clicks: Clicks in source voxels.
            prompts: All prompts.
            config: The request's options.
            clock: Stage times.
        """
        for channel, points in enumerate(clicks):
            for i, j, k in points:
                labels[i, j, k] = (channel + 1) % len(clicks)
        clear_outside(labels, prompts.roi)
        if parse_flag(config.get("largest_cc"), "largest_cc"):
            labels = restoration.keep_largest_component(labels, [point for points in clicks[:-1] for point in points])
        clock.stage("post")
        return Prediction(labels=labels, seconds=dict(clock.seconds))

    def _log_odds(self, prepared: PreparedEdit, clicks: Clicks, clock: StageClock) -> tuple[Floats, Floats]:
        """Log-odds for the clicks on structures alone, and for all clicks; the latter never exceed the former."""
        on_structures: Clicks = (*clicks[:-1], ())
        cached = prepared.cache.last
        if not any(on_structures):
            additive = self._automatic(prepared, clock)
        elif cached is not None and cached[0] == (on_structures, prepared.hints):
            additive = cached[1]
        else:
            additive = self._guided_log_odds(prepared, on_structures, clock)
            prepared.cache.last = ((on_structures, prepared.hints), additive)
        if not clicks[-1]:
            return additive, additive
        return additive, _only_reduced(additive, self._guided_log_odds(prepared, clicks, clock))

    def _automatic(self, prepared: PreparedEdit, clock: StageClock) -> Floats:
        """Log-odds without clicks, cached."""
        if prepared.cache.automatic is None:
            empty: Clicks = ((),) * self._guidance_channels
            prepared.cache.automatic = self._guided_log_odds(prepared, empty, clock)
        return prepared.cache.automatic

    def _guided_log_odds(self, prepared: PreparedEdit, clicks: Clicks, clock: StageClock) -> Floats:
        """Log-odds that one forward pass gives for these clicks."""
        positions = [prepared.grid.positions(points) for points in clicks]
        images = torch.from_numpy(prepared.guided.show(positions))
        clock.stage("pre")
        log_odds = restoration.log_odds(self._infer(images[None])[0])
        clock.stage("infer")
        return log_odds

    def _clicks_by_channel(self, prompts: Prompts) -> Clicks:
        by_name = {name: tuple(points) for name, points in prompts.clicks.items()}
        foreground = by_name.pop(FOREGROUND, ())
        if foreground:
            target = prompts.label if prompts.label in self._structures else None
            if target is None and len(self._structures) == 1:
                target = next(iter(self._structures))
            if target is None:
                names = ", ".join(self._structures)
                raise BadRequest(f"foreground clicks are ambiguous: name their structure in 'label', one of {names}")
            by_name[target] = (*by_name.get(target, ()), *foreground)
        return tuple(by_name.get(name, ()) for name in (*self._structures, BACKGROUND))


def _only_reduced(before: Floats, after: Floats) -> Floats:
    """The lower log-odds (L, …) of two answers, without moving any voxel from one structure to another."""
    reduced = np.minimum(before, after)
    if len(reduced) > 1:
        passed = restoration.labels_of(reduced) != restoration.labels_of(before)
        np.copyto(reduced, np.minimum(reduced, before - before.max(axis=0)), where=passed)
    return reduced


def _first_channel(prepared: PreparedEdit) -> Floats:
    """The first channel of the normalised image, (R, A, S)."""
    image: Floats = prepared.image[0].cpu().numpy()
    return image


def as_edit(prepared: PreparedImage) -> PreparedEdit:
    """Narrow the type of what `DeepEditTask.prepare` returned.

    Raises:
        TypeError: If another kind of task prepared the image.
    """
    if not isinstance(prepared, PreparedEdit):
        raise TypeError("prepare the image with this task")
    return prepared


def enforce_clicks(log_odds: Floats, clicks: Sequence[Sequence[Position]], image: Floats) -> Floats:
    """Raise log-odds so that each click's label wins by at least `CLICK_MARGIN` around the click.

    A click applies to the up to eight voxels that surround it, and to those within `CLICK_RADIUS` whose intensity is
    similar to the clicked one. Among clicks on different structures the nearest decides. A background click lowers all
    log-odds where it is nearer than any click on a structure.

    Args:
        log_odds: Log-odds over background, (L, R, A, S).
        clicks: Positions for each guidance channel, structures in order of label values, then background.
        image: Normalised first channel, (R, A, S).

    Returns:
        New log-odds, (L, R, A, S).
    """
    enforced = log_odds.copy()
    shape = (image.shape[0], image.shape[1], image.shape[2])
    nearest = np.full(shape, np.inf, dtype=np.float32)
    for channel, positions in enumerate(clicks):
        for position in positions:
            box, distance, around = _neighbourhood(position, image)
            around &= distance < nearest[box]
            if channel < len(log_odds):
                nearest[box][around] = distance[around]
            for value, field in enumerate(enforced):
                # As large as those around it, so that interpolation carries the click halfway to the next voxel.
                lead = max(CLICK_MARGIN, float(np.abs(log_odds[value][box]).max()))
                if value == channel:
                    field[box][around] = np.maximum(log_odds[value][box][around], lead)
                else:
                    field[box][around] = np.minimum(field[box][around], -lead)
    return enforced


def _neighbourhood(position: Position, image: Floats) -> tuple[tuple[slice, ...], Floats, Bools]:
    """A box around a click, the distances of its voxels to the click, and a mask of those the click applies to."""
    shape = (image.shape[0], image.shape[1], image.shape[2])
    box, distance = guidance.distances(position, shape, CLICK_RADIUS)
    clicked = tuple(min(n - 1, max(0, round(at))) for at, n in zip(position, shape, strict=True))
    around = (distance < CLICK_RADIUS) & (np.abs(image[box] - image[clicked]) < SIMILAR)
    i, j, k = (np.abs(np.arange(s.start, s.stop) - at) < 1 - 1e-6 for s, at in zip(box, position, strict=True))
    around |= i[:, None, None] & j[None, :, None] & k[None, None, :]
    return box, distance, around
