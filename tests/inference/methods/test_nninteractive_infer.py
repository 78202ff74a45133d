"""nnInteractive's models in our replicas: every prompt reaches its session at the right voxels, in the right order."""

from __future__ import annotations

import subprocess
import sys

import nibabel
import numpy as np
import pytest

from rayapp.apps.radiology.main import RadiologyApp
from rayapp.config import Settings
from rayapp.errors import BadRequest, ModelBroken, NotFound, Superseded
from rayapp.imaging.volume import Volume
from rayapp.inference.infer_task import Prompts
from rayapp.inference.methods import nninteractive_infer
from rayapp.inference.methods.nninteractive_infer import NNInteractiveTask
from rayapp.inference.network.cancellation import interruptible
from rayapp.models.nninteractive_folder import NNInteractiveFolder
from rayapp.models.store import ModelStore
from tests.inference.methods.official_session import model_folder, official  # noqa: F401

SHAPE = (13, 11, 7)
LIVER, SPLEEN, VESSEL = 40, 90, 170
"""Values of three structures, each asymmetric along every axis."""
IN_LIVER, IN_SPLEEN, IN_VESSEL, OUTSIDE = (2, 3, 1), (10, 8, 5), (6, 9, 2), (12, 0, 6)
OBLIQUE = nibabel.affines.from_matvec(
    np.linalg.qr(np.array([[0.9, -0.3, 0.2], [0.4, 0.8, -0.3], [-0.1, 0.4, 0.9]]))[0] @ np.diag([0.7, -1.3, 4.0]),
    [11, -5, 30],
)


def phantom() -> np.ndarray:
    array = np.zeros((1, *SHAPE), np.int16, order="F")
    array[0, 1:6, 2:5, 0:3] = LIVER
    array[0, 1:3, 5:7, 0:2] = LIVER
    array[0, 9:12, 6:10, 3:7] = SPLEEN
    array[0, 9, 5, 6] = SPLEEN
    array[0, 3:9, 9, 2:4] = VESSEL
    return array


IMAGE = phantom()[0]


@pytest.fixture
def task(official, tmp_path):  # noqa: F811
    return NNInteractiveTask("nninteractive", NNInteractiveFolder.find(str(model_folder(tmp_path / "net_v1"))))


@pytest.fixture
def prepared(task):
    return task.prepare(Volume(array=phantom(), affine=OBLIQUE))


def answer(task, prepared, **given):
    return task.predict(prepared, Prompts(**given), {}).labels


def turns(*given: dict) -> Prompts:
    """An interaction's prompts as the replica has them: all together, and one by one."""
    clicks: dict[str, list] = {}
    for one in given:
        for name, points in one.get("clicks", {}).items():
            clicks.setdefault(name, []).extend(points)
    others = {name: one[name] for one in given for name in one if name not in ("clicks", "start")}
    start = next((one["start"] for one in reversed(given) if "start" in one), None)
    each = [Prompts(**{name: value for name, value in one.items() if name != "start"}) for one in given]
    return Prompts(clicks=clicks, start=start, turns=each, **others)


@pytest.mark.parametrize("affine", [np.eye(4), OBLIQUE, np.diag([-1.0, -1.0, 3.0, 1.0])])
@pytest.mark.parametrize("order", ["F", "C"])
def test_the_answer_lies_on_the_images_own_voxels_whatever_its_axes(task, affine, order):
    prepared = task.prepare(Volume(array=np.array(phantom(), order=order), affine=affine))
    labels = answer(task, prepared, clicks={"foreground": (IN_SPLEEN,)})
    np.testing.assert_array_equal(labels, IMAGE == SPLEEN)
    assert (labels.dtype, labels.shape) == (np.uint8, SHAPE)


def test_clicks_include_and_exclude_under_the_structures_name_too(task, prepared, official):  # noqa: F811
    given = {"liver": (IN_LIVER, IN_SPLEEN), "background": (IN_SPLEEN,)}
    labels = answer(task, prepared, clicks=given, label="liver")
    np.testing.assert_array_equal(labels, IMAGE == LIVER)
    assert official.log == [
        ("point", IN_LIVER[::-1], 1, True, True),
        ("point", IN_SPLEEN[::-1], 1, True, True),
        ("point", IN_SPLEEN[::-1], 1, False, True),
    ]


def test_a_box_is_half_open_along_each_axis(task, prepared, official):  # noqa: F811
    labels = answer(task, prepared, roi=((9, 6, 3), (12, 10, 7)))
    np.testing.assert_array_equal(labels, IMAGE == SPLEEN)
    assert official.log == [("bbox", (3, 6, 9), 3 * 4 * 4, True, True)]


def test_a_box_for_a_network_of_flat_boxes_is_its_middle_in_each_plane(task, official):  # noqa: F811
    official.supported = {**official.supported, "bbox3d": False}
    prepared = task.prepare(Volume(array=phantom(), affine=OBLIQUE))
    answer(task, prepared, roi=((9, 6, 3), (12, 10, 7)))
    assert official.log == [
        ("bbox", (3, 6, 10), 4 * 4, True, False),
        ("bbox", (3, 8, 9), 4 * 3, True, False),
        ("bbox", (5, 6, 9), 4 * 3, True, True),
    ]
    official.log.clear()
    answer(task, prepared, roi=((9, 6, 4), (12, 10, 5)))
    assert official.log[-1] == ("bbox", (4, 6, 9), 12, True, True)


def test_extreme_points_are_the_box_that_they_span(task, prepared, official):  # noqa: F811
    points = ((9, 7, 4), (11, 7, 4), (9, 5, 6), (10, 9, 4), (10, 7, 3), (10, 7, 6))
    lowered = {"clicks": {"foreground": points}, "roi": ((9, 5, 3), (12, 10, 7))}
    labels = answer(task, prepared, extremes={"foreground": points}, **lowered)
    np.testing.assert_array_equal(labels, IMAGE == SPLEEN)
    assert official.log == [("bbox", (3, 5, 9), 3 * 5 * 4, True, True)]


@pytest.mark.parametrize("axis", range(3))
def test_a_closed_curve_is_a_filled_lasso_in_its_slice(task, prepared, official, axis):  # noqa: F811
    corners = np.delete([(9, 6, 4), (11, 6, 4), (11, 9, 6), (9, 9, 6)], axis, axis=1)
    (a0, b0), (a1, b1) = corners.min(0), corners.max(0)
    square = [(a0, b0), (a0, b1), (a1, b1), (a1, b0)]
    curve = [tuple(int(n) for n in np.insert(corner, axis, IN_SPLEEN[axis])) for corner in square]
    labels = answer(task, prepared, curves=[curve])
    np.testing.assert_array_equal(labels, IMAGE == SPLEEN)
    first = tuple(int(n) for n in np.insert((a0, b0), axis, IN_SPLEEN[axis]))
    assert official.log == [("lasso", first[::-1], (a1 - a0 + 1) * (b1 - b0 + 1), True, True)]


def test_strokes_include_and_exclude_and_are_enforced(task, prepared, official):  # noqa: F811
    marks = np.zeros(SHAPE, np.uint8, order="F")
    marks[2:5, 3, 1] = marks[12, 0, 6] = 2
    marks[10, 6:8, 5] = 1
    marks[3:9, 9, 2] = 1
    labels = answer(task, prepared, marks=marks, clicks={"foreground": (IN_SPLEEN,)})
    expected = (IMAGE == LIVER) | (marks == 2)
    expected[IN_SPLEEN] = True
    np.testing.assert_array_equal(labels, expected)
    assert [entry[0] for entry in official.log] == ["scribble", "point", "scribble"]
    assert official.log[0] == ("scribble", (1, 3, 2), 4, True, True)
    assert official.log[2] == ("scribble", (2, 9, 3), 8, False, True)


def test_a_mask_to_start_from_is_corrected_and_other_structures_stay(task, prepared, official):  # noqa: F811
    start = np.zeros(SHAPE, np.uint8)
    start[IMAGE == LIVER] = 1
    start[9, 5, 6] = 2
    np.testing.assert_array_equal(answer(task, prepared, start=start), IMAGE == LIVER)
    labels = answer(task, prepared, start=start, clicks={"foreground": (IN_SPLEEN,)})
    expected = (IMAGE == LIVER) | (IMAGE == SPLEEN)
    expected[9, 5, 6] = False
    np.testing.assert_array_equal(labels, expected)
    assert [entry[0] for entry in official.log] == ["initial", "point"]


def test_a_further_prompt_is_one_call_and_undo_none(task, prepared, official):  # noqa: F811
    one, two = {"clicks": {"foreground": (IN_LIVER,)}}, {"clicks": {"foreground": (IN_SPLEEN,)}}
    first = task.predict(prepared, turns(one), {}).labels
    task.predict(prepared, turns(one, two), {})
    assert len(official.log) == 2
    np.testing.assert_array_equal(task.predict(prepared, turns(one), {}).labels, first)
    assert len(official.log) == 2
    three = {"clicks": {"background": (IN_VESSEL,)}}
    np.testing.assert_array_equal(task.predict(prepared, turns(one, three), {}).labels, IMAGE == LIVER)
    assert [entry[0] for entry in official.log] == ["point", "point", "undo", "point"]


def test_an_interactions_prompts_are_repeated_in_their_order(task, prepared, official):  # noqa: F811
    said = [{"clicks": {"background": (IN_SPLEEN,)}}, {"clicks": {"foreground": (IN_SPLEEN,)}}]
    in_order = task.predict(prepared, turns(*said), {}).labels
    np.testing.assert_array_equal(in_order, IMAGE == SPLEEN)
    assert [entry[3] for entry in official.log] == [False, True]


def test_a_session_is_rebuilt_after_a_kill_and_answers_the_same(task, official):  # noqa: F811
    volume = Volume(array=phantom(), affine=OBLIQUE)
    start = np.zeros(SHAPE, np.uint8)
    start[3:9, 9, 2] = 1
    said = [
        {"clicks": {"foreground": (IN_LIVER,)}},
        {"roi": ((9, 6, 3), (12, 10, 7))},
        {"clicks": {"background": (IN_LIVER,)}, "start": start},
        {"clicks": {"foreground": (IN_VESSEL, IN_LIVER)}},
    ]
    alive = task.prepare(volume)
    for count in range(1, len(said) + 1):
        before = task.predict(alive, turns(*said[:count]), {}).labels
    official.log.clear()
    after = task.predict(task.prepare(volume), turns(*said), {}).labels
    np.testing.assert_array_equal(before, after)
    assert [entry[0] for entry in official.log] == ["initial", "point", "bbox", "point", "point", "point"]


def test_what_the_session_draws_at_random_depends_on_the_prompts_alone(task, official):  # noqa: F811
    volume, prompts = Volume(array=phantom(), affine=OBLIQUE), Prompts(clicks={"foreground": (IN_LIVER, IN_VESSEL)})
    task.predict(task.prepare(volume), prompts, {})
    before = np.random.get_state()[1].copy()
    task.predict(task.prepare(volume), prompts, {})
    np.testing.assert_array_equal(np.random.get_state()[1], before)
    assert official.drawn[:2] == official.drawn[2:]
    assert len(set(official.drawn)) == 2


def test_another_structure_on_the_same_image_starts_afresh_and_the_first_is_remembered(task, prepared, official):  # noqa: F811
    liver = {"clicks": {"foreground": (IN_LIVER,)}}
    both = turns(liver, {"clicks": {"foreground": (IN_VESSEL,)}})
    first = task.predict(prepared, both, {}).labels
    np.testing.assert_array_equal(answer(task, prepared, clicks={"foreground": (IN_SPLEEN,)}), IMAGE == SPLEEN)
    calls = len(official.log)
    np.testing.assert_array_equal(task.predict(prepared, both, {}).labels, first)
    assert len(official.log) == calls
    assert [entry[0] for entry in official.log] == ["point", "point", "reset", "point"]


def test_a_superseded_prompt_ends_between_two_runs_of_the_network_and_leaves_no_trace(task, prepared, official):  # noqa: F811
    liver = {"clicks": {"foreground": (IN_LIVER,)}}
    task.predict(prepared, turns(liver), {})
    runs = iter(range(10))

    def check():
        if next(runs) == 2:  # at the start, before the first run and before the second
            raise Superseded("a newer click")

    with pytest.raises(Superseded), interruptible(check):
        task.predict(prepared, turns(liver, {"clicks": {"foreground": (IN_VESSEL,)}}), {})
    labels = task.predict(prepared, turns(liver, {"clicks": {"foreground": (IN_SPLEEN,)}}), {}).labels
    np.testing.assert_array_equal(labels, (IMAGE == LIVER) | (IMAGE == SPLEEN))
    assert [entry[0] for entry in official.log] == ["point", "point", "point"]


@pytest.mark.parametrize(
    ("kind", "given"),
    [
        ("points", {"clicks": {"foreground": (IN_LIVER,)}}),
        ("lasso", {"curves": [[(1, 1, 1), (1, 4, 1), (4, 4, 1)]]}),
        ("scribble", {"marks": (IMAGE == LIVER) * np.uint8(2)}),
        ("initial", {"start": (IMAGE == LIVER) * np.uint8(1)}),
        ("bbox", {"roi": ((1, 1, 1), (5, 5, 5))}),
    ],
)
def test_a_prompt_that_the_network_was_not_trained_for_is_refused(task, official, kind, given):  # noqa: F811
    official.supported = {name: not name.startswith(kind) for name in official.supported}
    official.initial = kind != "initial"
    prepared = task.prepare(Volume(array=phantom(), affine=OBLIQUE))
    with pytest.raises(BadRequest, match=r"does not take .*; it takes: "):
        answer(task, prepared, **given)


def test_nothing_pointed_at_and_an_empty_image_are_bad_requests(task, prepared):
    for given in ({}, {"clicks": {"background": (IN_LIVER,)}}):
        with pytest.raises(BadRequest, match="click on a structure"):
            answer(task, prepared, **given)
    empty = task.prepare(Volume(array=np.zeros((1, *SHAPE), np.int16), affine=OBLIQUE))
    with pytest.raises(BadRequest, match="entirely zero"):
        answer(task, empty, clicks={"foreground": (IN_LIVER,)})


def test_one_network_serves_all_images_and_voxels_without_a_value_are_zero(task, official):  # noqa: F811
    array = phantom().astype(np.float32)
    array[0, 0, 0, 0] = np.nan
    sessions = [task.prepare(Volume(array=array, affine=OBLIQUE)) for _ in range(2)]
    assert len(official.loads) == 1
    assert np.isfinite(sessions[0]._session.image).all()
    assert np.isnan(array[0, 0, 0, 0])
    assert sessions[0].nbytes >= IMAGE.size * (4 + 14 + 1)
    assert sessions[0].shape == SHAPE


def test_the_description_names_the_licence(task, tmp_path):
    assert "licence: CC BY-NC-SA 4.0" in task.info.description
    assert (task.version, task.info.type, dict(task.info.labels)) == ("net_v1", "deepgrow", {})
    unknown = NNInteractiveFolder(model_folder(tmp_path / "unknown", licence=None))
    assert unknown.licence == "unknown"
    (unknown.root / "plans.json").write_text('{"dataset_name": "Dataset225_nnInteractiveV2"}')
    assert unknown.licence == "CC BY-NC-SA 4.0"


def test_a_damaged_folder_is_named(official, tmp_path):  # noqa: F811
    folder = model_folder(tmp_path / "net")
    (folder / "fold_0" / "checkpoint_final.pth").write_bytes(b"torn")
    with pytest.raises(ModelBroken, match=r"'nninteractive': .*net cannot be loaded: RuntimeError: the checkpoint"):
        NNInteractiveTask("nninteractive", NNInteractiveFolder.find(str(folder))).load()
    (folder / "plans.json").unlink()
    with pytest.raises(ModelBroken, match=r"net is no nnInteractive model folder: plans\.json missing"):
        NNInteractiveFolder.find(str(folder))


def served(tmp_path, **conf) -> RadiologyApp:
    (tmp_path / "studies").mkdir()
    settings = Settings(studies=tmp_path / "studies", workspace=tmp_path / "ws", models=("nninteractive",), conf=conf)
    app = RadiologyApp(settings=settings, models=ModelStore.of(settings))
    app.load_all()
    return app


def test_the_app_serves_the_folder_that_conf_names_by_path_or_id(official, tmp_path, monkeypatch):  # noqa: F811
    monkeypatch.setenv("NNINTERACTIVE_MODEL_DIR", str(tmp_path / "root"))
    model_folder(tmp_path / "root" / "models" / "nnInteractive_v1.0")
    app = served(tmp_path, nninteractive="nnInteractive_v1.0")
    assert app.info()["models"]["nninteractive"]["version"] == "nnInteractive_v1.0"
    assert app.trainers == {}
    assert app.broken == {}


@pytest.mark.parametrize(
    ("conf", "problem"),
    [
        ({}, "--conf nninteractive=nnInteractive_v1.0"),
        ({"nninteractive": "nnInteractive_v9"}, "`rayapp nninteractive download nnInteractive_v9` shows its licence"),
        ({"nninteractive": "/no/where"}, "no such folder"),
    ],
)
def test_the_app_says_what_to_name_or_to_fetch_and_fetches_nothing_itself(tmp_path, monkeypatch, conf, problem):
    monkeypatch.setenv("NNINTERACTIVE_MODEL_DIR", str(tmp_path / "root"))
    app = served(tmp_path, **conf)
    assert app.infers == {}
    assert problem in app.broken["nninteractive"]


def test_without_the_package_the_app_says_what_to_install(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, nninteractive_infer.MODULE, None)
    app = served(tmp_path, nninteractive=str(model_folder(tmp_path / "net")))
    assert "pip install 'rayapp[nninteractive]'" in app.broken["nninteractive"]


def test_the_package_is_not_imported_unless_its_model_is_served():
    code = "import sys, rayapp.apps.radiology.main; print([name for name in sys.modules if 'nnInteractive' in name])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=240)
    assert done.stdout.strip() == "[]"


def test_an_unknown_official_id_leads_to_the_command(monkeypatch, tmp_path):
    monkeypatch.setenv("NNINTERACTIVE_MODEL_DIR", str(tmp_path))
    with pytest.raises(NotFound, match="rayapp nninteractive download nnInteractive_v2"):
        NNInteractiveFolder.find("nnInteractive_v2")
