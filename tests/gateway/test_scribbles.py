"""Scribbles on the wire, as 3D Slicer and OHIF send them, to the app that ships."""

from __future__ import annotations

import base64
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from rayapp.imaging.mask_codec import decode
from rayapp.imaging.reader import read_segmentation
from rayapp.inference.prompts.scribble_map import BACKGROUND, FOREGROUND
from tests.gateway.conftest import AFFINE, Serve, Served, write_image

SHAPE = (30, 26, 9)
INFO = [
    {"name": "lesion", "id": 1},
    {"name": "background_scribbles", "id": 2},
    {"name": "foreground_scribbles", "id": 3},
]
SLICER = {
    "optimiser": "graph cut",
    "roi": [],
    "label_info": INFO,
    "selected_label_name": "lesion",
    "result_extension": ".nrrd",
    "result_dtype": "uint8",
    "client_id": "slicer",
}


def truth() -> np.ndarray:
    i, j, k = np.indices(SHAPE)
    return ((i - 14) / 8) ** 2 + ((j - 12) / 7) ** 2 + ((k - 4) / 3) ** 2 < 1


def drawn(background: int = 2, foreground: int = 3) -> np.ndarray:
    """A line in the structure and a frame around it on one slice, and a piece of another segment."""
    label = np.zeros(SHAPE, np.uint8)
    label[4, 3:22, 4] = label[24, 3:22, 4] = label[4:25, 3, 4] = label[4:25, 21, 4] = background
    label[10:19, 12, 4] = foreground
    label[14, 12, 6] = 1
    return label


@pytest.fixture(scope="module")
def radiology(serve: Serve) -> Served:
    served = serve(app="radiology", models=("scribbles",))
    rng = np.random.default_rng(0)
    image = (100 + 80 * truth() + rng.normal(0, 6, SHAPE)).astype(np.int16)
    write_image(served.settings.studies / "mr.nii.gz", image)
    served.store.refresh()
    return served


def scribble(
    served: Served, file: Path | tuple[str, bytes], model: str = "Histogram%2BGraphCut", query: str = "", **params: Any
) -> Any:
    body = (file.name, file.read_bytes()) if isinstance(file, Path) else file
    data = {"params": json.dumps({**SLICER, **params})}
    return served.post(f"/infer/{model}?image=mr{query}", data=data, files={"label": body})


@pytest.fixture
def label(tmp_path: Path) -> Path:
    return write_image(tmp_path / "scribbles.nii.gz", drawn())


def dice(mask: np.ndarray) -> float:
    return 2 * (mask.astype(bool) & truth()).sum() / (mask.sum() + truth().sum())


@pytest.mark.parametrize(
    "model",
    ["Histogram%2BGraphCut", "Histogram+GraphCut", "Histogram%20GraphCut", "GMM%2BGraphCut", "Forest%2BGraphCut"],
)
def test_slicers_scribbles_come_back_as_a_mask_on_the_images_grid(
    radiology: Served, label: Path, tmp_path: Path, model: str
):
    answer = scribble(radiology, label, model, "&output=image")
    assert answer.status_code == 200, answer.text
    (tmp_path / "mask.nrrd").write_bytes(answer.content)
    mask = read_segmentation(tmp_path / "mask.nrrd", max_bytes=1 << 20)
    assert mask.array.dtype == np.uint8
    assert np.allclose(mask.affine, AFFINE, atol=1e-4)
    assert set(np.unique(mask.array)) == {0, 1}
    assert mask.array[drawn() == 3].all()
    assert not mask.array[drawn() == 2].any()
    assert dice(mask.array) > 0.8
    assert radiology.staged() == []


def test_the_reply_names_the_selected_segment(radiology: Served, label: Path):
    params = scribble(radiology, label, query="&output=json").json()
    assert params["label_names"] == {"lesion": 1}
    assert params["latencies"]["infer"] > 0


def test_two_annotators_with_other_ids_do_not_meet(radiology: Served, label: Path, tmp_path: Path):
    info = [{"name": "foreground_scribbles", "id": 2}, {"name": "background_scribbles", "id": 7}]
    other = write_image(tmp_path / "other.nii.gz", drawn(background=7, foreground=2))
    first = scribble(radiology, label, query="&output=box")
    second = scribble(radiology, other, query="&output=box", label_info=info, client_id="other")
    assert np.array_equal(decode(first.content), decode(second.content))


def test_without_label_info_the_values_are_two_and_three(radiology: Served, label: Path):
    answer = scribble(radiology, label, query="&output=box", label_info=None)
    assert decode(answer.content)[drawn() == 3].all()


def test_a_box_drawn_backwards_is_a_box(radiology: Served, label: Path):
    mask = decode(scribble(radiology, label, query="&output=box", roi=[20, 8, 18, 5, 8, -3]).content)
    inside = np.zeros(SHAPE, bool)
    inside[8:21, 5:19, 0:9] = True
    assert mask[inside].any()
    assert not mask[~inside].any()


def test_a_box_without_any_scribble_is_enough(radiology: Served):
    data = {"params": json.dumps({**SLICER, "label_info": [], "roi": [4, 24, 3, 21, 1, 7]})}
    answer = radiology.post("/infer/Histogram%2BGraphCut?image=mr&output=box", data=data)
    assert dice(decode(answer.content)) > 0.55


def test_ohifs_raw_voxels_are_read(radiology: Served, label: Path):
    raw = ("label.bin", drawn().tobytes(order="F"))
    same = scribble(radiology, label, query="&output=box")
    assert np.array_equal(decode(scribble(radiology, raw, query="&output=box").content), decode(same.content))


def test_scribbles_are_in_the_log_as_they_were_drawn(radiology: Served, label: Path):
    scribble(radiology, label, query="&output=json")
    event = radiology.store.events("mr")[-1]
    assert (event.kind, event.model, event.client_id) == ("scribble", "Histogram+GraphCut", "slicer")
    marks = decode(base64.b64decode(event.payload["marks"]))
    assert np.array_equal(marks == FOREGROUND, drawn() == 3)
    assert np.array_equal(marks == BACKGROUND, drawn() == 2)


@pytest.mark.parametrize(
    ("change", "status", "said"),
    [
        ("nothing drawn", 400, "no foreground scribbles"),
        ("another shape", 422, "must lie on its image's grid of 30 x 26 x 9 voxels"),
        ("elsewhere", 422, "lies elsewhere in space"),
        ("rubbish", 422, ""),
        ("no format", 422, "not of a supported format"),
        ("short raw", 422, "voxels of one byte"),
        ("bad info", 400, "label_info must be a list"),
        ("bad optimiser", 400, "optimiser must be one of"),
        ("bad roi", 400, "is outside the image"),
    ],
)
def test_what_is_wrong_with_scribbles_is_said(
    radiology: Served, label: Path, tmp_path: Path, change: str, status: int, said: str
):
    shifted = AFFINE.copy()
    shifted[0, 3] += 3
    file: Path | tuple[str, bytes] = {
        "nothing drawn": lambda: write_image(tmp_path / "x.nii.gz", np.zeros(SHAPE, np.uint8)),
        "another shape": lambda: write_image(tmp_path / "x.nii.gz", np.zeros((30, 26, 10), np.uint8)),
        "elsewhere": lambda: write_image(tmp_path / "x.nii.gz", drawn(), shifted),
        "rubbish": lambda: ("x.nii.gz", b"no label map"),
        "no format": lambda: ("x.txt", b"3"),
        "short raw": lambda: ("label.bin", b"\x03" * 99),
    }.get(change, lambda: label)()
    params = {
        "bad info": {"label_info": {"lesion": 1}},
        "bad optimiser": {"optimiser": "magic"},
        "bad roi": {"roi": [40, 50, 0, 1, 0, 1]},
    }.get(change, {})
    answer = scribble(radiology, file, query="&output=json", **params)
    assert answer.status_code == status, answer.text
    assert said in answer.json()["detail"]
    assert radiology.staged() == []


def test_closed_curves_on_two_slices_become_a_volume(radiology: Served):
    def ellipse(k: int, share: float) -> list[list[int]]:
        angles = np.linspace(0, 2 * np.pi, 24, endpoint=False)
        points = np.stack([14 + 8 * share * np.cos(angles), 12 + 7 * share * np.sin(angles)], axis=1)
        return [[int(i), int(j), k] for i, j in np.rint(points)]

    params = {"curves": [ellipse(2, 0.75), ellipse(6, 0.75)], "selected_label_name": "lesion"}
    data = {"params": json.dumps(params)}
    answer = radiology.post("/infer/ClosedCurves%2BGraphCut?image=mr&output=box", data=data)
    assert answer.status_code == 200, answer.text
    assert dice(decode(answer.content)) > 0.85
    assert radiology.store.events("mr")[-1].payload["curves"] == params["curves"]
