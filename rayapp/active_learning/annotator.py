"""Annotator: works through a server as a person would, and says how long a person would have taken.

Everything goes through the server's own routes: the next image, the model's proposal, one click or stroke at a time
into what is then the largest error, the label saved. What a person sees and judges is replaced by a reference label
map.

Each annotator belongs to one event loop; reading and comparing masks runs in threads beside it.
"""

from __future__ import annotations

import asyncio
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt

from rayapp.client import AsyncClient, AsyncInteraction, Mask, Points, PromptFields
from rayapp.errors import BadRequest, GridMismatch
from rayapp.imaging.reader import read_segmentation
from rayapp.imaging.volume import Segmentation
from rayapp.imaging.writer import encode_segmentation
from rayapp.inference.prompts import scribble_map as marking
from rayapp.inference.prompts.parse import BACKGROUND, FOREGROUND
from rayapp.training.click_simulation import clamped, error_regions
from rayapp.training.metrics import dice

MAX_BYTES = 4 << 30
"""Bytes that a reference may have in memory."""


class Correction(PromptFields, total=False):
    """One prompt."""

    clicks: Mapping[str, Points]


@dataclass(frozen=True, kw_only=True)
class AnnotationTimes:
    """How an annotator works, and the time model.

    A volume outlined by hand takes `manual_s`, the paper's ten minutes. A proposal is looked at (`review_s`) and
    corrected by clicks (`click_s` each) until its mean foreground Dice is `good_enough`, and then saved as it is; after
    `max_clicks` the rest is done by hand, for that share of `manual_s` that is still wrong. `click_noise` is the
    standard deviation, in voxels, by which a click misses its place. With `strokes` all is the same with lines drawn
    through the middle of what is wrong on one slice, `stroke_s` each.
    """

    strokes: bool = False
    click_s: float = 5.0
    stroke_s: float = 10.0
    review_s: float = 30.0
    manual_s: float = 600.0
    good_enough: float = 0.9
    max_clicks: int = 10
    click_noise: float = 0.0


@dataclass(frozen=True, kw_only=True)
class Labelled:
    """One label as it came about. Dice is the mean over the structures; NaN before there was a proposal."""

    image: str
    annotator: str
    strategy: str
    version: str
    clicks: int
    proposed_dice: float
    saved_dice: float
    by_hand: bool
    seconds: float


class Annotator:
    """One person with one model.

    Args:
        name: tells annotators apart, for the server and in the results.
        client: its own, with its own client id.
        model: what proposes; while the server does not serve it, all is done by hand.
        references: the label map that each image should get, by image id, values as the model's.
    """

    def __init__(
        self,
        *,
        name: str,
        client: AsyncClient,
        model: str,
        references: Mapping[str, Path],
        habits: AnnotationTimes,
        rng: np.random.Generator,
    ) -> None:
        self.name = name
        self.seconds = 0.0
        self._client = client
        self._model = model
        self._references = references
        self._habits = habits
        self._rng = rng

    async def label_next(self, strategy: str) -> Labelled | None:
        """Ask for the next image, label it and save the label; None when nothing is left.

        Raises KeyError for an image without a reference.
        """
        sample = await self._client.next_sample(strategy)
        if sample is None:
            return None
        image = sample["id"]
        truth = await asyncio.to_thread(read_segmentation, self._references[image], max_bytes=MAX_BYTES)
        names, version = await self._served(truth)
        proposed, clicks, seconds = float("nan"), 0, 0.0
        found: Mask = np.zeros_like(truth.array)
        if version:
            work = await self._client.open_interaction(self._model, image)
            found = await _proposal(work, truth)
            proposed = score = await self._score(found, truth)
            seconds += self._habits.review_s
            while score < self._habits.good_enough and clicks < self._habits.max_clicks:
                found = await work.prompt(**await asyncio.to_thread(self._correction, truth.array, found, names))
                score = await self._score(found, truth)
                clicks += 1
                seconds += self._habits.stroke_s if self._habits.strokes else self._habits.click_s
        score = 0.0 if np.isnan(proposed) else await self._score(found, truth)
        by_hand = score < self._habits.good_enough
        if by_hand:
            seconds += self._habits.manual_s * (1 - score)
            found, score = truth.array, 1.0
        await self._save(image, found, truth, seconds)
        self.seconds += seconds
        return Labelled(
            image=image,
            annotator=self.name,
            strategy=strategy,
            version=version,
            clicks=clicks,
            proposed_dice=proposed,
            saved_dice=score,
            by_hand=by_hand,
            seconds=seconds,
        )

    async def _served(self, truth: Segmentation) -> tuple[dict[int, str], str]:
        """The model's structures by value, and its version; no version where it does not serve."""
        model = (await self._client.info())["models"].get(self._model)
        if model is None:
            return {}, ""
        names = {int(value): name for name, value in model["labels"].items() if value}
        if not names:  # of no structure in particular: all that the reference shows is one
            names = {int(value): FOREGROUND for value in np.unique(truth.array) if value}
        return {0: BACKGROUND, **names}, str(model.get("version") or "unnamed")

    def _correction(self, truth: Mask, found: Mask, names: Mapping[int, str]) -> Correction:
        if found.shape != truth.shape:
            raise GridMismatch(f"the reference has shape {truth.shape}, the model's mask {found.shape}")
        (worst,) = error_regions(truth, found, 1 + max(names), count=1)
        noise = self._habits.click_noise
        if not self._habits.strokes:
            at = clamped(worst.click(self._rng, noise=noise), truth.shape)
            return {"clicks": {names[worst.label]: [[int(n) for n in at]]}}
        line = np.minimum(worst.stroke(self._rng, noise=noise), np.array(truth.shape) - 1)
        marks = np.zeros(truth.shape, np.uint8)
        marks[tuple(line.T)] = marking.FOREGROUND if worst.label else marking.BACKGROUND
        wrong = worst.label or int(np.bincount(found[worst.box][worst.mask]).argmax())
        name = names[wrong]
        return {"marks": marks, "label": None if name == FOREGROUND else name}

    async def _score(self, found: Mask, truth: Segmentation) -> float:
        return await asyncio.to_thread(mean_dice, found, truth.array)

    async def _save(self, image: str, mask: Mask, truth: Segmentation, seconds: float) -> None:
        with tempfile.TemporaryDirectory(prefix="rayapp-") as folder:
            file = Path(folder) / "label.nii.gz"
            label = Segmentation(array=mask, affine=truth.affine, names={})
            await asyncio.to_thread(lambda: file.write_bytes(encode_segmentation(label, ".nii.gz", dtype=mask.dtype)))
            await self._client.save_label(
                image, file, params={"model": self._model, "annotator": self.name, "annotation_s": round(seconds, 1)}
            )


async def _proposal(work: AsyncInteraction, truth: Segmentation) -> Mask:
    """What the model finds by itself: nothing, where it waits for a click."""
    try:
        return await work.mask()
    except BadRequest:
        return np.zeros_like(truth.array)


def mean_dice(found: npt.NDArray[np.generic], truth: npt.NDArray[np.generic]) -> float:
    """Over the structures that either has; 1 where neither has any."""
    scores = np.array(dice(found, truth, int(max(found.max(), truth.max()))))
    return 1.0 if np.isnan(scores).all() else float(np.nanmean(scores))
