"""Positions of masks, as JSON of the reply, also of a mask that is empty."""

import numpy as np

from rayapp.compat.post_transforms import BoundingBoxd, ExtremePointsd


def test_a_mask_is_located_by_its_box_and_its_extreme_points():
    mask = np.zeros((1, 6, 7, 8))
    mask[0, 2:5, 1:3, 4] = 1
    data = {"mask": mask, "result": {"kept": 1}}
    assert BoundingBoxd("mask")(data)["result"] == {"kept": 1, "bbox": [[0, 2, 1, 4], [0, 4, 2, 4]]}
    points = ExtremePointsd("mask", points="ends")(data)["result"]["ends"]
    assert len(points) == 8
    assert all(mask[tuple(point)] for point in points)
    assert {point[1] for point in points} >= {2, 4}


def test_an_empty_mask_has_no_position():
    data = {"mask": np.zeros((1, 3, 4, 5))}
    assert BoundingBoxd("mask")(data)["result"] == {"bbox": []}
    assert ExtremePointsd("mask")(data)["result"] == {"points": []}
