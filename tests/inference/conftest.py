"""The shipped models as tasks, and phantoms to run them on. One thread for torch: the machine has other work."""

import pytest
import torch

from rayapp.imaging.phantom import phantom
from rayapp.inference.methods.deepedit import DeepEditTask
from rayapp.inference.methods.segmentation import SegmentationTask
from tests.inference.shipped_models import shipped

SEEDS = (2_000_001, 2_000_002, 2_000_003)
SHAPE = (72, 80, 56)


@pytest.fixture(autouse=True, scope="session")
def one_thread():
    torch.set_num_threads(1)


@pytest.fixture(scope="session")
def segmentation():
    return SegmentationTask.from_version(shipped("segmentation"))


@pytest.fixture(scope="session")
def deepedit():
    return DeepEditTask.from_version(shipped("deepedit"))


@pytest.fixture(scope="session")
def cases():
    """Small phantoms that no training saw: (volume, labels)."""
    return [phantom(seed, shape=SHAPE) for seed in SEEDS]
