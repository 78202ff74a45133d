"""The processors, memory and GPUs available to this process. Pure functions; thread-safe."""

from __future__ import annotations

import shutil
from dataclasses import dataclass
from pathlib import Path

import torch

from rayapp.runtime import host


@dataclass(frozen=True, kw_only=True)
class Gpu:
    """One GPU: its name, memory in bytes, and whether it supports bfloat16."""

    name: str
    memory: int
    bf16: bool


@dataclass(frozen=True, kw_only=True)
class Hardware:
    """Resources of a machine: cores available to this process, memory and shared memory in bytes, GPUs, and whether the
    CPU computes bfloat16 natively.
    """

    cores: int
    memory: int
    shared_memory: int
    gpus: tuple[Gpu, ...] = ()
    cpu_bf16: bool = False


def hardware() -> Hardware:
    """The resources of this machine."""
    features = torch.cpu.get_capabilities()
    return Hardware(
        cores=host.cores(),
        memory=host.memory(),
        shared_memory=shutil.disk_usage("/dev/shm").total if Path("/dev/shm").is_dir() else 0,
        gpus=tuple(_gpu(index) for index in range(torch.cuda.device_count())),
        cpu_bf16=bool(features.get("amx_bf16") or features.get("avx512_bf16")),
    )


def _gpu(index: int) -> Gpu:
    properties = torch.cuda.get_device_properties(index)
    return Gpu(name=properties.name, memory=properties.total_memory, bf16=properties.major >= 8)
