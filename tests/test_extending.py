"""The recipe in `docs/extending.md` is followed to the letter: its files are written, tested and served."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from rayapp.app.app_loader import app_class
from rayapp.config import Settings
from rayapp.imaging.volume import Volume
from rayapp.inference.infer_task import Prompts
from tests.test_docs import ROOT, fences

PAGE = ROOT / "docs" / "extending.md"


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The files that the page shows, under the names that it gives them."""
    folder = tmp_path_factory.mktemp("extending")
    for title, text in fences(PAGE, "python"):
        (folder / title).parent.mkdir(parents=True, exist_ok=True)
        (folder / title).write_text(text)
    return folder


def test_the_tests_on_the_page_pass(folder: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider"],
        cwd=folder / "growing",
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        timeout=600,
        check=False,
    )
    assert done.returncode == 0, done.stdout
    assert "3 passed" in done.stdout


def test_the_app_on_the_page_serves_the_method(folder: Path, tmp_path: Path) -> None:
    (tmp_path / "studies").mkdir()
    settings = Settings(
        studies=tmp_path / "studies",
        workspace=tmp_path / "workspace",
        app=str(folder / "growing"),
        models=(),
        conf={"tolerance": "50"},
    )
    app = app_class(settings).of(settings)
    app.load_all()
    assert app.broken == {}
    task = app.task("region_growing")
    assert task.info.config == {"tolerance": 50.0}
    array = np.zeros((1, 30, 20, 10), np.int16)
    array[0, :, :, 5:] = 100
    volume = Volume(array=array, affine=np.eye(4))
    labels = task.predict(task.prepare(volume), Prompts(clicks={"foreground": [(3, 4, 8)]}), {}).labels
    assert labels[..., 7:].all()
    assert not labels[..., :3].any()
