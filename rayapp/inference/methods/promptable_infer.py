"""PromptableTask: any structure of any image, from the first click, by the network that ships.

The answer to prompts is found by adaptive zoom (`rayapp.inference.zoom`). Prompts for the structure are answered in
their order, each from the answer before; those for what is not the structure are answered last and only take away. So
the same prompts have the same answer, whichever replica gives it; answers on the way are kept with the image.
"""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
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
from rayapp.inference.zoom.glance import Mask
from rayapp.inference.zoom.lowering import marks_of, start_of
from rayapp.inference.zoom.marks import Marks
from rayapp.inference.zoom.view import Floats, Source
from rayapp.inference.zoom.zoom import Optics, Outcome, enforced, outcomes
from rayapp.models.networks import load_weights
from rayapp.models.promptable import Promptable, channels_last
from rayapp.models.store import ModelVersion

CHAIN = 6
"""Prompts, at most, that are answered one after the other; those before are answered together."""
KEPT = 24
"""Answers kept with an image."""


@dataclass(frozen=True)
class PreparedSource:
    """An image to look at, and the answers that were given on it."""

    source: Source
    answers: OrderedDict[bytes, Mask] = field(default_factory=OrderedDict)

    @property
    def nbytes(self) -> int:
        """Bytes of the image, its coarser copies, and answers."""
        return self.source.array.nbytes + self.source.array.size * 2

    def keep(self, key: bytes, mask: Mask) -> None:
        """Remember an answer; the oldest is forgotten."""
        self.answers[key] = mask
        while len(self.answers) > KEPT:
            self.answers.popitem(last=False)


class PromptableTask:
    """The structure that is pointed at, as label 1.

    Args:
        name: the model's name, for messages.
        weights: the safetensors file.
        network: arguments of `Promptable`.
        description: what clients show.
        version: the model version's name.
        optics: how to look.
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
        """The task of a model version, by its card."""
        return cls(
            name=version.name,
            weights=version.weights,
            network=version.card["network"],
            description=str(version.card.get("description", "")),
            version=version.version,
        )

    @property
    def info(self) -> TaskInfo:
        """What `/info/` shows. No labels of its own: the mask is of whatever was pointed at."""
        return TaskInfo(
            type="deepgrow",
            labels={},
            dimension=3,
            description=self._description,
            version=self._version,
            config={"size": 0},
            drawings=True,
        )

    @property
    def version(self) -> str:
        """The model version."""
        return self._version

    def load(self) -> None:
        """Load the weights, once. Raises ModelBroken naming the file."""
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
        """The image's first channel."""
        return PreparedSource(source_of(volume))

    def predict(self, prepared: PreparedSource, prompts: Prompts, config: Mapping[str, Any]) -> Prediction:
        """Segment what was pointed at. Raises BadRequest without any prompt for a structure."""
        *_, last = self.stages(prepared, prompts, config)
        return last

    def stages(
        self,
        prepared: PreparedSource,
        prompts: Prompts,
        config: Mapping[str, Any],  # noqa: ARG002
    ) -> Iterator[Prediction]:
        """Segment coarsely, then finely. Raises BadRequest without any prompt for a structure."""
        clock = StageClock()
        source = prepared.source
        marks, start = marks_of(prompts, source.spacing), start_of(prompts)
        if marks.bounds() is None and start is None:
            raise BadRequest(f"model {self._name!r} segments what is pointed at: click on a structure, or draw a box")
        for outcome in self.answers(prepared, marks, start, prompts.sizes):
            labels = outcome.mask.whole(source.array.shape).astype(np.uint8)
            clock.stage("infer")
            names = {"label_names": {prompts.label: 1}} if prompts.label else {}
            others = {"smaller": outcome.smaller, "larger": outcome.larger, "size": outcome.size}
            params = {**names, **others, "quality": round(outcome.quality, 3)}
            yield Prediction(labels=labels, params=params, seconds=clock.seconds)

    def answers(
        self, prepared: PreparedSource, marks: Marks, start: Mask | None, sizes: Mapping[int, int]
    ) -> Iterator[Outcome]:
        """Coarse and fine answers to all prompts, from the kept answers to fewer; `sizes` is as of `Prompts`."""
        source = prepared.source
        count = len(marks.include)
        first = max(1, count - CHAIN + 1)
        state = start
        for number in [*range(first, count), count] if count else [0]:
            part = marks.copy()
            part.include = marks.include[:number]
            part.exclude, part.erasers = [], []
            last = number == count
            chosen = {clicks: size for clicks, size in sizes.items() if clicks <= number}
            key = _key(part, start) + repr(sorted(chosen.items())).encode()
            kept = prepared.answers.get(key)
            if kept is not None and not (last and not _denied(marks)):
                state = kept
                continue
            if part.bounds() is None and (state is None or _denied(marks)):
                continue
            outcome = None
            for outcome in outcomes(self._ask, source, part, state, self._optics, chosen.get(number, 0)):
                if last and not _denied(marks):
                    yield outcome
            assert outcome is not None
            state = outcome.mask
            prepared.keep(key, state)
        if not _denied(marks) or state is None:
            return
        for outcome in outcomes(self._ask, source, marks, state, self._optics):
            yield Outcome(_less(outcome.mask, state, marks, source), outcome.quality)

    def _ask(self, inputs: Floats) -> tuple[Floats, Floats, Floats]:
        cancellation.checkpoint()
        self.load()
        assert self._network is not None
        batch = torch.from_numpy(inputs).to(self._device).contiguous(memory_format=torch.channels_last_3d)
        with torch.inference_mode():
            logits, quality, length = self._network(batch)
        return logits.cpu().numpy(), torch.sigmoid(quality).cpu().numpy(), torch.exp(length).cpu().numpy()


def source_of(volume: Volume) -> Source:
    """An image's first channel to look at, 0 where a voxel is no number."""
    array = volume.array[0]
    finite = array.dtype.kind != "f" or bool(np.isfinite(array).all())
    return Source(array if finite else np.nan_to_num(array), geometry.spacing(volume.affine))


def _denied(marks: Marks) -> bool:
    """Whether anything is said not to be the structure."""
    return bool(marks.exclude or marks.erasers)


def _less(mask: Mask, before: Mask, marks: Marks, source: Source) -> Mask:
    """The mask before without the parts that an answer has not and that hold, or touch, what is denied."""
    kept = np.zeros_like(before.inside)
    overlap = [(max(a.start, b.start), min(a.stop, b.stop)) for a, b in zip(mask.region, before.region, strict=True)]
    if all(low < high for low, high in overlap):
        target = tuple(slice(lo - r.start, hi - r.start) for (lo, hi), r in zip(overlap, before.region, strict=True))
        origin = tuple(slice(lo - r.start, hi - r.start) for (lo, hi), r in zip(overlap, mask.region, strict=True))
        kept[target] = mask.inside[origin]
    parts, count = ndimage.label(before.inside & ~kept)
    denied = np.concatenate([np.reshape(p, (-1, 3)) for p in (*marks.exclude, *marks.erasers)])
    near = np.zeros_like(kept)
    near[tuple(before.indices(denied, source.spacing).T)] = True
    near = ndimage.binary_dilation(near, np.ones((3, 3, 3)))
    gone = np.zeros(count + 1, bool)
    gone[parts[near]] = True
    gone[0] = False
    return enforced(Mask(before.region, before.inside & ~gone[parts]), source, marks)


def _key(marks: Marks, start: Mask | None) -> bytes:
    parts = [repr(marks.boxes).encode(), b"" if start is None else start.inside.tobytes()]
    for group in (marks.include, marks.strokes):
        parts += [b"|", *(np.ascontiguousarray(points).tobytes() for points in group)]
    parts += [repr((lasso.axis, lasso.at)).encode() + lasso.curve.tobytes() for lasso in marks.lassos]
    return b"/".join(parts)
