"""A folder that we share with a running MONAI Label, whose own code reads and writes it in a second process."""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Callable, Iterator
from importlib.util import find_spec
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from filelock import FileLock

from rayapp.datastore import document
from rayapp.datastore.local import LocalDatastore
from tests.datastore.running_monailabel import RunningMonaiLabel
from tests.datastore.saves import Open, save
from tests.waiting import until

pytestmark = pytest.mark.skipif(
    find_spec("monailabel") is None or find_spec("watchdog") is None,
    reason="MONAI Label's wheel or watchdog is not installed: make install",
)


@pytest.fixture(autouse=True)
def no_delay(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(document, "DELAY_S", 0.05)
    monkeypatch.setattr(document, "DUTY", 1)


@pytest.fixture
def watched(studies: Path, open_store: Open) -> LocalDatastore:
    """Our store on the folder, noticing what others write."""
    store = open_store(studies, watch=True)
    until((studies / document.NAME).exists)
    return store


@pytest.fixture
def theirs(watched: LocalDatastore, studies: Path) -> Iterator[RunningMonaiLabel]:
    """MONAI Label on the same folder."""
    with RunningMonaiLabel(studies) as running:
        yield running


def test_it_shows_what_is_saved_and_noted_here(watched: LocalDatastore, theirs: RunningMonaiLabel) -> None:
    assert theirs.do("store.list_images()") == ["ct_a", "ct_b", "mr_c"]
    for number in range(2):
        watched.update_image_info("ct_a", {"note": number})
        until(lambda number=number: theirs.do("store.get_image_info('ct_a')").get("note") == number)
        save(watched, "ct_b", body=b"%d" % number, model=f"m{number}")
        until(lambda number=number: theirs.do("store.get_label_info('ct_b', 'final')").get("model") == f"m{number}")
    assert Path(theirs.do("store.get_label_uri('ct_b', 'final')")).read_bytes() == b"1"
    watched.remove_label("ct_b", "final")
    until(lambda: theirs.do("store.get_label_uri('ct_b', 'final')") == "")


def test_what_it_notes_and_saves_and_removes_is_taken_over(
    watched: LocalDatastore, theirs: RunningMonaiLabel, tmp_path: Path
) -> None:
    label = tmp_path / "label.nii.gz"
    label.write_bytes(b"theirs")
    theirs.do("store.update_image_info('ct_a', {'site': 'x'})")
    theirs.do(f"store.save_label('ct_b', {str(label)!r}, 'final', {{'user': 'zoe'}})")
    until(lambda: watched.image("ct_a").info.get("site") == "x")
    until(lambda: "final" in watched.labels("ct_b"))
    until(lambda: watched.label("ct_b", "final").info.get("user") == "zoe")
    assert watched.label("ct_b", "final").path.read_bytes() == b"theirs"
    theirs.do("store.remove_label('ct_b', 'final')")
    until(lambda: "final" not in watched.labels("ct_b"))
    assert [each.path.read_bytes() for each in watched.revisions("ct_b", "final")] == [b"theirs"]


@pytest.mark.parametrize("moment", ["while it is made", "before it is recorded", "before the rename", "after it"])
@pytest.mark.parametrize("auto_reload", [False, True])
def test_its_edits_around_our_write_are_kept_and_turn_nothing_back(
    studies: Path, open_store: Open, monkeypatch: pytest.MonkeyPatch, moment: str, auto_reload: bool
) -> None:
    store = open_store(studies)
    store._document.close()  # the test does what its thread does
    store.update_image_info("ct_a", {"ours": 1})
    store._document.flush()
    with RunningMonaiLabel(studies, auto_reload=auto_reload) as theirs:
        edit = "store.update_image_info('ct_a', {'theirs': 1})"
        done: list[str] = []

        def once(edits: Callable[[str], Any]) -> None:
            if not done:
                done.append(moment)
                edits(edit)

        def before(real: Callable[..., Any], edits: Callable[[str], Any]) -> Callable[..., Any]:
            def call(*args: Any) -> Any:
                once(edits)
                return real(*args)

            return call

        file, real = store._document, document.replace

        def after(staged: Path, path: Path) -> None:
            real(staged, path)
            if path.name == document.NAME:
                once(theirs.begin)

        if moment == "while it is made":
            monkeypatch.setattr(file, "_write", before(file._write, theirs.do))
        elif moment == "before it is recorded":
            monkeypatch.setattr(file, "_remember", before(file._remember, theirs.do))
        elif moment == "before the rename":  # we hold the lock that it waits for
            monkeypatch.setattr(document, "replace", before(real, theirs.begin))
        else:
            monkeypatch.setattr(document, "replace", after)
        store.update_image_info("ct_a", {"ours": 2})
        store.update_image_info("ct_b", {"ours": 3})
        file.flush()
        if moment in ("before the rename", "after it"):
            theirs.answer()  # while our thread leaves it the lock
        file.announce()
        monkeypatch.undo()
        assert any("theirs" in each["objects"]["ct_a"]["image"]["info"] for each in theirs.written())
        store.refresh()
        store._document.flush()
        assert store.image("ct_a").info.get("theirs") == 1
        assert store.image("ct_a").info["ours"] == 2
        assert store.image("ct_b").info["ours"] == 3
        assert json.loads((studies / document.NAME).read_bytes()) == store.document()


def test_it_is_told_of_our_document_only_after_it_could_write_what_it_holds(
    studies: Path, open_store: Open, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It changes its memory, waits for the lock, and reads what it is told of into that memory."""
    file = open_store(studies)._document
    file.close()
    calls: list[str] = []

    def called(name: str) -> Callable[..., Any]:
        def call(*_: Any) -> None:
            calls.append(f"{name}, lock held: {file._advisory.is_locked}")

        return call

    monkeypatch.setattr(file, "_due", lambda *_: not calls)
    monkeypatch.setattr(file, "_keep_base", lambda _: None)
    monkeypatch.setattr(document, "replace", called("renamed"))
    monkeypatch.setattr(document, "time", SimpleNamespace(monotonic=time.monotonic, sleep=called("its turn")))
    monkeypatch.setattr(file, "announce", called("told"))
    file._run()
    assert calls == ["renamed, lock held: True", "its turn, lock held: False", "told, lock held: False"]
    assert 2 * FileLock(studies / ".lock").poll_interval < document.TURN_S


@pytest.mark.parametrize("theirs", [b'\n{"objects": {}}', b"{", b""], ids=["blank first", "half", "empty"])
def test_a_document_that_another_program_wrote_meanwhile_is_not_touched(
    studies: Path, open_store: Open, theirs: bytes
) -> None:
    store = open_store(studies)
    store._document.close()
    store._document.flush()
    (studies / document.NAME).write_bytes(theirs)
    before = (studies / document.NAME).stat()
    store._document.announce()
    after = (studies / document.NAME).stat()
    assert (studies / document.NAME).read_bytes() == theirs
    assert after.st_mtime_ns == before.st_mtime_ns


def test_a_document_that_it_read_long_ago_turns_nothing_back(studies: Path, open_store: Open) -> None:
    store = open_store(studies)
    store.update_image_info("ct_a", {"ours": -1})
    store._document.flush()
    with RunningMonaiLabel(studies, auto_reload=False) as theirs:
        for number in range(12):
            store.update_image_info("ct_a", {"ours": number})
            save(store, "ct_b", body=b"%d" % number, number=number)
            store._document.flush()
            if number % 4 == 3:
                theirs.do(f"store.update_image_info('ct_a', {{'theirs': {number}}})")
                store.refresh()
                assert store.image("ct_a").info["theirs"] == number
                assert store.image("ct_a").info["ours"] == number
                assert store.label("ct_b", "final").info["number"] == number


def test_both_work_at_once_and_nobody_loses_anything(
    watched: LocalDatastore, theirs: RunningMonaiLabel, studies: Path, tmp_path: Path
) -> None:
    """Each writes keys and labels of its own, as fast as it can."""
    rounds = 15

    def ours() -> None:
        for number in range(rounds):
            for image in ("ct_a", "ct_b"):
                watched.update_image_info(image, {"ours": number})
            save(watched, "ct_a", body=b"ours %d" % number, number=number)

    working = threading.Thread(target=ours)
    working.start()
    label = tmp_path / "label.nii.gz"
    for number in range(rounds):
        for image in ("ct_a", "ct_b"):
            theirs.insist(
                f"store.update_image_info({image!r}, {{'theirs': {number}}})",
                lambda objects, image=image, number=number: objects[image]["image"]["info"].get("theirs") == number,
            )
        label.write_bytes(b"theirs %d" % number)
        theirs.insist(
            f"store.save_label('ct_b', {str(label)!r}, 'final', {{'number': {number}}})",
            lambda objects, number=number: (
                objects["ct_b"]["labels"].get("final", {"info": {}})["info"].get("number") == number
            ),
        )
    working.join()
    last = rounds - 1
    for image in ("ct_a", "ct_b"):
        until(lambda image=image: watched.image(image).info.get("theirs") == last)
        assert watched.image(image).info["ours"] == last
    until(lambda: "final" in watched.labels("ct_b"))
    until(lambda: watched.label("ct_b", "final").path.read_bytes() == b"theirs %d" % last)
    until(lambda: watched.label("ct_b", "final").info["number"] == last)
    assert watched.label("ct_a", "final").path.read_bytes() == b"ours %d" % last
    assert watched.label("ct_a", "final").info["number"] == last
    assert {each.path.read_bytes() for each in watched.revisions("ct_a", "final")} == {
        b"ours %d" % number for number in range(rounds)
    }
    until(lambda: json.loads((studies / document.NAME).read_bytes()) == watched.document())
    until(lambda: theirs.do("store.get_image_info('ct_b')").get("ours") == last)
