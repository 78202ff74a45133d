"""ArchiveTwin: an archive in this process, below `PacsClient`, that can do everything archives do at the wrong moment.

It stands in for dicomweb-client's `DICOMwebClient`: slices arrive late, lists are empty, short or shift between two
pages, segmentations arrive during a save, storing is slow or refused, and several servers can use it at once.
"""

from __future__ import annotations

import hashlib
import threading
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass, field
from functools import cache
from io import BytesIO
from pathlib import Path
from typing import Any

import nibabel
import numpy as np
import pydicom
import pytest
import requests
from pydicom.dataset import Dataset

from rayapp.config import Settings
from rayapp.datastore.dicomweb import DicomwebDatastore
from rayapp.datastore.interfaces import Author, LabelRecord
from rayapp.imaging.dicom_seg import encode
from rayapp.imaging.reader import read_volume
from rayapp.imaging.volume import Segmentation
from tests.imaging.grids import AFFINES, MAX, voxels
from tests.imaging.series import write_series
from tests.waiting import until

SHAPE = (5, 7, 4)
AFFINE = AFFINES["straight"]
A, B, C, D = (f"1.2.3.{n}" for n in range(1, 5))
"""UIDs of series."""
_SERIES = ("SeriesInstanceUID", "StudyInstanceUID", "Modality", "SeriesDescription", "PatientID", "StudyDate")


@cache
def _head(file: bytes) -> Dataset:
    """The header of an instance."""
    return pydicom.dcmread(BytesIO(file), stop_before_pixels=True)


def _item(dataset: Dataset, *keywords: str) -> dict[str, Any]:
    """Attributes as in the DICOM JSON model."""
    return {f"{dataset[name].tag:08X}": {"vr": dataset[name].VR, "Value": [dataset[name].value]} for name in keywords}


def http_error(status: int) -> requests.HTTPError:
    """The error of an answer with this status."""
    response = requests.Response()
    response.status_code = status
    return requests.HTTPError(response=response)


@dataclass
class ArchiveTwin:
    """The archive. `before[method]` is called with the method's arguments before it answers, and may raise or wait.

    Attributes:
        held: {SeriesInstanceUID: files of its instances}, in the order of the lists.
        announces: False for an archive that does not say how many instances a series has.
        unlisted: series that lists leave out; asked for by their UID they are there.
        lost: series that neither lists nor single searches show.
        empty: every search finds nothing.
        calls: (method, series) in order.
    """

    held: dict[str, list[bytes]] = field(default_factory=dict)
    announces: bool = True
    unlisted: set[str] = field(default_factory=set)
    lost: set[str] = field(default_factory=set)
    empty: bool = False
    before: dict[str, Callable[..., None]] = field(default_factory=dict)
    calls: list[tuple[str, str]] = field(default_factory=list)
    lock: threading.RLock = field(default_factory=threading.RLock)

    # What the tests do to it

    def add(self, folder: Path, series: str, *, slices: int | None = None, shape: tuple[int, ...] = SHAPE) -> None:
        """A CT series, the first slices of it by position; call `arrive` for the rest."""
        files = write_series(folder / series, voxels(shape), AFFINE, series=series, study=f"{series}.9")
        self.held[series] = [file.read_bytes() for file in files[:slices]]
        self._late = {
            **getattr(self, "_late", {}),
            series: [file.read_bytes() for file in files[slices or len(files) :]],
        }

    def arrive(self, series: str, number: int = 1 << 20) -> None:
        """Slices that have not arrived yet."""
        late = self._late[series]
        with self.lock:
            self.held[series] = [*self.held[series], *late[:number]]
        del late[:number]

    def put(self, data: bytes) -> str:
        """Store an instance as another program does. Returns its SeriesInstanceUID."""
        series = str(_head(data).SeriesInstanceUID)
        with self.lock:
            self.held.setdefault(series, []).append(data)
        return series

    def segs(self, of: str | None = None) -> list[Dataset]:
        """The segmentations that it holds, in the order in which they came."""
        with self.lock:
            found = [
                pydicom.dcmread(BytesIO(files[0])) for files in self.held.values() if _head(files[0]).Modality == "SEG"
            ]
        return [seg for seg in found if of in (None, seg.ReferencedSeriesSequence[0].SeriesInstanceUID)]

    def asked(self, method: str) -> int:
        """Number of calls of a method."""
        return sum(name == method for name, _ in self.calls)

    # What the client asks

    def _begin(self, method: str, series: str, *args: Any) -> None:
        self.calls.append((method, series))
        if hook := self.before.get(method):
            hook(series, *args)

    def search_for_series(
        self,
        study: str | None = None,
        *,
        search_filters: dict[str, str] | None = None,
        fields: list[str] | None = None,
        limit: int | None = None,
        offset: int = 0,
    ) -> list[dict[str, Any]]:
        filters = search_filters or {}
        wanted = filters.get("SeriesInstanceUID")
        self._begin("search_for_series", wanted or study or "", offset)
        items = []
        with self.lock:
            for series, files in ({} if self.empty else self.held).items():
                head = _head(files[0])
                if series in self.lost or (wanted is None and study is None and series in self.unlisted):
                    continue
                if wanted not in (None, series) or study not in (None, head.StudyInstanceUID):
                    continue
                if filters.get("Modality") not in (None, head.Modality):
                    continue
                count = {"00201209": {"vr": "IS", "Value": [len(files)]}} if self.announces else {}
                items.append({**_item(head, *(name for name in _SERIES if name in head)), **count})
        return items[offset:][:limit]

    def search_for_instances(
        self, study: str, series: str, *, limit: int | None = None, offset: int = 0
    ) -> list[dict[str, Any]]:
        self._begin("search_for_instances", series, study)
        heads = [_head(file) for file in self.held.get(series, ())]
        return [_item(head, "SOPInstanceUID") for head in heads][offset:][:limit]

    def retrieve_series_metadata(self, study: str, series: str) -> list[dict[str, Any]]:
        self._begin("retrieve_series_metadata", series, study)
        head = _head(self.held[series][0])
        return [head.to_json_dict()]

    def iter_series(self, study: str, series: str, media_types: Any) -> Iterator[Dataset]:
        self._begin("iter_series", series, study)
        if series not in self.held:
            raise http_error(404)
        for file in list(self.held[series]):
            yield pydicom.dcmread(BytesIO(file))

    def store_instances(self, datasets: list[Dataset]) -> Dataset:
        (dataset,) = datasets
        self._begin("store_instances", str(dataset.ReferencedSeriesSequence[0].SeriesInstanceUID), dataset)
        buffer = BytesIO()
        dataset.save_as(buffer)
        with self.lock:
            if str(dataset.SeriesInstanceUID) not in self.held:
                self.put(buffer.getvalue())
        stored, answer = Dataset(), Dataset()
        stored.ReferencedSOPInstanceUID = dataset.SOPInstanceUID
        answer.ReferencedSOPSequence = [stored]
        return answer

    def set_http_retry_params(self, **given: Any) -> None:
        """Nothing is asked twice here."""


@dataclass
class Twins:
    """The archive, and servers on it that are closed after the test."""

    archive: ArchiveTwin
    folder: Path
    opened: list[DicomwebDatastore] = field(default_factory=list)

    def server(self, name: str = "a", **fields: Any) -> DicomwebDatastore:
        """Open the server of this name, also again after a close."""
        known = {"url": "http://archive", "fresh": 0.0, **fields.pop("dicomweb", {})}
        settings = Settings(
            studies=self.folder / name / "studies", workspace=self.folder / name, dicomweb=known, **fields
        )
        self.opened.append(DicomwebDatastore(settings, watch=False, settle=fields.pop("settle", 0.0)))
        return self.opened[-1]

    def seg(
        self, series: str, array: np.ndarray[Any, Any], *, made_by: str = "Somebody", name: str = "theirs"
    ) -> bytes:
        """A segmentation of the series as another program makes it."""
        dataset = pydicom.dcmread(
            BytesIO(encode(Segmentation(array=array, affine=AFFINE), self.folder / "files" / series))
        )
        dataset.Manufacturer, dataset.SeriesDescription = made_by, name
        buffer = BytesIO()
        dataset.save_as(buffer)
        return buffer.getvalue()


def mask(value: int, shape: tuple[int, ...] = SHAPE) -> np.ndarray[Any, Any]:
    """A label map of its own for each value from 1 to the number of voxels, of one structure."""
    array = np.zeros(shape, np.uint8)
    array.reshape(-1)[:value] = 1
    return array


def save(
    store: DicomwebDatastore,
    series: str,
    value: int,
    *,
    tag: str = "final",
    user: str = "anna",
    as_sent: bool = False,
    **given: Any,
) -> LabelRecord:
    """Save `mask(value)` the way the gateway does; `as_sent` with an info that says that the archive has it."""
    staged = store.stage(".nii.gz")
    image = nibabel.load(store.image(series).path)
    nibabel.Nifti1Image(mask(value, image.shape), image.affine).to_filename(staged)
    info = {"archived": hashlib.sha256(staged.read_bytes()).hexdigest()} if as_sent else {}
    return store.save_label(series, tag, staged, ".nii.gz", info=info, author=Author(user=user), **given)


def value_of(store: DicomwebDatastore, series: str, tag: str = "final") -> int:
    """The number of the `mask` that the label is."""
    return int(np.count_nonzero(nibabel.load(store.label(series, tag).path).get_fdata()))


def slices_of(path: Path) -> int:
    """Slices of a volume."""
    return int(read_volume(path, max_bytes=MAX).array.shape[-1])


def held(twins: Twins, *series: str, slices: int | None = None) -> None:
    """Put series into the archive."""
    for one in series:
        twins.archive.add(twins.folder / "files", one, slices=slices)


def sent(store: Any) -> None:
    """Wait until nothing is left to be sent."""
    until(lambda: not store.unsent())


def refuses(*failing: str, error: Callable[[], Exception]) -> Callable[..., None]:
    """An archive that stores no segmentation of these series."""

    def before(series: str, *_: Any) -> None:
        if series in failing:
            raise error()

    return before


@pytest.fixture
def twins(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Twins]:
    """An archive with nothing in it, which servers get instead of the network."""
    archive = ArchiveTwin()
    monkeypatch.setattr("rayapp.datastore.pacs.DICOMwebClient", lambda *_, **__: archive)
    made = Twins(archive, tmp_path)
    yield made
    archive.before.clear()
    for store in made.opened:
        with suppress(Exception):
            store.close()
