"""Backup, restore, check, gc and erase on a folder with a history, an archive of versions, and a running store."""

from __future__ import annotations

import itertools
import json
import os
import shutil
import threading
import time
from pathlib import Path

import pyarrow.parquet as pq
import pytest
import torch
from safetensors.torch import save_file
from typer.testing import CliRunner

from rayapp.active_learning.score_files import append_rows, merge_parts
from rayapp.cli import app
from rayapp.datastore.interfaces import ClickEvent, ImageScore
from rayapp.datastore.job_record import Job, State
from rayapp.datastore.local import LocalDatastore
from rayapp.errors import Conflict, NotFound
from rayapp.imaging.dicom_instances import uid_of
from rayapp.models.store import ModelStore
from rayapp.protocol import JobKind
from rayapp.upkeep.backup import back_up, restore
from rayapp.upkeep.check import problems, unused
from rayapp.upkeep.erasure import erase
from rayapp.upkeep.garbage import AGE_S, collect, orphans
from tests.datastore.saves import Open, save
from tests.waiting import until


@pytest.fixture
def workspace(tmp_path: Path) -> Path:
    weights = tmp_path / "w.safetensors"
    save_file({"w": torch.ones(2)}, weights)
    folder = tmp_path / "workspace"
    models = ModelStore(folder / "models")
    for _ in range(4):
        models.publish("liver", weights, {"job": "train-1"}, promote=False)
    models.promote("liver", "v1")
    (folder / "users.json").write_text("{}")
    return folder


@pytest.fixture
def busy(plain: LocalDatastore) -> LocalDatastore:
    """A store with two labels, the one of `ct_a` in two revisions, and with a click on each."""
    for body in (b"secret one", b"secret two"):
        save(plain, "ct_a", body=body)
    save(plain, "ct_b", body=b"other")
    plain.append_events(
        [ClickEvent(image_id=image, kind="click", payload={"of": image}, ts=7.0) for image in ("ct_a", "ct_b")]
    )
    plain.save_scores([ImageScore(image_id=image, run="r", ts=1.0, values={"u": 1.0}) for image in ("ct_a", "ct_b")])
    return plain


def history(store: LocalDatastore, image: str) -> list[bytes]:
    return [revision.path.read_bytes() for revision in store.revisions(image, "final")]


def test_a_backup_of_a_running_store_is_restored_with_all_it_had(
    busy: LocalDatastore, studies: Path, workspace: Path, tmp_path: Path, open_store: Open
):
    first = back_up(studies, workspace, tmp_path / "backup", images=True)
    save(busy, "ct_b", body=b"after the backup")
    assert first.files > 0
    assert restore(tmp_path / "backup", tmp_path / "again", tmp_path / "space").files == first.files
    again = open_store(tmp_path / "again")
    assert history(again, "ct_a") == [b"secret one", b"secret two"]
    assert again.label("ct_a", "final").path.read_bytes() == b"secret two"
    assert again.label("ct_b", "final").path.read_bytes() == b"other"
    assert [event.payload for event in again.events("ct_b")] == [{"of": "ct_b"}]
    assert again.status()["total"] == 3
    models = ModelStore(tmp_path / "space" / "models")
    assert (models.serving("liver"), models.versions("liver")) == ("v1", ["v1", "v2", "v3", "v4"])


def test_backups_beside_saves_are_of_one_moment_each(
    busy: LocalDatastore, studies: Path, workspace: Path, tmp_path: Path, open_store: Open
):
    """Each round saves a label of `ct_a` and then the same of `ct_b`."""
    ended = threading.Event()

    def annotate() -> None:
        for number in itertools.count():
            for image in ("ct_a", "ct_b"):
                save(busy, image, tag="round", body=b"%d" % number)
            if ended.wait(0.02):
                return

    annotator = threading.Thread(target=annotate)
    annotator.start()
    until(lambda: "round" in busy.labels("ct_b"))
    for number in range(3):
        back_up(studies, workspace, tmp_path / "backup")
        before = len(busy.revisions("ct_b", "round"))
        until(lambda before=before: len(busy.revisions("ct_b", "round")) > before)
        assert list(problems(tmp_path / "backup" / "studies", tmp_path / "backup" / "workspace")) == []
        restored = tmp_path / f"again {number}"
        restored.mkdir()
        for image in ("ct_a.nii.gz", "ct_b.nii.gz", "mr_c.nrrd"):
            shutil.copy(studies / image, restored)
        restore(tmp_path / "backup", restored, tmp_path / f"space {number}")
        again = open_store(restored)
        saved = [[each.path.read_bytes() for each in again.revisions(image, "round")] for image in ("ct_a", "ct_b")]
        assert len(saved[0]) - len(saved[1]) in (0, 1)
        assert saved[0][: len(saved[1])] == saved[1]
        assert again.label("ct_a", "round").path.read_bytes() == saved[0][-1]
    ended.set()
    annotator.join()


def test_a_second_backup_copies_only_what_is_new(busy: LocalDatastore, studies: Path, workspace: Path, tmp_path: Path):
    back_up(studies, workspace, tmp_path / "backup")
    save(busy, "ct_b", body=b"new")
    again = back_up(studies, workspace, tmp_path / "backup")
    assert (again.files, again.bytes) == (1, 3)
    assert list(problems(tmp_path / "backup" / "studies", tmp_path / "backup" / "workspace")) == []


def test_a_revision_that_is_lost_keeps_nothing_else_out_of_the_backup(
    busy: LocalDatastore, studies: Path, workspace: Path, tmp_path: Path, open_store: Open
):
    first, _ = busy.revisions("ct_a", "final")
    first.path.unlink()
    places = ["--studies", str(studies), "--workspace", str(workspace)]
    done = CliRunner().invoke(app, ["backup", str(tmp_path / "backup"), *places])
    assert (done.exit_code, "1 revisions are missing" in done.output) == (1, True), done.output
    shutil.copytree(studies, tmp_path / "again", ignore=shutil.ignore_patterns(".*", "labels", "*.json"))
    restore(tmp_path / "backup", tmp_path / "again", tmp_path / "space")
    again = open_store(tmp_path / "again")
    assert again.label("ct_a", "final").path.read_bytes() == b"secret two"
    assert history(again, "ct_b") == [b"other"]


def test_a_backup_goes_on_where_the_server_removes_a_file_meanwhile(
    busy: LocalDatastore, studies: Path, workspace: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    maps = studies / ".rayapp" / "uncertainty" / "m"
    maps.mkdir(parents=True)
    (maps / "ct_a.nii.gz").write_bytes(b"a map")
    copy = shutil.copy2

    def removed_first(source: Path, target: Path) -> None:
        if source.parent == maps:
            busy.remove_image("ct_a")
        copy(source, target)

    monkeypatch.setattr(shutil, "copy2", removed_first)
    back_up(studies, workspace, tmp_path / "backup")
    assert not list((tmp_path / "backup" / "studies" / ".rayapp" / "uncertainty").rglob("*.nii.gz"))
    assert list(problems(tmp_path / "backup" / "studies", tmp_path / "backup" / "workspace")) == []


def test_a_backup_is_not_restored_over_anything(busy: LocalDatastore, studies: Path, workspace: Path, tmp_path: Path):
    back_up(studies, workspace, tmp_path / "backup")
    with pytest.raises(Conflict, match="opened by a server"):
        restore(tmp_path / "backup", studies, tmp_path / "space")
    with pytest.raises(Conflict, match="models already"):
        restore(tmp_path / "backup", tmp_path / "again", workspace)
    with pytest.raises(NotFound, match="no complete backup"):
        restore(tmp_path / "workspace", tmp_path / "again", tmp_path / "space")


def test_check_names_each_damage_once_and_nothing_where_all_is_well(
    busy: LocalDatastore, studies: Path, workspace: Path
):
    assert list(problems(studies, workspace)) == []
    damaged, missing = busy.revisions("ct_a", "final")
    damaged.path.chmod(0o644)
    damaged.path.write_bytes(b"x")
    missing.path.unlink()
    (workspace / "models" / "liver" / "v2" / "model.safetensors").write_bytes(b"x")
    found = list(problems(studies, workspace))
    assert len(found) == 3
    for part, text in zip(("1 of label 'final'", "2 of label 'final'", "version v2"), found, strict=True):
        assert part in text
    assert ("damaged" in found[0], "missing" in found[1]) == (True, True)


def test_gc_removes_what_nothing_refers_to_once_it_is_a_day_old(busy: LocalDatastore, studies: Path, workspace: Path):
    hidden = studies / ".rayapp"
    left = [
        hidden / "revisions" / "ab" / "abcd.nii.gz",
        hidden / "staging" / "old.nii.gz",
        hidden / "index.db.broken-1",
        hidden / "uncertainty" / "m" / "gone.nii.gz",
        workspace / "runs" / "gone" / "curves.json",
        workspace / "models" / "liver" / ".staged-x" / "card.json",
    ]
    kept = hidden / "uncertainty" / "m" / "ct_a.nii.gz"
    for path in (*left, kept):
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(b"12345")
    assert orphans(studies, workspace) == [], "they are too young"
    for path in (*left, *(path.parent for path in left[4:]), *workspace.glob("models/liver/v*")):
        os.utime(path, (time.time() - AGE_S - 60,) * 2)
    assert unused(studies, workspace) >= 5 * len(left)
    with pytest.raises(Conflict, match="stop it first"):
        collect(studies, workspace)
    assert all(path.exists() for path in left)
    busy.close()
    deleted = collect(studies, workspace, versions=1)
    assert not any(path.exists() for path in left)
    assert kept.exists()
    assert ModelStore(workspace / "models").versions("liver") == ["v1", "v4"], "in production, and the newest"
    assert len(deleted) == len(left) + 2
    assert list(problems(studies, workspace)) == []


def test_an_erased_image_is_nowhere_and_the_others_are_as_they_were(
    busy: LocalDatastore, studies: Path, workspace: Path, open_store: Open
):
    rows = [
        {"image": image, "job": "j", "method": "m", "options": "{}", "ts": 1.0, "seconds": 1.0}
        for image in ("ct_a", "ct_b")
    ]
    append_rows(studies, "j", rows)
    merge_parts(studies, "j")
    busy.save_job(
        Job(
            id="batch",
            kind=JobKind.BATCH,
            name="m",
            state=State.DONE,
            request={},
            user="ann",
            created=1.0,
            details=("ct_a: it failed", "ct_b: it failed"),
            result={"failed": {"ct_a": "why", "ct_b": "why"}},
        )
    )
    busy.remove_image("ct_a")  # and another patient's image gets the name
    (studies / "ct_a.nii.gz").write_bytes(b"voxels")
    busy.refresh()
    save(busy, "ct_a", body=b"secret three")
    (studies / ".rayapp" / "uncertainty" / "m").mkdir(parents=True)
    for image in ("ct_a", "ct_b"):
        (studies / ".rayapp" / "uncertainty" / "m" / f"{image}.nii.gz").write_bytes(b"secret map")
    (workspace / "runs" / "train-1").mkdir(parents=True)
    (workspace / "runs" / "train-1" / "request.json").write_text(json.dumps({"pairs": [{"image": "/x/ct_a.nii.gz"}]}))
    copy = workspace / "viewer" / uid_of("series", "ct_a") / "1-2-3"
    copy.mkdir(parents=True)
    (copy / "voxels.nii").write_bytes(b"secret copy for the viewer")
    for content in ('{"objects": {"ct_a": {}, "ct_b": {}}}', '{"ct_a: it was cut off'):
        (studies / f"datastore_v2.json.broken-{len(content)}").write_text(content)
    with pytest.raises(Conflict, match="stop it first"):
        erase(studies, workspace, "ct_a")
    busy.close()
    left = erase(studies, workspace, "ct_a")
    assert any("train-1" in each for each in left)
    assert any("liver v1" in each for each in left)
    assert not list((workspace / "viewer").rglob("*"))
    for path in studies.rglob("*"):
        if path.is_file():
            content = path.read_bytes()
            assert b"secret" not in content or path.name == "ct_b.nii.gz", path
            assert b"ct_a" not in content, path
        assert "ct_a" not in path.name
    with pytest.raises(NotFound):
        erase(studies, workspace, "ct_a")
    again = open_store(studies)
    assert again.image_ids() == ["ct_b", "mr_c"]
    assert history(again, "ct_b") == [b"other"]
    assert again.jobs()[0].result["failed"] == {"ct_b": "why"}
    assert pq.read_table(studies / ".rayapp" / "scores" / "j.parquet")["image"].to_pylist() == ["ct_b"]


def test_what_no_server_has_opened_is_not_found(tmp_path: Path):
    for call in (
        lambda: back_up(tmp_path, tmp_path, tmp_path / "b"),
        lambda: list(problems(tmp_path, tmp_path)),
        lambda: orphans(tmp_path, tmp_path),
        lambda: erase(tmp_path, tmp_path, "ct_a"),
    ):
        with pytest.raises(NotFound, match="no server has opened"):
            call()
