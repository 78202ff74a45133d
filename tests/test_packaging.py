"""The wheel: its files, and the types that a program using the client sees."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import venv
from pathlib import Path
from zipfile import ZipFile

import pytest
import yaml

ROOT = Path(__file__).parents[1]
PACKAGES = ("rayapp", "actors", "deployments")
SHIPPED = {".py", ".safetensors", ".json", ".html", ".js", ".mjs", ".css", ".ico", ".typed"}
DEVELOPMENT = {"package.json", "package-lock.json", "tsconfig.json"}
"""Files that only `make lint-web` reads."""

PROGRAM = """
from rayapp.client import Client

with Client("http://127.0.0.1:8000") as client:
    reveal_type(client.open_interaction("deepedit", "torso_1"))
    client.next_sample(1)
"""


def run(*command: str | Path, cwd: Path, **env: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        command, cwd=cwd, env={**os.environ, **env}, capture_output=True, text=True, timeout=300, check=False
    )


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Built offline, from a copy: a build leaves files in its source folder."""
    source, built = tmp_path_factory.mktemp("source"), tmp_path_factory.mktemp("wheel")
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, source)
    for name in PACKAGES:
        shutil.copytree(ROOT / name, source / name, ignore=shutil.ignore_patterns("__pycache__"))
    pip = (sys.executable, "-m", "pip", "wheel", "--no-index", "--no-deps", "--no-build-isolation")
    done = run(*pip, "--wheel-dir", built, source, cwd=source)
    assert done.returncode == 0, done.stderr
    (found,) = built.glob("rayapp-*.whl")
    return found


def test_the_wheel_holds_every_file_that_the_packages_need(wheel: Path):
    with ZipFile(wheel) as archive:
        held = {name for name in archive.namelist() if not name.startswith("rayapp-")}
    files = [path for package in PACKAGES for path in (ROOT / package).rglob("*") if path.suffix in SHIPPED]
    needed = {path.relative_to(ROOT).as_posix() for path in files if path.name not in DEVELOPMENT}
    assert needed - held == set()
    assert "rayapp/py.typed" in needed


def test_mypy_sees_the_types_of_the_client_in_an_installed_wheel(wheel: Path, tmp_path: Path):
    venv.create(tmp_path / "env", with_pip=False)
    (site,) = (tmp_path / "env").glob("lib/python*/site-packages")
    with ZipFile(wheel) as archive:
        archive.extractall(site)  # as an installer unpacks a pure wheel
    (tmp_path / "program.py").write_text(PROGRAM)
    options = ("--python-executable", tmp_path / "env" / "bin" / "python", "--cache-dir", tmp_path / "cache")
    done = run(sys.executable, "-m", "mypy", *options, "program.py", cwd=tmp_path, PYTHONPATH="", MYPYPATH="")
    assert "py.typed" not in done.stdout, "mypy ignores a package without that marker"
    said = [line.partition(": ")[2] for line in done.stdout.splitlines()[:2]]
    assert 'Revealed type is "rayapp.client.synchronous.Interaction"' in said[0], done.stdout + done.stderr
    assert 'has incompatible type "int"; expected "str"' in said[1]


def test_the_pre_commit_hooks_run_what_make_lint_runs_and_fetch_nothing():
    config = yaml.safe_load((ROOT / ".pre-commit-config.yaml").read_text())
    assert [repo["repo"] for repo in config["repos"]] == ["local"]
    hooks = config["repos"][0]["hooks"]
    assert {hook["language"] for hook in hooks} == {"system"}
    (targets,) = re.findall(r"^lint: (.*)$", (ROOT / "Makefile").read_text(), re.MULTILINE)
    assert [hook["entry"] for hook in hooks] == [f"make {target}" for target in targets.split()]
