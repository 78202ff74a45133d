"""A plugin of pytest that undoes the mend of a fault: `-p tests.faults.undone`, with the fault named in `FAULT`.

The sources stay as they are: modules are compiled without the mend when they are imported. Hypothesis does not shrink
what it finds, which takes minutes, and keeps nothing.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence
from importlib.abc import MetaPathFinder
from importlib.machinery import ModuleSpec, PathFinder, SourceFileLoader
from pathlib import Path
from types import CodeType, ModuleType

from hypothesis import Phase, settings

from tests.faults.mends import MENDS, Change

FAULT = "FAULT"
"""Environment variable with the name of the fault."""


class _Loader(SourceFileLoader):
    """Loads a module without a mend, and not from its compiled file, which has the mend."""

    def __init__(self, name: str, path: str, changes: Sequence[Change]) -> None:
        super().__init__(name, path)
        self._changes = changes

    def get_code(self, fullname: str) -> CodeType:
        source = Path(self.path).read_text()
        for change in self._changes:
            source = change.undone(source)
        code: CodeType = compile(source, self.path, "exec", dont_inherit=True)
        return code


class _Finder(MetaPathFinder):
    """Finds the modules that have the mend."""

    def __init__(self, changes: Sequence[Change]) -> None:
        self._changes = changes

    def find_spec(
        self, fullname: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        own = [change for change in self._changes if change.module == fullname]
        spec = PathFinder.find_spec(fullname, path) if own else None
        if spec is not None and spec.origin is not None:
            spec.loader = _Loader(fullname, spec.origin, own)
        return spec


if name := os.environ.get(FAULT):
    sys.meta_path.insert(0, _Finder(MENDS[name].changes))
settings.register_profile("faults", phases=(Phase.explicit, Phase.generate), database=None)
settings.load_profile("faults")
