"""Footprint: what one forward pass or one training step of a network takes, foretold without taking it.

The work is run once on tensors that have shapes but no memory (`FakeTensorMode`), and every storage that it would
allocate is followed from birth to death. So whatever MONAI network is described, the peak is that of its own feature
maps, gradients and optimiser state, not of a formula for one family of networks. Networks are assumed to run with
channels last, as `rayapp.inference.network.network` runs them. Takes a tenth of a second to a second; safe from one
thread.
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
from torch.utils.flop_counter import FlopCounterMode

from rayapp.models.networks import build

MIB = 1 << 20
HEAP_BLOCK = 32 * MIB
"""glibc maps larger blocks each on its own; smaller ones share a heap and leave gaps in it when they are freed."""
HEAP_GAPS, HEAP_TOP = 1.6, 40 * MIB
"""Resident bytes of that heap per live byte, and what it keeps besides: fitted to UNets of several widths, forward
passes and training steps, float32 and bfloat16 (`benchmarks.planner` measures both)."""


@dataclass(frozen=True, kw_only=True)
class Work:
    """One forward pass on `batch` regions of `roi` voxels or, with `training`, one step of it: forward, Dice and
    cross-entropy, backward, AdamW. `network` is as `rayapp.models.networks.build` takes it."""

    network: Mapping[str, Any]
    roi: Sequence[int]
    batch: int = 1
    precision: str = "float32"
    training: bool = False

    def prepared(self, device: str = "cpu") -> Callable[[], Tensor]:
        """Make network, input and optimiser; each call of the result does the work once."""
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
    """What a piece of work takes.

    `memory` is the most bytes held at once, by tensors (weights, gradients and optimiser state among them) and by
    oneDNN. `resident` is what a process of glibc's grows by, gaps between small tensors included. `flops` are those of
    convolutions and products; `traffic` are the bytes written, which is what all else costs.
    """

    memory: int
    resident: int
    flops: int
    traffic: int

    @classmethod
    def of(cls, work: Work, *, threads: int = 1) -> Footprint:
        """The footprint of work done by so many threads. Raises ModelBroken if there is no such network."""
        return _traced(json.dumps(asdict(work)), threads)


@lru_cache(maxsize=256)
def _traced(work: str, threads: int) -> Footprint:
    """Work as JSON, because networks' descriptions cannot be hashed."""
    from torch._subclasses.fake_tensor import FakeTensorMode  # a second to import

    todo = Work(**json.loads(work))
    ledger = _Ledger(threads)
    fake = FakeTensorMode(allow_non_fake_inputs=True)
    with ledger:
        with fake:
            once = todo.prepared()
        if todo.training:
            once()  # the next step finds gradients and optimiser state of this one
        ledger.traffic = 0
        with FlopCounterMode(display=False) as counter:
            once()
    return Footprint(
        memory=ledger.memory, resident=ledger.resident, flops=counter.get_total_flops(), traffic=ledger.traffic
    )


class _Ledger(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Counts the bytes of all storages that live, after each operation, and what oneDNN adds during it."""

    def __init__(self, threads: int) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.memory = self.resident = self.traffic = 0
        self._threads = threads
        self._living: set[int] = set()
        self._large = self._small = 0

    def __torch_dispatch__(
        self, operation: Any, types: Any, args: Sequence[Any] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        result = operation(*args, **(kwargs or {}))
        for made in result if isinstance(result, (tuple, list)) else (result,):
            if isinstance(made, Tensor):
                self._born(made.untyped_storage())
        scratch = self._scratch(operation, args)
        self.memory = max(self.memory, self._large + self._small + scratch)
        self.resident = max(self.resident, self._large + int(HEAP_GAPS * self._small) + HEAP_TOP + scratch)
        return result

    def _born(self, storage: torch.UntypedStorage) -> None:
        key, size = storage._cdata, storage.nbytes()
        if key in self._living:
            return
        self._living.add(key)
        self.traffic += size
        self._count(size)
        weakref.finalize(storage, self._died, key, size)

    def _died(self, key: int, size: int) -> None:
        self._living.discard(key)
        self._count(-size)

    def _count(self, size: int) -> None:
        if abs(size) < HEAP_BLOCK:
            self._small += size
        else:
            self._large += size

    def _scratch(self, operation: Any, args: Sequence[Any]) -> int:
        """Bytes that oneDNN holds during a convolution: copies with channels last and, for a weight gradient in
        bfloat16, each thread's transposed rows (measured: 16 bytes a voxel, twice that with strides, rows of 64)."""
        if operation is torch.ops.aten.convolution.default:
            return _copied(args[0])
        if operation is not torch.ops.aten.convolution_backward.default:
            return 0
        gradient, images, weight, _, strides, _, _, transposed = args[:8]
        copies = _copied(gradient) + _copied(images)
        if images.dtype != torch.bfloat16 or math.prod(weight.shape[2:]) == 1:
            return copies
        *rows, row = (gradient if transposed else images).shape[2:]
        held: int = math.prod(rows) * -(-row // 64) * 64 * (32 if max(strides) > 1 else 16)
        return copies + self._threads * held


def _copied(tensor: Tensor) -> int:
    last = torch.channels_last_3d if tensor.dim() == 5 else torch.channels_last
    return 0 if tensor.is_contiguous(memory_format=last) else tensor.numel() * tensor.element_size()
