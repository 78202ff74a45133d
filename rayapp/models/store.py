"""ModelStore: immutable model versions on disk, and the alias `production` that moves between them.

Layout: `<root>/<name>/<version>/model.safetensors` with `card.json` beside it, and `<root>/<name>/production`, a file
with the history of versions in production, one per line, the current one last. A version appears by one rename and the
alias moves by one rename, so readers in any process see either the old or the new state. Versions are numbered `v1`,
`v2`, …; only one process writes.
"""

from __future__ import annotations

import hashlib
import json
import re
import secrets
import shutil
import tempfile
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open

from rayapp.config import Settings
from rayapp.errors import Conflict, NotFound, Unreadable
from rayapp.files.durable import make_folder, replacing, sync, writing
from rayapp.protocol import checked_name

WEIGHTS = "model.safetensors"
CARD = "card.json"
PRODUCTION = "production"
RELOADS = ".reloads"
"""File that changes with each reload of the app."""
HISTORY = 100
"""Number of versions in the history, and so the maximum number of rollbacks."""
_VERSION = re.compile(r"v(\d+)")


@dataclass(frozen=True, kw_only=True)
class ModelVersion:
    """One version: path of the weights, and its card (labels, network, metrics, parent and so on)."""

    name: str
    version: str
    weights: Path
    card: Mapping[str, Any]

    @property
    def designed_for(self) -> int:
        """Number of labelled images that the version's design was made for; 0 if its card does not say."""
        plan, data = self.card.get("plan"), self.card.get("data")
        if isinstance(plan, Mapping) and "images" in plan:
            return int(plan["images"])
        if isinstance(data, Mapping):
            return int(data.get("training", 0)) + int(data.get("validation", 0))
        return 0

    def summary(self) -> dict[str, Any]:
        """Digest and time for `/model/info/`."""
        return {
            "checksum": f"SHA256:{sha256_of(self.weights)}",
            "modified_time": int(self.weights.stat().st_mtime),
            "version": self.version,
        }


class ModelStore:
    """The versions under one folder. Reading is thread-safe and process-safe; only one thread may write."""

    def __init__(self, root: Path) -> None:
        self._root = root
        self._requests: dict[tuple[Path, int], str | None] = {}
        """Request id by card and its modification time: versions never change, so each card is read once."""

    @classmethod
    def of(cls, settings: Settings) -> ModelStore:
        """The store in the workspace."""
        return cls(settings.workspace / "models")

    def production(self, name: str) -> ModelVersion | None:
        """The version in production; None if none was published."""
        serving = self.serving(name)
        return None if serving is None else self.version(name, serving)

    def serving(self, name: str) -> str | None:
        """The name of the version in production; one small read, cheap enough for every request."""
        served = self._served(name)
        return served[-1] if served else None

    def names(self) -> list[str]:
        """Names of the models that have versions, in ascending order."""
        return sorted(p.name for p in self._root.iterdir() if p.is_dir()) if self._root.is_dir() else []

    def versions(self, name: str) -> list[str]:
        """All versions of a model, oldest first."""
        folder = self._root / checked_name(name, "model")
        names = [p.name for p in folder.iterdir() if _VERSION.fullmatch(p.name)] if folder.is_dir() else []
        return sorted(names, key=lambda version: int(version[1:]))

    def version(self, name: str, version: str) -> ModelVersion:
        """One version. Raises NotFound."""
        folder = self._root / checked_name(name, "model") / checked_name(version, "version")
        try:
            card = json.loads((folder / CARD).read_text())
        except FileNotFoundError:
            raise NotFound(f"model {name!r} has no version {version!r}") from None
        return ModelVersion(name=name, version=version, weights=folder / WEIGHTS, card=card)

    def publish(
        self, name: str, weights: Path, card: Mapping[str, Any], *, request: str | None = None, promote: bool = True
    ) -> ModelVersion:
        """Copy `weights` in as the next version.

        Args:
            name: the model.
            weights: a safetensors file.
            card: the version's card.
            request: an id chosen by the caller; publishing again with the same id returns the version made before.
            promote: also promote the version to production.

        Raises:
            Unreadable: if the file is not an intact safetensors file; nothing is changed then.
            Busy: if the disk cannot be written.
        """
        version = None if request is None else self.published(name, request)
        with writing():
            if version is None:
                check_weights(weights)
                version = self._add(name, weights, {**card, "request": request, "created": time.time()})
            else:
                sync(self._root / name)  # whoever published it may have died before
        if promote and version.version not in self._served(name):
            self.promote(name, version.version)
        return version

    def published(self, name: str, request: str) -> ModelVersion | None:
        """The version published with this request id; None if there is none."""
        for version in reversed(self.versions(name)):
            card = self._root / name / version / CARD
            key = card, card.stat().st_mtime_ns
            if key not in self._requests:
                self._requests[key] = self.version(name, version).card.get("request")
            if self._requests[key] == request:
                return self.version(name, version)
        return None

    def _add(self, name: str, weights: Path, card: Mapping[str, Any]) -> ModelVersion:
        folder = self._root / checked_name(name, "model")
        make_folder(folder)
        staged = Path(tempfile.mkdtemp(prefix=".staged-", dir=folder))
        try:
            shutil.copyfile(weights, staged / WEIGHTS)
            (staged / CARD).write_text(json.dumps({"parent": self.serving(name), **card}, indent=2))
            for path in (staged / WEIGHTS, staged / CARD, staged):
                sync(path)
            number = max((int(v[1:]) for v in self.versions(name)), default=0) + 1
            staged.chmod(0o755)
            staged.rename(folder / f"v{number}")
            sync(folder)
        finally:
            shutil.rmtree(staged, ignore_errors=True)
        return self.version(name, f"v{number}")

    def reloads(self) -> str:
        """Identifies the last reload of the app; "" before the first one. One small read."""
        try:
            return (self._root / RELOADS).read_text()
        except FileNotFoundError:
            return ""

    def note_reload(self) -> None:
        """Let every process that serves the app load its code again."""
        make_folder(self._root)
        with writing(), replacing(self._root / RELOADS) as staged:
            staged.write_text(secrets.token_hex(8))

    def promote(self, name: str, version: str) -> None:
        """Promote a version to production. Raises NotFound, and Busy if the disk cannot be written."""
        self.version(name, version)
        served = self._served(name)
        if served[-1:] != [version]:
            self._serve(name, [*served, version])
        else:
            with writing():
                sync(self._root / name)  # whoever promoted it may have died before

    def rollback(self, name: str) -> str:
        """Return production to the previous version and return its name. Raises Conflict if there is none."""
        served = self._served(name)
        if len(served) < 2:
            raise Conflict(f"model {name!r} has no previous version in production: promote one instead")
        self._serve(name, served[:-1])
        return served[-2]

    def _served(self, name: str) -> list[str]:
        try:
            return (self._root / checked_name(name, "model") / PRODUCTION).read_text().split()
        except FileNotFoundError:
            return []

    def _serve(self, name: str, served: list[str]) -> None:
        alias = self._root / name / PRODUCTION
        with writing(), replacing(alias) as staged:
            staged.write_text("".join(f"{version}\n" for version in served[-HISTORY:]))

    def retire(self, name: str) -> None:
        """Remove the model from production; its versions are kept.

        Raises:
            NotFound: if none is in production.
            Busy: if the disk cannot be written.
        """
        alias = self._root / checked_name(name, "model") / PRODUCTION
        with writing():
            try:
                alias.unlink()
            except FileNotFoundError:
                raise NotFound(f"model {name!r} has no version in production") from None
            sync(alias.parent)


def check_weights(weights: Path) -> None:
    """Raise Unreadable unless the file is an intact safetensors file (never a pickle)."""
    try:
        with safe_open(weights, framework="np") as tensors:
            names = list(tensors.keys())
    except (SafetensorError, OSError, ValueError) as error:
        raise Unreadable(f"not a safetensors file: {error}") from error
    if not names:
        raise Unreadable("the safetensors file has no tensors")


def sha256_of(path: Path) -> str:
    """SHA-256 of a file in hex."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
