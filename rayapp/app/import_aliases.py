"""MONAI Label's import names, for an app that imports them: `rayapp.compat` stands behind `monailabel.*`.

They are active in a process from the loading of such an app until another one is loaded, since an app's hooks import
too. They take precedence over an installed MONAI Label, whose modules would bring a server of their own.
"""

from __future__ import annotations

import importlib
import re
import sys
from collections.abc import Sequence
from importlib.abc import Loader, MetaPathFinder
from importlib.machinery import ModuleSpec
from pathlib import Path
from types import ModuleType

ROOT = "monailabel"
IMPORT = re.compile(rf"^\s*(?:from|import)\s+{ROOT}\b", re.MULTILINE)


class _Aliases(MetaPathFinder, Loader):
    """Finds and fills the modules below `ROOT`."""

    def find_spec(
        self,
        fullname: str,
        path: Sequence[str] | None = None,  # noqa: ARG002
        target: ModuleType | None = None,  # noqa: ARG002
    ) -> ModuleSpec | None:
        if fullname != ROOT and not fullname.startswith(f"{ROOT}."):
            return None
        return ModuleSpec(fullname, self, is_package=True)

    def create_module(self, spec: ModuleSpec) -> None:
        """None: an ordinary module."""

    def exec_module(self, module: ModuleType) -> None:
        importlib.import_module("rayapp.compat.provided").fill(module)


_aliases = _Aliases()


def needed_by(folder: Path) -> bool:
    """True if the app in this folder imports MONAI Label."""
    return any(IMPORT.search(source.read_text(errors="replace")) for source in folder.rglob("*.py"))


def activate() -> None:
    """Let this process import MONAI Label's names from rayapp."""
    deactivate()
    sys.meta_path.insert(0, _aliases)


def deactivate() -> None:
    """Undo `activate`. Modules under these names are forgotten, so that later imports find what is then there."""
    if _aliases in sys.meta_path:
        sys.meta_path.remove(_aliases)
    for name in [name for name in sys.modules if name == ROOT or name.startswith(f"{ROOT}.")]:
        if getattr(sys.modules[name].__spec__, "loader", None) is _aliases or _aliases not in sys.meta_path:
            del sys.modules[name]
