"""Real file systems that are read-only or full, mounted where only the test's own process sees them."""

from __future__ import annotations

import errno
import os
import subprocess
import sys
import textwrap
from pathlib import Path

import filelock
import pytest

from rayapp.datastore.local import LocalDatastore
from rayapp.errors import Busy, Conflict, disk_reason
from rayapp.files import durable
from tests.datastore.saves import AUTHOR, Open, save

ALONE = ["unshare", "--mount", "--map-root-user"]
MAY_MOUNT = subprocess.run([*ALONE, "true"], capture_output=True, check=False).returncode == 0
SCRIPT = """
import os, subprocess, sys
from pathlib import Path
from rayapp.commands import WrongUsage
from rayapp.commands.server import places, settings
from rayapp.datastore.interfaces import Author
from rayapp.datastore.local import LocalDatastore
from rayapp.errors import RayappError

folder = Path(sys.argv[1])
subprocess.run(["mount", "-t", "tmpfs", "-o", "size=2m", "none", folder], check=True)
(folder / "studies").mkdir()
(folder / "studies" / "a.nii").write_bytes(b"voxels")

def fill():
    with (folder / "filler").open("wb", buffering=0) as file:
        try:
            while True:
                file.write(bytes(4096))
        except OSError:
            pass

def told(work):
    try:
        work()
    except (RayappError, WrongUsage) as error:
        print(getattr(error, "detail", None) or error)
    else:
        print("done")

def opened():
    LocalDatastore(folder / "studies", watch=False, settle=0).close()

def checked():
    settings({"studies": str(folder / "studies"), "workspace": str(folder / "workspace")})
"""


def answers(tmp_path: Path, steps: str) -> list[str]:
    """What the steps print, in a process whose folder is a file system of 2 MB of its own."""
    if not MAY_MOUNT:
        pytest.skip("mounting is not permitted here")
    done = subprocess.run(
        [*ALONE, sys.executable, "-c", SCRIPT + textwrap.dedent(steps), tmp_path],
        capture_output=True,
        text=True,
        check=True,
        env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)},
    )
    return done.stdout.splitlines()


@pytest.mark.parametrize("before", [False, True], ids=["first start", "later start"])
def test_a_read_only_folder_is_told_as_that_at_the_start(tmp_path: Path, before: bool) -> None:
    steps = """
    subprocess.run(["mount", "-o", "remount,ro", folder], check=True)
    told(opened)
    told(checked)
    told(lambda: places({"studies": str(folder / "studies"), "workspace": "/tmp"}))
    subprocess.run(["mount", "-o", "remount,rw", folder], check=True)
    told(opened)
    """
    first, checked, places, last = answers(tmp_path, ("opened()\n" if before else "") + textwrap.dedent(steps))
    assert "cannot be opened" in first
    for text in (first, checked):
        assert "the file system is read-only; make it writable" in text
    assert checked.startswith("--studies: ")
    assert (places, last) == ("done", "done")


@pytest.mark.parametrize("before", [False, True], ids=["first start", "later start"])
def test_a_full_disk_is_told_as_that_at_the_start(tmp_path: Path, before: bool) -> None:
    steps = """
    fill()
    told(opened)
    told(checked)
    (folder / "filler").unlink()
    told(opened)
    told(checked)
    """
    first, checked, *last = answers(tmp_path, ("opened()\n" if before else "") + textwrap.dedent(steps))
    for text in (first, checked):
        assert "the disk is full; free some space" in text
    assert last == ["done", "done"]


def test_a_disk_that_gets_full_refuses_saves_and_goes_on_once_there_is_space(tmp_path: Path) -> None:
    steps = """
    store = LocalDatastore(folder / "studies", watch=False, settle=0)

    def save():
        staged = store.stage(".nii.gz")
        staged.write_bytes(b"label")
        store.save_label("a", "final", staged, ".nii.gz", info={}, author=Author(user="ann"))

    staged = store.stage(".nii.gz")
    staged.write_bytes(b"label")
    fill()
    told(lambda: store.save_label("a", "final", staged, ".nii.gz", info={}, author=Author(user="ann")))
    told(lambda: print(len(store.labels("a"))))
    (folder / "filler").unlink()
    told(save)
    print(store.label("a", "final").path.read_bytes())
    store.close()
    """
    refused, labels, _, saved, content = answers(tmp_path, steps)
    assert "the disk is full; free some space" in refused
    assert (labels, saved, content) == ("0", "done", "b'label'")


def test_a_file_system_without_locks_is_told_as_that(studies: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def acquire(*_: object, **__: object) -> None:
        raise NotImplementedError("FileSystem does not appear to support flock; use SoftFileLock instead")

    monkeypatch.setattr(filelock.FileLock, "acquire", acquire)
    with pytest.raises(Conflict, match="no file locks: mount it with locks"):
        LocalDatastore(studies, watch=False)


@pytest.mark.parametrize("code", [errno.EPERM, errno.EOPNOTSUPP, errno.ENOSYS, errno.EMLINK])
def test_a_file_system_without_hard_links_keeps_everything(
    studies: Path, open_store: Open, monkeypatch: pytest.MonkeyPatch, code: int
) -> None:
    def link(*_: object, **__: object) -> None:
        raise OSError(code, os.strerror(code))

    monkeypatch.setattr(os, "link", link)
    store = open_store(studies)
    bodies = [b"one", b"two", b"one", b"three"]
    for number, body in enumerate(bodies):
        save(store, body=body, ext=".nrrd" if number == 3 else ".nii.gz")
    save(store, "ct_b", body=b"one")
    staged = store.stage(".nii")
    staged.write_bytes(b"voxels")
    store.add_image("new", staged, ".nii", info={}, author=AUTHOR)
    store.remove_label("ct_b", "final")
    with pytest.raises(Conflict, match="exists already"):
        store.add_image("new", store.stage(".nii"), ".nii", info={}, author=AUTHOR)
    store.close()
    store = open_store(studies)
    assert [each.path.read_bytes() for each in store.revisions("ct_a", "final")] == bodies
    assert store.label("ct_a", "final").path.read_bytes() == b"three"
    assert store.image("new").path.read_bytes() == b"voxels"
    assert "final" not in store.labels("ct_b")
    (studies / "labels" / "final" / "ct_a.nrrd").write_bytes(b"by hand")
    store.refresh()
    assert [each.path.read_bytes() for each in store.revisions("ct_a", "final")] == [*bodies, b"by hand"]
    assert list((studies / ".rayapp" / "staging").iterdir()) == []


@pytest.mark.parametrize("code", [errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EACCES, errno.EIO])
def test_each_error_of_the_disk_says_what_to_do(code: int) -> None:
    text = disk_reason(OSError(code, os.strerror(code)))
    assert "; " in text
    with pytest.raises(Busy, match=text), durable.writing():
        raise OSError(code, os.strerror(code))
