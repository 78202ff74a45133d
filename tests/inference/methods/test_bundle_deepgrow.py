"""DeepGrow bundles, of slices and of volumes, made of MONAI's own transforms for them in the zoo's layout."""

import json

import numpy as np
import pytest
import torch

from rayapp.errors import BadRequest, ModelBroken
from rayapp.imaging.volume import Volume
from rayapp.inference.infer_task import Prompts
from rayapp.inference.methods.monai_bundle import BundleTask
from rayapp.models.bundle_folder import BundleFolder
from tests.inference import zoo
from tests.inference.grids import ORIENTATIONS, affine_of

SPACING = (0.8, 1.1, 2.3)
SHAPE = (23, 31, 11)
DEEPGROW = "monai.apps.deepgrow.transforms."
SLICES_FIRST = {"_target_": "Transposed", "keys": "image", "indices": [2, 0, 1]}
SLICES_LAST = {"_target_": "Transposed", "keys": "pred", "indices": [1, 2, 0]}


def steps(dimensions, *, size, spacing=False):
    """As MONAI Label's DeepGrow has them: slices first, resampled in their plane, cropped around the clicks."""
    flat = dimensions == 2
    return [
        {"_target_": "LoadImaged", "keys": "image"},
        {"_target_": "EnsureChannelFirstd", "keys": "image", "channel_dim": -1} if flat else SLICES_FIRST,
        *([{"_target_": "Spacingd", "keys": "image", "pixdim": [1.0, 1.0], "mode": "bilinear"}] if spacing else []),
        {"_target_": f"{DEEPGROW}AddGuidanceFromPointsd", "ref_image": "image", "spatial_dims": dimensions},
        *([{"_target_": f"{DEEPGROW}Fetch2DSliced", "keys": "image", "guidance": "guidance"}] if flat else []),
        {"_target_": "EnsureChannelFirstd", "keys": "image", "channel_dim": "no_channel"},
        {
            "_target_": f"{DEEPGROW}SpatialCropGuidanced",
            "keys": "image",
            "guidance": "guidance",
            "spatial_size": size,
            "margin": 4,
        },
        {"_target_": "Resized", "keys": "image", "spatial_size": size, "mode": "area"},
        {"_target_": f"{DEEPGROW}ResizeGuidanced", "guidance": "guidance", "ref_image": "image"},
        {"_target_": "NormalizeIntensityd", "keys": "image", "subtrahend": 208, "divisor": 388},
        {"_target_": f"{DEEPGROW}AddGuidanceSignald", "image": "image", "guidance": "guidance", "sigma": 1},
    ]


def bundle(root, dimensions, pre):
    """The structure is what lies within a voxel or two of a click on it, and not as near to one beside it."""
    conv = {"_target_": f"torch.nn.Conv{dimensions}d", "in_channels": 3, "out_channels": 1, "kernel_size": 1}
    post = [
        {"_target_": "Activationsd", "keys": "pred", "sigmoid": True},
        {"_target_": "AsDiscreted", "keys": "pred", "threshold": 0.5},
        {"_target_": "ToNumpyd", "keys": "pred"},
        {"_target_": f"{DEEPGROW}RestoreLabeld", "keys": "pred", "ref_image": "image", "mode": "nearest"},
        SLICES_LAST,
        {"_target_": "SaveImaged", "keys": "pred"},
    ]
    weights = torch.zeros(1, 3, *[1] * dimensions)
    weights[0, 1:, ...] = torch.tensor([4.0, -4.0]).view(2, *[1] * dimensions)
    zoo.bundle(
        root,
        network=conv,
        pre=zoo.compose(pre),
        post=zoo.compose(post),
        channels=("foreground",),
        inputs=3,
        inferer={"_target_": "SimpleInferer"},
        weights={"weight": weights, "bias": torch.tensor([-2.2])},
    )
    metadata = root / "configs" / "metadata.json"
    said = json.loads(metadata.read_text())
    said["network_data_format"]["inputs"]["image"]["spatial_shape"] = [256] * dimensions
    metadata.write_text(json.dumps(said))
    task = BundleTask(BundleFolder(root, root.name))
    task.load()
    return task


def volumes():
    array = zoo.speckled(SHAPE) * 200
    return [
        Volume(array=array, affine=affine_of(o, SPACING, oblique)) for o in ORIENTATIONS[::11] for oblique in (0, 17)
    ]


CLICKS = [(4, 9, 3), (18, 26, 8), (11, 5, 0)]


@pytest.mark.parametrize("spacing", [False, True], ids=["on its own voxels", "resampled in its plane"])
def test_a_deepgrow_of_slices_is_known_by_its_transforms_and_outlines_the_clicked_slice(tmp_path, spacing):
    task = bundle(tmp_path / "called_anything", 2, steps(2, size=[32, 32], spacing=spacing))
    assert (task.info.type, task.info.dimension, dict(task.info.labels)) == ("deepgrow", 2, {})
    for volume in volumes():
        prepared = task.prepare(volume)
        for click in CLICKS:
            found = task.predict(prepared, Prompts(clicks={"foreground": [click]}), {}).labels
            assert (found.shape, found.dtype) == (SHAPE, np.uint8)
            on = np.argwhere(found)
            assert set(on[:, 2]) == {click[2]}
            assert found[click] == 1
            assert 0 < len(on) < 40
            assert np.abs(on.mean(0) - click).max() < 1.1
            beside = Prompts(clicks={"foreground": [click], "background": [click]})
            assert not task.predict(prepared, beside, {}).labels.any()


def test_only_clicks_on_the_slice_that_is_meant_count(tmp_path):
    task = bundle(tmp_path / "b", 2, steps(2, size=[32, 32]))
    prepared = task.prepare(volumes()[0])
    both = {"foreground": [CLICKS[0], CLICKS[1]]}
    for k, click in ((3, CLICKS[0]), (8, CLICKS[1]), (None, CLICKS[1])):
        found = task.predict(prepared, Prompts(clicks=both, slice=k), {}).labels
        alone = task.predict(prepared, Prompts(clicks={"foreground": [click]}), {}).labels
        assert np.array_equal(found, alone)
    named = task.predict(prepared, Prompts(clicks={"tumour": [CLICKS[0]]}, label="tumour"), {})
    assert named.labels[CLICKS[0]] == 1
    with pytest.raises(BadRequest, match="click on a structure on slice 5"):
        task.predict(prepared, Prompts(clicks=both, slice=5), {})
    with pytest.raises(BadRequest, match="click on a structure"):
        task.predict(prepared, Prompts(), {})


def test_a_deepgrow_of_volumes_outlines_what_was_clicked(tmp_path):
    task = bundle(tmp_path / "b", 3, steps(3, size=[11, 32, 32]))
    assert (task.info.type, task.info.dimension) == ("deepgrow", 3)
    for volume in volumes():
        prepared = task.prepare(volume)
        for click in CLICKS:
            found = task.predict(prepared, Prompts(clicks={"foreground": [click]}), {}).labels
            assert found[click] == 1
            assert np.abs(np.argwhere(found).mean(0) - click).max() < 1.1


def test_a_deepgrow_on_the_loaded_grid_needs_nothing_put_back(tmp_path):
    pre = [
        {"_target_": "LoadImaged", "keys": "image"},
        {
            "_target_": f"{DEEPGROW}AddGuidanceFromPointsd",
            "ref_image": "image",
            "spatial_dims": 3,
            "depth_first": False,
        },
        {"_target_": "EnsureChannelFirstd", "keys": "image", "channel_dim": "no_channel"},
        {"_target_": f"{DEEPGROW}AddGuidanceSignald", "image": "image", "guidance": "guidance", "sigma": 1},
    ]
    task = bundle(tmp_path / "b", 3, pre)
    config = json.loads((tmp_path / "b" / "configs" / "inference.json").read_text())
    kept = [step for step in config["postprocessing"]["transforms"] if "Restore" not in step["_target_"]]
    config["postprocessing"]["transforms"] = [step for step in kept if step != SLICES_LAST]
    (tmp_path / "b" / "configs" / "inference.json").write_text(json.dumps(config))
    task = BundleTask(BundleFolder(tmp_path / "b", "b"))
    for volume in volumes():
        found = task.predict(task.prepare(volume), Prompts(clicks={"foreground": [CLICKS[1]]}), {}).labels
        assert found[CLICKS[1]] == 1
        assert np.abs(np.argwhere(found).mean(0) - CLICKS[1]).max() < 0.6


def test_one_that_leaves_its_mask_slices_first_is_told(tmp_path):
    task = bundle(tmp_path / "b", 2, steps(2, size=[32, 32]))
    path = tmp_path / "b" / "configs" / "inference.json"
    config = json.loads(path.read_text())
    config["postprocessing"]["transforms"].remove(SLICES_LAST)
    path.write_text(json.dumps(config))
    task = BundleTask(BundleFolder(tmp_path / "b", "b"))
    with pytest.raises(ModelBroken, match="its post-transforms return"):
        task.predict(task.prepare(volumes()[0]), Prompts(clicks={"foreground": [CLICKS[0]]}), {})
