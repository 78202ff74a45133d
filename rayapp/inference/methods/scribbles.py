"""ScribblesTask: segmentation of any structure from strokes on it and around it, without a network or training.

The appearance of foreground is learnt online from the marked voxels (`rayapp.inference.energy.likelihood`), and a graph
cut or random walk draws the border. Four steps:

1. The slices with strokes are segmented by themselves: there the strokes and the appearance are most informative.
2. The appearance model is fitted again, to all of these slices.
3. Their outlines are interpolated to a depth inside the structure, for the slices between and beyond
   (`rayapp.inference.energy.sparse_slices`).
4. Appearance and depth together are segmented in the volume; components without a stroke are dropped.

A box without strokes, or one around extreme points, is taken to enclose the structure tightly
(`rayapp.inference.energy.box_fit`); the structure found in it takes the place of steps 1 and 3.

Only a region around the strokes is processed (`rayapp.inference.energy.region`), so that cost follows from the
structure's size. Marked voxels always keep their mark. Stateless and thread-safe.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any

import numpy as np
from scipy import ndimage

from rayapp.errors import BadRequest
from rayapp.imaging.sparse_labels import SparseLabels
from rayapp.imaging.volume import Volume
from rayapp.inference.arrays import Bools, Floats, Labels, Spacing
from rayapp.inference.energy import box_fit, likelihood, sparse_slices
from rayapp.inference.energy.extreme_points import with_paths
from rayapp.inference.energy.graph_cut import graph_cut
from rayapp.inference.energy.likelihood import Likelihood, LikelihoodFit
from rayapp.inference.energy.random_walk import random_walk
from rayapp.inference.energy.region import Region
from rayapp.inference.energy.scan import Scan, SlicedRegion, drawing_axis, extent, other_axes
from rayapp.inference.infer_task import Point, Prediction, Prompts, TaskInfo, label_params
from rayapp.inference.network.cancellation import checkpoint
from rayapp.inference.prompts.outlines import enforce_curves
from rayapp.inference.prompts.scribble_map import BACKGROUND, FOREGROUND, Marks, build_marks
from rayapp.inference.prompts.to_clicks import clear_outside
from rayapp.inference.stage_clock import StageClock

Optimiser = Callable[[Floats, Floats, Marks, Spacing], Bools]
"""Segments log-odds along image edges; arguments and result as for `graph_cut`."""
OPTIMISERS: Mapping[str, Optimiser] = {"graph cut": graph_cut, "random walk": random_walk}

MARGIN_MM = 15.0
"""Least distance from the marks to the region's faces; the region grows where an outline touches a face."""
GROWTHS = 4
"""Number of times the region may grow."""
BOX_ITERATIONS = 2
"""Number of cuts of the structure in a box, each with an appearance model of the previous one."""
NEARNESS = 4.0
"""Log-odds that a slice's voxel gains on a foreground stroke and loses on a background one; 0 halfway between."""
OUTLINE_MM = 3.0
"""Depth in mm inside the interpolated outline that is worth log-odds of 1."""
MAX_DEPTH_LOG_ODDS = 3.0
"""Bound on the log-odds from depth."""
FOREGROUND_BIAS = 1.0
"""Log-odds added for foreground: strokes run where a structure is purest, so its border voxels look less like them."""
NEIGHBOURS = np.ones((3, 3), dtype=bool)
"""A voxel and its eight neighbours in the slice."""


class ScribblesTask:
    """Segmentation from strokes.

    Args:
        fit: Fits the appearance model, e.g. `likelihood.forest`.
        description: One sentence for the annotator.
    """

    def __init__(self, *, fit: LikelihoodFit, description: str) -> None:
        self._fit = fit
        self._description = description

    @property
    def info(self) -> TaskInfo:
        """The method's entry in `/info/`; it has no labels, since it segments whatever structure the strokes are on."""
        config = {"optimiser": list(OPTIMISERS)}
        return TaskInfo(type="scribbles", labels={}, dimension=3, description=self._description, config=config)

    @property
    def version(self) -> str:
        """Empty, since there are no weights."""
        return ""

    def needs_network(self, prepared: Scan) -> bool:  # noqa: ARG002
        """False: there is no network."""
        return False

    def load(self) -> None:
        """Import slow libraries, so that no request waits for them."""
        import_libraries()

    def prepare(self, volume: Volume) -> Scan:
        """Estimate the image's intensity range."""
        return Scan.of(volume)

    def predict(self, prepared: Scan, prompts: Prompts, config: Mapping[str, Any]) -> Prediction:
        """Segment the marked structure as label 1.

        Raises:
            BadRequest: Without any foreground, or for an unknown optimiser.
        """
        clock, optimise = StageClock(), optimiser_of(config)
        marks = build_marks(prepared.shape, prompts, require_foreground=False)
        for points in prompts.extremes.values():
            marks = with_paths(marks, prepared, points)
        in_box = _mark_structure_in_box(marks, prepared, prompts)
        marks = build_marks(prepared.shape, replace(prompts, marks=marks))
        clock.stage("pre")
        sliced = SlicedRegion.of(prepared, marks, *_first_region(prepared, marks, prompts))
        if in_box is None:
            sliced, mask = self._segment_strokes(sliced, prepared, marks, optimise, grow=prompts.roi is None)
        else:
            mask = self._segment_box(sliced, in_box, optimise)
        clock.stage("infer")
        labels = restored_labels(sliced.to_region_axes(mask), sliced.region, marks, prompts)
        clock.stage("invert")
        return Prediction(labels=labels, params={**label_params(prompts), **prepared.remarks}, seconds=clock.seconds)

    def _segment_strokes(
        self, sliced: SlicedRegion, scan: Scan, marks: SparseLabels, optimise: Optimiser, *, grow: bool
    ) -> tuple[SlicedRegion, Bools]:
        """Segment from strokes, in a region that may grow; returns the final region and the mask."""
        outlines, model = self._segment_slices(sliced, optimise)
        for _ in range(GROWTHS if grow else 0):
            wider = _widened(sliced, outlines, scan)
            if wider is None:
                break
            sliced = SlicedRegion.of(scan, marks, wider, sliced.axis)
            outlines, model = self._segment_slices(sliced, optimise)
        return sliced, _segment_volume(sliced, outlines, self._refit(sliced, outlines) or model, optimise)

    def _segment_box(self, sliced: SlicedRegion, structure: SparseLabels, optimise: Optimiser) -> Bools:
        """Segment from the structure found in a box: cut by its appearance, then by the appearance of the cut.

        The iteration is that of GrabCut (Rother et al., 2004).
        """
        mask: Bools = np.moveaxis(sliced.region.marks(structure), sliced.axis, -1) == FOREGROUND
        for _ in range(BOX_ITERATIONS):
            outlines = {int(k): mask[..., k] for k in np.flatnonzero(mask.any(axis=(0, 1)))}
            checkpoint()
            model = self._refit(sliced, outlines)
            if model is None:
                break
            mask = _segment_volume(sliced, outlines, model, optimise)
        return mask

    def _segment_slices(self, sliced: SlicedRegion, optimise: Optimiser) -> tuple[dict[int, Bools], Likelihood]:
        """Segment each stroked slice by itself; returns the masks by slice, and the appearance model of the strokes."""
        marks = sliced.marks if (sliced.marks == BACKGROUND).any() else _with_background_frame(sliced.marks)
        samples = _thickened(marks)
        model = self._fit(*likelihood.subsample(sliced.features[samples > 0], samples[samples > 0] == FOREGROUND))
        background_anywhere = (marks == BACKGROUND).any(axis=-1)
        outlines = {}
        for k in sliced.drawn_slices():
            checkpoint()
            in_slice = marks[..., k]
            on, off = in_slice == FOREGROUND, in_slice == BACKGROUND
            background = off if off.any() else background_anywhere & ~on
            to_foreground = ndimage.distance_transform_edt(~on, sampling=sliced.spacing[:2])
            to_background = ndimage.distance_transform_edt(~background, sampling=sliced.spacing[:2])
            nearness = NEARNESS * (to_background - to_foreground) / np.maximum(to_background + to_foreground, 1e-3)
            appearance = model(sliced.features[..., k, :].reshape(on.size, -1)).reshape(on.shape)
            logits = (appearance + nearness + FOREGROUND_BIAS).astype(np.float32)
            mask = optimise(logits, sliced.image[..., k], in_slice, sliced.spacing[:2])
            outlines[k] = _connected_to(mask, on) & ~off
        return outlines, model

    def _refit(self, sliced: SlicedRegion, outlines: Mapping[int, Bools]) -> Likelihood | None:
        """An appearance model of the segmented slices; None if they contain nothing but the structure."""
        indices = sorted(outlines)
        inside = np.stack([outlines[k] for k in indices], axis=-1)
        if inside.all():
            return None
        values = sliced.features[:, :, indices]
        return self._fit(*likelihood.subsample(values.reshape(inside.size, -1), inside.ravel()))


def import_libraries() -> None:
    """Import libraries that take a second or two; modules import them where they use them, to start quickly."""
    for name in ("maxflow", "skimage.segmentation", "sklearn.ensemble", "sklearn.mixture"):
        importlib.import_module(name)


def optimiser_of(config: Mapping[str, Any]) -> Optimiser:
    """The optimiser that a request's options name; the graph cut by default.

    Raises:
        BadRequest: For an unknown name; lists the known ones.
    """
    name = config.get("optimiser") or next(iter(OPTIMISERS))
    name = name[0] if isinstance(name, list) else name
    if not isinstance(name, str) or name not in OPTIMISERS:
        raise BadRequest(f"optimiser must be one of {', '.join(OPTIMISERS)}, not {str(name)[:60]!r}")
    return OPTIMISERS[name]


def restored_labels(mask: Bools, region: Region, marks: SparseLabels, prompts: Prompts) -> Labels:
    """A label map on the source grid, in which slices with curves are as drawn and marked voxels keep their mark.

    Args:
        mask: Mask of the region's blocks.
        region: The region.
        marks: Scribble map of the source.
        prompts: The annotator's prompts.
    """
    labels = np.zeros(marks.shape, dtype=np.uint8, order="F")
    region.restore(mask, labels)
    enforce_curves(labels, prompts.curves, 1)
    marks.paint(labels, FOREGROUND, 1)
    marks.paint(labels, BACKGROUND, 0)
    if prompts.roi is not None:
        # Without curves nothing is labelled outside the region.
        whole = Region(lower=(0, 0, 0), upper=marks.shape, steps=(1, 1, 1)) if prompts.curves else region
        low, high = (tuple(np.subtract(corner, whole.lower).tolist()) for corner in prompts.roi)
        clear_outside(labels[whole.box], (low, high))
    return labels


def region_of_box(roi: tuple[Point, Point], scan: Scan) -> Region:
    """The region of a box with a margin around it; a box on one slice is segmented on that slice alone.

    Neighbouring slices of a single slice are background because of the box, not because the structure ends there.
    """
    low, high = np.array(roi)
    margin = np.where(high - low > 1, np.ceil(MARGIN_MM / scan.spacing), 0)
    return Region.around(low - margin, high + margin, scan.shape, scan.spacing)


def _mark_structure_in_box(marks: SparseLabels, scan: Scan, prompts: Prompts) -> SparseLabels | None:
    """Find the structure that a box without strokes, or with extreme points, was drawn around.

    Args:
        marks: Scribble map; the structure's core is marked in it.
        scan: The image.
        prompts: The request's prompts.

    Returns:
        The structure as a scribble map; None if there is no box, if strokes tell more, or if nothing fits the box.
    """
    if prompts.roi is None or (marks.any(FOREGROUND) and not prompts.extremes):
        return None
    structure, core = box_fit.fit_box(scan, prompts.roi)
    if not structure.any():
        return None
    within, core = marks.overlap(prompts.roi[0], core)
    within[core & (within == 0)] = FOREGROUND
    found = np.where(structure, np.uint8(FOREGROUND), np.uint8(0))
    return SparseLabels(shape=scan.shape, lower=prompts.roi[0], part=found)


def _first_region(scan: Scan, marks: SparseLabels, prompts: Prompts) -> tuple[Region, int]:
    """The region around the annotator's box, or else around the marks; and the axis across the drawn slices."""
    axis = drawing_axis(marks, scan.spacing)
    if prompts.roi is not None:
        return region_of_box(prompts.roi, scan), axis
    margin = np.full(3, MARGIN_MM)
    low, high = np.array(extent(marks.part)) + marks.lower
    planes = np.flatnonzero((marks.part == FOREGROUND).any(axis=tuple(other_axes(axis))))
    gap = int(np.diff(planes).max()) if len(planes) > 1 else 0
    width = ((high - low) * scan.spacing)[other_axes(axis)].max()
    margin[axis] = max(MARGIN_MM, 1.5 * gap * scan.spacing[axis] if gap > 1 else width * 0.75)
    margin_voxels = np.ceil(margin / scan.spacing)
    return Region.around(low - margin_voxels, high + margin_voxels, scan.shape, scan.spacing), axis


def _widened(sliced: SlicedRegion, outlines: Mapping[int, Bools], scan: Scan) -> Region | None:
    """A wider region if an outline touches a face of the region inside the image, else None."""
    low, high = np.array(sliced.region.lower), np.array(sliced.region.upper)
    growth = np.zeros((2, 3), dtype=int)
    for along, axis in enumerate(other_axes(sliced.axis)):
        touched = [any(np.take(mask, end, axis=along).any() for mask in outlines.values()) for end in (0, -1)]
        voxels = int(np.ceil(max(MARGIN_MM / scan.spacing[axis], 0.5 * (high - low)[axis])))
        growth[0, axis] = voxels if touched[0] and low[axis] > 0 else 0
        growth[1, axis] = voxels if touched[1] and high[axis] < scan.shape[axis] else 0
    return Region.around(low - growth[0], high + growth[1], scan.shape, scan.spacing) if growth.any() else None


def _segment_volume(
    sliced: SlicedRegion, outlines: Mapping[int, Bools], model: Likelihood, optimise: Optimiser
) -> Bools:
    """Segment the whole region by appearance and by depth inside the interpolated outlines; marks are kept."""
    checkpoint()
    depth = sparse_slices.interpolated_depth(outlines, sliced.marks.shape[2], sliced.spacing)
    depth_log_odds = np.clip(depth / np.float32(OUTLINE_MM), -MAX_DEPTH_LOG_ODDS, MAX_DEPTH_LOG_ODDS)
    possible = (depth_log_odds > -MAX_DEPTH_LOG_ODDS) | (sliced.marks == FOREGROUND)
    low, high = extent(possible)
    box = tuple(slice(max(0, a - 1), b + 1) for a, b in zip(low, high, strict=True))
    possible = possible[box]
    logits = np.full(possible.shape, -np.inf, dtype=np.float32)
    logits[possible] = model(sliced.features[box][possible]) + depth_log_odds[box][possible] + FOREGROUND_BIAS
    mask = np.zeros(sliced.marks.shape, dtype=bool)
    marks = sliced.marks[box]
    segmented = optimise(logits, sliced.image[(slice(None), *box)], marks, sliced.spacing)
    mask[box] = _connected_to(segmented, marks == FOREGROUND)
    return mask


def _connected_to(mask: Bools, seeds: Bools) -> Bools:
    """The connected components of a mask that contain a seed."""
    components, count = ndimage.label(mask)
    kept = np.zeros(count + 1, dtype=bool)
    kept[components[seeds]] = True
    kept[0] = False
    return np.asarray(kept[components], dtype=np.bool_)


def _thickened(marks: Marks) -> Marks:
    """Marks dilated by one voxel within their slices, except where foreground and background would overlap.

    Thin strokes alone are few samples for the appearance model.
    """
    thick = np.zeros_like(marks)
    for k in np.flatnonzero(marks.any(axis=(0, 1))):
        near = [ndimage.binary_dilation(marks[..., k] == mark, NEIGHBOURS) for mark in (BACKGROUND, FOREGROUND)]
        thick[..., k] = np.where(near[0] & near[1], 0, near[0] * BACKGROUND + near[1] * FOREGROUND)
    return np.where(marks > 0, marks, thick).astype(np.uint8)


def _with_background_frame(marks: Marks) -> Marks:
    """Marks with the region's in-slice border as background, for strokes on the structure alone."""
    framed = marks.copy()
    for side in (framed[0], framed[-1], framed[:, 0], framed[:, -1]):
        side[side == 0] = BACKGROUND
    return framed
