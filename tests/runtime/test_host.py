"""The share of the machine that this process may use."""

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
    monkeypatch.setattr(host, "CGROUP", tmp_path)
    whole = host.memory()
    assert whole > 1 << 28
    for name in ("memory/memory.limit_in_bytes", "memory.max"):
        limit = tmp_path / name
        limit.parent.mkdir(exist_ok=True)
        for said, least in (("max", whole), (str(1 << 60), whole), (str(1 << 28), 1 << 28)):
            limit.write_text(f"{said}\n")
            assert host.memory() == least
        limit.unlink()


def test_cores_are_at_most_the_containers_share(tmp_path, monkeypatch):
    monkeypatch.setattr(host, "CGROUP", tmp_path)
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: set(range(64)), raising=False)
    assert host.cores() == 64
    for said, cores in (("max 100000", 64), ("400000 100000", 4), ("150000 100000", 2), ("10000 100000", 1)):
        (tmp_path / "cpu.max").write_text(f"{said}\n")
        assert host.cores() == cores
    (tmp_path / "cpu.max").unlink()
    (tmp_path / "cpu").mkdir()
    (tmp_path / "cpu/cpu.cfs_period_us").write_text("100000\n")
    for quota, cores in (("-1", 64), ("800000", 8)):
        (tmp_path / "cpu/cpu.cfs_quota_us").write_text(f"{quota}\n")
        assert host.cores() == cores


@pytest.mark.parametrize("version", [1, 2])
def test_limits_of_a_service_or_a_pod_above_the_process_count_too(tmp_path, monkeypatch, version):
    monkeypatch.setattr(host, "CGROUP", tmp_path / "cgroup")
    monkeypatch.setattr(host, "MEMBERSHIP", tmp_path / "membership")
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: set(range(64)), raising=False)
    lines = {1: "5:cpu,cpuacct:/pods/p1/c1\n4:memory:/pods/p1/c1\n", 2: "0::/pods/p1/c1\n"}
    (tmp_path / "membership").write_text(lines[version])
    for controller in {1: ("cpu", "memory"), 2: ("",)}[version]:
        (tmp_path / "cgroup" / controller / "pods/p1/c1").mkdir(parents=True)
    limits = {
        1: {"cpu/pods/p1/cpu.cfs_quota_us": 400_000, "cpu/pods/p1/cpu.cfs_period_us": 100_000},
        2: {"pods/p1/cpu.max": "400000 100000", "pods/p1/c1/cpu.max": "max 100000"},
    }
    memory = {1: "memory/pods/p1/c1/memory.limit_in_bytes", 2: "pods/p1/memory.max"}
    for name, value in {**limits[version], memory[version]: 1 << 28}.items():
        (tmp_path / "cgroup" / name).write_text(f"{value}\n")
    assert (host.cores(), host.memory()) == (4, 1 << 28)
