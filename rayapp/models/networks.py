"""Networks by description, and their weights as safetensors.

A network is described by plain JSON, `{"name": "UNet", **arguments}`: the name of a class in `monai.networks.nets`, or
of one that an app registered, and its constructor's arguments, so that a model's card is enough to build it. Weights
are stored as float16 and computed with as float32; no pickle is ever read.
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
from rayapp.models.convolution import for_single_images

MAX_CHANNELS = 256
"""Maximum number of channels of proposed networks."""


def residual_unet(in_channels: int, out_channels: int) -> dict[str, Any]:
    """The network of the shipped weights: 0.6 million parameters, about 0.1 s for 80x64x64 voxels on two cores."""
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
    """A U-Net as nnU-Net builds it, whose finest level has the resolution of the input.

    Args:
        inputs: input channels.
        outputs: output channels.
        strides: for each level below the finest, the strides that lead to it, one per axis.
        kernels: for each level, the sizes of its kernels, one per axis.
        width: channels of the finest level; they double with each level, up to `MAX_CHANNELS`.
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
    """A residual U-Net (Kerfoot et al., 2019) whose first convolution is already strided.

    A training step is three to four times cheaper than that of a U-Net that computes on every voxel first, so that it
    learns more in the same time on a CPU. Arguments as `full_unet`.
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
    return [min(MAX_CHANNELS, width * 2**level) for level in range(levels)]


def _plain(numbers: Sequence[int]) -> int | list[int]:
    """One number if all axes have the same."""
    return numbers[0] if len(set(numbers)) == 1 else list(numbers)


N = TypeVar("N", bound=type[nn.Module])
_registered: dict[str, type[nn.Module]] = {}
"""Networks that apps registered, by name; reloading an app registers them again."""


def register(cls: N) -> N:
    """Class decorator: make a network of an app available to descriptions under its class name.

    The constructor must take `spatial_dims`, `in_channels` and `out_channels` by keyword, and the other arguments that
    descriptions give. The network gets (N, in_channels, …), with sizes that are multiples of 16 or, if it has an
    argument `strides`, of the products of these, and must return logits (N, out_channels, …), background first.

    Raises AppBroken if MONAI has a network of that name.
    """
    from monai.networks import nets

    if hasattr(nets, cls.__name__):
        raise AppBroken(f"MONAI already has a network {cls.__name__!r}: rename yours")
    _registered[cls.__name__] = cls
    return cls


def build(config: Mapping[str, Any]) -> nn.Module:
    """The network that `config` describes, with random weights.

    Raises:
        ModelBroken: if neither the app nor MONAI has such a network, or it does not accept these arguments.
    """
    from monai.networks import nets  # takes seconds to import, and is not needed to describe a model

    arguments = dict(config)
    name = arguments.pop("name", None)
    cls = _registered.get(name) or getattr(nets, name, None) if isinstance(name, str) else None
    if not (isinstance(cls, type) and issubclass(cls, nn.Module)):
        raise ModelBroken(f"neither the app nor MONAI has a network {name!r}")
    try:
        network: nn.Module = cls(**arguments)
    except (TypeError, ValueError) as error:
        raise ModelBroken(f"network {name!r} cannot be built: {error}") from error
    return for_single_images(network)


def load_weights(network: nn.Module, path: Path) -> None:
    """Load the weights of a safetensors file into `network`.

    Raises:
        ModelBroken: naming the file, if it is missing, damaged, or does not match the network.
    """
    try:
        tensors = load_file(path)
    except FileNotFoundError:
        raise ModelBroken(f"{path.name} is missing") from None
    except (SafetensorError, OSError, ValueError) as error:
        raise ModelBroken(f"{path.name} is not an intact safetensors file: {type(error).__name__}") from error
    try:
        network.load_state_dict(tensors, strict=True)
    except RuntimeError as error:
        reason = " ".join(str(error).split())[:300]
        raise ModelBroken(f"{path.name} does not match its network: {reason}") from None
    if not all(torch.isfinite(tensor).all() for tensor in tensors.values() if tensor.is_floating_point()):
        raise ModelBroken(f"{path.name} has weights that are NaN or infinite")


def save_weights(network: nn.Module, path: Path) -> None:
    """Save the network's weights as float16 safetensors."""
    tensors = {
        name: (tensor.half() if tensor.is_floating_point() else tensor).detach().cpu().contiguous()
        for name, tensor in network.state_dict().items()
    }
    save_file(tensors, path, metadata={"format": "pt"})
