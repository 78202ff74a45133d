"""The archive, its annotators and the server together: late slices, flapping lists, two servers, refusals."""

from __future__ import annotations

import json
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
import requests

from rayapp.datastore import archive_sender, bounded_wait, dicomweb, series_cache
from rayapp.datastore.interfaces import ImageScore
from rayapp.errors import Busy, Conflict, NotFound
from rayapp.imaging.dicom_seg import MANUFACTURER
from tests.datastore.archive_twin import Twins, http_error, mask, save, slices_of, twins, value_of
from tests.waiting import until

__all__ = ["twins"]
A, B, C, D = (f"1.2.3.{n}" for n in range(1, 5))


def held(twins: Twins, *series: str, slices: int | None = None) -> None:
    """Put series into the archive."""
    for one in series:
        twins.archive.add(twins.folder / "files", one, slices=slices)


def sent(store: Any) -> None:
    """Wait until nothing is left to be sent."""
    until(lambda: not store.unsent())


def removed(store: Any, series: str) -> None:
    """Delete the final label, and look for labels again."""
    assert store.remove_label(series, "final")
    assert "final" not in store.labels(series)


# A series that is still arriving


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


# Segmentations of the archive against labels made here


def final_of_another(twins: Twins, value: int) -> bytes:
    """A final label that an earlier, or another, server stored."""
    return twins.seg(A, mask(value), made_by=MANUFACTURER, name="final 1")


@pytest.mark.parametrize("moment", ["search_for_series", "retrieve_series_metadata", "iter_series"])
def test_a_final_saved_while_the_archive_is_searched_stays(twins: Twins, moment: str):
    held(twins, A)
    store = twins.server()
    store.image(A)
    seg = twins.archive.put(final_of_another(twins, 3))

    def saves(series: str, *_: Any) -> None:
        if threading.current_thread().name.startswith("datastore-archive-search") and series in (f"{A}.9", seg):
            twins.archive.before.pop(moment, None)
            save(store, A, 7)

    twins.archive.before[moment] = saves
    store.labels(A)
    until(lambda: moment not in twins.archive.before)
    until(lambda: not store._searching)
    assert value_of(store, A) == 7
    assert [each.user for each in store.revisions(A, "final")] == ["anna"]
    sent(store)


@pytest.mark.parametrize("reopened", [False, True])
@pytest.mark.parametrize("looked", [False, True])
def test_a_deleted_final_of_our_own_does_not_come_back_from_the_archive(twins: Twins, reopened: bool, looked: bool):
    held(twins, A)
    store = twins.server()
    save(store, A, 3)
    sent(store)
    if looked:
        store.labels(A)
    removed(store, A)
    if reopened:
        store.close()
        store = twins.server()
    for _ in range(2):
        store.refresh()
        assert "final" not in store.labels(A)


def test_a_deleted_final_does_not_come_back_though_its_sending_was_under_way(twins: Twins):
    held(twins, A)
    store = twins.server()
    store.image(A)
    arrived, go = threading.Event(), threading.Event()

    def slow(*_: Any) -> None:
        arrived.set()
        assert go.wait(10)

    twins.archive.before["store_instances"] = slow
    save(store, A, 3)
    assert arrived.wait(10)
    store.remove_label(A, "final")
    go.set()
    until(lambda: twins.archive.segs(A))
    for _ in range(2):
        assert "final" not in store.labels(A)
    store.close()
    assert "final" not in twins.server().labels(A)


@pytest.mark.parametrize("reopened", [False, True])
def test_a_deleted_final_of_the_archive_does_not_come_back_nor_does_an_older_one(twins: Twins, reopened: bool):
    held(twins, A)
    twins.archive.put(final_of_another(twins, 3))
    twins.archive.put(final_of_another(twins, 4))
    store = twins.server()
    store.image(A)
    assert value_of(store, A) == 4
    removed(store, A)
    if reopened:
        store.close()
        store = twins.server()
    assert "final" not in store.labels(A)


def test_two_servers_on_one_archive_agree(twins: Twins):
    held(twins, A)
    first, second = twins.server("a"), twins.server("b")
    save(first, A, 3)
    sent(first)
    second.image(A)
    assert value_of(second, A) == 3
    save(first, A, 4)
    sent(first)
    assert value_of(second, A) == 4
    assert [each.user for each in second.revisions(A, "final")] == ["archive", "archive"]
    assert value_of(first, A) == 4
    assert second.unsent() == []
    assert len(twins.archive.segs(A)) == 2


def test_an_annotators_final_does_not_give_way_to_that_of_another_server(twins: Twins):
    held(twins, A)
    first, second = twins.server("a"), twins.server("b")
    save(first, A, 3)
    save(second, A, 4, user="ben")
    sent(first)
    sent(second)
    for store, value in ((first, 3), (second, 4)):
        store.labels(A)
        assert value_of(store, A) == value


def test_a_final_that_another_server_sent_late_does_not_replace_a_newer_one(twins: Twins):
    held(twins, A)
    late, second, third = twins.server("late"), twins.server("b"), twins.server("c")

    def away(_: str, dataset: Any) -> None:
        raise requests.ConnectionError

    twins.archive.before["store_instances"] = away
    save(late, A, 3)
    until(lambda: "archive_waiting" in late.label(A, "final").info)
    late.close()
    twins.archive.before.clear()
    save(second, A, 4)
    sent(second)
    third.image(A)
    assert value_of(third, A) == 4
    sent(twins.server("late"))
    assert len(twins.archive.segs(A)) == 2
    assert value_of(third, A) == 4


def test_what_an_annotator_edited_of_an_archives_final_stays(twins: Twins):
    held(twins, A)
    twins.archive.put(final_of_another(twins, 3))
    store = twins.server()
    store.image(A)
    save(store, A, 5)
    sent(store)
    twins.archive.put(final_of_another(twins, 4))
    store.labels(A)
    assert value_of(store, A) == 5


# Sending


@pytest.fixture
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """Retries after a tenth of a second."""
    monkeypatch.setattr(archive_sender, "RETRY_S", 0.1)


def refuses(*failing: str, error: Callable[[], Exception]) -> Callable[..., None]:
    """An archive that stores no segmentation of these series."""

    def before(series: str, *_: Any) -> None:
        if series in failing:
            raise error()

    return before


@pytest.mark.parametrize(
    ("error", "told"),
    [
        (lambda: http_error(403), "denies"),
        (requests.Timeout, "in time"),
        (requests.ConnectionError, "no connection"),
    ],
    ids=["403", "slow", "breaks off"],
)
@pytest.mark.usefixtures("quick")
def test_labels_that_keep_failing_hold_up_no_others_and_say_why(
    twins: Twins, error: Callable[[], Exception], told: str
):
    held(twins, A, B, C, D)
    store = twins.server()
    twins.archive.before["store_instances"] = refuses(A, B, C, error=error)
    for series in (A, B, C, D):
        save(store, series, 3)
    until(lambda: twins.archive.segs(D))
    until(lambda: all(told in store.label(s, "final").info.get("archive_waiting", "") for s in (A, B, C)))
    status = store.status()["archive"]
    assert (status["unsent"], status["refused"]) == (3, 0)
    assert told in status["problem"]
    twins.archive.before.clear()
    sent(store)
    info = store.label(A, "final").info
    assert "archive_waiting" not in info
    assert info["archived"] == store.label(A, "final").revision
    assert store.status()["archive"] == {"unsent": 0, "refused": 0}


@pytest.mark.usefixtures("quick")
def test_an_unexpected_fault_of_one_label_holds_up_no_others(twins: Twins, monkeypatch: pytest.MonkeyPatch):
    held(twins, A, B)
    store = twins.server()
    encoded = store._encoded

    def fails(image_id: str, revision: Any) -> Any:
        if image_id == A:
            raise ZeroDivisionError
        return encoded(image_id, revision)

    monkeypatch.setattr(store, "_encoded", fails)
    save(store, A, 3)
    save(store, B, 3)
    until(lambda: twins.archive.segs(B))
    assert "ZeroDivisionError" in until(lambda: store.label(A, "final").info.get("archive_waiting"))


@pytest.mark.usefixtures("quick")
def test_a_label_refused_for_good_says_why_until_it_is_saved_again(twins: Twins):
    held(twins, A)
    store = twins.server()
    twins.archive.before["store_instances"] = refuses(A, error=lambda: http_error(409))
    save(store, A, 3)
    sent(store)
    assert "409" in store.label(A, "final").info["archive_problem"]
    assert store.status()["archive"] == {"unsent": 0, "refused": 1}
    twins.archive.before.clear()
    save(store, A, 4)
    sent(store)
    assert "archive_problem" not in store.label(A, "final").info
    assert store.status()["archive"] == {"unsent": 0, "refused": 0}


def test_an_unavailable_archive_is_not_asked_for_every_label(twins: Twins, monkeypatch: pytest.MonkeyPatch):
    held(twins, A, B, C, D)
    store = twins.server()
    for series in (A, B, C, D):
        store.image(series)
    monkeypatch.setattr(store._sender, "notify", lambda: None)
    for series in (A, B, C, D):
        save(store, series, 3)
    twins.archive.before["search_for_series"] = refuses(A, B, C, D, error=requests.ConnectionError)
    before = len(twins.archive.calls)
    rest = store._sender.send_due()
    assert [series for _, series in twins.archive.calls[before:]] == [A, B, C]
    assert rest is not None
    assert rest > 0
    store._sender.send_due()
    assert [series for _, series in twins.archive.calls[before:]] == [A, B, C, D]


# Lists


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


# The cache, and an archive that does not answer


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


def test_a_save_made_from_an_archives_label_that_was_replaced_is_refused(twins: Twins):
    held(twins, A)
    twins.archive.put(final_of_another(twins, 3))
    store = twins.server()
    store.image(A)
    seen = store.label(A, "final").number
    twins.archive.put(final_of_another(twins, 4))
    store.labels(A)
    with pytest.raises(Conflict, match="archive"):
        save(store, A, 7, expected=seen)
