"""Muon: momentum whose update of each convolution is orthogonalised, so that all directions are learnt equally fast.

Source: Jordan et al., "Muon: An optimizer for hidden layers in neural networks" (2024). `torch.optim.Muon` takes
matrices only and multiplies in bfloat16, which is slow on CPUs. Here a convolution's weights are a matrix with one row
per output, and the iteration runs on its small Gram matrix, where all factors commute.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable

import torch
from torch import Tensor

COEFFICIENTS = (3.4445, -4.7750, 2.0315)
"""Coefficients of the quintic Newton-Schulz iteration (Jordan et al.); singular values end between 0.7 and 1.2."""
ITERATIONS = 5


class Muon(torch.optim.Optimizer):
    """The optimiser.

    Args:
        parameters: weights with at least two axes, outputs first.
        lr: approximate spectral norm of an update.
        momentum: coefficient of the gradients' moving average (Nesterov).
        weight_decay: share of the weights that an update with `lr` 1 would subtract.
    """

    def __init__(
        self, parameters: Iterable[Tensor], lr: float = 0.02, momentum: float = 0.9, weight_decay: float = 1e-4
    ) -> None:
        super().__init__(parameters, {"lr": lr, "momentum": momentum, "weight_decay": weight_decay})

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> None:  # type: ignore[override]
        """Take one step. `closure` is not supported."""
        assert closure is None
        for group in self.param_groups:
            for weights in group["params"]:
                if weights.grad is None:
                    continue
                state = self.state[weights]
                average = state.setdefault("average", torch.zeros_like(weights))
                average.lerp_(weights.grad, 1 - group["momentum"])
                update = orthogonal(weights.grad.lerp(average, group["momentum"]).flatten(1))
                rows, columns = update.shape
                weights.mul_(1 - group["lr"] * group["weight_decay"])
                weights.add_(update.view(weights.shape), alpha=-group["lr"] * max(1.0, rows / columns) ** 0.5)


def orthogonal(matrix: Tensor) -> Tensor:
    """The matrix (rows, columns) with all singular values, except zeros, brought close to 1."""
    wide = matrix if matrix.shape[0] <= matrix.shape[1] else matrix.T
    wide = wide / (wide.norm() + 1e-7)
    gram = wide @ wide.T
    factor = torch.eye(len(gram), dtype=gram.dtype, device=gram.device)
    a, b, c = COEFFICIENTS
    for _ in range(ITERATIONS):
        square = gram @ gram
        polynomial = b * gram + c * square
        polynomial.diagonal().add_(a)
        factor = polynomial @ factor
        gram = polynomial @ gram @ polynomial
    found: Tensor = factor @ wide
    return found if matrix.shape[0] <= matrix.shape[1] else found.T
