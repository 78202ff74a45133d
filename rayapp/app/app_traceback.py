"""Where in an app's own code something went wrong, in the words of whoever writes the app. Pure functions."""

from __future__ import annotations

import inspect
import traceback
from pathlib import Path
from threading import Lock
from typing import Any

_parsing = Lock()
"""Python 3.11 counts the depth of a syntax tree once for all threads: two that look for a line break each other."""


def place(error: BaseException, folder: Path) -> str:
    """`lib/spleen.py, line 12`: the innermost line in `folder` that the error went through; empty if there is none."""
    if isinstance(error, SyntaxError) and error.filename and error.lineno:
        inside = _inside(error.filename, folder)
        if inside:
            return f"{inside}, line {error.lineno}"
    for frame in reversed(traceback.extract_tb(error.__traceback__)):
        inside = _inside(frame.filename, folder)
        if inside:
            return f"{inside}, line {frame.lineno}"
    return ""


def told(error: BaseException, folder: Path) -> str:
    """The place, what went wrong, and for a missing package what to do about it."""
    at = place(error, folder)
    text = f"{at + ': ' if at else ''}{type(error).__name__}: {error}"
    if isinstance(error, ModuleNotFoundError) and error.name and not (folder / error.name.split(".")[0]).exists():
        text += " (a package that the app needs belongs into requirements.txt beside its main.py)"
    return text


def definition(thing: Any, folder: Path) -> str:
    """`Spleen (lib/spleen.py, line 8)`: where a class or function of the app begins."""
    name = getattr(thing, "__name__", type(thing).__name__)
    try:
        with _parsing:
            file, line = inspect.getsourcefile(thing), inspect.getsourcelines(thing)[1]
    except (TypeError, OSError):
        return str(name)
    inside = _inside(file or "", folder)
    return f"{name} ({inside}, line {line})" if inside else str(name)


def _inside(file: str, folder: Path) -> str:
    path = Path(file).resolve()
    return path.relative_to(folder.resolve()).as_posix() if path.is_relative_to(folder.resolve()) else ""
