"""Uploaded weights: safetensors, or a torch file, which is converted to safetensors without running code in it."""

from __future__ import annotations

import pickle
import zipfile
from pathlib import Path
from typing import Any

from rayapp.errors import TooLarge, Unreadable


def is_torch(path: Path) -> bool:
    """True for a file written by `torch.save`, which is a zip archive."""
    return zipfile.is_zipfile(path)


def convert_weights(path: Path, target: Path, max_bytes: int) -> None:
    """Write the tensors of a torch file to `target` as safetensors.

    Raises:
        Unreadable: if the file is damaged or has more than tensors.
        TooLarge: if it unpacks to more than `max_bytes`.
    """
    import torch  # imported here, so that the gateway, which only needs `is_torch`, starts without it
    from safetensors.torch import save_file

    try:
        with zipfile.ZipFile(path) as archive:
            if sum(entry.file_size for entry in archive.infolist()) > max_bytes:
                raise TooLarge(f"the model unpacks to more than {max_bytes} bytes: raise max_body")
        content = torch.load(path, map_location="cpu", weights_only=True)
    except (zipfile.BadZipFile, pickle.UnpicklingError, RuntimeError, EOFError, ValueError, OSError) as error:
        raise Unreadable("the torch file is damaged or has more than tensors: save `model.state_dict()`") from error
    save_file({str(name): tensor.contiguous().clone() for name, tensor in _state_dict(content).items()}, target)


def _state_dict(content: Any) -> dict[Any, Any]:
    import torch

    for key in ("state_dict", "model"):
        if isinstance(content, dict) and isinstance(content.get(key), dict):
            content = content[key]
    if not isinstance(content, dict) or not content or not all(isinstance(t, torch.Tensor) for t in content.values()):
        raise Unreadable("the torch file has no state dict: save `model.state_dict()`")
    return content
