"""The same with the official package, where it is installed: `pip install 'rayapp[nninteractive]'`.

A tiny network, saved in nnInteractive's own format, is asked through our task and by hand as its documentation says.
"""

from __future__ import annotations

import inspect
import warnings

import nibabel
import numpy as np
import pytest
import torch

from rayapp.errors import BadRequest, ModelBroken, Superseded
from rayapp.imaging.volume import Volume
from rayapp.inference.infer_task import Prompts
from rayapp.inference.methods.nninteractive_infer import NNInteractiveTask
from rayapp.inference.network.cancellation import interruptible
from rayapp.models.nninteractive_folder import NNInteractiveFolder, models_root
from tests.inference.methods.official_session import BRIGHTER, PROMPTED, SessionDouble, official_folder

NEEDED = "needs nnInteractive: pip install 'rayapp[nninteractive]'"
with warnings.catch_warnings():
    warnings.simplefilter("ignore")
    module = pytest.importorskip("nnInteractive.inference.inference_session", reason=NEEDED)
pytestmark = pytest.mark.filterwarnings("ignore")  # what other people's packages warn of

Official = module.nnInteractiveInferenceSession
SHAPE = (21, 17, 12)
AFFINE = nibabel.affines.from_matvec(
    np.linalg.qr(np.array([[0.9, -0.3, 0.2], [0.4, 0.8, -0.3], [-0.1, 0.4, 0.9]]))[0] @ np.diag([0.7, -1.3, 4.0]),
    [11, -5, 30],
)
ON, ALSO, OFF = (6, 5, 3), (15, 12, 9), (10, 3, 8)


def image() -> np.ndarray:
    array = np.asfortranarray(np.random.default_rng(2).normal(0, 1, (1, *SHAPE)))
    array[0, 2:9, 3:8, 1:5] += 40
    array[0, 12:19, 10:16, 6:11] += 40
    return array


def volume() -> Volume:
    return Volume(array=image(), affine=AFFINE)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return official_folder(tmp_path_factory.mktemp("models") / "tiny_v1", PROMPTED)


@pytest.fixture(scope="module")
def task(folder):
    return NNInteractiveTask("nninteractive", NNInteractiveFolder.find(str(folder)))


TURNS = [
    Prompts(clicks={"foreground": (ON,)}),
    Prompts(clicks={"background": (OFF,)}),
    Prompts(roi=((12, 10, 6), (19, 16, 11))),
    Prompts(curves=[[(2, 3, 2), (2, 7, 2), (8, 7, 2), (8, 3, 2)]]),
    Prompts(clicks={"foreground": (ALSO,)}),
]


def all_of(turns: list[Prompts]) -> Prompts:
    """An interaction's prompts as the replica has them."""
    clicks: dict[str, list] = {}
    for turn in turns:
        for name, points in turn.clicks.items():
            clicks.setdefault(name, []).extend(points)
    roi = next((turn.roi for turn in reversed(turns) if turn.roi), None)
    curves = [curve for turn in turns for curve in turn.curves]
    return Prompts(clicks=clicks, roi=roi, curves=curves, turns=turns)


def by_hand(folder, count: int) -> np.ndarray:
    """The answer to the first turns of a session that is used as nnInteractive's documentation does."""
    session = Official(device=torch.device("cpu"), torch_n_threads=1)
    session.initialize_from_trained_model_folder(str(folder))
    array = np.ascontiguousarray(image()[0].transpose(2, 1, 0))  # as SimpleITK's GetArrayFromImage
    target = torch.zeros(array.shape, dtype=torch.uint8)
    session.set_image(array[None])
    session.set_target_buffer(target)
    lasso = np.zeros(array.shape, np.uint8)
    lasso[2, 3:8, 2:9] = 1
    for step in [
        lambda: session.add_point_interaction(ON[::-1], include_interaction=True),
        lambda: session.add_point_interaction(OFF[::-1], include_interaction=False),
        lambda: session.add_bbox_interaction([[6, 11], [10, 16], [12, 19]], include_interaction=True),
        lambda: session.add_lasso_interaction(lasso, include_interaction=True),
        lambda: session.add_point_interaction(ALSO[::-1], include_interaction=True),
    ][:count]:
        step()
    labels = target.numpy().transpose(2, 1, 0).copy()
    for turn in TURNS[:count]:
        for point in turn.clicks.get("foreground", ()):
            labels[point] = 1
        for point in turn.clicks.get("background", ()):
            labels[point] = 0
    return labels


def test_our_double_has_the_signatures_of_the_official_class():
    names = ["__init__"] + [name for name in vars(SessionDouble) if inspect.isroutine(getattr(SessionDouble, name))]
    compared = 0
    for name in dict.fromkeys(names):
        if name in ("_placed", "_add", "_undoable"):
            continue
        ours, theirs = (inspect.signature(getattr(cls, name)).parameters for cls in (SessionDouble, Official))
        assert [(n, p.default) for n, p in ours.items()] == [(n, p.default) for n, p in theirs.items()], name
        compared += 1
    assert compared >= 12


@pytest.mark.parametrize("order", ["F", "C"])
def test_the_mask_lies_on_the_images_own_voxels(tmp_path, order):
    task = NNInteractiveTask(
        "nninteractive", NNInteractiveFolder.find(str(official_folder(tmp_path / "net", BRIGHTER)))
    )
    array = np.array(image(), order=order)
    labels = task.predict(
        task.prepare(Volume(array=array, affine=AFFINE)), Prompts(clicks={"foreground": (ON,)}), {}
    ).labels
    np.testing.assert_array_equal(labels, array[0] > array.mean())


def test_every_prompt_is_answered_as_by_hand_and_one_by_one(task, folder, capsys):
    prepared = task.prepare(volume())
    answers = [task.predict(prepared, all_of(TURNS[:count]), {}).labels for count in range(1, len(TURNS) + 1)]
    assert capsys.readouterr().out == ""
    assert all(0 < labels.mean() < 1 for labels in answers)
    assert len({labels.tobytes() for labels in answers}) > 2
    for count in (1, 3, len(TURNS)):
        np.testing.assert_array_equal(answers[count - 1], by_hand(folder, count))


def test_a_rebuilt_session_answers_the_same_also_after_undo_and_another_structure(task):
    prepared = task.prepare(volume())
    fresh = task.predict(task.prepare(volume()), all_of(TURNS), {}).labels
    task.predict(prepared, all_of(TURNS[:3]), {})
    task.predict(prepared, all_of([*TURNS[:2], TURNS[4]]), {})  # takes the third back
    task.predict(prepared, all_of(TURNS[:4]), {})  # and that one, to go on without the network's memory of it
    np.testing.assert_array_equal(task.predict(prepared, all_of(TURNS), {}).labels, fresh)


def test_a_structure_larger_than_the_networks_patch_is_answered_the_same_again(task):
    array = np.random.default_rng(3).normal(0, 1, (1, 70, 20, 14))
    array[0, 5:66, 4:15, 3:11] += 40
    prompts = Prompts(roi=((5, 4, 3), (66, 15, 11)))
    first, second = (task.predict(task.prepare(Volume(array=array, affine=AFFINE)), prompts, {}) for _ in range(2))
    assert first.labels[:20].any()
    assert first.labels[50:].any()
    np.testing.assert_array_equal(first.labels, second.labels)


def test_strokes_and_a_mask_to_start_from_are_taken(task):
    prepared = task.prepare(volume())
    marks, start = np.zeros(SHAPE, np.uint8), np.zeros(SHAPE, np.uint8)
    marks[3:8, 5, 3], marks[10, 2:6, 8] = 2, 1
    start[12:19, 10:16, 6:11] = 1
    np.testing.assert_array_equal(task.predict(prepared, Prompts(start=start), {}).labels, start)
    labels = task.predict(prepared, Prompts(start=start, marks=marks), {}).labels
    assert (labels[marks == 2] == 1).all()
    assert (labels[marks == 1] == 0).all()
    again = task.predict(task.prepare(volume()), Prompts(start=start, marks=marks), {}).labels
    np.testing.assert_array_equal(labels, again)


def test_a_superseded_prompt_leaves_no_trace(task):
    prepared = task.prepare(volume())
    task.predict(prepared, all_of(TURNS[:1]), {})

    calls = iter(range(100))

    def check():
        if next(calls) == 1:
            raise Superseded("a newer click")

    with pytest.raises(Superseded), interruptible(check):
        task.predict(prepared, all_of(TURNS[:2]), {})
    two = [TURNS[0], TURNS[4]]
    fresh = task.predict(task.prepare(volume()), all_of(two), {}).labels
    np.testing.assert_array_equal(task.predict(prepared, all_of(two), {}).labels, fresh)


def test_a_box_is_taken_by_a_network_of_flat_boxes_and_an_empty_image_is_refused(tmp_path):
    folder = official_folder(tmp_path / "flat", PROMPTED, bbox3d=False)
    task = NNInteractiveTask("nninteractive", NNInteractiveFolder.find(str(folder)))
    assert task.predict(task.prepare(volume()), TURNS[2], {}).labels.any()
    empty = task.prepare(Volume(array=np.zeros((1, *SHAPE)), affine=AFFINE))
    with pytest.raises(BadRequest, match="entirely zero"):
        task.predict(empty, TURNS[0], {})


def test_licence_and_damage_are_told(task, folder, tmp_path):
    task.load()
    assert task._artifacts["license"] == NNInteractiveFolder(folder).licence
    damaged = official_folder(tmp_path / "torn", PROMPTED)
    (damaged / "fold_0" / "checkpoint_final.pth").write_bytes(b"torn")
    with pytest.raises(ModelBroken, match="torn cannot be loaded"):
        NNInteractiveTask("nninteractive", NNInteractiveFolder.find(str(damaged))).load()


def test_official_models_are_kept_where_its_own_programs_keep_them(monkeypatch, tmp_path):
    from nnInteractive import model_management

    for root in (None, str(tmp_path)):
        monkeypatch.setenv("NNINTERACTIVE_MODEL_DIR", root or "")
        assert model_management.get_model_root_dir() == models_root()
    inspect.signature(model_management.ensure_model_available).bind("nnInteractive_v1.0", model_root=tmp_path)
