"""Loading of an app's code, from a folder or from `rayapp.apps`, and of the datastore that it may bring."""

from __future__ import annotations

import importlib
import importlib.util
import inspect
import os
import sys
import threading
from importlib.machinery import ModuleSpec
from pathlib import Path
from typing import Any

from rayapp.app import app_traceback, import_aliases, validation
from rayapp.app.app_traceback import run_hook
from rayapp.app.label_app import LabelApp
from rayapp.config import Settings
from rayapp.datastore.interfaces import Datastore
from rayapp.errors import AppBroken

DATASTORE_HOOK = "init_datastore"
UNUSED_MODULES = ("test", "antigravity", "this")
"""Modules of Python's standard library that nothing imports, so that an app may shadow them."""


def app_class(settings: Settings) -> type[LabelApp]:
    """The class of the app that `settings.app` names: an app that ships, or a folder with `main.py`.

    Raises:
        AppBroken: If there is no such app, its code fails, or it does not define exactly one subclass of LabelApp.
    """
    folder = Path(settings.app)
    if (folder / "main.py").is_file():
        with _loading:
            module = _load_main(folder.resolve())
    else:
        try:
            module = importlib.import_module(f"rayapp.apps.{settings.app}.main")
        except ModuleNotFoundError as error:
            raise AppBroken(f"no app {settings.app!r}: name radiology, bundle or a folder with main.py") from error
    classes = [cls.as_label_app(module) if hasattr(cls, "as_label_app") else cls for cls in _apps_in(module)]
    if len(classes) != 1:
        defined = ", ".join(app_traceback.definition(cls, folder) for cls in classes) or "none"
        raise AppBroken(f"main.py of app {folder.name!r} must define one subclass of LabelApp; it defines {defined}")
    return classes[0]


def _apps_in(module: Any) -> list[type[Any]]:
    """The classes of apps that main.py defines, or else those that it imports from the app's folder; without those that
    others of them extend.
    """
    named = [cls for cls in vars(module).values() if inspect.isclass(cls)]
    apps = [cls for cls in named if issubclass(cls, LabelApp) or hasattr(cls, "as_label_app")]
    own = [cls for cls in apps if cls.__module__ == module.__name__]
    found = own or [cls for cls in apps if _is_of_app(sys.modules.get(cls.__module__))]
    return [cls for cls in found if not any(other is not cls and issubclass(other, cls) for other in found)]


def brings_datastore(settings: Settings) -> bool:
    """True if an app in a folder has a datastore hook. The datastore's process loads an app's code only then."""
    folder = Path(settings.app)
    sources = [folder / "main.py", *folder.glob("lib/**/*.py")] if (folder / "main.py").is_file() else []
    return any(DATASTORE_HOOK in source.read_text(errors="replace") for source in sources)


def own_datastore(settings: Settings) -> Datastore:
    """The datastore that the app's hook returns.

    Raises:
        AppBroken: If the hook fails, or returns anything but a datastore.
    """
    cls = app_class(settings)
    returned: Any = run_hook(cls.app_dir, cls.init_datastore, settings=settings)
    problem = validation.datastore_problem(cls.init_datastore, returned, cls.app_dir)
    if problem is not None:
        raise AppBroken(problem)
    store: Datastore = returned
    return store


def _load_main(folder: Path) -> Any:
    """Import main.py and the modules it imports from the app's folder afresh, with the folder on the import path."""
    name = f"rayapp_app_{folder.name}"
    for loaded, module in list(sys.modules.items()):
        if loaded.startswith("rayapp_app_") or _is_of_app(module):
            del sys.modules[loaded]
    import_aliases.deactivate()
    _refuse_shadowing(folder)
    if import_aliases.needed_by(folder):
        import_aliases.activate()
    sys.path[:] = [str(folder), *(entry for entry in sys.path if entry not in _folders)]
    _folders[:] = [str(folder)]
    spec = importlib.util.spec_from_file_location(name, folder / "main.py")
    if spec is None or spec.loader is None:
        raise AppBroken(f"main.py of app {folder.name!r} cannot be imported")
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    try:
        spec.loader.exec_module(module)
    except SystemExit as error:
        at = app_traceback.location(error, folder)
        raise AppBroken(f"app {folder.name!r} called exit() at {at} while it was loaded") from error
    except Exception as error:
        raise AppBroken(f"app {folder.name!r} cannot be loaded: {app_traceback.describe(error, folder)}") from error
    return module


def _refuse_shadowing(folder: Path) -> None:
    """Refuse an app with a module beside main.py that would shadow another module in the server's processes.

    Raises:
        AppBroken: Naming the module.
    """
    for path in sorted(folder.iterdir()):
        if path.name == "conftest.py" or path.match("test_*.py"):
            continue  # the app's tests, which it does not import
        name = path.stem if path.suffix == ".py" else path.name if (path / "__init__.py").is_file() else ""
        standard = name in sys.stdlib_module_names and name not in UNUSED_MODULES
        if standard or name in sys.modules:
            other = "Python's own module" if standard else "the package"
            raise AppBroken(
                f"{path.name} of app {folder.name!r} would hide {other} {name!r} from the server: "
                f"rename it, or put it into lib/ and import lib.{name}"
            )


_loading = threading.Lock()
"""Held while an app's code is loaded, which first removes the previous app's modules from the process."""
_folders: list[str] = []
"""Folder of the app that was loaded last. Only one is on the import path at a time, since each has its own `lib`."""


def _is_of_app(module: Any) -> bool:
    spec = getattr(module, "__spec__", None)
    if not isinstance(spec, ModuleSpec):
        return False
    locations = [spec.origin, *(spec.submodule_search_locations or ())]
    return any(f"{path}{os.sep}".startswith(f"{folder}{os.sep}") for path in locations if path for folder in _folders)
