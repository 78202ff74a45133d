"""A network with its weights on a device.

Weights are loaded once, under a lock, by whichever thread needs them first. Only one thread at a time may run a
network.
"""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from rayapp.errors import BadRequest, ModelBroken
from rayapp.inference.network import cancellation
from rayapp.models.networks import build, load_weights


class Network:
    """A MONAI network as a function from images to logits, on the GPU if there is one, else on the CPU.

    Args:
        name: The model's name, for error messages.
        config: The network's class and arguments, as `rayapp.models.networks.build` takes them.
        weights: The safetensors file.
        channels: Input and output channels that the task needs.
        precision: "bfloat16" to compute in bfloat16 where the hardware supports it; anything else computes in float32.
    """

    def __init__(
        self,
        *,
        name: str,
        config: Mapping[str, Any],
        weights: Path,
        channels: tuple[int, int],
        precision: str = "bfloat16",
    ) -> None:
        self._name = name
        self._config = config
        self._weights = weights
        self._channels = channels
        self._loading = threading.Lock()
        self._network: nn.Module | None = None
        self.device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
        self._bf16 = precision == "bfloat16" and supports_bf16(self.device)

    @property
    def device_name(self) -> str:
        """The device's name, as clients display it."""
        return torch.cuda.get_device_name(self.device) if self.device.type == "cuda" else "cpu"

    @property
    def divisor(self) -> tuple[int, ...]:
        """Numbers of which the voxels along each axis must be multiples: the product of the network's strides."""
        return divisor_of(self._config)

    def load(self) -> None:
        """Build the network and load its weights; later calls do nothing.

        Raises:
            ModelBroken: If the card's network does not fit its labels, or the weights do not fit the network; names
                the model and the file.
        """
        with self._loading:
            if self._network is not None:
                return
            needed = {"in_channels": self._channels[0], "out_channels": self._channels[1]}
            configured = {key: self._config.get(key) for key in needed}
            if configured != needed:
                raise ModelBroken(
                    f"model {self._name!r}: its card's network has {configured}; its labels need {needed}"
                )
            try:
                network = build(self._config)
                load_weights(network, self._weights)
            except ModelBroken as error:
                raise ModelBroken(f"model {self._name!r}: {error.detail}") from error
            network = network.requires_grad_(False).eval().to(self.device)
            self._network = torch.nn.utils.convert_conv3d_weight_memory_format(network, torch.channels_last_3d)

    def __call__(self, images: Tensor) -> Tensor:
        """Run the network.

        A checkpoint for cancellation (`rayapp.inference.network.cancellation`).

        Args:
            images: Shape (N, channels, *shape), two- or three-dimensional.

        Returns:
            Logits (N, classes, *shape), float32.
        """
        cancellation.checkpoint()
        self.load()
        if self._network is None:
            raise ModelBroken(f"model {self._name!r} is not loaded")
        layout = torch.channels_last_3d if images.ndim == 5 else torch.channels_last
        images = images.to(self.device).contiguous(memory_format=layout)
        with torch.inference_mode(), torch.autocast(self.device.type, torch.bfloat16, enabled=self._bf16):
            logits: Tensor = self._network(images)
        return logits.to(torch.float32, memory_format=torch.contiguous_format)  # both in one pass

    @contextlib.contextmanager
    def dropout(self, probability: float) -> Iterator[None]:
        """Monte Carlo dropout; see the function `dropout`."""
        self.load()
        assert self._network is not None
        with dropout(self._network, probability, name=self._name):
            yield


@contextlib.contextmanager
def dropout(network: nn.Module, probability: float, *, name: str) -> Iterator[None]:
    """Monte Carlo dropout: within the context dropout is active, and everything else is as in inference.

    Each forward pass is one sample of the posterior (Gal and Ghahramani, Dropout as a Bayesian Approximation, 2016). In
    a network that was trained without dropout, whole channels of the deepest convolutions are dropped (the best place
    according to Kendall et al., Bayesian SegNet, 2017). For the thread that runs the network.

    Args:
        network: The network, in evaluation mode.
        probability: Probability of dropping a channel, where the network has no dropout of its own.
        name: The model's name, for error messages.

    Raises:
        BadRequest: If the network has neither dropout nor convolutions, or hides them, as TorchScript does.
    """
    own = [m for m in network.modules() if isinstance(m, nn.modules.dropout._DropoutNd) and m.p > 0]
    hooks = []
    if not own:
        hooks = [m.register_forward_hook(_channel_dropout(probability)) for m in _deepest_convolutions(network)]
        if not hooks:
            raise BadRequest(f"model {name!r} has neither dropout nor convolutions to drop: choose another method")
    for module in own:
        module.train()
    try:
        yield
    finally:
        for module in own:
            module.eval()
        for hook in hooks:
            hook.remove()


def _channel_dropout(probability: float) -> Callable[[nn.Module, Any, Tensor], Tensor]:
    """A forward hook that drops whole channels of a module's output."""

    def drop(module: nn.Module, inputs: Any, output: Tensor) -> Tensor:  # noqa: ARG001
        return torch.feature_dropout(output, probability, True)

    return drop


def _deepest_convolutions(network: nn.Module) -> list[nn.Module]:
    """Convolutions with at least half as many output channels as the widest."""
    convolutions = [m for m in network.modules() if isinstance(m, nn.Conv2d | nn.Conv3d) and max(m.kernel_size) > 1]
    widest = max((m.out_channels for m in convolutions), default=0)
    return [m for m in convolutions if 2 * m.out_channels >= widest]


def divisor_of(config: Mapping[str, Any]) -> tuple[int, ...]:
    """Product of a network's strides along each axis, from its configuration; 16 if that states no strides."""
    axes = int(config.get("spatial_dims", 3))
    strides = config.get("strides", (2, 2, 2, 2))
    products = np.prod([np.broadcast_to(stride, axes) for stride in (1, *strides)], axis=0)
    return tuple(int(product) for product in products)


def supports_bf16(device: torch.device) -> bool:
    """True if the hardware computes in bfloat16: GPUs since Ampere, CPUs with AMX or AVX512-BF16."""
    if device.type == "cuda":
        return torch.cuda.get_device_capability(device) >= (8, 0)
    capabilities = torch.cpu.get_capabilities()
    return bool(capabilities.get("amx_bf16") or capabilities.get("avx512_bf16"))
