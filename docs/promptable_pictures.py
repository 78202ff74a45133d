"""Pictures of the promptable model: python -m docs.promptable_pictures [NAME …] draws docs/NAME.png anew.

scenes   what it is trained on: random scenes with prompts as simulated people give them
minute   what it makes of one click on each of six organs of a CT (TotalSegmentator's example, Apache-2.0)
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Mapping
from pathlib import Path

import nibabel
import numpy as np
from matplotlib import pyplot

from benchmarks.minute_one import SHIPPED, network
from benchmarks.real_data import DATA
from docs.pictures import main
from rayapp.geometry import spacing
from rayapp.imaging.volume import Volume
from rayapp.inference.infer_task import Prompts
from rayapp.inference.zoom.marks import channels
from rayapp.models.promptable import Channel
from rayapp.training.synthetic.examples import cases
from rayapp.training.synthetic.prompts import middle

SEED, ROWS, COLUMNS = 6, 3, 9
ORGANS = {1: "spleen", 2: "right kidney", 5: "liver", 31: "L1", 63: "vena cava", 86: "autochthon"}
WINDOW = (-150, 250)
SHOWN = {
    Channel.INCLUDE: "#ffbf33",
    Channel.STROKE: "#ffbf33",
    Channel.EXCLUDE: "#4da6ff",
    Channel.ERASER: "#4da6ff",
    Channel.BOX: "#55dd77",
    Channel.LASSO: "#dd77ee",
}


def scenes(to: Path) -> None:
    """Views of random scenes: the structure in red, prompts in other colours."""
    figure, axes = pyplot.subplots(ROWS, COLUMNS, figsize=(COLUMNS * 1.4, ROWS * 1.4), facecolor="black")
    chosen = itertools.islice(cases(SEED, [64]), 0, ROWS * COLUMNS * 4, 4)
    for axis, case in zip(axes.flat, chosen, strict=True):
        look = case.looks[0]
        drawn = channels(look.view, look.image.astype(np.float32), case.marks)
        marked = drawn[Channel.INCLUDE :].any((0, 2, 3))
        areas = look.truth.astype(float).sum((1, 2)) * (marked if marked.any() else 1)
        k = int(areas.argmax())
        axis.imshow(look.image[k].astype(np.float32), cmap="gray", vmin=-1, vmax=1)
        axis.contour(look.truth[k], [127.5], colors="#ff4444", linewidths=1)
        for channel, colour in SHOWN.items():
            if drawn[channel, k].any():
                axis.contour(drawn[channel, k], [0.5], colors=colour, linewidths=0.9)
        axis.axis("off")
    figure.subplots_adjust(0, 0, 1, 1, 0.02, 0.02)
    figure.savefig(to, dpi=90, facecolor="black")
    pyplot.close(figure)


def minute(to: Path) -> None:
    """One click on each of some organs, and what it gives, with the reference in white."""
    image, labels = (nibabel.load(DATA / "totalseg" / f"example_{name}.nii.gz") for name in ("ct_sm", "seg"))
    volume = Volume(array=np.asarray(image.dataobj)[None], affine=image.affine)
    task = network(SHIPPED / "deepgrow_3d.safetensors", None)
    prepared = task.prepare(volume)
    figure, axes = pyplot.subplots(2, 3, figsize=(11, 6.2), facecolor="black")
    for axis, (value, name) in zip(axes.flat, ORGANS.items(), strict=True):
        truth = np.asarray(labels.dataobj) == value
        i, j, k = (int(n) for n in middle(truth, spacing(volume.affine)))
        mask = task.predict(prepared, Prompts(clicks={"foreground": [(i, j, k)]}), {}).labels[:, :, k]
        axis.imshow(volume.array[0, :, :, k].T, cmap="gray", vmin=WINDOW[0], vmax=WINDOW[1], origin="lower")
        axis.contourf(mask.T, [0.5, 1.5], colors=["#ff5533"], alpha=0.4)
        axis.contour(truth[:, :, k].T, [0.5], colors="white", linewidths=0.7)
        axis.plot(i, j, "o", color="#ffbf33", markeredgecolor="black", markersize=7)
        axis.set_title(name, color="white", fontsize=9, pad=3)
        axis.axis("off")
    figure.subplots_adjust(0, 0, 1, 0.96, 0.02, 0.06)
    figure.savefig(to, dpi=90, facecolor="black")
    pyplot.close(figure)


PICTURES: Mapping[str, Callable[[Path], None]] = {"scenes": scenes, "minute": minute}


if __name__ == "__main__":
    main(PICTURES, __doc__)
