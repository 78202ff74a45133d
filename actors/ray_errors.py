"""Errors of `rayapp.errors` that cross a process border inside Ray's exceptions."""

from __future__ import annotations

import contextlib
import re
from collections.abc import Iterator

from ray.exceptions import RayTaskError

from rayapp import errors
from rayapp.errors import FULL, RayappError

RESTARTING = "a server component is restarting; retry in 1 s"


@contextlib.contextmanager
def unwrapped_errors() -> Iterator[None]:
    """Raise an error of `rayapp.errors`, or that of a full disk, that another process raised as itself.

    Ray wraps it in a RayTaskError.
    """
    try:
        yield
    except RayTaskError as error:
        cause = error.cause
        if isinstance(cause, RayappError) or (isinstance(cause, OSError) and cause.errno in FULL):
            raise cause from None
        raise


def error_in(message: str) -> RayappError | None:
    """The error of `rayapp.errors` at the end of one of Ray's messages; None if there is none.

    If the constructor of an actor or replica raised an error, Ray keeps only its text.
    """
    matches = re.findall(r"^\s*rayapp\.errors\.(\w+): (.+)$", message, re.MULTILINE)
    return getattr(errors, matches[-1][0], RayappError)(matches[-1][1]) if matches else None
