"""`monailabel.utils.others.class_utils`: an app's classes by name."""

from __future__ import annotations

import importlib
import inspect
import pkgutil
from types import ModuleType


def get_class_names(package: ModuleType, subclass: str | None = None) -> list[str]:
    """Dotted names of the classes that the modules of a package define.

    Args:
        package: The package, such as `lib.configs`.
        subclass: Only classes with a base of this name.
    """
    modules = [
        importlib.import_module(f"{package.__name__}.{found.name}") for found in pkgutil.iter_modules(package.__path__)
    ]
    return [
        f"{module.__name__}.{name}"
        for module in modules
        for name, cls in inspect.getmembers(module, inspect.isclass)
        if cls.__module__ == module.__name__ and _derives(cls, subclass)
    ]


def _derives(cls: type, base: str | None) -> bool:
    return base is None or base in {parent.__name__ for parent in cls.__mro__[1:]}
