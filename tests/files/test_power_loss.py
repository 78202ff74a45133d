"""What is promised durable outside the datastore is there after a loss of power, also if it was acknowledged only when
it was repeated, since the process died the first time."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file

from rayapp.audit_log import AuditLog
from rayapp.datastore.series_parts import SeriesImages
from rayapp.errors import Conflict
from rayapp.files.durable import make_folder, replacing
from rayapp.jobs.withdrawals import Withdrawals
from rayapp.models.store import ModelStore
from rayapp.protocol import Role
from rayapp.users import UserStore
from tests.memory_folder import memory_folder
from tests.power import Killed, PowerRecorder


@dataclass(frozen=True)
class Promise:
    """Something that a caller does, again if it was not answered, and what has to be there afterwards."""

    does: Callable[[Path], Any]
    is_kept: Callable[[Path], bool]


def writes(root: Path) -> None:
    make_folder(root / "new" / "folder")
    with replacing(root / "new" / "folder" / "file") as staged:
        staged.write_text("content")


def adds_a_user(root: Path) -> None:
    users = UserStore.of(root)
    try:
        users.add("ann", Role.ANNOTATOR)
    except Conflict:  # it is there already: a new key, as the one that was not answered is unknown
        users.rotate("ann")


def weights(root: Path) -> Path:
    path = root.parent / "w.safetensors"
    if not path.exists():
        save_file({"w": torch.ones(2)}, path)
    return path


def publishes(root: Path, **given: Any) -> None:
    ModelStore(root / "models").publish("spleen", weights(root), {}, request="one", **given)


def promotes(root: Path) -> None:
    if not ModelStore(root / "models").versions("spleen"):
        publishes(root, promote=False)
    ModelStore(root / "models").promote("spleen", "v1")


def audits(root: Path) -> None:
    log = AuditLog.of(root)
    log.append([{"action": "save", "image": log.pseudonym("ct_a")}])


def audited(root: Path) -> bool:
    log = AuditLog.of(root)
    images = {record["image"] for record in log.records()}
    return images == {log.pseudonym("ct_a")} and all("half a line" in each for each in log.problems())


PROMISES = {
    "a file in a new folder": Promise(writes, lambda root: (root / "new" / "folder" / "file").read_text() == "content"),
    "a user": Promise(adds_a_user, lambda root: [user.name for user in UserStore.of(root).list()] == ["ann"]),
    "a withdrawn job": Promise(
        lambda root: Withdrawals.of(root).record("job"), lambda root: Withdrawals.of(root).has("job")
    ),
    "the images of a series": Promise(
        lambda root: SeriesImages(root / "parts").assign("1.2", {"1.2.1": None}),
        lambda root: json.loads((root / "parts" / "1.2.image.json").read_text()) == {"1.2": ["1.2.1"]},
    ),
    "an audit record": Promise(audits, audited),
    "a version": Promise(
        lambda root: publishes(root, promote=False),
        lambda root: ModelStore(root / "models").versions("spleen") == ["v1"],
    ),
    "a version in production": Promise(publishes, lambda root: ModelStore(root / "models").serving("spleen") == "v1"),
    "a version that is promoted": Promise(promotes, lambda root: ModelStore(root / "models").serving("spleen") == "v1"),
}


@pytest.fixture
def folder() -> Iterator[Path]:
    made = memory_folder()
    yield made
    shutil.rmtree(made)


@pytest.mark.parametrize("name", PROMISES)
def test_it_is_there_after_a_loss_of_power_wherever_the_process_died_the_first_time(
    folder: Path, monkeypatch: pytest.MonkeyPatch, name: str
):
    promise, died, number = PROMISES[name], True, 0
    weights(folder / "0")
    while died:
        root = folder / str(number)
        root.mkdir()
        with monkeypatch.context() as patch:
            disk = PowerRecorder(patch, root)
            disk.dies_at = number
            died = False
            try:
                promise.does(root)
            except Killed:
                died = True
            disk.dies_at = None
            promise.does(root)
            disk.acknowledge(name)
        tree, _ = disk.after(len(disk.events), lambda _: True)
        left = folder / f"{number} after a loss of power"
        tree.write(0, left, {})
        assert promise.is_kept(left), f"it died after {number} calls"
        number += 1
    assert number > 2
