"""Cases: training examples on the network's grid, read when they are needed and kept while there is room.

Images and labels come through the same `NetworkGrid` and `normalise` as inference's, so that a network meets in
training exactly what it will be shown. One thread reads at a time.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from rayapp.errors import BadRequest, RayappError
from rayapp.imaging.placement import pad_to_grid
from rayapp.imaging.reader import read_segmentation, read_volume, split_ext
from rayapp.imaging.volume import Grid, Segmentation, Volume
from rayapp.training.train_task import Pair

MAX_BYTES = 4096 << 20
"""Bytes that one decoded image or label map may have."""


@dataclass(frozen=True, kw_only=True)
class Case:
    """An image, (C, …) float16, and its labels, (…) uint8, on the network's grid."""

    image: Tensor
    labels: Tensor

    @property
    def nbytes(self) -> int:
        """Bytes held."""
        return self.image.nbytes + self.labels.nbytes


class Cases:
    """A sequence of cases.

    The first to be read stay, up to `capacity` bytes; the others are read again each time. (In epochs that visit each
    case once in random order this serves more from memory than dropping the least recently used.)
    """

    def __init__(self, pairs: Sequence[Pair], read: Callable[[Pair], Case], *, capacity: int) -> None:
        self._pairs = pairs
        self._read = read
        self._capacity = capacity
        self._held = 0
        self._kept: dict[int, Case] = {}

    def __len__(self) -> int:
        return len(self._pairs)

    @property
    def nbytes(self) -> int:
        """Bytes held now."""
        return self._held

    def __getitem__(self, index: int) -> Case:
        """Raises BadRequest naming the image if its files cannot be trained with."""
        case = self._kept.get(index)
        if case is None:
            case = self._read(self._pairs[index])
            if self._held + case.nbytes <= self._capacity:
                self._kept[index] = case
                self._held += case.nbytes
        return case


def case_of(image: npt.NDArray[np.float32], labels: npt.NDArray[np.uint8]) -> Case:
    """Arrays as a case, in memory of its own."""
    return Case(
        image=torch.from_numpy(image).half(), labels=torch.from_numpy(np.ascontiguousarray(labels, dtype=np.uint8))
    )


def read_pair(pair: Pair, labels: Mapping[str, int] | None) -> tuple[Volume, npt.NDArray[np.uint8]]:
    """An image and its label map on the image's grid, with the values of `labels` (as they are, if None).

    A label file that names its segments (`.seg.nrrd`) is read by name, and other segments are background; the values
    of one that does not must be those of `labels`.

    Raises:
        BadRequest: naming the image, if a file is damaged, too large, on another grid or labelled otherwise.
    """
    try:
        volume = read_volume(pair.image, max_bytes=MAX_BYTES)
        found = read_segmentation(pair.label, max_bytes=MAX_BYTES)
        segmentation = pad_to_grid(found, Grid(shape=volume.shape, affine=volume.affine))
        return volume, _valued(segmentation, labels)
    except (RayappError, OSError) as error:
        raise BadRequest(f"image {name_of(pair)!r} cannot be trained with: {error}") from error


def _valued(segmentation: Segmentation, labels: Mapping[str, int] | None) -> npt.NDArray[np.uint8]:
    array = segmentation.array
    top = int(array.max(initial=0))
    if labels is None:
        if top > 255:
            raise BadRequest(f"its label map has a value {top}; 255 is the largest")
        return array.astype(np.uint8)
    values = {name: value for name, value in labels.items() if value}
    if values.keys() & segmentation.names.keys():
        table = np.zeros(top + 1, dtype=np.uint8)
        for name, value in segmentation.names.items():
            if value <= top:
                table[value] = values.get(name, 0)
        named: npt.NDArray[np.uint8] = table[array]
        return named
    if top > max(values.values()):
        raise BadRequest(f"its label map has a value {top} that is none of {values}: start the server with --labels")
    return array.astype(np.uint8)


def name_of(pair: Pair) -> str:
    """The image's id: its file's name without the extension, or its folder's."""
    return pair.image.name if pair.image.is_dir() else split_ext(pair.image.name)[0]


def split(pairs: Sequence[Pair], share: float) -> tuple[list[Pair], list[Pair]]:
    """Pairs to train with and, about `share` of them, to validate with; at least one each.

    An image's side follows from its name, so that it stays there as others join: what validates a model was not
    trained on by the model that it started from.
    """
    ranked = sorted(pairs, key=_draw)
    held = sum(_draw(pair) < share for pair in ranked)
    held = min(max(held, 1), len(ranked) - 1)
    return sorted(ranked[held:], key=name_of), sorted(ranked[:held], key=name_of)


def _draw(pair: Pair) -> float:
    """A number from 0 to 1 that only the image's name decides."""
    digest = hashlib.sha256(name_of(pair).encode()).digest()
    return int.from_bytes(digest[:8], "big") / 2**64


def digest_of(pairs: Sequence[Pair]) -> str:
    """What a set of pairs is: the images' names and sizes in bytes, and the label files' contents."""
    whole = hashlib.sha256()
    for pair in sorted(pairs, key=name_of):
        label = hashlib.sha256(pair.label.read_bytes()).hexdigest()
        whole.update(f"{name_of(pair)}\0{_size(pair.image)}\0{label}\n".encode())
    return f"SHA256:{whole.hexdigest()}"


def _size(path: Path) -> int:
    files = path.rglob("*") if path.is_dir() else [path]
    return sum(file.stat().st_size for file in files if file.is_file())
