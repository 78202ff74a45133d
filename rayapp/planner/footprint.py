"""Footprint: predicted memory and compute of a forward pass or training step of a network.

The workload is run once on tensors with shapes but without memory (`FakeTensorMode`), tracking every storage from
allocation to release. The predicted peak is therefore that of the network's own feature maps, gradients and optimiser
state, for any MONAI network, rather than a formula for one family of networks. Networks are assumed to run in
channels-last format, as `rayapp.inference.network.network` runs them. Takes 0.1 to 1 s; use from one thread.
"""

from __future__ import annotations

import json
import math
import weakref
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import lru_cache
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import flop_registry

from rayapp.models.networks import build

MIB = 1 << 20
HEAP_BLOCK = 32 * MIB
"""glibc maps larger blocks individually; smaller ones share a heap, which fragments as they are freed."""
HEAP_GAPS, HEAP_TOP = 1.6, 40 * MIB
"""Resident bytes of that heap per live byte, and its constant part.

Fitted to UNets of several widths, forward passes and training steps, in float32 and bfloat16 (measured by
`benchmarks.planner`).
"""


@dataclass(frozen=True, kw_only=True)
class Workload:
    """One forward pass, or one training step (forward, Dice and cross-entropy loss, backward, AdamW).

    Attributes:
        network: description as taken by `rayapp.models.networks.build`.
        roi: voxels of the region along each axis.
        batch: number of regions.
        precision: "float32" or "bfloat16".
        training: True for a training step.
    """

    network: Mapping[str, Any]
    roi: Sequence[int]
    batch: int = 1
    precision: str = "float32"
    training: bool = False

    def prepare(self, device: str = "cpu") -> Callable[[], Tensor]:
        """Create the network, its input and the optimiser, with gradients and optimiser state as after a first step.

        Each call of the returned function runs the workload once.
        """
        if len(self.roi) == 3:
            last, convert = torch.channels_last_3d, nn.utils.convert_conv3d_weight_memory_format
        else:
            last, convert = torch.channels_last, nn.utils.convert_conv2d_weight_memory_format
        with torch.device(device):
            network: nn.Module = convert(build(self.network), last)
        images = torch.zeros(self.batch, self.network["in_channels"], *self.roi, device=device)
        images = images.contiguous(memory_format=last)
        if self.training:
            labels = torch.zeros(self.batch, 1, *self.roi, device=device)
            optimiser = torch.optim.AdamW(network.parameters(), fused=True)
            for weight in network.parameters():
                weight.grad = torch.zeros_like(weight)
            optimiser.step()
            return lambda: self._step(network, images, labels, optimiser)
        network.requires_grad_(False).eval()
        return lambda: self._logits(network, images)

    def _logits(self, network: nn.Module, images: Tensor) -> Tensor:
        bf16 = self.precision == "bfloat16"
        with torch.inference_mode(not self.training), torch.autocast(images.device.type, torch.bfloat16, enabled=bf16):
            logits: Tensor = network(images)
        return logits.float()

    def _step(self, network: nn.Module, images: Tensor, labels: Tensor, optimiser: torch.optim.Optimizer) -> Tensor:
        from monai.losses import DiceCELoss  # takes seconds to import

        loss_of = DiceCELoss(to_onehot_y=True, softmax=True, include_background=False, squared_pred=True, batch=True)
        loss: Tensor = loss_of(self._logits(network, images), labels)
        optimiser.zero_grad()
        torch.autograd.backward(loss)
        optimiser.step()
        return loss.detach()


@dataclass(frozen=True, kw_only=True)
class Footprint:
    """Predicted cost of a workload.

    Attributes:
        memory: peak bytes held by tensors (weights, gradients and optimiser state included) and by oneDNN.
        resident: growth of the process's resident memory under glibc, fragmentation included.
        flops: floating point operations of convolutions and matrix products.
        traffic: bytes written, a measure of the cost of all other operations.
    """

    memory: int
    resident: int
    flops: int
    traffic: int

    @classmethod
    def of(cls, workload: Workload, *, threads: int = 1) -> Footprint:
        """The footprint of a workload on this many threads. Raises ModelBroken if there is no such network."""
        return _trace(json.dumps(asdict(workload)), threads)


@lru_cache(maxsize=256)
def _trace(description: str, threads: int) -> Footprint:
    """The footprint of a workload given as JSON, since network descriptions are not hashable."""
    from torch._subclasses.fake_tensor import FakeTensorMode  # takes a second to import

    workload = Workload(**json.loads(description))
    tracker = _AllocationTracker(threads)
    fake = FakeTensorMode(allow_non_fake_inputs=True)
    with tracker:
        with fake:
            run = workload.prepare()
        tracker.begin()
        run()
    return Footprint(memory=tracker.memory, resident=tracker.resident, flops=tracker.flops, traffic=tracker.traffic)


class _AllocationTracker(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Tracks the bytes of all live storages after each operation, and oneDNN's scratch memory during it.

    It counts floating point operations as `FlopCounterMode` does, which would pass every call and every module through
    Python once more.
    """

    def __init__(self, threads: int) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.memory = self.resident = self.traffic = self.flops = 0
        self._threads = threads
        self._live: set[int] = set()
        self._large = self._small = 0
        self._counting = False

    def begin(self) -> None:
        """Count traffic and floating point operations from here on."""
        self.traffic, self._counting = 0, True

    def __torch_dispatch__(
        self, operation: Any, types: Any, args: Sequence[Any] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        if self._counting and operation.namespace == "aten":
            with self:  # inference mode leaves it to the modes to take composite operations apart
                parts = operation.decompose(*args, **kwargs)
            if parts is not NotImplemented:
                return parts
        result = operation(*args, **kwargs)
        if self._counting and (formula := flop_registry.get(operation.overloadpacket)) is not None:
            self.flops += formula(*args, **kwargs, out_val=result)
        for output in result if isinstance(result, (tuple, list)) else (result,):
            if isinstance(output, Tensor):
                self._track(output.untyped_storage())
        scratch = self._scratch(operation, args)
        self.memory = max(self.memory, self._large + self._small + scratch)
        self.resident = max(self.resident, self._large + int(HEAP_GAPS * self._small) + HEAP_TOP + scratch)
        return result

    def _track(self, storage: torch.UntypedStorage) -> None:
        key, size = storage._cdata, storage.nbytes()
        if key in self._live:
            return
        self._live.add(key)
        self.traffic += size
        self._count(size)
        weakref.finalize(storage, self._release, key, size)

    def _release(self, key: int, size: int) -> None:
        self._live.discard(key)
        self._count(-size)

    def _count(self, size: int) -> None:
        if abs(size) < HEAP_BLOCK:
            self._small += size
        else:
            self._large += size

    def _scratch(self, operation: Any, args: Sequence[Any]) -> int:
        """Scratch bytes of oneDNN during a convolution.

        Channels-last copies of its inputs and, for a weight gradient in bfloat16, each thread's transposed rows
        (measured: 16 bytes per voxel, twice that with strides, rows padded to 64).
        """
        if operation is torch.ops.aten.convolution.default:
            return _copy_bytes(args[0])
        if operation is not torch.ops.aten.convolution_backward.default:
            return 0
        gradient, images, weight, _, strides, _, _, transposed = args[:8]
        copies = _copy_bytes(gradient) + _copy_bytes(images)
        if images.dtype != torch.bfloat16 or math.prod(weight.shape[2:]) == 1:
            return copies
        *rows, row = (gradient if transposed else images).shape[2:]
        transposed_rows: int = math.prod(rows) * -(-row // 64) * 64 * (32 if max(strides) > 1 else 16)
        return copies + self._threads * transposed_rows


def _copy_bytes(tensor: Tensor) -> int:
    """Size of the channels-last copy that oneDNN makes of the tensor; 0 if it needs none."""
    last = torch.channels_last_3d if tensor.dim() == 5 else torch.channels_last
    return 0 if tensor.is_contiguous(memory_format=last) else tensor.numel() * tensor.element_size()
