"""What this process may use of its machine."""

import os

import pytest

from rayapp.runtime import host


@pytest.mark.skipif(not hasattr(os, "sched_setaffinity"), reason="the system does not pin processes")
def test_cores_are_those_that_the_process_may_run_on():
    before = os.sched_getaffinity(0)
    try:
        os.sched_setaffinity(0, {min(before)})
        assert host.cores() == 1
    finally:
        os.sched_setaffinity(0, before)
    assert host.cores() == len(before)


def test_memory_is_at_most_the_containers_limit(tmp_path, monkeypatch):
    monkeypatch.setattr(host, "LIMIT", tmp_path / "memory.max")
    whole = host.memory()
    assert whole > 1 << 28
    for said, least in (("max", whole), (str(1 << 60), whole), (str(1 << 28), 1 << 28)):
        host.LIMIT.write_text(f"{said}\n")
        assert host.memory() == least
