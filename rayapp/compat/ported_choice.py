"""An app's strategies and scoring methods, as rayapp's."""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from typing import Any

from rayapp.active_learning.scoring_methods import Case, Score
from rayapp.active_learning.strategies import HOLDER, Pick
from rayapp.compat.ported_datastore import Datastore, OneImage
from rayapp.datastore import interfaces
from rayapp.errors import AppBroken
from rayapp.inference.infer_task import InferTask


class PortedStrategy:
    """A strategy of the app.

    Args:
        strategy: Called with the request and the datastore.
        name: Its name.
    """

    def __init__(self, strategy: Any, name: str) -> None:
        self._strategy, self._name = strategy, name
        self.description = str(getattr(strategy, "description", "") or name)

    def __call__(self, request: Mapping[str, Any], datastore: interfaces.Datastore) -> Pick | None:
        """See `rayapp.active_learning.strategies.Strategy`."""
        chosen = self._strategy(dict(request), Datastore(datastore, holder=request.get(HOLDER)))
        if not chosen:
            return None
        if not isinstance(chosen, Mapping) or "id" not in chosen:
            raise AppBroken(f"strategy {self._name!r} must return {{'id': …}} or None, not {chosen!r:.80}")
        extras = {key: value for key, value in chosen.items() if key not in ("id", "path")}
        return Pick(image_id=str(chosen["id"]), extras=extras)


class PortedScoring:
    """A scoring method of the app, which sees one image at a time.

    Args:
        method: Called with the request and a datastore of that one image.
        name: Its name.
    """

    images: interfaces.Labelled = "all"
    needs_model = False

    def __init__(self, method: Any, name: str) -> None:
        self._method = method
        self.description = str(getattr(method, "description", "") or name)
        info = method.info() if callable(getattr(method, "info", None)) else {}
        self.config: Mapping[str, Any] = dict(info.get("config") or {}) if isinstance(info, Mapping) else {}

    def score(self, case: Case, options: Mapping[str, Any], task: InferTask | None) -> Score | None:  # noqa: ARG002
        """See `rayapp.active_learning.scoring_methods.ScoringMethod`; numbers in the infos become scores."""
        store = OneImage(case)
        self._method(dict(options), store)
        if not store.image_infos and not store.label_infos:
            return None
        numbers = {
            key: float(value)
            for key, value in store.image_infos.items()
            if isinstance(value, (int, float)) and not isinstance(value, bool)
        }
        first = next(iter(numbers.values()), None)
        return Score(
            values=numbers,
            info=store.image_infos,
            label_infos=store.label_infos,
            columns={} if first is None else {"score": first},
        )


def is_native(thing: Any, method: str) -> bool:
    """True for an object that already follows rayapp's protocol, as it has this method."""
    return inspect.isroutine(getattr(thing, method, None))
