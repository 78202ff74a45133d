"""Stand-ins for what apps import from MONAI Label and rayapp does not provide."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from rayapp.errors import AppBroken

PORTING = "see docs/porting.md"


class Unavailable:
    """An object that an app made of something which cannot run here. The app lists it by name as broken.

    Attributes:
        problem: The reason, or the exception that kept the object from being made.
    """

    problem: str | BaseException = f"it is not provided by rayapp: {PORTING}"

    def __init__(self, *args: Any, **arguments: Any) -> None:
        """Accept any arguments."""

    @classmethod
    def because(cls, problem: str | BaseException) -> Unavailable:
        """One with this reason."""
        made = cls()
        made.problem = problem
        return made


def stand_in(module: str, name: str) -> type[Unavailable] | Callable[..., Any]:
    """A stand-in for a name: a class for one in capitals, whose instances are listed as broken; else a function.

    Args:
        module: The module as the app imports it.
        name: The name in it.
    """
    problem = f"{module}.{name} is not provided by rayapp: {PORTING}"
    if name[:1].isupper():
        return type(name, (Unavailable,), {"problem": problem, "__module__": module})

    def refuse(*args: Any, **arguments: Any) -> Any:  # noqa: ARG001
        raise AppBroken(problem)

    return refuse
