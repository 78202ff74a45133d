"""Prompts in millimetres, and their encoding as the promptable network's input channels in a view."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage
from skimage.draw import polygon2mask

from rayapp.inference.zoom.view import Floats, View
from rayapp.models.promptable import Channel

Positions = NDArray[np.float64]
"""Positions (n, 3) in mm along the image's axes, from the centre of its first voxel."""

POINT = 2.0
"""Radius of the ball around a point, in voxels of the view."""
BINS = 32
"""Number of bins of the histograms that separate intensities inside a box from those outside."""
CLOSE = 3.0
"""Scale of the channel `NEAR`, relative to the spread of intensities around the prompts."""
FAINT = 0.015
"""Least such scale; intensities in a view range from -1 to 1."""
SURROUND = 2
"""Distance around prompts, in voxels of the view, within which that spread is measured."""
STROKE = 1.0
"""Radius of a stroke, in voxels of the view."""


@dataclass(frozen=True)
class Box:
    """An axis-aligned box; `low` and `high` are its corners in mm."""

    low: tuple[float, float, float]
    high: tuple[float, float, float]

    @classmethod
    def of(cls, low: NDArray[np.float64], high: NDArray[np.float64]) -> Box:
        """The box between two corners (3), in mm."""
        return cls((float(low[0]), float(low[1]), float(low[2])), (float(high[0]), float(high[1]), float(high[2])))


@dataclass(frozen=True)
class Lasso:
    """A closed curve around the structure on one slice.

    Attributes:
        axis: axis perpendicular to the slice.
        at: position of the slice on this axis, mm.
        thickness: thickness of the slice, mm.
        curve: (n, 2), mm along the other two axes.
    """

    axis: int
    at: float
    thickness: float
    curve: NDArray[np.float64]


_LISTS = ("include", "exclude", "strokes", "erasers", "boxes", "lassos")


@dataclass
class Marks:
    """All prompts for one structure.

    Attributes:
        include, exclude: points inside and outside the structure.
        strokes, erasers: points of strokes inside and outside the structure, each (n, 3), mm.
        boxes, lassos: boxes and closed curves around the structure.
        pitch: distance in mm between neighbouring points of a stroke, which is drawn without gaps.
    """

    include: list[Positions] = field(default_factory=list)
    exclude: list[Positions] = field(default_factory=list)
    strokes: list[Positions] = field(default_factory=list)
    erasers: list[Positions] = field(default_factory=list)
    boxes: list[Box] = field(default_factory=list)
    lassos: list[Lasso] = field(default_factory=list)
    pitch: float = 0.0

    def copy(self) -> Marks:
        """A copy with lists of its own, to which prompts can be added."""
        return self.plus(Marks())

    def plus(self, more: Marks) -> Marks:
        """These prompts together with others of the same pitch."""
        return Marks(**{name: [*getattr(self, name), *getattr(more, name)] for name in _LISTS}, pitch=self.pitch)

    def since(self, before: Marks) -> Marks:
        """The prompts that were added to `before`."""
        return Marks(**{name: getattr(self, name)[len(getattr(before, name)) :] for name in _LISTS}, pitch=self.pitch)

    def digest(self) -> bytes:
        """A digest of all prompts."""
        found = hashlib.blake2b(repr((self.boxes, self.pitch)).encode(), digest_size=16)
        for group in (self.include, self.exclude, self.strokes, self.erasers):
            found.update(b"|")
            for points in group:
                found.update(np.ascontiguousarray(points).tobytes() + b",")
        for lasso in self.lassos:
            found.update(repr((lasso.axis, lasso.at)).encode() + lasso.curve.tobytes())
        return found.digest()

    def denied(self) -> bool:
        """True if any prompt excludes voxels from the structure."""
        return bool(self.exclude or self.erasers)

    def on_structure(self) -> Positions:
        """Positions (n, 3) of points and strokes inside the structure."""
        return _positions([*self.include, *self.strokes])

    def off_structure(self) -> Positions:
        """Positions (n, 3) of points and strokes outside the structure."""
        return _positions([*self.exclude, *self.erasers])

    def around(self) -> list[Box]:
        """The boxes, including the bounding boxes of lassos."""
        return [*self.boxes, *(bounds_of(lasso) for lasso in self.lassos)]

    def bounds(self) -> Box | None:
        """The bounding box of all prompts for the structure; None without any."""
        corners = [self.on_structure(), *(np.array([box.low, box.high]) for box in self.around())]
        placed = np.concatenate(corners)
        return Box.of(placed.min(0), placed.max(0)) if len(placed) else None


def channels(view: View, image: Floats, marks: Marks, previous: Floats | None = None) -> Floats:
    """The network's input channels (10, edge, edge, edge), see `Channel`.

    Args:
        view: the view.
        image: (edge, edge, edge), as returned by `view.normalised`.
        marks: the prompts, inside the view or not.
        previous: the probability (edge, edge, edge) of the mask to start from.
    """
    edge = view.edge
    drawn = np.zeros((len(Channel), edge, edge, edge), np.float32)
    drawn[Channel.IMAGE] = image
    if previous is not None:
        drawn[Channel.PREVIOUS] = previous
    for channel, points in ((Channel.INCLUDE, marks.include), (Channel.EXCLUDE, marks.exclude)):
        _balls(drawn[channel], [view.to_voxels(np.reshape(p, (-1, 3))) for p in points], POINT)
    thick = min(max(STROKE, 0.7 * marks.pitch / view.spacing), 3.0)
    for channel, lines in ((Channel.STROKE, marks.strokes), (Channel.ERASER, marks.erasers)):
        _balls(drawn[channel], [view.to_voxels(line) for line in lines], thick)
    for box in marks.boxes:
        drawn[Channel.BOX][_voxels(view, box)] = 1
    for lasso in marks.lassos:
        _fill(drawn[Channel.LASSO], view, lasso)
    drawn[Channel.SEEN], drawn[Channel.NEAR] = _seen(drawn)
    return drawn


def _seen(drawn: Floats) -> tuple[Floats, Floats]:
    """The image relative to the prompted tissue: 0 for similar intensities, towards +-1 for different ones.

    The tissue is sampled at points and strokes, or else in the mask to start from; the values are tanh((x - centre) /
    scale). In the first channel the scale is twice the median absolute difference within the part of the view around
    the prompts, which may contain bone and air; in the second it is `CLOSE` times that within `SURROUND` voxels of the
    prompts, which is mostly the tissue itself. With boxes and lassos alone, the first channel is derived from intensity
    histograms inside and outside them, and the second is centred on the most likely intensity inside.
    """
    image, edge = drawn[Channel.IMAGE], drawn.shape[-1]
    tissue = (drawn[Channel.INCLUDE] + drawn[Channel.STROKE]) > 0
    wide: tuple[slice, ...] = (slice(None),) * 3
    close = wide
    if tissue.any():
        sides = [np.flatnonzero(tissue.any(tuple(b for b in range(3) if b != axis))) for axis in range(3)]
        half = int(edge * 0.3)
        wide = tuple(slice(max(0, int(np.mean(side)) - half), int(np.mean(side)) + half + 1) for side in sides)
        close = tuple(slice(max(0, int(side[0]) - SURROUND), int(side[-1]) + SURROUND + 1) for side in sides)
        around = ndimage.binary_dilation(tissue[close], iterations=SURROUND)
    else:
        around = np.maximum(drawn[Channel.BOX], drawn[Channel.LASSO]) > 0
        if around.any():
            unlike, likely = _unlike(image, around)
            return unlike, _differences(image, likely, CLOSE * _spread(image[around], likely, 0.25))
        tissue = around = drawn[Channel.PREVIOUS] > 0.5
    centre = float(np.median(image[tissue])) if tissue.any() else 0.0
    scale = max(2 * _spread(image[wide][::2, ::2, ::2], centre, 0.5), 0.03)
    return _differences(image, centre, scale), _differences(
        image, centre, CLOSE * _spread(image[close][around], centre, 0.5)
    )


def _spread(values: Floats, centre: float, share: float) -> float:
    """The distance from `centre` within which a share of the intensities lie."""
    if not values.size:
        return 1.0
    distances = np.abs(values - np.float32(centre)).ravel()
    rank = int(share * (len(distances) - 1))
    return float(np.partition(distances, rank)[rank])


def _differences(image: Floats, centre: float, scale: float) -> Floats:
    """Differences of intensities from `centre` in units of `scale`, compressed to -1 … 1; 0 outside the image."""
    seen = np.tanh((image - np.float32(centre)) / np.float32(max(scale, FAINT)))
    return np.asarray(np.where(image == 0, 0, seen), np.float32)


def _unlike(image: Floats, around: NDArray[np.bool_]) -> tuple[Floats, float]:
    """Preference of each voxel's intensity for the outside of a drawn region over its inside.

    Returns:
        Values from 0 to 1, negative for voxels darker than the most likely intensity inside; and that intensity.
    """
    shown = image != 0
    inner, outer = image[around & shown], image[~around & shown]
    if not len(inner) or not len(outer):
        return np.zeros_like(image), 0.0
    sides = np.linspace(-1, 1, BINS + 1)
    shares = [
        ndimage.gaussian_filter1d(np.histogram(part, sides)[0] / len(part), 1, mode="nearest") + 1e-4
        for part in (inner, outer)
    ]
    outside = np.minimum(1, 2 * shares[1] / (shares[0] + shares[1]))
    likely = sides[:-1][(shares[0] * (1 - outside)).argmax()]
    index = np.clip(((image + 1) * (BINS / 2)).astype(int), 0, BINS - 1)
    seen = np.where(shown, outside[index] * np.where(image < likely, -1, 1), 0)
    return np.asarray(seen, np.float32), float(likely) + 1 / BINS


def _positions(groups: Sequence[Positions]) -> Positions:
    placed = [np.reshape(group, (-1, 3)) for group in groups]
    return np.concatenate(placed) if placed else np.zeros((0, 3))


def _balls(channel: Floats, points: Sequence[Positions], radius: float) -> None:
    """Set balls around points, given in voxels of the view, to 1."""
    if not points:
        return
    edge = channel.shape[0]
    placed = np.concatenate(points)
    reach = int(np.ceil(radius))
    placed = np.unique(np.rint(placed[((placed > -radius) & (placed < edge - 1 + radius)).all(1)]).astype(int), axis=0)
    if not len(placed):
        return
    steps = np.stack(np.meshgrid(*[np.arange(-reach, reach + 1)] * 3, indexing="ij"), -1).reshape(-1, 3)
    steps = steps[(steps**2).sum(1) <= radius**2]
    cells = (placed[:, None] + steps[None]).reshape(-1, 3)
    cells = cells[((cells >= 0) & (cells < edge)).all(1)]
    channel[tuple(cells.T)] = 1


def _voxels(view: View, box: Box) -> tuple[slice, ...]:
    """The view's voxels whose centres lie in a box: at least one along each axis, and in a column at every height."""
    low = view.to_voxels(np.array(box.low))
    high = view.to_voxels(np.array(box.high))
    thin = high - low < 1
    middle = (low + high) / 2
    low, high = np.where(thin, middle - 0.5, low), np.where(thin, middle + 0.5, high)
    if view.column is not None:
        low[view.column[0]], high[view.column[0]] = 0, view.edge
    first = np.clip(np.ceil(low), 0, view.edge).astype(int)
    last = np.clip(np.ceil(high), 0, view.edge).astype(int)
    return tuple(slice(a, b) for a, b in zip(first, last, strict=True))


def _fill(channel: Floats, view: View, lasso: Lasso) -> None:
    low, spacing = view.low, view.spacing
    half = max(lasso.thickness, spacing) / 2
    first = int(np.ceil((lasso.at - half - low[lasso.axis]) / spacing - 1e-6))
    last = int(np.ceil((lasso.at + half - low[lasso.axis]) / spacing - 1e-6))
    if view.column is not None and view.column[0] == lasso.axis:
        first, last = 0, view.edge
    if last <= 0 or first >= view.edge:
        return
    others = [axis for axis in range(3) if axis != lasso.axis]
    curve = (lasso.curve - low[others]) / spacing
    filled = polygon2mask((view.edge, view.edge), curve)
    slab = np.moveaxis(channel, lasso.axis, 0)[max(0, first) : last]
    np.maximum(slab, filled[None], out=slab)


def bounds_of(lasso: Lasso) -> Box:
    """The bounding box of a lasso, as thick as its slice."""
    low, high = np.zeros(3), np.zeros(3)
    others = [axis for axis in range(3) if axis != lasso.axis]
    low[others], high[others] = lasso.curve.min(0), lasso.curve.max(0)
    low[lasso.axis], high[lasso.axis] = lasso.at - lasso.thickness / 2, lasso.at + lasso.thickness / 2
    return Box.of(low, high)
