"""Memory does not grow with the number of images."""

import numpy as np
import psutil
import pytest
import torch

from rayapp.training.basic_train import BasicTrainTask
from rayapp.training.local_host import LocalHost
from rayapp.training.options import Options
from rayapp.training.train_task import TrainRequest
from tests.training.blobs import LABELS, NETWORK, blob, write_pair

SHAPE = (64, 60, 56)
SMALL_SET, LARGE_SET = 60, 500
CACHE = 16  # MiB; a case is 0.7 MB on the network's grid


def peak(pairs, folder):
    """The most memory (MiB) that this process holds during a run over these pairs."""
    process, most = psutil.Process(), 0

    def told(_):
        nonlocal most
        most = max(most, process.memory_info().rss)

    task = BasicTrainTask(labels=LABELS, description="", options=Options())
    params = {"network": NETWORK, "roi_size": [24, 24, 24], "spacing": 1.0, "max_epochs": 1, "cache": CACHE}
    request = TrainRequest(
        model="segmentation", pairs=pairs, folder=folder / "run", params={**params, "train_batch_size": 4}
    )
    assert task.train(request, LocalHost(folder / "host", device=torch.device("cpu"), on_progress=told)) is not None
    return most / 2**20


@pytest.mark.slow
def test_500_volumes_take_no_more_memory_than_60(tmp_path):
    pairs = []
    for number in range(LARGE_SET):
        volume, labels = blob(number, SHAPE)
        pairs.append(write_pair(tmp_path, f"blob_{number:03}", volume, labels))
    peak(pairs[:20], tmp_path / "warm")  # imports, thread pools, allocator
    small = peak(pairs[:SMALL_SET], tmp_path / "small")
    large = peak(pairs, tmp_path / "large")
    whole = LARGE_SET * np.prod(SHAPE) * 3 / 2**20
    print(
        f"peak: {small:.0f} MiB with {SMALL_SET} volumes, {large:.0f} MiB with {LARGE_SET}, which are {whole:.0f} MiB"
    )
    assert large - small < CACHE + 48
    assert whole > 4 * (CACHE + 48)
