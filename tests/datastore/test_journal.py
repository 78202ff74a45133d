"""Jobs in the index: their records come back as they were, also into folders of an earlier version."""

from __future__ import annotations

import sqlite3
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from rayapp.datastore.index import Index, insert_image
from rayapp.datastore.interfaces import ClickEvent
from rayapp.datastore.job_record import Job, State
from rayapp.datastore.journal import append_event, put_job, read_jobs
from rayapp.datastore.salvage import salvage
from rayapp.datastore.schema import SCHEMA
from rayapp.errors import Conflict, NotFound
from rayapp.protocol import JobKind
from rayapp.training.train_task import Progress
from tests.datastore.saves import Open, save

JOB = Job(
    id="one",
    kind=JobKind.TRAIN,
    name="bright",
    request={"max_epochs": 3},
    user="ann",
    created=1e9,
    details=("began",),
    progress=Progress(epoch=1, epochs=3, iteration=2, iterations=9, loss=0.5),
)


def test_a_job_comes_back_as_it_was_and_keeps_its_place(store: Any) -> None:
    store.save_job(JOB)
    store.save_job(replace(JOB, id="two", progress=None))
    later = replace(JOB, state=State.DONE, ended=2e9, stats={"epoch": 3}, result={"version": "v2"})
    store.save_job(later)
    assert store.jobs() == [later, replace(JOB, id="two", progress=None)]
    store.forget_jobs(["one", "nothing"])
    assert [job.id for job in store.jobs()] == ["two"]


def test_a_folder_of_version_one_opens_with_all_it_holds(studies: Path, open_store: Open) -> None:
    store = open_store(studies)
    revision = save(store, tag="final", body=b"voxels").revision
    store.close()
    index = studies / ".rayapp" / "index.db"
    with sqlite3.connect(index) as db:
        db.execute("DROP TRIGGER lease_ended")
        for index_name in ("label_unsent", "label_refused", "label_replaced"):
            db.execute(f"DROP INDEX {index_name}")
        for table in ("job", "lease", "scored", "score", "feature", "reopened", "segmentation", "image_file"):
            db.execute(f"DROP TABLE {table}")
            assert f"TABLE {table}(" not in SCHEMA
        for kind, name in (("INDEX", "event_ts"), ("TRIGGER", "revision_added"), ("TRIGGER", "revision_removed")):
            db.execute(f"DROP {kind} {name}")
        db.execute("DELETE FROM count WHERE kind LIKE 'revision%'")
        db.execute("PRAGMA user_version = 1")
    db.close()
    again = open_store(studies)
    assert again.label("ct_a", "final").revision == revision
    assert again.status()["total"] == 3
    again.save_job(JOB)
    assert again.jobs() == [JOB]
    assert not list((studies / ".rayapp").glob("index.db.broken-*"))


def test_jobs_are_saved_out_of_a_damaged_index(tmp_path: Path) -> None:
    damaged = Index(tmp_path / "damaged.db")
    put_job(damaged.writer, JOB)
    damaged.close()
    fresh = Index(tmp_path / "fresh.db")
    salvage(tmp_path / "damaged.db", fresh.writer)
    assert read_jobs(fresh.writer) == [JOB]
    fresh.close()


def test_a_folder_of_a_newer_version_is_left_as_it_is(studies: Path, open_store: Open) -> None:
    open_store(studies).close()
    index = studies / ".rayapp" / "index.db"
    with sqlite3.connect(index) as db:
        db.execute("PRAGMA user_version = 99")
    db.close()
    before = index.read_bytes()
    with pytest.raises(Conflict, match="upgrade"):
        open_store(studies)
    assert index.read_bytes() == before
    assert not list((studies / ".rayapp").glob("index.db.broken-*"))


def test_an_event_is_appended_without_reading_the_earlier_ones(tmp_path: Path) -> None:
    index = Index(tmp_path / "index.db")
    insert_image(index.writer, "ct_a", ".nii", {}, None)
    steps = 0

    def count() -> None:
        nonlocal steps
        steps += 1

    index.writer.set_progress_handler(count, 1)
    cost = []
    for number in range(1, 1001):
        steps = 0
        append_event(index.writer, ClickEvent(image_id="ct_a", kind="click", payload={"n": number}, ts=float(number)))
        cost.append(steps)
    assert max(cost[500:]) <= max(cost[:10])
    index.close()


def turn(opened: ClickEvent, request: str, **changes: Any) -> ClickEvent:
    payload = {"interaction": opened.interaction, "request": request}
    return replace(opened, kind="prompt", payload=payload, ts=2e9, seq=0, **changes)


def opened_in(store: Any, key: str = "k") -> ClickEvent:
    event = ClickEvent(image_id="ct_a", kind="open", payload={"interaction": key}, user="ann", ts=1e9)
    (seq,) = store.append_events([event])
    return replace(event, seq=seq)


def test_a_turn_is_appended_where_the_log_has_nothing_newer(store: Any) -> None:
    opened, other = opened_in(store), opened_in(store, "other")
    (first,) = store.append_turn(turn(opened, "one"), opened=opened.seq, after=opened.seq)
    store.append_turn(turn(other, "elsewhere"), opened=other.seq, after=other.seq)
    (second,) = store.append_turn(turn(opened, "two"), opened=opened.seq, after=first.seq)
    assert store.events("ct_a", user="ann", after=first.seq)[-1] == second
    assert second.payload["request"] == "two"


def test_a_turn_is_not_appended_on_top_of_turns_that_its_caller_does_not_know_of(store: Any) -> None:
    opened = opened_in(store)
    (first,) = store.append_turn(turn(opened, "one"), opened=opened.seq, after=opened.seq)
    assert store.append_turn(turn(opened, "two"), opened=opened.seq, after=opened.seq) == [first]
    assert store.append_turn(turn(opened, "one"), opened=opened.seq, after=opened.seq) == [first], "sent again"
    assert [event.seq for event in store.events("ct_a", user="ann")] == [opened.seq, first.seq]


def test_a_turn_of_an_interaction_that_is_gone_is_not_found(store: Any) -> None:
    opened = opened_in(store)
    for changes in ({"image_id": "ct_b"}, {"payload": {"interaction": "x"}}, {"user": "eve"}):
        lost = replace(opened, **changes)
        with pytest.raises(NotFound):
            store.append_turn(turn(lost, "one"), opened=opened.seq, after=opened.seq)
    with pytest.raises(NotFound):
        store.append_turn(turn(opened, "one"), opened=opened.seq + 1, after=opened.seq)
