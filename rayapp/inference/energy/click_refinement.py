"""Refinement at full resolution: a network's coarse answer, segmented again at the image's own resolution around the
clicks.

A network whose input covers the whole image sees it coarsely: a CT of 0.8 mm in voxels of 4 or 5 mm. Its answer is
therefore refined where the annotator clicked, by a minimum cut of three terms: the network's log-odds, evidence from
the clicks for similar tissue around them, and the edges of the image itself.

- A region is a box around the clicks on one structure, extended over the connected component of the structure that
  they are on as far as `MAX_VOXELS` allows. On the region's faces the coarse mask holds, so that the result has no
  seams.
- A region grows, up to `GROWTHS` times, where the cut leaves it although the network is confident that the structure
  ends there.
- A change must be connected to a click; elsewhere the mask stays as it was without the clicks.
- Background clicks are applied last and only remove.

An existing mask is corrected likewise: what counts is the difference that the clicks make to a cut that starts from
that mask, so that the mask stays as it is, to the voxel, wherever the clicks provide no evidence.

The result depends on the image, the log-odds and the set of clicks only, so that any replica computes the same mask.
Time and memory follow from the regions' size, not from the image's. Pure functions, thread-safe.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np
import numpy.typing as npt
from scipy import ndimage

from rayapp.inference.arrays import Bools, Floats, Labels, Shape, Spacing
from rayapp.inference.energy.click_boxes import (
    Corners,
    box_around,
    corners_of,
    grouped,
    points_within,
    region_between,
    union,
)
from rayapp.inference.energy.graph_cut import graph_cut
from rayapp.inference.energy.likelihood import MAX_LOG_ODDS
from rayapp.inference.energy.region import Region
from rayapp.inference.energy.scan import Scan
from rayapp.inference.infer_task import Point
from rayapp.inference.network.network_grid import NetworkGrid
from rayapp.inference.network.restoration import labels_of
from rayapp.inference.prompts import guidance
from rayapp.inference.prompts.guidance import Position
from rayapp.inference.prompts.scribble_map import BACKGROUND, FOREGROUND, Marks

CONNECTED = 2.0
"""Distance from a click in network voxels, along each axis, up to which a change counts as connected to it."""
MIN_RATIO = 1.5
"""Least ratio of network to source voxel size, along some axis, at which refinement is worthwhile."""
GROWTHS = 2
"""Number of times a region may grow."""
GROWTH_MM = 8.0
"""Distance by which a face of a region moves when it grows."""
CLICK_LOG_ODDS = 2 * MAX_LOG_ODDS
"""Log-odds that a click adds next to itself in tissue of its own intensity: enough to overrule the network. At
`click_range_mm` they have faded to a third."""
INTENSITY_SCALE = 0.3
"""Difference in normalised intensity (most of the body spans 2) at which a click's log-odds have faded to 0.6."""
CONFIDENT = 2.0
"""Magnitude of log-odds from which the network counts as confident."""
MASK_LOG_ODDS = 3.0
"""Log-odds that an existing mask is right: more than the network's share in its correction, which is clipped to
`CONFIDENT`."""


def is_worthwhile(grid: NetworkGrid) -> bool:
    """True if the image has detail that the network's grid does not resolve."""
    return any(n > MIN_RATIO * m for n, m in zip(grid.source, grid.resampled, strict=True))


def click_range_mm(scan: Scan, grid: NetworkGrid) -> float:
    """Distance in mm over which a click's evidence fades, which is the radius of the network's guidance.

    Regions extend at least as far around their clicks, if `MAX_VOXELS` allows.
    """
    return guidance.RADIUS * float(np.median(scan.spacing * grid.source / grid.resampled))


def changed_at_clicks(before: Floats, after: Floats, positions: Sequence[Position]) -> Bools:
    """Network voxels that clicks changed: where two answers differ and that is connected to a click.

    Args:
        before: Log-odds over background without the clicks, (L, R, A, S).
        after: Log-odds with them.
        positions: The clicks on the network grid.

    Returns:
        Mask (R, A, S), dilated by one voxel.
    """
    near = np.zeros(before.shape[1:], dtype=bool)
    for position in positions:
        box, _ = guidance.distances(position, _shape(near), CONNECTED)
        near[box] = True
    components, count = ndimage.label(near | (labels_of(before) != labels_of(after)))
    kept = np.zeros(count + 1, dtype=bool)
    kept[np.unique(components[near])] = True
    return np.asarray(ndimage.binary_dilation(kept[components]), dtype=np.bool_)


def grow_at_clicks(
    labels: Labels, scan: Scan, grid: NetworkGrid, fields: Floats, clicks: Sequence[Sequence[Point]]
) -> None:
    """Segment each clicked structure again around the clicks on it.

    Args:
        labels: Label map (I, J, K), as restored from `fields`; modified.
        scan: The image.
        grid: Mapping from the source grid to the network grid.
        fields: Log-odds over background (L, *grid.padded) that the network gave for the clicks on structures.
        clicks: For each structure, in order of label values, the clicks on it.
    """
    for value, on in enumerate(clicks, start=1):
        off = [point for other, points in enumerate(clicks, start=1) if other != value for point in points]
        for region, mask in _structure_masks(scan, grid, fields, value, on, off, around=on):
            part = labels[region.box]
            part[(part == value) & ~mask] = 0
            part[mask] = value


def shrink_at_clicks(
    labels: Labels, scan: Scan, grid: NetworkGrid, fields: Floats, clicks: Sequence[Sequence[Point]]
) -> None:
    """Remove from the structures, around background clicks, what these say is background.

    Args:
        labels: Label map (I, J, K), as `grow_at_clicks` left it; modified.
        scan: The image.
        grid: Mapping from the source grid to the network grid.
        fields: Log-odds over background (L, *grid.padded) that the network gave for all clicks.
        clicks: For each structure, in order of label values, the clicks on it; last, the background clicks.
    """
    *structures, background = clicks
    clicked_labels = [int(labels[point]) for point in background]
    for value, on in enumerate(structures, start=1):
        around = [point for point, label in zip(background, clicked_labels, strict=True) if label == value]
        off = [*background, *(p for other, points in enumerate(structures, start=1) if other != value for p in points)]
        for region, mask in _structure_masks(scan, grid, fields, value, on, off, around=around):
            part = labels[region.box]
            part[(part == value) & ~mask] = 0


def correct_mask(
    labels: Labels,
    scan: Scan,
    grid: NetworkGrid,
    before: Floats,
    after: Floats,
    clicks: Sequence[Sequence[Point]],
    *,
    locked: Bools | None = None,
) -> None:
    """Correct an existing mask: structures grow at the clicks on them, and shrink at background clicks.

    Args:
        labels: Label map (I, J, K) to correct; modified.
        scan: The image.
        grid: Mapping from the source grid to the network grid.
        before: The network's log-odds over background without clicks, (L, *grid.padded).
        after: The network's log-odds with all clicks.
        clicks: For each structure, in order of label values, the clicks on it; last, the background clicks.
        locked: Voxels into which no structure may grow.
    """
    *structures, background = clicks
    off = {
        value: [*background, *(p for other, points in enumerate(structures, start=1) if other != value for p in points)]
        for value in range(1, len(clicks))
    }
    for value, on in enumerate(structures, start=1):
        for region, differs in _corrections(labels, scan, grid, before, after, value, on, off[value], around=on):
            if locked is not None:
                differs &= ~locked[region.box]
            labels[region.box][differs] = value
    clicked_labels = [int(labels[point]) for point in background]
    for value, on in enumerate(structures, start=1):
        around = [point for point, label in zip(background, clicked_labels, strict=True) if label == value]
        for region, differs in _corrections(labels, scan, grid, before, after, value, on, off[value], around=around):
            part = labels[region.box]
            part[differs & (part == value)] = 0


def network_log_odds(fields: Floats, value: int, grid: NetworkGrid, region: Region) -> Floats:
    """A network's log-odds of one structure over the likeliest of all other classes, in a region's blocks.

    As in the restored label map, all structures are interpolated and then compared.

    Args:
        fields: Log-odds over background, (L, *grid.padded).
        value: The structure's label value.
        grid: Mapping from the source grid to the network grid.
        region: The region.

    Returns:
        Shape `region.shape`.
    """
    scale, steps = np.array(grid.resampled) / grid.source, np.array(region.steps)
    first = (np.array(region.lower) + 0.5 * steps) * scale - 0.5
    last = first + (np.array(region.shape) - 1) * steps * scale
    low, high = np.maximum(0, np.floor(first)).astype(int), np.minimum(grid.resampled, np.ceil(last) + 1).astype(int)
    box = tuple(slice(a, b) for a, b in zip(np.minimum(low, high - 1), high, strict=True))

    def interpolated(part: Floats) -> Floats:
        field: Floats = ndimage.affine_transform(
            part,
            steps * scale,
            first - [side.start for side in box],
            output_shape=region.shape,
            order=1,
            mode="nearest",
        )
        return field

    parts = [np.ascontiguousarray(grid.to_source_axes(field).transpose(2, 1, 0)[box]) for field in fields]
    rival = np.zeros(region.shape, dtype=np.float32)
    for other, part in enumerate(parts, start=1):
        if other != value and part.max() > 0:
            np.maximum(rival, interpolated(part), out=rival)
    return interpolated(parts[value - 1]) - rival


def _corrections(
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
    """Voxels of one structure's mask that the clicks change, region by region.

    Args:
        labels: The label map to correct.
        scan: The image.
        grid: Mapping from the source grid to the network grid.
        before: Log-odds over background without clicks.
        after: Log-odds with clicks.
        value: The structure's label value.
        on: Clicks on the structure.
        off: Clicks off it.
        around: Those of the clicks to which a change must be connected.
    """
    context_mm = click_range_mm(scan, grid)
    for group in grouped(around, scan, context_mm):
        near = box_around(group, scan, context_mm)
        region = region_between(near, near, scan)
        mask, image = labels[region.box] == value, scan.view(region)
        prior = np.where(mask, MASK_LOG_ODDS, -MASK_LOG_ODDS).astype(np.float32)
        logits_before, logits_after = (
            prior + np.clip(network_log_odds(fields, value, grid, region), -CONFIDENT, CONFIDENT)
            for fields in (before, after)
        )
        evidence, marks = np.zeros_like(logits_before), np.zeros(logits_before.shape, dtype=np.uint8)
        without_clicks = graph_cut(logits_before, image, marks, scan.spacing)
        _add_evidence(evidence, marks, image, on, off, region, scan.spacing, context_mm)
        with_clicks = graph_cut(logits_after + evidence, image, marks, scan.spacing)
        # What the cut would change without the clicks too is not due to them, unless their evidence there is strong.
        due_to_clicks = (with_clicks != without_clicks) | (np.abs(evidence) > MASK_LOG_ODDS)
        components, count = ndimage.label((with_clicks != mask) & due_to_clicks)
        kept = np.zeros(count + 1, dtype=bool)
        kept[[components[point] for point in points_within(group, region)]] = True
        kept[0] = False
        yield region, kept[components]


def _structure_masks(
    scan: Scan,
    grid: NetworkGrid,
    fields: Floats,
    value: int,
    on: Sequence[Point],
    off: Sequence[Point],
    *,
    around: Sequence[Point],
) -> Iterator[tuple[Region, Bools]]:
    """One structure's mask, segmented again in a region around each group of clicks.

    Args:
        scan: The image.
        grid: Mapping from the source grid to the network grid.
        fields: Log-odds over background, (L, *grid.padded).
        value: The structure's label value.
        on: Clicks on the structure.
        off: Clicks off it.
        around: Clicks around which regions are formed.
    """
    if not around:
        return
    components, _ = ndimage.label(grid.to_source_axes(labels_of(fields)).transpose(2, 1, 0) == value)
    extents = ndimage.find_objects(components)
    scale = np.array(grid.source) / grid.resampled
    context_mm = click_range_mm(scan, grid)
    for group in grouped(around, scan, context_mm):
        least = box_around(group, scan, context_mm)
        boxes = [least]
        for component in {int(components[tuple((np.array(point) / scale).astype(int))]) for point in group} - {0}:
            box = np.array([[s.start - 1.5, s.stop + 1.5] for s in extents[component - 1]]).T
            boxes.append(box * scale)
        yield _cut_growing(scan, grid, fields, value, on, off, region=region_between(least, union(boxes), scan))


def _cut_growing(
    scan: Scan,
    grid: NetworkGrid,
    fields: Floats,
    value: int,
    on: Sequence[Point],
    off: Sequence[Point],
    *,
    region: Region,
) -> tuple[Region, Bools]:
    """Cut a structure in a region that grows where the structure leaves it; returns the final region and the mask."""
    for growth in range(GROWTHS + 1):
        image, logits = scan.view(region), network_log_odds(fields, value, grid, region)
        marks = _face_marks(logits > 0, region, scan.shape)
        log_odds = np.clip(logits, -MAX_LOG_ODDS, MAX_LOG_ODDS)
        _add_evidence(log_odds, marks, image, on, off, region, scan.spacing, click_range_mm(scan, grid))
        mask = graph_cut(log_odds, image, marks, scan.spacing)
        overruled = (mask != (logits > 0)) & (np.abs(logits) > CONFIDENT)
        corners = corners_of(region)
        wider = region_between(corners, corners + _face_growth(overruled, scan), scan)
        if growth == GROWTHS or wider == region:
            break
        region = wider
    return region, mask


def _add_evidence(
    log_odds: Floats,
    marks: Marks,
    image: Floats,
    on: Sequence[Point],
    off: Sequence[Point],
    region: Region,
    spacing: Spacing,
    range_mm: float,
) -> None:
    """Add the clicks within a region to its log-odds and its scribble map, in place."""
    for points, mark, sign in ((on, FOREGROUND, 1), (off, BACKGROUND, -1)):
        for point in points_within(points, region):
            log_odds += np.float32(sign) * _click_evidence(point, image, spacing, range_mm)
            marks[point] = mark


def _click_evidence(point: Point, image: Floats, spacing: Spacing, range_mm: float) -> Floats:
    """Log-odds that a click adds to the voxels around it, fading with distance and difference in intensity."""
    squares = [np.square((np.arange(n) - at) * mm) for n, at, mm in zip(image.shape[1:], point, spacing, strict=True)]
    distance = np.sqrt(squares[0][:, None, None] + squares[1][None, :, None] + squares[2][None, None, :])
    clicked = image[(slice(None), *point)]
    difference = np.square(image - clicked[:, None, None, None]).mean(axis=0) / (2 * INTENSITY_SCALE * INTENSITY_SCALE)
    evidence: Floats = np.float32(CLICK_LOG_ODDS) * np.exp(
        -distance.astype(np.float32) / np.float32(range_mm) - difference
    )
    return evidence


def _face_marks(mask: Bools, region: Region, shape: Shape) -> Marks:
    """A scribble map with the coarse mask on those of a region's faces that are inside the image."""
    marks = np.zeros(mask.shape, dtype=np.uint8)
    coarse = np.where(mask, FOREGROUND, BACKGROUND).astype(np.uint8)
    for axis, (low, high, n) in enumerate(zip(region.lower, region.upper, shape, strict=True)):
        for end, inside_image in ((0, low > 0), (-1, high < n)):
            if inside_image:
                face = tuple(end if other == axis else slice(None) for other in range(3))
                marks[face] = coarse[face]
    return marks


def _face_growth(overruled: Bools, scan: Scan) -> Corners:
    """Displacement of a region's corners: its faces move outwards where the network is overruled next to them."""
    growth = np.zeros((2, 3))
    for axis in range(3):
        for end, sign in ((0, -1), (1, 1)):
            last = overruled.shape[axis] - 1
            layer = overruled.take(min(1, last) if end == 0 else max(0, last - 1), axis)
            if layer.any():
                growth[end, axis] = sign * GROWTH_MM / scan.spacing[axis]
    return growth


def _shape(array: npt.NDArray[np.generic]) -> Shape:
    r, a, s = array.shape
    return r, a, s
