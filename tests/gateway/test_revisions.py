"""The saved states of a label, by the Python client and by `rayapp labels`."""

from __future__ import annotations

from pathlib import Path

import nibabel
import numpy as np
import pytest
from typer.testing import CliRunner

from rayapp.cli import app
from rayapp.client import Client
from rayapp.errors import Conflict, NotFound
from tests.gateway.conftest import SHAPE, Served, write_image


@pytest.fixture
def saved(gateway: Served, tmp_path: Path) -> list[np.ndarray]:
    """Two label maps that were saved one after the other."""
    maps = []
    with Client(gateway.url, client_id="notebook") as client:
        for value in (1, 2):
            maps.append(np.full(SHAPE, value, np.uint8))
            client.save_label("ct_a", write_image(tmp_path / f"{value}.nii.gz", maps[-1]))
    return maps


def read(file: Path) -> np.ndarray:
    return np.asarray(nibabel.load(file).dataobj)


def test_the_client_lists_fetches_and_restores_revisions(gateway: Served, saved: list[np.ndarray], tmp_path: Path):
    with Client(gateway.url) as client:
        *_, first, second = client.label_revisions("ct_a")
        assert second["number"] == first["number"] + 1
        assert (second["user"], second["client_id"]) == ("admin", "notebook")
        for one, expected in zip((first, second), saved, strict=True):
            file = client.download_label("ct_a", tmp_path / "it.nii.gz", revision=one["number"])
            np.testing.assert_array_equal(read(file), expected)
        client.restore_label("ct_a", first["number"], onto=second["number"])
        np.testing.assert_array_equal(read(client.download_label("ct_a", tmp_path / "it.nii.gz")), saved[0])
        assert client.label_revisions("ct_a")[-1]["info"]["restored"] == first["number"]
        with pytest.raises(NotFound, match="no revision 999"):
            client.download_label("ct_a", tmp_path / "none.nii.gz", revision=999)
        assert client.label_revisions("ct_b") == []


def test_a_save_from_a_revision_that_is_no_longer_the_newest_is_refused(
    gateway: Served, saved: list[np.ndarray], tmp_path: Path
):
    with Client(gateway.url) as client:
        *_, first, second = (one["number"] for one in client.label_revisions("ct_a"))
        file = write_image(tmp_path / "mine.nii.gz", saved[0])
        for stale in (0, first):
            with pytest.raises(Conflict, match="admin"):
                client.save_label("ct_a", file, onto=stale)
        with pytest.raises(Conflict):
            client.restore_label("ct_a", first, onto=first)
        assert client.label_revisions("ct_a")[-1]["number"] == second
        client.save_label("ct_a", file, onto=second)
        client.save_label("ct_b", file, tag="draft", onto=0)


def test_the_command_lists_fetches_and_restores_revisions(gateway: Served, saved: list[np.ndarray], tmp_path: Path):
    def rayapp(*words: str) -> str:
        done = CliRunner().invoke(app, ["labels", *words, "--server", gateway.url], catch_exceptions=False)
        assert done.exit_code == 0, done.output
        return done.stdout

    _, newest, before, *_ = (line.split() for line in rayapp("list", "ct_a").splitlines())
    assert (newest[-2:], before[-2:]) == (["admin", "notebook"], ["admin", "notebook"])
    file = tmp_path / "fetched.nii.gz"
    assert rayapp("fetch", "ct_a", "--revision", before[0], "--output", str(file)).strip() == str(file)
    np.testing.assert_array_equal(read(file), saved[0])
    assert rayapp("restore", "ct_a", before[0]) == f"revision {before[0]} of ct_a is the newest again\n"
    rayapp("fetch", "ct_a", "--output", str(file))
    np.testing.assert_array_equal(read(file), saved[0])
    assert rayapp("list", "ct_b").strip() == "no final label of ct_b was ever saved"
