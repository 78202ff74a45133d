"""Every model that ships, on images of a few voxels with whatever prompts fit them: a mask on the image's voxels, or a
refusal that says why.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from rayapp.app.validation import checked_prediction
from rayapp.apps.radiology.main import RadiologyApp
from rayapp.config import Settings
from rayapp.errors import BadRequest
from rayapp.imaging import mask_codec
from rayapp.imaging.volume import Volume
from rayapp.inference.prompts.parse import parse_prompts
from rayapp.inference.prompts.to_clicks import enforce_drawings, lower_drawings
from rayapp.models.store import ModelStore

EDGES = st.sampled_from([1, 1, 2, 3, 5, 17])
SPACINGS = st.sampled_from([0.05, 0.7, 1.0, 5.0])
VALUES = ["noise", "constant", "halves"]
METHODS = [
    *("segmentation", "deepedit", "deepgrow_2d", "deepgrow_3d"),
    *("Forest+GraphCut", "GMM+GraphCut", "Histogram+GraphCut", "ClosedCurves+GraphCut"),
    *("Segmentation+GraphCut", "DeepEdit+GraphCut"),
]


@pytest.fixture(scope="module")
def tasks(tmp_path_factory):
    """All models of the radiology app, as it installs them."""
    folder = tmp_path_factory.mktemp("app")
    server = Settings(studies=folder / "studies", workspace=folder / "workspace")
    models = ModelStore.of(server)
    RadiologyApp.install(server, models)
    app = RadiologyApp(settings=server, models=models)
    assert set(app.infers) == set(METHODS)
    return app.infers


def image(shape, edges, values):
    rng = np.random.default_rng(0)
    array = rng.integers(-200, 300, shape) if values == "noise" else np.full(shape, 40)
    if values == "halves":
        array[: shape[0] // 2] = -900
    affine = np.diag([-edges[0], -edges[1], edges[2], 1.0])
    return Volume(array=array.astype(np.int16)[np.newaxis], affine=affine)


@st.composite
def prompts(draw, shape, name):
    """Parameters of a request for a structure of this name, of which the voxels lie in the image."""
    voxel = st.tuples(*(st.integers(0, size - 1) for size in shape)).map(list)
    params = {"label": name}
    if draw(st.booleans()):
        params[draw(st.sampled_from([name, "foreground"]))] = draw(st.lists(voxel, min_size=1, max_size=3))
    if draw(st.booleans()):
        params["background"] = draw(st.lists(voxel, min_size=1, max_size=3))
    if draw(st.booleans()):
        first, last = draw(voxel), draw(voxel)
        params["roi"] = [end for pair in zip(first, last, strict=True) for end in pair]
    if draw(st.booleans()):
        params["slice"] = draw(st.integers(0, shape[2] - 1))
    if draw(st.booleans()):
        marks = np.zeros(shape, np.uint8)
        for point in draw(st.lists(voxel, min_size=1, max_size=4)):
            marks[tuple(point)] = draw(st.sampled_from([1, 2]))
        if draw(st.booleans()):
            marks[:] = draw(st.sampled_from([1, 2]))
        params["marks"] = [{"label": name, "packed": mask_codec.to_text(marks)}]
    if draw(st.booleans()):
        axis = draw(st.integers(0, 2))
        index = draw(st.integers(0, shape[axis] - 1))
        place = st.tuples(*(st.floats(-0.5, size - 0.5) for size in shape)).map(list)
        curve = draw(st.lists(place, min_size=3, max_size=5))
        for point in curve:
            point[axis] = index
        params["curves"] = [{"label": name, "points": curve}]
    if draw(st.booleans()):
        params["extremes"] = {name: [draw(voxel) for _ in range(6)]}
    if draw(st.booleans()):
        params["size"] = draw(st.integers(-2, 2))
    return params


@pytest.mark.parametrize("method", METHODS)
@given(st.data(), st.tuples(EDGES, EDGES, EDGES), st.tuples(SPACINGS, SPACINGS, SPACINGS), st.sampled_from(VALUES))
@settings(max_examples=3, deadline=None, suppress_health_check=list(HealthCheck))
def test_a_tiny_image_gets_a_mask_or_a_refusal_that_says_why(tasks, method, data, shape, edges, values):
    task = tasks[method]
    params = data.draw(prompts(shape, next(iter(task.info.structures), "thing")))
    if method.endswith("GraphCut"):
        params["optimiser"] = data.draw(st.sampled_from(["graph cut", "random walk"]))
    given = answer(task, image(shape, edges, values), params)
    assert len(given) > 20 if isinstance(given, str) else given.shape == shape


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("mark", [1, 2])
def test_one_voxel_that_is_scribbled_on_gets_a_mask_or_a_refusal_that_says_why(tasks, method, mark):
    task = tasks[method]
    name = next(iter(task.info.structures), "thing")
    marks = mask_codec.to_text(np.full((1, 1, 1), mark, np.uint8))
    labels = answer(
        task, image((1, 1, 1), (1.0, 1.0, 1.0), "noise"), {"label": name, "marks": [{"label": name, "packed": marks}]}
    )
    if isinstance(labels, str):
        assert len(labels) > 20
    else:
        assert (labels > 0).all() == (mark == 2)


def answer(task, volume, params):
    """The labels that a request gets, or the reason of its refusal."""
    task.load()
    try:
        drawn = parse_prompts(params, task.info, volume.shape)
        prediction = task.predict(task.prepare(volume), lower_drawings(drawn, task.info, volume.shape), params)
    except BadRequest as refusal:
        return refusal.detail
    return enforce_drawings(checked_prediction(prediction, task, volume.shape, Path()).labels, drawn, task.info)
