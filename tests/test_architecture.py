"""The rooms of the code and who may import whom, as `docs/architecture.md` has it."""

from __future__ import annotations

import ast
import re
from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PACKAGES = ("rayapp", "actors", "deployments")
COMPOSITION_ROOT = "rayapp.launch"
PAGE = ROOT / "docs" / "architecture.md"


def module_of(path: Path) -> str:
    return ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__")


MODULES = {module_of(path): path for package in PACKAGES for path in sorted((ROOT / package).rglob("*.py"))}


def known(name: str) -> str | None:
    """The module that this dotted name is, or lies in; None for other people's."""
    while name and name not in MODULES:
        name = name.rpartition(".")[0]
    return name or None


def names_imported(path: Path) -> set[str]:
    """Every dotted name that a file imports, also within functions and under TYPE_CHECKING."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: imports are absolute"
            found |= {f"{node.module}.{alias.name}" for alias in node.names}
    return found


GRAPH = {
    module: {found for name in names_imported(path) if (found := known(name)) and found != module}
    for module, path in MODULES.items()
}


def table() -> dict[str, set[str]]:
    """Room to the rooms it may import, as the page lists them."""
    rows = re.findall(r"^\| `([a-z_.]+)` \|.*\| (.*) \|$", PAGE.read_text(), re.MULTILINE)
    return {room: set(re.findall(r"`([a-z_.]+)`", imports)) for room, imports in rows}


ROOMS = table()


def room_of(module: str) -> str:
    """The innermost room of the table that holds the module; a module at the top is a room of its own."""
    name = module
    while name not in ROOMS and "." in name:
        name = name.rpartition(".")[0]
    return name if name in ROOMS else module


def rooms_imported() -> dict[str, set[str]]:
    found: dict[str, set[str]] = defaultdict(set)
    for module, imported in GRAPH.items():
        found[room_of(module)] |= {room_of(other) for other in imported if other != "rayapp"} - {room_of(module)}
    return found


def assert_no_ring(graph: Mapping[str, Iterable[str]]) -> None:
    try:
        TopologicalSorter(graph).prepare()
    except CycleError as error:
        pytest.fail(" -> ".join(error.args[1]))


def test_no_two_files_import_each_other_in_a_ring():
    assert_no_ring(GRAPH)


def test_no_two_packages_of_rayapp_import_each_other_in_a_ring():
    domain = {room: found for room, found in rooms_imported().items() if room.startswith("rayapp")}
    assert_no_ring(domain)


def test_the_graph_test_would_find_a_ring():
    with pytest.raises(pytest.fail.Exception, match="-> b"):
        assert_no_ring({"a": {"b"}, "b": {"a"}})


def test_every_module_lies_in_a_room_of_the_table():
    modules = [module for module in MODULES if module not in ("rayapp", "actors", "deployments")]
    assert [module for module in modules if room_of(module) not in ROOMS] == []


@pytest.mark.parametrize("room", sorted(ROOMS))
def test_a_room_imports_what_the_table_says_and_nothing_else(room):
    assert rooms_imported()[room] == ROOMS[room]


def test_the_domain_imports_neither_ray_nor_what_is_built_on_it():
    domain = [module for module in MODULES if module.startswith("rayapp") and module != COMPOSITION_ROOT]
    above = ("ray", "actors", "deployments")
    found = {m: [name for name in names_imported(MODULES[m]) if name.partition(".")[0] in above] for m in domain}
    assert {module: names for module, names in found.items() if names} == {}


def test_no_two_files_of_the_domain_have_one_name():
    files = [path for path in (ROOT / "rayapp").rglob("*.py") if path.name not in ("__init__.py", "main.py")]
    names = Counter(path.stem for path in files)  # but for main.py, the entry of every app
    assert [name for name, count in names.items() if count > 1] == []
