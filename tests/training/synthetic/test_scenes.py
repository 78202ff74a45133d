"""Scenes and their images are rich, reproducible from a seed, and lie on each other."""

import numpy as np
import pytest

from rayapp.training.synthetic.anatomy import anatomy
from rayapp.training.synthetic.appearance import acquire
from rayapp.training.synthetic.scenes import scene
from rayapp.training.synthetic.shapes import stamp, tree


def test_the_same_seed_makes_the_same_image():
    images = []
    for _ in range(2):
        random = np.random.default_rng(5)
        images.append(acquire(random, scene(random, 48)).image)
    np.testing.assert_array_equal(*images)


@pytest.mark.parametrize("made", [scene, anatomy])
@pytest.mark.parametrize("seed", range(6))
def test_labels_all_have_a_tissue_and_images_are_finite(seed, made):
    random = np.random.default_rng(seed)
    drawn = made(random, 48)
    taken = acquire(random, drawn)
    assert drawn.labels.min() >= 0
    assert drawn.labels.max() < len(drawn.tissues)
    assert all(label < len(drawn.tissues) for whole in drawn.wholes for label in whole)
    assert np.isfinite(taken.image).all()


@pytest.mark.parametrize("seed", range(8))
def test_a_mask_lies_on_the_voxels_of_its_image(seed):
    random = np.random.default_rng(100 + seed)
    drawn = scene(random, 48)
    taken = acquire(random, drawn)
    everything = taken.on_image(np.ones(drawn.labels.shape, bool))
    assert everything.shape == taken.image.shape
    assert everything.all()


def test_scenes_hold_thin_slices_and_thick_ones():
    thickest = set()
    for seed in range(30):
        random = np.random.default_rng(seed)
        thickest.add(max(acquire(random, scene(random, 32)).thickness))
    assert 1 in thickest
    assert max(thickest) >= 6


def test_bodies_hold_organs_of_parts_and_tissues_of_known_kinds():
    seen = set()
    for seed in range(8):
        drawn = anatomy(np.random.default_rng(seed), 48)
        assert set(drawn.kinds) <= set(drawn.tissues)
        assert all(len(whole) > 1 for whole in drawn.wholes)
        seen |= set(drawn.kinds.values())
    assert {"air", "fat", "soft", "bone", "vessel", "fluid"} <= seen


def test_in_ct_bodies_are_of_hounsfield_units():
    for seed in range(40):
        random = np.random.default_rng(seed)
        drawn = anatomy(random, 32)
        taken = acquire(random, drawn)
        if taken.means.min() > -9 or "bone" not in drawn.kinds.values():
            continue  # not CT
        fat, bone = (
            np.mean([taken.means[label] for label, tissue in enumerate(drawn.tissues) if drawn.kinds[tissue] == kind])
            for kind in ("fat", "bone")
        )
        assert -1.5 < fat < -0.5 < 1 < bone
        return
    raise AssertionError("no CT of a body was made")


def test_a_ball_is_stamped_where_it_is_said_to_be():
    field = np.full((20, 20, 20), 9.0, np.float32)
    stamp(field, np.array([4.0, 10.0, 14.0]), 3.0)
    assert field[4, 10, 14] == 0
    assert (field < 1).sum() == pytest.approx(4 / 3 * np.pi * 27, rel=0.25)


def test_a_tree_is_connected_and_thin():
    random = np.random.default_rng(1)
    inside = tree(random, 48, np.array([24.0, 24, 24]), 2.0, 2) < 1
    assert 30 < inside.sum() < 0.1 * inside.size
