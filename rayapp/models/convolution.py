"""Convolutions of a single image on a CPU, by oneDNN.

PyTorch hands a three-dimensional convolution of one image to oneDNN only if the image has more than 20,480 values along
its channels and first two axes (`use_mkldnn` in ATen's `Convolution.cpp`); smaller ones, such as the deep levels of any
U-Net, take a path of its own that is three to four times as slow. A click is a single image.
"""

from __future__ import annotations

from typing import TypeVar

import torch
from torch import Tensor, nn

N = TypeVar("N", bound=nn.Module)


class SingleImageConv3d(nn.Conv3d):
    """A `Conv3d` that computes a single image by oneDNN, whatever its size; tensors of other kinds as before."""

    def _conv_forward(self, input: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        convolved: Tensor
        if len(input) == 1 and _plain(input):
            assert not isinstance(self.padding, str)
            geometry = (self.padding, self.stride, self.dilation, self.groups)
            convolved = torch.mkldnn_convolution(input, weight, bias, *geometry)
        else:
            convolved = super()._conv_forward(input, weight, bias)
        return convolved


def _plain(images: Tensor) -> bool:
    """True for a tensor that oneDNN takes, which is of no subclass."""
    plain = type(images) is Tensor and images.device.type == "cpu" and images.dtype is torch.float32
    return plain and not torch.is_autocast_enabled("cpu")


def for_single_images(network: N) -> N:
    """The network, with its convolutions changed in place to be fast for single images too."""
    if torch.backends.mkldnn.is_available():  # type: ignore[no-untyped-call]
        for module in network.modules():
            if type(module) is nn.Conv3d and module.padding_mode == "zeros" and not isinstance(module.padding, str):
                module.__class__ = SingleImageConv3d
    return network
