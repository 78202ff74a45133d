"""A class-agnostic promptable network: maps an image and prompts to the logits of one structure and their expected
quality.

A U-Net with a strided stem, so that most of its work is done at half the view's resolution, with one thin convolution
at full resolution, and two heads: the structure's logits, and the quality of that answer. It takes cubes (or squares)
whose edge is a multiple of 16; each resolution of a structure is a view of it, see `rayapp.inference.zoom`.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from enum import IntEnum

import torch
from torch import Tensor, nn
from torch.nn import functional

from rayapp.models.convolution import for_single_images

STRIDE = 16
"""The edge of a view, in voxels, is a multiple of this."""


class Channel(IntEnum):
    """The network's input channels, on the view's grid."""

    IMAGE = 0
    """Intensities, -1 to 1 between the view's 0.5th and 99.5th percentiles; 0 outside the image."""
    SEEN = 1
    """The image relative to the prompted tissue: 0 for similar intensities, +-1 for very different ones."""
    NEAR = 2
    """The same on a finer scale, that of the intensities near the prompts, in which soft tissues differ even beside
    bone and air."""
    PREVIOUS = 3
    """Probability of the structure in the mask to start from, 0 if there is none."""
    INCLUDE = 4
    """Balls at points of the structure."""
    EXCLUDE = 5
    """Balls at points outside the structure."""
    STROKE = 6
    """Strokes on the structure."""
    ERASER = 7
    """Strokes outside the structure."""
    BOX = 8
    """The inside of boxes; a box drawn on one slice covers that slice only."""
    LASSO = 9
    """The inside of closed curves around the structure, on their slices."""


class Block(nn.Module):
    """Two convolutions and a shortcut connection."""

    def __init__(self, dimensions: int, inputs: int, outputs: int) -> None:
        super().__init__()
        convolution = _convolution(dimensions)
        self.first = convolution(inputs, outputs, 3, padding=1, bias=False)
        self.first_norm = nn.GroupNorm(8, outputs)
        self.second = convolution(outputs, outputs, 3, padding=1, bias=False)
        self.second_norm = nn.GroupNorm(8, outputs)
        self.shortcut = nn.Identity() if inputs == outputs else convolution(inputs, outputs, 1, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        y = functional.leaky_relu(self.first_norm(self.first(x)), 0.01)
        y = self.second_norm(self.second(y))
        return functional.leaky_relu(y + self.shortcut(x), 0.01)


class Promptable(nn.Module):
    """The network.

    Args:
        dimensions: 3, or 2 for images of one slice.
        widths: channels at a half, a quarter, an eighth and a sixteenth of the view's resolution; multiples of 8.
        tail: channels of the convolution at full resolution; None interpolates logits of half resolution instead.
    """

    def __init__(self, dimensions: int = 3, widths: Sequence[int] = (24, 64, 128, 192), tail: int | None = 8) -> None:
        super().__init__()
        convolution = _convolution(dimensions)
        self.dimensions = dimensions
        self.stem = convolution(len(Channel), widths[0], 4, stride=2, padding=1)
        self.down = nn.ModuleList(
            Block(dimensions, widths[max(0, level - 1)], width) for level, width in enumerate(widths)
        )
        pairs = list(itertools.pairwise(widths))[::-1]
        self.lift = nn.ModuleList(convolution(deep, shallow, 1) for shallow, deep in pairs)
        self.up = nn.ModuleList(Block(dimensions, shallow, shallow) for shallow, _ in pairs)
        self.rise: nn.Module | None = None
        if tail is None:
            self.answer = convolution(widths[0], 1, 1)
        else:
            upsample = nn.ConvTranspose3d if dimensions == 3 else nn.ConvTranspose2d
            self.rise = upsample(widths[0], tail, 2, stride=2)
            self.tail = convolution(tail + Channel.NEAR + 1, tail, 3, padding=1)
            self.answer = convolution(tail, 1, 1)
        self.judge = nn.Sequential(nn.Linear(widths[-1] + 2 * widths[0] + 4, 64), nn.LeakyReLU(0.01), nn.Linear(64, 2))
        self.register_load_state_dict_pre_hook(_widened)  # type: ignore[no-untyped-call]

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Segment a batch of views.

        Args:
            x: (N, 10, edge, edge, edge), with the channels of `Channel`.

        Returns:
            The structure's logits (N, edge, edge, edge); the logit (N) of their expected Dice score against the whole
            structure, including its part outside the view; and the expected logarithm (N) of the structure's longest
            side relative to the view's.
        """
        h = self.stem(x)
        kept: list[Tensor] = []
        for level, block in enumerate(self.down):
            h = block(_halved(h) if level else h)
            kept.append(h)
        deep = kept.pop()
        h = deep
        for lift, block in zip(self.lift, self.up, strict=True):
            h = block(kept.pop() + functional.interpolate(lift(h), scale_factor=2, mode="nearest"))
        if self.rise is None:
            mode = "trilinear" if self.dimensions == 3 else "bilinear"
            logits = functional.interpolate(self.answer(h), scale_factor=2, mode=mode, align_corners=False)
        else:
            fine = torch.cat([self.rise(h), x[:, : Channel.NEAR + 1]], 1)
            logits = self.answer(functional.leaky_relu(self.tail(fine), 0.01))
        judged = self.judge(self._evidence(deep, h, logits))
        return logits[:, 0], judged[:, 0], judged[:, 1]

    def _evidence(self, deep: Tensor, shallow: Tensor, logits: Tensor) -> Tensor:
        """The quality head's input (N, …): features of the view and of the structure, and whether the view's faces cut
        it.
        """
        axes = tuple(range(2, 2 + self.dimensions))
        probability = torch.sigmoid(logits.detach())
        inside = _halved(probability)
        sides = [probability[:, 0].select(axis - 1, end).flatten(1).mean(1) for axis in axes for end in (0, -1)]
        cut = torch.stack(sides, 1)
        numbers = [probability.mean(axes), cut.mean(1, keepdim=True), cut.amax(1, keepdim=True)]
        certain = (2 * (probability - 0.5).abs()).mean(axes)
        structure = (shallow * inside).sum(axes) / (inside.sum(axes) + 1e-3)
        return torch.cat([deep.mean(axes), structure, shallow.mean(axes), *numbers, certain], 1)


def channels_last(network: Promptable) -> Promptable:
    """The network, changed in place to be fast on CPUs: in the memory layout that they convolve fastest, and also for
    single images."""
    layout = torch.channels_last_3d if network.dimensions == 3 else torch.channels_last
    return for_single_images(network).to(memory_format=layout)  # type: ignore[call-overload, no-any-return]


def _widened(network: nn.Module, state: dict[str, Tensor], *_: object) -> None:
    """Extend weights from before the channel `NEAR` existed, with zeros for it."""
    for name, number in (("stem.weight", int(Channel.NEAR)), ("tail.weight", None)):
        kernel = state.get(name)
        if kernel is not None and kernel.shape[1] == network.get_parameter(name).shape[1] - 1:
            at = kernel.shape[1] if number is None else number
            state[name] = torch.cat([kernel[:, :at], torch.zeros_like(kernel[:, :1]), kernel[:, at:]], 1)


def _convolution(dimensions: int) -> type[nn.Conv2d] | type[nn.Conv3d]:
    return nn.Conv3d if dimensions == 3 else nn.Conv2d


def _halved(x: Tensor) -> Tensor:
    return functional.avg_pool3d(x, 2) if x.ndim == 5 else functional.avg_pool2d(x, 2)
