"""DeepGrow 2D from the first click: a slice is segmented as an image of its own, whatever lies beside it."""

import numpy as np
import pytest
import torch

from rayapp.errors import BadRequest
from rayapp.imaging.volume import Volume
from rayapp.inference.infer_task import Prompts
from rayapp.inference.methods.promptable_infer import PromptableTask
from rayapp.inference.methods.promptable_slice import PromptableSliceTask, on_slice
from rayapp.models.networks import save_weights
from rayapp.models.promptable import Promptable

NETWORK = {"dimensions": 3, "widths": [8, 8, 16, 16], "tail": 8}
SHAPE = (40, 34, 9)
SPACING = (1.0, 1.5, 6.0)
ON, OFF = (17, 20, 4), (30, 5, 4)


@pytest.fixture(scope="module")
def network(tmp_path_factory):
    torch.manual_seed(1)
    path = tmp_path_factory.mktemp("weights") / "model.safetensors"
    save_weights(Promptable(**NETWORK), path)
    return PromptableTask(name="deepgrow_3d", weights=path, network=NETWORK, version="v1")


@pytest.fixture(scope="module")
def task(network):
    return PromptableSliceTask(network, "deepgrow_2d", "one slice")


def volume(array):
    return Volume(array=array, affine=np.diag([*SPACING, 1.0]))


@pytest.fixture
def image():
    return np.random.default_rng(0).normal(100, 20, (1, *SHAPE)).astype(np.float32)


def answer(task, image, **given):
    return task.predict(task.prepare(volume(image)), Prompts(**given), {}).labels


def clicks(*on, off=()):
    return {"foreground": on, "background": off}


def test_a_slice_is_answered_as_an_image_of_its_own(task, network, image):
    found = answer(task, image, clicks=clicks(ON, off=(OFF,)))
    alone = answer(network, image[..., 4:5], clicks=clicks((17, 20, 0), off=((30, 5, 0),)))
    assert found.shape == SHAPE
    assert found[ON] == 1
    assert found[OFF] == 0
    np.testing.assert_array_equal(found[:, :, 4], alone[:, :, 0])
    assert not np.delete(found, 4, 2).any()


def test_other_slices_and_the_prompts_on_them_change_nothing(task, image):
    other = image.copy()
    other[..., :4] = other[..., 5:] = 0
    more = clicks((3, 3, 2), ON, off=((17, 20, 5), OFF))
    np.testing.assert_array_equal(
        answer(task, image, clicks=clicks(ON, off=(OFF,))), answer(task, other, clicks=more, slice=4)
    )


@pytest.mark.parametrize(
    "drawn",
    [
        {"marks": True},
        {"curves": [[(10.0, 10, 4), (24, 10, 4), (24, 26, 4), (10, 26, 4)]]},
        {"roi": ((10, 10, 4), (24, 26, 5))},
    ],
    ids=["strokes", "a curve", "a box"],
)
def test_what_is_drawn_says_which_slice_is_meant(task, image, drawn):
    if "marks" in drawn:
        drawn = {"marks": np.zeros(SHAPE, np.uint8)}
        drawn["marks"][12:20, 15, 4] = 2
    found = answer(task, image, **drawn)
    assert found[:, :, 4].any()
    assert not np.delete(found, 4, 2).any()


def test_nothing_is_outside_the_box_on_the_slice(task, image):
    found = answer(task, image, clicks=clicks(ON), roi=((10, 10, 0), (24, 26, 9)))
    outside = found[:, :, 4].copy()
    outside[10:24, 10:26] = 0
    assert found[ON] == 1
    assert not outside.any()


@pytest.mark.parametrize(
    "given",
    [{}, {"clicks": clicks(ON), "slice": 2}, {"clicks": clicks(ON), "slice": 9}],
    ids=["none", "away", "beyond"],
)
def test_without_a_prompt_on_a_slice_of_the_image_it_says_so(task, image, given):
    with pytest.raises(BadRequest, match="deepgrow"):
        answer(task, image, **given)


def test_the_slice_is_that_of_the_last_click(task, image):
    found = answer(task, image, clicks=clicks(ON, (17, 20, 6)))
    assert found[:, :, 6].any()
    assert not found[:, :, 4].any()


def test_larger_answers_are_counted_by_the_clicks_on_the_slice():
    prompts = Prompts(clicks=clicks((1, 1, 2), ON, (18, 20, 4)), sizes={2: 1, 3: -1})
    assert on_slice(prompts, 4).sizes == {1: 1, 2: -1}
