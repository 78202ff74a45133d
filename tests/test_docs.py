"""The documentation is built without a warning, and what it says to type can be typed."""

from __future__ import annotations

import ast
import importlib
import os
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest
from typer.main import get_command

from rayapp.cli import app
from tests.conftest import make_studies, started

ROOT = Path(__file__).parents[1]
PAGES = [*sorted((ROOT / "docs").glob("*.md")), ROOT / "README.md"]
FENCE = re.compile(r'^```(\w+)(?: title="([^"]+)")?\n(.*?)^```', re.MULTILINE | re.DOTALL)
INDENTED = re.compile(r"^    (?:\.venv/bin/)?(?:\w+=\S+ )?(rayapp [^#\n]+)", re.MULTILINE)
WALKTHROUGH = ROOT / "docs" / "apps.md"


def fences(page: Path, language: str) -> list[tuple[str, str]]:
    """(title, text) of the page's blocks in that language."""
    return [(title, text) for kind, title, text in FENCE.findall(page.read_text()) if kind == language]


def commands(page: Path) -> list[str]:
    """What the page says to type."""
    typed = [line for _, text in fences(page, "bash") for line in text.splitlines() if line.strip()]
    return typed + [line.strip() for line in INDENTED.findall(FENCE.sub("", page.read_text()))]


def test_the_documentation_is_built_without_a_warning(tmp_path):
    command = [Path(sys.executable).with_name("mkdocs"), "build", "--strict", "--quiet", "--site-dir", tmp_path]
    env = {**os.environ, "NO_MKDOCS_2_WARNING": "1"}
    done = subprocess.run(command, cwd=ROOT, env=env, capture_output=True, text=True, timeout=240, check=False)
    assert (done.returncode, done.stderr) == (0, "")
    reference = (tmp_path / "api" / "index.html").read_text()
    for name in ("LabelApp.init_infers", "BasicTrainTask.loss", "Datastore.unlabeled", "RemoteTask", "ModelBroken"):
        assert name in reference


TYPED = [(page.name, line) for page in PAGES for line in commands(page)]


def test_there_is_something_to_type_on_most_pages():
    assert {"README.md", "annotator.md", "apps.md", "bundles.md", "operator.md", "porting.md"} <= {p for p, _ in TYPED}
    assert len(TYPED) > 30


@pytest.mark.parametrize(("page", "line"), TYPED, ids=[f"{page}: {line}" for page, line in TYPED])
def test_every_command_and_flag_exists(page, line):
    words = shlex.split(line)
    if words[0] == "python":
        assert any(title == words[1] for title, _ in fences(WALKTHROUGH, "python"))
        return
    assert words[0] == "rayapp", line
    command, name, rest = get_command(app), "rayapp", words[1:]
    while hasattr(command, "commands"):
        command, name, rest = command.commands[rest[0]], rest[0], rest[1:]
    command.make_context(name, rest)


@pytest.mark.parametrize("page", PAGES, ids=[page.name for page in PAGES])
def test_every_name_that_an_example_imports_exists(page):
    for _, text in fences(page, "python"):
        for node in ast.walk(ast.parse(text)):
            if isinstance(node, ast.ImportFrom) and node.module:
                module = importlib.import_module(node.module)
                assert all(hasattr(module, alias.name) for alias in node.names), ast.unparse(node)


@pytest.mark.slow
def test_the_walkthrough_works_word_by_word(tmp_path):
    for title, text in fences(WALKTHROUGH, "python"):
        path = tmp_path / title
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    make_studies(tmp_path / "server" / "studies", 4)
    (start, *typed) = commands(WALKTHROUGH)
    assert start == "rayapp start --app mine --studies studies"
    with started(tmp_path / "server", "--app", str(tmp_path / "mine")) as server:
        env = {**os.environ, "RAYAPP_SERVER": server.url, "OMP_NUM_THREADS": "1"}
        said = {}
        for line in typed:
            words = shlex.split(line)
            program = {"python": sys.executable, "rayapp": str(Path(sys.executable).with_name("rayapp"))}[words[0]]
            done = subprocess.run(
                [program, *words[1:]], cwd=tmp_path, env=env, capture_output=True, text=True, timeout=600, check=False
            )
            assert done.returncode == 0, (line, done.stdout[-2000:], done.stderr[-2000:])
            said.setdefault(line, []).append(done.stdout)
    assert said["rayapp next first"] == ["torso_0\n", "torso_2\n"]
    assert "v1" in said["rayapp models list"][0]
    assert (tmp_path / "torso_2.nii.gz").exists()
    assert (tmp_path / "torso_0.png").exists()
