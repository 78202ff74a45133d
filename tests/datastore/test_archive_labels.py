"""Labels made here and segmentations of the archive: which one stays, and how finals get into the archive."""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Any

import pytest
import requests

from rayapp.datastore import archive_sender
from rayapp.errors import Conflict
from rayapp.imaging.dicom_seg import MANUFACTURER
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
    twins,
    value_of,
)
from tests.waiting import until

__all__ = ["twins"]


TAGS = pytest.mark.parametrize("tag", ["final", "original"])
"""The tags that labels of the archive are taken over under."""


def from_another(twins: Twins, value: int, tag: str = "final") -> bytes:
    """A final label that an earlier, or another, server stored; or a segmentation by another program."""
    return twins.seg(A, mask(value), **({"made_by": MANUFACTURER, "name": "final 1"} if tag == "final" else {}))


def removed(store: Any, series: str, tag: str = "final") -> None:
    """Delete the label, and look for labels again."""
    assert store.remove_label(series, tag)
    assert tag not in store.labels(series)


@TAGS
@pytest.mark.parametrize("moment", ["search_for_series", "retrieve_series_metadata", "iter_series"])
def test_a_label_saved_while_the_archive_is_searched_stays(twins: Twins, moment: str, tag: str):
    held(twins, A)
    store = twins.server()
    store.image(A)
    seg = twins.archive.put(from_another(twins, 3, tag))

    def saves(series: str, *_: Any) -> None:
        if threading.current_thread().name.startswith("datastore-archive-search") and series in (f"{A}.9", seg):
            twins.archive.before.pop(moment, None)
            save(store, A, 7, tag=tag)

    twins.archive.before[moment] = saves
    store.labels(A)
    until(lambda: moment not in twins.archive.before)
    until(lambda: not store._searching)
    assert value_of(store, A, tag) == 7
    assert [each.user for each in store.revisions(A, tag)] == ["anna"]
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


@TAGS
@pytest.mark.parametrize("reopened", [False, True])
def test_a_deleted_label_of_the_archive_does_not_come_back_nor_does_an_older_one(
    twins: Twins, reopened: bool, tag: str
):
    held(twins, A)
    twins.archive.put(from_another(twins, 3, tag))
    twins.archive.put(from_another(twins, 4, tag))
    store = twins.server()
    store.image(A)
    assert value_of(store, A, tag) == 4
    removed(store, A, tag)
    if reopened:
        store.close()
        store = twins.server()
    assert tag not in store.labels(A)


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


@TAGS
def test_what_an_annotator_edited_of_an_archives_label_stays(twins: Twins, tag: str):
    held(twins, A)
    twins.archive.put(from_another(twins, 3, tag))
    store = twins.server()
    store.image(A)
    save(store, A, 5, tag=tag)
    sent(store)
    twins.archive.put(from_another(twins, 4, tag))
    store.labels(A)
    assert value_of(store, A, tag) == 5


@TAGS
def test_a_save_made_from_an_archives_label_that_was_replaced_is_refused(twins: Twins, tag: str):
    held(twins, A)
    twins.archive.put(from_another(twins, 3, tag))
    store = twins.server()
    store.image(A)
    seen = store.label(A, tag).number
    twins.archive.put(from_another(twins, 4, tag))
    store.labels(A)
    assert value_of(store, A, tag) == 4
    with pytest.raises(Conflict, match="archive"):
        save(store, A, 7, tag=tag, expected=seen)


def test_labels_under_other_tags_than_final_are_never_sent(twins: Twins):
    held(twins, A)
    store = twins.server()
    for tag in ("original", "draft"):
        save(store, A, 5, tag=tag)
    assert store._sender.send_due() is None
    assert twins.archive.segs(A) == []
    assert store.status()["archive"] == {"unsent": 0, "refused": 0}


def test_no_client_can_have_a_label_taken_for_one_that_the_archive_has(twins: Twins):
    """The keys under which it is noted are the server's own."""
    held(twins, A)
    store = twins.server()
    twins.archive.before["store_instances"] = refuses(A, error=requests.ConnectionError)
    label = save(store, A, 5)
    until(lambda: "archive_waiting" in store.label(A, "final").info)
    info = store.update_label_info(A, "final", {"archived": label.revision, "archive_waiting": "no", "mine": 1})
    assert info["mine"] == 1
    assert "archived" not in info
    assert info["archive_waiting"] != "no"
    assert len(store.unsent()) == 1


@pytest.fixture
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """Retries after a tenth of a second."""
    monkeypatch.setattr(archive_sender, "RETRY_S", 0.1)


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
    until(lambda: len(store.unsent()) == 3)  # the archive has the fourth before that is noted here
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
