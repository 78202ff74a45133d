"""Catalogue: the app and its model versions as the gateway sees them.

It holds the app object, the model store and the datastore, so that app code never runs in the gateway, a strategy
asks the datastore directly, and one owner publishes versions. Calls may come from several threads.
"""

from __future__ import annotations

import threading
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from rayapp.app import app_class
from rayapp.config import Settings
from rayapp.datastore.protocol import Datastore
from rayapp.errors import ModelBroken, NotFound, Unreadable
from rayapp.models.store import ModelStore, ModelVersion


class Catalogue:
    """One app over one datastore and one model store."""

    def __init__(self, settings: Settings, datastore: Datastore) -> None:
        self._settings = settings
        self._datastore = datastore
        self._models = ModelStore.of(settings)
        self._changing = threading.Lock()
        self.reload()

    def reload(self) -> None:
        """Make the app anew, and check that every model's file loads."""
        cls = app_class(self._settings)
        cls.install(self._settings, self._models)
        app = cls(settings=self._settings, models=self._models)
        app.load_all()
        self._app = app

    def describe(self) -> dict[str, Any]:
        """`/info/` without the datastore's part."""
        return self._app.describe()

    def next_image(self, strategy: str, request: Mapping[str, Any]) -> dict[str, Any]:
        """The next image for this request; `{}` when none is left. Raises NotFound for an unknown strategy."""
        return self._app.next_image(strategy, request, self._datastore)

    def label_saved(self, image_id: str, tag: str) -> dict[str, Any]:
        """The app's hook after a save."""
        return dict(self._app.on_save_label(image_id, tag))

    def production(self, name: str) -> ModelVersion:
        """The version that serves. Raises NotFound if none does."""
        found = self._models.production(name)
        if found is None:
            raise NotFound(f"model {name!r} has no published version")
        return found

    def publish(self, name: str, weights: Path, card: Mapping[str, Any]) -> ModelVersion:
        """Make `weights` the serving version of a model that the app knows, with the last card's settings under `card`.

        Raises:
            NotFound: if the app has no such model.
            Unreadable: if the file does not fit the model's network; the version before serves on.
        """
        with self._changing:
            current = self.production(name)
            merged = {**current.card, **card}
            candidate = ModelVersion(name=name, version="candidate", weights=weights, card=merged)
            try:
                self._app.make_task(candidate).load()
            except ModelBroken as error:
                raise Unreadable(error.detail) from error
            version = self._models.publish(name, weights, merged)
            self.reload()
            return version

    def retire(self, name: str) -> None:
        """Let no version serve. Raises NotFound if none did."""
        with self._changing:
            self._models.retire(name)
            self.reload()
