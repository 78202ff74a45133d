"""Bundles of a few weights whose answers are known, loaded as tasks."""

import torch

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


UNET = {
    "_target_": "UNet",
    "spatial_dims": 3,
    "in_channels": 1,
    "out_channels": 2,
    "channels": [4, 8],
    "strides": [2],
    "norm": "batch",
}


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
