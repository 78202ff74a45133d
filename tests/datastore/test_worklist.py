"""The worklist: leases that keep annotators apart, and images by their scores."""

from __future__ import annotations

import sqlite3
import threading
import time
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from rayapp.datastore import leases, steady_clock
from rayapp.datastore.index import Index
from rayapp.datastore.interfaces import Author, ClickEvent, ImageScore, Ranked
from rayapp.datastore.local import LocalDatastore
from rayapp.datastore.salvage import salvage
from rayapp.errors import NotFound
from tests.datastore.saves import Open, save


@pytest.fixture
def four(tmp_path: Path, open_store: Open) -> LocalDatastore:
    for name in "abcd":
        (tmp_path / f"{name}.nii").write_bytes(b"x")
    return open_store(tmp_path)


class Clock:
    """The time, as leases read it; a test moves it on."""

    def __init__(self) -> None:
        self.now = time.time()

    def time(self) -> float:
        return self.now


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    clock = Clock()
    monkeypatch.setattr(steady_clock, "steady_time", clock.time)
    return clock


def serve(store: LocalDatastore, image: str, holder: str) -> bool:
    served = store.serve_next(image, "first", client_id=None, ts=int(time.time()), holder=holder)
    assert served is None or served == store.image(image)
    return served is not None


def scored(image: str, run: str = "r", **given: Any) -> ImageScore:
    return ImageScore(image_id=image, run=run, ts=time.time(), **given)


# Leases


def test_an_image_that_somebody_holds_is_nobody_elses(four: LocalDatastore) -> None:
    assert serve(four, "a", "ann")
    assert not serve(four, "a", "bob")
    assert four.unlabeled(limit=9, holder="bob") == ["b", "c", "d"]
    assert four.unlabeled(limit=9) == ["b", "c", "d"]
    assert four.unlabeled(limit=9, order="last", holder="bob") == ["d", "c", "b"]
    assert sorted(four.unlabeled(limit=9, order="age", holder="bob")) == ["b", "c", "d"]
    assert four.unlabeled(limit=9, holder="ann") == ["a", "b", "c", "d"]
    assert serve(four, "a", "ann")


def test_what_somebody_else_holds_is_not_recorded_as_served(four: LocalDatastore) -> None:
    four.serve_next("a", "first", client_id="ann", ts=5, holder="ann")
    four.serve_next("a", "random", client_id="bob", ts=9, holder="bob")
    assert four.image("a").info["strategy"] == {"first": {"ts": 5, "client_id": "ann"}}
    with pytest.raises(NotFound):
        serve(four, "nope", "ann")


def test_a_hundred_who_ask_at_once_never_get_the_same_image(tmp_path: Path, open_store: Open) -> None:
    for number in range(40):
        (tmp_path / f"im_{number:02}.nii").write_bytes(b"x")
    store, got, start = open_store(tmp_path), [], threading.Barrier(20)

    def ask(holder: str) -> None:
        start.wait()
        while not serve(store, image := store.unlabeled(holder=holder)[0], holder):
            pass
        got.append(image)

    threads = [threading.Thread(target=ask, args=(f"annotator {n}",)) for n in range(20)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(got) == len(set(got)) == 20


def test_a_lease_ends_with_the_final_label_and_after_a_while_without_work(four: LocalDatastore, clock: Clock) -> None:
    serve(four, "a", "ann")
    save(four, "a")
    four.remove_label("a", "final")
    assert four.unlabeled(holder="bob") == ["a"]
    serve(four, "b", "ann")
    clock.now += leases.LEASE_S - 1
    assert not serve(four, "b", "bob")
    clock.now += 2
    assert serve(four, "b", "bob")


@pytest.mark.parametrize("jump", [-86_400.0, 86_400.0])
def test_a_clock_that_is_set_ends_and_prolongs_no_lease(
    four: LocalDatastore, monkeypatch: pytest.MonkeyPatch, jump: float
) -> None:
    assert serve(four, "a", "ann")
    now = time.time()
    monkeypatch.setattr(time, "time", lambda: now + jump)
    assert not serve(four, "a", "ben")
    assert serve(four, "b", "ben")
    monotonic = time.monotonic() + leases.LEASE_S + 1
    monkeypatch.setattr(time, "monotonic", lambda: monotonic)
    assert serve(four, "a", "ben")


def test_a_lease_from_before_the_clock_was_set_back_is_as_long_as_any(
    studies: Path, open_store: Open, clock: Clock
) -> None:
    store = open_store(studies)
    assert serve(store, "ct_a", "ann")
    store.close()
    clock.now -= 86_400
    store = open_store(studies)
    assert not serve(store, "ct_a", "ben")
    clock.now += leases.LEASE_S + 1
    assert serve(store, "ct_a", "ben")


def test_work_on_the_image_renews_its_lease(four: LocalDatastore, clock: Clock) -> None:
    serve(four, "a", "ann")
    serve(four, "b", "bob")
    clock.now += leases.LEASE_S - 1
    four.append_events([ClickEvent(image_id="a", kind="click", payload={})])
    save(four, "b", tag="draft")
    clock.now += leases.LEASE_S - 1
    assert four.unlabeled(limit=9, holder="eve") == ["c", "d"]
    clock.now += 2
    assert four.unlabeled(limit=9, holder="eve") == ["a", "b", "c", "d"]


def test_who_asks_for_more_gives_the_oldest_back(four: LocalDatastore) -> None:
    for image in "abcd":
        assert serve(four, image, "ann")
    assert four.unlabeled(limit=9, holder="bob") == ["a", "b"]


def test_leases_survive_a_restart(four: LocalDatastore, tmp_path: Path, open_store: Open) -> None:
    serve(four, "a", "ann")
    four.close()
    assert not serve(open_store(tmp_path), "a", "bob")


def test_an_image_that_cannot_be_opened_is_handed_out_to_nobody_for_a_while(four: LocalDatastore, clock: Clock) -> None:
    four.save_scores([scored("a", values={"tta": 1.0})])
    assert serve(four, "a", "ann")
    four.quarantine("a", "it is cut off")
    for holder in ("ann", "bob", None):
        for order in ("first", "last", "age"):
            assert sorted(four.unlabeled(limit=9, order=order, holder=holder)) == ["b", "c", "d"]
        assert four.ranked("tta", holder=holder).ids == []
    assert not serve(four, "a", "ann")
    told = four.image("a").info["unreadable"]
    assert told == {"why": "it is cut off", "ts": int(clock.now)}
    clock.now += leases.QUARANTINE_S + 1
    assert serve(four, "a", "bob")
    with pytest.raises(NotFound):
        four.quarantine("nope", "it is cut off")


# Scores


def test_images_come_by_their_score_and_those_labelled_or_held_do_not(four: LocalDatastore) -> None:
    four.save_scores(
        [scored(image, values={"tta": value}) for image, value in zip("abcd", (0.2, 0.9, 0.5, 0), strict=True)]
    )
    assert four.ranked("tta", limit=9).ids == ["b", "c", "a", "d"]
    assert four.ranked("tta").known == 1
    serve(four, "b", "ann")
    assert four.ranked("tta", holder="bob").ids == ["c"]
    assert four.ranked("tta", holder="ann").ids == ["b"]
    save(four, "c")
    assert four.ranked("tta", limit=2, holder="bob").ids == ["a", "d"]
    four.remove_label("c", "final")
    assert four.ranked("tta", limit=9, holder="bob").ids == ["c", "a", "d"]
    four.remove_image("c")
    assert four.ranked("tta", limit=9, holder="bob").ids == ["a", "d"]


def test_an_image_whose_label_goes_away_comes_by_its_score_again(
    four: LocalDatastore, tmp_path: Path, open_store: Open
) -> None:
    four.save_scores([scored(image, values={"tta": value}) for image, value in zip("abcd", (1, 2, 3, 4), strict=True)])
    save(four, "d")
    assert four.ranked("tta").ids == ["c"]
    four.remove_label("d", "final")
    assert four.ranked("tta").ids == ["d"]
    save(four, "d")
    four.close()
    again = open_store(tmp_path)  # where it was labelled from the start
    assert again.ranked("tta", limit=4).ids == ["c", "b", "a"]
    again.remove_label("d", "final")
    assert again.ranked("tta") == Ranked(ids=["d"], known=1.0)


def test_an_image_that_goes_and_comes_back_comes_by_its_new_score(four: LocalDatastore, tmp_path: Path) -> None:
    four.save_scores([scored(image, values={"tta": value}) for image, value in zip("abcd", (1, 2, 3, 4), strict=True)])
    four.remove_image("d")
    assert four.ranked("tta").ids == ["c"]
    staged = four.stage(".nii")
    staged.write_bytes(b"new")
    four.add_image("d", staged, ".nii", info={}, author=Author())
    assert four.ranked("tta").ids == ["c"]
    four.save_scores([scored("d", values={"tta": 9})])
    assert four.ranked("tta").ids == ["d"]


def test_more_images_than_there_was_room_for_keep_their_scores(tmp_path: Path, open_store: Open) -> None:
    names = [f"n{n:04}" for n in range(2500)]
    for name in names:
        (tmp_path / f"{name}.nii").write_bytes(b"x")
    store = open_store(tmp_path)
    store.save_scores([scored(name, values={"tta": n, "epistemic": -n}) for n, name in enumerate(names)])
    assert store.ranked("tta", limit=2).ids == ["n2499", "n2498"]
    assert store.ranked("epistemic", limit=2).ids == ["n0000", "n0001"]


def test_a_newer_score_takes_the_place_of_the_older(four: LocalDatastore) -> None:
    four.save_scores([scored("a", values={"tta": 0.9}), scored("b", values={"tta": 0.5})])
    assert four.ranked("tta").ids == ["a"]
    four.save_scores([scored("a", run="s", values={"tta": 0.1, "entropy:liver": 0.3})])
    assert four.ranked("tta", limit=9).ids == ["b", "a"]
    assert four.score_names() == ["entropy:liver", "tta"]
    assert four.ranked("tta").known == 0.5
    assert four.ranked("nothing").ids == []
    assert four.ranked("nothing").known == 0


def test_images_without_another_tags_label_are_ranked_too(four: LocalDatastore) -> None:
    four.save_scores([scored(image, values={"tta": value}) for image, value in zip("abcd", (1, 2, 3, 4), strict=True)])
    save(four, "d", tag="version_1")
    save(four, "c")
    assert four.ranked("tta", tag="version_1", limit=9).ids == ["c", "b", "a"]


def test_power_noise_draws_in_proportion_to_the_powered_score(four: LocalDatastore) -> None:
    four.save_scores([scored(image, values={"tta": value}) for image, value in zip("abcd", (1, 2, 3, 0), strict=True)])
    drawn = Counter(four.ranked("tta", power=2).ids[0] for _ in range(3000))
    assert "d" not in drawn
    for image, share in zip("abc", (1 / 14, 4 / 14, 9 / 14), strict=True):
        assert drawn[image] / 3000 == pytest.approx(share, abs=0.04)


def test_what_a_run_has_scored_is_not_unscored_and_what_failed_may_be_asked_again(four: LocalDatastore) -> None:
    save(four, "d")
    four.save_scores([scored("a", values={"tta": 1}), scored("b", failed=True)])
    assert four.unscored("r") == ["b", "c"]
    assert four.unscored("r", failed=False) == ["c"]
    assert four.unscored("r", images="all") == ["b", "c", "d"]
    assert four.unscored("r", images="labeled") == ["d"]
    assert four.unscored("another") == ["a", "b", "c"]


def test_infos_come_with_the_score_and_an_image_that_is_gone_is_passed_over(four: LocalDatastore) -> None:
    save(four, "a")
    four.save_scores(
        [
            scored("gone", values={"tta": 1}),
            scored("a", info={"tta_entropy": 0.4}, label_infos={"final": {"sum": 3}, "none": {"sum": 1}}),
        ]
    )
    assert four.image("a").info["tta_entropy"] == 0.4
    assert four.label("a", "final").info["sum"] == 3
    assert four.score_names() == []


def test_features_are_kept_and_the_farthest_from_the_labelled_found(four: LocalDatastore) -> None:
    assert four.farthest(["a", "b"], against=9) is None
    four.save_scores([scored(image, feature=[n, 0.5]) for n, image in enumerate("abc")])
    assert set(four.features(["a", "c", "d"])) == {"a", "c"}
    np.testing.assert_array_equal(four.features(["c"])["c"], np.array([2, 0.5], np.float32))
    assert four.farthest(["a", "b"], against=9) is None, "nothing is labelled"
    save(four, "a")
    assert four.farthest(["d", "b", "c"], against=9) == "c"
    save(four, "c")
    assert four.farthest(["a", "b", "c", "d"], against=9) == "b"
    assert four.farthest(["a", "b", "c"], against=1) == "a", "only the last one counts"


def test_features_of_more_images_than_sqlite_takes_variables_are_found(four: LocalDatastore) -> None:
    four.save_scores([scored("c", feature=[1.0, 2.0])])
    assert set(four.features([f"image {n}" for n in range(300_000)] + ["c"])) == {"c"}


def test_features_of_another_length_are_not_compared(four: LocalDatastore) -> None:
    four.save_scores([scored(image, feature=[n, 0.5]) for n, image in enumerate("abc")])
    four.save_scores([scored("d", feature=[9.0, 9.0, 9.0])])
    save(four, "a")
    save(four, "d")
    assert four.farthest(["b", "d", "c"], against=9) == "c"
    assert four.farthest(["d", "b"], against=9) == "d"


def test_scores_survive_a_restart_and_a_damaged_index(four: LocalDatastore, tmp_path: Path, open_store: Open) -> None:
    four.save_scores([scored("a", values={"tta": 0.5}, feature=[1.0])])
    four.close()
    again = open_store(tmp_path)
    assert again.ranked("tta").ids == ["a"]
    again.close()
    index = tmp_path / ".rayapp" / "index.db"
    fresh = Index(tmp_path / "fresh.db")
    salvage(index, fresh.writer)
    for table in ("scored", "score", "feature"):
        assert fresh.writer.execute(f"SELECT count(*) FROM {table}").fetchone() == (1,)
    fresh.close()


def test_draws_from_many_images_take_milliseconds_not_more_with_their_number(tmp_path: Path, open_store: Open) -> None:
    (tmp_path / "seed.nii").write_bytes(b"x")
    store = open_store(tmp_path)
    with sqlite3.connect(tmp_path / ".rayapp" / "index.db") as db:
        db.executemany(
            "INSERT INTO image(id, ext, info, added) VALUES(?, '.nii', '{}', 0)", [(f"n{n:05}",) for n in range(20_000)]
        )
        db.executemany(
            "INSERT INTO score(image_id, name, value) VALUES(?, 'tta', ?)", [(f"n{n:05}", n) for n in range(20_000)]
        )
    assert store.ranked("tta", power=1).ids
    assert store.ranked("tta").ids == ["n19999"]
    statements: list[str] = []
    with store._index.reader() as db:
        db.set_trace_callback(statements.append)
    assert store.ranked("tta", limit=3).ids == ["n19999", "n19998", "n19997"]
    assert sum("FROM image WHERE id" in statement for statement in statements) == 3  # looks up what it draws, not all
    assert len(statements) < 10
