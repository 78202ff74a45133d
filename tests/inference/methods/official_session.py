"""A double of nnInteractive's inference session, with its signatures, and a folder in its format.

The double's answers are plain, so that geometry shows: a prompt adds every voxel of the image with the values that it
lies on, and one for what is not the structure takes them away. As with the official class each answer is on top of the
one before, a failed call leaves everything as it was, and one call can be undone. `test_nninteractive_official.py`
compares its signatures with those of the official class where that is installed.
"""

from __future__ import annotations

import json
import sys
import types
from contextlib import contextmanager
from importlib.machinery import ModuleSpec
from pathlib import Path
from typing import ClassVar

import numpy as np
import pytest
import torch

from rayapp.models.nninteractive_folder import CHECKPOINT

ALL = {"scribble": True, "lasso": True, "points": True, "bbox2d": True, "bbox3d": True}


class SessionDouble:
    """See the module. `log` has the calls of all sessions by name, `loads` the folders that were loaded, `drawn` what
    was drawn at random, as the official class does now and then."""

    log: ClassVar[list[tuple]] = []
    loads: ClassVar[list[str]] = []
    drawn: ClassVar[list[float]] = []
    supported: ClassVar[dict[str, bool]] = dict(ALL)
    initial = True

    def __init__(
        self,
        device=torch.device("cuda"),  # noqa: B008
        use_torch_compile=False,
        verbose=False,
        torch_n_threads=8,
        do_autozoom=True,
        interactions_storage="auto",
        enable_undo=True,
    ):
        self.supported_interactions = {}
        self.num_interaction_channels = None
        self._before = None

    def _load_model_artifacts_from_disk(
        self, model_training_output_dir, use_fold=None, checkpoint_name="checkpoint_final.pth"
    ):
        self.loads.append(model_training_output_dir)
        content = (Path(model_training_output_dir) / "fold_0" / checkpoint_name).read_bytes()
        if content == b"torn":
            raise RuntimeError("the checkpoint is damaged")
        return {"network": torch.nn.Identity()}

    def initialize_from_loaded_artifacts(self, artifacts):
        self.network = artifacts["network"]
        self.supported_interactions = dict(self.supported)
        self.supports_initial_label = self.initial
        self.num_interaction_channels = 7

    def warmup(self):
        pass

    def set_image(self, image, image_properties=None):
        assert image.ndim == 4
        self.image = image[0]

    def set_target_buffer(self, target_buffer):
        self.target = target_buffer

    def reset_interactions(self, _preserve_undo=False):
        self.log.append(("reset",))
        self.target[:] = 0
        self._before = None

    def undo(self):
        if self._before is None:
            return False
        self.log.append(("undo",))
        self.target[:] = self._before
        self._before = None
        return True

    def add_point_interaction(
        self, coordinates, include_interaction, run_prediction=True, override_capability_checks=False
    ):
        mark = np.zeros(self.image.shape, bool)
        mark[coordinates] = True
        self._add("point", mark, include_interaction, run_prediction)

    def add_bbox_interaction(
        self, bbox_coords, include_interaction, run_prediction=True, override_capability_checks=False
    ):
        mark = np.zeros(self.image.shape, bool)
        mark[tuple(slice(*side) for side in bbox_coords)] = True
        self._add("bbox", mark, include_interaction, run_prediction)

    def add_scribble_interaction(
        self,
        scribble_image,
        include_interaction,
        run_prediction=True,
        override_capability_checks=False,
        interaction_bbox=None,
    ):
        self._add("scribble", self._placed(scribble_image, interaction_bbox), include_interaction, run_prediction)

    def add_lasso_interaction(
        self,
        lasso_image,
        include_interaction,
        run_prediction=True,
        override_capability_checks=False,
        interaction_bbox=None,
    ):
        self._add("lasso", self._placed(lasso_image, interaction_bbox), include_interaction, run_prediction)

    def add_initial_seg_interaction(self, initial_seg, run_prediction=False, override_capability_checks=False):
        self.log.append(("initial", int(initial_seg.sum())))
        self._before = self.target.copy()
        self.target[:] = initial_seg

    def _placed(self, image, box):
        assert image.dtype == np.uint8
        assert image.flags.c_contiguous
        mark = np.zeros(self.image.shape, bool)
        mark[tuple(slice(*side) for side in box)] = image
        return mark

    def _add(self, kind, mark, include, predict):
        if not self.image.any():
            raise ValueError("Input image is entirely zero")
        with self._undoable():
            self.log.append((kind, tuple(int(n) for n in np.argwhere(mark)[0]), int(mark.sum()), include, predict))
            if predict:
                self.network(torch.zeros(1))
                self.network(torch.zeros(1))
                self.drawn.append(np.random.random())
                values = self.image[mark]
                self.target[np.isin(self.image, values[values != 0])] = include

    @contextmanager
    def _undoable(self):
        before, previous = self.target.copy(), self._before
        self._before = before
        try:
            yield
        except BaseException:
            self.target[:], self._before = before, previous
            raise


@pytest.fixture
def official(monkeypatch):
    """The double, installed under the official name for the duration of a test."""
    session = type("nnInteractiveInferenceSession", (SessionDouble,), {"log": [], "loads": [], "drawn": []})
    module = types.ModuleType("nnInteractive.inference.inference_session")
    module.nnInteractiveInferenceSession = session
    for name in ("nnInteractive", "nnInteractive.inference", module.__name__):
        fake = module if name == module.__name__ else types.ModuleType(name)
        fake.__spec__ = ModuleSpec(name, None)
        monkeypatch.setitem(sys.modules, name, fake)
    return session


def model_folder(root: Path, *, licence: str | None = "CC BY-NC-SA 4.0\nhttps://example.org\n") -> Path:
    """A folder that has all the files of a model, for the double."""
    (root / "fold_0").mkdir(parents=True)
    (root / "fold_0" / CHECKPOINT).write_bytes(b"weights")
    for name in ("plans.json", "dataset.json", "inference_info.json"):
        (root / name).write_text(json.dumps({}))
    if licence is not None:
        (root / "LICENSE").write_text(licence)
    return root


class Brighter(torch.nn.Module):
    """A network for real folders, built as nnU-Net builds its own: the structure is what is brighter than the mean."""

    def __init__(self, input_channels, num_classes, deep_supervision=False):
        super().__init__()
        self.conv = torch.nn.Conv3d(input_channels, num_classes, 1, bias=False)
        torch.nn.init.zeros_(self.conv.weight)
        self.conv.weight.data[1, 0] = 1

    def forward(self, image):
        return self.conv(image)


class Prompted(torch.nn.Module):
    """A network for real folders whose answers depend on the image, all prompts and the answer before; nothing is in
    what is padded with zeros."""

    def __init__(self, input_channels, num_classes, deep_supervision=False):
        super().__init__()
        self.conv = torch.nn.Conv3d(input_channels, num_classes, 5, padding=2, bias=False)

    def forward(self, image):
        return self.conv(image)


BRIGHTER, PROMPTED = (f"{network.__module__}.{network.__qualname__}" for network in (Brighter, Prompted))


def official_folder(root: Path, network: str, *, bbox3d: bool = True) -> Path:
    """A folder in the format of nnInteractive with a tiny network; needs nnU-Net to build it."""
    from nnunetv2.utilities.get_network_from_plans import get_network_from_plans

    torch.manual_seed(5)
    built = get_network_from_plans(network, {}, [], 8, 2, allow_init=False, deep_supervision=False)
    model_folder(root)
    configuration = {
        "data_identifier": "tiny",
        "preprocessor_name": "DefaultPreprocessor",
        "batch_size": 2,
        "patch_size": [64, 64, 64],
        "spacing": [1.0, 1.0, 1.0],
        "normalization_schemes": ["ZScoreNormalization"],
        "use_mask_for_norm": [False],
        "architecture": {"network_class_name": network, "arch_kwargs": {}, "_kw_requires_import": []},
    }
    plans = {
        "dataset_name": "Dataset999_tiny",
        "plans_name": "tiny",
        "image_reader_writer": "SimpleITKIO",
        "transpose_forward": [0, 1, 2],
        "transpose_backward": [0, 1, 2],
        "configurations": {"3d_fullres": configuration},
        "label_manager": "LabelManager",
    }
    dataset = {"channel_names": {"0": "image"}, "labels": {"background": 0, "structure": 1}, "file_ending": ".nii.gz"}
    info = {"supported_interactions": {**ALL, "bbox3d": bbox3d}, "point_radius": 2, "interaction_decay": 0.9}
    for name, content in (("plans", plans), ("dataset", dataset), ("inference_info", info)):
        (root / f"{name}.json").write_text(json.dumps(content))
    checkpoint = {
        "network_weights": built.state_dict(),
        "trainer_name": "nnInteractiveTrainer_stub",
        "init_args": {"configuration": "3d_fullres"},
    }
    torch.save(checkpoint, root / "fold_0" / CHECKPOINT)
    return root
