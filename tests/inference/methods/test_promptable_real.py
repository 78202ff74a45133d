"""The promptable network on real volumes: a structure is found however the image lies, and prompts are obeyed."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import nibabel
import numpy as np
import pytest

from rayapp.apps.radiology.main import SHIPPED, shipped_card
from rayapp.geometry import spacing
from rayapp.imaging.volume import Volume
from rayapp.inference.infer_task import Prompts
from rayapp.inference.methods.promptable_infer import PromptableTask
from rayapp.models.store import ModelVersion
from rayapp.training.synthetic.prompts import correction, middle
from tests.real_data import real

pytestmark = pytest.mark.slow
CLOSE = 0.03
"""Largest change of the mean Dice."""
ORGANS = {"spleen": 1, "right kidney": 2, "left kidney": 3, "liver": 5, "L1": 31, "aorta": 52, "autochthon": 86}


@dataclass(frozen=True)
class Seen:
    """A structure of an image, as it is shown: both (i, j, k), and the spacing in millimetres."""

    image: np.ndarray
    truth: np.ndarray
    spacing: tuple[float, ...]

    def volume(self) -> Volume:
        image = np.ascontiguousarray(self.image)
        return Volume(array=image[None], affine=np.diag([*self.spacing, 1.0]))


Form = Callable[[Seen], Seen]


def laid(place: Callable[[np.ndarray], np.ndarray], order: tuple[int, int, int] = (0, 1, 2)) -> Form:
    return lambda seen: Seen(place(seen.image), place(seen.truth), tuple(seen.spacing[axis] for axis in order))


def inverted(seen: Seen) -> Seen:
    return Seen(seen.image.min() + seen.image.max() - seen.image, seen.truth, seen.spacing)


def cropped(seen: Seen) -> Seen:
    """The image cut to twice the structure's size."""
    voxels = np.argwhere(seen.truth)
    low, high = voxels.min(0), voxels.max(0) + 1
    sides = zip(np.maximum(0, low - (high - low) // 2), high + (high - low) // 2, strict=True)
    region = tuple(slice(int(a), int(b)) for a, b in sides)
    return Seen(seen.image[region], seen.truth[region], seen.spacing)


FORMS: dict[str, Form] = {
    "flipped along i": laid(lambda array: array[::-1]),
    "flipped along k": laid(lambda array: array[:, :, ::-1]),
    "turned by 90 degrees": laid(lambda array: array.transpose(1, 0, 2)[::-1], (1, 0, 2)),
    "seen from another side": laid(lambda array: array.transpose(2, 0, 1), (2, 0, 1)),
    "inverted": inverted,
    "cropped": cropped,
}


@cache
def structures() -> tuple[Seen, ...]:
    return tuple(_structures())


def _structures() -> Iterator[Seen]:
    for name in sorted(path.name for path in real("chaos_t2", "imagesTr").glob("*.nii.gz"))[::5]:
        image = nibabel.load(real("chaos_t2", "imagesTr", name))
        labels = np.asarray(nibabel.load(real("chaos_t2", "labelsTr", name)).dataobj)
        for value in (1, 2, 3, 4):
            yield Seen(_floats(image), labels == value, tuple(spacing(image.affine)))
    image = nibabel.load(real("totalseg", "example_ct_sm.nii.gz"))
    labels = np.asarray(nibabel.load(real("totalseg", "example_seg.nii.gz")).dataobj)
    for value in ORGANS.values():
        yield Seen(_floats(image), labels == value, tuple(spacing(image.affine)))


def _floats(image: nibabel.Nifti1Image) -> np.ndarray:
    return np.asarray(image.dataobj, np.float32)


@pytest.fixture(scope="module")
def task() -> PromptableTask:
    weights: Path = SHIPPED / "deepgrow_3d.safetensors"
    card = shipped_card("deepgrow_3d")
    return PromptableTask.from_version(ModelVersion(name="deepgrow_3d", version="v1", weights=weights, card=card))


def prompted(kind: str, seen: Seen) -> Prompts:
    if kind == "a click":
        i, j, k = (int(n) for n in middle(seen.truth, np.array(seen.spacing)))
        return Prompts(clicks={"foreground": ((i, j, k),)})
    voxels = np.argwhere(seen.truth)
    low, high = (tuple(int(n) for n in corner) for corner in (voxels.min(0), voxels.max(0) + 1))
    return Prompts(roi=(low, high))  # type: ignore[arg-type]


def answer(task: PromptableTask, seen: Seen, prompts: Prompts) -> np.ndarray:
    found: np.ndarray = task.predict(task.prepare(seen.volume()), prompts, {}).labels > 0
    return found


def dice(one: np.ndarray, other: np.ndarray) -> float:
    return float(2 * (one & other).sum() / max(1, one.sum() + other.sum()))


@cache
def usual(task: PromptableTask, kind: str) -> float:
    return float(np.mean([dice(answer(task, seen, prompted(kind, seen)), seen.truth) for seen in structures()]))


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("kind", ["a click", "a box"])
def test_a_structure_is_found_as_well_however_the_image_is_shown(task: PromptableTask, kind: str, form: str):
    shown = [FORMS[form](seen) for seen in structures()]
    found = np.mean([dice(answer(task, seen, prompted(kind, seen)), seen.truth) for seen in shown])
    assert abs(found - usual(task, kind)) <= CLOSE


def test_further_clicks_raise_the_mean_and_leave_no_clicked_voxel_out(task: PromptableTask):
    means = []
    masks: list[np.ndarray | None] = [None] * len(structures())
    clicks: list[dict[str, list[tuple[int, int, int]]]] = [{"foreground": [], "background": []} for _ in masks]
    prepared = [task.prepare(seen.volume()) for seen in structures()]
    for _ in range(4):
        for n, seen in enumerate(structures()):
            mask = masks[n]
            step = np.array(seen.spacing)
            found = (middle(seen.truth, step), True) if mask is None else correction(None, seen.truth, mask, step)
            if found is None:
                continue
            i, j, k = (int(index) for index in found[0])
            clicks[n]["foreground" if found[1] else "background"].append((i, j, k))
            given = {name: tuple(points) for name, points in clicks[n].items() if points}
            masks[n] = after = task.predict(prepared[n], Prompts(clicks=given), {}).labels > 0
            assert all(after[point] for point in clicks[n]["foreground"])
            assert not any(after[point] for point in clicks[n]["background"])
            if not found[1]:
                assert not (after & ~mask).any(), "an exclude click only takes away"
        means.append(np.mean([dice(mask, seen.truth) for mask, seen in zip(masks, structures(), strict=True)]))
    assert means == sorted(means)
