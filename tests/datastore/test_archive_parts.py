"""Series of several volumes in an archive: echoes, phases and acquisitions are images of their own, as in a folder."""

from __future__ import annotations

import json
from io import BytesIO
from pathlib import Path

import numpy as np
import pydicom
import pytest

from rayapp.datastore import series_cache
from rayapp.errors import NotFound, Unreadable
from rayapp.imaging.dicom_seg import encode
from rayapp.imaging.reader import read_volume
from rayapp.imaging.volume import Segmentation
from rayapp.upkeep.backup import back_up, restore
from rayapp.upkeep.erasure import erase
from tests.datastore.archive_twin import AFFINE, SHAPE, A, B, Twins, held, mask, save, sent, twins, value_of
from tests.imaging.grids import MAX, voxels
from tests.imaging.series import edit, write_series
from tests.waiting import until

__all__ = ["twins"]

FIRST, SECOND = f"{A}_echo-1", f"{A}_echo-2"


def arrive(twins: Twins, echo: int) -> Path:
    """An echo of series A; its voxels are those of the phantom and a thousand for each echo."""
    folder = twins.folder / "files" / f"{A}-{echo}"
    array = voxels(SHAPE) + np.int16(1000 * echo)
    for file in write_series(folder, array, AFFINE, series=A, study=f"{A}.9"):
        edit(file, EchoNumbers=echo)
        twins.archive.put(file.read_bytes())
    return folder


def echo_of(store, image_id: str) -> int:
    """The echo that an image is, all of whose voxels are checked."""
    array = read_volume(store.image(image_id).path, max_bytes=MAX).array[0]
    (echo,) = {int(n) for n in np.unique((array - voxels(SHAPE)) / 1000)}
    np.testing.assert_array_equal(array, voxels(SHAPE) + 1000 * echo)
    return echo


def opened(twins: Twins, *parts: str, **fields):
    """A server that has found out what the series holds, as somebody opened it."""
    store = twins.server(**fields)
    with pytest.raises(Unreadable, match=r"holds \d volumes.* open 1\.2\.3\.1_echo-1, 1\.2\.3\.1_echo-2"):
        store.image(A)
    until(lambda: {image_id for image_id in store.image_ids() if image_id.startswith(A)} == set(parts))
    return store


def test_echoes_in_one_series_are_images_of_their_own_once_it_was_opened(twins: Twins) -> None:
    arrive(twins, 1)
    arrive(twins, 2)
    held(twins, B)
    store = opened(twins, FIRST, SECOND)
    assert store.image_ids() == [FIRST, SECOND, B]
    assert [echo_of(store, image_id) for image_id in (FIRST, SECOND)] == [1, 2]
    info = store.image(SECOND).info
    assert (info["SeriesInstanceUID"], info["SeriesDescription"]) == (A, "phantom echo-2")
    with pytest.raises(Unreadable, match="open"):
        store.image(A)
    with pytest.raises(NotFound):
        store.image(f"{A}_echo-3")
    assert twins.archive.asked("iter_series") == 1


def test_the_parts_are_known_after_a_restart_and_an_eviction(twins: Twins, monkeypatch: pytest.MonkeyPatch) -> None:
    arrive(twins, 1)
    arrive(twins, 2)
    held(twins, B)
    store = opened(twins, FIRST, SECOND, dicomweb={"cache": 1})
    store.close()
    monkeypatch.setattr(series_cache, "GRACE_S", -1.0)
    store = twins.server(dicomweb={"cache": 1})
    assert store.image_ids() == [FIRST, SECOND, B]
    store.image(B)  # takes the place of the other series
    assert not (twins.folder / "a" / "retrieved" / A).exists()
    assert [echo_of(store, image_id) for image_id in (SECOND, FIRST)] == [2, 1]
    store.refresh()
    assert store.image_ids() == [FIRST, SECOND, B]


def test_a_series_keeps_its_id_and_labels_when_another_echo_arrives_after_it_was_opened(twins: Twins) -> None:
    arrive(twins, 2)
    store = twins.server()
    assert echo_of(store, A) == 2
    save(store, A, 5)
    sent(store)
    arrive(twins, 1)
    store.refresh()
    assert echo_of(store, A) == 2
    until(lambda: store.image_ids() == [A, FIRST])
    assert echo_of(store, FIRST) == 1
    assert value_of(store, A) == 5
    assert "original" not in store.labels(FIRST)
    arrive(twins, 3)
    store.refresh()
    assert [echo_of(store, image_id) for image_id in (A, FIRST)] == [2, 1]
    until(lambda: store.image_ids() == [A, FIRST, f"{A}_echo-3"])
    store.close()
    assert echo_of(twins.server(), A) == 2


def test_the_ids_of_the_parts_come_back_with_a_backup(twins: Twins) -> None:
    arrive(twins, 2)
    store = twins.server()
    store.image(A)
    arrive(twins, 1)
    store.refresh()
    store.image(A)
    workspace, target, other = (twins.folder / name for name in ("a", "backup", "b"))
    back_up(workspace / "studies", workspace, target)
    restore(target, other / "studies", other)
    store = twins.server("b")
    assert [echo_of(store, image_id) for image_id in (A, FIRST)] == [2, 1]


def test_a_part_that_is_no_volume_does_not_keep_the_others_from_being_opened(twins: Twins) -> None:
    arrive(twins, 1)
    folder = arrive(twins, 2)
    gap = pydicom.dcmread(sorted(folder.iterdir(), key=_height)[1]).SOPInstanceUID
    twins.archive.held[A] = [
        file for file in twins.archive.held[A] if pydicom.dcmread(BytesIO(file)).SOPInstanceUID != gap
    ]
    store = opened(twins, FIRST, SECOND)
    assert echo_of(store, FIRST) == 1
    for _ in range(2):
        with pytest.raises(Unreadable, match="not evenly spaced"):
            store.image(SECOND)
    assert twins.archive.asked("iter_series") == 1


def _height(file: Path) -> float:
    return float(pydicom.dcmread(file).ImagePositionPatient[2])


def test_a_label_of_a_part_is_archived_on_its_instances_and_found_again_for_that_part_alone(twins: Twins) -> None:
    arrive(twins, 1)
    folder = arrive(twins, 2)
    store = opened(twins, FIRST, SECOND)
    save(store, SECOND, 6)
    sent(store)
    (seg,) = twins.archive.segs(A)
    named = {str(item.ReferencedSOPInstanceUID) for item in seg.ReferencedSeriesSequence[0].ReferencedInstanceSequence}
    assert named == {str(pydicom.dcmread(file).SOPInstanceUID) for file in folder.iterdir()}
    other = opened(twins, FIRST, SECOND, name="b")
    for image_id in (FIRST, SECOND):
        other.image(image_id)
    assert value_of(other, SECOND) == 6
    assert other.labels(FIRST) == {}


def test_a_segmentation_by_others_belongs_to_the_part_whose_instances_it_names(twins: Twins) -> None:
    arrive(twins, 1)
    folder = arrive(twins, 2)
    dataset = pydicom.dcmread(BytesIO(encode(Segmentation(array=mask(7), affine=AFFINE), folder)))
    dataset.Manufacturer = "Somebody"
    buffer = BytesIO()
    dataset.save_as(buffer)
    twins.archive.put(buffer.getvalue())
    store = opened(twins, FIRST, SECOND)
    for image_id in (FIRST, SECOND):
        store.image(image_id)
    assert store.labels(FIRST) == {}
    assert value_of(store, SECOND, "original") == 7


def test_a_training_reads_each_part_by_its_own_label(twins: Twins, tmp_path: Path) -> None:
    arrive(twins, 1)
    arrive(twins, 2)
    store = opened(twins, FIRST, SECOND)
    save(store, FIRST, 3)
    save(store, SECOND, 4)
    for pairs in (store.datalist(), store.datalist(images=tmp_path / "images")):
        for pair in pairs:
            image = read_volume(Path(pair["image"]), max_bytes=MAX).array[0]
            label = read_volume(Path(pair["label"]), max_bytes=MAX).array[0]
            assert (label > 0).sum() == (image - voxels(SHAPE)).max() / 1000 + 2


def test_erasing_one_part_leaves_the_ids_of_the_others(twins: Twins) -> None:
    arrive(twins, 2)
    store = twins.server()
    store.image(A)
    arrive(twins, 1)
    store.refresh()
    store.image(A)
    until(lambda: store.image_ids() == [A, FIRST])
    store.close()
    workspace = twins.folder / "a"
    erase(workspace / "studies", workspace, FIRST)
    (record,) = (workspace / "studies" / ".rayapp" / "parts").iterdir()
    assert list(json.loads(record.read_text())) == [A]
    assert not (workspace / "retrieved" / A).exists()
    store = twins.server()
    assert echo_of(store, A) == 2
