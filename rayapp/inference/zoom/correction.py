"""The changes to an answer that a correction makes likely.

People correct the largest error, near its middle. An error beside the answer that is corrected at a point reaches no
deeper than the point's distance from the answer; an error inside it, no deeper than the point lies inside, and not
much less; and no other error is larger. A new answer that differs from the previous one by much more than that,
anywhere, or that only cuts a hole around an excluded point, is not what the annotator meant.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

from rayapp.inference.zoom.glance import Glance, Mask
from rayapp.inference.zoom.marks import Box, Marks, Positions
from rayapp.inference.zoom.view import Bools, Source, View, between, transfer

EDGE = 40
"""Voxels along the edge of the view in which a new answer is compared with the previous one."""
DEEPER = 1.5
"""Largest likely depth of a difference, relative to the depth of the correction; people do not hit the middle."""
AROUND = 2.0
"""A corrected difference that is too deep is accepted within this distance, relative to the largest likely depth."""
HOLE = 3.0
"""Depth of an excluded point, in voxels of the view, from which an error around it is expected to be as deep: a small
hole around the point does not correct a leak."""
THIN = 1.5
"""Depth of a difference, in voxels of the view, that is accepted everywhere."""

MIDDLE = 0.7
"""Least depth of an excluded point in the middle of an answer, relative to the answer's largest depth."""
SHALLOW = 0.5
"""Depth of what is removed at an excluded point, relative to the point's, below which it is only a hole."""


class Correction:
    """Points and strokes that correct an answer.

    Without an answer, or where a box or a closed curve is drawn, every change is likely.

    Args:
        before: the answer that is corrected.
        told: the prompts added since.
        source: the image.
    """

    def __init__(self, before: Mask | None, told: Marks, source: Source) -> None:
        self._source = source
        self._on, self._off = told.on_structure(), told.off_structure()
        corrects = len(self._on) + len(self._off) > 0 and not told.boxes and not told.lassos
        self._bounds = before.bounds(source.spacing) if corrects and before is not None else None
        self._before = before if self._bounds is not None else None
        self._likely = 0.0 if self._before is None else self._reach(self._before)

    def doubt(self, answer: Glance) -> float:
        """Doubt in an answer, 0 to 1: by how much its deepest difference exceeds the likely depth (1 at twice
        that), or by how much less than the excluded points' depth is removed around all of them."""
        if self._before is None:
            return 0.0
        view = self._view(answer.bounds())
        then = self._seen(self._before, view)
        now = between((answer.logits > 0).astype(np.float32), answer.view, view) > 0.5
        removed = _depths(then & ~now)
        deepest = max(float(_depths(now & ~then).max()), float(removed.max()))
        much = deepest / self._limit(view) - 1
        denied = _voxels(self._off, view)
        within = float(_depths(then)[denied].max(initial=0))
        little = 1 - float(removed[denied].max()) / within if within > HOLE else 0.0
        return float(np.clip(max(much, little), 0, 1))

    def accepted(self, mask: Mask) -> Mask:
        """Apply only the likely changes: of an answer's differences from the previous one, those that are no deeper
        than is likely and no larger than the corrected ones."""
        if self._before is None:
            return mask
        view = self._view(mask.bounds(self._source.spacing))
        then, now = self._seen(self._before, view), self._seen(mask, view)
        rejected = self._rejected(now & ~then, then & ~now, view)
        if not any(part.any() for part in rejected):
            return mask
        region = mask.union(self._before)
        start, spacing = np.array([side.start for side in region]), self._source.spacing
        shape = [side.stop - side.start for side in region]
        before, inside = self._before.within(region), mask.within(region)
        changed = before ^ inside
        for part, value in zip(rejected, (False, True), strict=True):
            grown = ndimage.binary_dilation(part).astype(np.float32)
            inside[changed & (transfer(grown, view, start * spacing, spacing, shape) > 0.5) & (before == value)] = value
        return Mask(region, inside)

    def _rejected(self, added: Bools, removed: Bools, view: View) -> list[Bools]:
        """The parts of both differences, in a view, that are too deep or too large, except around corrections."""
        limit = self._limit(view)
        changes = [_Change(added, self._on, view), _Change(removed, self._off, view)]
        ball = 4 / 3 * np.pi * (limit / DEEPER) ** 3
        largest = max(ball, *(float(change.sizes[change.corrected].max(initial=0)) for change in changes))
        rejected = []
        for change in changes:
            much = (change.depths > limit) | (change.sizes > largest) & ~change.corrected
            rejected.append(np.asarray((much & (change.sizes > 0))[change.parts] & ~change.near(AROUND * limit)))
        return rejected

    def _reach(self, before: Mask) -> float:
        """Largest likely depth of a difference, mm."""
        view = self._view(None)
        inside = self._seen(before, view)
        beside = np.asarray(ndimage.distance_transform_edt(~inside))[_voxels(self._on, view)]
        within = _depths(inside)[_voxels(self._off, view)]
        return DEEPER * view.spacing * max(float(beside.max(initial=0)), float(within.max(initial=0)))

    def _limit(self, view: View) -> float:
        """Largest accepted depth of a difference, in voxels of a view."""
        return max(self._likely / view.spacing, THIN)

    def _view(self, bounds: Box | None) -> View:
        """A view of the previous answer, the corrections, and another answer's bounds."""
        spacing = self._source.spacing
        places = np.concatenate([self._on, self._off])
        low, high = places.min(0), places.max(0)
        for box in (bounds, self._bounds):
            if box is not None:
                low, high = np.minimum(low, box.low), np.maximum(high, box.high)
        size = max(1.05 * float((high - low).max()), float(spacing.min()))
        return View.around((low + high) / 2, size, EDGE, self._source.column)

    def _seen(self, mask: Mask, view: View) -> Bools:
        return np.asarray(mask.sample(view, self._source.spacing) > 0.5)


def refuted(answer: Mask, corrected: Mask, marks: Marks, told: Marks, source: Source) -> bool:
    """True if the answer to a box was another structure, as excluded points in its middle say, and its correction does
    not help: it only cuts a hole around them, or is not the first.

    Args:
        answer: the answer that is corrected.
        corrected: the new answer.
        marks: all prompts so far. If some mark the structure, it is not another one.
        told: the prompts added since the answer.
        source: the image.
    """
    if not marks.boxes or marks.lassos or len(marks.on_structure()) or not len(told.off_structure()):
        return False
    denied = tuple(answer.indices(told.off_structure(), source.spacing).T)
    depths = _depths(answer.inside, source.spacing)
    depth = float(depths[denied].max(initial=0))
    if not depth or depth < MIDDLE * depths.max():
        return False
    region = answer.union(corrected)
    removed = answer.within(region) & ~corrected.within(region)
    start = [its.start - own.start for its, own in zip(answer.region, region, strict=True)]
    shifted = tuple(axis + offset for axis, offset in zip(denied, start, strict=True))
    hole = float(_depths(removed, source.spacing)[shifted].max()) < SHALLOW * depth
    return hole or len(marks.exclude) + len(marks.erasers) > len(told.exclude) + len(told.erasers)


class _Change:
    """Voxels of a view that were added, or removed, by connected components.

    Attributes:
        parts: component of each voxel; 0 where nothing changed.
        sizes: voxels of each component, 0 for component 0.
        depths: depth of each component, in voxels.
        corrected: components that contain a correction of their kind.
    """

    def __init__(self, changed: Bools, places: Positions, view: View) -> None:
        self.parts, count = ndimage.label(changed)
        self.sizes = np.bincount(self.parts.ravel(), minlength=count + 1)
        self.sizes[0] = 0
        self.depths = np.zeros(count + 1)
        if count:
            self.depths[1:] = ndimage.maximum(_depths(changed), self.parts, np.arange(1, count + 1))
        self._voxels = _voxels(places, view)
        self.corrected = np.isin(np.arange(count + 1), self.parts[self._voxels]) & (self.sizes > 0)

    def near(self, distance: float) -> Bools:
        """Voxels of corrected components within a distance, in voxels, of a correction."""
        found = np.asarray(self.corrected[self.parts])
        if found.any():
            elsewhere = np.ones_like(found)
            elsewhere[self._voxels] = False
            found &= ndimage.distance_transform_edt(elsewhere) <= distance
        return found


def _voxels(places: Positions, view: View) -> tuple[NDArray[np.int64], ...]:
    """Indices of the view's voxels at some positions."""
    return tuple(np.clip(np.rint(view.to_voxels(places)).astype(int), 0, view.edge - 1).T)


def _depths(inside: Bools, spacing: NDArray[np.float64] | None = None) -> NDArray[np.float64]:
    """Distance of each voxel of a mask from its border, in voxels or, with a spacing, in mm. The sides are border."""
    return np.asarray(ndimage.distance_transform_edt(np.pad(inside, 1), spacing))[1:-1, 1:-1, 1:-1]
