"""DeepGrow's two models together: a click on one slice outlines the structure through all of them."""

import numpy as np
import pytest

from rayapp.errors import BadRequest
from rayapp.imaging.volume import Volume
from rayapp.inference.infer_task import Prompts, StagedTask
from rayapp.inference.methods.deepgrow import DeepGrow2DTask, DeepGrow3DTask
from rayapp.inference.methods.deepgrow_pipeline import DeepGrowPipelineTask
from rayapp.inference.prompts.parse import parse_prompts
from tests.inference.grids import ORIENTATIONS, affine_of
from tests.inference.near_and_bright import BRIGHT, DARK, version

SHAPE = (26, 23, 31)
FIRST, LAST = 4, 24
CLICK = (10, 9, 13)


def rod():
    """A slanting rod between two slices: longer than a click reaches, ending within the image."""
    i, j, k = np.meshgrid(*(np.arange(n) for n in SHAPE), indexing="ij")
    inside = np.hypot(i - 10 - (k - 13) * 0.3, j - 9 - (k - 13) * 0.2) < 2.6
    return inside & (k >= FIRST) & (k <= LAST)


def task_of(folder, *, contrary=False):
    return DeepGrowPipelineTask(
        model_2d=DeepGrow2DTask.from_version(version(folder, 2)),
        model_3d=DeepGrow3DTask.from_version(version(folder, 3, contrary=contrary, eager=2)),
        description="both",
    )


@pytest.fixture(scope="module")
def task(tmp_path_factory):
    return task_of(tmp_path_factory.mktemp("weights"))


@pytest.fixture(scope="module")
def volume():
    shown = rod()
    shown[20:, 16:, :] = True  # something else that is bright
    array = np.where(shown, BRIGHT, DARK).astype(np.int16)
    return Volume(array=array[None], affine=affine_of(ORIENTATIONS[29], (1.2, 0.9, 2.3), 9))


@pytest.fixture(scope="module")
def prepared(task, volume):
    return task.prepare(volume)


def mask(task, prepared, roi=None, **clicks):
    return task.predict(prepared, Prompts(clicks=clicks, roi=roi), {}).labels


def test_one_click_goes_through_all_slices_and_ends_with_the_structure(task, prepared):
    assert_is_the_rod(mask(task, prepared, foreground=[CLICK]))


def assert_is_the_rod(found):
    """It is, but for the corners of its ends, which are further from any click than the model of volumes reaches."""
    assert not (found & ~rod()).any()
    missing = np.argwhere(rod() & ~found.astype(bool))
    assert len(missing) < 8
    assert set(missing[:, 2]) <= {FIRST, LAST}


def test_the_model_of_volumes_alone_does_not_get_that_far(task, volume, tmp_path):
    alone = DeepGrow3DTask.from_version(version(tmp_path, 3, eager=2))
    assert mask(alone, alone.prepare(volume), foreground=[CLICK]).sum() < rod().sum() * 0.6


def test_where_the_slices_lead_astray_the_model_of_volumes_overrules_them(tmp_path, volume):
    task = DeepGrowPipelineTask(
        model_2d=DeepGrow2DTask.from_version(version(tmp_path, 2)),
        model_3d=DeepGrow3DTask.from_version(version(tmp_path, 3)),  # sure that there is nothing far from clicks
        description="both",
    )
    alone = DeepGrow3DTask.from_version(version(tmp_path, 3))
    found = mask(task, task.prepare(volume), foreground=[CLICK])
    assert not (found & ~mask(alone, alone.prepare(volume), foreground=[CLICK]))[:, :, [FIRST, LAST]].any()


@pytest.mark.parametrize("orientation", ORIENTATIONS[::11])
def test_it_does_so_on_any_grid(task, volume, orientation):
    turned = Volume(array=volume.array, affine=affine_of(orientation, (1.2, 0.9, 2.3), 9))
    assert_is_the_rod(mask(task, task.prepare(turned), foreground=[CLICK]))


@pytest.mark.parametrize("contrary", [False, True])
def test_background_clicks_only_take_away(tmp_path, volume, contrary):
    task = task_of(tmp_path, contrary=contrary)
    prepared, rng = task.prepare(volume), np.random.default_rng(0)
    before = mask(task, prepared, foreground=[CLICK])
    for _ in range(6):
        places = [*rng.choice(np.argwhere(before), 2), *rng.integers(0, SHAPE, (2, 3))]
        off = [point for point in (tuple(int(n) for n in place) for place in places) if point != CLICK]
        after = mask(task, prepared, foreground=[CLICK], background=off)
        assert after[CLICK] == 1
        assert not any(after[point] for point in off)
        assert not (after & ~before).any()


def test_it_needs_a_click_on_the_structure(task, prepared):
    with pytest.raises(BadRequest, match="click on a structure"):
        mask(task, prepared)
    assert not mask(task, prepared, background=[CLICK]).any()


def test_the_forms_of_both_clients_mean_the_same(task, prepared):
    slicer = {"label": "lesion", "foreground": [list(CLICK)], "background": [], "roi": [], "reset_state": True}
    ohif = {"foreground": [list(CLICK)], "background": [], "result_compress": False, "restore_label_idx": False}
    found = [task.predict(prepared, parse_prompts(form, task.info, SHAPE), form) for form in (slicer, ohif)]
    np.testing.assert_array_equal(found[0].labels, found[1].labels)
    assert found[0].params == {"label_names": {"lesion": 1}}


def test_it_is_listed_as_a_model_of_volumes_with_both_versions(task):
    assert isinstance(task, StagedTask)
    assert (task.info.type, task.info.dimension, task.info.labels) == ("deepgrow", 3, {})
    assert task.info.version == "v1+v1"


def test_a_slice_is_outlined_once_for_the_same_clicks_on_it(tmp_path, volume, monkeypatch):
    task = task_of(tmp_path)
    prepared, asked = task.prepare(volume), []
    predict = task._model_2d.predict
    monkeypatch.setattr(task._model_2d, "predict", lambda *said: asked.append(said[1].clicks) or predict(*said))
    before = mask(task, prepared, foreground=[CLICK])
    outlined = len(asked)
    assert outlined > 5
    np.testing.assert_array_equal(mask(task, prepared, foreground=[CLICK]), before)
    mask(task, prepared, foreground=[CLICK], background=[(2, 2, 13)])
    assert len(asked) == outlined
