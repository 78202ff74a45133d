"""The power fails at any moment, and whatever was not synced is lost: what was acknowledged is there."""

from __future__ import annotations

import errno
import os
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from random import Random
from typing import Any

import pytest
import torch
from safetensors.torch import save_file

from rayapp.datastore.document import DocumentFile
from rayapp.datastore.interfaces import ClickEvent
from rayapp.datastore.local import LocalDatastore
from rayapp.models.store import CARD, WEIGHTS, ModelStore
from tests.datastore.saves import AUTHOR
from tests.datastore.test_failing_disk import state
from tests.memory_folder import memory_folder
from tests.power import Event, PowerRecorder

LOSSES: dict[str, Callable[[Random], Callable[[Event], bool]]] = {
    "nothing": lambda _: lambda _: False,
    "everything": lambda _: lambda _: True,
    "some": lambda random: lambda _: random.random() < 0.5,
}


@pytest.fixture
def folder() -> Iterator[Path]:
    made = memory_folder()
    yield made
    shutil.rmtree(made)


def saves(body: bytes, ext: str = ".nii.gz", tag: str = "final") -> Callable[[LocalDatastore], None]:
    def work(store: LocalDatastore) -> None:
        staged = store.stage(ext)
        staged.write_bytes(body)
        store.save_label("ct_a", tag, staged, ext, info={}, author=AUTHOR)

    return work


def adds(store: LocalDatastore) -> None:
    staged = store.stage(".nii.gz")
    staged.write_bytes(b"voxels")
    store.add_image("new", staged, ".nii.gz", info={"k": 1}, author=AUTHOR)


WORK: tuple[Callable[[LocalDatastore], Any], ...] = (
    lambda _: None,  # the start
    saves(b"first"),
    lambda store: store._document.flush(),
    saves(b"second"),
    saves(b"second", ext=".nrrd"),
    lambda store: store.append_events([ClickEvent(image_id="ct_a", kind="click", payload={"n": 1}, ts=7.0)]),
    adds,
    lambda store: store.remove_label("ct_a", "final"),
    saves(b"third"),
    saves(b"other", tag="second"),
    lambda store: store.remove_image("new"),
    lambda store: store.remove_image("ct_a"),
    lambda store: store.close(),
)


def no_link(*_: Any, **__: Any) -> None:
    """`os.link` on a file system without hard links."""
    raise OSError(errno.EPERM, os.strerror(errno.EPERM))


def left_behind(disk: PowerRecorder, left: Path, moments: int, losses: int) -> Iterator[tuple[str, int, Path]]:
    """The folder `left` as losses of power leave it: at which moment, how many works were acknowledged, and itself."""
    random = Random(1)
    for number in disk.prefixes(moments, random):
        for name, loss in [*LOSSES.items()][:2] + [("some", LOSSES["some"])] * losses:
            tree, told = disk.after(number, loss(random))
            tree.write(0, left, {})
            yield f"after {number} calls, {name} lost", len(told), left
            shutil.rmtree(left)


@pytest.mark.parametrize("links", [True, False], ids=["hard links", "no hard links"])
@pytest.mark.parametrize(
    ("moments", "losses"), [(12, 1), pytest.param(1000, 12, marks=pytest.mark.slow)], ids=["few", "all"]
)
def test_a_studies_folder_has_all_that_was_acknowledged(
    folder: Path, monkeypatch: pytest.MonkeyPatch, moments: int, losses: int, links: bool
):
    monkeypatch.setattr(DocumentFile, "start", lambda _: None)
    studies = folder / "studies"
    studies.mkdir()
    for image in ("ct_a", "ct_b"):
        (studies / f"{image}.nii.gz").write_bytes(image.encode())
    with monkeypatch.context() as patch:
        if not links:
            patch.setattr(os, "link", no_link)
        disk = PowerRecorder(patch, studies)
        store = LocalDatastore(studies, watch=False, settle=0.0)
        states = [{**state(store)}]
        for work in WORK:
            work(store)
            disk.acknowledge(work)
            states.append(states[-1] if store._commit._open is False else state(store))
    for when, acknowledged, left in left_behind(disk, folder / "left", moments, losses):
        again = LocalDatastore(left, watch=False, settle=0.0)
        try:
            found = state(again)
        finally:
            again.close()
        possible = states[acknowledged : acknowledged + 2]
        assert found in possible, when


@pytest.mark.parametrize(
    ("moments", "losses"), [(40, 2), pytest.param(1000, 30, marks=pytest.mark.slow)], ids=["few", "all"]
)
def test_a_model_store_has_all_that_was_acknowledged(
    folder: Path, monkeypatch: pytest.MonkeyPatch, moments: int, losses: int
):
    weights = folder / "w.safetensors"
    save_file({"w": torch.ones(2)}, weights)
    workspace = folder / "workspace"
    workspace.mkdir()

    def served(root: Path) -> tuple[Any, list[str]]:
        store = ModelStore(root / "models")
        versions = store.versions("spleen")
        for version in versions:
            assert store.version("spleen", version).weights.read_bytes() == weights.read_bytes()
            assert {WEIGHTS, CARD} == {file.name for file in (root / "models" / "spleen" / version).iterdir()}
        return store.serving("spleen"), versions

    store = ModelStore(workspace / "models")
    with monkeypatch.context() as patch:
        disk = PowerRecorder(patch, workspace)
        states = [served(workspace)]
        for work in (
            lambda: store.publish("spleen", weights, {}),
            lambda: store.publish("spleen", weights, {}),
            lambda: store.promote("spleen", "v1"),
            lambda: store.rollback("spleen"),
            lambda: store.retire("spleen"),
            lambda: store.publish("spleen", weights, {}, promote=False),
        ):
            work()
            disk.acknowledge(work)
            states.append(served(workspace))
    for when, acknowledged, left in left_behind(disk, folder / "left", moments, losses):
        found = served(left)
        old, new = [*states[acknowledged : acknowledged + 2], states[-1]][:2]
        assert found in (old, new, (old[0], new[1])), when
