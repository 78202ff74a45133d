"""Real images to learn from: the regions that stand out of an image, and excerpts of a gallery."""

import itertools

import numpy as np
import pytest

from rayapp.training.synthetic.examples import cases
from rayapp.training.synthetic.gallery import excerpt
from rayapp.training.synthetic.regions import regions


def ball(shape, centre, radius, spacing=(1, 1, 1)):
    """Voxels whose centres lie within `radius` millimetres of a voxel."""
    axes = np.ogrid[tuple(slice(n) for n in shape)]
    return sum(((x - c) * s) ** 2 for x, c, s in zip(axes, centre, spacing, strict=True)) < radius**2


def dice(a, b):
    return 2 * (a & b).sum() / (a.sum() + b.sum())


@pytest.fixture(scope="module")
def nested():
    """An organ with a lesion in it, in noise, and both as masks."""
    organ, lesion = ball((48, 40, 44), (24, 18, 22), 14), ball((48, 40, 44), (28, 18, 22), 5)
    image = np.random.default_rng(0).normal(0, 0.1, organ.shape) + organ + lesion
    return image.astype(np.float32), organ, lesion


def test_an_organ_and_the_lesion_in_it_both_stand_out(nested):
    image, organ, lesion = nested
    found = regions(image, 1.0, largest=0.5)
    every = [(found.basins >= first) & (found.basins < end) for first, end in zip(found.first, found.end, strict=True)]
    assert max(dice(one, organ) for one in every) > 0.9
    assert max(dice(one, lesion) for one in every) > 0.8


def test_the_size_of_a_region_is_that_of_its_voxels(nested):
    found = regions(nested[0], 1.0)
    sizes = [((found.basins >= a) & (found.basins < b)).sum() for a, b in zip(found.first, found.end, strict=True)]
    assert sizes == found.sizes.tolist()
    assert min(sizes) >= 80
    assert max(sizes) <= 0.3 * nested[0].size


def test_an_image_without_borders_has_no_region():
    found = regions(np.zeros((20, 16, 12), np.float32), 1.0)
    assert found.draw(np.random.default_rng(0)) is None


@pytest.fixture
def gallery(tmp_path):
    """A folder with an image in thick slices on which a structure was drawn, and one without."""
    spacing = (0.8, 1.3, 4.0)
    mask = ball((70, 50, 18), (30, 20, 8), 15, spacing)
    noise = np.random.default_rng(1).normal(0, 5, mask.shape)
    image = (100 * mask + noise).astype(np.int16)
    np.savez(tmp_path / "a.npz", image=image, spacing=spacing, mask=mask)
    np.savez(tmp_path / "b.npz", image=image, spacing=spacing)
    return sorted(tmp_path.glob("*.npz"))


def test_a_drawn_structure_lies_on_the_image_however_an_excerpt_is_turned(gallery):
    shapes = set()
    for seed in range(20):
        part = excerpt(np.random.default_rng(seed), gallery[0])
        shapes.add(tuple(np.argsort(part.source.spacing)))
        if part.drawn is None:
            continue
        assert part.drawn.shape == part.source.array.shape
        values = part.source.array
        bright = values > np.sort(values, axis=None)[-part.drawn.sum() - 1]  # whatever the contrast
        assert dice(part.drawn, bright) > 0.9
    assert len(shapes) > 2  # the thick axis was turned too


def test_an_excerpt_keeps_the_size_of_what_it_shows(gallery):
    whole = 4 / 3 * np.pi * 15**3
    seen = []
    for seed in range(40):
        part = excerpt(np.random.default_rng(seed), gallery[0])
        if part.drawn is not None:
            seen.append(part.drawn.sum() * part.source.spacing.prod())
    assert max(seen) == pytest.approx(whole, rel=0.1)


def test_structures_of_an_image_without_drawn_ones_are_its_regions(gallery):
    found = []
    for seed in range(10):
        random = np.random.default_rng(seed)
        part = excerpt(random, gallery[1])
        assert part.drawn is None
        mask = part.structure(random)
        if mask is not None:
            found.append(mask.shape == part.source.array.shape and mask.any())
    assert found
    assert all(found)


def test_the_same_seed_makes_the_same_cases_from_a_gallery(gallery):
    one, two = (list(itertools.islice(cases(4, [32], count=2, gallery=gallery), 6)) for _ in range(2))
    for a, b in zip(one, two, strict=True):
        np.testing.assert_array_equal(a.looks[0].image, b.looks[0].image)
        np.testing.assert_array_equal(a.looks[0].truth, b.looks[0].truth)
