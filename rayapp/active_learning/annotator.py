"""Annotator: a simulated annotator who labels images through a server, with a model of the time that a person needs.

All work goes through the server's routes: request the next image, receive the model's proposal, correct its largest
error by one click or stroke at a time, save the label. A reference label map takes the place of the person's judgement.

An annotator belongs to one event loop; masks are read and compared in threads.
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
from rayapp.inference.prompts import scribble_map
from rayapp.inference.prompts.parse import BACKGROUND, FOREGROUND
from rayapp.training.click_simulation import clamped, error_regions
from rayapp.training.metrics import dice

MAX_BYTES = 4 << 30
"""Largest decoded reference, in bytes."""


class Correction(PromptFields, total=False):
    """A prompt that corrects one error."""

    clicks: Mapping[str, Points]


@dataclass(frozen=True, kw_only=True)
class AnnotationTimes:
    """The time model of an annotator, and the annotator's way of working.

    A proposal is reviewed, corrected by clicks until its mean foreground Dice score is good enough, and saved. If it is
    not after the last click, the rest is outlined by hand, which takes the share 1 - Dice of `manual_s`.

    Attributes:
        strokes: Correct by strokes along the centreline of the error on one slice, instead of clicks.
        click_s: Seconds for a click.
        stroke_s: Seconds for a stroke.
        review_s: Seconds to review a proposal.
        manual_s: Seconds to outline a volume by hand; ten minutes in the MONAI Label paper.
        good_enough: Mean foreground Dice score at which the annotator accepts a mask.
        max_clicks: Largest number of clicks or strokes on one image.
        click_noise: Standard deviation of the position of clicks and strokes, in voxels.
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
class Annotation:
    """A label that an annotator saved. Dice scores are means over structures.

    Attributes:
        image: The image's id.
        annotator: The annotator's name.
        strategy: The strategy that handed the image out.
        version: Version of the model that proposed a mask; empty without a proposal.
        clicks: Number of clicks or strokes.
        proposed_dice: Dice score of the proposal; NaN without one.
        saved_dice: Dice score of the saved label.
        by_hand: The label was completed by hand.
        seconds: Time that a person would have needed, by `AnnotationTimes`.
    """

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
    """An annotator who uses one model."""

    def __init__(
        self,
        *,
        name: str,
        client: AsyncClient,
        model: str,
        references: Mapping[str, Path],
        times: AnnotationTimes,
        rng: np.random.Generator,
    ) -> None:
        """An annotator who has not started yet.

        Args:
            name: The annotator's name, for the server and in the results.
            client: The annotator's own client, with its own client id.
            model: Name of the model that proposes masks. While the server does not serve it, images are outlined by
                hand.
            references: Reference label map of each image by image id, with the model's values.
            times: The time model.
            rng: Source of randomness for positions.
        """
        self.name = name
        self.seconds = 0.0
        self._client = client
        self._model = model
        self._references = references
        self._times = times
        self._rng = rng

    async def label_next(self, strategy: str) -> Annotation | None:
        """Request the next image, label it and save the label.

        Args:
            strategy: The strategy that chooses the image.

        Returns:
            The annotation, or None when no image is left.

        Raises:
            KeyError: For an image without a reference.
        """
        sample = await self._client.next_sample(strategy)
        if sample is None:
            return None
        image = sample["id"]
        truth = await asyncio.to_thread(read_segmentation, self._references[image], max_bytes=MAX_BYTES)
        names, version = await self._served_model(truth)
        proposed, clicks, seconds = float("nan"), 0, 0.0
        mask: Mask = np.zeros_like(truth.array)
        if version:
            interaction = await self._client.open_interaction(self._model, image)
            mask = await _proposal(interaction, truth)
            proposed = score = await self._score(mask, truth)
            seconds += self._times.review_s
            while score < self._times.good_enough and clicks < self._times.max_clicks:
                correction = await asyncio.to_thread(self._correction, truth.array, mask, names)
                if correction is None:
                    break
                mask = await interaction.prompt(**correction)
                score = await self._score(mask, truth)
                clicks += 1
                seconds += self._times.stroke_s if self._times.strokes else self._times.click_s
        score = 0.0 if np.isnan(proposed) else await self._score(mask, truth)
        by_hand = score < self._times.good_enough
        if by_hand:
            seconds += self._times.manual_s * (1 - score)
            mask, score = truth.array, 1.0
        await self._save(image, mask, truth, seconds)
        self.seconds += seconds
        return Annotation(
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

    async def _served_model(self, truth: Segmentation) -> tuple[dict[int, str], str]:
        """The model's structures by value, and its version; an empty version if the server does not serve the model."""
        model = (await self._client.info())["models"].get(self._model)
        if model is None:
            return {}, ""
        names = {int(value): name for name, value in model["labels"].items() if value}
        if not names:  # a model of any structure: all values of the reference are one foreground
            names = {int(value): FOREGROUND for value in np.unique(truth.array) if value}
        return {0: BACKGROUND, **names}, str(model.get("version") or "unnamed")

    def _correction(self, truth: Mask, mask: Mask, names: Mapping[int, str]) -> Correction | None:
        """A prompt in the largest error that the model can correct; None if there is no such error.

        To the model, structures that it does not have are background.
        """
        if mask.shape != truth.shape:
            raise GridMismatch(f"the reference has shape {truth.shape}, but the model's mask has {mask.shape}")
        truth, mask = (np.where(np.isin(labels, list(names)), labels, 0) for labels in (truth, mask))
        regions = error_regions(truth, mask, 1 + max(names), count=1)
        if not regions:
            return None
        worst = regions[0]
        noise = self._times.click_noise
        if not self._times.strokes:
            voxel = clamped(worst.click(self._rng, noise=noise), truth.shape)
            return {"clicks": {names[worst.label]: [[int(n) for n in voxel]]}}
        line = np.minimum(worst.stroke(self._rng, noise=noise), np.array(truth.shape) - 1)
        marks = np.zeros(truth.shape, np.uint8)
        marks[tuple(line.T)] = scribble_map.FOREGROUND if worst.label else scribble_map.BACKGROUND
        structure = worst.label or int(np.bincount(mask[worst.box][worst.mask]).argmax())
        name = names[structure]
        return {"marks": marks, "label": None if name == FOREGROUND else name}

    async def _score(self, mask: Mask, truth: Segmentation) -> float:
        return await asyncio.to_thread(mean_dice, mask, truth.array)

    async def _save(self, image: str, mask: Mask, truth: Segmentation, seconds: float) -> None:
        with tempfile.TemporaryDirectory(prefix="rayapp-") as folder:
            file = Path(folder) / "label.nii.gz"
            label = Segmentation(array=mask, affine=truth.affine, names={})
            await asyncio.to_thread(lambda: file.write_bytes(encode_segmentation(label, ".nii.gz", dtype=mask.dtype)))
            await self._client.save_label(
                image, file, params={"model": self._model, "annotator": self.name, "annotation_s": round(seconds, 1)}
            )


async def _proposal(interaction: AsyncInteraction, truth: Segmentation) -> Mask:
    """The model's mask without prompts; an empty one for a model that needs prompts."""
    try:
        return await interaction.mask()
    except BadRequest:
        return np.zeros_like(truth.array)


def mean_dice(mask: npt.NDArray[np.generic], truth: npt.NDArray[np.generic]) -> float:
    """Mean Dice score over the structures that are in either label map, (I, J, K); 1 if both are empty."""
    scores = np.array(dice(mask, truth, int(max(mask.max(), truth.max()))))
    return 1.0 if np.isnan(scores).all() else float(np.nanmean(scores))
