"""The scenes of the archive twin once against a real Orthanc: late slices, short and shifting lists, slow and refused
storing, segmentations during a save, removals, restarts, and a second server."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from rayapp.config import Settings
from rayapp.datastore import dicomweb
from rayapp.datastore.dicomweb import DicomwebDatastore
from rayapp.datastore.interfaces import ImageScore
from rayapp.imaging.dicom_seg import MANUFACTURER, encode
from rayapp.imaging.volume import Segmentation
from tests.datastore.archive_twin import mask, save, slices_of, value_of
from tests.datastore.placed import CT, MR, Placed, segmentations
from tests.front import DENIED, PLAIN, SLOW
from tests.imaging.grids import AFFINES, voxels
from tests.imaging.series import edit, write_series
from tests.orthanc import needs_orthanc
from tests.waiting import until

pytestmark = [needs_orthanc, pytest.mark.slow]

Server = Callable[..., DicomwebDatastore]


@pytest.fixture
def server(placed: Placed, monkeypatch: pytest.MonkeyPatch) -> Iterator[Server]:
    """Opens the server of a name, also again after a close."""
    for name in ("FIRST_SEARCH_S", "LABEL_SEARCH_S"):
        monkeypatch.setattr(dicomweb, name, 600.0)
    opened = []

    def open_it(name: str = "a", **fields: Any) -> DicomwebDatastore:
        known = {"url": placed.front.url + "/dicom-web", "fresh": 0.0, "timeout": 60.0, **fields}
        settings = Settings(studies=placed.folder / name / "studies", workspace=placed.folder / name, dicomweb=known)
        opened.append(DicomwebDatastore(settings, watch=False, settle=0.1))
        return opened[-1]

    yield open_it
    placed.front.way = PLAIN
    for store in opened:
        store.close()


def sent(store: DicomwebDatastore) -> None:
    """Wait until nothing is left to be sent."""
    until(lambda: not store.unsent())


def values(placed: Placed) -> list[int]:
    """The numbers of the masks that the archive has, ascending."""
    return sorted(int(np.count_nonzero(seg.pixel_array)) for seg in segmentations(placed.archive))


def final_of_another(placed: Placed, value: int) -> Path:
    """A final label as another server makes it."""
    path = placed.folder / f"another_{value}.dcm"
    label = Segmentation(array=mask(value, voxels().shape), affine=AFFINES["oblique"])
    path.write_bytes(encode(label, placed.folder / CT))
    edit(path, Manufacturer=MANUFACTURER, SeriesDescription="final 1")
    return path


def test_slices_that_come_late_are_retrieved_too(placed: Placed, server: Server) -> None:
    files = write_series(placed.folder / "late", voxels(), AFFINES["straight"], series="1.2.9", study="1.2.9.9")
    placed.archive.store(files[:2])
    store = server()
    store.refresh()
    assert slices_of(store.image("1.2.9").path) == 2
    placed.archive.store(files[2:])
    store.refresh()
    assert slices_of(store.image("1.2.9").path) == len(files)


def test_a_list_that_shifts_between_two_pages_loses_nothing(
    placed: Placed, server: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("rayapp.datastore.pacs.PAGE", 2)
    for number in range(4):
        files = write_series(
            placed.folder / f"ct{number}",
            voxels(),
            AFFINES["straight"],
            series=f"1.2.8.{number}",
            study=f"1.2.8.{number}.9",
        )
        placed.archive.store(files)
    store = server()
    everything = store.image_ids()
    assert len(everything) == 6
    search, removed = store._pacs._client.search_for_series, []

    def shifts(*args: Any, **given: Any) -> Any:
        page = search(*args, **given)
        if page and not removed:
            removed.append(page[0]["0020000E"]["Value"][0])
            (own,) = placed.archive.find("Series", {"SeriesInstanceUID": removed[0]})
            placed.archive.remove("series", own)
        return page

    monkeypatch.setattr(store._pacs._client, "search_for_series", shifts)
    store.refresh()
    assert set(everything) - set(removed) <= set(store.image_ids())
    store.refresh()
    assert store.image_ids() == [each for each in everything if each not in removed]


@pytest.mark.parametrize("unlisted", [{"CT", "MR"}, {"MR"}], ids=["empty", "short"])
def test_a_list_that_lacks_series_drops_nothing_that_the_archive_still_has(
    placed: Placed, server: Server, monkeypatch: pytest.MonkeyPatch, unlisted: set[str]
) -> None:
    store = server()
    save(store, MR, 3)
    search, lists = store._pacs._client.search_for_series, []

    def lacks(study: str | None = None, **given: Any) -> Any:
        filters = given["search_filters"]
        if study is None and "SeriesInstanceUID" not in filters and filters["Modality"] in unlisted:
            lists.append(filters["Modality"])
            return []
        return search(study, **given)

    monkeypatch.setattr(store._pacs._client, "search_for_series", lacks)
    for _ in range(2):
        store.refresh()
        assert store.image_ids() == [CT, MR]
        assert value_of(store, MR) == 3
    assert set(lists) == unlisted


@pytest.mark.parametrize("way", [SLOW, DENIED])
def test_what_is_stored_late_is_the_last_that_was_saved(placed: Placed, server: Server, way: str) -> None:
    store = server(timeout=30.0)
    store.image(CT)
    placed.front.way, placed.front.only = way, "POST"
    for value in (3, 4):
        save(store, CT, value)
    if way == DENIED:
        until(lambda: "denies" in store.label(CT, "final").info.get("archive_waiting", ""))
        placed.front.way = PLAIN
    sent(store)
    placed.front.way = PLAIN
    label = store.label(CT, "final")
    assert label.info["archived"] == label.revision
    assert "archive_waiting" not in label.info
    assert values(placed)[-1] == 4
    assert value_of(store, CT) == 4
    assert {each.user for each in store.revisions(CT, "final")} == {"anna"}


def test_a_final_saved_while_the_archive_is_searched_stays(
    placed: Placed, server: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = server()
    store.image(CT)
    placed.archive.store([final_of_another(placed, 5)])
    found = store._pacs.segmentations

    def saves(*args: Any, **given: Any) -> Any:
        answer = found(*args, **given)
        monkeypatch.setattr(store._pacs, "segmentations", found)
        save(store, CT, 7)
        return answer

    monkeypatch.setattr(store._pacs, "segmentations", saves)
    store.labels(CT)
    assert value_of(store, CT) == 7
    sent(store)
    assert values(placed) == [5, 7]


def test_a_deleted_final_stays_deleted_over_a_restart(placed: Placed, server: Server) -> None:
    store = server()
    save(store, CT, 3)
    sent(store)
    store.remove_label(CT, "final")
    assert "final" not in store.labels(CT)
    store.close()
    store = server()
    for _ in range(2):
        store.refresh()
        assert "final" not in store.labels(CT)
    assert values(placed) == [3]


def test_two_servers_agree_until_annotators_save_on_both(placed: Placed, server: Server) -> None:
    first, second = server("a"), server("b")
    save(first, CT, 3)
    sent(first)
    second.image(CT)
    assert value_of(second, CT) == 3
    save(first, CT, 4)
    sent(first)
    assert value_of(second, CT) == 4
    save(second, CT, 5, user="ben")
    sent(second)
    for store, value in ((first, 4), (second, 5)):
        store.labels(CT)
        assert value_of(store, CT) == value
    assert values(placed) == [3, 4, 5]


def test_a_series_that_is_away_for_a_while_keeps_everything(placed: Placed, server: Server) -> None:
    store = server()
    save(store, MR, 3)
    sent(store)
    store.save_scores([ImageScore(image_id=MR, run="r", ts=1.0, values={"u": 1.0})])
    (own,) = placed.archive.find("Series", {"SeriesInstanceUID": MR})
    placed.archive.remove("series", own)
    store.refresh()
    assert store.image_ids() == [CT]
    placed.archive.store(sorted((placed.folder / MR).iterdir()))
    store.refresh()
    assert store.image_ids() == [CT, MR]
    assert value_of(store, MR) == 3
    assert MR not in store.unscored("r", images="all")
