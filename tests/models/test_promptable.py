"""The promptable network takes views of any edge that 16 divides, in two and in three dimensions."""

import pytest
import torch

from rayapp.models.networks import load_weights, save_weights
from rayapp.models.promptable import Channel, Promptable


@pytest.mark.parametrize("dimensions", [2, 3])
@pytest.mark.parametrize("tail", [None, 8])
@pytest.mark.parametrize("edge", [32, 48])
def test_each_view_has_logits_a_quality_and_a_length(dimensions, tail, edge):
    network = Promptable(dimensions, (8, 16, 16, 24), tail).eval()
    with torch.inference_mode():
        logits, quality, length = network(torch.rand(2, len(Channel), *(edge,) * dimensions))
    assert logits.shape == (2, *(edge,) * dimensions)
    assert quality.shape == length.shape == (2,)


def test_answers_do_not_depend_on_what_else_is_in_the_batch():
    network = Promptable(3, (8, 16, 16, 24)).eval()
    views = torch.rand(3, len(Channel), 32, 32, 32)
    with torch.inference_mode():
        together, alone = network(views)[0][1], network(views[1:2])[0][0]
    torch.testing.assert_close(together, alone, atol=1e-4, rtol=1e-4)


def test_weights_come_back_from_a_file(tmp_path):
    network = Promptable(3, (8, 16, 16, 24))
    save_weights(network, tmp_path / "model.safetensors")
    other = Promptable(3, (8, 16, 16, 24))
    load_weights(other, tmp_path / "model.safetensors")
    for one, two in zip(network.parameters(), other.parameters(), strict=True):
        torch.testing.assert_close(one, two, atol=1e-3, rtol=1e-3)


@pytest.mark.parametrize("tail", [None, 8])
def test_weights_learnt_without_the_near_channel_answer_as_before_whatever_it_shows(tail):
    network = Promptable(3, (8, 16, 16, 24), tail).eval()
    older = network.state_dict()
    kept = [channel for channel in Channel if channel != Channel.NEAR]
    older["stem.weight"] = older["stem.weight"][:, kept]
    if tail is not None:
        older["tail.weight"] = older["tail.weight"][:, :-1]
    network.load_state_dict(older)
    views = torch.rand(1, len(Channel), 32, 32, 32)
    with torch.inference_mode():
        before = network(views)[0]
        views[:, Channel.NEAR] = torch.rand(32, 32, 32)
        torch.testing.assert_close(network(views)[0], before)
    torch.testing.assert_close(network.stem.weight[:, kept], older["stem.weight"])
