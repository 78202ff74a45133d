"""A single image is convolved as in a batch, by the fast implementation."""

import pytest
import torch
from torch import nn

from rayapp.models.convolution import SingleImageConv3d, for_single_images
from rayapp.models.networks import build, residual_unet


@pytest.mark.parametrize(
    "options",
    [
        {"kernel_size": 3, "padding": 1},
        {"kernel_size": (1, 3, 3), "padding": (0, 1, 1), "stride": (1, 2, 1), "bias": False},
        {"kernel_size": 3, "padding": 2, "dilation": 2, "groups": 2},
    ],
)
@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last_3d])
def test_a_single_image_is_convolved_as_pytorch_does_forwards_and_backwards(options, layout):
    torch.manual_seed(0)
    plain = nn.Conv3d(4, 6, **options).to(memory_format=layout)
    fast = for_single_images(nn.Sequential(nn.Conv3d(4, 6, **options))).to(memory_format=layout)
    fast[0].load_state_dict(plain.state_dict())
    assert type(fast[0]) is SingleImageConv3d
    for count in (1, 2):
        images = torch.randn(count, 4, 9, 11, 7).contiguous(memory_format=layout)
        one, other = images.clone().requires_grad_(), images.clone().requires_grad_()
        expected, found = plain(one), fast(other)
        torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-4)
        expected.square().sum().backward()
        found.square().sum().backward()
        torch.testing.assert_close(other.grad, one.grad, rtol=1e-3, atol=1e-3)


def test_a_single_image_does_not_take_pytorchs_slow_path():
    network = build(residual_unet(1, 2)).eval()
    with torch.inference_mode(), torch.profiler.profile() as profile:
        network(torch.zeros(1, 1, 32, 32, 32))
    names = {event.key for event in profile.key_averages()}
    assert "aten::mkldnn_convolution" in names
    assert "aten::slow_conv3d" not in names


@pytest.mark.parametrize("options", [{"padding": "same"}, {"padding": 1, "padding_mode": "reflect"}])
def test_what_the_fast_implementation_cannot_do_stays_as_it_is(options):
    network = for_single_images(nn.Sequential(nn.Conv3d(2, 2, 3, **options), nn.Conv2d(1, 1, 3)))
    assert [type(module) for module in network] == [nn.Conv3d, nn.Conv2d]


def test_weights_keep_their_names():
    network = nn.Sequential(nn.Conv3d(2, 2, 3))
    names = list(network.state_dict())
    assert list(for_single_images(network).state_dict()) == names
