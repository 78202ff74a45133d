"""Planner: what this machine has, and what to make of it. Pure functions."""

from __future__ import annotations

import os
import shutil
from dataclasses import dataclass
from pathlib import Path

import torch

CORES_PER_REPLICA = 4
"""A network on the CPU gains little from more threads than this; beyond, another replica serves another annotator."""

BESIDE_REPLICAS = 3
"""Logical CPUs for the gateway and for background work beside it."""


@dataclass(frozen=True, kw_only=True)
class Gpu:
    """One GPU: its name, its bytes of memory and whether it computes in bfloat16."""

    name: str
    memory: int
    bf16: bool


@dataclass(frozen=True, kw_only=True)
class Hardware:
    """What was found. Bytes; `cores` are those that this process may use."""

    cores: int
    memory: int
    shared_memory: int
    gpus: tuple[Gpu, ...] = ()
    cpu_bf16: bool = False


@dataclass(frozen=True, kw_only=True)
class Plan:
    """What to do with it: where and in what precision networks run, how many replicas, how many logical CPUs."""

    device: str
    precision: str
    replicas: int
    cpus: int


def hardware() -> Hardware:
    """Look at this machine."""
    features = torch.cpu.get_capabilities()
    return Hardware(
        cores=len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1,
        memory=_memory(),
        shared_memory=shutil.disk_usage("/dev/shm").total if Path("/dev/shm").is_dir() else 0,
        gpus=tuple(_gpu(index) for index in range(torch.cuda.device_count())),
        cpu_bf16=bool(features.get("amx_bf16") or features.get("avx512_bf16")),
    )


def plan(found: Hardware) -> Plan:
    """Every GPU a replica; without one, a replica for every few cores."""
    if found.gpus:
        bf16 = all(gpu.bf16 for gpu in found.gpus)
        device, replicas = "cuda", len(found.gpus)
    else:
        bf16 = found.cpu_bf16
        device, replicas = "cpu", max(1, found.cores // CORES_PER_REPLICA)
    return Plan(
        device=device,
        precision="bfloat16" if bf16 else "float32",
        replicas=replicas,
        cpus=max(found.cores, replicas + BESIDE_REPLICAS),
    )


def _gpu(index: int) -> Gpu:
    properties = torch.cuda.get_device_properties(index)
    return Gpu(name=properties.name, memory=properties.total_memory, bf16=properties.major >= 8)


def _memory() -> int:
    """Bytes this process may use: the machine's, or the container's limit."""
    total = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    limit = Path("/sys/fs/cgroup/memory.max")
    try:
        return min(total, int(limit.read_text()))
    except (OSError, ValueError):
        return total
