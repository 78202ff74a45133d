"""A running MONAI Label on a studies folder: the datastore of its wheel, in a process of its own.

Its server is not needed for that, and not installed. The process evaluates one expression a line, in which `store` is
MONAI Label's `LocalDatastore`, and answers each with one line of JSON.

MONAI Label changes its memory before it takes the lock to write it, and its own watching thread may read the file into
that memory meanwhile: it then writes a document without the change. Nobody else can know of such a change, so a test
about changes that it did write asks with `insist`, which looks into the documents that it wrote.
"""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from contextlib import nullcontext
from pathlib import Path
from types import TracebackType
from typing import Any, ClassVar
from unittest.mock import MagicMock

from filelock import FileLock

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

    def written(self) -> list[Any]:
        """The documents that it wrote since this was asked last, oldest first."""
        return [json.loads(text) for text in self.do("store.written_texts()")]

    def insist(self, change: str, made: Callable[[Any], bool]) -> None:
        """Repeat a change that MONAI Label forgets before it writes the document.

        Args:
            change: the expression.
            made: true for a document that has the change.
        """
        self.written()
        while True:
            self.do(change)
            if any(made(each["objects"]) for each in self.written()):
                return


def main() -> None:
    """Open the folder and answer."""
    for name in ("torch", "monai.apps", "monai.bundle", "monai.bundle.scripts"):
        sys.modules[name] = MagicMock()  # the datastore needs none of them, and they take long to load
    from monailabel.datastore.local import LocalDatastore

    class Recording(LocalDatastore):  # type: ignore[misc]
        """MONAI Label's own class, which remembers what it wrote."""

        texts: ClassVar[list[str]] = []

        def _update_datastore_file(self, lock: bool = True) -> None:
            with FileLock(self._lock_file) if lock else nullcontext():
                super()._update_datastore_file(lock=False)
                self.texts.append(Path(self._datastore_config_path).read_text())

        def written_texts(self) -> list[str]:
            """The documents that were written since this was asked last."""
            texts, self.texts[:] = [*self.texts], []
            return texts

    store = Recording(sys.argv[1], extensions=EXTENSIONS, auto_reload=sys.argv[2] == "1")
    print('"ready"', flush=True)
    for line in sys.stdin:
        print(json.dumps(eval(line, {"store": store})), flush=True)


if __name__ == "__main__":
    main()
