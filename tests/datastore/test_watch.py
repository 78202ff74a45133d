"""The watched folder: what others do to it is noticed, what we do to it causes no scan."""

from __future__ import annotations

import json
import threading
from collections.abc import Iterable
from pathlib import Path

import pytest

from rayapp.datastore import watch
from rayapp.datastore.local import LocalDatastore
from rayapp.datastore.reconcile import Reconciler
from tests.datastore.saves import AUTHOR, Open, save
from tests.waiting import until


@pytest.fixture(autouse=True)
def short_idle(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(watch, "IDLE_MS", 100)


@pytest.fixture(params=["events", "polling"])
def watched(request: pytest.FixtureRequest, studies: Path, open_store: Open) -> LocalDatastore:
    return open_store(studies, watch=True, poll=None if request.param == "events" else 0.2)


def test_images_and_labels_that_come_and_go_are_noticed(watched: LocalDatastore, studies: Path) -> None:
    (studies / "late.nii.gz").write_bytes(b"x")
    until(lambda: "late" in watched.image_ids())
    (studies / "labels" / "final" / "late.nii.gz").write_bytes(b"x")
    until(lambda: "final" in watched.labels("late"))
    (studies / "labels" / "final" / "late.nii.gz").unlink()
    until(lambda: not watched.labels("late"))
    (studies / "late.nii.gz").unlink()
    until(lambda: "late" not in watched.image_ids())


def test_a_new_tag_folder_is_noticed_and_watched(watched: LocalDatastore, studies: Path) -> None:
    folder = studies / "labels" / "version_1"
    folder.mkdir()
    (folder / "ct_a.nii.gz").write_bytes(b"x")
    until(lambda: "version_1" in watched.labels("ct_a"))
    (folder / "ct_b.nii.gz").write_bytes(b"x")
    until(lambda: "version_1" in watched.labels("ct_b"))


def test_an_edited_document_and_label_are_noticed(watched: LocalDatastore, studies: Path) -> None:
    path = save(watched, body=b"ours").path
    path.write_bytes(b"by hand")
    until(lambda: len(watched.revisions("ct_a", "final")) == 2)
    document = studies / "datastore_v2.json"
    until(lambda: document.exists() and '"client_id": "slicer-1"' in document.read_text())
    document.write_text(document.read_text().replace('"slicer-1"', '"other"'))
    until(lambda: watched.label("ct_a", "final").info["client_id"] == "other")


def test_own_writes_cause_no_scan(studies: Path, open_store: Open, monkeypatch: pytest.MonkeyPatch) -> None:
    scans: list[int] = []
    rounds: list[list[Path]] = []  # what changed in each of the watcher's rounds, in most of them nothing
    saved = threading.Event()
    scan, concerns = Reconciler.scan, Reconciler.concerns

    def noted(self: Reconciler, paths: Iterable[Path]) -> bool:
        assert saved.wait(60)  # a look between a file's publication and the index's commit may take it for foreign
        rounds.append(list(paths))
        return concerns(self, rounds[-1])

    monkeypatch.setattr(Reconciler, "scan", lambda *args: scans.append(1) or scan(*args))
    monkeypatch.setattr(Reconciler, "concerns", noted)
    store = open_store(studies, watch=True)
    until(lambda: len(scans) == 2)  # at opening, and once the watch has begun
    for i in range(20):
        save(store, body=b"%d" % i)
    staged = store.stage(".nii")
    staged.write_bytes(b"x")
    store.add_image("new", staged, ".nii", info={}, author=AUTHOR)
    store.remove_label("ct_a", "final")
    store.remove_image("new")
    saved.set()
    document = studies / "datastore_v2.json"
    until(lambda: document.exists() and json.loads(document.read_text()) == store.document())
    looked = len(rounds)
    until(lambda: rounds[looked:].count([]) == 2)  # the second of them began when all was written
    assert any(rounds)
    assert len(scans) == 2
