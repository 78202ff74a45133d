"""Each call that a change makes of the disk fails once: the change happened or not, and the next try succeeds."""

from __future__ import annotations

import errno
import os
import shutil
import sqlite3
import subprocess
from collections.abc import Callable, Iterator
from contextlib import closing, suppress
from pathlib import Path
from threading import Thread
from typing import Any

import pytest

from rayapp.datastore import commit
from rayapp.datastore.document import DocumentFile
from rayapp.datastore.interfaces import ClickEvent
from rayapp.datastore.local import LocalDatastore
from rayapp.errors import FULL, Busy, DiskFull, NotFound
from tests.datastore.saves import AUTHOR
from tests.disk import FailingDisk
from tests.memory_folder import memory_folder
from tests.waiting import until

Do = Callable[[LocalDatastore, Path], Any]
KEY = ("ct_a", "final")


def saved(ext: str, image: str = "ct_a") -> tuple[Callable[[LocalDatastore], Path], Do]:
    """(stages a file, saves it)."""

    def stage(store: LocalDatastore) -> Path:
        staged = store.stage(ext)
        staged.write_bytes(b"new")
        return staged

    return stage, lambda store, staged: store.save_label(image, "final", staged, ext, info={}, author=AUTHOR)


def added() -> tuple[Callable[[LocalDatastore], Path], Do]:
    stage, _ = saved(".nii.gz")
    return stage, lambda store, staged: store.add_image("new", staged, ".nii.gz", info={"k": 1}, author=AUTHOR)


def nothing(_: LocalDatastore) -> Path:
    return Path()


EVENT = ClickEvent(image_id="ct_a", kind="click", payload={"n": 1}, ts=7.0)
CHANGES: dict[str, tuple[Callable[[LocalDatastore], Path], Do]] = {
    "first save": saved(".nii.gz", "ct_b"),
    "save": saved(".nii.gz"),
    "save with another extension": saved(".nrrd"),
    "remove label": (nothing, lambda store, _: store.remove_label(*KEY)),
    "remove image": (nothing, lambda store, _: gone(store)),
    "add image": added(),
    "event": (nothing, lambda store, _: store.append_events([EVENT])),
    "info": (nothing, lambda store, _: store.update_image_info("ct_a", {"k": 2})),
    "document": (nothing, lambda store, _: written(store)),
    "scan": (nothing, lambda store, _: store.refresh()),
}


def written(store: LocalDatastore) -> None:
    """Write the document; its thread tries again after any error."""
    try:
        store._document.flush()
    except (OSError, sqlite3.Error) as error:
        raise Busy(str(error)) from None


def gone(store: LocalDatastore) -> None:
    """Remove the image; a repeated removal finds none."""
    with suppress(NotFound):
        store.remove_image("ct_a")


def state(store: LocalDatastore) -> dict[str, Any]:
    """All that clients see, and the files of the labels."""
    images = store.image_ids()
    labels = {(image, tag): label for image in images for tag, label in store.labels(image).items()}
    files = {str(file.relative_to(store._labels)): file.read_bytes() for file in store._labels.glob("*/*.*")}
    assert files == {
        str(label.path.relative_to(store._labels)): store._files.path(label.revision, label.ext).read_bytes()
        for label in labels.values()
    }
    return {
        "images": images,
        "labels": {key: (label.path.read_bytes(), label.info.get("user")) for key, label in labels.items()},
        "infos": {image: store.image(image).info.get("k") for image in images},
        "revisions": [
            (each.path.read_bytes(), each.user)
            for image in ("ct_a", "ct_b")
            for each in store.revisions(image, "final")
        ],
        "events": [event.payload for event in store.events("ct_a")],
    }


def damage(index: Path) -> None:
    """Overwrite a page of the index that has none of its rows, only their order by time."""
    with closing(sqlite3.connect(index)) as db:
        (page,) = db.execute("SELECT rootpage FROM sqlite_schema WHERE name = 'event_ts'").fetchone()
        (size,) = db.execute("PRAGMA page_size").fetchone()
    with index.open("r+b") as file:
        file.seek((page - 1) * size)
        file.write(b"\xff" * size)


class Desk:
    """Folders in memory, each a copy of one that is prepared once."""

    def __init__(self, patch: pytest.MonkeyPatch) -> None:
        patch.setattr(DocumentFile, "start", lambda _: None)
        self.ended: list[int] = []
        patch.setattr(commit, "end_process", lambda: self.ended.append(1))
        self.root = memory_folder()
        self.disk = FailingDisk(patch, self.root)
        self.copies = 0
        self.prepared = self.root / "prepared"
        self.prepared.mkdir()
        for image in ("ct_a", "ct_b"):
            (self.prepared / f"{image}.nii.gz").write_bytes(image.encode())
        store = self.open(self.prepared)
        for body in (b"first", b"old"):
            staged = store.stage(".nii.gz")
            staged.write_bytes(body)
            store.save_label(*KEY, staged, ".nii.gz", info={}, author=AUTHOR)
        store._document.flush()
        self.crashed = self.copy(self.prepared)
        store.close()
        self.damaged = self.copy(self.prepared)
        damage(self.damaged / ".rayapp" / "index.db")

    def open(self, folder: Path) -> LocalDatastore:
        return LocalDatastore(folder, watch=False, settle=0.0)

    def copy(self, folder: Path) -> Path:
        """The folder as a crash at this moment leaves it."""
        self.copies += 1
        target = self.root / str(self.copies)
        subprocess.run(["cp", "-a", folder, target], check=True)
        return target

    def reopened(self, folder: Path) -> dict[str, Any]:
        """The state after a crash and a start days later."""
        left = self.copy(folder)
        for staged in (left / ".rayapp" / "staging").iterdir():
            os.utime(staged, (0, 0))
        store = self.open(left)
        try:
            return state(store)
        finally:
            store.close()
            shutil.rmtree(left)


@pytest.fixture
def desk(monkeypatch: pytest.MonkeyPatch) -> Iterator[Desk]:
    made = Desk(monkeypatch)
    yield made
    shutil.rmtree(made.root, ignore_errors=True)


@pytest.mark.parametrize("name", CHANGES)
def test_whichever_call_of_a_change_fails_it_happened_or_not_and_succeeds_when_tried_again(desk: Desk, name: str):
    fails_at_each_call(desk, name, errno.ENOSPC)


def test_an_error_of_the_disk_is_not_told_as_a_full_one(desk: Desk):
    fails_at_each_call(desk, "first save", errno.EIO)


@pytest.mark.slow
@pytest.mark.parametrize("code", [errno.ENOSPC, errno.EIO, errno.EDQUOT, errno.EROFS, errno.EACCES])
@pytest.mark.parametrize("name", CHANGES)
def test_the_same_holds_for_other_errors(desk: Desk, name: str, code: int):
    fails_at_each_call(desk, name, code, thorough=True)


def fails_at_each_call(desk: Desk, name: str, code: int, *, thorough: bool = False) -> None:
    stage, do = CHANGES[name]
    store = desk.open(desk.copy(desk.prepared))
    old = state(store)
    do(store, stage(store))
    new = state(store)
    store.close()
    number, fired = 0, True
    while fired:
        number += 1
        folder = desk.copy(desk.prepared)
        store = desk.open(folder)
        staged = stage(store)
        where = f"call {number}"
        with desk.disk.fail(number, code):
            error = None
            try:
                do(store, staged)
            except Busy as raised:
                error = raised
        done = error is None
        if error is not None and desk.disk.fired != "sqlite" and name != "document":
            assert isinstance(error, DiskFull) == (code in FULL), error
        fired = desk.disk.fired is not None
        where += f", {desk.disk.fired}"
        if name == "add image":
            assert desk.reopened(folder) in ([new] if done else [old, new]), where
        store.refresh()  # publishes what could not be published
        left = desk.reopened(folder)
        assert left in ([new] if done else [old, new]), where
        assert state(store) == left, where
        do(store, staged)
        assert state(store) == new, where
        assert not thorough or desk.reopened(folder) == new, where
        assert not desk.ended, where
        store.close()
        shutil.rmtree(folder)


@pytest.mark.parametrize("prepared", ["prepared", "crashed", "damaged"])
def test_whichever_call_of_a_start_fails_the_next_start_has_everything(desk: Desk, prepared: str):
    number, fired = 0, True
    original = getattr(desk, prepared)
    if prepared == "crashed":
        (original / "labels" / "final" / "ct_a.nii.gz").unlink()  # committed, and not published any more
    expected = desk.reopened(original)
    assert expected["labels"]["ct_a", "final"][0] == b"old"
    while fired:
        number += 1
        folder = desk.copy(original)
        with desk.disk.fail(number):
            try:
                store = desk.open(folder)
            except Exception:
                store = None
        fired = desk.disk.fired is not None
        if store is not None:
            store.refresh()
            assert state(store) == expected, f"call {number}, {desk.disk.fired}"
            store.close()
        assert desk.reopened(folder) == expected, f"call {number}, {desk.disk.fired}"
        shutil.rmtree(folder)


def answer(do: Do, store: LocalDatastore, staged: Path, answers: list[Exception | None]) -> None:
    """Make the change, and append what was raised, None for nothing."""
    try:
        do(store, staged)
        answers.append(None)
    except Exception as error:
        answers.append(error)


@pytest.mark.parametrize("name", ["save", pytest.param("remove label", marks=pytest.mark.slow)])
def test_a_disk_that_stays_broken_leaves_no_caller_waiting(desk: Desk, name: str):
    """From one call on all fail, the end of a commit and its withdrawal too."""
    stage, do = CHANGES[name]
    store = desk.open(desk.copy(desk.prepared))
    old = state(store)
    do(store, stage(store))
    new = state(store)
    store.close()
    number, fired = 0, True
    while fired:
        number += 1
        folder = desk.copy(desk.prepared)
        store = desk.open(folder)
        staged = stage(store)
        desk.ended.clear()
        with desk.disk.fail(number, stays=True):
            answers: list[Exception | None] = []
            caller = Thread(target=answer, args=(do, store, staged, answers), daemon=True)
            caller.start()
            until(lambda: answers or desk.ended, within=10.0)  # noqa: B023
        fired = desk.disk.fired is not None
        assert all(error is None or isinstance(error, Busy) for error in answers), answers
        left = desk.reopened(folder)
        assert left in ([new] if answers == [None] else [old, new]), f"call {number}, {desk.disk.fired}"
        if not desk.ended:
            store.close()
