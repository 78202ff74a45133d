"""PromptableTask: segmentation of any structure in any image, from the first click, by the network that ships.

Prompts are answered by adaptive zoom (`rayapp.inference.zoom`), in their order, each starting from the previous answer;
where the order is unknown, prompts off the structure come last, and these only remove voxels. The same prompts
therefore have the same answer on any replica. Intermediate answers are cached with the image.
"""

from __future__ import annotations

import hashlib
import itertools
import threading
from collections import OrderedDict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Self

import numpy as np
import torch
from scipy import ndimage

from rayapp import geometry
from rayapp.errors import BadRequest, ModelBroken
from rayapp.imaging.volume import Volume
from rayapp.inference.infer_task import Prediction, Prompts, TaskInfo
from rayapp.inference.network import cancellation
from rayapp.inference.stage_clock import StageClock
from rayapp.inference.zoom.correction import refuted
from rayapp.inference.zoom.glance import Mask
from rayapp.inference.zoom.lowering import start_of, steps_of
from rayapp.inference.zoom.marks import Marks
from rayapp.inference.zoom.view import Floats, Source
from rayapp.inference.zoom.zoom import Optics, Outcome, enforced, outcomes
from rayapp.models.networks import load_weights
from rayapp.models.promptable import Promptable, channels_last
from rayapp.models.store import ModelVersion

CHAIN = 6
"""Maximum number of prompts that are answered one by one; earlier ones are answered together."""
KEPT = 24
"""Number of answers cached per image."""
POOR = 0.6
"""Expected Dice score below which an answer to a box may be another structure, see `refuted`."""


@dataclass(frozen=True)
class PreparedSource:
    """An image with cached answers."""

    source: Source
    answers: OrderedDict[bytes, Mask] = field(default_factory=OrderedDict)

    @property
    def nbytes(self) -> int:
        """Memory of the image, its coarser copies and the answers, in bytes."""
        return self.source.array.nbytes + self.source.array.size * 2

    def keep(self, key: bytes, mask: Mask) -> None:
        """Cache an answer; the oldest one is dropped."""
        self.answers[key] = mask
        while len(self.answers) > KEPT:
            self.answers.popitem(last=False)


class PromptableTask:
    """Segmentation of the prompted structure as label 1.

    Args:
        name: the model's name, for error messages.
        weights: the safetensors file.
        network: arguments of `Promptable`.
        description: one sentence for the annotator.
        version: the model version's name.
        optics: settings of adaptive zoom.
    """

    def __init__(
        self,
        *,
        name: str,
        weights: Path,
        network: Mapping[str, Any],
        description: str = "",
        version: str = "",
        optics: Optics = Optics(),  # noqa: B008
    ) -> None:
        self._name = name
        self._weights = weights
        self._config = {key: value for key, value in network.items() if key != "name"}
        self._description = description
        self._version = version
        self._optics = optics
        self._loading = threading.Lock()
        self._network: Promptable | None = None
        self._device = torch.device("cuda" if torch.cuda.is_available() else "cpu")

    @classmethod
    def from_version(cls, version: ModelVersion) -> Self:
        """Create the task that a model version's card describes."""
        return cls(
            name=version.name,
            weights=version.weights,
            network=version.card["network"],
            description=str(version.card.get("description", "")),
            version=version.version,
        )

    @property
    def info(self) -> TaskInfo:
        """The model's entry in `/info/`. It has no labels, since the mask is of any prompted structure."""
        return TaskInfo(
            type="deepgrow",
            labels={},
            dimension=3,
            description=self._description,
            version=self._version,
            config={"size": 0},
            drawings=True,
            ordered=True,
        )

    @property
    def version(self) -> str:
        """The model version's name."""
        return self._version

    def load(self) -> None:
        """Load the weights; later calls do nothing. Raises ModelBroken, naming the file."""
        with self._loading:
            if self._network is not None:
                return
            try:
                network = Promptable(**self._config)
                load_weights(network, self._weights)
            except (ModelBroken, TypeError) as error:
                raise ModelBroken(f"model {self._name!r}: {error}") from error
            network = network.requires_grad_(False).eval().to(self._device)
            self._network = channels_last(network)

    def prepare(self, volume: Volume) -> PreparedSource:
        """Take the image's first channel."""
        return PreparedSource(source_of(volume))

    def predict(self, prepared: PreparedSource, prompts: Prompts, config: Mapping[str, Any]) -> Prediction:
        """Segment the prompted structure. Raises BadRequest without any prompt for a structure."""
        *_, last = self.stages(prepared, prompts, config)
        return last

    def stages(
        self,
        prepared: PreparedSource,
        prompts: Prompts,
        config: Mapping[str, Any],  # noqa: ARG002
    ) -> Iterator[Prediction]:
        """Yield a coarse mask, then a fine one. Raises BadRequest without any prompt for a structure."""
        clock = StageClock()
        source = prepared.source
        steps, start = steps_of(prompts, source.spacing), start_of(prompts)
        if start is None and not any(marks.bounds() for marks in steps):
            raise BadRequest(f"model {self._name!r} needs a prompt: click on a structure, or draw a box")
        for outcome in self.answers(prepared, steps, start, prompts.sizes):
            labels = outcome.mask.whole(source.array.shape).view(np.uint8)
            clock.stage("infer")
            names = {"label_names": {prompts.label: 1}} if prompts.label else {}
            others = {"smaller": outcome.smaller, "larger": outcome.larger, "size": outcome.size}
            params = {**names, **others, "quality": round(outcome.quality, 3)}
            yield Prediction(labels=labels, params=params, seconds=clock.seconds)

    def answers(
        self, prepared: PreparedSource, steps: Sequence[Marks], start: Mask | None, sizes: Mapping[int, int]
    ) -> Iterator[Outcome]:
        """Coarse and fine answers to all prompts, computed from cached answers to earlier ones.

        Args:
            prepared: the image.
            steps: the prompts after each step, see `steps_of`.
            start: the mask to start from.
            sizes: as in `Prompts`.
        """
        source, kept = prepared.source, prepared.answers
        answered = [marks for marks in steps if marks.bounds() is not None or (start is not None and marks.denied())]
        answered = answered or [Marks()]
        chosen = [
            0 if _only_denies(marks, before) else sizes.get(len(marks.include), 0)
            for before, marks in itertools.pairwise([Marks(), *answered])
        ]
        keys = [b"" if start is None else start.inside.tobytes()]
        for marks, size in zip(answered, chosen, strict=True):
            keys.append(hashlib.blake2b(keys[-1] + marks.digest() + repr(size).encode(), digest_size=16).digest())
        known = [number for number in range(max(1, len(answered) - CHAIN), len(answered)) if keys[number] in kept]
        state, before, first = start, Marks(), max(0, len(answered) - CHAIN)
        if known:
            first = known[-1]
            state, before = kept[keys[first]], answered[first - 1]
        for marks, size, key in list(zip(answered, chosen, keys[1:], strict=True))[first:]:
            lessened = state if _only_denies(marks, before) else None
            told = marks.since(before)
            for outcome in outcomes(self._ask, source, marks, state, self._optics, size, told):
                if lessened is not None:
                    less = _less(outcome.mask, lessened, marks, source)
                    if outcome.quality < POOR and refuted(lessened, less, marks, told, source):
                        less = replace(less, inside=np.zeros_like(less.inside))
                    outcome = replace(outcome, mask=less)
                if marks is answered[-1]:
                    yield outcome
            state, before = outcome.mask, marks
            prepared.keep(key, state)

    def _ask(self, inputs: Floats) -> tuple[Floats, Floats, Floats]:
        cancellation.checkpoint()
        self.load()
        assert self._network is not None
        batch = torch.from_numpy(inputs).to(self._device).contiguous(memory_format=torch.channels_last_3d)
        with torch.inference_mode():
            logits, quality, length = self._network(batch)
        return logits.cpu().numpy(), torch.sigmoid(quality).cpu().numpy(), torch.exp(length).cpu().numpy()


def source_of(volume: Volume) -> Source:
    """The first channel of an image; values that are not a number become 0."""
    array = volume.array[0]
    finite = array.dtype.kind != "f" or bool(np.isfinite(array).all())
    return Source(array if finite else np.nan_to_num(array), geometry.spacing(volume.affine))


def _only_denies(marks: Marks, before: Marks) -> bool:
    """True if the prompts added since `before` only exclude voxels."""
    added = marks.since(before)
    return added.denied() and added.bounds() is None


def _less(mask: Mask, before: Mask, marks: Marks, source: Source) -> Mask:
    """The previous mask without those components of the difference to an answer that contain or touch excluded
    voxels.
    """
    kept = np.zeros_like(before.inside)
    overlap = [(max(a.start, b.start), min(a.stop, b.stop)) for a, b in zip(mask.region, before.region, strict=True)]
    if all(low < high for low, high in overlap):
        target = tuple(slice(lo - r.start, hi - r.start) for (lo, hi), r in zip(overlap, before.region, strict=True))
        origin = tuple(slice(lo - r.start, hi - r.start) for (lo, hi), r in zip(overlap, mask.region, strict=True))
        kept[target] = mask.inside[origin]
    parts, count = ndimage.label(before.inside & ~kept)
    denied = marks.off_structure()
    near = np.zeros_like(kept)
    near[tuple(before.indices(denied, source.spacing).T)] = True
    near = ndimage.binary_dilation(near, np.ones((3, 3, 3)))
    gone = np.zeros(count + 1, bool)
    gone[parts[near]] = True
    gone[0] = False
    return enforced(Mask(before.region, before.inside & ~gone[parts]), source, marks)
