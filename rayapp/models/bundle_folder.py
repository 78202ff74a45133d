"""BundleFolder: a MONAI bundle as the zoo lays it out, read and never changed.

    configs/metadata.json  configs/inference.json (or .yaml)  configs/train.json (or .yaml)
    models/model.pt (a state dict) or models/model.ts (TorchScript)  scripts/ (Python that the configs name)

A bundle's configs and scripts are code: who starts the server chose it, as an app is chosen. Weights are read as
tensors only, never as pickled objects. Each bundle has a `scripts` package of its own, so that only one bundle at a
time in a process is read with its scripts in sight; the classes stay whose they are afterwards.

What a bundle says it was made with (`required_packages_version`, `monai_version` and so on in its metadata) is no
condition: zoo bundles name what they were tested with, and mostly run without it. It is told where it is not there or
older: beside the error of a bundle that cannot be read, and in the log of one that can.
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
"""Where a checkpoint keeps the network's tensors if it holds more than these."""
_TESTED_WITH = {"monai_version": "monai", "pytorch_version": "torch", "numpy_version": "numpy"}
"""Keys of the metadata that name one package's version, and the package."""
_PACKAGES = "required_packages_version"
_scripts = threading.RLock()


class BundleFolder:
    """One bundle. `name` is the model's, for messages. Safe from any thread."""

    def __init__(self, root: Path, name: str) -> None:
        self.root = root.resolve()
        self.name = name

    def broken(self, text: str) -> ModelBroken:
        """The error that says so."""
        return ModelBroken(f"bundle {self.name!r}: {text}")

    def path(self, config: str) -> Path | None:
        """The file of a config, if there is one."""
        found = (self.root / "configs" / f"{config}{suffix}" for suffix in SUFFIXES)
        return next((path for path in found if path.is_file()), None)

    def read(self, config: str) -> dict[str, Any]:
        """A config as it is written. Raises ModelBroken."""
        path = self.path(config)
        if path is None:
            raise self.broken(f"configs/{config}.json is missing (.yaml would do)")
        try:
            text = path.read_text()
            read = json.loads(text) if path.suffix == ".json" else yaml.safe_load(text)
        except (ValueError, yaml.YAMLError, OSError) as error:
            raise self.broken(f"configs/{path.name} cannot be read: {error}") from error
        if not isinstance(read, dict):
            raise self.broken(f"configs/{path.name} must hold an object")
        return read

    def lacking(self) -> str:
        """`einops 0.7.0 (not installed), monai 1.9 (1.6.1 is installed)`: what the metadata names and this server has
        not, or older; empty if there is nothing of that. Raises ModelBroken for unreadable metadata."""
        said = self.read(METADATA)
        wanted = {package: said[key] for key, package in _TESTED_WITH.items() if said.get(key)}
        packages = said.get(_PACKAGES)
        wanted |= packages if isinstance(packages, dict) else {}
        told = {package: (str(version), _installed(package)) for package, version in wanted.items()}
        return ", ".join(
            f"{package} {version} ({f'{found} is installed' if found else 'not installed'})"
            for package, (version, found) in told.items()
            if found is None or _older(found, version)
        )

    @contextlib.contextmanager
    def parser(self, config: str, over: Mapping[str, Any]) -> Iterator[ConfigParser]:
        """A parser of a config, with `over` in place of its values, while the bundle's scripts can be imported.

        Raises ModelBroken for whatever reading or instantiating raises within the block.
        """
        from monai.bundle import ConfigParser

        path = self.path(config)
        if path is None:
            raise self.broken(f"configs/{config}.json is missing (.yaml would do)")
        lacking = self.lacking()
        with self._reachable():
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
                because = f"; it was made with {lacking}" if lacking else ""
                raise self.broken(f"configs/{path.name}: {_reason(error)}{because}") from error
        if lacking:
            logger.warning("bundle %s was made with %s; it is used all the same", self.name, lacking)

    @contextlib.contextmanager
    def _reachable(self) -> Iterator[None]:
        """Let `import scripts` mean this bundle's; the process is as before afterwards."""
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
        """The file with the weights that came with the bundle. Raises ModelBroken."""
        found = next((self.root / file for file in WEIGHTS if (self.root / file).is_file()), None)
        if found is None:
            raise self.broken(f"there is none of {', '.join(WEIGHTS)}")
        return found

    def network(self, parser: ConfigParser, weights: Path) -> nn.Module:
        """The network of a config, with weights from a state dict, safetensors or TorchScript. Raises ModelBroken."""
        if is_torchscript(weights):
            try:
                scripted: nn.Module = torch.jit.load(  # type: ignore[no-untyped-call]
                    weights, map_location=str(parser["device"])
                )
            except (RuntimeError, ValueError) as error:
                raise self.broken(f"{weights.name} is no whole TorchScript file: {_reason(error)}") from error
            return scripted
        defined = next((key for key in ("network", "network_def") if key in parser), None)
        if defined is None:
            raise self.broken(f"its config has no network_def, which {weights.name} needs")
        network: nn.Module = parser.get_parsed_content(defined)
        try:
            network.load_state_dict(self.tensors(weights), strict=True)
        except RuntimeError as error:
            raise self.broken(f"{weights.name} does not fit its network: {_reason(error)}") from error
        return network

    def tensors(self, weights: Path) -> dict[str, Tensor]:
        """A state dict, as it lies in a file or under the usual names in one. Raises ModelBroken."""
        try:
            if weights.suffix == ".safetensors":
                return load_file(weights)
            read = torch.load(weights, map_location="cpu", weights_only=True)
        except pickle.UnpicklingError as error:
            raise self.broken(f"{weights.name} holds more than tensors, which could run code: not loaded") from error
        except Exception as error:
            raise self.broken(f"{weights.name} is no whole file of weights: {_reason(error)}") from error
        for key in _NESTED:
            if isinstance(read, Mapping) and isinstance(read.get(key), Mapping):
                read = read[key]
        if not isinstance(read, Mapping) or not all(isinstance(value, Tensor) for value in read.values()):
            raise self.broken(f"{weights.name} holds no state dict")
        return {name.removeprefix("module."): tensor for name, tensor in read.items()}


def targets(config: Any) -> set[str]:
    """The names, without their modules, of all classes and functions that a config instantiates."""
    if isinstance(config, Mapping):
        own = {str(config["_target_"]).rsplit(".", 1)[-1]} if "_target_" in config else set()
        return own.union(*(targets(value) for value in config.values()))
    return set().union(*(targets(value) for value in config)) if isinstance(config, list) else set()


def _without_files(config: Any) -> None:
    """Take the steps that write images out of a config, and let those that read use whichever reader fits: the one
    that is named may not be installed, and a server's images come decoded."""
    for part in config.values() if isinstance(config, dict) else config if isinstance(config, list) else ():
        _without_files(part)
    if isinstance(config, dict):
        target = str(config.get("_target_", "")).rsplit(".", 1)[-1]
        if target in ("SaveImage", "SaveImaged"):
            config["_disabled_"] = True
        if target in ("LoadImage", "LoadImaged"):
            config.pop("reader", None)


def is_torchscript(path: Path) -> bool:
    """Whether a file is a TorchScript archive, whatever its name says."""
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
    """Whether one version comes before another, without what builders append (`2.10.0+cu128`, `1.5.dev1`)."""
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
