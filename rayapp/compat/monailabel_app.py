"""`MONAILabelApp`: the base class of MONAI Label's apps."""

from __future__ import annotations

from collections.abc import Mapping
from types import ModuleType
from typing import Any

from rayapp.compat.ported_app import ported
from rayapp.compat.ported_datastore import Datastore


class MONAILabelApp:
    """An app. Its hooks are called when it is made; rayapp answers requests with what they return.

    Args:
        app_dir: The app's folder.
        studies: The studies folder, or the archive's address.
        conf: The server's `--conf` pairs.
        name, description, version: Shown in `/info/`.
        labels: Names of the structures.
    """

    PRE_TRAINED_PATH = "https://github.com/Project-MONAI/MONAILabel/releases/download/data"

    def __init__(
        self,
        app_dir: str,
        studies: str,
        conf: Mapping[str, str],
        name: str = "",
        description: str = "",
        version: str = "2.0",
        labels: Any = None,
        **_: Any,
    ) -> None:
        self.app_dir, self.studies, self.conf = app_dir, studies, dict(conf or {})
        self.name, self.description, self.version = name, description, version
        self.labels = labels
        self._datastore = self.init_datastore()
        self._infers = self.init_infers()
        self._trainers = self.init_trainers()
        self._strategies = self.init_strategies()
        self._scoring_methods = self.init_scoring_methods()

    @classmethod
    def as_label_app(cls, module: ModuleType) -> type[Any]:
        """The app as a subclass of `rayapp.app.LabelApp`."""
        return ported(cls, module)

    def init_infers(self) -> dict[str, Any]:
        """Hook: the models by name."""
        return {}

    def init_trainers(self) -> dict[str, Any]:
        """Hook: the trainers by name."""
        return {}

    def init_strategies(self) -> dict[str, Any]:
        """Hook: the strategies by name."""
        return {}

    def init_scoring_methods(self) -> dict[str, Any]:
        """Hook: the scoring methods by name."""
        return {}

    def init_datastore(self) -> Datastore:
        """rayapp's datastore; one of the app's own is not used."""
        return Datastore()

    def datastore(self) -> Datastore:
        """The datastore, in strategies and in `on_save_label`."""
        return self._datastore

    def on_init_complete(self) -> None:
        """Hook that rayapp does not call."""

    def on_save_label(self, image_id: str, label_id: str) -> None:
        """Hook: called after a label was saved."""
