"""`TaskConfig`: the models, trainers, strategies and scoring methods that an app makes together for one model."""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping
from typing import Any

from rayapp.compat.unavailable import Unavailable


class TaskConfig:
    """Base of an app's configs. One whose code fails leaves its model out, and the others are served.

    Attributes:
        name: The model's name.
        model_dir: Folder of the weights.
        conf: The server's `--conf` pairs.
        labels, path, network: What the config sets.
    """

    PRE_TRAINED_PATH = "https://github.com/Project-MONAI/MONAILabel/releases/download/data"

    def __init__(self) -> None:
        self.name = ""
        self.model_dir = ""
        self.conf: Mapping[str, str] = {}
        self.planner: Any = None
        self.labels: Any = None
        self.path: Any = None
        self.network: Any = None

    def __init_subclass__(cls, **arguments: Any) -> None:
        super().__init_subclass__(**arguments)
        fallbacks: dict[str, Callable[[BaseException], Any]] = {
            "init": lambda _: None,
            "infer": Unavailable.because,
            "trainer": lambda _: None,
            "strategy": lambda _: None,
            "scoring_method": lambda _: None,
        }
        for name, fallback in fallbacks.items():
            if name in vars(cls):
                setattr(cls, name, _guarded(vars(cls)[name], fallback))

    def init(self, name: str, model_dir: str, conf: Mapping[str, str], planner: Any, **arguments: Any) -> None:  # noqa: ARG002
        """Called once, with the model's name and the server's options."""
        self.name, self.model_dir, self.conf, self.planner = name, model_dir, conf, planner

    def infer(self) -> Any:
        """The model, or models by name."""
        return None

    def trainer(self) -> Any:
        """The trainer, if there is one."""
        return None

    def strategy(self) -> Any:
        """The strategy, or strategies by name."""
        return None

    def scoring_method(self) -> Any:
        """The scoring method, or methods by name."""
        return None


def _guarded(method: Callable[..., Any], fallback: Callable[[BaseException], Any]) -> Callable[..., Any]:
    @functools.wraps(method)
    def guarded(self: TaskConfig, *args: Any, **arguments: Any) -> Any:
        failed = vars(self).get("_failed")
        if failed is not None:
            return fallback(failed)
        try:
            return method(self, *args, **arguments)
        except Exception as error:
            if method.__name__ == "init":
                vars(self)["_failed"] = error
            return fallback(error)

    return guarded
