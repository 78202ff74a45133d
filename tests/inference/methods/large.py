"""A CT of 512x512x400 in one method: prints the bytes held after preparing it, and the most at any time, beyond what
the process and the image took before. A process of its own, since native memory is only known of whole processes."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import numpy as np
import torch

from rayapp.apps.radiology.main import scribbles
from rayapp.imaging.volume import Volume
from rayapp.inference.infer_task import Prompts
from rayapp.inference.methods.deepgrow import DeepGrow2DTask, DeepGrow3DTask
from rayapp.inference.methods.deepgrow_pipeline import DeepGrowPipelineTask
from rayapp.inference.prompts.scribble_map import BACKGROUND, FOREGROUND
from tests.inference.grids import ORIENTATIONS, affine_of
from tests.inference.near_and_bright import version

SHAPE = (512, 512, 400)


def ct() -> Volume:
    rng = np.random.default_rng(5)
    array = np.full(SHAPE, -1000, np.int16, order="F")
    array[60:450, 100:420] = 40
    array[180:300, 200:330, 90:260] = 160
    array[::7, ::5] += rng.integers(-20, 20, (74, 103, 400)).astype(np.int16)
    return Volume(array=array[None], affine=affine_of(ORIENTATIONS[13], (0.8, 0.8, 0.8)))


def marks() -> np.ndarray[Any, np.dtype[np.uint8]]:
    drawn = np.zeros(SHAPE, np.uint8, order="F")
    for k in (110, 175, 240):
        drawn[200:280, 260, k] = FOREGROUND
        drawn[170, 190:340, k] = drawn[310, 190:340, k] = drawn[170:310, 190, k] = drawn[170:310, 340, k] = BACKGROUND
    return drawn


def memory(what: str) -> int:
    """Bytes of this process: VmRSS now, or VmHWM at the most so far."""
    (line,) = [line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith(what)]
    return int(line.split()[1]) * 1024


def task_of(method: str, folder: Path) -> Any:
    if not method.startswith("deepgrow"):
        return scribbles({})[method]
    flat, solid = DeepGrow2DTask.from_version(version(folder, 2)), DeepGrow3DTask.from_version(version(folder, 3))
    both = DeepGrowPipelineTask(model_2d=flat, model_3d=solid, description="both")
    return {"deepgrow_2d": flat, "deepgrow_3d": solid, "deepgrow_pipeline": both}[method]


def main(method: str, folder: Path) -> None:
    torch.set_num_threads(1)
    task, volume = task_of(method, folder), ct()
    task.load()
    prompts = Prompts(clicks={"foreground": [(240, 260, 170), (185, 260, 170)], "background": [(310, 260, 170)]})
    if task.info.takes_drawings:
        prompts = Prompts(marks=marks())
    before = memory("VmRSS")
    Path("/proc/self/clear_refs").write_text("5")  # the most is counted from here
    prepared = task.prepare(volume)
    held = memory("VmRSS") - before
    labels = task.predict(prepared, prompts, {}).labels
    assert labels[240, 260, 170]
    print(held, memory("VmHWM") - before)


if __name__ == "__main__":
    main(sys.argv[1], Path(sys.argv[2]))
