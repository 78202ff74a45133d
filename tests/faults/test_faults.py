"""The list of mends fits the sources, and the machines find each fault without its mend."""

from __future__ import annotations

from importlib.util import find_spec
from pathlib import Path

import pytest

from tests.faults.__main__ import finds
from tests.faults.mends import MACHINES, MENDS


@pytest.mark.parametrize("name", MENDS)
def test_a_mend_can_be_undone(name: str):
    assert MENDS[name].changes
    assert set(MENDS[name].found_by) <= MACHINES.keys()
    sources: dict[str, str] = {}
    for change in MENDS[name].changes:
        spec = find_spec(change.module)
        assert spec is not None
        assert spec.origin is not None
        sources[change.module] = change.undone(sources.get(change.module) or Path(spec.origin).read_text())
    for module, source in sources.items():
        compile(source, module, "exec")


@pytest.mark.slow
@pytest.mark.parametrize(("name", "machine"), [(name, each) for name in MENDS for each in MENDS[name].found_by])
def test_a_machine_finds_the_fault_without_its_mend(name: str, machine: str):
    assert finds(machine, name, long=False)


@pytest.mark.slow
@pytest.mark.parametrize("machine", MACHINES)
def test_a_machine_finds_nothing_with_all_mends(machine: str):
    assert not finds(machine, "", long=False)
