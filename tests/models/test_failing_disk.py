"""Each call that a change of the model store makes of the disk fails once: it happened or not, and can be repeated."""

from __future__ import annotations

import errno
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file

from rayapp.errors import Busy
from rayapp.models.store import CARD, WEIGHTS, ModelStore
from tests.disk import FailingDisk
from tests.memory_folder import memory_folder

CHANGES: dict[str, Callable[[ModelStore, Path], Any]] = {
    "publish": lambda store, weights: store.publish("spleen", weights, {}, request="one"),
    "publish a first version": lambda store, weights: store.publish("liver", weights, {}, request="one"),
    "promote": lambda store, _: store.promote("spleen", "v1"),
    "retire": lambda store, _: store.serving("spleen") and store.retire("spleen"),
}


@pytest.fixture
def folder() -> Iterator[Path]:
    made = memory_folder()
    yield made
    shutil.rmtree(made)


def state(root: Path) -> dict[str, Any]:
    """Production and versions, each with its files."""
    store = ModelStore(root)
    return {
        name: (store.serving(name), store.versions(name))
        for name in store.names()
        if all((root / name / version / file).exists() for version in store.versions(name) for file in (WEIGHTS, CARD))
        and store.versions(name)
    }


@pytest.mark.parametrize("code", [errno.ENOSPC, errno.EIO])
@pytest.mark.parametrize("name", CHANGES)
def test_whichever_call_of_a_change_fails_it_happened_or_not_and_succeeds_when_tried_again(
    folder: Path, monkeypatch: pytest.MonkeyPatch, name: str, code: int
):
    weights = folder / "w.safetensors"
    save_file({"w": torch.ones(2)}, weights)
    disk, fired, number = FailingDisk(monkeypatch, folder), True, 0
    for which in ("before", "new"):
        store = ModelStore(folder / which)
        store.publish("spleen", weights, {})
        store.publish("spleen", weights, {})
    CHANGES[name](ModelStore(folder / "new"), weights)
    old, new = state(folder / "before"), state(folder / "new")
    assert old != new
    # A version may be there before it is put into production.
    between = {model: (old.get(model, (None, []))[0], versions) for model, (_, versions) in new.items()}
    while fired:
        number += 1
        root = folder / str(number)
        shutil.copytree(folder / "before", root)
        store = ModelStore(root)
        with disk.fail(number, code):
            try:
                CHANGES[name](store, weights)
                possible = [new]
            except Busy:
                possible = [old, between, new]
        fired = disk.fired is not None
        assert state(root) in possible, f"call {number}, {disk.fired}"
        CHANGES[name](store, weights)
        assert state(root) == new, f"call {number}, {disk.fired}"
