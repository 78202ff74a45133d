"""Regions of an unlabelled real image: a hierarchy of parts and wholes, by the strength of their borders.

Watershed basins of the image's gradient are merged, those with the weakest border first. A region that persists while
many weaker borders vanish is as salient as a structure: the hierarchy contains parts, organs and groups of organs.
nnInteractive learns from supervoxels of real images likewise (arXiv 2503.08373).
"""

from __future__ import annotations

import heapq
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

from rayapp.training.synthetic.shapes import Bools, Floats, Random

Ints = NDArray[np.int64]
STANDING = 1.35
"""Least ratio of a region's border to the strongest border within it, for the region to be learnt from."""
FAINTEST = 0.12
"""Borders with less than this share of the image's strong gradients are noise."""


@dataclass(frozen=True)
class Regions:
    """The salient regions of an image.

    Attributes:
        basins: (i, j, k), the number of each voxel's basin; the basins of a region are numbered consecutively.
        first, end: for each region, its first basin and the one after its last.
        sizes: voxels of each region.
        stands: for each region, the ratio of its border to the strongest border within it.
    """

    basins: NDArray[np.int32]
    first: Ints
    end: Ints
    sizes: Ints
    stands: NDArray[np.float64]

    def draw(self, random: Random) -> Bools | None:
        """A random region: all orders of magnitude of size are equally likely, and more salient regions are more
        likely.

        Returns:
            Its voxels (i, j, k); None if the image has no region.
        """
        if not len(self.sizes):
            return None
        order = np.log2(self.sizes).astype(int)
        alike = np.flatnonzero(order == random.choice(np.unique(order)))
        weights = np.minimum(self.stands[alike] - 1, 3)
        chosen = int(random.choice(alike, p=weights / weights.sum()))
        return np.asarray((self.basins >= self.first[chosen]) & (self.basins < self.end[chosen]))


def regions(image: Floats, width: float, *, smallest: int = 80, largest: float = 0.3) -> Regions:
    """Find the salient regions of an image.

    Args:
        image: (i, j, k).
        width: standard deviation of the Gaussian that smooths the image first, voxels.
        smallest: least number of voxels of a region.
        largest: largest share of the image that a region covers.
    """
    from skimage.segmentation import watershed  # slow to import

    slope = ndimage.gaussian_gradient_magnitude(image, width).astype(np.float32)
    basins = np.asarray(watershed(slope), np.int32)
    basins -= basins.min()
    count = int(basins.max()) + 1
    sizes = np.bincount(basins.ravel(), minlength=count)
    left, right, height = _merged(count, _borders(basins, slope))
    nodes = count + len(left)
    voxels = np.concatenate([sizes, np.zeros(len(left), np.int64)])
    leaves = np.concatenate([np.ones(count, np.int64), np.zeros(len(left), np.int64)])
    inner, outer = np.zeros(nodes), np.full(nodes, np.inf)
    inner[:count] = FAINTEST * np.quantile(slope, 0.97)
    for number, (a, b, border) in enumerate(zip(left, right, height, strict=True)):
        node = count + number
        voxels[node], leaves[node] = voxels[a] + voxels[b], leaves[a] + leaves[b]
        inner[node] = max(border, inner[a], inner[b])
        outer[a] = outer[b] = border
    start = np.zeros(nodes, np.int64)
    known = np.zeros(nodes, bool)
    rank = np.empty(count, np.int32)
    placed = 0
    for node in range(nodes - 1, -1, -1):  # parents come before their parts
        if not known[node]:
            start[node], placed = placed, placed + leaves[node]
        if node < count:
            rank[node] = start[node]
        else:
            a, b = left[node - count], right[node - count]
            start[a], start[b] = start[node], start[node] + leaves[a]
            known[a] = known[b] = True
    inner = np.maximum(inner, 1e-9)
    kept = (outer > STANDING * inner) & np.isfinite(outer)
    kept &= (voxels >= smallest) & (voxels <= largest * image.size)
    return Regions(rank[basins], start[kept], (start + leaves)[kept], voxels[kept], (outer / inner)[kept])


def _borders(basins: NDArray[np.int32], slope: Floats) -> dict[tuple[int, int], tuple[float, int]]:
    """For every two touching basins, the sum of gradients along their border and its number of faces."""
    keys, values = [], []
    count = int(basins.max()) + 1
    for axis in range(3):
        before, after = [slice(None)] * 3, [slice(None)] * 3
        before[axis], after[axis] = slice(None, -1), slice(1, None)
        a, b = basins[tuple(before)], basins[tuple(after)]
        apart = a != b
        low, high = np.minimum(a[apart], b[apart]), np.maximum(a[apart], b[apart])
        keys.append(low.astype(np.int64) * count + high)
        values.append(np.maximum(slope[tuple(before)][apart], slope[tuple(after)][apart]))
    pairs, which = np.unique(np.concatenate(keys), return_inverse=True)
    sums = np.bincount(which, np.concatenate(values))
    faces = np.bincount(which)
    return {
        (int(pair // count), int(pair % count)): (float(total), int(number))
        for pair, total, number in zip(pairs, sums, faces, strict=True)
    }


def _merged(count: int, borders: dict[tuple[int, int], tuple[float, int]]) -> tuple[list[int], list[int], list[float]]:
    """Merge basins, those with the least mean gradient between them first.

    Returns:
        For each merged region, numbered from `count`: its two parts, and the mean gradient of their border.
    """
    touching: list[dict[int, tuple[float, int]]] = [{} for _ in range(count)]
    heap = []
    for (a, b), (total, faces) in borders.items():
        touching[a][b] = touching[b][a] = (total, faces)
        heap.append((total / faces, a, b))
    heapq.heapify(heap)
    node = list(range(count))
    left, right, height = [], [], []
    while heap:
        mean, a, b = heapq.heappop(heap)
        border = touching[a].get(b)
        if border is None or abs(border[0] / border[1] - mean) > 1e-9:
            continue
        if len(touching[a]) < len(touching[b]):
            a, b = b, a
        left.append(node[a])
        right.append(node[b])
        height.append(mean)
        node[a] = count + len(left) - 1
        near, absorbed = touching[a], touching[b]
        touching[b] = {}
        del near[b]
        for other, (total, faces) in absorbed.items():  # the one with fewer neighbours is absorbed: seldom many
            if other == a:
                continue
            known = near.get(other, (0.0, 0))
            del touching[other][b]
            near[other] = touching[other][a] = (known[0] + total, known[1] + faces)
            heapq.heappush(heap, (near[other][0] / near[other][1], a, other))
    return left, right, height
