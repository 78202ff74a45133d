"""LocalHost: executes a run in the present process, for scripts and tests."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

import torch

from rayapp.training.train_task import Progress


class LocalHost:
    """A host with one worker. It persists the newest checkpoint in a folder, and resumes from it."""

    rank = 0
    world_size = 1

    def __init__(
        self,
        folder: Path,
        *,
        device: torch.device | None = None,
        on_progress: Callable[[Progress], None] | None = None,
        stop: Callable[[], bool] | None = None,
    ) -> None:
        """A host for one run.

        Args:
            folder: Folder for the run's checkpoints.
            device: Device to train on; by default the first GPU, or else the CPU.
            on_progress: Called with every report of progress.
            stop: Called before each iteration; True ends the run.
        """
        self._folder = folder
        self._on_progress = on_progress
        self._stop = stop
        self.device = device or torch.device("cuda" if torch.cuda.is_available() else "cpu")

    def resume(self) -> Path | None:
        """The newest checkpoint."""
        checkpoints = sorted(self._folder.glob("kept-*"), key=_number)
        return checkpoints[-1] if checkpoints else None

    def report(self, progress: Progress, *, checkpoint: Path | None = None) -> None:
        """Persist the checkpoint, if there is one, then remove the one before and report the progress."""
        if checkpoint is not None:
            before = self.resume()
            staged = self._folder / "staged"
            shutil.rmtree(staged, ignore_errors=True)
            shutil.copytree(checkpoint, staged)
            staged.rename(self._folder / f"kept-{0 if before is None else _number(before) + 1}")
            if before is not None:
                shutil.rmtree(before)
        if self._on_progress is not None:
            self._on_progress(progress)

    def stopped(self) -> bool:
        """True once `stop` returns True."""
        return self._stop is not None and self._stop()


def _number(checkpoint: Path) -> int:
    return int(checkpoint.name.removeprefix("kept-"))
