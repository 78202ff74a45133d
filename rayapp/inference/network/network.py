"""Network: a network with its weights on a device.

Loading happens once, under a lock, from whichever thread asks first; running belongs to one thread at a time.
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
    """A MONAI network as a function from (1, C, *roi or larger) to logits, float32, on the CPU's or a GPU's terms."""

    def __init__(
        self,
        *,
        name: str,
        config: Mapping[str, Any],
        weights: Path,
        channels: tuple[int, int],
        precision: str = "bfloat16",
    ) -> None:
        """`channels` are those that the task feeds in and expects out; `name` is the model's, for messages. It computes
        in bfloat16 where the hardware does, unless `precision` is another."""
        self._name = name
        self._config = config
        self._weights = weights
        self._channels = channels
        self._loading = threading.Lock()
        self._network: nn.Module | None = None
        self.device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
        self._bf16 = precision == "bfloat16" and bf16_helps(self.device)

    @property
    def device_name(self) -> str:
        """The device as the clients show it."""
        return torch.cuda.get_device_name(self.device) if self.device.type == "cuda" else "cpu"

    @property
    def divisor(self) -> tuple[int, ...]:
        """Voxels along each axis must be a multiple of these (the products of the network's strides)."""
        return divisor_of(self._config)

    def load(self) -> None:
        """Build the network and load its weights, once.

        Raises:
            ModelBroken: naming the model and its file.
        """
        with self._loading:
            if self._network is not None:
                return
            wanted = {"in_channels": self._channels[0], "out_channels": self._channels[1]}
            stated = {key: self._config.get(key) for key in wanted}
            if stated != wanted:
                raise ModelBroken(f"model {self._name!r}: its card's network has {stated}, its labels need {wanted}")
            try:
                network = build(self._config)
                load_weights(network, self._weights)
            except ModelBroken as error:
                raise ModelBroken(f"model {self._name!r}: {error.detail}") from error
            network = network.requires_grad_(False).eval().to(self.device)
            self._network = torch.nn.utils.convert_conv3d_weight_memory_format(network, torch.channels_last_3d)

    def __call__(self, images: Tensor) -> Tensor:
        """Logits (N, classes, *shape) for (N, channels, *shape), of two or three dimensions."""
        cancellation.step()
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
        """See the function `dropout`."""
        self.load()
        assert self._network is not None
        with dropout(self._network, probability, name=self._name):
            yield


@contextlib.contextmanager
def dropout(network: nn.Module, probability: float, *, name: str) -> Iterator[None]:
    """Within it dropout is active, and all else as it is when serving: each call is one sample of the posterior
    (Gal and Ghahramani, Dropout as a Bayesian Approximation, 2016).

    A network that was trained without dropout drops whole channels, each with `probability`, of its deepest
    convolutions (the best place by Kendall et al., Bayesian SegNet, 2017). Belongs to the thread that runs it.

    Raises:
        BadRequest: for a network that has neither, or hides them, as TorchScript does.
    """
    own = [m for m in network.modules() if isinstance(m, nn.modules.dropout._DropoutNd) and m.p > 0]
    hooks = []
    if not own:
        hooks = [m.register_forward_hook(_dropping(probability)) for m in _deepest(network)]
        if not hooks:
            raise BadRequest(f"model {name!r} shows neither dropout nor convolutions: choose another method")
    for module in own:
        module.train()
    try:
        yield
    finally:
        for module in own:
            module.eval()
        for hook in hooks:
            hook.remove()


def _dropping(probability: float) -> Callable[[nn.Module, Any, Tensor], Tensor]:
    def drop(module: nn.Module, given: Any, output: Tensor) -> Tensor:  # noqa: ARG001
        return torch.feature_dropout(output, probability, True)

    return drop


def _deepest(network: nn.Module) -> list[nn.Module]:
    """The convolutions with at least half as many channels as the widest has."""
    found = [m for m in network.modules() if isinstance(m, nn.Conv2d | nn.Conv3d) and max(m.kernel_size) > 1]
    widest = max((m.out_channels for m in found), default=0)
    return [m for m in found if 2 * m.out_channels >= widest]


def divisor_of(config: Mapping[str, Any]) -> tuple[int, ...]:
    """The product of a network's strides along each of its axes, by its configuration; of one without, 16."""
    axes = int(config.get("spatial_dims", 3))
    strides = config.get("strides", (2, 2, 2, 2))
    products = np.prod([np.broadcast_to(stride, axes) for stride in (1, *strides)], axis=0)
    return tuple(int(product) for product in products)


def bf16_helps(device: torch.device) -> bool:
    """True where bfloat16 has hardware behind it: GPUs since Ampere, CPUs with AMX or AVX512-BF16."""
    if device.type == "cuda":
        return torch.cuda.get_device_capability(device) >= (8, 0)
    capabilities = torch.cpu.get_capabilities()
    return bool(capabilities.get("amx_bf16") or capabilities.get("avx512_bf16"))
