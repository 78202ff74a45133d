"""Pairs of small files, and one thread for torch: results are the same each time, and the machine has other work."""

import pytest
import torch

from tests.training.blobs import write_pairs


@pytest.fixture(autouse=True, scope="session")
def one_thread():
    torch.set_num_threads(1)


@pytest.fixture(scope="session")
def pairs(tmp_path_factory):
    return write_pairs(tmp_path_factory.mktemp("blobs"), 8)
