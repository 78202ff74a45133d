"""Networks by name, and their weights as safetensors.

A network is described by plain JSON, `{"name": "UNet", **arguments}`: the name of a class in `monai.networks.nets`, or
of one that an app registered, and its constructor's arguments, so that a model's card can build it. Weights are kept as
float16 and computed with as float32; no pickle is ever read.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import nn

from rayapp.errors import AppBroken, ModelBroken

WIDEST = 256
"""Channels, at most, of the networks that are proposed."""


def residual_unet(in_channels: int, out_channels: int) -> dict[str, Any]:
    """The network of the weights that ship: 0.6 million parameters, about 0.1 s for 80x64x64 voxels on two cores."""
    return {
        "name": "UNet",
        "spatial_dims": 3,
        "in_channels": in_channels,
        "out_channels": out_channels,
        "channels": [16, 32, 64, 128],
        "strides": [2, 2, 2],
        "num_res_units": 1,
    }


def full_unet(
    inputs: int, outputs: int, strides: Sequence[Sequence[int]], kernels: Sequence[Sequence[int]], *, width: int
) -> dict[str, Any]:
    """A U-Net as nnU-Net builds it, whose finest level has the image's own voxels; `strides` lead to each level below.

    Kernels are each level's. `width` is the channels of the finest level; they double, up to `WIDEST`.
    """
    return {
        "name": "DynUNet",
        "spatial_dims": len(strides[0]),
        "in_channels": inputs,
        "out_channels": outputs,
        "kernel_size": [_plain(kernel) for kernel in kernels],
        "strides": [1, *(_plain(stride) for stride in strides)],
        "upsample_kernel_size": [_plain(stride) for stride in strides],
        "filters": _widths(len(strides) + 1, width),
    }


def strided_unet(inputs: int, outputs: int, strides: Sequence[Sequence[int]], *, width: int) -> dict[str, Any]:
    """A residual U-Net (Kerfoot et al., 2019), whose first convolution already strides.

    A step is three to four times cheaper than one of a U-Net that works on every voxel first; in the same time on a
    CPU it learns more.
    """
    return {
        "name": "UNet",
        "spatial_dims": len(strides[0]),
        "in_channels": inputs,
        "out_channels": outputs,
        "channels": _widths(len(strides) + 1, width),
        "strides": [_plain(stride) for stride in strides],
        "num_res_units": 2,
    }


def _widths(levels: int, width: int) -> list[int]:
    return [min(WIDEST, width * 2**level) for level in range(levels)]


def _plain(numbers: Sequence[int]) -> int | list[int]:
    """One number where all axes have the same."""
    return numbers[0] if len(set(numbers)) == 1 else list(numbers)


N = TypeVar("N", bound=type[nn.Module])
_own: dict[str, type[nn.Module]] = {}
"""By name, what apps registered; an app that is read again registers anew."""


def register(cls: N) -> N:
    """Let descriptions name a network of an app's own by its class's name. A decorator.

    Its constructor takes `spatial_dims`, `in_channels` and `out_channels` by name, and what else descriptions say. It
    is shown (N, in_channels, …), sizes being multiples of 16, or of the products of its argument `strides` if it has
    one, and gives logits (N, out_channels, …), background first. Raises AppBroken for a name that MONAI uses.
    """
    from monai.networks import nets

    if hasattr(nets, cls.__name__):
        raise AppBroken(f"MONAI has a network {cls.__name__!r}: call yours something else")
    _own[cls.__name__] = cls
    return cls


def build(config: Mapping[str, Any]) -> nn.Module:
    """The network that `config` describes, with random weights.

    Raises:
        ModelBroken: if neither the app nor MONAI has such a network, or it does not take these arguments.
    """
    from monai.networks import nets  # takes seconds to import, and describing a model needs none of it

    arguments = dict(config)
    name = arguments.pop("name", None)
    cls = _own.get(name) or getattr(nets, name, None) if isinstance(name, str) else None
    if not (isinstance(cls, type) and issubclass(cls, nn.Module)):
        raise ModelBroken(f"neither the app nor MONAI has a network {name!r}")
    try:
        network: nn.Module = cls(**arguments)
    except (TypeError, ValueError) as error:
        raise ModelBroken(f"network {name!r} cannot be built: {error}") from error
    return network


def load_weights(network: nn.Module, path: Path) -> None:
    """Fill `network` with the weights in the safetensors file at `path`.

    Raises:
        ModelBroken: naming the file, if it is missing, not whole, or of another network.
    """
    try:
        tensors = load_file(path)
    except FileNotFoundError:
        raise ModelBroken(f"{path.name} is missing") from None
    except (SafetensorError, OSError, ValueError) as error:
        raise ModelBroken(f"{path.name} is not a whole safetensors file: {type(error).__name__}") from error
    try:
        network.load_state_dict(tensors, strict=True)
    except RuntimeError as error:
        reason = " ".join(str(error).split())[:300]
        raise ModelBroken(f"{path.name} does not fit its network: {reason}") from None
    if not all(torch.isfinite(tensor).all() for tensor in tensors.values() if tensor.is_floating_point()):
        raise ModelBroken(f"{path.name} holds weights that are not finite")


def save_weights(network: nn.Module, path: Path) -> None:
    """Write the network's weights to `path` as float16 safetensors."""
    tensors = {
        name: (tensor.half() if tensor.is_floating_point() else tensor).detach().cpu().contiguous()
        for name, tensor in network.state_dict().items()
    }
    save_file(tensors, path, metadata={"format": "pt"})
