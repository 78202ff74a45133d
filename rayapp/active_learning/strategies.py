"""Strategies: which image an annotator gets next.

They choose among what the datastore offers; that two annotators who ask at once get two images is the datastore's
business (`LabelApp.next_image`). Stateless: any number of threads may ask at once.
"""

from __future__ import annotations

import random
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Protocol

from rayapp.datastore.interfaces import Datastore, Order
from rayapp.protocol import FINAL, checked_name

TTA, EPISTEMIC = "tta", "epistemic"
"""Scoring methods, and the names of what they score images with."""
FOREGROUND = "foreground"
"""The score that says how much of anything the model finds, in millilitres."""
CLASS_ENTROPY = "entropy:"
"""Scores of this name with a structure's behind say how uncertain the model is where that structure may be."""
HOLDER = "holder"
"""In a request: who asks. Images that others hold are not for them."""


@dataclass(frozen=True, kw_only=True)
class Pick:
    """The image chosen, and what the reply should say besides."""

    image_id: str
    extras: Mapping[str, Any] = field(default_factory=dict)


class Strategy(Protocol):
    """Chooses among the images that lack a label under the request's `label_tag` (default `final`) and that nobody but
    the request's `holder` holds: pass both on to the datastore."""

    @property
    def description(self) -> str:
        """What `/info/` says of it."""

    def __call__(self, request: Mapping[str, Any], datastore: Datastore) -> Pick | None:
        """The next image; None when nothing is left."""


@dataclass(frozen=True)
class _Ordered:
    """A strategy that the store answers by itself, so that it costs the same at 100 and at 100,000 images."""

    description: str
    order: Order

    def __call__(self, request: Mapping[str, Any], datastore: Datastore) -> Pick | None:
        ids = datastore.unlabeled(tag=_tag(request), order=self.order, limit=1, holder=request.get(HOLDER))
        return Pick(image_id=ids[0]) if ids else None


class First(_Ordered):
    """The paper's sequence: unlabelled images in the order of their ids."""

    def __init__(self) -> None:
        super().__init__("First unlabelled image, in the order of the names", "first")


class Last(_Ordered):
    """The sequence backwards."""

    def __init__(self) -> None:
        super().__init__("Last unlabelled image, in the order of the names", "last")


class Random(_Ordered):
    """Unlabelled images at random, the longer ago one was handed out the likelier."""

    def __init__(self) -> None:
        super().__init__("Random unlabelled image, those not seen for long more often", "age")


@dataclass(frozen=True)
class ByScore:
    """Unlabelled images by the score of one name, the highest or, with `power`, drawn with a chance that goes with
    score ** power.

    Images without the score come too, at random and as often as there are of them: before anything was scored that is
    always, and later no new image waits for ever.
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
    """Random among the images in which the model finds anything: the baseline to beat (nnActive, 2025)."""

    def __init__(self) -> None:
        super().__init__("Random unlabelled image in which the model finds something", FOREGROUND, power=0.0)


@dataclass(frozen=True)
class ClassEntropy:
    """A structure by turns of chance, then an image by the entropy where that structure may be, with power noise.

    So no structure is forgotten for another that is harder everywhere, and noise keeps one odd image from crowding out
    the rest (the idea of ClaSP PE, 2026).
    """

    description: str = "Entropy where one structure may be, the structures in turn, with noise"
    power: float = 2.0

    def __call__(self, request: Mapping[str, Any], datastore: Datastore) -> Pick | None:
        names = [name for name in datastore.score_names() if name.startswith(CLASS_ENTROPY)]
        if not names:
            return _RANDOM(request, datastore)
        return ByScore(self.description, random.choice(names), self.power)(request, datastore)


@dataclass(frozen=True)
class Diverse:
    """Of the images that are most uncertain the one that looks least like any that was labelled: a step of the greedy
    core set (Sener and Savarese 2018) among candidates by uncertainty (Yang et al., Suggestive Annotation, 2017)."""

    description: str = "Uncertain, and unlike what was labelled so far"
    candidates: int = 64
    against: int = 1000
    """Images, the last ones labelled, that candidates are compared with."""

    def __call__(self, request: Mapping[str, Any], datastore: Datastore) -> Pick | None:
        tag, holder = _tag(request), request.get(HOLDER)
        for score in (EPISTEMIC, TTA):
            ranked = datastore.ranked(score, tag=tag, limit=self.candidates, holder=holder)
            if ranked.ids and random.random() < ranked.known:
                unlike = datastore.farthest(ranked.ids, against=self.against)
                return Pick(image_id=unlike or ranked.ids[0], extras={"scored_by": score})
        return _RANDOM(request, datastore)


def strategies() -> dict[str, Strategy]:
    """Those that every app has, by name."""
    return {
        "first": First(),
        "last": Last(),
        "random": _RANDOM,
        "foreground_random": ForegroundRandom(),
        TTA: ByScore("Most uncertain over views of the same image (aleatoric)", TTA),
        EPISTEMIC: ByScore("Most uncertain over networks by dropout (epistemic)", EPISTEMIC),
        "entropy": ClassEntropy(),
        "diverse": Diverse(),
    }


_RANDOM = Random()


def _tag(request: Mapping[str, Any]) -> str:
    return checked_name(str(request.get("label_tag") or FINAL), "label_tag")
