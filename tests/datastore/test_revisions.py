"""Revision files: their folders, made when first needed and durable before anything lies in them."""

from __future__ import annotations

from pathlib import Path

import pytest

from rayapp.datastore import revisions
from rayapp.datastore.revisions import RevisionFile, RevisionStore


def kept(store: RevisionStore, text: str) -> RevisionFile:
    staged = store.stage(".nrrd")
    staged.write_text(text)
    return store.keep(staged, ".nrrd")


def folders(root: Path) -> list[str]:
    return sorted(path.name for path in (root / "revisions").iterdir())


def test_a_folder_is_made_for_the_first_revision_in_it(tmp_path: Path):
    store = RevisionStore(tmp_path)
    assert folders(tmp_path) == []
    first = kept(store, "first")
    assert folders(tmp_path) == [first.sha[:2]]
    assert first.path.read_text() == "first"
    assert kept(store, "second").path.read_text() == "second"
    assert len(folders(tmp_path)) == 2


def test_a_folder_is_durable_before_a_revision_lies_in_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    store = RevisionStore(tmp_path)
    steps: list[object] = []
    monkeypatch.setattr(revisions, "sync", lambda path: steps.append((path, folders(tmp_path))))
    monkeypatch.setattr(revisions, "link_or_copy", lambda _, target: (steps.append("linked"), target.touch()))
    shard = kept(store, "a label").sha[:2]
    assert steps == [(tmp_path / "revisions", [shard]), "linked"]
    steps.clear()
    kept(store, "a label")
    assert steps == ["linked"]


def test_folders_found_at_the_start_are_made_durable_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    found = kept(RevisionStore(tmp_path), "before the crash")
    synced: list[Path] = []
    monkeypatch.setattr(revisions, "sync", synced.append)
    store = RevisionStore(tmp_path)
    assert synced == [tmp_path, tmp_path / "revisions"]
    assert kept(store, "before the crash") == found
    assert len(synced) == 2
