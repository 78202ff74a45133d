"""Cases: labelled images on the network's grid, read on demand and cached up to a capacity.

Images and labels are resampled by the same `NetworkGrid` and normalised by the same `normalise` as in inference, so
that training and inference see identical inputs. One thread reads at a time.
"""

from __future__ import annotations

import dataclasses
import hashlib
import re
from collections import OrderedDict
from collections.abc import Callable, Container, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from rayapp.errors import BadRequest, RayappError
from rayapp.imaging.label_names import with_names
from rayapp.imaging.placement import pad_to_grid
from rayapp.imaging.reader import read_segmentation, read_volume, split_ext
from rayapp.imaging.unseen import UNSEEN, unseen_voxels, with_unseen_slices
from rayapp.imaging.volume import Grid, Segmentation, Volume
from rayapp.inference.arrays import contiguous
from rayapp.training.partial import unsought
from rayapp.training.train_task import Pair

MIN_PAIRS = 2
"""Least number of labelled images for a training: one to learn from and one to validate with."""
MAX_BYTES = 4096 << 20
"""Largest decoded image or label map, in bytes."""
Indices = npt.NDArray[np.int64]
MAX_PLACES = 4096
"""Largest number of a structure's voxels on which windows are centred."""
SUBJECT = re.compile(r"sub-[A-Za-z0-9]+(?=_|$)")
"""The subject in a file's name (Brain Imaging Data Structure 1.10, *Entities*)."""


@dataclass(frozen=True, kw_only=True)
class Case:
    """An image and its labels on the network's grid.

    Attributes:
        image: Normalised channels, (C, …), float16.
        labels: Label map, (…), uint8; `UNSEEN` where nobody looked.
        unsought: Values of the structures that were not looked for.
        places: By value, from background, some of its voxels as indices of the flattened label map: all, or
            `MAX_PLACES` chosen at random. Windows are centred on them, without a look at the whole image each time.
    """

    image: Tensor
    labels: Tensor
    unsought: tuple[int, ...] = ()
    places: tuple[Indices, ...] = ()

    @property
    def nbytes(self) -> int:
        """Size in memory, in bytes."""
        return self.image.nbytes + self.labels.nbytes + sum(indices.nbytes for indices in self.places)


class Cases:
    """A sequence of cases with a cache.

    The cache keeps the cases that were read first, up to its capacity, and never evicts: if each epoch visits every
    case once in random order, this gives more hits than evicting the least recently used. Beside these, the cases that
    were read last are held, so that several visits in a row read a case once.
    """

    def __init__(self, pairs: Sequence[Pair], read: Callable[[Pair], Case], *, capacity: int, held: int = 0) -> None:
        """A sequence over `pairs`; nothing is read yet.

        Args:
            pairs: The labelled images.
            read: Reads a pair onto the network's grid.
            capacity: Size of the cache in bytes.
            held: Number of further cases that are held, of whatever size.
        """
        self._pairs = pairs
        self._read = read
        self._capacity = capacity
        self._cached_bytes = 0
        self._cache: dict[int, Case] = {}
        self._held: OrderedDict[int, Case] = OrderedDict()
        self._most_held = held

    def __len__(self) -> int:
        return len(self._pairs)

    @property
    def nbytes(self) -> int:
        """Present size of the cache in bytes."""
        return self._cached_bytes

    def __getitem__(self, index: int) -> Case:
        """The case at `index`.

        Raises:
            BadRequest: Naming the image, if its files cannot be trained with.
        """
        case = self._cache.get(index) or self._held.get(index)
        if case is None:
            case = self._read(self._pairs[index])
            if self._cached_bytes + case.nbytes <= self._capacity:
                self._cache[index] = case
                self._cached_bytes += case.nbytes
            else:
                self._held[index] = case
                while len(self._held) > self._most_held:
                    self._held.popitem(last=False)
        return case


def case_of(
    image: npt.NDArray[np.float32],
    labels: npt.NDArray[np.uint8],
    unsought: tuple[int, ...] = (),
    *,
    structures: int | None = None,
) -> Case:
    """A case with a copy of these arrays.

    Args:
        image: Normalised channels, (C, …).
        labels: Label map, (…).
        unsought: Values of the structures that were not looked for.
        structures: Number of structures, by whose voxels windows are drawn; None for images that are seen whole.
    """
    return Case(
        image=torch.from_numpy(contiguous(image)).half(),
        labels=torch.from_numpy(contiguous(labels.astype(np.uint8, copy=False))),
        unsought=unsought,
        places=() if structures is None else tuple(places(labels, value) for value in range(structures + 1)),
    )


def places(labels: npt.NDArray[np.uint8], value: int) -> Indices:
    """Indices of the voxels of a value in the flattened label map; of more than `MAX_PLACES`, a random choice."""
    found = np.flatnonzero(labels == value)
    if len(found) > MAX_PLACES:
        found = np.sort(np.random.default_rng(0).choice(found, MAX_PLACES, replace=False))
    return found


class Annotated(NamedTuple):
    """An image with its annotation.

    Attributes:
        volume: The image.
        labels: Label map, (I, J, K); `UNSEEN` where nobody looked.
        unsought: Values of the structures that were not looked for.
    """

    volume: Volume
    labels: npt.NDArray[np.uint8]
    unsought: tuple[int, ...]


def read_pair(pair: Pair, labels: Mapping[str, int] | None) -> Annotated:
    """Read an image, and its label map on the image's voxel grid.

    A label file that names its segments (`.seg.nrrd`) is mapped by name; segments with other names become background,
    and at least one must be a structure of `labels`. The same applies if the label's info names a structure of
    `labels`. Any other label file must have the values of `labels`.

    Args:
        pair: The labelled image.
        labels: Value by structure name; None keeps the label file's values.

    Raises:
        BadRequest: Naming the image, if a file is damaged, too large, on another grid or has other labels.
    """
    try:
        volume = read_volume(pair.image, max_bytes=MAX_BYTES)
        segmentation = read_segmentation(pair.label, max_bytes=MAX_BYTES)
        segmentation = pad_to_grid(segmentation, Grid(shape=volume.shape, affine=volume.affine))
        mapped = _mapped(_named(segmentation, pair.info, labels), labels)
        found = {int(value) for value in np.flatnonzero(np.bincount(mapped.ravel()))}
        open_ = unsought(pair.info, labels, found) if labels else ()
        return Annotated(volume, with_unseen_slices(mapped, pair.info), open_)
    except (RayappError, OSError) as error:
        raise BadRequest(f"image {name_of(pair)!r} cannot be trained with: {error}") from error


def bad_pairs(pairs: Sequence[Pair], check: Callable[[Pair], object]) -> dict[str, str]:
    """Read all pairs before a training begins, so that all bad ones are known at once.

    Args:
        pairs: The labelled images.
        check: Reads a pair; raises BadRequest if it cannot be trained with.

    Returns:
        By the image's name, the reason for each pair that cannot be trained with.
    """
    bad: dict[str, str] = {}
    for pair in pairs:
        try:
            check(pair)
        except BadRequest as error:
            bad[name_of(pair)] = error.detail.partition("cannot be trained with: ")[2] or error.detail
    return bad


def _named(segmentation: Segmentation, info: Mapping[str, Any], labels: Mapping[str, int] | None) -> Segmentation:
    """The label map with the names from its file, or from its info if one of these is a structure of `labels`."""
    named = with_names(segmentation, info)
    known = {name.casefold() for name in labels or ()}
    return named if known & {name.casefold() for name in named.names} else segmentation


def _mapped(segmentation: Segmentation, labels: Mapping[str, int] | None) -> npt.NDArray[np.uint8]:
    """The label map with the values of `labels`, where it names its segments, and `UNSEEN` where nobody looked."""
    unseen = unseen_voxels(segmentation)
    array = segmentation.array if unseen is None else np.where(unseen, 0, segmentation.array)
    mapped = _valued(dataclasses.replace(segmentation, array=array), labels)
    return mapped if unseen is None else np.where(unseen, np.uint8(UNSEEN), mapped)


def _valued(segmentation: Segmentation, labels: Mapping[str, int] | None) -> npt.NDArray[np.uint8]:
    """The label map with the values of `labels`, from a label file without unseen voxels."""
    array = segmentation.array
    highest = int(array.max(initial=0))
    if labels is None:
        if highest > 255:
            raise BadRequest(f"its label map has the value {highest}, but 255 is the largest allowed")
        return array.astype(np.uint8)
    values = {name: value for name, value in labels.items() if value}
    if segmentation.names:
        if not {name.casefold() for name in values} & {name.casefold() for name in segmentation.names}:
            raise BadRequest(
                f"its label map names only {', '.join(map(repr, segmentation.names))}, none of {values}: rename its "
                "segments, or name all structures with --labels"
            )
        table = np.zeros(highest + 1, dtype=np.uint8)
        for name, value in segmentation.names.items():
            if value <= highest:
                table[value] = _value_of(name, values, taken=segmentation.names)
        by_name: npt.NDArray[np.uint8] = table[array]
        return by_name
    if highest > max(values.values()):
        raise BadRequest(
            f"its label map has the value {highest}, which is none of {values}: name all structures with --labels"
        )
    return array.astype(np.uint8)


def _value_of(name: str, values: Mapping[str, int], *, taken: Container[str]) -> int:
    """The value of the structure with this name, or with the only name not in `taken` that differs in case alone; else
    0.
    """
    alike = [value for other, value in values.items() if other.casefold() == name.casefold() and other not in taken]
    return values.get(name, alike[0] if len(alike) == 1 else 0)


def name_of(pair: Pair) -> str:
    """The image's id: its file name without the extension, or its folder's name."""
    return pair.image.name if pair.image.is_dir() else split_ext(pair.image.name)[0]


def too_few(count: int, without: str = "") -> BadRequest:
    """The error for fewer than `MIN_PAIRS` labelled images; `without` names those that were left out."""
    return BadRequest(
        f"training needs at least two labelled images, one of them for validation, but there are {count}{without}: "
        "label more images"
    )


def split(pairs: Sequence[Pair], share: float) -> tuple[list[Pair], list[Pair]]:
    """Split pairs into training and validation pairs, at least one each.

    All images of a patient are on the same side, since a model validated on a patient that it was trained on looks too
    good. The side depends on the patient alone (or the image's name, if the patient is unknown), so it does not change
    as more images are labelled, and a version's validation images were not in its parent's training set either. If all
    images are of one patient, they are split by name.

    Args:
        pairs: At least two labelled images.
        share: Share of validation pairs, between 0 and 1; approximate for few pairs.

    Returns:
        Training and validation pairs, each sorted by name.
    """
    patients = [patient_of(pair) for pair in pairs]
    if len(set(patients)) == 1:
        patients = [name_of(pair) for pair in pairs]
    ranked = sorted(set(patients), key=_fraction)
    count = sum(_fraction(patient) < share for patient in ranked)
    held = set(ranked[: min(max(count, 1), len(ranked) - 1)])
    sides = [(pair, patient in held) for pair, patient in zip(pairs, patients, strict=True)]
    train, validation = ([pair for pair, held_ in sides if held_ is side] for side in (False, True))
    return sorted(train, key=name_of), sorted(validation, key=name_of)


def patient_of(pair: Pair) -> str:
    """The key of an image's patient: the datastore's, or the subject in a BIDS file name, or else the image's name."""
    subject = SUBJECT.match(name_of(pair))
    return pair.patient or (subject.group() if subject else name_of(pair))


def _fraction(name: str) -> float:
    """A pseudo-random number from 0 to 1 that depends on a name alone."""
    digest = hashlib.sha256(name.encode()).digest()
    return int.from_bytes(digest[:8], "big") / 2**64


def digest_of(pairs: Sequence[Pair]) -> str:
    """Digest of a training set: over the images' names and sizes in bytes, and the label files' contents."""
    digest = hashlib.sha256()
    for pair in sorted(pairs, key=name_of):
        label = hashlib.sha256(pair.label.read_bytes()).hexdigest()
        digest.update(f"{name_of(pair)}\0{_size(pair.image)}\0{label}\n".encode())
    return f"SHA256:{digest.hexdigest()}"


def _size(path: Path) -> int:
    files = path.rglob("*") if path.is_dir() else [path]
    return sum(file.stat().st_size for file in files if file.is_file())
