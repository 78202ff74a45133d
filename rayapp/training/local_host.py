"""LocalHost: a run in a plain process, for scripts and tests."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

import torch

from rayapp.training.train_task import Progress


class LocalHost:
    """One worker; keeps the newest checkpoint under `folder` and goes on from it.

    `told` is called with every progress, `stop` before each iteration.
    """

    rank = 0
    world_size = 1

    def __init__(
        self,
        folder: Path,
        *,
        device: torch.device | None = None,
        told: Callable[[Progress], None] | None = None,
        stop: Callable[[], bool] | None = None,
    ) -> None:
        self._folder = folder
        self._told = told
        self._stop = stop
        self.device = device or torch.device("cuda" if torch.cuda.is_available() else "cpu")

    def resume(self) -> Path | None:
        """The newest checkpoint. One is renamed into place once it is whole, and only then the one before goes."""
        kept = sorted(self._folder.glob("kept-*"), key=_number)
        return kept[-1] if kept else None

    def report(self, progress: Progress, *, checkpoint: Path | None = None) -> None:
        """Keep the checkpoint, drop the one before, and tell."""
        if checkpoint is not None:
            before = self.resume()
            staged = self._folder / "staged"
            shutil.rmtree(staged, ignore_errors=True)
            shutil.copytree(checkpoint, staged)
            staged.rename(self._folder / f"kept-{0 if before is None else _number(before) + 1}")
            if before is not None:
                shutil.rmtree(before)
        if self._told is not None:
            self._told(progress)

    def stopped(self) -> bool:
        """True when `stop` says so."""
        return self._stop is not None and self._stop()


def _number(kept: Path) -> int:
    return int(kept.name.removeprefix("kept-"))
