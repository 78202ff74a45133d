"""The processors, memory and GPUs available to this process. Pure functions; thread-safe."""

from __future__ import annotations

import shutil
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path

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


GPUS: Mapping[str, tuple[int, bool]] = {
    "T4": (16, False), "RTX-3080": (10, True), "RTX-4090": (24, True), "RTX-5090": (32, True), "L4": (24, True),
    "A10G": (24, True), "V100": (16, False), "A100-40": (40, True), "A100-80": (80, True), "H100": (80, True),
    "H200": (141, True),
}  # fmt: skip
"""Memory in GiB of GPUs that can be planned for without one, and whether they compute bfloat16."""

USABLE = 15 / 16
"""Least part of a GPU's nominal memory that programs find."""


def gpu_memory(kind: str) -> int | None:
    """Bytes that programs find on a GPU, the least of those that may be meant; None for an unknown one.

    Args:
        kind: as Ray names it, for example `A10G`, `A100` or `GeForce-RTX-4090`.
    """
    kind = kind.removeprefix("GeForce-")
    known = [memory for name, (memory, _) in GPUS.items() if name.startswith(kind) or kind.startswith(name)]
    return int(min(known) * USABLE * (1 << 30)) if known else None


def with_device(machine: Hardware, device: str, count: int = 1) -> Hardware:
    """A machine with other GPUs.

    Args:
        machine: the machine.
        device: "cpu" for none, or a name in `GPUS`.
        count: number of GPUs.

    Raises:
        KeyError: if no such device is known.
    """
    if device == "cpu":
        return replace(machine, gpus=())
    memory, bf16 = GPUS[device]
    return replace(machine, gpus=(Gpu(name=device, memory=memory << 30, bf16=bf16),) * count)


def hardware() -> Hardware:
    """The resources of this machine. Imports torch, which nothing else here does."""
    import torch

    features = torch.cpu.get_capabilities()
    return Hardware(
        cores=host.cores(),
        memory=host.memory(),
        shared_memory=shutil.disk_usage("/dev/shm").total if Path("/dev/shm").is_dir() else 0,
        gpus=tuple(_gpu(index) for index in range(torch.cuda.device_count())),
        cpu_bf16=bool(features.get("amx_bf16") or features.get("avx512_bf16")),
    )


def _gpu(index: int) -> Gpu:
    import torch

    properties = torch.cuda.get_device_properties(index)
    return Gpu(name=properties.name, memory=properties.total_memory, bf16=properties.major >= 8)
