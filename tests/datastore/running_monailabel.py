"""A running MONAI Label on a studies folder: the datastore of its wheel, in a process of its own.

Its server is not needed for that, and not installed. The process evaluates one expression a line, in which `store` is
MONAI Label's `LocalDatastore`, and answers each with one line of JSON.
"""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from types import TracebackType
from typing import Any
from unittest.mock import MagicMock

EXTENSIONS = ("*.nii.gz", "*.nii", "*.nrrd")


class RunningMonaiLabel:
    """The process. Use it in `with`."""

    def __init__(self, studies: Path, *, auto_reload: bool = True) -> None:
        """`auto_reload` is MONAI_LABEL_DATASTORE_AUTO_RELOAD, whose default is True."""
        self._studies = studies
        self._auto_reload = auto_reload

    def __enter__(self) -> RunningMonaiLabel:
        command = [sys.executable, __file__, str(self._studies), str(int(self._auto_reload))]
        self._process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        assert self.answer() == "ready"
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._process.kill()
        self._process.communicate()

    def begin(self, expression: str) -> None:
        """Have an expression evaluated, without waiting for `answer`."""
        assert self._process.stdin is not None
        self._process.stdin.write(expression + "\n")
        self._process.stdin.flush()

    def answer(self) -> Any:
        """The value of the expression begun first of those that were not answered yet."""
        assert self._process.stdout is not None
        return json.loads(self._process.stdout.readline())

    def do(self, expression: str) -> Any:
        """The value of an expression."""
        self.begin(expression)
        return self.answer()


def main() -> None:
    """Open the folder and answer."""
    for name in ("torch", "monai.apps", "monai.bundle", "monai.bundle.scripts"):
        sys.modules[name] = MagicMock()  # the datastore needs none of them, and they take long to load
    from monailabel.datastore.local import LocalDatastore

    store = LocalDatastore(sys.argv[1], extensions=EXTENSIONS, auto_reload=sys.argv[2] == "1")
    print('"ready"', flush=True)
    for line in sys.stdin:
        print(json.dumps(eval(line, {"store": store})), flush=True)


if __name__ == "__main__":
    main()
