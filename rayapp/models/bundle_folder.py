"""BundleFolder: a MONAI bundle in the zoo's layout, read but never changed.

    configs/metadata.json  configs/inference.json (or .yaml)  configs/train.json (or .yaml)
    models/model.pt (a state dict) or models/model.ts (TorchScript)  scripts/ (Python that the configs refer to)

A bundle's configs and scripts are code: whoever starts the server chooses to trust it, as with an app. Weights are read
as tensors only, never unpickled as objects. Every bundle has a package named `scripts`, so one bundle at a time in a
process is parsed with its scripts importable; classes already loaded stay those of their bundle.

The versions that a bundle's metadata names (`required_packages_version`, `monai_version` and so on) are not enforced:
zoo bundles name what they were tested with and mostly run without it. A missing or older package is reported with the
error of a bundle that cannot be read, and in the log for one that can.
"""

from __future__ import annotations

import contextlib
import json
import logging
import pickle
import sys
import threading
import zipfile
from collections.abc import Iterator, Mapping
from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
import yaml
from packaging.version import InvalidVersion, Version
from safetensors.torch import load_file
from torch import Tensor, nn

from rayapp.errors import ModelBroken

if TYPE_CHECKING:
    from monai.bundle import ConfigParser

logger = logging.getLogger(__name__)

METADATA = "metadata"
INFERENCE = "inference"
TRAIN = "train"
SUFFIXES = (".json", ".yaml", ".yml")
WEIGHTS = ("models/model.pt", "models/model.ts", "models/model.safetensors")
_NESTED = ("model", "state_dict", "network", "net", "model_state_dict")
"""Keys under which checkpoints keep the network's state dict."""
_TESTED_WITH = {"monai_version": "monai", "pytorch_version": "torch", "numpy_version": "numpy"}
"""Metadata keys that give the version of a single package, and the package."""
_PACKAGES = "required_packages_version"
_scripts = threading.RLock()


class BundleFolder:
    """One bundle; `name` is the model's name, for messages. Thread-safe."""

    def __init__(self, root: Path, name: str) -> None:
        self.root = root.resolve()
        self.name = name

    def broken(self, text: str) -> ModelBroken:
        """A ModelBroken error with this text."""
        return ModelBroken(f"bundle {self.name!r}: {text}")

    def path(self, config: str) -> Path | None:
        """The file of a config, or None if there is none."""
        candidates = (self.root / "configs" / f"{config}{suffix}" for suffix in SUFFIXES)
        return next((path for path in candidates if path.is_file()), None)

    def read(self, config: str) -> dict[str, Any]:
        """The unparsed content of a config. Raises ModelBroken."""
        path = self.path(config)
        if path is None:
            raise self.broken(f"configs/{config}.json is missing (.yaml is accepted too)")
        try:
            text = path.read_text()
            content = json.loads(text) if path.suffix == ".json" else yaml.safe_load(text)
        except (ValueError, yaml.YAMLError, OSError) as error:
            raise self.broken(f"configs/{path.name} cannot be read: {error}") from error
        if not isinstance(content, dict):
            raise self.broken(f"configs/{path.name} must contain an object")
        return content

    def missing_packages(self) -> str:
        """Packages that the metadata names and that are missing here or older; "" if there are none.

        For example `einops 0.7.0 (not installed), monai 1.9 (1.6.1 is installed)`. Raises ModelBroken for unreadable
        metadata.
        """
        content = self.read(METADATA)
        wanted = {package: content[key] for key, package in _TESTED_WITH.items() if content.get(key)}
        packages = content.get(_PACKAGES)
        wanted |= packages if isinstance(packages, dict) else {}
        versions = {package: (str(version), _installed(package)) for package, version in wanted.items()}
        return ", ".join(
            f"{package} {version} ({f'{installed} is installed' if installed else 'not installed'})"
            for package, (version, installed) in versions.items()
            if installed is None or _older(installed, version)
        )

    @contextlib.contextmanager
    def parser(self, config: str, over: Mapping[str, Any]) -> Iterator[ConfigParser]:
        """A parser of a config, with the bundle's scripts importable within the block.

        Args:
            config: name of the config.
            over: values that replace those of the config.

        Raises:
            ModelBroken: for anything that parsing or instantiating raises within the block.
        """
        from monai.bundle import ConfigParser

        path = self.path(config)
        if path is None:
            raise self.broken(f"configs/{config}.json is missing (.yaml is accepted too)")
        missing = self.missing_packages()
        with self._scripts_importable():
            try:
                parser = ConfigParser()
                parser.read_meta(str(self.path(METADATA)))
                parser.read_config(str(path))
                _without_files(parser.config)
                for key, value in {"bundle_root": str(self.root), **over}.items():
                    parser[key] = value
                yield parser
            except ModelBroken:
                raise
            except Exception as error:
                hint = f"; it was made with {missing}" if missing else ""
                raise self.broken(f"configs/{path.name}: {_reason(error)}{hint}") from error
        if missing:
            logger.warning("bundle %s was made with %s; it is used nevertheless", self.name, missing)

    @contextlib.contextmanager
    def _scripts_importable(self) -> Iterator[None]:
        """Make `import scripts` find this bundle's package; afterwards `sys.modules` and `sys.path` are as before."""
        with _scripts:
            before = {name: sys.modules.pop(name) for name in list(sys.modules) if _is_script(name)}
            sys.path.insert(0, str(self.root))
            try:
                yield
            finally:
                sys.path.remove(str(self.root))
                for name in [name for name in sys.modules if _is_script(name)]:
                    del sys.modules[name]
                sys.modules.update(before)

    def weights(self) -> Path:
        """The weights file shipped with the bundle. Raises ModelBroken."""
        path = next((self.root / file for file in WEIGHTS if (self.root / file).is_file()), None)
        if path is None:
            raise self.broken(f"it has no weights: none of {', '.join(WEIGHTS)}")
        return path

    def network(self, parser: ConfigParser, weights: Path) -> nn.Module:
        """The network of a config, with weights from a state dict, safetensors or TorchScript. Raises ModelBroken."""
        if is_torchscript(weights):
            try:
                scripted: nn.Module = torch.jit.load(  # type: ignore[no-untyped-call]
                    weights, map_location=str(parser["device"])
                )
            except (RuntimeError, ValueError) as error:
                raise self.broken(f"{weights.name} is not an intact TorchScript file: {_reason(error)}") from error
            return scripted
        defined = next((key for key in ("network", "network_def") if key in parser), None)
        if defined is None:
            raise self.broken(f"its config has no network_def, which {weights.name} needs")
        network: nn.Module = parser.get_parsed_content(defined)
        try:
            network.load_state_dict(self.tensors(weights), strict=True)
        except RuntimeError as error:
            raise self.broken(f"{weights.name} does not match its network: {_reason(error)}") from error
        return network

    def tensors(self, weights: Path) -> dict[str, Tensor]:
        """The state dict in a file, at top level or under one of the usual keys. Raises ModelBroken."""
        try:
            if weights.suffix == ".safetensors":
                return load_file(weights)
            content = torch.load(weights, map_location="cpu", weights_only=True)
        except pickle.UnpicklingError as error:
            raise self.broken(f"{weights.name} has more than tensors, which could run code: not loaded") from error
        except Exception as error:
            raise self.broken(f"{weights.name} is not an intact weights file: {_reason(error)}") from error
        for key in _NESTED:
            if isinstance(content, Mapping) and isinstance(content.get(key), Mapping):
                content = content[key]
        if not isinstance(content, Mapping) or not all(isinstance(value, Tensor) for value in content.values()):
            raise self.broken(f"{weights.name} has no state dict")
        return {name.removeprefix("module."): tensor for name, tensor in content.items()}


def targets(config: Any) -> set[str]:
    """Names, without their modules, of all classes and functions that a config instantiates."""
    if isinstance(config, Mapping):
        own = {str(config["_target_"]).rsplit(".", 1)[-1]} if "_target_" in config else set()
        return own.union(*(targets(value) for value in config.values()))
    return set().union(*(targets(value) for value in config)) if isinstance(config, list) else set()


def _without_files(config: Any) -> None:
    """Disable the steps of a config that write images, and remove the choice of reader from those that read.

    The reader it names may not be installed, and images reach the server decoded.
    """
    for part in config.values() if isinstance(config, dict) else config if isinstance(config, list) else ():
        _without_files(part)
    if isinstance(config, dict):
        target = str(config.get("_target_", "")).rsplit(".", 1)[-1]
        if target in ("SaveImage", "SaveImaged"):
            config["_disabled_"] = True
        if target in ("LoadImage", "LoadImaged"):
            config.pop("reader", None)


def is_torchscript(path: Path) -> bool:
    """True if the file is a TorchScript archive, whatever its extension."""
    try:
        with zipfile.ZipFile(path) as archive:
            return any(name.endswith("/constants.pkl") for name in archive.namelist())
    except (zipfile.BadZipFile, OSError):
        return False


def _installed(package: str) -> str | None:
    try:
        return metadata.version(package)
    except (metadata.PackageNotFoundError, ValueError):
        return None


def _older(found: str, wanted: str) -> bool:
    """True if version `found` precedes `wanted`, ignoring build suffixes (`2.10.0+cu128`, `1.5.dev1`)."""
    try:
        return Version(Version(found).base_version) < Version(Version(wanted).base_version)
    except InvalidVersion:
        return False


def _is_script(module: str) -> bool:
    return module == "scripts" or module.startswith("scripts.")


def _reason(error: BaseException) -> str:
    """The innermost cause in one line."""
    while error.__cause__ is not None:
        error = error.__cause__
    return f"{type(error).__name__}: {' '.join(str(error).split())[:300]}"
