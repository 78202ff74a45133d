"""ModelStore: immutable model versions on disk, and the alias `production` that moves between them.

Layout: `<root>/<name>/<version>/model.safetensors` with `card.json` beside it, and `<root>/<name>/production`, a file
that holds one version's name. A version appears by one rename, an alias moves by one rename: readers in any process
see the old or the new, never a half. Versions are numbered `v1`, `v2`, …; one process writes.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import shutil
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open

from rayapp.config import Settings
from rayapp.errors import NotFound, Unreadable
from rayapp.protocol import checked_name

WEIGHTS = "model.safetensors"
CARD = "card.json"
PRODUCTION = "production"
_VERSION = re.compile(r"v(\d+)")


@dataclass(frozen=True, kw_only=True)
class ModelVersion:
    """One version: the weights' path, and its card (labels, network, metrics, parent, …)."""

    name: str
    version: str
    weights: Path
    card: Mapping[str, Any]

    def summary(self) -> dict[str, Any]:
        """Digest and time as `/model/info/` answers them."""
        return {
            "checksum": f"SHA256:{sha256_of(self.weights)}",
            "modified_time": int(self.weights.stat().st_mtime),
            "version": self.version,
        }


class ModelStore:
    """The versions under one folder. Reading is safe from anywhere; publishing belongs to one owner."""

    def __init__(self, root: Path) -> None:
        self._root = root

    @classmethod
    def of(cls, settings: Settings) -> ModelStore:
        """The store in the workspace."""
        return cls(settings.workspace / "models")

    def production(self, name: str) -> ModelVersion | None:
        """The version that serves, if any was published."""
        serving = self.serving(name)
        return None if serving is None else self.version(name, serving)

    def serving(self, name: str) -> str | None:
        """The name of the version that serves; one small read, so that every request may ask."""
        try:
            return (self._root / checked_name(name, "model") / PRODUCTION).read_text().strip()
        except FileNotFoundError:
            return None

    def versions(self, name: str) -> list[str]:
        """All versions of a model, oldest first."""
        folder = self._root / checked_name(name, "model")
        found = [p.name for p in folder.iterdir() if _VERSION.fullmatch(p.name)] if folder.is_dir() else []
        return sorted(found, key=lambda version: int(version[1:]))

    def version(self, name: str, version: str) -> ModelVersion:
        """One version. Raises NotFound."""
        folder = self._root / checked_name(name, "model") / checked_name(version, "version")
        try:
            card = json.loads((folder / CARD).read_text())
        except FileNotFoundError:
            raise NotFound(f"model {name!r} has no version {version!r}") from None
        return ModelVersion(name=name, version=version, weights=folder / WEIGHTS, card=card)

    def publish(self, name: str, weights: Path, card: Mapping[str, Any]) -> ModelVersion:
        """Copy `weights` in as the next version and move `production` to it.

        Raises:
            Unreadable: if the file is not a whole safetensors file; nothing changes then.
        """
        check_weights(weights)
        folder = self._root / checked_name(name, "model")
        folder.mkdir(parents=True, exist_ok=True)
        staged = Path(tempfile.mkdtemp(prefix=".staged-", dir=folder))
        try:
            shutil.copyfile(weights, staged / WEIGHTS)
            (staged / CARD).write_text(json.dumps({**card, "parent": self._parent(name)}, indent=2))
            for file in (staged / WEIGHTS, staged / CARD):
                _sync(file)
            number = max((int(v[1:]) for v in self.versions(name)), default=0) + 1
            staged.chmod(0o755)
            staged.rename(folder / f"v{number}")
            _sync(folder)
        finally:
            shutil.rmtree(staged, ignore_errors=True)
        self.promote(name, f"v{number}")
        return self.version(name, f"v{number}")

    def promote(self, name: str, version: str) -> None:
        """Let that version serve. Raises NotFound."""
        self.version(name, version)
        alias = self._root / name / PRODUCTION
        staged = alias.with_name(f".{PRODUCTION}-{os.getpid()}")
        staged.write_text(version + "\n")
        _sync(staged)
        staged.rename(alias)
        _sync(alias.parent)

    def retire(self, name: str) -> None:
        """Let no published version serve (the versions stay). Raises NotFound if none did."""
        try:
            (self._root / checked_name(name, "model") / PRODUCTION).unlink()
        except FileNotFoundError:
            raise NotFound(f"model {name!r} has no published version") from None

    def _parent(self, name: str) -> str | None:
        serving = self.production(name)
        return serving.version if serving else None


def check_weights(weights: Path) -> None:
    """Raise Unreadable unless the file is a whole safetensors file (never a pickle)."""
    try:
        with safe_open(weights, framework="pt") as tensors:
            names = list(tensors.keys())
    except (SafetensorError, OSError, ValueError) as error:
        raise Unreadable(f"not a safetensors file: {error}") from error
    if not names:
        raise Unreadable("the safetensors file holds no tensors")


def sha256_of(path: Path) -> str:
    """Hex digest of a file, streamed."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _sync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
