"""Errors in an app's own code, located by file and line for the app's author."""

from __future__ import annotations

import inspect
import traceback
from collections.abc import Callable
from pathlib import Path
from threading import Lock
from typing import Any, TypeVar

from rayapp.errors import AppBroken, RayappError

T = TypeVar("T")

_parsing = Lock()
"""Held by `inspect`: Python 3.11 shares the parser's recursion depth between threads, so concurrent parsing fails."""


def location(error: BaseException, folder: Path) -> str:
    """The innermost line of the app that an error passed through, as `lib/spleen.py, line 12`; empty if there is none.

    Args:
        error: The error, with its traceback.
        folder: The app's folder.
    """
    if isinstance(error, SyntaxError) and error.filename and error.lineno:
        inside = _inside(error.filename, folder)
        if inside:
            return f"{inside}, line {error.lineno}"
    for frame in reversed(traceback.extract_tb(error.__traceback__)):
        inside = _inside(frame.filename, folder)
        if inside:
            return f"{inside}, line {frame.lineno}"
    return ""


def describe(error: BaseException, folder: Path) -> str:
    """An error's location, type and text, and for a missing package the remedy.

    Args:
        error: The error, with its traceback.
        folder: The app's folder.
    """
    line = location(error, folder)
    text = f"{line + ': ' if line else ''}{type(error).__name__}: {error}"
    if isinstance(error, ModuleNotFoundError) and error.name and not (folder / error.name.split(".")[0]).exists():
        text += " (list packages that the app needs in requirements.txt beside its main.py)"
    return text


def definition(thing: Any, folder: Path) -> str:
    """The location at which a class or function of the app is defined, as `Spleen (lib/spleen.py, line 8)`.

    Args:
        thing: The class or function.
        folder: The app's folder.
    """
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


def run_hook(folder: Path, hook: Callable[..., T], **arguments: Any) -> T:
    """Call code of an app.

    Args:
        folder: The app's folder.
        hook: The function or class to call.
        **arguments: Its arguments.

    Returns:
        Whatever the hook returns.

    Raises:
        RayappError: As the hook raises it.
        AppBroken: For any other exception, with its location.
    """
    try:
        return hook(**arguments)
    except RayappError:
        raise
    except SystemExit as error:
        raise AppBroken(
            f"{hook.__name__} called exit() at {location(error, folder)}: raise an error instead"
        ) from error
    except Exception as error:
        raise AppBroken(f"{hook.__name__} failed: {describe(error, folder)}") from error
