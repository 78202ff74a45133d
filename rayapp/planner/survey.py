"""Survey: what a data set looks like, from its headers and a few decoded images.

Headers tell spacing and size; a few images are decoded for their intensities and modality, a few label maps for where
the structures lie. All axes are turned to R, A, S first. The work is bounded: by number, by bytes of one image and by
time. Only reads; may run beside anything.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Self, TypeVar

import numpy as np
import numpy.typing as npt
from scipy import ndimage

from rayapp.datastore import folder_scan
from rayapp.errors import NotFound, RayappError, Unreadable
from rayapp.geometry import Orientation, spacing
from rayapp.imaging.reader import read_grid, read_segmentation, read_volume
from rayapp.imaging.volume import Grid
from rayapp.protocol import FINAL, ORIGINAL

HEADERS = 200
"""Images whose headers are read."""
DECODED = 10
"""Images that are decoded, and label maps: as many as MONAI Label's planner looks at."""
MAX_BYTES = 1 << 30
"""Bytes that one decoded image may have."""
SECONDS = 30.0
"""After so long no further image is opened."""
VALUES = 100_000
"""Voxels of an image that its intensities are taken from."""
AIR, AIR_SHARE = -500, 0.02
"""Images with more than this share of voxels below this are in Hounsfield units: no other modality has such values."""

Triple = tuple[float, float, float]
Progress = Callable[[int, int], None]
"""Told how many of how many files are done."""
Found = TypeVar("Found")


@dataclass(frozen=True, kw_only=True)
class Structure:
    """One label value: its median volume in millilitres, and its bounding box's median sizes (mm along R, A, S)."""

    volume: float
    box: Triple


@dataclass(frozen=True, kw_only=True)
class Survey:
    """What was found. `spacing` and `size` are medians, `extent` is what 95 % of the images stay within: mm, voxels
    and mm along R, A, S. `stacked` is the one of these axes (0, 1 or 2) that most images' slices are stacked along.
    `intensities` are the 0.5th, 50th and 99.5th percentile; `foreground` is the median box of all structures together
    (mm), None without labels."""

    images: int
    sampled: int
    unreadable: int
    labelled: int
    channels: int
    modality: str
    spacing: Triple
    size: Triple
    extent: Triple
    stacked: int
    intensities: Triple
    structures: Mapping[int, Structure]
    foreground: Triple | None

    @classmethod
    def of(cls, images: Sequence[Path], labels: Mapping[Path, Path], *, progress: Progress | None = None) -> Self:
        """Look at images (files or DICOM folders) and at the label maps that some of them have.

        Raises:
            NotFound: if there is no image, or none of the sample could be read.
        """
        headers, decoded = _spread(images, HEADERS), _spread(images, DECODED)
        maps = [labels[image] for image in _spread([image for image in images if image in labels], DECODED)]
        pace = _Pace(len(headers) + len(decoded) + len(maps), progress)
        grids, failed = pace.over(headers, read_grid)
        if not grids:
            raise NotFound("none of the images sampled could be read" if images else "there are no images to look at")
        volumes, _ = pace.over(decoded, _look)
        marked, _ = pace.over(maps, _mark)
        spacings, sizes = np.array([_turned(grid) for grid in grids]).transpose(1, 0, 2)
        values = np.concatenate([values for _, values in volumes]) if volumes else np.zeros(1)
        return cls(
            images=len(images),
            sampled=len(grids),
            unreadable=failed,
            labelled=len(labels),
            channels=statistics.mode(channels for channels, _ in volumes) if volumes else 1,
            modality="CT" if np.mean(values < AIR) > AIR_SHARE else "MR",
            spacing=_triple(np.median(spacings, axis=0)),
            size=_triple(np.median(sizes, axis=0)),
            extent=_triple(np.percentile(spacings * sizes, 95, axis=0)),
            stacked=statistics.mode(Orientation.of(grid.affine).axes.index(2) for grid in grids),
            intensities=_triple(np.percentile(values, (0.5, 50, 99.5))),
            structures=_medians([structures for structures, _ in marked]),
            foreground=_triple(np.median([box for _, box in marked], axis=0)) if marked else None,
        )

    def axes(self, count: int) -> list[int]:
        """The patient axes that a network of so many has."""
        return [axis for axis in range(3) if count == 3 or axis != self.stacked]


def surveyed(labels: Mapping[Path, Path]) -> Survey:
    """The survey of images and their label maps, remembered for as long as this process lives and no file changes.

    Raises as `Survey.of` does.
    """
    return _remembered(tuple(sorted((_stamp(image), _stamp(label)) for image, label in labels.items())))


Stamp = tuple[str, int, int]


@lru_cache(maxsize=4)
def _remembered(files: tuple[tuple[Stamp, Stamp], ...]) -> Survey:
    labels = {Path(image[0]): Path(label[0]) for image, label in files}
    return Survey.of(list(labels), labels)


def _stamp(path: Path) -> Stamp:
    try:
        found = path.stat()
    except OSError:
        return str(path), 0, 0
    return str(path), found.st_mtime_ns, found.st_size


def of_folder(studies: Path, *, progress: Progress | None = None) -> Survey:
    """The survey of a studies folder, which may be in use. Submitted labels come before original ones.

    Raises:
        NotFound: if there is no such folder or no readable image in it.
    """
    if not studies.is_dir():
        raise NotFound("there is no such studies folder")
    found, _ = folder_scan.images(studies, {})
    images = {image_id: studies / f"{image_id}{ext}" for image_id, ext in sorted(found.items())}
    labels = {}
    for tag in (ORIGINAL, FINAL):
        where = studies / folder_scan.LABELS / tag
        for name in folder_scan.files(where):
            split = folder_scan.split_name(name)
            if split is not None and split[0] in images:
                labels[images[split[0]]] = where / name
    return Survey.of(list(images.values()), labels, progress=progress)


def _spread(paths: Sequence[Path], most: int) -> list[Path]:
    """At most so many of them, evenly spread."""
    if len(paths) <= most:
        return list(paths)
    return [paths[round(n * (len(paths) - 1) / (most - 1))] for n in range(most)]


class _Pace:
    """Reads file after file while there is time, and tells how far it is."""

    def __init__(self, total: int, progress: Progress | None) -> None:
        self._total = total
        self._done = 0
        self._progress = progress
        self._deadline = time.monotonic() + SECONDS

    def over(self, paths: Iterable[Path], read: Callable[[Path], Found]) -> tuple[list[Found], int]:
        """What was found in each, and how many were damaged, too large or without anything to find."""
        found, failed = [], 0
        for path in paths:
            if time.monotonic() > self._deadline:
                break
            try:
                found.append(read(path))
            except (RayappError, OSError):
                failed += 1
            self._done += 1
            if self._progress is not None:
                self._progress(self._done, self._total)
        return found, failed


def _turned(grid: Grid) -> tuple[npt.NDArray[np.float64], npt.NDArray[np.float64]]:
    """Spacing (mm) and voxels along R, A, S."""
    axes = list(Orientation.of(grid.affine).axes)
    return spacing(grid.affine)[axes], np.array(grid.shape, dtype=np.float64)[axes]


def _look(path: Path) -> tuple[int, npt.NDArray[np.float32]]:
    """An image's channels, and values of voxels evenly spread over the first of them."""
    volume = read_volume(path, max_bytes=MAX_BYTES)
    flat = volume.array[0].ravel(order="K")
    values = flat[:: max(1, flat.size // VALUES)].astype(np.float32)
    return volume.channels, values[np.isfinite(values)]


def _mark(path: Path) -> tuple[dict[int, Structure], Triple]:
    """The structures of a label map, and the box around them all. Raises Unreadable if there are none."""
    found = read_segmentation(path, max_bytes=MAX_BYTES)
    axes = Orientation.of(found.affine).axes
    edges = spacing(found.affine)
    counts = np.bincount(found.array.ravel(order="K"))
    boxes = {value: box for value, box in enumerate(ndimage.find_objects(found.array), start=1) if box is not None}
    if not boxes:
        raise Unreadable("the label map is empty")

    def millimetres(corners: Sequence[tuple[int, int]]) -> Triple:
        return _triple((corners[axis][1] - corners[axis][0]) * edges[axis] for axis in axes)

    structures = {
        value: Structure(
            volume=float(counts[value] * edges.prod() / 1000),
            box=millimetres([(part.start, part.stop) for part in box]),
        )
        for value, box in boxes.items()
    }
    around = [(min(b[n].start for b in boxes.values()), max(b[n].stop for b in boxes.values())) for n in range(3)]
    return structures, millimetres(around)


def _medians(maps: Sequence[Mapping[int, Structure]]) -> dict[int, Structure]:
    """Each structure over the label maps that have it."""
    values = sorted({value for structures in maps for value in structures})
    having = {value: [structures[value] for structures in maps if value in structures] for value in values}
    return {
        value: Structure(
            volume=statistics.median(one.volume for one in seen),
            box=_triple(np.median([one.box for one in seen], axis=0)),
        )
        for value, seen in having.items()
    }


def _triple(numbers: Iterable[float]) -> Triple:
    r, a, s = (float(number) for number in numbers)
    return r, a, s
