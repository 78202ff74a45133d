"""Survey: summary of a data set, from its headers and a sample of decoded images.

Headers give spacing and size; some images are decoded for intensities and modality, some label maps for volumes and
boxes of the structures. All axes are reordered to R, A, S. The work is bounded in number of files, bytes per image and
time. Read-only, so it may run while the folder is in use.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import lru_cache
from pathlib import Path
from typing import Any, Self, TypeVar

import numpy as np
import numpy.typing as npt
from scipy import ndimage

from rayapp.datastore import folder_scan
from rayapp.errors import NotFound, RayappError, Unreadable
from rayapp.geometry import Orientation, spacing
from rayapp.imaging.reader import read_grid, read_segmentation, read_volume
from rayapp.imaging.unseen import unseen_voxels
from rayapp.imaging.volume import Grid
from rayapp.planner.studies import Studies, opened

MAX_HEADERS = 200
"""Number of images whose headers are read."""
MAX_DECODED = 10
"""Number of images, and of label maps, that are decoded: as many as MONAI Label's planner decodes."""
MAX_BYTES = 1 << 30
"""Maximum size of a decoded image in bytes."""
TIME_LIMIT_S = 30.0
"""Time limit in seconds, after which no further file is opened."""
SAMPLED_VOXELS = 100_000
"""Number of voxels sampled per image for its intensities."""
AIR, AIR_SHARE = -500, 0.02
"""Images with a larger share of voxels below AIR are in Hounsfield units: no other modality has such values."""

_NO_IMAGES = "no images to survey: the folder has no NIfTI, NRRD, MetaImage or DICOM files"

Triple = tuple[float, float, float]
Progress = Callable[[int, int], None]
"""Called with the number of files done and the total."""
Result = TypeVar("Result")


class NothingReadable(NotFound):
    """No image of a folder can be read; `problems` has the reasons, by each image's path or name."""

    def __init__(self, detail: str, problems: Mapping[str, str] | None = None) -> None:
        super().__init__(detail)
        self.problems = dict(problems or {})


@dataclass(frozen=True, kw_only=True)
class Structure:
    """One label value: its median volume in ml, and the median size of its bounding box (mm along R, A, S)."""

    volume: float
    box: Triple


@dataclass(frozen=True, kw_only=True)
class Survey:
    """Summary of a data set, along R, A, S.

    Attributes:
        images: number of images.
        sampled: number of images whose headers were read.
        unreadable: number of sampled images whose headers could not be read.
        labelled: number of images with a label map.
        channels: most frequent number of channels.
        modality: "CT" or "MR", judged by intensities; None if no image could be decoded.
        spacing: median spacing, mm.
        size: median number of voxels.
        extent: 95th percentile of the images' size, mm.
        slice_axis: axis (0, 1 or 2) along which the slices of most images are stacked.
        intensities: 0.5th, 50th and 99.5th percentile; None if no image could be decoded.
        structures: by label value.
        foreground: median box of all structures together, mm; None without labels.
        foreground_intensities: as `intensities`, of the structures' voxels alone; None without labels, and but for CT.
        problems: the reason why a file cannot be read, or is left out, by its path in the studies folder.
    """

    images: int
    sampled: int
    unreadable: int
    labelled: int
    channels: int
    modality: str | None
    spacing: Triple
    size: Triple
    extent: Triple
    slice_axis: int
    intensities: Triple | None
    structures: Mapping[int, Structure]
    foreground: Triple | None
    foreground_intensities: Triple | None = None
    problems: Mapping[str, str] = field(default_factory=dict)

    @classmethod
    def of(cls, images: Sequence[Path], labels: Mapping[Path, Path], *, progress: Progress | None = None) -> Self:
        """Survey images and the label maps that some of them have.

        Args:
            images: image files or DICOM folders.
            labels: label map of each labelled image.
            progress: called after each file.

        Raises:
            NothingReadable: if there are no images, or none of the sample could be read.
        """
        headers, decoded = _spread(images, MAX_HEADERS), _spread(images, MAX_DECODED)
        maps = [labels[image] for image in _spread([image for image in images if image in labels], MAX_DECODED)]
        reader = _TimedReader(len(headers) + len(decoded) + len(maps), progress)
        grids = reader.over(headers, read_grid)
        unreadable = len(reader.problems)
        if not grids:
            problems = {str(path): reason for path, reason in reader.problems.items()}
            raise NothingReadable("none of the sampled images could be read" if images else _NO_IMAGES, problems)
        volumes = reader.over(decoded, _sample)
        values = np.concatenate([values for _, values in volumes]) if volumes else np.zeros(0)
        modality = ("CT" if np.mean(values < AIR) > AIR_SHARE else "MR") if values.size else None
        image_of = {label: image for image, label in labels.items()} if modality == "CT" else {}
        measured = reader.over(maps, lambda path: _measure(path, image_of.get(path)))
        within = np.concatenate([values for _, _, values in measured]) if measured else np.zeros(0)
        spacings, sizes = np.array([_oriented(grid) for grid in grids]).transpose(1, 0, 2)
        return cls(
            images=len(images),
            sampled=len(grids),
            unreadable=unreadable,
            problems={str(path): reason for path, reason in reader.problems.items()},
            labelled=len(labels),
            channels=statistics.mode(channels for channels, _ in volumes) if volumes else 1,
            modality=modality,
            spacing=_triple(np.median(spacings, axis=0)),
            size=_triple(np.median(sizes, axis=0)),
            extent=_triple(np.percentile(spacings * sizes, 95, axis=0)),
            slice_axis=statistics.mode(Orientation.of(grid.affine).axes.index(2) for grid in grids),
            intensities=_percentiles(values),
            structures=_medians([structures for structures, _, _ in measured]),
            foreground=_triple(np.median([box for _, box, _ in measured], axis=0)) if measured else None,
            foreground_intensities=_percentiles(within),
        )

    def axes(self, count: int) -> list[int]:
        """Patient axes (indices into R, A, S) of a network with this many axes."""
        return [axis for axis in range(3) if count == 3 or axis != self.slice_axis]


def cached_survey(labels: Mapping[Path, Path]) -> Survey:
    """The survey of labelled images, cached while the process lives and no file changes. Raises as `Survey.of`."""
    return _cached(tuple(sorted((_stamp(image), _stamp(label)) for image, label in labels.items())))


Stamp = tuple[str, int, int]


@lru_cache(maxsize=4)
def _cached(files: tuple[tuple[Stamp, Stamp], ...]) -> Survey:
    labels = {Path(image[0]): Path(label[0]) for image, label in files}
    return Survey.of(list(labels), labels)


def _stamp(path: Path) -> Stamp:
    try:
        status = path.stat()
    except OSError:
        return str(path), 0, 0
    return str(path), status.st_mtime_ns, status.st_size


def survey_folder(studies: Path, *, progress: Progress | None = None) -> Survey:
    """The survey of a studies folder, which may be in use. Raises as `survey_studies`, and NotFound for no folder."""
    with opened(studies) as found:
        return survey_studies(found, progress=progress)


def survey_studies(studies: Studies, *, progress: Progress | None = None) -> Survey:
    """The survey of a studies folder that was read.

    Raises:
        NothingReadable: if it has no readable image; the problems are named as in `Survey.problems`.
    """
    try:
        survey = Survey.of(list(studies.images.values()), studies.labels, progress=progress)
    except NothingReadable as error:
        raise NothingReadable(error.detail, studies.named(_paths(error.problems))) from None
    return replace(survey, problems=studies.named(_paths(survey.problems)))


def _paths(problems: Mapping[str, str]) -> dict[Path, str]:
    return {Path(path): reason for path, reason in problems.items()}


def _spread(paths: Sequence[Path], most: int) -> list[Path]:
    """At most `most` of the paths, evenly spaced."""
    if len(paths) <= most:
        return list(paths)
    return [paths[round(n * (len(paths) - 1) / (most - 1))] for n in range(most)]


class _TimedReader:
    """Reads files until the time limit, and reports progress."""

    def __init__(self, total: int, progress: Progress | None) -> None:
        self._total = total
        self._done = 0
        self._progress = progress
        self._deadline = time.monotonic() + TIME_LIMIT_S
        self.problems: dict[Path, str] = {}
        """The reason why a file could not be read, by its path."""

    def over(self, paths: Iterable[Path], read: Callable[[Path], Result]) -> list[Result]:
        """The results for the files read; those that are damaged, too large or empty are added to the problems."""
        results = []
        for path in paths:
            if time.monotonic() > self._deadline:
                break
            try:
                results.append(read(path))
            except RayappError as error:
                self.problems.setdefault(path, error.detail)
            except OSError as error:
                self.problems.setdefault(path, folder_scan.why(error))
            self._done += 1
            if self._progress is not None:
                self._progress(self._done, self._total)
        return results


def _oriented(grid: Grid) -> tuple[npt.NDArray[np.float64], npt.NDArray[np.float64]]:
    """Spacing (mm) and number of voxels along R, A, S."""
    axes = list(Orientation.of(grid.affine).axes)
    return spacing(grid.affine)[axes], np.array(grid.shape, dtype=np.float64)[axes]


def _sample(path: Path) -> tuple[int, npt.NDArray[np.float32]]:
    """Number of channels of an image, and values of evenly spaced voxels of the first one."""
    volume = read_volume(path, max_bytes=MAX_BYTES)
    flat = volume.array[0].ravel(order="K")
    values = flat[:: max(1, flat.size // SAMPLED_VOXELS)].astype(np.float32)
    return volume.channels, values[np.isfinite(values)]


def _measure(path: Path, image: Path | None) -> tuple[dict[int, Structure], Triple, npt.NDArray[np.float32]]:
    """The structures of a label map, the size of the box around them, and the values in them of the image, if given.

    Raises:
        Unreadable: if the label map has no structure.
    """
    label = read_segmentation(path, max_bytes=MAX_BYTES)
    if (unseen := unseen_voxels(label)) is not None:
        label = replace(label, array=np.where(unseen, 0, label.array))
    axes = Orientation.of(label.affine).axes
    edges = spacing(label.affine)
    counts = np.bincount(label.array.ravel(order="K"))
    boxes = {value: box for value, box in enumerate(ndimage.find_objects(label.array), start=1) if box is not None}
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
    together = [(min(b[n].start for b in boxes.values()), max(b[n].stop for b in boxes.values())) for n in range(3)]
    return structures, millimetres(together), _within(label.array, image)


def _within(labels: npt.NDArray[np.uint8], image: Path | None) -> npt.NDArray[np.float32]:
    """Values of evenly spaced labelled voxels of an image's first channel; none if the image has another grid."""
    if image is None:
        return np.zeros(0, np.float32)
    array = read_volume(image, max_bytes=MAX_BYTES).array[0]
    if array.shape != labels.shape:
        return np.zeros(0, np.float32)
    values = array[labels > 0]
    values = values[:: max(1, values.size // SAMPLED_VOXELS)].astype(np.float32)
    return np.asarray(values[np.isfinite(values)])


def _percentiles(values: npt.NDArray[Any]) -> Triple | None:
    return _triple(np.percentile(values, (0.5, 50, 99.5))) if values.size else None


def _medians(maps: Sequence[Mapping[int, Structure]]) -> dict[int, Structure]:
    """Medians of each structure over the label maps that contain it."""
    values = sorted({value for structures in maps for value in structures})
    by_value = {value: [structures[value] for structures in maps if value in structures] for value in values}
    return {
        value: Structure(
            volume=statistics.median(one.volume for one in seen),
            box=_triple(np.median([one.box for one in seen], axis=0)),
        )
        for value, seen in by_value.items()
    }


def _triple(numbers: Iterable[float]) -> Triple:
    r, a, s = (float(number) for number in numbers)
    return r, a, s
