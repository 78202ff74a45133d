"""Prompts in millimetres, and what they look like in a view: the promptable network's input channels."""

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
"""(n, 3), millimetres along the image's axes from the centre of its first voxel."""

POINT = 2.0
"""Radius of a point's ball, in the view's voxels."""
BINS = 32
"""Of the histograms that tell a box's inside from its outside."""
CLOSE = 3.0
"""Scale of the image as seen from the prompts, in units of what varies around them."""
FAINT = 0.015
"""The least such scale, of a view's range of intensities from -1 to 1."""
SURROUND = 2
"""What varies around prompts is measured within this many of the view's voxels."""
STROKE = 1.0
"""Radius of a stroke, in the view's voxels."""


@dataclass(frozen=True)
class Box:
    """A box with sides along the image's axes; `low` and `high` are its corners, millimetres."""

    low: tuple[float, float, float]
    high: tuple[float, float, float]

    @classmethod
    def of(cls, low: NDArray[np.float64], high: NDArray[np.float64]) -> Box:
        """The box between two corners (3), millimetres."""
        return cls((float(low[0]), float(low[1]), float(low[2])), (float(high[0]), float(high[1]), float(high[2])))


@dataclass(frozen=True)
class Lasso:
    """A closed curve around the structure on one slice.

    Attributes:
        axis: the axis that the slice is perpendicular to.
        at: the slice's position on it, millimetres.
        thickness: of the slice, millimetres.
        curve: (n, 2), millimetres along the other two axes.
    """

    axis: int
    at: float
    thickness: float
    curve: NDArray[np.float64]


@dataclass
class Marks:
    """All prompts for one structure.

    Attributes:
        include, exclude: points of the structure, and of anything else.
        strokes, erasers: places painted on the structure and on anything else, each (n, 3) millimetres.
        boxes, lassos: drawn around the structure.
        pitch: the distance between a stroke's neighbouring places, millimetres; it is drawn without gaps.
    """

    include: list[Positions] = field(default_factory=list)
    exclude: list[Positions] = field(default_factory=list)
    strokes: list[Positions] = field(default_factory=list)
    erasers: list[Positions] = field(default_factory=list)
    boxes: list[Box] = field(default_factory=list)
    lassos: list[Lasso] = field(default_factory=list)
    pitch: float = 0.0

    def copy(self) -> Marks:
        """Other lists with the same prompts, to add to."""
        return self.plus(Marks())

    def plus(self, more: Marks) -> Marks:
        """These prompts and more, of the same pitch."""
        lists = ("include", "exclude", "strokes", "erasers", "boxes", "lassos")
        return Marks(**{name: [*getattr(self, name), *getattr(more, name)] for name in lists}, pitch=self.pitch)

    def digest(self) -> bytes:
        """A digest of the prompts."""
        found = hashlib.blake2b(repr((self.boxes, self.pitch)).encode(), digest_size=16)
        for group in (self.include, self.exclude, self.strokes, self.erasers):
            found.update(b"|")
            for points in group:
                found.update(np.ascontiguousarray(points).tobytes() + b",")
        for lasso in self.lassos:
            found.update(repr((lasso.axis, lasso.at)).encode() + lasso.curve.tobytes())
        return found.digest()

    def denied(self) -> bool:
        """Whether anything is said not to be the structure."""
        return bool(self.exclude or self.erasers)

    def on_structure(self) -> Positions:
        """Positions (n, 3) that are said to be the structure's."""
        placed = [np.reshape(p, (-1, 3)) for p in (*self.include, *self.strokes)]
        return np.concatenate(placed) if placed else np.zeros((0, 3))

    def around(self) -> list[Box]:
        """Boxes, and lassos as boxes."""
        return [*self.boxes, *(bounds_of(lasso) for lasso in self.lassos)]

    def bounds(self) -> Box | None:
        """The box around all prompts for the structure; None without any."""
        corners = [self.on_structure(), *(np.array([box.low, box.high]) for box in self.around())]
        placed = np.concatenate(corners)
        return Box.of(placed.min(0), placed.max(0)) if len(placed) else None


def channels(view: View, image: Floats, marks: Marks, previous: Floats | None = None) -> Floats:
    """The network's inputs (10, edge, edge, edge) for prompts in a view.

    Args:
        view: where to look.
        image: (edge, edge, edge), as `view.normalised` gives it.
        marks: the prompts, wherever they lie.
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
    """The image as seen from the prompts: 0 on tissue like theirs, towards +-1 where it differs.

    The tissue is what points and strokes lie on, or else the mask to start from: tanh((x - centre) / scale). The scale
    is first twice the median absolute difference in the view's part around the prompts, which may hold bone and air,
    then `CLOSE` times that within `SURROUND` voxels of them, which is mostly the tissue itself. Of boxes and lassos
    alone the first is what is inside rather than around, by the intensities' histograms, and the second is seen from
    the intensity that is likeliest inside.
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
    """The distance from `centre` that `share` of some intensities keep."""
    if not values.size:
        return 1.0
    distances = np.abs(values - np.float32(centre)).ravel()
    rank = int(share * (len(distances) - 1))
    return float(np.partition(distances, rank)[rank])


def _differences(image: Floats, centre: float, scale: float) -> Floats:
    """Intensities around `centre` in units of `scale`, bent to -1 … 1; 0 beyond the image."""
    seen = np.tanh((image - np.float32(centre)) / np.float32(max(scale, FAINT)))
    return np.asarray(np.where(image == 0, 0, seen), np.float32)


def _unlike(image: Floats, around: NDArray[np.bool_]) -> tuple[Floats, float]:
    """How much likelier each voxel's intensity is around a drawn region than inside it, 0 to 1 and negative where it is
    darker than what is likeliest inside; and that intensity."""
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


def _balls(channel: Floats, points: Sequence[Positions], radius: float) -> None:
    """Set balls around points, given in voxels, to 1."""
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
    """The view's voxels whose centres a box holds, at least one along each axis, and all of a column's height."""
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
    """The box around a lasso, with its slice's thickness."""
    low, high = np.zeros(3), np.zeros(3)
    others = [axis for axis in range(3) if axis != lasso.axis]
    low[others], high[others] = lasso.curve.min(0), lasso.curve.max(0)
    low[lasso.axis], high[lasso.axis] = lasso.at - lasso.thickness / 2, lasso.at + lasso.thickness / 2
    return Box.of(low, high)
