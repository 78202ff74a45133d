"""The network's window, and its way over larger images."""

import pytest
import torch

from rayapp.inference.network.sliding_window import OVERLAP, Windows


def shapes(windows, images):
    """Of everything the network was shown."""
    seen = []

    def network(shown):
        seen.append(tuple(shown.shape))
        return torch.cat([shown, -shown], dim=1)

    logits = windows.run(network, images)
    torch.testing.assert_close(logits, torch.cat([images, -images], dim=1), rtol=1e-4, atol=1e-4)
    return seen


def test_what_fits_is_seen_once_as_it_is():
    assert shapes(Windows(roi_size=(8, 12, 4)), torch.rand(1, 1, 8, 10, 4)) == [(1, 1, 8, 10, 4)]


def test_what_is_larger_is_seen_through_windows_as_the_card_says():
    images = torch.rand(1, 1, 24, 8, 6)

    def seen(**card):
        return shapes(Windows.of({"roi_size": [8, 8, 4], **card}), images)

    assert seen(overlap=0) == [(1, 1, 8, 8, 4)] * 6
    assert seen(overlap=0.5) == [(1, 1, 8, 8, 4)] * 10
    assert seen(overlap=0, windows=4) == [(4, 1, 8, 8, 4), (2, 1, 8, 8, 4)]
    assert Windows.of({"roi_size": [8, 8, 4]}).overlap == OVERLAP


def test_a_card_without_a_window_is_refused():
    with pytest.raises(KeyError):
        Windows.of({})
