"""ScribblesTask: one structure of any kind, from strokes on it and around it. No network, nothing trained beforehand.

How foreground looks is learnt online from the marked voxels (`likelihood`), where it can be from their places, and a
graph cut or random walk (`graph_cut`, `random_walk`) draws the border. In four steps:
  1. the slices with strokes are segmented by themselves: there the strokes and the appearance say most;
  2. the likelihood is fitted again, to all of these slices;
  3. their outlines are interpolated to a depth in the structure for the slices between and beyond (`sparse_slices`);
  4. likelihood and depth together are segmented in the volume; what hangs on no stroke is dropped.

A box alone, and one around extreme points, is taken to fit the structure (`boxed`), which takes the place of 1 and 3.

Only a box around the strokes is worked on (`region`), so a stroke costs what its structure is large. Marked voxels
always keep their mark. A task holds nothing of a request; calls may come from any thread.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any

import numpy as np
import numpy.typing as npt
from scipy import ndimage

from rayapp.errors import BadRequest
from rayapp.imaging.volume import Volume
from rayapp.inference.arrays import Bools, Floats, Spacing
from rayapp.inference.energy import box_fit, likelihood, sparse_slices
from rayapp.inference.energy.extreme_points import mark_paths
from rayapp.inference.energy.graph_cut import graph_cut
from rayapp.inference.energy.likelihood import Likelihood, LikelihoodFit
from rayapp.inference.energy.random_walk import random_walk
from rayapp.inference.energy.region import Region
from rayapp.inference.energy.scan import Scan, SlicedRegion, drawing_axis, extent, other_axes
from rayapp.inference.infer_task import Prediction, Prompts, TaskInfo, label_params
from rayapp.inference.prompts.scribble_map import BACKGROUND, FOREGROUND, Marks, build_marks
from rayapp.inference.stage_clock import StageClock

Optimiser = Callable[[Floats, Floats, Marks, Spacing], Bools]
OPTIMISERS: Mapping[str, Optimiser] = {"graph cut": graph_cut, "random walk": random_walk}

MARGIN_MM = 15.0
"""How far the box reaches beyond the marks, at least; it grows where an outline touches its border."""
GROWTHS = 4
"""Times that it may grow."""
ROUNDS = 2
"""Cuts of what a box was drawn around."""
NEARNESS = 4.0
"""Log-odds that a voxel of a slice gains on a foreground stroke and loses on a background one; even in between."""
OUTLINE_MM = 3.0
"""Depth in the outline that is worth a log-odds of 1."""
DEEPEST = 3.0
"""Log-odds that a voxel's place in or out of the outline may give it."""
FAVOUR = 1.0
"""Log-odds for foreground: strokes run where a structure looks purest, and its border voxels lie between the two."""
BESIDE = np.ones((3, 3), dtype=bool)
"""A voxel and those that touch it in its slice."""


class ScribblesTask:
    """Strokes to a mask; `fit` is how appearance is learnt."""

    def __init__(self, *, fit: LikelihoodFit, description: str) -> None:
        self._fit = fit
        self._description = description

    @property
    def info(self) -> TaskInfo:
        """What `/info/` shows. No labels of its own: the mask is of whatever was scribbled on."""
        config = {"optimiser": list(OPTIMISERS)}
        return TaskInfo(type="scribbles", labels={}, dimension=3, description=self._description, config=config)

    @property
    def version(self) -> str:
        """Without weights there is none."""
        return ""

    def needs_network(self, prepared: Scan) -> bool:  # noqa: ARG002
        """There is none."""
        return False

    def load(self) -> None:
        """Import what takes long, so that no request waits for it."""
        import_libraries()

    def prepare(self, volume: Volume) -> Scan:
        """Find the range of intensities."""
        return Scan.of(volume)

    def predict(self, prepared: Scan, prompts: Prompts, config: Mapping[str, Any]) -> Prediction:
        """The scribbled structure as label 1.

        Raises:
            BadRequest: without any foreground, or for an optimiser that is not there.
        """
        clock, optimise = StageClock(), optimiser_of(config)
        marks = build_marks(prepared.shape, prompts, require_foreground=False)
        for points in prompts.extremes.values():
            mark_paths(marks, prepared, points)
        part = _boxed(marks, prepared, prompts)
        marks = build_marks(prepared.shape, replace(prompts, marks=marks))
        clock.stage("pre")
        work = SlicedRegion.of(prepared, marks, *_first_region(prepared, marks, prompts))
        if part is None:
            work, mask = self._stroked(work, prepared, marks, optimise, grow=prompts.roi is None)
        else:
            mask = self._fitted(work, part, optimise)
        clock.stage("infer")
        labels = painted(work.to_region_axes(mask), work.region, marks)
        clock.stage("invert")
        return answer(labels, prompts, clock)

    def _stroked(
        self, work: SlicedRegion, scan: Scan, marks: Marks, optimise: Optimiser, *, grow: bool
    ) -> tuple[SlicedRegion, Bools]:
        """The structure from strokes, and the region, which may have grown with it."""
        outlines, model = self._outlines(work, optimise)
        for _ in range(GROWTHS if grow else 0):
            wider = _wider(work, outlines, scan)
            if wider is None:
                break
            work = SlicedRegion.of(scan, marks, wider, work.axis)
            outlines, model = self._outlines(work, optimise)
        return work, _volume(work, outlines, self._refitted(work, outlines) or model, optimise)

    def _fitted(self, work: SlicedRegion, part: Marks, optimise: Optimiser) -> Bools:
        """The structure in the region, from what its box seems to be drawn around: cut by what that looks like, and
        again by what the cut looks like (GrabCut, Rother et al., 2004)."""
        mask: Bools = np.moveaxis(work.region.marks(part), work.axis, -1) == FOREGROUND
        for _ in range(ROUNDS):
            outlines = {int(k): mask[..., k] for k in np.flatnonzero(mask.any(axis=(0, 1)))}
            model = self._refitted(work, outlines)
            if model is None:
                break
            mask = _volume(work, outlines, model, optimise)
        return mask

    def _outlines(self, work: SlicedRegion, optimise: Optimiser) -> tuple[dict[int, Bools], Likelihood]:
        """The structure on each stroked slice, by the strokes and by the appearance that they show."""
        known = work.marks if (work.marks == BACKGROUND).any() else _framed(work.marks)
        shown = _thickened(known)
        model = self._fit(*likelihood.subsample(work.features[shown > 0], shown[shown > 0] == FOREGROUND))
        anywhere = (known == BACKGROUND).any(axis=-1)
        outlines = {}
        for k in work.drawn_slices():
            marks = known[..., k]
            on, off = marks == FOREGROUND, marks == BACKGROUND
            to_on = ndimage.distance_transform_edt(~on, sampling=work.spacing[:2])
            to_off = ndimage.distance_transform_edt(~(off if off.any() else anywhere & ~on), sampling=work.spacing[:2])
            nearness = NEARNESS * (to_off - to_on) / np.maximum(to_off + to_on, 1e-3)
            looks = model(work.features[..., k, :].reshape(on.size, -1)).reshape(on.shape)
            logits = (looks + nearness + FAVOUR).astype(np.float32)
            mask = optimise(logits, work.image[..., k], marks, work.spacing[:2])
            outlines[k] = ndimage.binary_fill_holes(_hanging(mask, on)) & ~off
        return outlines, model

    def _refitted(self, work: SlicedRegion, outlines: Mapping[int, Bools]) -> Likelihood | None:
        """The appearance of the stroked slices, now that they are segmented; None where nothing else is on them."""
        at = sorted(outlines)
        inside = np.stack([outlines[k] for k in at], axis=-1)
        if inside.all():
            return None
        values = work.features[:, :, at]
        return self._fit(*likelihood.subsample(values.reshape(inside.size, -1), inside.ravel()))


def import_libraries() -> None:
    """They take a second or two; each is imported where it is used, so that nothing else waits for it."""
    for name in ("maxflow", "skimage.segmentation", "sklearn.ensemble", "sklearn.mixture"):
        importlib.import_module(name)


def optimiser_of(config: Mapping[str, Any]) -> Optimiser:
    """The one that a request asks for, by default the graph cut. Raises BadRequest naming what there is."""
    name = config.get("optimiser") or next(iter(OPTIMISERS))
    name = name[0] if isinstance(name, list) else name
    if not isinstance(name, str) or name not in OPTIMISERS:
        raise BadRequest(f"optimiser must be one of {', '.join(OPTIMISERS)}, not {str(name)[:60]!r}")
    return OPTIMISERS[name]


def painted(mask: Bools, region: Region, marks: Marks) -> npt.NDArray[np.uint8]:
    """Labels on the image's grid: the mask, and over it the marks."""
    labels = np.zeros(marks.shape, dtype=np.uint8, order="F")
    region.restore(mask, labels)
    part, drawn = labels[region.box], marks[region.box]
    part[drawn == FOREGROUND] = 1
    part[drawn == BACKGROUND] = 0
    return labels


def answer(labels: npt.NDArray[np.uint8], prompts: Prompts, clock: StageClock) -> Prediction:
    """The prediction, named as the segment that the annotator works on."""
    return Prediction(labels=labels, params=label_params(prompts), seconds=clock.seconds)


def _boxed(marks: Marks, scan: Scan, prompts: Prompts) -> Marks | None:
    """What a box alone, or extreme points, seem to be drawn around; its inner voxels are marked. None if strokes say
    more, or nothing fits."""
    if prompts.roi is None or ((marks == FOREGROUND).any() and not prompts.extremes):
        return None
    part, inner = box_fit.fit_box(scan, prompts.roi)
    if not part.any():
        return None
    marks[inner & (marks == 0)] = FOREGROUND
    return part * np.uint8(FOREGROUND)


def _first_region(scan: Scan, marks: Marks, prompts: Prompts) -> tuple[Region, int]:
    """The box around the marks, or around the annotator's own, and the axis across which was drawn."""
    axis = drawing_axis(marks, scan.spacing)
    margin = np.full(3, MARGIN_MM)
    if prompts.roi is not None:
        low, high = np.array(prompts.roi)
    else:
        low, high = np.array(extent(marks))
        planes = np.flatnonzero((marks == FOREGROUND).any(axis=tuple(other_axes(axis))))
        gap = int(np.diff(planes).max()) if len(planes) > 1 else 0
        wide = ((high - low) * scan.spacing)[other_axes(axis)].max()
        margin[axis] = max(MARGIN_MM, 1.5 * gap * scan.spacing[axis] if gap > 1 else wide * 0.75)
    grown = np.ceil(margin / scan.spacing)
    return Region.around(low - grown, high + grown, scan.shape, scan.spacing), axis


def _wider(work: SlicedRegion, outlines: Mapping[int, Bools], scan: Scan) -> Region | None:
    """A wider region if an outline touches a side that is not the image's, else None."""
    low, high = np.array(work.region.lower), np.array(work.region.upper)
    more = np.zeros((2, 3), dtype=int)
    for along, axis in enumerate(other_axes(work.axis)):
        sides = [any(np.take(mask, end, axis=along).any() for mask in outlines.values()) for end in (0, -1)]
        grown = int(np.ceil(max(MARGIN_MM / scan.spacing[axis], 0.5 * (high - low)[axis])))
        more[0, axis] = grown if sides[0] and low[axis] > 0 else 0
        more[1, axis] = grown if sides[1] and high[axis] < scan.shape[axis] else 0
    return Region.around(low - more[0], high + more[1], scan.shape, scan.spacing) if more.any() else None


def _volume(work: SlicedRegion, outlines: Mapping[int, Bools], model: Likelihood, optimise: Optimiser) -> Bools:
    """The structure in the whole region: appearance and depth in the interpolated outlines, marks as they are."""
    depth = sparse_slices.interpolated_depth(outlines, work.marks.shape[2], work.spacing)
    place = np.clip(depth / np.float32(OUTLINE_MM), -DEEPEST, DEEPEST)
    possible = (place > -DEEPEST) | (work.marks == FOREGROUND)
    low, high = extent(possible)
    box = tuple(slice(max(0, a - 1), b + 1) for a, b in zip(low, high, strict=True))
    possible = possible[box]
    logits = np.full(possible.shape, -np.inf, dtype=np.float32)
    logits[possible] = model(work.features[box][possible]) + place[box][possible] + FAVOUR
    mask = np.zeros(work.marks.shape, dtype=bool)
    seeds = work.marks[box]
    found = optimise(logits, work.image[(slice(None), *box)], seeds, work.spacing)
    mask[box] = _hanging(found, seeds == FOREGROUND)
    return mask


def _hanging(mask: Bools, seeds: Bools) -> Bools:
    """The connected parts of a mask that hold a seed."""
    parts, count = ndimage.label(mask)
    kept = np.zeros(count + 1, dtype=bool)
    kept[parts[seeds]] = True
    kept[0] = False
    return np.asarray(kept[parts], dtype=np.bool_)


def _thickened(marks: Marks) -> Marks:
    """Marks with the voxels beside them in their slices, where they agree: thin strokes have little to learn from."""
    thick = np.zeros_like(marks)
    for k in np.flatnonzero(marks.any(axis=(0, 1))):
        near = [ndimage.binary_dilation(marks[..., k] == mark, BESIDE) for mark in (BACKGROUND, FOREGROUND)]
        thick[..., k] = np.where(near[0] & near[1], 0, near[0] * BACKGROUND + near[1] * FOREGROUND)
    return np.where(marks > 0, marks, thick).astype(np.uint8)


def _framed(marks: Marks) -> Marks:
    """Marks whose box's border, in the slices, counts as background: for strokes on the structure alone."""
    framed = marks.copy()
    for side in (framed[0], framed[-1], framed[:, 0], framed[:, -1]):
        side[side == 0] = BACKGROUND
    return framed
