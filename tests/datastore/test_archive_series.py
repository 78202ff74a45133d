"""Series of the archive that arrive late, flap in its lists, or are retrieved while it does not answer."""

from __future__ import annotations

import json
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest

from rayapp.datastore import bounded_wait, dicomweb, series_cache
from rayapp.datastore.interfaces import ImageScore
from rayapp.errors import Busy, NotFound
from tests.datastore.archive_twin import (
    A,
    B,
    C,
    D,
    Twins,
    held,
    http_error,
    mask,
    refuses,
    save,
    sent,
    slices_of,
    twins,
    value_of,
)
from tests.waiting import until

__all__ = ["twins"]


@pytest.mark.parametrize("reopened", [False, True])
def test_a_series_that_was_retrieved_while_it_arrived_is_retrieved_again(twins: Twins, reopened: bool):
    held(twins, A, slices=2)
    store = twins.server()
    assert slices_of(store.image(A).path) == 2
    if reopened:
        store.close()
    twins.archive.arrive(A)
    store = twins.server() if reopened else store
    store.refresh()
    assert slices_of(store.image(A).path) == 4


def test_a_label_of_a_part_of_a_series_is_not_sent_and_says_so(twins: Twins):
    held(twins, A, slices=2)
    store = twins.server()
    store.image(A)
    twins.archive.before["store_instances"] = lambda *_: pytest.fail("a segmentation of a part was sent")
    twins.archive.arrive(A)
    save_of_part(store)
    sent(store)
    assert "grid" in store.label(A, "final").info["archive_problem"]
    assert store.status()["archive"] == {"unsent": 0, "refused": 1}


def save_of_part(store: Any) -> None:
    """A label of the slices that have been retrieved, as an annotator who opened the image earlier saves it."""
    save(store, A, 5)


def test_a_new_series_is_taken_when_two_looks_see_the_same_number_of_instances(twins: Twins):
    held(twins, A)
    store = twins.server()
    twins.archive.add(twins.folder / "files", B, slices=1, shape=(5, 7, 20))
    twins.archive.before["search_for_series"] = lambda *_: twins.archive.arrive(B, 1)
    store.refresh()
    assert store.image_ids() == [A]
    with pytest.raises(Busy, match="arriving"):
        store.image(B)
    twins.archive.before.clear()
    twins.archive.arrive(B)
    store.refresh()
    assert store.image_ids() == [A, B]
    assert slices_of(store.image(B).path) == 20


def test_a_number_that_the_archive_announces_and_never_sends_is_accepted_in_the_end(twins: Twins):
    held(twins, A)
    store = twins.server()
    announced = twins.archive.search_for_series

    def wrong(*args: Any, **given: Any) -> list[dict[str, Any]]:
        return [
            {**item, "00201209": {"vr": "IS", "Value": [9]}} if "00201209" in item else item
            for item in announced(*args, **given)
        ]

    twins.archive.search_for_series = wrong  # type: ignore[method-assign]
    for _ in range(4):
        store.refresh()
        store.image(A)
    assert twins.archive.asked("iter_series") == 2
    store.close()
    store = twins.server()
    store.refresh()
    store.image(A)
    assert twins.archive.asked("iter_series") == 2


def test_an_archive_that_announces_no_numbers_is_asked_for_the_instances(twins: Twins):
    twins.archive.announces = False
    held(twins, A, slices=2)
    store = twins.server()
    store.image(A)
    twins.archive.arrive(A)
    store.labels(A)
    assert slices_of(store.image(A).path) == 4


def test_scores_of_a_part_of_a_series_do_not_outlive_it(twins: Twins):
    held(twins, A, slices=2)
    store = twins.server()
    store.image(A)
    store.save_scores([ImageScore(image_id=A, run="r", ts=1.0, values={"u": 1.0}, feature=[1.0])])
    store.quarantine(A, "a slice is missing")
    twins.archive.arrive(A)
    store.refresh()
    assert store.unscored("r") == [A]
    assert store.features([A]) == {}
    assert store.unlabeled() == [A]


@pytest.mark.parametrize("way", ["empty", "short", "refused"])
def test_a_list_that_lacks_series_drops_nothing_that_the_archive_still_has(twins: Twins, way: str):
    held(twins, A, B)
    store = twins.server()
    if way == "empty":
        twins.archive.empty = True
    elif way == "short":
        twins.archive.unlisted = {B}
    else:
        twins.archive.lost = {B}
        twins.archive.before["search_for_series"] = refuses(B, error=lambda: http_error(500))
    for _ in range(2):
        store.refresh()
        assert store.image_ids() == [A, B]
        save(store, B, 3)


def test_an_archive_that_stays_empty_is_believed_in_the_end(twins: Twins):
    held(twins, A)
    store = twins.server()
    twins.archive.empty = True
    for _ in range(3):
        assert store.image_ids() == [A]
        store.refresh()
    assert store.image_ids() == []


def test_a_series_that_comes_back_has_its_scores_features_leases_and_labels(twins: Twins):
    held(twins, A, B)
    store = twins.server()
    save(store, B, 3, user="ben")
    save(store, A, 5, tag="draft")
    sent(store)
    store.save_scores([ImageScore(image_id=A, run="r", ts=1.0, values={"u": 2.0}, feature=[1.0, 2.0])])
    assert store.serve_next(A, "first", client_id=None, ts=1, holder="anna")
    number = len(twins.archive.segs())
    twins.archive.lost = {A, B}
    held(twins, C)
    store.refresh()
    assert store.image_ids() == [C]
    assert store.ranked("u").ids == []
    with pytest.raises(NotFound):
        store.label(B, "final")
    twins.archive.lost = set()
    store.refresh()
    assert store.image_ids() == [A, B, C]
    assert store.ranked("u").ids == []  # anna's
    assert store.ranked("u", holder="anna").ids == [A]
    assert store.unscored("r") == [C]
    assert store.features([A])[A].tolist() == [1.0, 2.0]
    assert store.unlabeled(holder="ben", limit=9) == [C]
    assert value_of(store, B) == 3
    assert [each.user for each in store.revisions(B, "final")] == ["ben"]
    assert value_of(store, A, "draft") == 5
    sent(store)
    assert len(twins.archive.segs()) == number


def test_a_list_that_shifts_between_two_pages_lacks_nothing(twins: Twins, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("rayapp.datastore.pacs.PAGE", 2)
    series = [f"1.2.4.{n}" for n in range(6)]
    held(twins, *series)
    store = twins.server()

    def shifts(wanted: str, offset: int) -> None:
        if not wanted and offset == 2:
            twins.archive.before.clear()
            del twins.archive.held[series[0]]

    twins.archive.before["search_for_series"] = shifts
    asked = twins.archive.asked("search_for_series")
    store.refresh()
    assert store.image_ids() == series, "what was in the list when the look began stays until the next one"
    singles = [one for method, one in twins.archive.calls[asked:] if method == "search_for_series" and one]
    assert not singles, "the list itself lacked nothing"
    store.refresh()
    assert store.image_ids() == series[1:]


def test_a_training_has_more_series_than_the_cache_holds(twins: Twins, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(series_cache, "GRACE_S", 0.0)
    held(twins, A, B, C)
    store = twins.server(dicomweb={"cache": 1})
    for series in (A, B, C):
        save(store, series, 3)
    sent(store)
    pairs = store.datalist(immutable=True, images=twins.folder / "a" / "images" / "job")
    assert len(pairs) == 3
    assert all(slices_of(twins.folder / pair["image"]) == 4 for pair in pairs)
    assert len(list((twins.folder / "a" / "retrieved").iterdir())) < 3
    again = twins.archive.asked("iter_series")
    assert store.datalist(immutable=True, images=twins.folder / "a" / "images" / "job") == pairs
    assert twins.archive.asked("iter_series") == again


def test_a_training_goes_on_retrieving_where_it_was_told_to_wait(twins: Twins, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(series_cache, "GRACE_S", 0.0)
    held(twins, A, B)
    store = twins.server(dicomweb={"cache": 1})
    for series in (A, B):
        save(store, series, 3)
    sent(store)
    monkeypatch.setattr(dicomweb, "PATIENCE_S", 0.2)
    go = threading.Event()
    twins.archive.before["iter_series"] = lambda series, *_: go.wait(10) if series == B else None
    folder = twins.folder / "a" / "images" / "job"
    for series in (A, B):
        store._series._remove(twins.folder / "a" / "retrieved" / series)
    try:
        until(lambda: "1 series" in _waits(lambda: store.datalist(immutable=True, images=folder)))
    finally:
        go.set()
    monkeypatch.undo()
    assert len(store.datalist(immutable=True, images=folder)) == 2


def _waits(ask: Callable[[], Any]) -> str:
    """The text with which the caller is told to ask again."""
    with pytest.raises(Busy) as told:
        ask()
    return told.value.detail


def test_evictions_and_openings_at_the_same_time_fail_for_nobody(twins: Twins, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(series_cache, "GRACE_S", 0.0)
    series = [f"1.2.4.{n}" for n in range(6)]
    held(twins, *series)
    store = twins.server(dicomweb={"cache": 1})
    with ThreadPoolExecutor(6) as pool:
        list(pool.map(lambda one: store.image(one), series * 8))


def test_an_archive_that_hangs_leaves_threads_for_everything_else(twins: Twins, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(bounded_wait, "WAITING", 2)
    held(twins, A, B, C, D)
    store = twins.server()
    go = threading.Event()
    twins.archive.before["iter_series"] = lambda *_: go.wait(30)
    with ThreadPoolExecutor(2) as pool:
        openings = [pool.submit(store.image, series) for series in (A, B)]
        try:
            until(lambda: twins.archive.asked("iter_series") == 2)
            for ask in (lambda: store.image(C), store.refresh, lambda: store.image("1.2.9")):
                with pytest.raises(Busy, match="too many"):
                    ask()
            assert store.labels(D) == {}
            assert store.status()["total"] == 4
        finally:
            go.set()
        assert all(opening.result(20).path.exists() for opening in openings)


def test_a_first_opening_waits_for_a_search_of_labels_for_a_limited_time(twins: Twins, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(dicomweb, "FIRST_SEARCH_S", 0.05)
    monkeypatch.setattr(dicomweb, "LABEL_SEARCH_S", 0.05)
    held(twins, A, B)
    twins.archive.put(twins.seg(A, mask(2)))
    store = twins.server()
    go = threading.Event()
    twins.archive.before["retrieve_series_metadata"] = lambda *_: go.wait(30)
    with ThreadPoolExecutor(1) as pool:
        opening = pool.submit(store.image, A)
        try:
            assert opening.result(20).path.exists()
            assert store.labels(A) == {}
            assert store.image(B).path.exists(), "a search that hangs holds up no other series"
        finally:
            go.set()
    until(lambda: "original" in store.labels(A))


def test_labels_asked_for_while_their_search_is_under_way_are_those_that_it_finds(
    twins: Twins, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(dicomweb, "FIRST_SEARCH_S", 0.0)
    monkeypatch.setattr(dicomweb, "LABEL_SEARCH_S", 600.0)
    held(twins, A)
    twins.archive.put(twins.seg(A, mask(2)))
    store = twins.server(dicomweb={"fresh": 60.0})
    go = threading.Event()
    twins.archive.before["retrieve_series_metadata"] = lambda *_: go.wait(30)
    store.image(A)
    until(lambda: twins.archive.asked("retrieve_series_metadata"))
    briefly = store._waits.briefly

    def waits(*args: Any) -> None:
        go.set()
        briefly(*args)

    monkeypatch.setattr(store._waits, "briefly", waits)
    try:
        assert value_of(store, A, "original") == 2
    finally:
        go.set()


def test_what_is_wrong_with_the_archive_is_in_the_status(twins: Twins):
    held(twins, A)
    store = twins.server()
    assert store.status()["archive"] == {"unsent": 0, "refused": 0}
    twins.archive.before["search_for_series"] = refuses("", error=lambda: http_error(503))
    store.refresh()
    assert "503" in store.status()["archive"]["problem"]
    assert json.dumps(store.status())
    twins.archive.before.clear()
    store.refresh()
    assert store.status()["archive"] == {"unsent": 0, "refused": 0}
