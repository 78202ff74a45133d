"""Prompts on large volumes: python -m benchmarks.large_volumes [--edge 1024]

Made-up volumes: a CT of 512x512x200 and one of `--edge` voxels along each axis (uint8). Reported are, for a box around
a large and one around a small structure and for a stroke, ms of the processor to read the prompt from a request, from
there to the mask by `Histogram+GraphCut`, and to pack the mask for the client; and the most memory in MB beside the
image. The processor's time hardly depends on what else the machine does.
"""

from __future__ import annotations

import argparse
import resource
import time
from typing import Any

import numpy as np
from rich.console import Console
from rich.table import Table

from rayapp.imaging import mask_codec
from rayapp.imaging.sparse_labels import SparseLabels
from rayapp.imaging.volume import Volume
from rayapp.inference.energy import likelihood
from rayapp.inference.methods.scribbles import ScribblesTask
from rayapp.inference.prompts.parse import parse_prompts
from rayapp.inference.prompts.scribble_map import BACKGROUND, FOREGROUND


def volume(shape: tuple[int, int, int], dtype: type[np.unsignedinteger[Any] | np.signedinteger[Any]]) -> Volume:
    """An organ of 250x230x140 voxels in a body, with noise that repeats."""
    array = np.full(shape, 10, dtype, order="F")
    array[60:-60, 100:-90] = 100
    array[150:400, 150:380, 30:170] = 160
    array += np.random.default_rng(0).integers(0, 20, (shape[0], 1, shape[2])).astype(dtype)
    return Volume(array=array[None], affine=np.diag([0.8, 0.8, 1.5, 1.0]))


def requests(shape: tuple[int, int, int]) -> dict[str, dict[str, Any]]:
    """The prompts, as a request has them."""
    part = np.zeros((100, 100, 1), np.uint8, order="F")
    part[70:, 60], part[:10, :40] = FOREGROUND, BACKGROUND
    stroke = SparseLabels(shape=shape, lower=(130, 200, 100), part=part)
    return {
        "box of 300x260x160": {"roi": [125, 424, 135, 394, 20, 179]},
        "box of 61x61x41": {"roi": [140, 200, 140, 200, 20, 60]},
        "stroke": {"marks": [{"packed": mask_codec.to_text(stroke)}]},
    }


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--edge", type=int, default=1024)
    edge = parser.parse_args().edge
    table = Table("image", "prompt", "read", "mask", "pack", "MB")
    task = ScribblesTask(fit=likelihood.histogram, description="")
    task.load()
    for shape, dtype in (((512, 512, 200), np.int16), ((edge, edge, edge), np.uint8)):
        prepared = task.prepare(volume(shape, dtype))
        before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        for name, params in requests(shape).items():
            times = [time.process_time()]
            prompts = parse_prompts(params, task.info, shape)
            times.append(time.process_time())
            labels = task.predict(prepared, prompts, {}).labels
            times.append(time.process_time())
            mask_codec.encode(labels)
            times.append(time.process_time())
            most = (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) / 1024
            table.add_row("x".join(map(str, shape)), name, *(f"{1e3 * n:.0f}" for n in np.diff(times)), f"{most:.0f}")
    Console(width=120).print(table)


if __name__ == "__main__":
    main()
