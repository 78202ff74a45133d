"""The age-weighted draw."""

from __future__ import annotations

import time
from collections import Counter
from pathlib import Path
from typing import Any

import pytest

from rayapp.datastore.local import LocalDatastore
from tests.datastore.saves import Open, save


@pytest.fixture
def four(tmp_path: Path, open_store: Open) -> LocalDatastore:
    for name in "abcd":
        (tmp_path / f"{name}.nii").write_bytes(b"x")
    return open_store(tmp_path)


def test_images_seen_long_ago_come_more_often_in_proportion(
    four: LocalDatastore, tmp_path: Path, open_store: Open
) -> None:
    now = int(time.time())
    for name, age in zip("abcd", (0, 1000, 2000, 5000), strict=True):
        four.serve_next(name, "random", client_id=None, ts=now - age)
    four.close()
    again = open_store(tmp_path)
    drawn = Counter(again.unlabeled(order="age")[0] for _ in range(2000))
    assert drawn["a"] < 20
    assert drawn["b"] / 2000 == pytest.approx(1 / 8, abs=0.04)
    assert drawn["c"] / 2000 == pytest.approx(2 / 8, abs=0.05)
    assert drawn["d"] / 2000 == pytest.approx(5 / 8, abs=0.06)


def test_images_all_served_within_this_second_are_still_drawn(four: LocalDatastore) -> None:
    for name in "abcd":
        four.serve_next(name, "random", client_id=None, ts=int(time.time()) + 5)
    assert len({four.unlabeled(order="age")[0] for _ in range(100)}) == 4


def test_labelled_images_are_not_drawn_and_come_back_when_the_label_goes(four: LocalDatastore) -> None:
    for name in "abc":
        save(four, name)
    assert {four.unlabeled(order="age")[0] for _ in range(20)} == {"d"}
    save(four, "d")
    assert four.unlabeled(order="age") == []
    four.remove_label("b", "final")
    assert four.unlabeled(order="age") == ["b"]


def test_a_sample_holds_no_image_twice(four: LocalDatastore) -> None:
    assert sorted(four.unlabeled(order="age", limit=3 + 2)) == list("abcd")
    assert len(set(four.unlabeled(order="age", limit=3))) == 3


def test_another_tag_has_its_own_unlabelled_images(four: LocalDatastore) -> None:
    for name in "abc":
        save(four, name, tag="version_1")
    assert {four.unlabeled(tag="version_1", order="age")[0] for _ in range(20)} == {"d"}


def test_an_image_added_later_is_drawn_too(four: Any, tmp_path: Path) -> None:
    four.unlabeled(order="age")
    (tmp_path / "e.nii").write_bytes(b"x")
    four.refresh()
    assert set(four.unlabeled(order="age", limit=9)) == set("abcde")
