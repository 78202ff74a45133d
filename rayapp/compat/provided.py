"""The modules of MONAI Label that rayapp provides, and the module of rayapp that stands for each."""

from __future__ import annotations

import importlib
from collections.abc import Mapping
from types import ModuleType
from typing import Any

from rayapp.compat.unavailable import stand_in

VERSION = "0.8.5"
"""The release whose interfaces are provided; apps show it."""
PROVIDED: Mapping[str, str] = {
    "config": "server_settings",
    "interfaces.app": "monailabel_app",
    "interfaces.config": "task_config",
    "interfaces.datastore": "ported_datastore",
    "interfaces.exception": "peer_errors",
    "interfaces.tasks.infer": "peer_tasks",
    "interfaces.tasks.infer_v2": "peer_tasks",
    "interfaces.tasks.scoring": "peer_tasks",
    "interfaces.tasks.strategy": "peer_tasks",
    "interfaces.tasks.train": "peer_tasks",
    "interfaces.utils.transform": "transform_runs",
    "sam2.utils": "sam2_support",
    "scribbles.infer": "scribble_methods",
    "tasks.activelearning.epistemic": "peer_strategies",
    "tasks.activelearning.first": "peer_strategies",
    "tasks.activelearning.random": "peer_strategies",
    "tasks.infer.basic_infer": "network_infer",
    "tasks.infer.bundle": "bundle_tasks",
    "tasks.scoring.dice": "peer_scoring",
    "tasks.scoring.sum": "peer_scoring",
    "tasks.train.basic_train": "network_train",
    "tasks.train.bundle": "bundle_tasks",
    "tasks.train.utils": "region_metrics",
    "transform.post": "post_transforms",
    "transform.writer": "result_writer",
    "utils.others.class_utils": "class_names",
    "utils.others.generic": "app_functions",
    "utils.others.planner": "spacing_planner",
}


def fill(module: ModuleType) -> None:
    """Give a module of the app's import names its content; names that are not provided become stand-ins."""
    root, _, inner = module.__name__.partition(".")
    if not inner:
        module.__dict__["__version__"] = VERSION
    if inner in PROVIDED:
        ours = importlib.import_module(f"rayapp.compat.{PROVIDED[inner]}")
        module.__dict__.update({name: value for name, value in vars(ours).items() if not name.startswith("_")})

    def missing(name: str) -> Any:
        if name.startswith("_") or f"{root}.{inner}".strip(".") == root:
            raise AttributeError(f"module {module.__name__!r} has no attribute {name!r}")
        return stand_in(module.__name__, name)

    module.__dict__["__getattr__"] = missing
