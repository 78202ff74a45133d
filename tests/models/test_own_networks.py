"""Networks that an app brings: named in descriptions as MONAI's are."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from rayapp.errors import AppBroken, ModelBroken
from rayapp.models.networks import build, register


def test_a_registered_network_is_built_from_its_description():
    @register
    class TwoLayers(nn.Module):
        def __init__(self, *, spatial_dims: int, in_channels: int, out_channels: int, width: int = 4) -> None:
            super().__init__()
            assert spatial_dims == 3
            self.layers = nn.Sequential(nn.Conv3d(in_channels, width, 3, padding=1), nn.Conv3d(width, out_channels, 1))

        def forward(self, images: torch.Tensor) -> torch.Tensor:
            return self.layers(images)

    network = build({"name": "TwoLayers", "spatial_dims": 3, "in_channels": 2, "out_channels": 3, "width": 5})
    assert isinstance(network, TwoLayers)
    assert network(torch.zeros(1, 2, 16, 32, 16)).shape == (1, 3, 16, 32, 16)
    with pytest.raises(ModelBroken, match="TwoLayers"):
        build({"name": "TwoLayers", "spatial_dims": 3, "in_channels": 2, "out_channels": 3, "depth": 5})


def test_a_network_cannot_take_the_name_of_one_of_monais():
    with pytest.raises(AppBroken, match="UNet"):
        register(type("UNet", (nn.Module,), {}))
