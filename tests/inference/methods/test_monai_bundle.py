"""Bundles in the zoo's layout are served as they are, and what they find lies where it was found."""

import json
import pickle
import sys

import nibabel
import numpy as np
import pytest
import torch

from rayapp.active_learning.scoring_methods import (
    Case,
    MonteCarloDropout,
    TestTimeAugmentation,
    options_of,
    scoring_models,
)
from rayapp.datastore.interfaces import ImageRecord
from rayapp.errors import BadRequest, ModelBroken
from rayapp.imaging.volume import Volume
from rayapp.inference.infer_task import Prompts
from rayapp.inference.methods.monai_bundle import BundleTask
from rayapp.models.bundle_folder import BundleFolder
from tests.inference import zoo
from tests.inference.grids import ORIENTATIONS, affine_of

SOME = ORIENTATIONS[::7]
SPACING = (0.8, 1.1, 2.3)
AT = 0.2


def task_of(root, **given):
    task = BundleTask(BundleFolder(root, root.name), **given)
    task.load()
    return task


def ask(task, volume, prompts=None, **config):
    return task.predict(task.prepare(volume), prompts or Prompts(), config)


def volumes(shape=(9, 13, 7), channels=1):
    array = zoo.speckled(shape, channels)
    return [Volume(array=array, affine=affine_of(o, SPACING, oblique)) for o in SOME for oblique in (0.0, 17.0)]


@pytest.mark.parametrize("post", ["author inverts", "nobody inverts", "inverted before argmax"])
def test_a_mask_comes_back_to_the_voxel_whatever_way_the_image_lies(tmp_path, post):
    posts = {
        "author inverts": (zoo.SOFTMAX, zoo.ARGMAX, zoo.INVERT, zoo.SAVE),
        "nobody inverts": (zoo.SOFTMAX, zoo.ARGMAX, zoo.SAVE),
        "inverted before argmax": (zoo.SOFTMAX, zoo.INVERT, zoo.ARGMAX, zoo.SAVE),
    }
    pre = zoo.compose(zoo.LOAD, zoo.ORIENT)
    root = zoo.bundle(
        tmp_path / "b", network=zoo.BRIGHTER, pre=pre, post=zoo.compose(*posts[post]), weights=zoo.threshold(AT)
    )
    task = task_of(root)
    for volume in volumes():
        assert np.array_equal(ask(task, volume).labels, volume.array[0] > AT)
    assert not (root / "eval").exists()
    assert (task.info.labels, task.info.type, task.version) == ({"spleen": 1}, "segmentation", "bundle 0.5.6")


RIGHT = """
import torch
class RightHalf(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.way = torch.nn.Parameter(torch.ones(1))
    def forward(self, x):
        ramp = torch.linspace(-1, 1, x.shape[2])[None, None, :, None, None].expand(x.shape)
        return torch.cat([torch.zeros_like(x), ramp * self.way], 1)
"""


def test_the_network_sees_the_axes_that_the_bundle_asks_for_and_scripts_stay_the_bundles_own(tmp_path):
    roots = []
    for name, way in (("right", 1.0), ("left", -1.0)):
        root = zoo.bundle(
            tmp_path / name,
            network={"_target_": "scripts.own.RightHalf"},
            pre=zoo.compose(zoo.LOAD, zoo.ORIENT),
            post=zoo.compose(zoo.ARGMAX, zoo.SAVE),
            inferer={"_target_": "SimpleInferer"},
            scripts=RIGHT.replace("* self.way", f"* self.way * {way}"),
        )
        torch.save({"way": torch.ones(1)}, root / "models" / "model.pt")
        roots.append(root)
    tasks = [task_of(root) for root in roots]
    assert not [name for name in sys.modules if name.split(".")[0] == "scripts"]
    for volume in volumes((8, 10, 6))[::2]:
        i, j, k = np.indices(volume.shape)
        x = np.tensordot(volume.affine[0, :3], np.stack([i, j, k]), 1)
        right = x > x.mean()  # RAS: x grows to the patient's right
        assert np.array_equal(ask(tasks[0], volume).labels, right)
        assert np.array_equal(ask(tasks[1], volume).labels, ~right)


def test_resampled_and_cropped_masks_lie_on_the_structure(tmp_path):
    pre = zoo.compose(
        zoo.LOAD,
        zoo.ORIENT,
        [
            {"_target_": "Spacingd", "keys": "@image_key", "pixdim": [1.0, 1.0, 1.0]},
            {"_target_": "CropForegroundd", "keys": "@image_key", "source_key": "@image_key", "margin": 2},
            {"_target_": "ScaleIntensityRanged", "keys": "image", "a_min": 0, "a_max": 100, "b_min": 0, "b_max": 1},
        ],
    )
    array = np.zeros((1, 34, 40, 20), np.float32)
    array[0, 3:29, 7:37, 4:14] = 100.0
    for number, post in enumerate([(zoo.ARGMAX,), (zoo.SOFTMAX, zoo.INVERT, zoo.ARGMAX)]):
        root = zoo.bundle(
            tmp_path / str(number), network=zoo.BRIGHTER, pre=pre, post=zoo.compose(*post), weights=zoo.threshold(0.5)
        )
        task = task_of(root)
        for orientation in SOME:
            volume = Volume(array=array, affine=affine_of(orientation, SPACING, 17.0))
            labels, truth = ask(task, volume).labels, array[0] > 50
            assert labels.shape == truth.shape
            assert 2 * (labels * truth).sum() / (labels.sum() + truth.sum()) > 0.93
            away = (np.argwhere(labels).mean(0) - np.argwhere(truth).mean(0)) * SPACING
            assert np.abs(away).max() < 0.5  # mm: half a voxel of the network's


UNET = {
    "_target_": "UNet",
    "spatial_dims": 3,
    "in_channels": 1,
    "out_channels": 2,
    "channels": [4, 8],
    "strides": [2],
    "norm": "batch",
}
DYNUNET = {
    "_target_": "DynUNet",
    "spatial_dims": 3,
    "in_channels": 1,
    "out_channels": 2,
    "kernel_size": [3, 3, 3],
    "strides": [1, 2, 2],
    "upsample_kernel_size": [2, 2],
    "filters": [4, 8, 8],
    "norm_name": "instance",
    "deep_supervision": False,
}
SEGRESNET = {"_target_": "SegResNet", "in_channels": 4, "out_channels": 3, "init_filters": 4, "blocks_down": [1, 1],
             "blocks_up": [1], "norm": "instance"}  # fmt: skip


@pytest.mark.parametrize(
    ("network", "form"),
    [(UNET, "pt"), (UNET, "nested"), (UNET, "ts"), (UNET, "yaml"), (DYNUNET, "pt")],
    ids=["UNet", "UNet in a checkpoint", "UNet in TorchScript", "UNet and YAML", "DynUNet"],
)
def test_networks_and_forms_of_weights_give_what_the_network_itself_gives(tmp_path, network, form):
    pre = zoo.compose(zoo.LOAD, zoo.ORIENT, [{"_target_": "NormalizeIntensityd", "keys": "image"}])
    root = zoo.bundle(
        tmp_path / "b", network=network, pre=pre, post=zoo.compose(zoo.SOFTMAX, zoo.INVERT, zoo.ARGMAX), form=form
    )
    task = task_of(root)
    array = zoo.speckled((32, 32, 32))
    labels = ask(task, Volume(array=array, affine=np.eye(4))).labels
    image = torch.from_numpy((array - array.mean()) / array.std())[None]
    with torch.no_grad():
        wanted = task.components.network(image)[0].argmax(0).numpy()
    assert 0 < wanted.mean() < 1
    assert (labels != wanted).mean() < 0.001


def test_four_channels_go_in_and_channels_without_background_are_labels_from_one(tmp_path):
    root = zoo.bundle(
        tmp_path / "brain",
        network=SEGRESNET,
        pre=zoo.compose(zoo.LOAD[:1], [{"_target_": "NormalizeIntensityd", "keys": "image", "channel_wise": True}]),
        post=zoo.compose(
            [{"_target_": "Activationsd", "keys": "pred", "sigmoid": True}],
            zoo.INVERT,
            [{"_target_": "AsDiscreted", "keys": "pred", "threshold": 0.5}],
        ),
        channels=("Tumor core", "Whole tumor", "Enhancing tumor"),
        inputs=4,
        inferer={"_target_": "SimpleInferer"},
    )
    task = task_of(root)
    assert task.info.labels == {"tumor core": 1, "whole tumor": 2, "enhancing tumor": 3}
    array = zoo.speckled((16, 8, 24), channels=5)
    labels = ask(task, Volume(array=array, affine=affine_of(SOME[1], SPACING, 5.0))).labels
    inputs = torch.from_numpy(
        (array[:4] - array[:4].mean((1, 2, 3), keepdims=True)) / array[:4].std((1, 2, 3), keepdims=True)
    )
    with torch.no_grad():
        on = task.components.network(inputs[None])[0].numpy() > 0
    wanted = np.zeros(on.shape[1:], np.uint8)
    for channel in sorted(range(3), key=lambda channel: -on[channel].sum()):
        wanted[on[channel]] = channel + 1
    assert len(np.unique(wanted)) > 2
    assert (labels != wanted).mean() < 0.001
    with pytest.raises(BadRequest, match="needs 4 channels; this image has 1"):
        task.prepare(Volume(array=array[:1], affine=np.eye(4)))


def brats(root):
    """Regions within each other as the zoo's BraTS bundle names them: brighter than 0.5, 0.2 and 0.7."""
    root = zoo.bundle(
        root,
        network={"_target_": "torch.nn.Conv3d", "in_channels": 1, "out_channels": 3, "kernel_size": 1},
        pre=zoo.compose(zoo.LOAD, zoo.ORIENT),
        post=zoo.compose(
            [{"_target_": "Activationsd", "keys": "pred", "sigmoid": True}],
            zoo.INVERT,
            [{"_target_": "AsDiscreted", "keys": "pred", "threshold": 0.5}],
            zoo.SAVE,
        ),
        channels=("Tumor core", "Whole tumor", "Enhancing tumor"),
    )
    conv = torch.nn.Conv3d(1, 3, 1)
    with torch.no_grad():
        conv.weight.fill_(8.0)
        conv.bias[:] = -8 * torch.tensor([0.5, 0.2, 0.7])
    zoo.save(root, conv)
    return root


def test_regions_within_each_other_are_all_seen_in_one_label_map(tmp_path):
    task = task_of(brats(tmp_path / "brats"))
    for volume in volumes():
        x = volume.array[0]
        wanted = np.where(x > 0.7, 3, np.where(x > 0.5, 1, np.where(x > 0.2, 2, 0)))
        assert set(np.unique(wanted)) == {0, 1, 2, 3}
        assert np.array_equal(ask(task, volume).labels, wanted)


def test_probabilities_of_regions_within_each_other_add_up_and_name_the_label_map(tmp_path):
    task = task_of(brats(tmp_path / "brats"))
    x = zoo.speckled()
    likely = task.probabilities(torch.from_numpy(x)[None])[0].numpy()
    inside = 1 / (1 + np.exp(-8 * (x[0] - np.array([0.5, 0.2, 0.7])[:, None, None, None])))
    assert likely.shape == (4, *x.shape[1:])
    assert np.allclose(likely.sum(0), 1, atol=1e-6)
    for value, wanted in {0: 1 - inside[1], 1: inside[0] - inside[2], 2: inside[1] - inside[0], 3: inside[2]}.items():
        assert np.allclose(likely[value], wanted, atol=1e-5)


def case_of(volume, tmp_path):
    path = tmp_path / "ct.nii.gz"
    nibabel.Nifti1Image(np.moveaxis(volume.array, 0, -1).squeeze(), volume.affine).to_filename(path)
    image = ImageRecord(id="ct", path=path, ext=".nii.gz")
    return Case(image=image, labels={}, max_bytes=1 << 24)


def test_what_a_bundle_is_unsure_of_lies_on_the_voxels_it_is_unsure_of(tmp_path):
    crop = [{"_target_": "CropForegroundd", "keys": "image", "source_key": "image", "select_fn": "$lambda x: x > -9"}]
    root = zoo.bundle(
        tmp_path / "b",
        network=zoo.BRIGHTER,
        pre=zoo.compose(zoo.LOAD, zoo.ORIENT, crop),
        post=zoo.compose(zoo.SOFTMAX, zoo.INVERT, zoo.ARGMAX),
        weights=zoo.threshold(AT),
    )
    task = task_of(root)
    for volume in volumes():
        volume.array[:, :2], volume.array[:, :, -3:] = -9, -9  # cropped off
        levels = TestTimeAugmentation().score(
            case_of(volume, tmp_path), {"samples": 1, "spatial": "mirror", "batch": 1}, task
        )
        p = 1 / (1 + np.exp(-(volume.array[0].astype(float) - AT)))
        entropy = -(p * np.log2(p) + (1 - p) * np.log2(1 - p)) * (volume.array[0] > -9)
        assert np.abs(levels.uncertainty.array - 255 * entropy).max() <= 1
        ml = abs(np.linalg.det(volume.affine[:3, :3])) / 1000
        assert levels.values["foreground"] == pytest.approx((volume.array[0] > AT).sum() * ml, rel=1e-5)


@pytest.mark.parametrize("method", [TestTimeAugmentation(), MonteCarloDropout()], ids=lambda method: method.name)
@pytest.mark.parametrize("made", ["unet", "brats", "deepedit"])
def test_bundles_are_scored(tmp_path, made, method):
    if made == "unet":
        pre = zoo.compose(zoo.LOAD, zoo.ORIENT, [{"_target_": "Spacingd", "keys": "image", "pixdim": [1.5, 2, 2]}])
        post = zoo.compose(zoo.SOFTMAX, zoo.INVERT, zoo.ARGMAX)
        root = zoo.bundle(tmp_path / made, network=UNET, pre=pre, post=post)
    else:
        root = {"brats": brats, "deepedit": deepedit}[made](tmp_path / made)
    task = task_of(root)
    case = case_of(Volume(array=zoo.speckled((19, 24, 14)), affine=affine_of(SOME[2], SPACING, 9.0)), tmp_path)
    options = {**options_of(method, {}), "samples": 3}
    if method.name == "epistemic" and made != "unet":
        with pytest.raises(BadRequest, match="neither dropout nor convolutions"):
            method.score(case, options, task)  # a convolution of one voxel is none
        return
    once, again = (method.score(case, options, task) for _ in range(2))
    assert once.values == again.values
    assert once.values[method.name] > 0
    assert once.uncertainty.array.shape == (19, 24, 14)
    assert [part["name"] for part in once.columns["structures"]] == list(task.labels)
    assert scoring_models({made: task}) == [made]


TURNED = """
import numpy as np
class TurnClicks:
    def __init__(self, ref_image, label_names):
        self.ref_image, self.label_names = ref_image, label_names
    def __call__(self, data):
        meta = data[self.ref_image].meta
        turn = np.linalg.inv(meta["affine"].numpy()) @ meta["original_affine"]
        for name in self.label_names:
            if len(data.get(name, [])):
                points = np.array(data[name], float)
                data[name] = points @ turn[:3, :3].T + turn[:3, 3]
        return data
"""


def deepedit(root, *, turned=False):
    """A DeepEdit that labels what is bright, and what lies within a few voxels of a click on the spleen and not of one
    on the background."""
    guidance = [
        {"_target_": "AddGuidanceFromPointsDeepEditd", "ref_image": "@image_key", "label_names": "@label_names"},
        {"_target_": "Resized", "keys": "@image_key", "spatial_size": [18, 26, 21], "mode": "nearest"},
        {"_target_": "ResizeGuidanceMultipleLabelDeepEditd", "guidance": "guidance", "ref_image": "@image_key"},
        {"_target_": "AddGuidanceSignalDeepEditd", "keys": "@image_key", "guidance": "guidance", "sigma": 2},
    ]
    turn = [{"_target_": "scripts.own.TurnClicks", "ref_image": "@image_key", "label_names": "@label_names"}]
    zoo.bundle(
        root,
        network={"_target_": "torch.nn.Conv3d", "in_channels": 3, "out_channels": 2, "kernel_size": 1},
        pre=zoo.compose(zoo.LOAD, zoo.ORIENT, turn if turned else [], guidance),
        post=zoo.compose(zoo.SOFTMAX, zoo.INVERT, zoo.ARGMAX, zoo.SAVE),
        inferer={"_target_": "SimpleInferer"},
        label_names={"Spleen": 1, "background": 0},
        number_intensity_ch=1,
        scripts=TURNED,
    )
    conv = torch.nn.Conv3d(3, 2, 1)
    with torch.no_grad():
        conv.weight.zero_()
        conv.weight[1, :, 0, 0, 0] = torch.tensor([2.0, 4.0, -4.0])
        conv.bias[:] = torch.tensor([0.0, -2.2])
    zoo.save(root, conv)
    return root


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


def broken(root, kind):
    good = {"network": zoo.BRIGHTER, "pre": zoo.compose(zoo.LOAD), "post": zoo.compose(zoo.ARGMAX)}
    zoo.bundle(root, **good)
    configs, model = root / "configs", root / "models" / "model.pt"
    config = json.loads((configs / "inference.json").read_text())
    if kind == "no metadata":
        (configs / "metadata.json").unlink()
    if kind == "no inference config":
        (configs / "inference.json").unlink()
    if kind == "torn config":
        (configs / "inference.json").write_text("{")
    if kind == "no labels":
        (configs / "metadata.json").write_text(json.dumps(zoo.metadata(())))
    if kind == "two-dimensional":
        flat = zoo.metadata(("background", "spleen"))
        flat["network_data_format"]["inputs"]["image"]["spatial_shape"] = [256, 256]
        (configs / "metadata.json").write_text(json.dumps(flat))
    if kind == "no weights":
        model.unlink()
    if kind == "other weights":
        torch.save(torch.nn.Conv3d(1, 3, 1).state_dict(), model)
    if kind == "code in the weights":
        torch.save({"model": torch.nn.Conv3d(1, 2, 1)}, model)
    if kind == "pickle":
        model.write_bytes(pickle.dumps({"a": 1}))
    if kind == "no tensors":
        torch.save({"epoch": 3}, model)
    if kind == "unknown transform":
        config["preprocessing"]["transforms"].append({"_target_": "NoSuchTransformd", "keys": "image"})
        (configs / "inference.json").write_text(json.dumps(config))
    if kind == "missing package":
        config["network_def"] = {"_target_": "no_such_package.Network"}
        (configs / "inference.json").write_text(json.dumps(config))


BROKEN = {
    "no metadata": "configs/metadata.json is missing",
    "no inference config": "configs/inference.json is missing",
    "torn config": "inference.json cannot be read",
    "no labels": "no channel_def",
    "two-dimensional": "it is two-dimensional, but images are volumes",
    "no weights": "it has no weights: none of models/model.pt",
    "other weights": "model.pt does not match its network",
    "code in the weights": "could run code: not loaded",
    "pickle": "model.pt",
    "no tensors": "has no state dict",
    "unknown transform": "NoSuchTransformd",
    "missing package": "no_such_package",
}


@pytest.mark.parametrize("kind", BROKEN)
def test_a_broken_bundle_says_what_is_wrong_with_which_file(tmp_path, kind):
    broken(tmp_path / "spleen", kind)
    with pytest.raises(ModelBroken, match="bundle 'spleen'") as error:
        task_of(tmp_path / "spleen")
    assert BROKEN[kind] in error.value.detail, error.value.detail


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


def test_labels_may_be_called_label_def(tmp_path):
    root = zoo.bundle(tmp_path / "b", network=zoo.BRIGHTER, pre=zoo.compose(zoo.LOAD), post=zoo.compose(zoo.ARGMAX))
    metadata = zoo.metadata(("background", "Liver"))
    found = metadata["network_data_format"]["outputs"]["pred"]
    found["label_def"] = found.pop("channel_def")
    (root / "configs" / "metadata.json").write_text(json.dumps(metadata))
    assert BundleTask(BundleFolder(root, "b")).info.labels == {"liver": 1}
