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

ROOT = Path(__file__).parents[1]
PAGES = [*sorted((ROOT / "docs").glob("*.md")), *sorted(ROOT.glob("*.md"))]
FENCE = re.compile(r'^```(\w+)(?: title="([^"]+)")?\n(.*?)^```', re.MULTILINE | re.DOTALL)
INDENTED = re.compile(r"^    (?:\.venv/bin/)?(?:\w+=\S+ )?(rayapp [^#\n]+)", re.MULTILINE)
WALKTHROUGH = ROOT / "docs" / "apps.md"


def fences(page: Path, language: str) -> list[tuple[str, str]]:
    """(title, text) of the page's blocks in that language."""
    return [(title, text) for kind, title, text in FENCE.findall(page.read_text()) if kind == language]


def commands(page: Path) -> list[str]:
    """The commands that a page says to type."""
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
    for member in ("Client.infer", "AsyncClient.infer", "Interaction.prompt", "AsyncInteraction.stream", "Job"):
        assert f'id="rayapp.client.{member}"' in reference


LINK = re.compile(r"\]\(([^)#:]+)\)")


@pytest.mark.parametrize("page", PAGES, ids=[page.name for page in PAGES])
def test_every_link_to_a_file_leads_to_one(page):
    assert [link for link in LINK.findall(page.read_text()) if not (page.parent / link).exists()] == []


def test_the_readme_fits_on_two_screens_and_leads_to_every_page():
    text = (ROOT / "README.md").read_text()
    assert len(text.splitlines()) <= 80
    pages = {path.name for path in PAGES if path.parent.name == "docs"}
    included = {"changelog.md", "contributing.md"}  # whose text is in the files at the top
    assert pages - {Path(link).name for link in LINK.findall(text)} == {"api.md", "index.md"} | included


TYPED = [(page.name, line) for page in PAGES for line in commands(page)]


def test_there_is_something_to_type_on_most_pages():
    pages = {"README", "access", "active_learning", "annotator", "apps", "archive", "bundles", "cluster", "operator"}
    assert {f"{page}.md" for page in (*pages, "porting", "remote", "training")} <= {page for page, _ in TYPED}
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


APPS = [*(ROOT / "rayapp" / "apps").glob("*/main.py"), *(ROOT / "examples").rglob("*.py")]
OF_THE_ZOO = {
    "rayapp.models.bundle_folder.METADATA",
    "rayapp.models.bundle_folder.TRAIN",
    "rayapp.inference.methods.monai_bundle.DEEPEDIT",
}
"""Names of a bundle's files and of a type: documented where the classes beside them are."""


def documented():
    """Every name in the reference: modules, and what is listed of them."""
    found, text = set(), (ROOT / "docs" / "api.md").read_text()
    for name, members in re.findall(r"^::: (\S+)(?:\n    options:\n      members: \[(.*)\])?", text, re.MULTILINE):
        found |= {name, *(f"{name}.{member.strip()}" for member in members.split(","))}
        if not members and (ROOT / f"{name.replace('.', '/')}.py").is_file():  # a module as a whole
            found |= {f"{name}.{each}" for each in vars(importlib.import_module(name))} | {name}
    return found


@pytest.mark.parametrize("path", APPS, ids=[str(path.relative_to(ROOT)) for path in APPS])
def test_the_apps_that_ship_and_the_examples_use_only_what_the_reference_documents(path):
    used = {
        f"{node.module}.{alias.name}"
        for node in ast.walk(ast.parse(path.read_text()))
        if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("rayapp.")
        for alias in node.names
    }
    assert used - documented() - OF_THE_ZOO == set()
    nodes = list(ast.walk(ast.parse(path.read_text())))
    own = {node.name for node in nodes if isinstance(node, ast.FunctionDef)}
    attributes = [node for node in nodes if isinstance(node, ast.Attribute) and re.match("_[^_]", node.attr)]
    own |= {node.attr for node in attributes if isinstance(node.ctx, ast.Store)}
    assert {node.attr for node in attributes} <= own, "nothing private of others"
