"""Views of an image move whole voxels, and are undone to the voxel."""

import itertools

import pytest
import torch

from rayapp.active_learning.views import Spatial, View, random_views
from rayapp.inference.network.normalisation import PADDING
from tests.active_learning.networks import Painter

SHAPE = (5, 7, 4)
TURNS = [
    (order, flips) for order in itertools.permutations(range(3)) for flips in itertools.product((False, True), repeat=3)
]


def image(shape=SHAPE):
    return torch.rand((1, *shape), generator=torch.Generator().manual_seed(1)) * 3 - 1.5


@pytest.mark.parametrize(("order", "flips"), TURNS)
def test_every_voxel_comes_back_to_where_it_was(order, flips):
    view, seen = View(order=order, flips=flips), image()
    assert torch.equal(view.invert(view.apply(seen)), seen)


@pytest.mark.parametrize(("order", "flips"), TURNS)
def test_what_a_network_says_of_a_place_is_mapped_to_the_voxel_that_was_shown_there(order, flips):
    view, whole = View(order=order, flips=flips), image()
    shown = view.apply(whole)
    places = view.invert(Painter().probabilities(shown[None])[0])[0].long()
    assert places.shape == SHAPE
    assert sorted(places.flatten().tolist()) == list(range(whole.numel()))
    assert torch.equal(shown.flatten()[places], whole[0])


def test_views_keep_the_shape_and_begin_with_the_image_itself():
    for spatial in Spatial:
        found = random_views(60, (6, 4, 6), spatial=spatial, seed=3)
        assert found[0] == View()
        assert len(found) == 60
        assert {tuple(view.apply(image((6, 4, 6))).shape) for view in found} == {(1, 6, 4, 6)}


@pytest.mark.parametrize(
    ("spatial", "shape", "turns"),
    [
        (Spatial.NONE, (6, 6, 6), 1),
        (Spatial.MIRROR, (6, 6, 6), 2),
        (Spatial.FLIPS, (6, 6, 6), 8),
        (Spatial.ALL, (6, 4, 6), 16),
        (Spatial.ALL, (6, 5, 4), 8),
        (Spatial.ALL, (6, 6, 6), 48),
    ],
)
def test_all_orientations_that_keep_the_grid_come_before_any_comes_again(spatial, shape, turns):
    found = [(view.order, view.flips) for view in random_views(1 + 2 * turns, shape, spatial=spatial, seed=5)[1:]]
    assert len(set(found[:turns])) == len(set(found[turns:])) == turns


def test_the_mirror_exchanges_left_and_right_alone():
    assert {view.flips for view in random_views(9, SHAPE, spatial=Spatial.MIRROR, seed=0)} == {
        (False, False, False),
        (True, False, False),
    }


def test_intensities_change_a_little_and_padding_not_at_all():
    whole = image()
    whole[:, -1] = PADDING
    changed = [view.apply(whole) for view in random_views(20, SHAPE, spatial=Spatial.NONE, seed=2)[1:]]
    assert all(torch.equal(seen[:, -1], whole[:, -1]) for seen in changed)
    assert all(0.01 < (seen - whole)[:, :-1].abs().mean() < 0.3 for seen in changed)
    assert all(seen.min() >= PADDING and seen.max() <= -PADDING for seen in changed)


def test_the_same_seed_gives_the_same_views():
    one, again, other = (random_views(6, SHAPE, spatial=Spatial.ALL, seed=seed) for seed in (7, 7, 8))
    assert one == again != other
    assert all(torch.equal(a.apply(image()), b.apply(image())) for a, b in zip(one, again, strict=True))
