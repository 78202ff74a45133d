"""Glances: the promptable network's answers in views, their scores, and the choice among them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

from rayapp.inference.zoom.marks import Box, Marks, channels
from rayapp.inference.zoom.view import SLAB, Bools, Column, Floats, Source, View, normalised, transfer

Ask = Callable[[Floats], tuple[Floats, Floats, Floats]]
"""The network: maps inputs (N, 10, edge, edge, edge) to logits (N, edge, edge, edge), expected Dice scores (N) and the
expected longest sides of the structure, as a share of the view's (N)."""
Region = tuple[slice, slice, slice]
NOTHING = -20.0
"""Logit of voxels that are certainly background."""
WORTH = 0.3
"""Least score of an alternative answer, relative to the best one's."""
CHANGED = 0.3
"""Reduction of the score of an answer that keeps nothing of the previous mask, or is twelve times as large."""
APART = 0.35
"""Least difference of two alternatives' log volumes."""
NEAR = (0.5, 2.0)
"""Smallest and largest view that is compared after a correction, relative to a view of the previous answer."""
DOUBTED = 3
"""Number of the best views that are evaluated again, mirrored."""
LARGE = 0.2
"""Least size of a component without prompts that is kept, relative to the answer's largest component."""


@dataclass(frozen=True)
class Mask:
    """A mask of an image, of which only a box is stored.

    Attributes:
        region: the box, as an index into the image.
        inside: the mask within the box.
    """

    region: Region
    inside: Bools

    def sample(self, view: View, spacing: NDArray[np.float64]) -> Floats:
        """The share of each voxel of a view that lies in the structure, (edge, edge, edge)."""
        start = np.array([side.start for side in self.region]) * spacing
        part = Source(self.inside.view(np.uint8), spacing)
        moved = view.moved(-start)
        return np.asarray(part.sample(moved) * part.inside(moved), np.float32)

    def bounds(self, spacing: NDArray[np.float64]) -> Box | None:
        """The bounding box of the structure in mm; None for an empty mask."""
        sides = []
        for axis in range(3):
            marked = np.flatnonzero(self.inside.any(tuple(other for other in range(3) if other != axis)))
            if not len(marked):
                return None
            start = self.region[axis].start
            sides.append(((marked[0] + start - 0.5) * spacing[axis], (marked[-1] + start + 0.5) * spacing[axis]))
        low, high = np.array(sides).T
        return Box.of(low, high)

    def indices(self, positions: NDArray[np.float64], spacing: NDArray[np.float64]) -> NDArray[np.int64]:
        """Indices (n, 3) into `inside` of positions in mm; positions outside the box are left out."""
        voxels = np.rint(positions / spacing).astype(np.int64) - np.array([side.start for side in self.region])
        return np.asarray(voxels[((voxels >= 0) & (voxels < self.inside.shape)).all(1)])

    def union(self, other: Mask) -> Region:
        """The part of the image that contains this mask's part and another's."""
        sides = zip(self.region, other.region, strict=True)
        a, b, c = (slice(min(own.start, its.start), max(own.stop, its.stop)) for own, its in sides)
        return a, b, c

    def within(self, region: Region) -> Bools:
        """The mask in a part of the image that contains its own."""
        full = np.zeros([side.stop - side.start for side in region], bool)
        sides = zip(self.region, region, strict=True)
        full[tuple(slice(own.start - its.start, own.stop - its.start) for own, its in sides)] = self.inside
        return full

    def whole(self, shape: Sequence[int]) -> Bools:
        """A mask of the whole image."""
        full = np.zeros(tuple(shape), bool, order="F")
        full[self.region] = self.inside
        return full


@dataclass(frozen=True)
class Glance:
    """The network's answer in a view.

    Attributes:
        view: the view.
        logits: (edge, edge, edge).
        quality: expected Dice score against the whole structure.
        length: expected longest side of the structure, mm.
    """

    view: View
    logits: Floats
    quality: float
    length: float

    def bounds(self) -> Box | None:
        """The bounding box of the answer in mm."""
        inside = self.logits > 0
        marked = [np.flatnonzero(inside.any(tuple(b for b in range(3) if b != axis))) for axis in range(3)]
        if not len(marked[0]):
            return None
        low = np.array([side[0] for side in marked]) - 0.5
        high = np.array([side[-1] for side in marked]) + 0.5
        return Box.of(self.view.to_millimetres(low), self.view.to_millimetres(high))

    def at(self, positions: NDArray[np.float64]) -> NDArray[np.float32]:
        """Logits at positions (n, 3) in mm; 0, which is undecided, outside the view."""
        voxels = np.rint(self.view.to_voxels(positions)).astype(int)
        within = ((voxels >= 0) & (voxels < self.view.edge)).all(1)
        values = np.zeros(len(voxels), np.float32)
        values[within] = self.logits[tuple(voxels[within].T)]
        return values

    def changed(self, mask: Mask, spacing: NDArray[np.float64]) -> float:
        """Disagreement with a mask, from 0 to 2: the share of the mask that the answer lacks, inside or outside its
        view, plus a penalty for growth, which rises from 0 at three times the mask's size to 1 at twelve times, where
        it is another structure.
        """
        inside, cell = self.logits > 0, self.view.cell
        before = max(float(mask.inside.sum() * spacing.prod()), 1e-9)
        kept = float((mask.sample(self.view, spacing) * inside).sum()) * cell
        grown = np.log(max(float(inside.sum()) * cell / before, 1e-9) / 3) / np.log(4)
        return max(0.0, 1 - kept / before) + float(np.clip(grown, 0, 1))

    def connected(self, seeds: NDArray[np.float64]) -> Glance:
        """The answer's connected components that contain a seed, or without seeds the large ones; the others become
        background.

        Args:
            seeds: positions (n, 3), mm.
        """
        parts, count = ndimage.label(self.logits > 0, np.ones((3, 3, 3)))
        if count < 2:
            return self
        sizes = np.bincount(parts.ravel())
        sizes[0] = 0
        keep = sizes >= LARGE * sizes.max()
        voxels = np.rint(self.view.to_voxels(seeds)).astype(int)
        voxels = voxels[((voxels >= 0) & (voxels < self.view.edge)).all(1)]
        held = np.zeros(count + 1, bool)
        held[parts[tuple(voxels.T)]] = True
        if held[1:].any():
            keep = held
        keep[0] = True
        return replace(self, logits=np.where(keep[parts], self.logits, np.minimum(self.logits, NOTHING)))

    def on_image(self, source: Source) -> tuple[Region, Bools]:
        """The structure on the image's own voxels, and the box of the image around it that they cover."""
        low, high = self.view.low - self.view.spacing / 2, self.view.low + self.view.size - self.view.spacing / 2
        bounds = self.bounds()
        if bounds is not None:
            low = np.maximum(low, np.array(bounds.low) - self.view.spacing)
            high = np.minimum(high, np.array(bounds.high) + self.view.spacing)
        last = np.array(source.array.shape) - 1
        first = np.clip(np.ceil(low / source.spacing), 0, last).astype(int)
        final = np.clip(np.floor(high / source.spacing), first, last).astype(int)
        a, b, c = (slice(int(x), int(y) + 1) for x, y in zip(first, final, strict=True))
        shape = final - first + 1
        inside = np.empty(shape, bool)
        for i in range(0, int(shape[0]), SLAB):  # a large image must not be held as floats
            start, part = first + np.array([i, 0, 0]), (min(SLAB, int(shape[0]) - i), *shape[1:])
            inside[i : i + SLAB] = transfer(self.logits, self.view, start * source.spacing, source.spacing, part) > 0
        return (a, b, c), inside


def glances(
    ask: Ask,
    source: Source,
    views: Sequence[View],
    marks: Marks,
    previous: Mask | None = None,
    *,
    doubt: bool = False,
) -> list[Glance]:
    """Run the network on several views with the same edge, in one batch.

    Args:
        ask: the network.
        source: the image.
        views: the views.
        marks: the prompts.
        previous: the mask to start from.
        doubt: evaluate the best views a second time, mirrored. Their quality is then the lesser of both values, and
            bounds that of all other views. This catches views that show too much, in which the network is sometimes
            wrongly certain.
    """
    inputs = []
    for view in views:
        image = normalised(source.sample(view), source.inside(view))
        start = previous.sample(view, source.spacing) if previous is not None else None
        inputs.append(channels(view, image, marks, start))
    logits, quality, length = ask(np.stack(inputs))
    if doubt:
        best = np.argsort(-quality)[:DOUBTED]
        _, mirrored, _ = ask(np.stack([inputs[n][:, ::-1, ::-1, ::-1] for n in best]))
        lesser = np.minimum(quality[best], mirrored)
        quality = np.minimum(quality, lesser.min())
        quality[best] = lesser
    return [Glance(view, logits[n], float(quality[n]), float(length[n]) * view.size) for n, view in enumerate(views)]


def ladder(source: Source, marks: Marks, edge: int, steps: int, near: float | None = None) -> list[View]:
    """Views around the prompts, with sizes in a geometric series from the prompts' extent to the whole image's.

    Args:
        source: the image.
        marks: the prompts.
        edge: voxels along the views' edges.
        steps: number of views; boxes and closed curves have their own.
        near: size of a view of the previous answer, mm. The series then ranges from `NEAR[0]` to `NEAR[1]` times it.

    Raises:
        ValueError: without any prompt for the structure.
    """
    bounds = marks.bounds()
    if bounds is None:
        raise ValueError("no prompt for the structure")
    low, high = np.array(bounds.low), np.array(bounds.high)
    along = across(source.column)
    reach = float((high - low)[along].max())
    largest = max(float((source.extent + source.spacing).max()), 12 * float(source.spacing.min()))
    around = marks.around()
    if around:
        drawn = max(max((np.array(box.high) - box.low)[along]) for box in around)
        flat = not any(solid(box, source) for box in around)
        sizes = drawn * np.array([1.25, 1.8, 2.7] if flat else [1.2, 1.5])
        sizes = np.maximum(sizes, 1.15 * reach)
    else:
        smallest = min(max(12 * float(source.spacing.min()), 1.3 * reach), largest)
        if near is not None:
            smallest, largest = np.clip(near * np.array(NEAR), smallest, largest)
        sizes = np.geomspace(smallest, largest, steps)
    centre = (low + high) / 2
    return [View.around(centre, float(size), edge, source.column) for size in sizes]


def believed(
    answers: Sequence[Glance], marks: Marks, previous: Mask | None = None, spacing: NDArray[np.float64] | None = None
) -> NDArray[np.float64]:
    """Score of each answer: its expected quality, reduced if it contradicts prompts, loses part of the previous mask,
    or is many times larger than it.

    Args:
        answers: the answers in several views.
        marks: all prompts.
        previous: the previous mask.
        spacing: voxel spacing of the image, mm.
    """
    on = marks.on_structure()
    off = marks.off_structure()
    scores = []
    for answer in answers:
        missed = float((answer.at(on) <= 0).mean()) if len(on) else 0.0
        taken = float((answer.at(off) > 0).mean()) if len(off) else 0.0
        empty = 0.0 if (answer.logits > 0).any() else 1.0
        changed = answer.changed(previous, spacing) if previous is not None and spacing is not None else 0.0
        scores.append(answer.quality - 0.3 * missed - 0.3 * taken - CHANGED * changed - empty)
    return np.array(scores)


def candidates(answers: Sequence[Glance], scores: NDArray[np.float64]) -> tuple[list[Glance], int]:
    """Answers that the annotator may have meant, such as a part, the structure and the whole, in ascending size.

    Args:
        answers: the answers in several views.
        scores: score of each answer.

    Returns:
        The candidates, no two with nearly the same volume, and the index of the one with the highest score.
    """
    volumes = np.array([(answer.logits > 0).sum() * answer.view.cell for answer in answers])
    chosen: list[int] = []
    for number in np.argsort(-scores):
        believable = not chosen or (scores[number] > WORTH * scores[chosen[0]] and volumes[number] > 0)
        if believable and all(abs(np.log(volumes[number] / max(volumes[other], 1e-9))) > APART for other in chosen):
            chosen.append(int(number))
    best = chosen[0]
    ordered = sorted(chosen, key=lambda number: volumes[number])
    return [answers[number] for number in ordered], ordered.index(best)


def framed(box: Box, edge: int, margin: float, smallest: float, column: Column = None) -> View:
    """A view around a box. Its size is `margin` times the box's longest side; for an image of one slice, the longest
    within the slice.
    """
    low, high = np.array(box.low), np.array(box.high)
    size = max(float((high - low)[across(column)].max()) * margin, smallest)
    centre = (low + high) / 2
    return View.around(centre, size, edge, column)


def solid(box: Box, source: Source) -> bool:
    """True if a box spans more than one slice along each axis of which the image has more than one."""
    sides = np.array(box.high) - box.low > 1.01 * source.spacing
    return bool(sides[across(source.column)].all())


def across(column: Column) -> list[int]:
    """The axes along which an image has more than one voxel."""
    return [axis for axis in range(3) if column is None or axis != column[0]]
