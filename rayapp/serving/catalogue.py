"""The catalogue: the app and its model versions, for the gateway and for jobs.

It holds the app object, the model store and the datastore, so that app code never runs in the gateway, strategies call
the datastore directly, and versions are published by one owner. Methods may be called from several threads.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from rayapp.active_learning.scoring_methods import ScoringPlan, plan_of
from rayapp.app import app_traceback
from rayapp.app.app_loader import app_class
from rayapp.app.app_traceback import run_hook
from rayapp.config import Settings
from rayapp.datastore.interfaces import Datastore
from rayapp.errors import AppBroken, ModelBroken, NotFound, RayappError, Unreadable
from rayapp.jobs.training_job import OPTIONS
from rayapp.models.store import ModelStore, ModelVersion, check_weights
from rayapp.models.weights import convert_weights, is_torch
from rayapp.responses import Versions

logger = logging.getLogger(__name__)


class Catalogue:
    """One app over one datastore and one model store."""

    def __init__(self, settings: Settings, datastore: Datastore) -> None:
        self._settings = settings
        self._datastore = datastore
        self._models = ModelStore.of(settings)
        self._changing = threading.Lock()
        self._load()

    def reload(self) -> None:
        """Reload the app here and in every replica, and check that the weights of every model load.

        Raises:
            AppBroken: If the new code fails; everything is then served as before.
        """
        with self._changing:
            self._load()
            self._models.note_reload()

    def _load(self) -> None:
        cls = app_class(self._settings)
        run_hook(cls.app_dir, cls.install, settings=self._settings, models=self._models)
        app = cls.of(self._settings)
        app.datastore = self._datastore
        app.load_all()
        self._app = app

    def describe(self) -> dict[str, Any]:
        """The response of `/info/` without the parts of the datastore and of the jobs."""
        description = self._app.info()
        for trainer in description["trainers"].values():
            trainer["config"] = {**OPTIONS, **trainer["config"]}
        return description

    def next_image(self, strategy: str, request: Mapping[str, Any]) -> dict[str, Any]:
        """Let a strategy choose the next image; `{}` if none is left. Raises NotFound for an unknown strategy."""
        return self._app.next_image(strategy, request, self._datastore)

    def scoring_plan(self, name: str, request: Mapping[str, Any]) -> ScoringPlan:
        """Plan a scoring; see `rayapp.active_learning.scoring_methods.plan_of`."""
        app = self._app
        return plan_of(name, request, methods=app.scoring, infers=app.infers, serving=app.serving)

    def label_saved(self, image_id: str, tag: str) -> dict[str, Any]:
        """Call the app's hook after a save. Raises AppBroken, without the error's text, if it fails."""
        try:
            return dict(self._app.on_save_label(image_id, tag) or {})
        except RayappError:
            raise
        except Exception as error:
            at = app_traceback.location(error, self._app.app_dir)
            logger.error("on_save_label failed with %s at %s", type(error).__name__, at or "its call")
            raise AppBroken(f"on_save_label failed with {type(error).__name__}") from error

    def production(self, name: str) -> ModelVersion:
        """The version in production. Raises NotFound if there is none."""
        version = self._models.production(name)
        if version is None:
            raise NotFound(f"model {name!r} has no published version")
        return version

    def models(self) -> dict[str, Versions]:
        """Versions by model."""
        return {name: self._versions(name) for name in self._models.names()}

    def _versions(self, name: str) -> Versions:
        versions = [_version_info(self._models.version(name, version)) for version in self._models.versions(name)]
        return Versions(production=self._models.serving(name), versions=versions)

    def upload(self, name: str, weights: Path, card: Mapping[str, Any], *, request: str) -> ModelVersion:
        """Publish weights that a user uploaded, with the settings of the version in production.

        Args:
            name: the model.
            weights: safetensors or a torch file; the latter is converted here, since the gateway has no torch.
            card: added to the settings.
            request: see `publish`.

        Raises:
            NotFound: no version is in production, so there are no settings for the weights.
            TooLarge: a torch file unpacks to more than `max_body` bytes.
            Unreadable: the weights do not fit the model's network; production stays as it was.
        """
        settings = {key: value for key, value in self.production(name).card.items() if key not in _OF_ONE_VERSION}
        if not is_torch(weights):
            return self.publish(name, weights, {**settings, **card}, request=request)
        tensors = weights.with_name(weights.name + ".safetensors")
        try:
            convert_weights(weights, tensors, self._settings.max_body)
            return self.publish(name, tensors, {**settings, **card}, request=request)
        finally:
            tensors.unlink(missing_ok=True)

    def publish(
        self,
        name: str,
        weights: Path,
        card: Mapping[str, Any],
        *,
        request: str,
        promote: bool = True,
        expected: str | None = None,
    ) -> ModelVersion:
        """Publish weights as a model's next version.

        Args:
            name: the model.
            weights: safetensors.
            card: the version's settings, metrics and so on.
            request: id of the request; a repeated one publishes nothing new.
            promote: also promote the version to production.
            expected: promote it only if this version is in production ("" for none); None promotes it in any case. If
                another version is in production, the card's `verdict` says so.

        Raises:
            NotFound: the app has no such model.
            Unreadable: the weights do not fit the model's network; production stays as it was.
        """
        check_weights(weights)
        with self._changing:
            self._try(ModelVersion(name=name, version="candidate", weights=weights, card=card))
            serving = self._models.serving(name) or ""
            if promote and expected not in (None, serving):
                why = f"kept and not promoted: {serving or 'no version'} was put into production meanwhile"
                promote, card = False, {**card, "verdict": {**card.get("verdict", {}), "promoted": False, "why": why}}
            version = self._models.publish(name, weights, card, request=request, promote=promote)
            self._renew(load=False)
            return version

    def promote(self, name: str, version: str) -> ModelVersion:
        """Promote a version to production. Raises NotFound, and Unreadable if its weights do not load."""
        with self._changing:
            chosen = self._models.version(name, version)
            self._try(chosen)
            self._models.promote(name, version)
            self._renew(load=False)
            return chosen

    def rollback(self, name: str, *, leaving: str) -> ModelVersion:
        """Return to the version that was in production before `leaving`.

        Nothing changes if `leaving` is not in production any more, so that the call may be repeated.

        Raises:
            Conflict: no version was in production before.
        """
        with self._changing:
            if self._models.serving(name) == leaving:
                self._models.rollback(name)
                self._renew()
            return self.production(name)

    def retire(self, name: str) -> None:
        """Remove the model from production; its versions stay. Raises NotFound if none was in production."""
        with self._changing:
            self._models.retire(name)
            self._renew()

    def _try(self, version: ModelVersion) -> None:
        try:
            self._app.make_task(version).load()
        except ModelBroken as error:
            raise Unreadable(error.detail) from error

    def _renew(self, *, load: bool = True) -> None:
        """Adopt the versions in production. A version whose weights were just checked is not loaded again, since no
        model runs here.
        """
        self._app = self._app.renewed(load=load)


_SHOWN = ("parent", "created", "metrics", "data", "params", "code", "job", "uploaded_by", "verdict")
_OF_ONE_VERSION = frozenset({*_SHOWN, "request", "trained"})
"""Keys of a card that describe its weights, as opposed to their use."""


def _version_info(version: ModelVersion) -> dict[str, Any]:
    return {"version": version.version, **{key: version.card[key] for key in _SHOWN if key in version.card}}
