"""The files of a run are there whole or not at all."""

import json

import matplotlib.figure
import numpy as np
import pytest
from PIL import Image

from rayapp.imaging.volume import Volume
from rayapp.training import run_report
from rayapp.training.case_scores import scores_of
from rayapp.training.checkpoint import State
from rayapp.training.recipe import Evaluation
from rayapp.training.run_report import CURVES, DESIGN, STATS, RunReport

MEANS = {"mean": 0.5, "rod": 0.5}
ROW = {
    "epoch": 1,
    "iteration": 3,
    "loss": 0.7,
    "rate": 1e-3,
    "train": MEANS,
    "val": {"dice": MEANS},
    "metric": 0.5,
}


@pytest.fixture
def report(tmp_path):
    opened = RunReport(tmp_path / "run", model="segmentation", epochs=2)
    yield opened
    opened.close()


@pytest.mark.parametrize(
    ("owner", "method", "name"),
    [(matplotlib.figure.Figure, "savefig", CURVES), (Image.Image, "save", "worst-1.png")],
)
def test_a_picture_that_breaks_off_leaves_the_earlier_one(report, tmp_path, monkeypatch, owner, method, name):
    monkeypatch.setattr(run_report, "CURVES_S", -1.0)
    labels = np.zeros((4, 5, 6), np.uint8)
    labels[1, 2, 3] = 1

    def draw():
        if name == CURVES:
            report.validated(State(rows=[ROW]))
        else:
            volume = Volume(array=labels[None].astype(np.float32), affine=np.eye(4))
            evaluation = Evaluation(volume=volume, truth=labels, predictions={"dice": labels}, name="mr_1")
            report.evaluated(scores_of(evaluation, {"rod": 1}), evaluation, {"rod": 1})
            report.finish({}, None)

    draw()
    before = (tmp_path / "run" / name).read_bytes()

    def break_off(_, to, **__):
        to.write_bytes(b"half")
        raise OSError("no space left")

    monkeypatch.setattr(owner, method, break_off)
    with pytest.raises(OSError, match="no space left"):
        draw()
    assert (tmp_path / "run" / name).read_bytes() == before
    assert not list((tmp_path / "run").glob(".*"))


def test_curves_are_drawn_at_first_then_now_and_then_and_at_the_end(report, monkeypatch):
    drawn, now = [], [0.0]
    monkeypatch.setattr(run_report, "curves", lambda rows, _: drawn.append(len(rows)))
    monkeypatch.setattr(run_report.time, "monotonic", lambda: now[0])
    state = State()
    for _ in range(4):
        state.rows.append(ROW)
        report.validated(state)
        now[0] += run_report.CURVES_S * 0.6
    state.rows.append(ROW)
    for _ in range(2):
        report.write(state, finished=True)
    assert drawn == [1, 3, 5]


def test_design_and_statistics_are_written_anew(report, tmp_path):
    for rounds in (1, 2):
        report.design({"rounds": rounds})
        report.write(State(rows=[ROW], epoch=rounds))
        assert json.loads((tmp_path / "run" / DESIGN).read_text()) == {"rounds": rounds}
        assert json.loads((tmp_path / "run" / STATS).read_text())["epoch"] == rounds
