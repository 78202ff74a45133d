"""Ray's runtime environment for the processes that run an app's code."""

from __future__ import annotations

from typing import Any

from rayapp.app.requirements import interpreter
from rayapp.config import Settings


def runtime_env(settings: Settings) -> dict[str, Any]:
    """The runtime environment with the app's requirements; empty for an app without any. Installs them if need be.

    Raises:
        AppBroken: they cannot be installed.
    """
    python = interpreter(settings)
    return {} if python is None else {"py_executable": str(python)}
