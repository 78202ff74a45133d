"""Kinds of bundles beside segmentation: DeepEdit, VISTA and detectors."""

import json

import numpy as np
import pytest
import torch

from rayapp.errors import BadRequest
from rayapp.imaging.volume import Volume
from rayapp.inference.infer_task import Prompts
from tests.inference import zoo
from tests.inference.grids import affine_of
from tests.inference.methods.bundles import SOME, SPACING, ask, deepedit, task_of


@pytest.mark.parametrize("turned", [False, True], ids=["without", "with the bundle's own turning of clicks"])
def test_a_deepedit_is_known_by_its_transforms_and_clicks_land_where_they_were_made(tmp_path, turned):
    task = task_of(deepedit(tmp_path / "called_anything", turned=turned))
    assert (task.info.type, task.info.labels) == ("deepedit", {"background": 0, "spleen": 1})
    for orientation in SOME:
        volume = Volume(array=np.zeros((1, 9, 13, 7), np.float32), affine=affine_of(orientation, SPACING, 11.0))
        prepared = task.prepare(volume)
        assert task.predict(prepared, Prompts(), {}).labels.sum() == 0
        for click in [(1, 2, 3), (7, 4, 1)]:
            found = task.predict(prepared, Prompts(clicks={"spleen": [click]}), {}).labels
            assert 0 < found.sum() < 60
            assert np.abs(np.argwhere(found).mean(0) - click).max() < 0.8
            loose = task.predict(prepared, Prompts(clicks={"foreground": [click]}), {}).labels
            assert np.array_equal(loose, found)
            both = Prompts(clicks={"spleen": [click], "background": [click]})
            assert task.predict(prepared, both, {}).labels.sum() == 0


def test_a_deepedits_automatic_half_takes_no_clicks(tmp_path):
    task = task_of(deepedit(tmp_path / "edit"), clicks=False)
    assert (task.info.type, task.info.labels) == ("segmentation", {"spleen": 1})
    volume = Volume(array=np.full((1, 9, 13, 7), 2.0, np.float32), affine=np.eye(4))
    volume.array[0, :4] = 0
    labels = ask(task, volume, Prompts(clicks={"spleen": [(0, 0, 0)]}, roi=((0, 0, 0), (9, 13, 3)))).labels
    assert labels[0, 0, 0] == 0
    assert labels[6:, :, :3].all()
    assert not labels[:, :, 3:].any()


POINTED = """
import torch
class PointHead:
    last_supported = 132
class Pointed(torch.nn.Module):
    point_head = PointHead()
    def __init__(self):
        super().__init__()
        self.at = torch.nn.Parameter(torch.zeros(1))
class Vista3dInferer:
    \"\"\"Class n is what has intensity n; points take the 3x3x3 around them in or out.\"\"\"
    def __call__(self, inputs, network, point_coords, point_labels, class_vector, labels=None, label_set=None):
        if class_vector is None:
            logits = torch.full_like(inputs, -1.0)
        else:
            logits = torch.cat([((inputs - c).abs() < 0.4) * 2.0 - 1.0 for c in class_vector.flatten()], 1)
        if point_coords is not None:
            for (x, y, z), sign in zip(point_coords[0].int().tolist(), point_labels[0].tolist()):
                logits[:, 0, max(x-1,0):x+2, max(y-1,0):y+2, max(z-1,0):z+2] = 1.0 if sign == 1 else -1.0
        return logits
"""


def test_a_vista_takes_classes_and_points_as_clients_send_them(tmp_path):
    root = zoo.bundle(
        tmp_path / "prompted",
        network={"_target_": "scripts.own.Pointed"},
        pre=zoo.compose(
            zoo.LOAD,
            [
                {
                    "_target_": "monai.apps.vista3d.transforms.VistaPreTransformd",
                    "keys": "image",
                    "subclass": {"2": [3, 4]},
                    "labels_dict": {"1": "liver"},
                }
            ],
            zoo.ORIENT,
        ),
        post=zoo.compose(
            [{"_target_": "monai.apps.vista3d.transforms.VistaPostTransformd", "keys": "pred"}],
            [{**zoo.INVERT[0], "transform": "$copy.deepcopy(@preprocessing)", "nearest_interp": True}],
        ),
        channels=("background", "liver", "kidney", "left kidney", "right kidney"),
        inferer={"_target_": "scripts.own.Vista3dInferer"},
        everything_labels=[1, 3, 4],
        imports=["$import copy"],
        scripts=POINTED,
    )
    torch.save({"at": torch.zeros(1)}, root / "models" / "model.pt")
    task = task_of(root)
    assert (task.info.type, task.info.labels["right kidney"]) == ("vista3d", 4)
    array = np.random.default_rng(1).integers(0, 5, (1, 9, 13, 7)).astype(np.float32)
    volume = Volume(array=array, affine=affine_of(SOME[3], SPACING, 13.0))
    values = array[0]
    assert np.array_equal(ask(task, volume).labels, np.where(np.isin(values, (1, 3, 4)), values, 0))
    assert np.array_equal(ask(task, volume, label_prompt=[1]).labels, values == 1)
    assert np.array_equal(ask(task, volume, label_prompt=[2]).labels, np.where(values > 2, values, 0))
    near = np.zeros(values.shape, bool)
    near[4:7, 6:9, 1:4] = True
    points = {"points": [[5, 7, 2]], "point_labels": [1]}
    assert np.array_equal(ask(task, volume, label_prompt=[1], **points).labels, (values == 1) | near)
    points["point_labels"] = [0]
    assert np.array_equal(ask(task, volume, label_prompt=[1], **points).labels, (values == 1) & ~near)
    clicks = Prompts(clicks={"liver": [(5, 7, 2)]})
    assert np.array_equal(ask(task, volume, clicks).labels, (values == 1) | near)
    for wrong in ({"label_prompt": [9]}, {"points": [[99, 0, 0]], "point_labels": [1]}, {"points": [[1, 1, 1]]}):
        with pytest.raises(BadRequest):
            ask(task, volume, **wrong)


FOUND = """
import torch
class Detector:
    target_box_key, target_label_key, pred_score_key = "box", "label", "label_scores"
    ready = False
    def eval(self):
        return self
class Inferer:
    \"\"\"The extent of what is bright, and a box of no size.\"\"\"
    def __init__(self, detector):
        self.detector = detector
    def __call__(self, inputs, network):
        assert self.detector.ready
        at = torch.nonzero(inputs[0][0] > 0.5)
        box = torch.cat([at.amin(0), at.amax(0)]).float()
        boxes = torch.stack([torch.zeros(6), box])
        return [{"box": boxes, "label": torch.tensor([0, 0]), "label_scores": torch.tensor([0.9, 0.8])}]
"""


def test_a_detectors_boxes_are_in_millimetres_of_the_patient(tmp_path):
    root = zoo.bundle(
        tmp_path / "nodules",
        network=zoo.BRIGHTER,
        pre=zoo.compose(zoo.LOAD, zoo.ORIENT),
        post=zoo.compose([{"_target_": "DeleteItemsd", "keys": "image"}]),
        channels=("Nodule",),
        detector={"_target_": "scripts.own.Detector"},
        detector_ops=["$setattr(@detector, 'ready', True)"],
        inferer={"_target_": "scripts.own.Inferer", "detector": "@detector"},
        scripts=FOUND,
    )
    zoo.save(root, torch.nn.Conv3d(1, 2, 1))
    task = task_of(root)
    assert (task.info.type, task.info.labels) == ("detection", {"nodule": 0})
    array = np.zeros((1, 9, 13, 7), np.float32)
    array[0, 2:5, 6:12, 1:3] = 1
    ends = np.array([[i, j, k, 1] for i in (2, 4) for j in (6, 11) for k in (1, 2)], float)
    for orientation in SOME:
        affine = affine_of(orientation, SPACING)
        found = ask(task, Volume(array=array, affine=affine))
        lps = (ends @ affine.T)[:, :3] * (-1, -1, 1)
        wanted = [*(lps.min(0) + lps.max(0)) / 2, *(lps.max(0) - lps.min(0))]
        assert np.allclose(found.params["box"], [wanted], atol=1e-4)
        assert (found.params["label"], found.labels.any()) == (["nodule"], False)
        markup = json.loads(found.document)["markups"][0]
        assert np.allclose([*markup["center"], *markup["size"]], wanted, atol=1e-4)
        assert markup["coordinateSystem"] == "LPS"
