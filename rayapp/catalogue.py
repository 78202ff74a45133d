"""Catalogue: the app as the gateway sees it: what it offers, which image is next, what to do after a save.

It holds the app object and the datastore, so that a strategy runs beside the data and app code never runs in the
gateway. Methods are thread-safe as far as the app's own hooks are.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from rayapp.app import load_app
from rayapp.config import Settings
from rayapp.datastore.protocol import Datastore
from rayapp.models.store import ModelStore


class Catalogue:
    """One app over one datastore."""

    def __init__(self, settings: Settings, datastore: Datastore) -> None:
        self._settings = settings
        self._datastore = datastore
        self._models = ModelStore(settings.workspace / "models")
        self.reload()

    def reload(self) -> None:
        """Make the app anew (models added or removed since are seen), and check that every model's file loads."""
        self._app = load_app(self._settings, self._models)
        self._app.load_all()

    def describe(self) -> dict[str, Any]:
        """`/info/` without the datastore's part."""
        return self._app.describe()

    def next_image(self, strategy: str, request: Mapping[str, Any]) -> dict[str, Any]:
        """The next image for this request; `{}` when none is left. Raises NotFound for an unknown strategy."""
        return self._app.next_image(strategy, request, self._datastore)

    def label_saved(self, image_id: str, tag: str) -> dict[str, Any]:
        """The app's hook after a save."""
        return dict(self._app.on_save_label(image_id, tag))
