"""An app's requirements.txt: installed for what runs the app, and for nothing else."""

from __future__ import annotations

import importlib.util
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest
import requests

from actors.environment import runtime_env
from rayapp.app.requirements import interpreter
from rayapp.config import Settings
from rayapp.errors import AppBroken
from tests.conftest import started

NAME = "rayapp_test_tinything"
MAIN = f"""
import os
import numpy as np
import {NAME}
from rayapp.app.label_app import LabelApp
from rayapp.inference.infer_task import Prediction, TaskInfo

class Whole:
    version = {NAME}.VERSION
    info = TaskInfo(type="segmentation", labels={{"all": {NAME}.VALUE}}, dimension=3, description="everything")
    def load(self): pass
    def prepare(self, volume): return volume
    def predict(self, prepared, prompts, config):
        return Prediction(labels=np.full(prepared.shape, {NAME}.VALUE, np.uint8))

class App(LabelApp):
    def init_infers(self):
        return {{"whole": Whole()}}
"""


def write_wheel(folder: Path) -> None:
    """A package of one module, as pip takes it."""
    folder.mkdir()
    info = f"{NAME}-1.0.dist-info"
    files = {
        f"{NAME}.py": "VERSION, VALUE = '1.0', 1\n",
        f"{info}/METADATA": f"Metadata-Version: 2.1\nName: {NAME}\nVersion: 1.0\nRequires-Dist: numpy\n",
        f"{info}/WHEEL": "Wheel-Version: 1.0\nGenerator: test\nRoot-Is-Purelib: true\nTag: py3-none-any\n",
    }
    record = "".join(f"{name},,\n" for name in [*files, f"{info}/RECORD"])
    with zipfile.ZipFile(folder / f"{NAME}-1.0-py3-none-any.whl", "w") as wheel:
        for name, text in {**files, f"{info}/RECORD": record}.items():
            wheel.writestr(name, text)


def write_app(folder: Path) -> Path:
    """An app that needs the package, whose wheel lies beside it."""
    folder.mkdir()
    (folder / "main.py").write_text(MAIN)
    (folder / "requirements.txt").write_text(f"--no-index\n--find-links wheels\n{NAME}==1.0\n")
    write_wheel(folder / "wheels")
    return folder


@pytest.fixture
def app(tmp_path):
    return write_app(tmp_path / "app")


@pytest.fixture(scope="module")
def installed(tmp_path_factory):
    """Settings of an app whose requirements are installed, and their interpreter."""
    folder = tmp_path_factory.mktemp("installed")
    settings = settings_of(write_app(folder / "app"), folder)
    return settings, interpreter(settings)


def settings_of(app, tmp_path):
    (tmp_path / "studies").mkdir(exist_ok=True)
    return Settings(studies=tmp_path / "studies", workspace=tmp_path / "ws", app=str(app))


def test_requirements_lie_on_top_of_the_servers_packages(installed):
    settings, python = installed
    code = f"import {NAME}, torch, rayapp; print({NAME}.VERSION, torch.__file__, rayapp.__file__)"
    said = subprocess.run([python, "-c", code], capture_output=True, text=True, check=True).stdout.split()
    import torch

    import rayapp

    assert said == ["1.0", torch.__file__, rayapp.__file__]
    assert importlib.util.find_spec(NAME) is None
    own = {path.name for path in python.parents[1].glob("lib/python*/site-packages/*")}
    assert own - {"__pycache__"} == {f"{NAME}-1.0.dist-info", f"{NAME}.py", "rayapp_server.pth"}
    assert runtime_env(settings) == {"py_executable": str(python)}


def test_they_are_installed_once_and_again_when_they_change(installed):
    settings, first = installed
    app = Path(settings.app)
    for wheel in (app / "wheels").iterdir():
        wheel.unlink()
    assert interpreter(settings) == first
    (app / "requirements.txt").write_text("# none any more\n")
    assert interpreter(settings) != first


def test_an_app_without_requirements_needs_no_environment(app, tmp_path):
    (app / "requirements.txt").unlink()
    assert runtime_env(settings_of(app, tmp_path)) == {}
    assert runtime_env(settings_of("radiology", tmp_path)) == {}


def test_what_cannot_be_installed_is_told_and_tried_again(app, tmp_path):
    settings = settings_of(app, tmp_path)
    good = (app / "requirements.txt").read_text()
    (app / "requirements.txt").write_text(good.replace("==1.0", "==2.0"))
    for _ in range(2):
        with pytest.raises(AppBroken, match=rf"requirements.txt of app 'app' cannot be installed.*{NAME}==2.0"):
            interpreter(settings)


def test_the_command_ends_with_status_2_before_anything_starts(app, tmp_path):
    (tmp_path / "studies").mkdir()
    (app / "requirements.txt").write_text("--no-index\nno-such-package-of-rayapps\n")
    command = [Path(sys.executable).with_name("rayapp"), "start", "--studies", tmp_path / "studies", "--port", "0"]
    done = subprocess.run(
        [*command, "--workspace", tmp_path / "ws", "--app", app], capture_output=True, text=True, timeout=120
    )
    assert done.returncode == 2
    assert "rayapp: --app: requirements.txt of app 'app' cannot be installed" in done.stderr
    assert "no-such-package-of-rayapps" in done.stderr


@pytest.mark.slow
def test_a_server_runs_the_app_with_them(app, tmp_path):
    with started(tmp_path / "server", "--app", str(app)) as server:
        said = requests.get(f"{server.url}/info/", timeout=30).json()
        assert (list(said["models"]), said["broken_models"]) == (["whole"], {})
        query = {"image": "torso_0", "output": "json"}
        answer = requests.post(f"{server.url}/infer/whole", params=query, data={"params": "{}"}, timeout=60)
        assert answer.json()["model_version"] == "1.0"
