"""Active learning strategies: each chooses the image that is labelled next.

A strategy chooses among the images that the datastore offers. The datastore leases the chosen image, so that annotators
who ask at the same moment get different images (`LabelApp.next_image`). Strategies are stateless and thread-safe.
"""

from __future__ import annotations

import random
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Protocol

from rayapp.datastore.interfaces import Datastore, Order
from rayapp.protocol import FINAL, checked_name

TTA, EPISTEMIC = "tta", "epistemic"
"""Names of scoring methods, and of the scores that they give."""
FOREGROUND = "foreground"
"""Name of the score that is the predicted foreground volume, in millilitres."""
CLASS_ENTROPY = "entropy:"
"""Prefix of scores that are the mean entropy in the region of one structure; the structure's name follows."""
HOLDER = "holder"
"""Key of a request: the client that asks. Images leased to other clients are not offered to it."""


@dataclass(frozen=True, kw_only=True)
class Pick:
    """A strategy's choice.

    Attributes:
        image_id: The chosen image.
        extras: Fields to add to the reply; plain JSON.
    """

    image_id: str
    extras: Mapping[str, Any] = field(default_factory=dict)


class Strategy(Protocol):
    """A strategy of active learning."""

    @property
    def description(self) -> str:
        """One line for people, which `/info/` shows."""

    def __call__(self, request: Mapping[str, Any], datastore: Datastore) -> Pick | None:
        """Choose the next image.

        The candidates are the images without a label under the request's `label_tag` (by default `final`) that are not
        leased to a client other than the request's `holder`. Pass both to the datastore.

        Args:
            request: The client's options, with `holder`.
            datastore: The datastore.

        Returns:
            The choice, or None when no image is left.
        """


@dataclass(frozen=True)
class _Ordered:
    """A strategy that is one query of the datastore, so that its cost does not grow with the number of images."""

    description: str
    order: Order

    def __call__(self, request: Mapping[str, Any], datastore: Datastore) -> Pick | None:
        ids = datastore.unlabeled(tag=_tag(request), order=self.order, limit=1, holder=request.get(HOLDER))
        return Pick(image_id=ids[0]) if ids else None


class First(_Ordered):
    """Unlabelled images in the order of their ids; the sequential strategy of the MONAI Label paper."""

    def __init__(self) -> None:
        super().__init__("First unlabelled image by name", "first")


class Last(_Ordered):
    """Unlabelled images in the reverse order of their ids."""

    def __init__(self) -> None:
        super().__init__("Last unlabelled image by name", "last")


class Random(_Ordered):
    """Unlabelled images at random, with a probability that grows with the time since an image was last handed out."""

    def __init__(self) -> None:
        super().__init__("Random unlabelled image, preferring those not handed out for long", "age")


@dataclass(frozen=True)
class ByScore:
    """Unlabelled images by a score.

    Images that lack the score are sampled at random, in proportion to their number: always before the first scoring,
    and later often enough that no new image is neglected.

    Attributes:
        description: One line for people.
        score: Name of the score.
        power: None takes the image with the highest score; a number samples images with a probability proportional to
            score ** power.
    """

    description: str
    score: str
    power: float | None = None

    def __call__(self, request: Mapping[str, Any], datastore: Datastore) -> Pick | None:
        tag, holder = _tag(request), request.get(HOLDER)
        ranked = datastore.ranked(self.score, tag=tag, power=self.power, limit=1, holder=holder)
        if ranked.ids and random.random() < ranked.known:
            return Pick(image_id=ranked.ids[0], extras={"scored_by": self.score})
        return _RANDOM(request, datastore)


class ForegroundRandom(ByScore):
    """Random images among those with predicted foreground: a strong baseline (nnActive, 2025)."""

    def __init__(self) -> None:
        super().__init__("Random unlabelled image in which the model predicts a structure", FOREGROUND, power=0.0)


@dataclass(frozen=True)
class ClassEntropy:
    """A random structure, then an image by the entropy in that structure's region, with power noise.

    Sampling by structure keeps a difficult structure from displacing the others, and the noise keeps a few outliers
    from being chosen each time (after ClaSP PE, 2026).
    """

    description: str = "Entropy in the region of a random structure, with noise"
    power: float = 2.0

    def __call__(self, request: Mapping[str, Any], datastore: Datastore) -> Pick | None:
        names = [name for name in datastore.score_names() if name.startswith(CLASS_ENTROPY)]
        if not names:
            return _RANDOM(request, datastore)
        return ByScore(self.description, random.choice(names), self.power)(request, datastore)


@dataclass(frozen=True)
class Diverse:
    """The image least similar to the labelled ones, among the most uncertain images.

    A step of the greedy core set (Sener and Savarese, 2018) on candidates chosen by uncertainty (Yang et al.,
    "Suggestive Annotation", 2017).

    Attributes:
        description: One line for people.
        candidates: Number of most uncertain images to choose from.
        against: Number of most recently labelled images that candidates are compared with.
    """

    description: str = "Uncertain, and unlike the images labelled so far"
    candidates: int = 64
    against: int = 1000

    def __call__(self, request: Mapping[str, Any], datastore: Datastore) -> Pick | None:
        tag, holder = _tag(request), request.get(HOLDER)
        for score in (EPISTEMIC, TTA):
            ranked = datastore.ranked(score, tag=tag, limit=self.candidates, holder=holder)
            if ranked.ids and random.random() < ranked.known:
                farthest = datastore.farthest(ranked.ids, against=self.against)
                return Pick(image_id=farthest or ranked.ids[0], extras={"scored_by": score})
        return _RANDOM(request, datastore)


def strategies() -> dict[str, Strategy]:
    """The strategies that every app has, by name."""
    return {
        "first": First(),
        "last": Last(),
        "random": _RANDOM,
        "foreground_random": ForegroundRandom(),
        TTA: ByScore("Highest uncertainty by test-time augmentation (aleatoric)", TTA),
        EPISTEMIC: ByScore("Highest uncertainty by Monte Carlo dropout (epistemic)", EPISTEMIC),
        "entropy": ClassEntropy(),
        "diverse": Diverse(),
    }


_RANDOM = Random()


def _tag(request: Mapping[str, Any]) -> str:
    return checked_name(str(request.get("label_tag") or FINAL), "label_tag")
