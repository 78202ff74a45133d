"""Saves, scans, other programs and recovery at once lose nothing acknowledged or published."""

from __future__ import annotations

import os
import shutil
import sqlite3
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from rayapp.datastore import recovery
from rayapp.datastore.commit import GroupCommit
from rayapp.datastore.index import Index
from rayapp.datastore.interfaces import Author, ClickEvent
from rayapp.datastore.local import LocalDatastore
from rayapp.datastore.salvage import salvage
from rayapp.errors import Conflict
from tests.datastore.saves import AUTHOR, Open, save

TARGET = Path("labels") / "final" / "ct_a.nii.gz"


def edit(studies: Path, body: bytes, *, tag: str = "final", ext: str = ".nii.gz") -> None:
    """Replace a published label as another program does, with a time of its own."""
    path = studies / "labels" / tag / f"ct_a{ext}"
    path.parent.mkdir(exist_ok=True)
    fresh = path.with_name(".fresh")
    fresh.write_bytes(body)
    os.utime(fresh, ns=(1_600_000_000_000_000_000 + len(body), 1_600_000_000_000_000_000 + len(body)))
    fresh.rename(path)


def history(store: LocalDatastore, tag: str = "final") -> list[tuple[bytes, str]]:
    """(content, author) of every revision, oldest first."""
    return [(revision.path.read_bytes(), revision.user) for revision in store.revisions("ct_a", tag)]


@contextmanager
def busy_writer(store: LocalDatastore) -> Iterator[None]:
    """Changes that come meanwhile are committed in one batch, afterwards."""
    began, go = threading.Event(), threading.Event()

    def wait(db: sqlite3.Connection) -> None:
        began.set()
        assert go.wait(10)

    thread = threading.Thread(target=store._commit.do, args=(wait,))
    thread.start()
    assert began.wait(10)
    try:
        yield
    finally:
        go.set()
        thread.join()


def queued(store: LocalDatastore, work: Callable[[], object], monkeypatch: pytest.MonkeyPatch) -> threading.Thread:
    """A thread that does the work, once its change waits for the writer."""
    waits = threading.Event()
    put = store._commit._queue.put

    class Noticing:
        def put(self, change: object) -> None:
            put(change)
            waits.set()

        def __getattr__(self, name: str) -> object:
            return getattr(original, name)

    original = store._commit._queue
    thread = threading.Thread(target=work)
    monkeypatch.setattr(store._commit, "_queue", Noticing())
    thread.start()
    assert waits.wait(10)
    monkeypatch.setattr(store._commit, "_queue", original)
    return thread


# Another program's edits


def test_an_edit_that_no_scan_has_seen_is_a_revision_before_a_save_replaces_it(plain, studies):
    save(plain, body=b"ours")
    edit(studies, b"edited by hand")
    save(plain, body=b"ours again")
    assert history(plain) == [(b"ours", "ann"), (b"edited by hand", "folder"), (b"ours again", "ann")]
    first, second, third = plain.revisions("ct_a", "final")
    assert (second.parent, third.parent) == (first.number, second.number)
    assert (studies / TARGET).read_bytes() == b"ours again"


def test_an_edit_that_no_scan_has_seen_is_a_revision_before_it_is_removed(plain, studies):
    save(plain, body=b"ours")
    edit(studies, b"edited by hand")
    assert plain.remove_label("ct_a", "final")
    assert history(plain) == [(b"ours", "ann"), (b"edited by hand", "folder")]
    assert not (studies / TARGET).exists()


def test_a_label_that_no_scan_has_seen_is_a_revision_before_the_first_save_replaces_it(plain, studies):
    edit(studies, b"made elsewhere")
    save(plain, body=b"ours")
    assert history(plain) == [(b"made elsewhere", "folder"), (b"ours", "ann")]


def test_an_edit_is_kept_also_where_the_save_has_another_extension(plain, studies):
    save(plain, body=b"ours")
    edit(studies, b"edited by hand")
    save(plain, body=b"ours as nrrd", ext=".nrrd")
    assert history(plain) == [(b"ours", "ann"), (b"edited by hand", "folder"), (b"ours as nrrd", "ann")]
    assert [file.name for file in (studies / "labels" / "final").iterdir()] == ["ct_a.nrrd"]


def test_a_removed_image_leaves_its_unseen_edits_as_revisions(plain, studies):
    save(plain, body=b"ours")
    edit(studies, b"edited by hand")
    plain.remove_image("ct_a")
    assert history(plain) == [(b"ours", "ann"), (b"edited by hand", "folder")]


def test_a_save_of_our_own_is_not_taken_for_an_edit(plain):
    for number in range(3):
        save(plain, body=b"%d" % number)
    assert [author for _, author in history(plain)] == ["ann"] * 3


# A scan and a save at the same time


def test_a_save_in_the_batch_of_a_scan_that_missed_the_file_is_not_dropped(plain, studies, monkeypatch):
    save(plain, body=b"old")
    (studies / TARGET).unlink()
    with busy_writer(plain):
        saving = queued(plain, lambda: save(plain, body=b"new"), monkeypatch)
        scanning = queued(plain, plain.refresh, monkeypatch)
    saving.join()
    scanning.join()
    assert plain.label("ct_a", "final").path.read_bytes() == b"new"
    assert history(plain)[-1] == (b"new", "ann")


def test_a_save_in_the_batch_of_a_scan_that_saw_an_edit_stays_the_annotators(plain, studies, monkeypatch):
    save(plain, body=b"old")
    edit(studies, b"edited by hand")
    with busy_writer(plain):
        saving = queued(plain, lambda: save(plain, body=b"new"), monkeypatch)
        scanning = queued(plain, plain.refresh, monkeypatch)
    saving.join()
    scanning.join()
    plain.refresh()
    assert plain.label("ct_a", "final").path.read_bytes() == b"new"
    assert history(plain)[-1] == (b"new", "ann")
    assert (b"edited by hand", "folder") in history(plain)


# Conditional saves


def test_a_save_names_the_revision_that_it_was_made_from(plain):
    first = save(plain, body=b"first")
    assert plain.revisions("ct_a", "final")[-1].number == first.number == 1
    staged = plain.stage(".nii.gz")
    staged.write_bytes(b"second")
    second = plain.save_label("ct_a", "final", staged, ".nii.gz", info={}, author=AUTHOR, expected=1)
    assert second.number == 2


@pytest.mark.parametrize("expected", [0, 1, 7])
def test_a_save_made_from_an_older_revision_is_refused_and_says_who_saved_since(plain, expected):
    save(plain, body=b"first")
    save(plain, body=b"second")
    staged = plain.stage(".nii.gz")
    staged.write_bytes(b"late")
    with pytest.raises(Conflict, match=r"revision 2 of label 'final' .* by ann"):
        plain.save_label("ct_a", "final", staged, ".nii.gz", info={}, author=Author(user="ben"), expected=expected)
    assert plain.label("ct_a", "final").path.read_bytes() == b"second"
    assert staged.read_bytes() == b"late", "what was refused can still be saved otherwise"


def test_a_save_that_expects_no_label_creates_one_and_never_replaces_one(plain):
    for body, refused in ((b"first", False), (b"second", True)):
        staged = plain.stage(".nii.gz")
        staged.write_bytes(body)
        try:
            plain.save_label("ct_a", "final", staged, ".nii.gz", info={}, author=AUTHOR, expected=0)
            assert not refused
        except Conflict:
            assert refused
    assert history(plain) == [(b"first", "ann")]


def test_a_conditional_save_counts_an_edit_that_no_scan_has_seen(plain, studies):
    save(plain, body=b"ours")
    edit(studies, b"edited by hand")
    staged = plain.stage(".nii.gz")
    staged.write_bytes(b"made from ours")
    with pytest.raises(Conflict, match="by folder"):
        plain.save_label("ct_a", "final", staged, ".nii.gz", info={}, author=AUTHOR, expected=1)
    plain.refresh()
    assert plain.label("ct_a", "final").path.read_bytes() == b"edited by hand"


def test_a_removal_takes_only_the_revision_that_was_expected(plain):
    save(plain, body=b"first")
    save(plain, body=b"second")
    with pytest.raises(Conflict):
        plain.remove_label("ct_a", "final", expected=1)
    assert plain.remove_label("ct_a", "final", expected=2)
    assert not plain.remove_label("ct_a", "final", expected=2)


def test_a_save_repeated_after_a_lost_answer_is_the_same_save_whatever_it_expected(plain):
    staged = plain.stage(".nii.gz")
    staged.write_bytes(b"body")
    copy = staged.with_name("copy")
    shutil.copy(staged, copy)
    first = plain.save_label("ct_a", "final", staged, ".nii.gz", info={}, author=AUTHOR, expected=0)
    copy.rename(staged)
    again = plain.save_label("ct_a", "final", staged, ".nii.gz", info={}, author=AUTHOR, expected=0)
    assert (again.number, again.revision) == (first.number, first.revision)
    assert len(history(plain)) == 1


# Damage


def test_a_damaged_revision_is_replaced_when_its_content_is_saved_again(plain):
    first = save(plain, body=b"x" * 1000)
    (revision,) = plain.revisions("ct_a", "final")
    revision.path.chmod(0o644)
    revision.path.write_bytes(b"x" * 10)
    again = save(plain, body=b"x" * 1000)
    assert again.revision == first.revision
    assert again.path.read_bytes() == revision.path.read_bytes() == b"x" * 1000


def crashed(store: LocalDatastore, target: Path) -> Path:
    """The folder as a crash at this moment would leave it."""
    return Path(shutil.copytree(store._studies, target, symlinks=True, copy_function=shutil.copy2))


@pytest.mark.parametrize("damage", ["missing", "damaged"])
def test_a_missing_or_damaged_revision_does_not_stop_the_start_and_the_other_labels_are_repaired(
    plain, studies, tmp_path, damage, caplog
):
    for image in ("ct_a", "ct_b"):
        save(plain, image, body=image.encode())
    left = crashed(plain, tmp_path / "left")
    (revision,) = plain.revisions("ct_a", "final")
    lost = left / revision.path.relative_to(studies)
    lost.unlink()
    if damage == "damaged":
        lost.write_bytes(b"CT_A")
    for image in ("ct_a", "ct_b"):
        (left / "labels" / "final" / f"{image}.nii.gz").unlink()
    store = LocalDatastore(left, watch=False, settle=0.0)
    try:
        assert store.label("ct_b", "final").path.read_bytes() == b"ct_b"
        assert store.status()["completed"] == 1
        assert f"revision {revision.id[:12]} is missing or damaged" in caplog.text
        assert [file.user for file in store.revisions("ct_a", "final")] == ["ann"], "its history is kept for people"
    finally:
        store.close()


def test_a_salvage_that_is_cut_short_is_done_again_at_the_next_start(plain, studies, tmp_path, monkeypatch):
    save(plain, body=b"first")
    save(plain, body=b"second")
    left = crashed(plain, tmp_path / "left")
    damage(left / ".rayapp" / "index.db")
    real = recovery.salvage

    def cut(broken, db):
        real(broken, db)
        raise KeyboardInterrupt

    monkeypatch.setattr(recovery, "salvage", cut)
    with pytest.raises(KeyboardInterrupt):
        LocalDatastore(left, watch=False, settle=0.0)
    monkeypatch.undo()
    store = LocalDatastore(left, watch=False, settle=0.0)
    try:
        assert [body for body, _ in history(store)] == [b"first", b"second"]
    finally:
        store.close()


def damage(index: Path) -> None:
    """Spoil the schema's cookie page enough that SQLite refuses the file, and leave the rows readable."""
    with sqlite3.connect(index) as db:
        db.execute("PRAGMA wal_checkpoint(TRUNCATE)")
        (page,) = db.execute("SELECT rootpage FROM sqlite_master WHERE name = 'feature'").fetchone()
        (size,) = db.execute("PRAGMA page_size").fetchone()
    db.close()
    with index.open("r+b") as file:
        file.seek((page - 1) * size)
        file.write(b"\xff" * size)


def test_removals_and_leases_outlive_a_damaged_index(plain, studies, tmp_path, monkeypatch):
    save(plain, body=b"removed")
    plain.serve_next("ct_b", "first", client_id=None, ts=1, holder="ann")

    def refuses(path: Path) -> Path:
        raise OSError(5, "Input/output error")

    monkeypatch.setattr(plain._files, "discard", refuses)
    plain.remove_label("ct_a", "final")
    left = crashed(plain, tmp_path / "left")
    assert (left / TARGET).exists()
    damage(left / ".rayapp" / "index.db")
    store = LocalDatastore(left, watch=False, settle=0.0)
    try:
        assert store.labels("ct_a") == {}
        assert not (left / TARGET).exists()
        assert store.unlabeled(limit=9, holder="ben") == ["ct_a", "mr_c"]
    finally:
        store.close()


def test_what_lies_behind_a_bad_page_is_salvaged_too(plain, studies, tmp_path):
    events = [
        ClickEvent(image_id="ct_a", kind="prompt", payload={"n": number, "pad": "x" * 200}, model="m", user="ann")
        for number in range(1000)
    ]
    plain.append_events(events)
    left = crashed(plain, tmp_path / "left")
    index = left / ".rayapp" / "index.db"
    with sqlite3.connect(index) as db:
        db.execute("PRAGMA wal_checkpoint(TRUNCATE)")
        (size,) = db.execute("PRAGMA page_size").fetchone()
    db.close()
    text = index.read_bytes()
    place = text.index(b'"n": 100,') if b'"n": 100,' in text else text.index(b'"n":100,')
    with index.open("r+b") as file:
        file.seek(place // size * size)
        file.write(b"\xff" * size)
    fresh = Index(tmp_path / "fresh.db")
    salvage(index, fresh.writer)
    (count,) = fresh.writer.execute("SELECT count(*) FROM event").fetchone()
    fresh.close()
    assert 1000 - 2 * size // 200 <= count < 1000


def test_a_writer_that_cannot_roll_back_takes_the_process_along(monkeypatch):
    ended = threading.Event()
    db = sqlite3.connect(":memory:", check_same_thread=False, isolation_level=None)

    class Broken:
        in_transaction = True

        def execute(self, text: str) -> None:
            raise sqlite3.OperationalError("disk I/O error")

    monkeypatch.setattr("rayapp.datastore.commit.end_process", ended.set)
    commit = GroupCommit(Broken())  # type: ignore[arg-type]
    waiting = threading.Thread(target=lambda: commit.do(lambda _: None), daemon=True)
    waiting.start()
    assert ended.wait(10)
    db.close()


@pytest.mark.parametrize("tag", ["final", "second"])
def test_history_survives_a_start(plain, studies, open_store: Open, tag):
    save(plain, tag=tag, body=b"ours")
    edit(studies, b"edited by hand", tag=tag)
    save(plain, tag=tag, body=b"again")
    before = history(plain, tag)
    plain.close()
    assert history(open_store(studies), tag) == before
