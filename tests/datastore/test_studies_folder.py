"""Opening a studies folder: what others left in it, and what crashes left."""

from __future__ import annotations

import fcntl
import json
import logging
import os
import shutil
import threading
import time
from pathlib import Path
from typing import Any

import pytest

from rayapp.datastore.interfaces import ClickEvent
from rayapp.errors import Conflict, NotFound
from tests.datastore.saves import Open, counts, save


@pytest.fixture
def peer(studies: Path) -> Path:
    """The folder as MONAI Label leaves it."""
    document = {
        "name": "livers",
        "description": "Our livers",
        "images_dir": ".",
        "labels_dir": "labels",
        "objects": {
            "ct_a": {
                "image": {
                    "ext": ".nii.gz",
                    "info": {"ts": 11, "name": "ct_a.nii.gz", "strategy": {"random": {"ts": 12, "client_id": "s"}}},
                },
                "labels": {
                    "original": {"ext": ".nii.gz", "info": {"params": {"label_names": {"liver": 1}}, "ts": 13}},
                    "final": {"ext": ".seg.nrrd", "info": {"ts": 14, "name": "ct_a.seg.nrrd", "user": "zoe"}},
                },
            },
            "ct_b": {"image": {"ext": ".nii.gz", "info": {"ts": 15, "epistemic_entropy": float("nan")}}, "labels": {}},
            "lost": {"image": {"ext": ".nii.gz", "info": {}}, "labels": {}},
        },
    }
    (studies / "datastore_v2.json").write_text(json.dumps(document, indent=2))
    for name in ("final/ct_a.seg.nrrd", "original/ct_a.nii.gz", "version_1/ct_b.nii.gz", "final/stranger.nii.gz"):
        path = studies / "labels" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(name.encode())
    return studies


def test_a_folder_of_monai_label_opens_as_it_is(peer: Path, open_store: Open) -> None:
    store = open_store(peer)
    assert store.image_ids() == ["ct_a", "ct_b", "mr_c"]
    assert store.image("ct_a").info["strategy"] == {"random": {"ts": 12, "client_id": "s"}}
    assert store.image("ct_b").info["epistemic_entropy"] is None
    final = store.label("ct_a", "final")
    assert (final.ext, final.info["user"], final.path.read_bytes()) == (".seg.nrrd", "zoe", b"final/ct_a.seg.nrrd")
    assert store.label("ct_a", "original").info["params"] == {"label_names": {"liver": 1}}
    assert store.label("ct_b", "version_1").info["name"] == "ct_b.nii.gz"
    assert store.revisions("ct_a", "final")[0].path.read_bytes() == b"final/ct_a.seg.nrrd"
    assert counts(store) == {"total": 3, "completed": 1, "label_tags": {"final": 1, "original": 1, "version_1": 1}}
    assert (store.document()["name"], store.document()["description"]) == ("livers", "Our livers")


def test_saving_over_an_imported_label_keeps_it_as_a_revision(peer: Path, open_store: Open) -> None:
    store = open_store(peer)
    save(store, body=b"better", ext=".seg.nrrd")
    assert [r.path.read_bytes() for r in store.revisions("ct_a", "final")] == [b"final/ct_a.seg.nrrd", b"better"]


def test_a_loose_seg_nrrd_is_left_alone_like_the_peer_does(studies: Path, open_store: Open) -> None:
    (studies / "labels" / "final").mkdir(parents=True)
    (studies / "labels" / "final" / "ct_a.seg.nrrd").write_bytes(b"x")
    assert open_store(studies).labels("ct_a") == {}


def test_a_document_for_other_folders_is_refused_with_a_line_that_says_why(studies: Path, open_store: Open) -> None:
    (studies / "datastore_v2.json").write_text('{"name": "", "description": "", "labels_dir": "../else"}')
    with pytest.raises(Conflict, match="labels_dir"):
        open_store(studies)
    (studies / "datastore_v2.json").unlink()
    assert open_store(studies).status()["total"] == 3


def test_an_unreadable_document_is_kept_aside_and_the_store_opens(studies: Path, open_store: Open) -> None:
    (studies / "datastore_v2.json").write_text('{"objects": {"ct_a": ')
    assert open_store(studies).status()["total"] == 3
    (broken,) = studies.glob("datastore_v2.json.broken-*")
    assert broken.read_text() == '{"objects": {"ct_a": '


def test_malformed_objects_are_left_out_and_the_sane_ones_taken(studies: Path, open_store: Open) -> None:
    objects = {
        "ct_a": {"image": {"ext": ".nii.gz", "info": {"k": 1}}},
        "../x": {"image": {"ext": "", "info": {}}},
        "ct_b": {"image": {"ext": "/../..", "info": {}}},
        "mr_c": 7,
    }
    (studies / "datastore_v2.json").write_text(json.dumps({"name": "n", "description": "", "objects": objects}))
    store = open_store(studies)
    assert store.image_ids() == ["ct_a", "ct_b", "mr_c"]
    assert store.image("ct_a").info["k"] == 1


def test_sub_folders_with_dicom_files_are_images_and_others_are_not(studies: Path, open_store: Open) -> None:
    for name, file, head in (("series", "IM0001", b"\0" * 128 + b"DICM"), ("notes", "a.txt", b"x" * 200)):
        (studies / name).mkdir()
        (studies / name / file).write_bytes(head)
    store = open_store(studies)
    assert store.image_ids() == ["ct_a", "ct_b", "mr_c", "series"]
    assert (store.image("series").ext, store.image("series").path) == ("", studies / "series")
    save(store, "series", ext=".nrrd")
    store.close()
    assert open_store(studies).label("series", "final").path == studies / "labels/final/series.nrrd"


def test_what_is_left_out_is_logged_once_with_its_reason_and_without_its_name(
    studies: Path, open_store: Open, caplog: pytest.LogCaptureFixture
) -> None:
    (studies / "DOE^JANE;1970.nii.gz").symlink_to(studies / "nowhere")
    (studies / ".hidden.nii.gz").write_bytes(b"x")
    with caplog.at_level(logging.WARNING, logger="rayapp"):
        store = open_store(studies)
        store.refresh()
    assert len(store.image_ids()) == 3
    assert caplog.text.count("left out of the studies folder: 1 (it is a link to a file that is not there)") == 1
    assert "DOE" not in caplog.text


def test_a_missing_folder_is_named_as_such(tmp_path: Path, open_store: Open) -> None:
    with pytest.raises(NotFound, match="studies folder"):
        open_store(tmp_path / "none")


def test_a_label_edited_by_hand_becomes_a_new_revision(plain: Any) -> None:
    record = save(plain, body=b"ours", model="m")
    record.path.write_bytes(b"by hand")
    plain.refresh()
    edited = plain.label("ct_a", "final")
    assert edited.revision != record.revision
    assert edited.info["model"] == "m"
    first, second = plain.revisions("ct_a", "final")
    assert (first.path.read_bytes(), second.path.read_bytes()) == (b"ours", b"by hand")
    assert (second.user, second.parent) == ("folder", 1)


def test_a_label_edited_by_hand_while_the_store_was_closed_too(plain: Any, studies: Path, open_store: Open) -> None:
    record = save(plain, body=b"ours")
    plain.close()
    record.path.write_bytes(b"by hand")
    assert len(open_store(studies).revisions("ct_a", "final")) == 2


def test_a_label_touched_but_not_changed_is_no_new_revision(plain: Any) -> None:
    os.utime(save(plain).path)
    plain.refresh()
    plain.refresh()
    assert len(plain.revisions("ct_a", "final")) == 1


def test_a_label_taken_out_of_the_folder_goes_and_its_revisions_stay(plain: Any) -> None:
    save(plain).path.unlink()
    plain.refresh()
    assert plain.labels("ct_a") == {}
    assert len(plain.revisions("ct_a", "final")) == 1


def test_an_image_that_vanishes_and_comes_back_has_kept_everything(plain: Any, studies: Path, tmp_path: Path) -> None:
    save(plain, model="m")
    plain.update_label_info("ct_a", "final", {"status": "approved"})
    plain.update_image_info("ct_a", {"dice": 0.5})
    plain.append_events([ClickEvent(image_id="ct_a", kind="click", payload={})])
    shutil.move(studies / "ct_a.nii.gz", tmp_path)
    plain.refresh()
    assert plain.image_ids() == ["ct_b", "mr_c"]
    assert plain.status()["completed"] == 0
    shutil.move(tmp_path / "ct_a.nii.gz", studies)
    plain.refresh()
    assert plain.image("ct_a").info["dice"] == 0.5
    assert plain.label("ct_a", "final").info["status"] == "approved"
    assert len(plain.revisions("ct_a", "final")) == 1
    assert len(plain.events("ct_a")) == 1


def test_a_file_that_is_still_being_copied_is_no_image_yet(studies: Path, open_store: Open) -> None:
    store = open_store(studies, settle=0.3)
    slow = studies / "slow.nii.gz"
    slow.write_bytes(b"half")
    timer = threading.Timer(0.15, lambda: slow.write_bytes(b"half and half"))
    timer.start()
    store.refresh()
    assert "slow" not in store.image_ids()
    timer.join()
    store.refresh()
    assert "slow" in store.image_ids()


def test_a_crash_between_commit_and_publishing_is_repaired_at_opening(
    plain: Any, studies: Path, open_store: Open
) -> None:
    old = save(plain, body=b"old").path.stat()
    path = save(plain, body=b"new").path
    old_ext = save(plain, "ct_b", body=b"a", ext=".nrrd").path.stat()
    other = save(plain, "ct_b", body=b"other").path
    crash = studies.parent / "crash"
    # What a kill -9 leaves: the index has both, the published files are one behind.
    shutil.copytree(studies, crash, symlinks=True)
    left = crash / path.relative_to(studies)
    left.write_bytes(b"old")
    os.utime(left, ns=(old.st_atime_ns, old.st_mtime_ns))
    (crash / other.relative_to(studies)).unlink()
    (left.with_name("ct_b.nrrd")).write_bytes(b"a")
    os.utime(left.with_name("ct_b.nrrd"), ns=(old_ext.st_atime_ns, old_ext.st_mtime_ns))
    store = open_store(crash)
    assert store.label("ct_a", "final").path.read_bytes() == b"new"
    assert store.label("ct_b", "final").path.read_bytes() == b"other"
    assert not left.with_name("ct_b.nrrd").exists()
    assert len(store.revisions("ct_a", "final")) == 2


def test_a_crash_between_forgetting_and_removing_is_finished_at_opening(
    plain: Any, studies: Path, open_store: Open
) -> None:
    label, other = save(plain).path, save(plain, "ct_b", tag="original").path
    kept = [(path, path.read_bytes(), path.stat()) for path in (label, other, studies / "ct_b.nii.gz")]
    commit = plain._commit
    plain._commit = Forgetful(commit)
    plain.remove_label("ct_a", "final")
    plain.remove_image("ct_b")
    plain._commit = commit
    crash = studies.parent / "crash"
    shutil.copytree(studies, crash)
    for path, body, stat in kept:
        left = crash / path.relative_to(studies)
        left.write_bytes(body)
        os.utime(left, ns=(stat.st_atime_ns, stat.st_mtime_ns))
    store = open_store(crash)
    assert store.image_ids() == ["ct_a", "mr_c"]
    assert store.labels("ct_a") == {}
    assert list((crash / "labels").glob("*/*")) == []


class Forgetful:
    """A commit thread that is killed right after a removal's first commit."""

    def __init__(self, commit: Any) -> None:
        self._commit = commit

    def do(self, apply: Any, **options: Any) -> Any:
        return self._commit.do(apply, **options) if options else None


def test_after_a_clean_close_a_file_that_is_missing_was_removed_by_someone(
    plain: Any, studies: Path, open_store: Open
) -> None:
    path = save(plain).path
    plain.close()
    path.unlink()
    assert open_store(studies).labels("ct_a") == {}


@pytest.mark.parametrize("damage", ["garbage", "truncated", "middle"])
def test_a_damaged_index_is_kept_aside_and_rebuilt(plain: Any, studies: Path, open_store: Open, damage: str) -> None:
    save(plain, body=b"one")
    save(plain, body=b"two", model="m")
    plain.update_image_info("ct_b", {"dice": 0.5})
    plain.close()
    index = studies / ".rayapp" / "index.db"
    data = index.read_bytes()
    index.write_bytes(
        {"garbage": b"no database", "truncated": data[: len(data) // 2], "middle": _overwritten(data)}[damage]
    )
    store = open_store(studies)
    assert store.image_ids() == ["ct_a", "ct_b", "mr_c"]
    assert store.label("ct_a", "final").info["model"] == "m"
    assert store.label("ct_a", "final").path.read_bytes() == b"two"
    assert store.image("ct_b").info["dice"] == 0.5
    assert counts(store) == {"total": 3, "completed": 1, "label_tags": {"final": 1}}
    assert list((studies / ".rayapp").glob("index.db.broken-*"))
    save(store, body=b"three")


def _overwritten(data: bytes) -> bytes:
    """The head is whole, every page behind the first is not."""
    return data[:4096] + b"\xff" * (len(data) - 4096)


def test_staged_files_that_nobody_took_over_are_swept_after_a_day(plain: Any, studies: Path, open_store: Open) -> None:
    stale, fresh = plain.stage(".nii.gz"), plain.stage(".nii.gz")
    for path in (stale, fresh):
        path.write_bytes(b"x")
    os.utime(stale, (time.time() - 90000,) * 2)
    plain.close()
    open_store(studies)
    assert (stale.exists(), fresh.exists()) == (False, True)


def test_a_file_system_whose_locks_do_nothing_is_named_in_the_log(
    studies: Path, open_store: Open, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    open_store(studies).close()
    assert "file locks have no effect" not in caplog.text
    monkeypatch.setattr(fcntl, "flock", lambda *_: None)
    open_store(studies)
    assert "file locks have no effect" in caplog.text
