"""Two owners of one folder, both alive: the old one can no longer write, and nothing acknowledged is lost."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import textwrap
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

import pytest

from rayapp.datastore import claim, commit
from rayapp.datastore.claim import BEAT, LOCK, FolderClaim
from rayapp.datastore.local import LocalDatastore
from rayapp.errors import Conflict
from rayapp.upkeep.stored_index import alone
from tests.datastore.saves import Open, save
from tests.waiting import until


@pytest.fixture
def ended(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Calls to end the process, which it survives."""
    calls: list[int] = []
    monkeypatch.setattr(commit, "end_process", lambda: calls.append(1))
    return calls


@pytest.fixture
def hidden(tmp_path: Path) -> Path:
    (tmp_path / "hidden").mkdir()
    return tmp_path / "hidden"


def nobody() -> None:
    raise AssertionError("the claim was lost")


def without_locks(patch: pytest.MonkeyPatch) -> None:
    """As on a file system whose locks have no effect on other nodes."""
    patch.setattr(FolderClaim, "_locked", lambda self, _: self._beat.touch() or self._path.touch() or Unlocked())


class Unlocked:
    """A lock that nobody is kept out by."""

    def release(self) -> None:
        """Nothing to release."""


def test_a_store_whose_folder_another_one_opened_can_write_no_more(
    studies: Path, open_store: Open, ended: list[int], monkeypatch: pytest.MonkeyPatch
):
    without_locks(monkeypatch)
    old = open_store(studies)
    first = save(old, body=b"first")
    new = open_store(studies)
    second = save(new, body=b"second")
    for attempt in (
        lambda: save(old, body=b"late"),
        lambda: old.update_image_info("ct_a", {"late": 1}),
        lambda: old.remove_label("ct_a", "final"),
        lambda: old.append_events([]) or old.refresh(),
    ):
        with pytest.raises(Conflict, match="another server has opened"):
            attempt()
    assert ended, "the old process would have ended"
    assert [each.id for each in new.revisions("ct_a", "final")] == [first.revision, second.revision]
    label = new.label("ct_a", "final")
    assert (label.path.read_bytes(), label.revision) == (b"second", second.revision)
    assert "late" not in new.image("ct_a").info
    new.refresh()
    assert [each.id for each in new.revisions("ct_a", "final")] == [first.revision, second.revision]
    _forget(old)


def test_what_the_old_one_committed_but_did_not_publish_the_new_one_publishes(
    studies: Path, open_store: Open, ended: list[int], monkeypatch: pytest.MonkeyPatch
):
    without_locks(monkeypatch)
    old = open_store(studies)
    save(old, body=b"first")
    news: list[LocalDatastore] = []
    plain = commit.GroupCommit._replaced

    def taken_over_after_the_commit(self: commit.GroupCommit) -> bool:
        if self._db.in_transaction or news or self is not old._commit:
            return plain(self)
        news.append(open_store(studies))
        save(news[0], body=b"newer")
        return plain(self)

    monkeypatch.setattr(commit.GroupCommit, "_replaced", taken_over_after_the_commit)
    with pytest.raises(Conflict):
        save(old, body=b"committed")
    assert news[0].label("ct_a", "final").path.read_bytes() == b"newer"
    bodies = [each.path.read_bytes() for each in news[0].revisions("ct_a", "final")]
    assert bodies == [b"first", b"committed", b"newer"]
    _forget(old)


def _forget(store: LocalDatastore) -> None:
    """End the threads of a store whose process would have ended, so that the fixture closes nothing."""
    while store._opened._closing:
        with suppress(Exception):
            store._opened._closing.pop()()
    store.close = lambda: None  # type: ignore[method-assign]


def test_an_owner_that_works_is_never_replaced(hidden: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(claim, "LEASE_S", 0.5)
    monkeypatch.setattr(claim, "BEAT_S", 0.05)
    monkeypatch.setattr(claim, "SLICE_S", 0.05)
    owner = FolderClaim(hidden, 0.0, lost=nobody)
    with pytest.raises(Conflict, match="open in another process"):
        FolderClaim(hidden, 2.0, lost=nobody)
    owner.release()
    assert not (hidden / BEAT).exists()
    FolderClaim(hidden, 0.0, lost=nobody).release()


def test_an_owner_that_stopped_is_replaced_and_told_when_it_goes_on(hidden: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(claim, "LEASE_S", 0.3)
    monkeypatch.setattr(claim, "SLICE_S", 0.05)
    monkeypatch.setattr(claim, "BEAT_S", 3600.0)
    lost: list[int] = []
    old = FolderClaim(hidden, 0.0, lost=lambda: lost.append(1))
    new = FolderClaim(hidden, 60.0, lost=nobody)
    with pytest.raises(Conflict):
        FolderClaim(hidden, 0.0, lost=nobody)
    monkeypatch.setattr(claim, "BEAT_S", 0.01)
    old._ended.set()
    old._thread.join()
    old._ended.clear()
    old._keep()
    assert lost == [1]
    old.release()
    assert (hidden / BEAT).exists(), "of the new owner"
    with pytest.raises(Conflict):
        FolderClaim(hidden, 0.0, lost=nobody)
    new.release()


def test_a_command_that_has_the_folder_is_not_taken_for_a_server_that_stopped(
    studies: Path, open_store: Open, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(claim, "LEASE_S", 0.1)
    monkeypatch.setattr(claim, "SLICE_S", 0.05)
    open_store(studies).close()
    (studies / ".rayapp" / BEAT).touch()  # as a server that crashed leaves it
    with alone(studies), pytest.raises(Conflict):
        open_store(studies, patience=1.0)
    open_store(studies, patience=1.0)


SERVER = """
import sys, time
from pathlib import Path
from rayapp.datastore import claim
from rayapp.datastore.local import LocalDatastore
from tests.datastore.saves import save
claim.BEAT_S = 0.1
store = LocalDatastore(Path(sys.argv[1]), watch=False, settle=0)
number = 0
while True:
    print(save(store, body=f"old {number}".encode()).revision, flush=True)
    number += 1
"""


def test_a_process_that_was_stopped_amid_its_saves_ends_when_it_goes_on(
    studies: Path, open_store: Open, monkeypatch: pytest.MonkeyPatch
):
    """Both processes live, on one folder with real locks: the old one is stopped by a signal, and goes on."""
    monkeypatch.setattr(claim, "LEASE_S", 1.0)
    env = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    command = [sys.executable, "-c", textwrap.dedent(SERVER), studies]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=env) as old:
        assert old.stdout is not None
        said = [old.stdout.readline() for _ in range(5)]
        new = _opened_while_stopped(old, lambda: open_store(studies, patience=60.0))
        mine = save(new, body=b"new")
        old.send_signal(signal.SIGCONT)
        rest = old.stdout.read().split()
        assert old.wait(60) == commit.EXIT_STATUS
    acknowledged = [line.strip() for line in said] + rest
    kept = [each.id for each in new.revisions("ct_a", "final")]
    assert set(acknowledged) <= set(kept), "nothing acknowledged is lost"
    assert kept[-1] == mine.revision
    assert new.label("ct_a", "final").path.read_bytes() == b"new"
    new.refresh()
    assert new.label("ct_a", "final").path.read_bytes() == b"new"


def _opened_while_stopped(old: subprocess.Popen[str], opened: Callable[[], LocalDatastore]) -> LocalDatastore:
    """Stop the process between two transactions: SQLite's own lock belongs to it otherwise."""
    stores: list[LocalDatastore] = []

    def tried() -> bool:
        old.send_signal(signal.SIGSTOP)
        try:
            stores.append(opened())
        except Exception:
            old.send_signal(signal.SIGCONT)
            return False
        return True

    until(tried, within=120)
    return stores[0]


def test_the_lock_lies_where_it_did_for_earlier_versions(studies: Path, open_store: Open):
    open_store(studies)
    assert (studies / ".rayapp" / LOCK).is_file()
