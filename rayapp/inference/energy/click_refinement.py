"""The fine pass: what a network found on its coarse grid, drawn at the image's own voxels around the clicks.

A network that sees an image whole sees it coarsely: of a CT of 0.8 mm, voxels of 4 or 5. So its answer is drawn again
where the annotator looks, as `refinement` does it for scribbles: the network's log-odds, what the clicks say of the
tissue like theirs around them, and a minimum cut along the edges of the image itself.

    region   a box around the clicks on one structure, grown towards all of that structure that they hang together with,
             as far as `MAX_VOXELS` goes; on its faces the mask is the coarse one, so that nothing is seen of the box
    grown    where the mask wants to leave the box although the network is sure that it ends there: `GROWTHS` times
    confined what clicks change must hang together with a click; elsewhere the image stays as it was without them
    taken    background clicks are answered last, and only take away from what the others gave

A mask that exists already is corrected likewise: what counts is the difference that the clicks make to a cut that
starts from that mask, so that it stays, to the voxel, wherever the clicks have nothing to say.

All of it is a function of the image, the margins and the set of clicks, so that any replica comes to the same mask.
Time and memory follow from the regions, not from the image. Pure functions; safe from any thread.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np
import numpy.typing as npt
from scipy import ndimage

from rayapp.inference.arrays import Floats, Labels, Shape
from rayapp.inference.energy.graph_cut import graph_cut
from rayapp.inference.energy.likelihood import CERTAIN
from rayapp.inference.energy.region import Region
from rayapp.inference.energy.scan import Bools, Scan
from rayapp.inference.infer_task import Point
from rayapp.inference.network.network_grid import NetworkGrid
from rayapp.inference.prompts import guidance
from rayapp.inference.prompts.guidance import Position
from rayapp.inference.prompts.scribble_map import BACKGROUND, FOREGROUND

NEXT_TO = 2.0
"""Voxels of the network's from a click, along each axis, up to which a change hangs together with it."""
COARSER = 1.5
"""How many of the image's voxels one of the network's must be long, along some axis, for a fine pass to be of use."""
MAX_VOXELS = 150_000
"""Voxels of a region, at most."""
GROWTHS = 2
GROW_MM = 8.0
SAY = 2 * CERTAIN
"""Log-odds that a click adds right beside it, where the tissue is the same: enough to turn the network's. Over `reach`
they fade to a third."""
ALIKE = 0.3
"""Difference in normalised intensity (most of the body spans 2) at which it has faded to 0.6."""
SURE = 2.0
"""Log-odds of which the network is sure."""
TRUSTED = 3.0
"""Log-odds that a mask which exists already is right: more than the network's."""

Ends = npt.NDArray[np.float64]
"""Lower and upper (exclusive) corner, (2, 3)."""


def helps(grid: NetworkGrid) -> bool:
    """Whether the image has detail that the network does not see."""
    return any(n > COARSER * m for n, m in zip(grid.source, grid.resampled, strict=True))


def reach(scan: Scan, grid: NetworkGrid) -> float:
    """How far (mm) a click speaks for what is around it, and its region reaches at least if `MAX_VOXELS` lets it: as
    far as the network sees it."""
    return guidance.RADIUS * float(np.median(scan.spacing * grid.source / grid.resampled))


def changed(before: Floats, after: Floats, positions: Sequence[Position]) -> Bools:
    """Where two margins, (L, R, A, S), give different labels and that hangs together with a click; and right beside."""
    near = np.zeros(before.shape[1:], dtype=bool)
    for position in positions:
        box, _ = guidance.distances(position, _shape(near), NEXT_TO)
        near[box] = True
    parts, count = ndimage.label(near | (_winners(before) != _winners(after)))
    kept = np.zeros(count + 1, dtype=bool)
    kept[np.unique(parts[near])] = True
    return np.asarray(ndimage.binary_dilation(kept[parts]), dtype=np.bool_)


def add(labels: Labels, scan: Scan, grid: NetworkGrid, margins: Floats, clicks: Sequence[Sequence[Point]]) -> None:
    """Draw each clicked structure again, in `labels` themselves.

    Args:
        labels: of the source's shape, as restored from `margins`.
        margins: (L, *grid.padded); those that the clicks on structures gave.
        clicks: points per structure, by value.
    """
    for value, on in enumerate(clicks, start=1):
        off = [point for other, points in enumerate(clicks, start=1) if other != value for point in points]
        for region, mask in _outlines(scan, grid, margins[value - 1], on, off, around=on):
            part = labels[region.box]
            part[(part == value) & ~mask] = 0
            part[mask] = value


def take(labels: Labels, scan: Scan, grid: NetworkGrid, margins: Floats, clicks: Sequence[Sequence[Point]]) -> None:
    """Take away, in `labels` themselves, what background clicks say is none of the structures they are on.

    Args:
        labels: as `add` left them.
        margins: (L, *grid.padded); those that all clicks gave.
        clicks: points per structure, by value, then background.
    """
    *structures, background = clicks
    found = [int(labels[point]) for point in background]
    for value, on in enumerate(structures, start=1):
        around = [point for point, at in zip(background, found, strict=True) if at == value]
        off = [*background, *(p for other, points in enumerate(structures, start=1) if other != value for p in points)]
        for region, mask in _outlines(scan, grid, margins[value - 1], on, off, around=around):
            part = labels[region.box]
            part[(part == value) & ~mask] = 0


def correct(
    labels: Labels,
    scan: Scan,
    grid: NetworkGrid,
    before: Floats,
    after: Floats,
    clicks: Sequence[Sequence[Point]],
    *,
    locked: Bools | None = None,
) -> None:
    """Correct `labels`, a mask that exists already, in place: structures grow at their clicks, and shrink at those of
    background.

    Args:
        labels: of the source's shape.
        before: the network's margins without clicks, (L, *grid.padded).
        after: those with them.
        clicks: points per structure, by value, then background.
        locked: voxels that no structure may grow into.
    """
    *structures, background = clicks
    off = {
        value: [*background, *(p for other, points in enumerate(structures, start=1) if other != value for p in points)]
        for value in range(1, len(clicks))
    }
    for value, on in enumerate(structures, start=1):
        for region, differs in _differences(labels, scan, grid, before, after, value, on, off[value], around=on):
            if locked is not None:
                differs &= ~locked[region.box]
            labels[region.box][differs] = value
    found = [int(labels[point]) for point in background]
    for value, on in enumerate(structures, start=1):
        around = [point for point, at in zip(background, found, strict=True) if at == value]
        for region, differs in _differences(labels, scan, grid, before, after, value, on, off[value], around=around):
            part = labels[region.box]
            part[differs & (part == value)] = 0


def _differences(
    labels: Labels,
    scan: Scan,
    grid: NetworkGrid,
    before: Floats,
    after: Floats,
    value: int,
    on: Sequence[Point],
    off: Sequence[Point],
    *,
    around: Sequence[Point],
) -> Iterator[tuple[Region, Bools]]:
    """Where the clicks change one structure's cut and that hangs together with those in `around`, region by region."""
    for group in _groups(around, scan, reach(scan, grid)):
        near = _around(group, scan, reach(scan, grid))
        region = _between(near, near, scan)
        mask, image = labels[region.box] == value, scan.view(region)
        trusted = np.where(mask, TRUSTED, -TRUSTED).astype(np.float32)
        first, then = (
            trusted + np.clip(proposed(one[value - 1], grid, region), -SURE, SURE) for one in (before, after)
        )
        said, marks = np.zeros_like(first), np.zeros(first.shape, dtype=np.uint8)
        uncorrected = graph_cut(first, image, marks, scan.spacing)
        _say(said, marks, image, on, off, region, scan.spacing, reach(scan, grid))
        cut = graph_cut(then + said, image, marks, scan.spacing)
        # What the cut alone would change has nothing to do with the clicks, unless they say so clearly.
        parts, count = ndimage.label((cut != mask) & ((cut != uncorrected) | (np.abs(said) > TRUSTED)))
        kept = np.zeros(count + 1, dtype=bool)
        kept[[parts[point] for point in _inside(group, region)]] = True
        kept[0] = False
        yield region, kept[parts]


def proposed(margin: Floats, grid: NetworkGrid, region: Region) -> Floats:
    """The network's log-odds at the region's voxels."""
    scale = np.array(grid.resampled) / grid.source
    steps = np.array(region.steps)
    field: Floats = ndimage.affine_transform(
        np.ascontiguousarray(grid.to_source_axes(margin).transpose(2, 1, 0)),
        steps * scale,
        (np.array(region.lower) + 0.5 * steps) * scale - 0.5,
        output_shape=region.shape,
        order=1,
        mode="nearest",
    )
    return field


def _outlines(
    scan: Scan, grid: NetworkGrid, margin: Floats, on: Sequence[Point], off: Sequence[Point], *, around: Sequence[Point]
) -> Iterator[tuple[Region, Bools]]:
    """The structure's mask in each region around some clicks."""
    if not around:
        return
    parts, _ = ndimage.label(grid.to_source_axes(margin).transpose(2, 1, 0) > 0)
    extents = ndimage.find_objects(parts)
    scale = np.array(grid.source) / grid.resampled
    for group in _groups(around, scan, reach(scan, grid)):
        least = _around(group, scan, reach(scan, grid))
        most = [least]
        for part in {int(parts[tuple((np.array(point) / scale).astype(int))]) for point in group} - {0}:
            box = np.array([[s.start - 1.5, s.stop + 1.5] for s in extents[part - 1]]).T
            most.append(box * scale)
        yield _outline(scan, grid, margin, on, off, region=_between(least, _union(most), scan))


def _outline(
    scan: Scan, grid: NetworkGrid, margin: Floats, on: Sequence[Point], off: Sequence[Point], *, region: Region
) -> tuple[Region, Bools]:
    """The mask in a region, and that region, grown where the mask wants to leave it."""
    for growth in range(GROWTHS + 1):
        image, logits = scan.view(region), proposed(margin, grid, region)
        marks = _faces(logits > 0, region, scan.shape)
        odds = np.clip(logits, -CERTAIN, CERTAIN)
        _say(odds, marks, image, on, off, region, scan.spacing, reach(scan, grid))
        mask = graph_cut(odds, image, marks, scan.spacing)
        turned = (mask != (logits > 0)) & (np.abs(logits) > SURE)
        wider = _between(_box(region), _box(region) + _leaving(turned, scan), scan)
        if growth == GROWTHS or wider == region:
            break
        region = wider
    return region, mask


def _groups(points: Sequence[Point], scan: Scan, near: float) -> list[list[Point]]:
    """Clicks that one region can hold, with half of `near` (mm) around them: a region for each that has all of it would
    be cut again and again in almost the same place."""
    groups: list[list[Point]] = []
    for point in sorted(points):
        for group in groups:
            if _size(_ends([*group, point], near / 2 / scan.spacing), scan) <= MAX_VOXELS:
                group.append(point)
                break
        else:
            groups.append([point])
    return groups


def _around(points: Sequence[Point], scan: Scan, near: float) -> Ends:
    """A box with `near` (mm) around clicks that one region can hold, or less if `MAX_VOXELS` asks for it: all of them
    stay in it."""
    while _size(ends := _ends(points, near / scan.spacing), scan) > MAX_VOXELS:
        near *= 0.9
    return ends


def _between(least: Ends, most: Ends, scan: Scan) -> Region:
    """A box from `least` to as much of `most` as `MAX_VOXELS` allows."""
    share = 1.0
    while _size(least + share * (most - least), scan) > MAX_VOXELS:
        share *= 0.9
        if share < 0.01:
            share = 0.0
    low, high = least + share * (most - least)
    return Region.around(np.floor(low), np.ceil(high), scan.shape, scan.spacing)


def _size(ends: Ends, scan: Scan) -> int:
    low, high = np.maximum(0, np.floor(ends[0])), np.minimum(scan.shape, np.ceil(ends[1]))
    return int(np.prod(high - low))


def _ends(points: Sequence[Point], near: npt.NDArray[np.float64]) -> Ends:
    at = np.array(points, dtype=np.float64)
    return np.stack([at.min(axis=0) - near, at.max(axis=0) + 1 + near])


def _union(boxes: Sequence[Ends]) -> Ends:
    return np.stack([np.min([low for low, _ in boxes], axis=0), np.max([high for _, high in boxes], axis=0)])


def _box(region: Region) -> Ends:
    return np.array([region.lower, region.upper], dtype=np.float64)


def _inside(points: Sequence[Point], region: Region) -> Iterator[Point]:
    """The points that are in a region, as its own indices."""
    for point in points:
        if all(low <= at < high for at, low, high in zip(point, region.lower, region.upper, strict=True)):
            i, j, k = (at - low for at, low in zip(point, region.lower, strict=True))
            yield i, j, k


def _say(
    odds: Floats,
    marks: npt.NDArray[np.uint8],
    image: Floats,
    on: Sequence[Point],
    off: Sequence[Point],
    region: Region,
    spacing: npt.NDArray[np.float64],
    far: float,
) -> None:
    """Add to a region's log-odds and marks what the clicks in it say."""
    for points, mark, sign in ((on, FOREGROUND, 1), (off, BACKGROUND, -1)):
        for point in _inside(points, region):
            odds += np.float32(sign) * _said(point, image, spacing, far)
            marks[point] = mark


def _said(point: Point, image: Floats, spacing: npt.NDArray[np.float64], far: float) -> Floats:
    """What a click says of the voxels around it: the more, the nearer and the more alike they are."""
    axes = [np.square((np.arange(n) - at) * step) for n, at, step in zip(image.shape[1:], point, spacing, strict=True)]
    distance = np.sqrt(axes[0][:, None, None] + axes[1][None, :, None] + axes[2][None, None, :]).astype(np.float32)
    on = image[(slice(None), *point)]
    apart = np.square(image - on[:, None, None, None]).sum(axis=0) / (2 * ALIKE * ALIKE)
    said: Floats = np.float32(SAY) * np.exp(-distance / np.float32(far) - apart)
    return said


def _faces(mask: Bools, region: Region, shape: Shape) -> npt.NDArray[np.uint8]:
    """The coarse mask, as marks, on those of the box's faces that are within the image."""
    marks = np.zeros(mask.shape, dtype=np.uint8)
    known = np.where(mask, FOREGROUND, BACKGROUND).astype(np.uint8)
    for axis, (low, high, n) in enumerate(zip(region.lower, region.upper, shape, strict=True)):
        for end, inner in ((0, low > 0), (-1, high < n)):
            if inner:
                face = tuple(end if other == axis else slice(None) for other in range(3))
                marks[face] = known[face]
    return marks


def _leaving(turned: Bools, scan: Scan) -> Ends:
    """By how much to grow each face of the box: where, right behind it, the network was overruled."""
    growth = np.zeros((2, 3))
    for axis in range(3):
        for end, sign in ((0, -1), (1, 1)):
            layer = turned.take(min(1, turned.shape[axis] - 1) if end == 0 else max(0, turned.shape[axis] - 2), axis)
            if layer.any():
                growth[end, axis] = sign * GROW_MM / scan.spacing[axis]
    return growth


def _winners(margins: Floats) -> Labels:
    """The label of each voxel: the structure whose margin is positive, which is one at most, or 0."""
    winners = np.zeros(margins.shape[1:], dtype=np.uint8)
    for value, margin in enumerate(margins, start=1):
        np.maximum(winners, (margin > 0).view(np.uint8) * np.uint8(value), out=winners)
    return winners


def _shape(array: npt.NDArray[np.generic]) -> Shape:
    r, a, s = array.shape
    return r, a, s
