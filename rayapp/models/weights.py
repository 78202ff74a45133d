"""Uploaded weights: safetensors, or a torch file, which is converted to safetensors without running code in it."""

from __future__ import annotations

import pickle
import zipfile
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rayapp.errors import TooLarge, Unreadable

if TYPE_CHECKING:
    import torch

DAMAGED = "the torch file is damaged or has more than tensors: save `model.state_dict()`"


def is_torch(path: Path) -> bool:
    """True for a file written by `torch.save`, which is a zip archive."""
    return zipfile.is_zipfile(path)


def convert_weights(path: Path, target: Path, max_bytes: int) -> None:
    """Write the tensors of a torch file to `target` as safetensors.

    Raises:
        Unreadable: if the file is damaged or has more than tensors.
        TooLarge: if it unpacks to more than `max_bytes`.
    """
    from safetensors.torch import save_file

    try:
        with zipfile.ZipFile(path) as archive:
            if sum(entry.file_size for entry in archive.infolist()) > max_bytes:
                raise TooLarge(f"the model unpacks to more than {max_bytes} bytes: raise max_body")
    except (zipfile.BadZipFile, OSError) as error:
        raise Unreadable(DAMAGED) from error
    save_file({name: tensor.contiguous().clone() for name, tensor in read_weights(path).items()}, target)


def read_weights(path: Path, *, key: str = "model") -> dict[str, torch.Tensor]:
    """The tensors of a safetensors or a torch file, by name. No code in it is run.

    Args:
        path: the file.
        key: under which a torch file may keep them.

    Raises:
        Unreadable: if the file is damaged or has more than tensors.
    """
    import torch  # imported here, so that the gateway, which only needs `is_torch`, starts without it
    from safetensors.torch import load_file

    if path.suffix == ".safetensors":
        tensors: dict[str, torch.Tensor] = load_file(path)
        return tensors
    try:
        content = torch.load(path, map_location="cpu", weights_only=True)
    except (pickle.UnpicklingError, RuntimeError, EOFError, ValueError, OSError) as error:
        raise Unreadable(DAMAGED) from error
    return {str(name): tensor for name, tensor in _state_dict(content, key).items()}


def _state_dict(content: Any, key: str) -> dict[Any, Any]:
    import torch

    for name in (key, "state_dict", "model"):
        if isinstance(content, dict) and isinstance(content.get(name), dict):
            content = content[name]
    if not isinstance(content, dict) or not content or not all(isinstance(t, torch.Tensor) for t in content.values()):
        raise Unreadable("the torch file has no state dict: save `model.state_dict()`")
    return content
