"""Prompts take memory for what they touch, not for the image that they are on."""

import tracemalloc
from itertools import pairwise

import numpy as np
import pytest

from rayapp.imaging import mask_codec
from rayapp.imaging.sparse_labels import SparseLabels
from rayapp.inference.energy.scan import drawing_axis
from rayapp.inference.infer_task import TaskInfo
from rayapp.inference.prompts.parse import parse_prompts
from rayapp.inference.prompts.scribble_map import BACKGROUND, FOREGROUND, build_marks
from rayapp.inference.prompts.to_clicks import lower_drawings
from rayapp.serving.click_log import payload_of

SHAPE = (1024, 1024, 1024)
ANYTHING = TaskInfo(type="scribbles", labels={}, dimension=3, description="")
ORGANS = TaskInfo(type="deepedit", labels={"liver": 1, "spleen": 2}, dimension=3, description="")
BYTES = 8 << 20


def packed(*values):
    part = np.zeros((60, 5, 3), np.uint8)
    part[10:50, 2, 1] = values[0]
    part[10:50, 4, 2] = values[-1]
    return mask_codec.to_text(SparseLabels(shape=SHAPE, lower=(500, 600, 700), part=part))


PROMPTS = {
    "stroke": {"marks": [{"packed": packed(FOREGROUND, BACKGROUND)}, {"packed": packed(0, BACKGROUND)}]},
    "box": {"roi": [500, 559, 600, 659, 700, 739]},
    "curve": {"curves": [[[500.5, 600, 700], [520, 640, 700], [560, 610.25, 700]]]},
    "clicks": {"foreground": [[500, 600, 700], [510, 620, 690]], "background": [[530, 600, 710]]},
}


@pytest.fixture
def most():
    """The most memory at any time in bytes, as it is asked for."""
    np.zeros(1)
    parse_prompts({"curves": [[[1, 1, 1], [2, 4, 1], [5, 5, 1]]]}, ANYTHING, (9, 9, 9))
    tracemalloc.start()
    yield lambda: tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()


@pytest.mark.parametrize("kind", PROMPTS)
def test_a_prompt_on_a_thousand_million_voxels_takes_memory_for_what_it_touches(kind, most):
    prompts = parse_prompts(PROMPTS[kind], ANYTHING, SHAPE)
    marks = build_marks(SHAPE, prompts)
    drawing_axis(marks, np.ones(3))
    payload_of(prompts)
    assert most() < BYTES
    assert marks.any(FOREGROUND)


@pytest.mark.parametrize("kind", ["stroke", "curve"])
def test_drawings_become_clicks_in_memory_for_what_they_touch(kind, most):
    params = {"label": "liver", **PROMPTS[kind]}
    lowered = lower_drawings(parse_prompts(params, ORGANS, SHAPE), ORGANS, SHAPE)
    assert most() < BYTES
    assert lowered.clicks


def test_a_wider_stroke_takes_more(most):
    """The figure is of the strokes: the memory grows with their box."""
    used = []
    for wide in (8, 64, 128):
        part = np.full((wide, wide, wide), FOREGROUND, np.uint8)
        text = mask_codec.to_text(SparseLabels(shape=SHAPE, lower=(1, 2, 3), part=part))
        tracemalloc.reset_peak()
        build_marks(SHAPE, parse_prompts({"marks": [text]}, ANYTHING, SHAPE))
        used.append(most())
    assert all(before < after for before, after in pairwise(used))
