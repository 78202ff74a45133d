"""Official weights come complete or not at all, and only after their licence was shown and accepted."""

from __future__ import annotations

import sys
import types
from pathlib import Path

import pytest
from typer.testing import CliRunner

from rayapp.cli import app
from rayapp.downloads import nninteractive
from rayapp.errors import Conflict, Disabled, NotFound


@pytest.fixture
def root(monkeypatch, tmp_path):
    """The official module that downloads, as a double; returns the folder in which it keeps models."""
    module = types.ModuleType(nninteractive.MODULE)

    def ensure_model_available(model_id: str, model_root: Path | None = None, manifest: dict | None = None) -> Path:
        assert model_root is not None
        folder = model_root / "models" / model_id
        folder.mkdir(parents=True)
        (folder / "plans.json").write_text("{}")
        if model_id.endswith("v9"):
            raise ValueError(f"Unknown model id {model_id!r}. Available models: ['nnInteractive_v1.0']")
        if model_id.endswith("offline"):
            raise RuntimeError("Could not download")
        return folder

    module.ensure_model_available = ensure_model_available
    module.get_model_root_dir = lambda: tmp_path
    monkeypatch.setitem(sys.modules, "nnInteractive", types.ModuleType("nnInteractive"))
    monkeypatch.setitem(sys.modules, nninteractive.MODULE, module)
    return tmp_path


def test_a_folder_appears_complete_under_its_id(root):
    folder = nninteractive.download("nnInteractive_v1.0")
    assert folder == root / "models" / "nnInteractive_v1.0"
    assert [path.name for path in (root / "models").iterdir()] == ["nnInteractive_v1.0"]
    assert (folder / "plans.json").exists()
    with pytest.raises(Conflict, match="exists already"):
        nninteractive.download("nnInteractive_v1.0")


@pytest.mark.parametrize(
    ("model_id", "error", "text"),
    [
        ("nnInteractive_v9", NotFound, "Available models"),
        ("nnInteractive_offline", nninteractive.WeightsAway, "Could not"),
    ],
)
def test_nothing_is_left_of_a_download_that_failed(root, model_id, error, text):
    with pytest.raises(error, match=text):
        nninteractive.download(model_id)
    assert list((root / "models").iterdir()) == []


def test_without_the_package_it_says_what_to_install(monkeypatch):
    monkeypatch.setitem(sys.modules, nninteractive.MODULE, None)
    with pytest.raises(Disabled, match=r"pip install 'rayapp\[nninteractive\]'"):
        nninteractive.download("nnInteractive_v1.0")


def test_the_licence_is_shown_and_asked_about_first(root):
    command = ["nninteractive", "download", "nnInteractive_v1.0"]
    refused = CliRunner().invoke(app, command, input="n\n")
    assert refused.exit_code == 1
    assert "CC BY-NC-SA 4.0" in refused.stderr
    assert not (root / "models").exists()
    accepted = CliRunner().invoke(app, command, input="y\n")
    assert accepted.stdout.splitlines()[-1] == str(root / "models" / "nnInteractive_v1.0")
    again = CliRunner().invoke(app, [*command[:2], "nnInteractive_v1.1", "--accept-licence"])
    assert (again.exit_code, "CC BY-NC-SA 4.0" in again.stderr) == (0, True)
