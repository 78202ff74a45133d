"""`rayapp doctor`: what is installed, and what this machine can do."""

from __future__ import annotations

import importlib.metadata
import platform
import shutil
import sys
from pathlib import Path

import typer

GIB = 1 << 30
LEAST_MEMORY = 4 * GIB
LEAST_SHARED_MEMORY = 1 * GIB
LEAST_DISK = 5 * GIB


def doctor() -> None:
    """Show versions, hardware, shipped models and the flags that suit this machine; exit 1 if something is amiss."""
    from rich.console import Console
    from rich.table import Table

    with Console(stderr=True).status("looking…"):
        from rayapp import planner

        found = planner.hardware()
        models = shipped_models()
    chosen = planner.plan(found)
    disk = shutil.disk_usage(Path.home()).free
    table = Table(show_header=False)
    table.add_row("Python", platform.python_version())
    for package in ("rayapp", "ray", "torch", "monai"):
        table.add_row(package, importlib.metadata.version(package))
    table.add_row("cores", str(found.cores))
    table.add_row("memory", _gib(found.memory))
    table.add_row("shared memory", _gib(found.shared_memory))
    table.add_row("free disk", f"{_gib(disk)} in the home folder")
    table.add_row("GPUs", ", ".join(f"{gpu.name} ({_gib(gpu.memory)})" for gpu in found.gpus) or "none")
    table.add_row("shipped models", ", ".join(models) or "none")
    table.add_row("networks run on", f"{chosen.device}, {chosen.precision}")
    table.add_row("flags that suit", f"--replicas 1:{chosen.replicas} --num-cpus {chosen.cpus}")
    Console().print(table)
    wrong = problems(found.memory, found.shared_memory, disk, models)
    for problem in wrong:
        print(f"rayapp: {problem}", file=sys.stderr)
    if wrong:
        raise typer.Exit(1)


def problems(memory: int, shared_memory: int, disk: int, models: list[str]) -> list[str]:
    """What would keep the server from working well, a line each. Sizes in bytes."""
    amiss = []
    if memory < LEAST_MEMORY:
        amiss.append(f"{_gib(memory)} of memory is too little: at least {_gib(LEAST_MEMORY)}")
    if shared_memory < LEAST_SHARED_MEMORY:
        amiss.append(f"{_gib(shared_memory)} of shared memory slows Ray down: in a container, use --shm-size=2g")
    if disk < LEAST_DISK:
        amiss.append(f"{_gib(disk)} of free disk is too little: at least {_gib(LEAST_DISK)}")
    if not models:
        amiss.append("the shipped models are missing: install rayapp again, or run `make weights`")
    return amiss


def shipped_models() -> list[str]:
    """The models whose weights came with the package."""
    folder = Path(__file__).parent.parent / "apps" / "radiology" / "weights"
    return sorted(path.stem for path in folder.glob("*.safetensors") if path.with_suffix(".json").is_file())


def _gib(size: int) -> str:
    return f"{size / GIB:.1f} GiB"
