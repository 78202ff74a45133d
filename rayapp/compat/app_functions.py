"""`monailabel.utils.others.generic`: small functions that apps import."""

from __future__ import annotations

import contextlib
import logging
import shutil
import urllib.request
from collections.abc import Mapping
from pathlib import Path

import torch
from filelock import FileLock

from rayapp.files.durable import replacing
from rayapp.imaging.reader import split_ext
from rayapp.protocol import parse_flag

logger = logging.getLogger(__name__)

DOWNLOAD_S = 30.0
"""Seconds without a byte after which a download is given up."""


def strtobool(text: object) -> bool:
    """A flag from `--conf`: None and empty texts are False."""
    return bool(text) and parse_flag(text, "a flag")


def device_list() -> list[str]:
    """Names of the devices, as a request may choose them."""
    count = torch.cuda.device_count()
    return (["cuda"] if count == 1 else [f"cuda:{index}" for index in range(count)]) or ["cpu"]


def device_map() -> dict[str, str]:
    """Device by name."""
    return {name: name for name in device_list()}


def name_to_device(device: object) -> str:
    """The device of a request; the CPU if there is no GPU."""
    name = device[0] if isinstance(device, list) and device else device
    return str(name) if torch.cuda.is_available() and str(name).startswith("cuda") else "cpu"


def gpu_count() -> int:
    """Number of GPUs."""
    return torch.cuda.device_count()


def file_ext(name: object) -> str:
    """Extension of a file, such as `.nii.gz`."""
    return split_ext(Path(str(name)).name)[1]


def get_basename(path: object) -> str:
    """Last part of a path."""
    return Path(str(path)).name


def get_basename_no_ext(path: object) -> str:
    """Last part of a path without its extension."""
    return split_ext(Path(str(path)).name)[0]


def remove_file(path: object) -> None:
    """Remove a file or a folder, if it exists."""
    target = Path(str(path))
    if target.is_dir() and not target.is_symlink():
        shutil.rmtree(target, ignore_errors=True)
    else:
        target.unlink(missing_ok=True)


def download_file(url: str, path: str, delay: int = 1, skip_on_exists: bool = True) -> None:  # noqa: ARG001
    """Download a file once, whichever process asks first. A failure is logged: the model is then listed as broken.

    Args:
        url: https address.
        path: The file to write.
        delay: Not used.
        skip_on_exists: Keep a file that is there.
    """
    target = Path(path)
    if target.exists() and skip_on_exists:
        return
    target.parent.mkdir(parents=True, exist_ok=True)
    with FileLock(target.with_name(f".{target.name}.lock")):
        if target.exists() and skip_on_exists:
            return
        try:
            with (
                urllib.request.urlopen(url, timeout=DOWNLOAD_S) as source,
                replacing(target) as staged,
                staged.open("wb") as sink,
            ):
                shutil.copyfileobj(source, sink)
        except (OSError, ValueError) as error:
            logger.warning("%s could not be downloaded from %s (%s)", target.name, url, type(error).__name__)


def get_bundle_models(app_dir: str, conf: Mapping[str, str], conf_key: str = "models") -> dict[str, str]:
    """Folders of the bundles that `--conf` names, by name; each lies in `model/` of the app.

    Args:
        app_dir: The app's folder.
        conf: The server's `--conf` pairs.
        conf_key: The key with the names, separated by commas; `all` for every bundle in the folder.
    """
    folder = Path(app_dir) / "model"
    names = [name.strip() for name in (conf.get(conf_key) or "").split(",") if name.strip()]
    if names == ["all"]:
        with contextlib.suppress(FileNotFoundError):
            names = sorted(path.name for path in folder.iterdir() if (path / "configs" / "metadata.json").is_file())
    return {name: str(folder / name) for name in names}
