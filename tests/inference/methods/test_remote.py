"""Models of another server: what is sent, what comes back to the voxel, and what a wrong answer says."""

import numpy as np
import pytest

from rayapp.errors import BadRequest, ModelBroken
from rayapp.imaging.volume import Volume
from rayapp.inference.infer_task import Prompts
from rayapp.inference.methods import remote
from rayapp.inference.methods.kserve import InferenceServer
from rayapp.inference.methods.remote import RemoteTask
from tests.inference.grids import ORIENTATIONS, affine_of
from tests.model_server import ModelServer, serving

SPACING = (0.8, 1.1, 2.3)


@pytest.fixture
def server():
    return ModelServer()


@pytest.fixture
def url(server):
    with serving(server) as url:
        yield url


def task_of(url, model="promptable", **given):
    given = {"labels": {"liver": 1}, "description": "", "prompts": True, **given}
    return RemoteTask(InferenceServer(url, model, timeout=10), **given)


def speckled(shape=(9, 13, 7)):
    return np.random.default_rng(4).uniform(0, 100, (1, *shape)).astype(np.float32)


@pytest.mark.parametrize("answers", ["binary", "json", "logits"])
def test_masks_and_clicks_lie_where_they_should_whatever_way_the_image_lies(server, url, answers):
    server.answers = answers
    task = task_of(url)
    task.load()
    array = speckled()
    for orientation in ORIENTATIONS[::7]:
        volume = Volume(array=array, affine=affine_of(orientation, SPACING, 17.0))
        prepared = task.prepare(volume)
        assert np.array_equal(task.predict(prepared, Prompts(), {}).labels, array[0] > 50)
        asked = Prompts(clicks={"foreground": [(2, 3, 4)], "background": [(7, 10, 1)]}, roi=((0, 0, 0), (9, 13, 6)))
        wanted = array[0] > 50
        wanted[1:4, 2:5, 3:6], wanted[6:9, 9:12, 0:3], wanted[:, :, 6] = True, False, False
        assert np.array_equal(task.predict(prepared, asked, {}).labels, wanted)
    assert server.seen[-1]["point_labels"].tolist() == [[1, 0]]


def test_the_server_sees_canonical_axes_and_the_spacing_that_was_asked_for(server, url):
    shape = (20, 24, 10)
    right = np.broadcast_to(np.arange(20.0)[:, None, None], shape)[None].astype(np.float32)
    task = task_of(url, prompts=False, spacing=1.6)
    flipped = Volume(array=right[:, ::-1], affine=np.diag([-0.8, 0.8, 1.6, 1.0]))
    found = task.predict(task.prepare(flipped), Prompts(), {})
    sent = server.seen[-1]["image"]
    assert sent.shape == (1, 1, 10, 12, 10)
    assert (np.diff(sent[0, 0], axis=0) > 0).all()
    assert set(server.seen[-1]) == {"image"}
    assert found.labels.shape == shape


@pytest.mark.parametrize(
    ("answers", "said"),
    [
        ("status", "answers with status 500"),
        ("nothing", "its answer is not JSON"),
        ("shape", "not with labels or logits"),
        ("short", "does not follow the protocol"),
    ],
)
def test_a_wrong_answer_breaks_the_request_and_says_nothing_of_what_the_server_said(server, url, answers, said):
    task = task_of(url)
    prepared = task.prepare(Volume(array=speckled(), affine=np.eye(4)))
    server.answers = answers
    with pytest.raises(ModelBroken, match=said) as error:
        task.predict(prepared, Prompts(), {})
    assert "Doe" not in error.value.detail


def test_a_model_that_is_not_there_or_of_other_names_is_told_when_it_is_loaded(url):
    with pytest.raises(ModelBroken, match="'other': it answers with status 404"):
        task_of(url, model="other").load()
    with pytest.raises(ModelBroken, match="no output 'mask'; there are: labels"):
        task_of(url, output="mask").load()
    with pytest.raises(ModelBroken, match="no input 'clicks'"):
        task_of(url, inputs={"points": "clicks"}).load()
    with pytest.raises(ModelBroken, match="does not answer"):
        task_of("http://127.0.0.1:9").load()


def test_prompts_it_cannot_do_with_are_refused(url):
    volume = Volume(array=speckled(), affine=np.eye(4))
    two = task_of(url, labels={"liver": 1, "spleen": 2})
    with pytest.raises(BadRequest, match="name their structure"):
        two.predict(two.prepare(volume), Prompts(clicks={"foreground": [(1, 1, 1)]}), {})
    with pytest.raises(BadRequest, match="needs 4 channels"):
        task_of(url, channels=4).prepare(volume)


def test_the_images_own_voxels_are_sent_however_many_or_refused_with_what_to_do(server, url, monkeypatch):
    server.answers = "labels"
    task = task_of(url, prompts=False)
    long = Volume(array=speckled((3, 3, 700)), affine=np.diag([0.5, 0.5, 3.0, 1.0]))
    task.predict(task.prepare(long), Prompts(), {})
    assert server.seen[-1]["image"].shape == (1, 1, 3, 3, 700)
    monkeypatch.setattr(remote, "MAX_BODY", 20_000)
    with pytest.raises(BadRequest, match=r"3x3x700 voxels.*coarser spacing"):
        task.prepare(long)
