"""The base classes of an app's tasks, as MONAI Label's apps extend them."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from enum import StrEnum
from typing import Any


class InferType(StrEnum):
    """Kinds of models, as clients know them."""

    SEGMENTATION = "segmentation"
    ANNOTATION = "annotation"
    CLASSIFICATION = "classification"
    DEEPGROW = "deepgrow"
    DEEPEDIT = "deepedit"
    SCRIBBLES = "scribbles"
    DETECTION = "detection"
    OTHERS = "others"


class InferTask(ABC):
    """A model.

    Args:
        type: Its kind.
        labels: Structure names, or name to value.
        dimension: 3 for volumes, 2 for slices.
        description: One line for people.
        config: Options of a request, with their defaults.
    """

    def __init__(
        self,
        type: str | InferType,
        labels: str | Sequence[str] | Mapping[Any, Any] | None,
        dimension: int,
        description: str,
        config: Mapping[str, Any] | None = None,
    ) -> None:
        self.type = type
        self.labels: Any = [] if labels is None else [labels] if isinstance(labels, str) else labels
        self.dimension = dimension
        self.description = description
        self._config: dict[str, Any] = dict(config or {})

    def info(self) -> dict[str, Any]:
        """The model's entry in `/info/`."""
        return {
            "type": self.type,
            "labels": self.labels,
            "dimension": self.dimension,
            "description": self.description,
            "config": self.config(),
        }

    def config(self) -> dict[str, Any]:
        """The options of a request, with their defaults."""
        return self._config

    def get_path(self, validate: bool = True) -> str | None:  # noqa: ARG002
        """The file of the weights, if there is one."""
        return None

    def is_valid(self) -> bool:
        """True if the model can answer."""
        return True

    @abstractmethod
    def __call__(self, request: dict[str, Any]) -> tuple[str | None, dict[str, Any]]:
        """Answer one request: the file of the mask, and the reply's params."""


class TrainTask(ABC):
    """A trainer.

    Args:
        description: One line for people.
    """

    def __init__(self, description: str | None) -> None:
        self.description = description or ""

    def info(self) -> dict[str, Any]:
        """The trainer's entry in `/info/`."""
        return {"description": self.description, "config": self.config(), "stats": self.stats()}

    def config(self) -> dict[str, Any]:
        """The options of a request, with their defaults."""
        return {}

    def stats(self) -> dict[str, Any]:
        """Statistics of the last training."""
        return {}

    @abstractmethod
    def __call__(self, request: dict[str, Any], datastore: Any) -> Any:
        """Train."""


class _Described:
    """A choice of the app with a line about it.

    Args:
        description: One line for people.
    """

    def __init__(self, description: str) -> None:
        self.description = description

    def info(self) -> dict[str, Any]:
        """The entry in `/info/`."""
        return {"description": self.description}


class Strategy(_Described, ABC):
    """An active learning strategy; see `_Described` for its argument."""

    @abstractmethod
    def __call__(self, request: dict[str, Any], datastore: Any) -> dict[str, Any] | None:
        """The chosen image, as `{"id": …}`; None if there is none."""


class ScoringMethod(_Described, ABC):
    """A scoring method; see `_Described` for its argument."""

    @abstractmethod
    def __call__(self, request: dict[str, Any], datastore: Any) -> Any:
        """Score the datastore's images, and record the scores in their infos."""
