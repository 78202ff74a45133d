"""Muon: orthogonal steps, whatever a tensor's layout."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import nn

from rayapp.training.synthetic.muon import Muon, orthogonal


@pytest.mark.parametrize("shape", [(12, 96), (96, 12), (1, 20)])
def test_all_singular_values_come_near_one(shape: tuple[int, int]) -> None:
    torch.manual_seed(0)
    found = torch.linalg.svdvals(orthogonal(torch.randn(shape)))
    assert found.min() > 0.6
    assert found.max() < 1.25


def test_directions_stay_those_of_the_gradient() -> None:
    torch.manual_seed(0)
    matrix = torch.randn(8, 40)
    left, _, right = torch.linalg.svd(matrix, full_matrices=False)
    assert torch.nn.functional.cosine_similarity(orthogonal(matrix).flatten(), (left @ right).flatten(), 0) > 0.97


def test_a_channels_last_convolution_learns_as_a_contiguous_one_does() -> None:
    torch.manual_seed(0)
    plain = nn.Conv3d(4, 6, 3)
    packed = nn.Conv3d(4, 6, 3)
    packed.load_state_dict(plain.state_dict())
    packed = packed.to(memory_format=torch.channels_last_3d)  # type: ignore[call-overload]
    x = torch.randn(2, 4, 5, 5, 5)
    for network in (plain, packed):
        muon = Muon([network.weight])
        for _ in range(3):
            network.zero_grad()
            network(x).square().mean().backward()
            muon.step()
    torch.testing.assert_close(plain.weight, packed.weight, rtol=1e-3, atol=1e-5)


def test_the_same_steps_follow_a_kept_state() -> None:
    torch.manual_seed(0)
    weights = [nn.Parameter(torch.randn(3, 5))]
    first = Muon(weights)
    gradients = torch.randn(2, 3, 5)
    weights[0].grad = gradients[0]
    first.step()
    copies = [nn.Parameter(weights[0].detach().clone())]
    second = Muon(copies)
    second.load_state_dict(copy.deepcopy(first.state_dict()))
    for optimiser, one in ((first, weights[0]), (second, copies[0])):
        one.grad = gradients[1]
        optimiser.step()
    torch.testing.assert_close(weights[0], copies[0])
