"""Weights as uploaded: safetensors, or a torch file, which is turned into safetensors without running code in it."""

from __future__ import annotations

import pickle
import zipfile
from pathlib import Path
from typing import Any

from rayapp.errors import TooLarge, Unreadable


def is_torch(path: Path) -> bool:
    """True for a file that `torch.save` wrote: a zip archive."""
    return zipfile.is_zipfile(path)


def convert_weights(path: Path, target: Path, max_bytes: int) -> None:
    """Write the tensors of a torch file to `target` as safetensors.

    Raises Unreadable, and TooLarge if it unpacks to more than `max_bytes`.
    """
    import torch  # only here: the gateway, which asks `is_torch`, does without it
    from safetensors.torch import save_file

    try:
        with zipfile.ZipFile(path) as archive:
            if sum(entry.file_size for entry in archive.infolist()) > max_bytes:
                raise TooLarge(f"the model unpacks to more than {max_bytes} bytes: raise max_body")
        found = torch.load(path, map_location="cpu", weights_only=True)
    except (zipfile.BadZipFile, pickle.UnpicklingError, RuntimeError, EOFError, ValueError, OSError) as error:
        raise Unreadable("the torch file holds more than tensors, or is damaged: save `model.state_dict()`") from error
    save_file({str(name): tensor.contiguous().clone() for name, tensor in _tensors(found).items()}, target)


def _tensors(found: Any) -> dict[Any, Any]:
    import torch

    for key in ("state_dict", "model"):
        if isinstance(found, dict) and isinstance(found.get(key), dict):
            found = found[key]
    if not isinstance(found, dict) or not found or not all(isinstance(t, torch.Tensor) for t in found.values()):
        raise Unreadable("the torch file holds no state_dict: save `model.state_dict()`")
    return found
